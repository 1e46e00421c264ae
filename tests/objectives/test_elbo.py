"""The ELBO against models whose log p(x) is known; samples, schedules, scale, weights, noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import oracles
from tests.conftest import optimised
from vaejax import heads, terms
from vaejax.distributions import Normal
from vaejax.evaluate import mean_loss
from vaejax.model import autoencoder, draw
from vaejax.objectives import elbo
from vaejax.train import make_train
from vaejax.types import Batch


def draws_of_elbo(model, params, key, x, rate):
    d = draw(model, params, key, x)
    return -terms.distortion(d) - rate(d)


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, 3, 2)), jnp.float32)


def test_every_draw_equals_log_px_at_the_exact_posterior(x64, key):
    model, params = oracles.linear_gaussian()
    x = np.random.default_rng(1).normal(size=(20, 5))
    bound = jax.jit(jax.vmap(partial(draws_of_elbo, model, params, rate=terms.sampled_rate)))
    for draw_key in jax.random.split(key, 3):
        values = bound(jax.random.split(draw_key, 20), x)
        np.testing.assert_allclose(values, oracles.linear_gaussian_log_px(params, x), atol=1e-9)


def test_closed_and_sampled_rate_agree_in_the_mean_and_lie_below_log_px(x64, key):
    model, params = oracles.linear_gaussian()
    model = oracles.poor_posterior(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=5))

    @jax.jit
    @jax.vmap
    def both(key):
        d = draw(model, params, key, x)
        return jnp.stack([-terms.distortion(d) - rate(d) for rate in RATES])

    closed, sampled = np.asarray(both(jax.random.split(key, 20_000))).T
    error = np.std(closed - sampled) / np.sqrt(20_000)
    assert abs(np.mean(closed - sampled)) < 5 * error
    assert np.mean(closed) < oracles.linear_gaussian_log_px(params, x)


RATES = (terms.rate, terms.sampled_rate)


@pytest.mark.statistics
def test_a_trained_linear_vae_reaches_the_closed_form_of_ppca(x64, key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) * np.linspace(2, 0.2, 8) + 1.0
    encoder, decoder = heads.Normal(3), heads.SharedNormal(8)
    model = autoencoder(encoder, decoder, Normal(jnp.zeros(3), jnp.ones(3)))
    init_key, train_key, test_key = jax.random.split(key, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(init_key, jnp.asarray(x[0])))
    loss = elbo(model, samples=2)
    rate = optax.cosine_decay_schedule(0.05, 15_000)
    train = make_train(loss, optax.adam(rate), steps=15_000, batch_size=300)
    state, _ = optimised(train, train_key, params, jnp.asarray(x))
    # At the optimum the sampled rate leaves no variance: the estimate is as good as exact.
    bound = elbo(model, samples=500, rate=terms.sampled_rate)
    reached = mean_loss(bound, state.params, test_key, x, batch_size=300)
    exact = oracles.ppca_log_likelihood(x, 3)
    assert abs(reached["elbo"] - exact) < 1e-3
    W = state.params["decoder"]["params"]["loc"]["kernel"]
    gram = np.asarray(W @ W.T)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 0.02 * np.diag(gram).max()


def test_the_loss_is_distortion_plus_a_scheduled_beta_times_rate_and_elbo_ignores_beta(small, key):
    model, params = small
    loss = jax.jit(elbo(model, beta=optax.linear_schedule(0.0, 4.0, 10)))
    found = []
    for step, beta in ((0, 0.0), (5, 2.0), (20, 4.0)):
        value, metrics = loss(params, jax.random.clone(key), Batch(images(5)), step)
        np.testing.assert_allclose(metrics["beta"], beta)
        weighed = metrics["distortion"] + beta * metrics["rate"]
        np.testing.assert_allclose(value, weighed, rtol=1e-6)
        found.append(metrics["elbo"])
    np.testing.assert_allclose(found, -(metrics["distortion"] + metrics["rate"]), rtol=1e-6)
    # A number is the same as a schedule that has reached it.
    value, metrics = jax.jit(elbo(model, beta=4.0))(
        params, jax.random.clone(key), Batch(images(5)), 0
    )
    weighed = metrics["distortion"] + 4 * metrics["rate"]
    np.testing.assert_allclose([value, metrics["elbo"]], [weighed, found[0]], rtol=1e-6)
    # Without a beta it counts 1.
    plain, metrics = jax.jit(elbo(model))(params, jax.random.clone(key), Batch(images(5)), 0)
    np.testing.assert_allclose([plain, -metrics["elbo"]], -found[0], rtol=1e-6)


def test_several_samples_lower_the_variance_and_keep_the_mean(small, key):
    model, params = small
    batch = Batch(images(1))

    @jax.jit
    @jax.vmap
    def values(keys):
        return [
            elbo(model, samples=s)(params, k, batch, 0)[0]
            for s, k in zip((1, 16), keys, strict=True)
        ]

    one, many = map(np.asarray, values(jax.random.split(key, (2000, 2))))
    ratio = np.var(one) / np.var(many)
    assert 12 < ratio < 21  # 16 up to sampling error
    assert abs(np.mean(one) - np.mean(many)) < 5 * np.std(one) / np.sqrt(2000.0)


def test_tiling_the_image_doubles_the_distortion(key):
    """Checked against a mean over pixels beside a sum over latents."""

    def of_size(n):
        d = heads.FixedNormal((n,), 1.0)
        model = autoencoder(heads.Normal(2), d, Normal(jnp.zeros(2), jnp.ones(2)))
        params = jax.eval_shape(model.init, jax.random.key(3), jnp.zeros(n))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
        batch = Batch(jnp.ones((4, n)))
        return jax.jit(elbo(model))(zeros, jax.random.clone(key), batch, 0)[1]

    np.testing.assert_allclose(of_size(12)["distortion"], 2 * of_size(6)["distortion"], rtol=1e-6)


def test_masked_examples_leave_no_trace_and_keys_depend_on_an_example_s_place_alone(small, key):
    model, params = small
    x = images(5)
    gradient = jax.jit(jax.value_and_grad(elbo(model), has_aux=True))
    (three, _), plain = gradient(params, key, Batch(x[:3]), 0)
    spoilt = Batch(x.at[3:].set(jnp.nan), weight=jnp.array([1.0, 1, 1, 0, 0]))
    (masked, metrics), found = gradient(params, jax.random.clone(key), spoilt, 0)
    np.testing.assert_allclose(masked, three, rtol=1e-6)
    assert all(np.isfinite(value) for value in metrics.values())
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, plain)


def test_masked_conditions_leave_no_trace(key):
    """A NaN in the condition of a masked example is as harmless as one in its x."""
    model = autoencoder(
        heads.Normal(2), heads.FixedNormal(3, 1.0), Normal(jnp.zeros(2), jnp.ones(2))
    )
    of_c = model._replace(
        encode=lambda params, x, c=(), *, key=None: model.encode(params, x),
        decode=lambda params, z, c=(), *, key=None: Normal(model.decode(params, z).loc + c, 1.0),
    )
    params = model.init(jax.random.key(1), jnp.zeros(3))
    c = jnp.array([[0.0] * 3, [jnp.nan] * 3])
    batch = Batch(jnp.ones((2, 3)), c, weight=jnp.array([1.0, 0.0]))
    assert jnp.isfinite(jax.jit(elbo(of_c))(params, key, batch, 0)[0])


def test_rows_get_different_noise(small, key):
    """Checked against libraries whose batched samples give every row the same noise."""
    model, params = small
    rows = jax.jit(jax.vmap(lambda k, one: draw(model, params, k, one).z))
    z = rows(jax.random.split(key, 4), jnp.zeros((4, 3, 2)))
    assert len(np.unique(np.asarray(z)[:, 0])) == 4


def test_bad_numbers_of_samples_are_refused(small):
    with pytest.raises(ValueError, match="elbo: expected samples >= 1, got 0"):
        elbo(small[0], samples=0)


def test_a_deterministic_autoencoder_has_no_rate(key):
    model = autoencoder(heads.Code(2), heads.FixedNormal(3, 1.0))
    init_key, draw_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros(3))
    with pytest.raises(ValueError, match="deterministic autoencoder has no prior"):
        terms.rate(draw(model, params, draw_key, jnp.zeros(3)))
