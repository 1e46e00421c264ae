"""KL of two distributions against samples, enumeration and closed forms, and where it is none."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.laws import (
    CLASSES,
    DENSITIES,
    LOC,
    LOC2,
    SCALE,
    SCALE2,
    TRIL2,
    build,
    events,
    many_draws,
    scores,
    within,
)
from vaejax import distributions as vd
from vaejax.distributions import kl

value_and_slopes = jax.jit(jax.value_and_grad(kl, argnums=(0, 1)))

OTHERS = {
    "normal": ("normal", lambda a: vd.Normal(a(LOC2), a(SCALE2))),
    "normal_scalar": ("normal", lambda a: vd.Normal(a(0.3), a(np.ones(3)))),
    "multivariate": ("multivariate", lambda a: vd.MultivariateNormal(a(LOC2), a(TRIL2))),
    "multivariate_normal": ("multivariate", lambda a: vd.Normal(a(LOC2), a(SCALE2))),
    "multivariate_scalar": ("multivariate", lambda a: vd.Normal(a(LOC2), a(1.5))),
    "normal_multivariate": (
        "normal_scalar_scale",
        lambda a: vd.MultivariateNormal(a(LOC2), a(TRIL2)),
    ),
    "laplace": ("laplace", lambda a: vd.Laplace(a(LOC2), a(SCALE2))),
    "bernoulli": ("bernoulli", lambda a: vd.Bernoulli(a(LOC2))),
    "categorical": ("categorical", lambda a: vd.Categorical(a(CLASSES[::-1].copy()))),
    "uniform": ("uniform", lambda a: vd.Uniform(a(LOC - 0.1), a(LOC + 2 * SCALE))),
}


def pair(name):
    """Two distributions, the second another one than the example of `tests.laws`."""
    first, second = OTHERS[name]
    return build(first), second(jnp.asarray)


@pytest.mark.parametrize("name", OTHERS)
def test_kl_is_the_mean_log_ratio(name):
    q, p = pair(name)
    x, log_q = many_draws(OTHERS[name][0])
    value, _ = value_and_slopes(q, p)
    assert value.shape == () and value > 0.01
    within(log_q - scores(p, x), value)


@pytest.mark.parametrize("name", OTHERS)
def test_kl_of_equals_is_zero(name, x64):
    for q in pair(name):
        value, slopes = value_and_slopes(q, q)
        np.testing.assert_allclose(value, 0, atol=1e-12)
        if name != "uniform":  # whose KL is a corner there
            for leaf in jax.tree.leaves(slopes):
                np.testing.assert_allclose(leaf, 0, atol=1e-12)


def test_kl_enumerated(x64):
    """Discrete pairs by summing over all events."""
    for name, values in (("bernoulli", [0.0, 1.0]), ("categorical", range(4))):
        q, p = pair(name)
        x = np.array(list(itertools.product(values, repeat=3)))
        log_q, log_p = scores(q, x), scores(p, x)
        expected = (np.exp(log_q) * (log_q - log_p)).sum()
        np.testing.assert_allclose(value_and_slopes(q, p)[0], expected, rtol=1e-10)


def test_kl_of_gaussians_agrees_between_forms(x64):
    """The same Gaussians, written as diagonal and as full."""
    q, p = pair("normal")
    full_q = vd.MultivariateNormal(q.loc, jnp.diag(q.scale))
    full_p = vd.MultivariateNormal(p.loc, jnp.diag(p.scale))
    pairs = (q, p), (full_q, full_p), (full_q, p), (q, full_p)
    expected, *others = jax.jit(lambda pairs: [kl(*two) for two in pairs])(pairs)
    np.testing.assert_allclose(others, expected, rtol=1e-12)
    by_hand = np.log(SCALE2 / SCALE) + (SCALE**2 + (LOC - LOC2) ** 2) / (2 * SCALE2**2) - 0.5
    np.testing.assert_allclose(expected, by_hand.sum(), rtol=1e-12)


def test_kl_of_bernoullis_at_large_logits():
    a, b = map(np.ravel, np.meshgrid(*[np.array([-1e4, -20.0, 0.0, 20.0, 1e4])] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = scipy.special.expit(a) * (np.logaddexp(0, -b) - np.logaddexp(0, -a))
        zero = scipy.special.expit(-a) * (np.logaddexp(0, b) - np.logaddexp(0, a))

    @jax.jit
    @jax.vmap
    def measured(a, b):
        found = jax.value_and_grad(kl, argnums=(0, 1))(vd.Bernoulli(a), vd.Bernoulli(b))
        return found, kl(*[vd.Categorical(jnp.stack([jnp.zeros(()), v])) for v in (a, b)])

    (value, slopes), of_two_classes = measured(a, b)
    np.testing.assert_allclose(value, one + zero, rtol=1e-5, atol=1e-8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert np.isfinite(of_two_classes).all() and (of_two_classes >= 0).all()


def test_kl_of_uniforms_not_contained():
    q, p = (vd.Uniform(np.float32(0), np.float32(high)) for high in ([1, 1], [2, 0.9]))
    assert value_and_slopes(q, p)[0] == jnp.inf
    wide = vd.Uniform(np.float32(-1), np.full(2, 3, np.float32))
    np.testing.assert_allclose(value_and_slopes(p, wide)[0], np.log(2 * 4 / 0.9), rtol=1e-6)


def test_kl_with_a_class_ruled_out():
    q, p = vd.Categorical(jnp.array([0.0, -jnp.inf, 0.0])), vd.Categorical(jnp.zeros(3))
    value, (slope, _) = value_and_slopes(q, p)
    np.testing.assert_allclose(value, np.log(1.5), rtol=1e-6)
    assert np.isfinite(slope.logits).all()
    assert value_and_slopes(p, q)[0] == jnp.inf


def test_kl_of_a_delta():
    x = events("discretized_logistic")[0]
    classes = np.int32([0, 3, 1])
    others = [build(name) for name in ("bernoulli", "discretized_logistic", "categorical")]
    at = x, x, classes

    @jax.jit
    def measured(others):
        found = [(kl(vd.Delta(v), p), -p.log_prob(v)) for v, p in zip(at, others, strict=True)]
        return found, [kl(vd.Delta(x), vd.Delta(other)) for other in (x, x + 1)]

    found, (same, other) = measured(others)
    np.testing.assert_allclose(*zip(*found, strict=True))
    assert same == 0 and other == jnp.inf
    for name in DENSITIES:
        with pytest.raises(
            TypeError, match=r"Delta is discrete .* not defined.*leave the term out"
        ):
            kl(vd.Delta(x), build(name))
    with pytest.raises(TypeError, match="Normal is a density and Bernoulli is discrete"):
        kl(build("normal"), build("bernoulli"), sample=(x, jnp.zeros(())))


def test_kl_without_a_closed_form_wants_a_sample(key):
    q = vd.Normal(jnp.asarray(0.2), jnp.asarray(0.5))
    p = vd.Mixture(jnp.zeros(2), vd.Laplace(jnp.array([-1.0, 1.0]), jnp.array([0.5, 1.0])))
    with pytest.raises(
        TypeError, match=r"KL\(Normal \|\| Mixture\).*sample=q\.sample_and_log_prob"
    ):
        kl(q, p)
    one = jax.jit(jax.vmap(lambda key: kl(q, p, sample=q.sample_and_log_prob(key))))
    x = 0.2 + np.linspace(-5, 5, 20_001)
    log_q, log_p = scipy.stats.norm.logpdf(x, 0.2, 0.5), scores(p, x)
    within(
        one(jax.random.split(key, 40_000)), (np.exp(log_q) * (log_q - log_p)).sum() * 10 / 20_000
    )
    # Where there is a closed form, the sample is not looked at.
    exact = kl(q, q, sample=(jnp.nan, jnp.nan))
    np.testing.assert_allclose(exact, 0, atol=1e-6)


def test_kl_wants_one_event_shape():
    with pytest.raises(
        ValueError, match=r"kl: .*Normal over \(3,\) and Normal over \(2, 3\).*vmap"
    ):
        kl(build("normal"), vd.Normal(np.zeros((2, 3)), np.ones(())))
    with pytest.raises(ValueError, match=r"as many classes, got logits of shape \(3, 4\)"):
        kl(build("categorical"), vd.Categorical(np.zeros((3, 5))))


def test_kl_maps_over_batches():
    zero, one = np.zeros((5, 3), np.float32), np.ones((5, 3), np.float32)
    found = jax.jit(jax.vmap(kl))(vd.Normal(zero, one), vd.Normal(one, one))
    np.testing.assert_allclose(found, np.full(5, 1.5), rtol=1e-6)
