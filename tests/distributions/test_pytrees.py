"""Distributions are pytrees of one structure per class, and say what is wrong with a shape."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import NAMES, build, events
from vaejax import distributions as vd


@jax.jit
def used(q, x):
    """A distribution out of `jit`, its score three ways, and a gradient that is stopped."""
    same = jax.lax.stop_gradient(q)
    axes = jax.tree.map(lambda leaf: 0, q)
    batch = jax.tree.map(lambda leaf: leaf[None], q)
    rows = jax.vmap(lambda q: q.log_prob(x), in_axes=(axes,))(batch)
    frozen = jax.grad(lambda q: jax.lax.stop_gradient(q).log_prob(x))(q)
    return same, [q.log_prob(x), same.log_prob(x), rows[0]], frozen


@pytest.mark.parametrize("name", NAMES)
def test_is_a_pytree(name, key):
    q, x = build(name), jnp.asarray(events(name)[0])
    shapes = jax.eval_shape(lambda: build(name))
    sampled = jax.eval_shape(q.sample, key)
    assert shapes.event_shape == q.event_shape == sampled.shape == x.shape
    same, log_p, frozen = used(q, x)
    assert jax.tree.structure(same) == jax.tree.structure(q)
    np.testing.assert_allclose(log_p, log_p[0], rtol=1e-5, atol=1e-6)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen))
    empty = jax.tree.map(lambda leaf: None, q)
    assert type(empty) is type(q) and not jax.tree.leaves(empty)


def test_parameters_broadcast():
    loc = np.random.default_rng(6).normal(size=(4, 5, 1)).astype(np.float32)
    scales = np.float32(0.5), np.full((1, 5, 1), 0.5, np.float32), 0.5
    kinds = vd.Normal, vd.Laplace, vd.DiscretizedLogistic
    laws = [kind(loc, scale) for kind in kinds for scale in scales]
    full = [kind(loc, np.full(loc.shape, 0.5, np.float32)) for kind in kinds for _ in scales]
    uniform = vd.Uniform(0.0, np.full((2, 3), 2.0, np.float32))

    @jax.jit
    def measured(laws, full, key):
        keys = jax.random.split(key, len(laws))
        shapes = [(q.mean, q.sample(k)) for q, k in zip(laws, keys, strict=True)]
        zero = jnp.zeros(loc.shape)
        return shapes, [[q.log_prob(zero) for q in two] for two in (laws, full)]

    assert all(q.event_shape == loc.shape for q in laws)
    shapes, (broadcast, written_out) = measured(laws, full, jax.random.key(1))
    assert {leaf.shape for leaf in jax.tree.leaves(shapes)} == {loc.shape}
    np.testing.assert_allclose(broadcast, written_out, rtol=1e-6)

    shapes = jax.eval_shape(lambda q, key: (q.mean, q.sample(key)), uniform, jax.random.key(2))
    assert [one.shape for one in shapes] == [(2, 3)] * 2
    log_p = jax.jit(uniform.log_prob)(jnp.ones((2, 3)))
    np.testing.assert_allclose(log_p, -6 * np.log(2), rtol=1e-6)
    assert jax.eval_shape(vd.Normal(0, 1).sample, jax.random.key(3)).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_shape_mismatch_names_the_fix(name):
    q = build(name)
    kind = type(q).__name__
    text = rf"{kind}\.log_prob: expected one event of shape \(3,\), got \(5, 3\); map it: jax\.vmap"
    with pytest.raises(ValueError, match=text):
        q.log_prob(np.zeros((5, 3), np.int32))
    with pytest.raises(ValueError, match=rf"{kind}\.log_prob: .*got \(\)"):
        jax.jit(q.log_prob)(np.zeros(()))


def test_categorical_wants_integers():
    with pytest.raises(TypeError, match=r"expected integer classes, got float32.*astype"):
        build("categorical").log_prob(np.zeros(3, np.float32))


def test_mixture_counts_its_components(key):
    wrong = vd.Mixture(np.zeros(3), vd.Normal(np.zeros((2, 4)), np.ones((2, 4))))
    shared = vd.Mixture(np.zeros(2), vd.Normal(np.zeros((2, 4)), np.ones(())))
    for q in (wrong, shared):
        for use in (lambda q: q.log_prob(np.zeros(4)), lambda q: q.sample(key), lambda q: q.mean):
            with pytest.raises(ValueError, match=r"Mixture: expected logits \[k\].*jax\.vmap"):
                use(q)


def test_every_method_of_a_distribution_is_documented():
    for method in ("sample", "log_prob", "sample_and_log_prob"):
        assert len(getattr(vd.Distribution, method).__doc__) >= 60
    for name in vd.__all__:
        assert len(getattr(vd, name).__doc__) >= 60, name


def structures_differ(classes):
    """As many fields, but never one structure, which is what compiled functions go by."""
    trees = [jax.tree.structure(cls(1.0, 2.0)) for cls in classes]
    assert all(a != b for a, b in itertools.combinations(trees, 2)), trees


def test_two_distributions_never_share_a_compiled_program():
    """Checked against structures that compare equal whatever the class, as in jax 0.10.2."""
    structures_differ([vd.Normal, vd.Laplace, vd.Uniform])
    coins = jax.tree.structure(vd.Bernoulli(1.0)), jax.tree.structure(vd.ContinuousBernoulli(1.0))
    assert coins[0] != coins[1]
    sixteen, more = (vd.DiscretizedLogistic(0.0, 1.0, levels) for levels in (16, 256))
    assert jax.tree.structure(sixteen) != jax.tree.structure(more)
    with pytest.raises(AssertionError):
        structures_differ([vd.Normal, lambda *args: vd.Normal(*args)])
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(vd.Normal(1.0, 2.0))[1][0]) == (
        ".scale"
    )
