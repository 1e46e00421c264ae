"""Estimates of log p(x) against exact values, loops and counts of draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import oracles
from vaejax import bounds, data, evaluate, heads, networks
from vaejax.distributions import Normal
from vaejax.evaluate import _each, _measures, codes, elbo_terms, log_likelihood, log_prob, mean_loss
from vaejax.model import autoencoder, deterministic
from vaejax.objectives import elbo
from vaejax.types import Batch

MODEL, PARAMS = oracles.linear_gaussian(d=5, latent=2)
POOR = oracles.poor_posterior(MODEL)
X = np.random.default_rng(1).normal(size=(37, 5)).astype(np.float32)
EXACT = oracles.linear_gaussian_log_px(PARAMS, X)


def test_with_the_exact_posterior_one_particle_suffices(key):
    result = log_likelihood(MODEL, PARAMS, key, X, particles=1)
    np.testing.assert_allclose(result.log_px, EXACT, atol=1e-3)
    np.testing.assert_allclose(result.ess, 1.0)
    several = log_likelihood(MODEL, PARAMS, jax.random.key(1), X, particles=7)
    np.testing.assert_allclose(several.ess, 7.0, rtol=1e-3)


@pytest.mark.parametrize("particles", [10, 150, 1000])
def test_as_many_draws_are_used_as_were_asked_for(particles):
    """At the exact posterior all weights are equal, so that the ESS counts the draws.

    Checked against a number of draws that is fixed, or has a limit: 100 for any of these.
    """
    key = jax.random.key(6)
    found = log_likelihood(MODEL, PARAMS, key, X[:2], particles=particles)
    np.testing.assert_allclose(found.ess, particles, rtol=1e-3)
    rungs = bounds.ladder(MODEL, PARAMS, jax.random.clone(key), X[:2], particles=(particles,))
    np.testing.assert_allclose(rungs.ess[0], particles, rtol=1e-3)


def test_chunk_sizes_change_nothing_but_speed_and_memory():
    """Counts of draws: 13 particles in chunks of 13, 5 (ragged) and 1; 37 images in ragged ends."""
    results = [
        log_likelihood(
            POOR, PARAMS, jax.random.key(2), X, particles=13, chunk=chunk, batch_size=size
        )
        for chunk, size in [(13, 37), (5, 10), (1, 36)]
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.log_px, results[0].log_px, rtol=1e-5)
        np.testing.assert_allclose(other.ess, results[0].ess, rtol=1e-4)


def test_streamed_sum_equals_a_loop_over_images_and_particles():
    """The same draws, taken one by one and summed by numpy in double precision.

    Checked against sum(w~ log w), which is above log p(x): one good draw in many.
    """
    key = jax.random.key(3)
    result = log_likelihood(POOR, PARAMS, key, X[:3], particles=6, chunk=4)
    weights = oracles.log_weights(POOR, PARAMS, jax.random.clone(key), X[:3], 6)
    for i, log_w in enumerate(weights):
        w = np.exp(log_w - log_w.max())
        np.testing.assert_allclose(result.log_px[i], log_w.max() + np.log(w.mean()), rtol=1e-5)
        np.testing.assert_allclose(result.ess[i], w.sum() ** 2 / (w**2).sum(), rtol=1e-4)


@pytest.mark.statistics
def test_elbo_terms_average_to_the_training_loss_whatever_the_batch_size():
    key = jax.random.key(0)
    terms = elbo_terms(POOR, PARAMS, key, X, samples=400)
    assert {name: value.shape for name, value in terms.items()} == dict.fromkeys(
        ("elbo", "distortion", "rate"), (37,)
    )
    ragged = elbo_terms(POOR, PARAMS, jax.random.clone(key), X, samples=400, batch_size=10)
    for name in terms:
        np.testing.assert_allclose(terms[name], ragged[name], rtol=1e-4)
    assert terms["elbo"].mean() < EXACT.mean()
    loss = elbo(POOR, samples=40)
    values = [
        mean_loss(loss, PARAMS, k, X, batch_size=10)["elbo"]
        for k in jax.random.split(jax.random.key(1), 30)
    ]
    error = np.std(values) * np.sqrt(1 / 30 + 40 / 400)
    assert abs(np.mean(values) - terms["elbo"].mean()) < 5 * error


@pytest.mark.parametrize("size", [37, 10, 1])
def test_a_ragged_end_counts_by_its_examples(size):
    def loss(params, key, batch, step):
        return jnp.mean(batch.x), {"one": jnp.ones(())}

    measured = mean_loss(loss, {}, jax.random.key(0), X, batch_size=size)
    assert measured["loss"] == pytest.approx(X.mean(), rel=1e-5) and measured["one"] == 1


def test_parts_of_a_data_set_are_equally_large_up_to_one():
    def loss(params, key, batch, step):
        if len(batch.x) < 2:
            raise ValueError("one example has nothing to be compared with")
        return jnp.mean(batch.x), {"largest": jnp.asarray(float(len(batch.x)))}

    for n, size in ((7, 3), (9, 8), (8, 4)):
        x = np.arange(n, dtype=np.float32)
        found = mean_loss(loss, {}, jax.random.key(0), x, batch_size=size)
        assert found["loss"] == pytest.approx((n - 1) / 2) and found["largest"] <= size


def test_stored_data_are_transformed_once_per_example_with_its_own_key():
    model = autoencoder(heads.Normal(2), heads.Bernoulli((4, 3)), Normal(jnp.zeros(2), jnp.ones(2)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((4, 3)))
    grey = np.full((6, 4, 3), 128, np.uint8)
    terms = elbo_terms(model, params, jax.random.key(1), grey, transform=data.binarize)
    assert len(np.unique(terms["distortion"])) > 3
    black = np.zeros_like(grey)
    result = log_likelihood(
        model, params, jax.random.key(1), black, particles=3, transform=data.binarize
    )
    plain = log_likelihood(model, params, jax.random.key(1), black.astype(float), particles=3)
    np.testing.assert_allclose(result.log_px, plain.log_px, rtol=1e-5)


def test_memory_does_not_grow_with_particles_or_images():
    def peak(n, particles):
        x = jax.ShapeDtypeStruct((n, 5), jnp.float32)
        options = (POOR, particles, None, 5)
        arrays = PARAMS, jax.random.key(0), x, ()
        lowered = _each._loop.lower((_measures._log_likelihood, options, None, 10), *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert peak(10_000, 5000) <= 1.1 * peak(100, 10) + 10_000 * 64


def test_each_call_compiles_once():
    before = _each._loop._cache_size()
    for seed in range(3):
        log_likelihood(POOR, PARAMS, jax.random.key(seed), X, particles=9, chunk=3)
    assert _each._loop._cache_size() - before <= 1


@pytest.mark.parametrize("call", [partial(log_likelihood, particles=2), elbo_terms])
def test_an_image_that_is_not_finite_is_named(call):
    for bad in (np.nan, np.inf):
        x = X.copy()
        x[5, 2] = bad
        with pytest.raises(ValueError, match=r"for example 5 \(1 such of 37\)"):
            call(MODEL, PARAMS, jax.random.key(0), x)


def test_values_outside_the_support_are_named_with_the_fix():
    model = autoencoder(heads.Normal(2), heads.Bernoulli((4,)), Normal(jnp.zeros(2), jnp.ones(2)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"elbo is -inf for example 0.*lies in \[200, 200\]"):
        elbo_terms(model, params, jax.random.key(0), np.full((3, 4), 200.0))


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="log_likelihood: expected particles >= 1, got 0"):
        log_likelihood(MODEL, PARAMS, jax.random.key(0), X, particles=0)
    with pytest.raises(ValueError, match="elbo_terms: expected samples >= 1, got 0"):
        elbo_terms(MODEL, PARAMS, jax.random.key(0), X, samples=0)


def test_conditions_travel_in_the_batch(key):
    """p(x|c) of a model whose condition shifts the mean: known, and different for each c."""
    shift = jnp.asarray(np.random.default_rng(5).normal(size=(37, 5)), jnp.float32)
    model = oracles.shifted_by_condition(MODEL)
    result = log_likelihood(model, PARAMS, key, Batch(X, shift), particles=2)
    exact = oracles.linear_gaussian_log_px(PARAMS, X - np.asarray(shift))
    np.testing.assert_allclose(result.log_px, exact, atol=1e-3)


def test_weights_count_across_batches_and_masked_batches_are_left_out():
    def loss(params, key, batch, step):
        return jnp.sum(batch.weight * batch.x) / jnp.sum(batch.weight), {}

    weight = np.repeat([1.0, 0.001, 0.0], 5).astype(np.float32)
    batch = Batch(np.arange(15, dtype=np.float32), weight=weight)
    for size in (15, 5, 4):
        measured = mean_loss(loss, {}, jax.random.key(0), batch, batch_size=size)
        assert measured["loss"] == pytest.approx(
            np.average(np.arange(15), weights=weight), rel=1e-5
        )


def test_schedules_of_the_next_step_are_past_their_end_too():
    loss = elbo(POOR, beta=lambda step: jnp.minimum(1.0, (step + 1) / 1000))
    assert mean_loss(loss, PARAMS, jax.random.key(0), X)["beta"] == 1.0


def test_dropout_is_off_in_evaluation():
    noisy = autoencoder(
        nn.Sequential([networks.MLP((16,), dropout=0.5), heads.Normal(2)]),
        nn.Sequential([networks.MLP((16,), dropout=0.5), heads.FixedNormal(5, 1.0)]),
        Normal(jnp.zeros(2), jnp.ones(2)),
    )
    params = jax.jit(noisy.init)(jax.random.key(0), jnp.zeros(5))
    quiet = deterministic(noisy)
    for call in (elbo_terms, partial(log_likelihood, particles=3)):
        one, two = (call(m, params, jax.random.key(1), X) for m in (noisy, quiet))
        jax.tree.map(np.testing.assert_array_equal, one, two)
    loss = elbo(noisy)
    assert (
        mean_loss(loss, params, jax.random.key(1), X)["elbo"]
        < mean_loss(elbo(quiet), params, jax.random.key(1), X)["elbo"]
    )


def test_a_point_posterior_has_no_likelihood_under_a_density():
    """Checked against a silent "log p(x)" whose effective sample size is perfect."""
    prior = Normal(jnp.zeros(2), jnp.ones(2))
    point = autoencoder(heads.Code(2), heads.FixedNormal(5, 1.0), prior)
    params = jax.jit(point.init)(jax.random.key(0), jnp.zeros(5))
    with pytest.raises(TypeError, match="Delta is discrete and Normal is a density"):
        log_likelihood(point, params, jax.random.key(0), X, particles=3)
    without = autoencoder(heads.Code(2), heads.FixedNormal(5, 1.0))
    with pytest.raises(ValueError, match="deterministic autoencoder has no prior"):
        log_likelihood(without, params, jax.random.key(0), X, particles=3)


def test_an_empty_data_set_is_refused():
    for call in (elbo_terms, partial(log_likelihood, particles=3)):
        with pytest.raises(ValueError, match="expected examples >= 1, got 0"):
            call(MODEL, PARAMS, jax.random.key(0), X[:0])


def test_codes_and_squared_errors_are_those_of_the_examples_one_by_one():
    key = jax.random.key(4)
    found = codes(MODEL, PARAMS, key, X, batch_size=10)
    errors = evaluate.squared_error(MODEL, PARAMS, jax.random.clone(key), X, batch_size=10)
    again = evaluate.reconstructions(MODEL, PARAMS, jax.random.clone(key), X, batch_size=10)

    @jax.jit
    def one(x):
        z = MODEL.encode(PARAMS, x).mean
        return z, MODEL.decode(PARAMS, z).mean

    for i, x in enumerate(X):
        z, rebuilt = one(x)
        np.testing.assert_allclose(found[i], z, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again[i], rebuilt, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(errors[i], np.sum((x - np.asarray(rebuilt)) ** 2), rtol=1e-4)
    broken = np.concatenate([X[:36], np.full((1, 5), np.nan, np.float32)])
    for measure in (evaluate.squared_error, evaluate.reconstructions):
        with pytest.raises(ValueError, match=f"{measure.__name__}: .* for example 36"):
            measure(MODEL, PARAMS, jax.random.clone(key), broken, batch_size=10)
    masked = Batch(broken, weight=(np.arange(37) < 36).astype(np.float32))
    for measure, expected in ((codes, found), (evaluate.squared_error, errors)):
        counted = measure(MODEL, PARAMS, jax.random.clone(key), masked, batch_size=10)
        np.testing.assert_allclose(counted[:36], expected[:36], rtol=1e-6)
        with pytest.raises(ValueError, match=f"{measure.__name__}: .* for example 36"):
            whole = masked._replace(weight=np.ones(37))
            measure(MODEL, PARAMS, jax.random.clone(key), whole, batch_size=10)


def test_rows_of_weight_zero_may_hold_anything_under_log_prob():
    class Standard:
        def apply(self, params, rngs=None):
            return Normal(jnp.zeros(2), jnp.ones(2))

    x = np.array([[0.0, 0], [np.nan, 0]], np.float32)
    batch = Batch(x, weight=np.array([1.0, 0]))
    found = log_prob(Standard(), {}, jax.random.key(0), batch)
    np.testing.assert_allclose(found[0], -np.log(2 * np.pi), rtol=1e-6)
    with pytest.raises(ValueError, match="log_prob: .* example 1"):
        log_prob(Standard(), {}, jax.random.key(0), x)


@pytest.mark.parametrize("measure", [elbo_terms, partial(log_likelihood, particles=2)])
def test_rows_of_weight_zero_may_hold_anything_under_the_bounds(measure):
    x = np.where(np.arange(37)[:, None] == 36, np.nan, X).astype(np.float32)
    masked = Batch(x, weight=(np.arange(37) < 36).astype(np.float32))
    found = measure(MODEL, PARAMS, jax.random.key(0), masked)
    whole = measure(MODEL, PARAMS, jax.random.key(0), X)
    one, other = (v["elbo"] if isinstance(v, dict) else v.log_px for v in (found, whole))
    np.testing.assert_allclose(one[:36], other[:36], rtol=1e-5)
    with pytest.raises(ValueError, match="for example 36"):
        measure(MODEL, PARAMS, jax.random.key(0), masked._replace(weight=np.ones(37)))


@pytest.mark.parametrize("measure", [elbo_terms, codes, mean_loss])
def test_levels_without_a_transform_are_a_warning(measure, key):
    """Forgotten here, it would give the numbers of images up to 255."""
    measured = partial(measure, elbo(MODEL) if measure is mean_loss else MODEL, PARAMS, key)
    images = np.arange(30, dtype=np.uint8).reshape(6, 5)
    with pytest.warns(
        UserWarning, match=r"evaluat\S+: x holds uint8 levels 0..255 and there is no"
    ):
        measured(images, batch_size=4)


@pytest.mark.parametrize("measure", [elbo_terms, log_likelihood, mean_loss])
def test_a_key_and_data_that_are_swapped_are_told_apart(measure):
    one = elbo(MODEL) if measure is mean_loss else MODEL
    more = {"particles": 2} if measure is log_likelihood else {}
    images = np.zeros((6, 5), np.float32)
    with pytest.raises(TypeError, match="got a PRNG key.*the key comes before the data"):
        measure(one, PARAMS, images, jax.random.key(0), **more)
    with pytest.raises(TypeError, match=rf"{measure.__name__}: key: got .*expected one PRNG key"):
        measure(one, PARAMS, 0, images, **more)
    older = measure(one, PARAMS, jax.random.PRNGKey(0), images, **more)
    assert np.isfinite(jax.tree.leaves(older)[0]).all()
