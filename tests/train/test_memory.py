"""Recomputed activations and accumulated gradients: the same numbers, less to remember."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vaejax import (
    Batch,
    autoencoder,
    autoencoders,
    autoregressive,
    causal,
    heads,
    networks,
    objectives,
    train,
)
from vaejax.distributions import Normal
from vaejax.train.memory import accumulate, rematerialize
from vaejax.train.precision import mixed_precision

D, LATENT, EXAMPLES = 6, 2, 12
X = np.asarray(jax.random.uniform(jax.random.key(3), (EXAMPLES, D)))
WEIGHT = np.arange(EXAMPLES, dtype=np.float32) / 4
PRIOR = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))


def mlp(head, hidden=(8,), **options):
    return nn.Sequential([networks.MLP(hidden, **options), head])


@functools.cache
def point():
    return autoencoder(mlp(heads.Code(LATENT)), mlp(heads.FixedNormal((D,), 0.5)))


@functools.cache
def vae(hidden=(8,), likelihood=None, **options):
    return autoencoder(
        mlp(heads.Normal(LATENT), hidden, **options),
        likelihood or mlp(heads.FixedNormal((D,), 0.5), hidden, **options),
        PRIOR,
    )


@functools.cache
def started(model):
    return jax.jit(model.init)(jax.random.key(1), X[0])


def gradient(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def close(one, other, tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), one, other)


def products(jaxpr):
    """How many matrix products a program holds, in the bodies of its loops once each."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for one in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            one = getattr(one, "jaxpr", one)
            count += products(one) if hasattr(one, "eqns") else 0
    return count


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "a_part_masked"])
def test_value_metrics_and_gradient_are_those_of_the_whole_batch(masked):
    """The mean over all that counts, not the mean of the parts' means."""
    loss, params = autoencoders.reconstruction(point()), started(point())
    second = jnp.arange(EXAMPLES) % 4 == 1  # the second of four parts
    batch = Batch(X, weight=jnp.where(second, 0.0, WEIGHT)) if masked else Batch(X)
    # What is masked may hold anything, and there are whole parts without a mean.
    damaged = batch._replace(x=jnp.where(second[:, None] & masked, jnp.nan, X))
    rest = jax.random.key(2), jnp.zeros((), int)
    found = gradient(accumulate(loss, 4))(params, rest[0], damaged, rest[1])
    close(found, gradient(loss)(params, jax.random.clone(rest[0]), batch, rest[1]), 1e-6)


def test_in_double_precision_they_are_so_to_twelve_digits(x64):
    loss, x, weight = autoencoders.reconstruction(point()), X.astype(float), WEIGHT.astype(float)
    params = jax.tree.map(lambda leaf: leaf.astype(float), started(point()))
    at = params, jax.random.key(2), Batch(x, weight=weight), jnp.zeros((), int)
    found, expected = gradient(accumulate(loss, 3))(*at), gradient(loss)(*at)
    assert found[0][0].dtype == np.float64
    close(found, expected, 1e-12)


def test_each_part_has_a_key_of_its_own():
    """Against the loop by hand: the examples p, p + parts, ... under fold_in(key, p)."""
    loss = objectives.elbo(vae(), beta=optax.linear_schedule(0.0, 1.0, 10))
    params, key, step = started(vae()), jax.random.key(2), jnp.array(5)
    (value, metrics), grads = gradient(accumulate(loss, 3))(params, key, Batch(X), step)
    one = gradient(loss)
    found = [
        one(params, jax.random.fold_in(jax.random.clone(key), p), Batch(X[p::3]), step)
        for p in range(3)
    ]
    expected = jax.tree.map(lambda *parts: sum(map(np.asarray, parts)) / 3, *found)
    close(((value, metrics), grads), expected, 1e-6)
    assert metrics["beta"] == 0.5
    values = [float(v) for (v, _), _ in found]
    assert len(set(values)) == 3
    # Without a gradient the same value.
    alone = jax.jit(accumulate(loss, 3))(params, jax.random.clone(key), Batch(X), step)
    close(alone, (value, metrics), 1e-6)


def test_it_trains_as_the_whole_batch_does_and_in_populations():
    """Three steps with Adam, of two runs side by side, as one of them alone and unsplit."""
    loss, model = autoencoders.reconstruction(point()), point()
    order = {"steps": 3, "indices": lambda key, step: jnp.arange(EXAMPLES)}
    whole, parted = (
        train.make_train(one, optax.adam(0.1), **order) for one in (loss, accumulate(loss, 4))
    )
    starts = jax.jit(jax.vmap(model.init, (0, None)))(jax.random.split(jax.random.key(1)), X[0])
    keys = jax.random.split(jax.random.key(2))
    side_by_side = jax.jit(jax.vmap(parted, (0, 0, None)))(keys, starts, X)
    first, losses = jax.tree.map(lambda leaf: leaf[0], (starts, side_by_side[1]["loss"]))
    alone = jax.jit(whole)(jax.random.clone(keys[0]), first, X)[1]["loss"]
    # The losses of three steps: Adam divides gradients near zero by their own size.
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert side_by_side[0].step.shape == (2,)


def test_no_part_is_computed_twice_and_one_part_is_the_loss():
    loss, params = objectives.elbo(vae()), started(vae())
    at = params, jax.random.key(2), Batch(X), jnp.zeros((), int)
    whole, parted = (
        products(jax.make_jaxpr(jax.value_and_grad(one, has_aux=True))(*at).jaxpr)
        for one in (loss, accumulate(loss, 4))
    )
    assert parted == whole > 0
    assert accumulate(loss, 1) is loss


def test_memory_is_that_of_one_part():
    model = vae((64,) * 4)
    params = jax.eval_shape(lambda: model.init(jax.random.key(1), X[0]))
    batch = Batch(jax.ShapeDtypeStruct((512, D), jnp.float32))
    key, step = jax.eval_shape(lambda: (jax.random.key(2), 0))

    def temporary(loss):
        compiled = gradient(loss).lower(params, key, batch, step).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    loss = objectives.elbo(model)
    assert temporary(accumulate(loss, 16)) < temporary(loss) / 4


def test_what_has_no_gradient_says_so():
    loss, params = accumulate(autoencoders.reconstruction(point()), 3), started(point())
    at = jax.random.key(2), Batch(X), jnp.zeros((), int)
    of_metric = jax.jit(jax.grad(lambda p: loss(p, *at)[1]["distortion"]))(params)
    of_both = jax.jit(jax.grad(lambda p: loss(p, *at)[0] + loss(p, *at)[1]["distortion"]))(params)
    of_x = jax.jit(jax.grad(lambda x: loss(params, at[0], Batch(x), at[2])[0]))(X)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves((of_metric, of_both, of_x)))


def test_wrong_numbers_of_parts_are_refused(key):
    loss = autoencoders.reconstruction(point())
    with pytest.raises(ValueError, match="accumulate: expected parts >= 1, got 0"):
        accumulate(loss, 0)
    with pytest.raises(ValueError, match="accumulate: parts: got 5, expected a divisor of 12"):
        accumulate(loss, 5)(started(point()), key, Batch(X), 0)
    halves, params = accumulate(loss, 2), {"w": jnp.ones(())}
    with pytest.raises(TypeError, match="loss: params: got a model, expected parameters"):
        halves(point(), key, Batch(X), 0)
    with pytest.raises(TypeError, match=r"loss: key: got Model\(.*expected one PRNG key"):
        halves(params, point(), Batch(X), 0)
    with pytest.raises(ValueError, match="loss: batch: got no examples, expected one"):
        halves(params, key, Batch(X[:0]), 0)
    with pytest.raises(TypeError, match="accumulate: loss: got .*a dictionary of metrics"):
        accumulate(lambda p, k, b, s: jnp.mean(b.x), 2)(params, key, Batch(X), 0)


def pixels(hidden):
    """A decoder that is a network inside its distribution."""
    return autoregressive.Causal(causal.MADE((D,), hidden), (D,))


@pytest.mark.parametrize("inside", [False, True], ids=["dropout", "network_inside"])
def test_recomputed_or_stored_the_numbers_are_the_same(inside):
    model, x = vae(likelihood=pixels((8,))) if inside else vae(dropout=0.5), np.round(X)
    at = started(model), jax.random.key(2), Batch(x), jnp.zeros((), int)
    stored, again = (gradient(objectives.elbo(m))(*at) for m in (model, rematerialize(model)))
    close(again, stored, 1e-5)


@pytest.mark.parametrize("inside", [False, True], ids=["deep", "mixed_network_inside"])
def test_between_the_passes_no_activations_are_kept(inside):
    """Counted: the numbers that the backward pass gets from the forward one, parameters aside."""
    model = mixed_precision(vae((32,) * 8, pixels((32, 32, 32)))) if inside else vae((32,) * 8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(1), X[0]))

    def residuals(model):
        loss = objectives.elbo(model)

        def stored(params, key):
            _, pull = jax.vjp(lambda p: loss(p, key, Batch(jnp.round(X)), 0)[0], params)
            return jax.tree.leaves(pull)

        kept = jax.eval_shape(stored, params, jax.eval_shape(lambda: jax.random.key(2)))
        return sum(leaf.size for leaf in kept if leaf.shape[:1] == (EXAMPLES,))

    assert residuals(rematerialize(model)) < residuals(model) / 3
