"""The ELBO against models whose log p(x) is known; weights, samples, schedules and scale."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from flax import linen as nn

from vaejax import heads, networks, terms
from vaejax.distributions import Normal
from vaejax.evaluate import mean_loss
from vaejax.model import autoencoder, draw
from vaejax.objectives import elbo
from vaejax.train import make_train
from vaejax.types import Batch


def compiled(model, **options):
    return jax.jit(elbo(model, **options))


def draws_of_elbo(model, params, key, x, rate):
    d = draw(model, params, key, x)
    return -terms.distortion(d) - rate(d)


def test_every_draw_equals_log_px_at_the_exact_posterior(x64, key):
    model, params = oracles.linear_gaussian()
    x = np.random.default_rng(1).normal(size=(20, 5))
    bound = jax.vmap(partial(draws_of_elbo, model, params, rate=terms.sampled_rate))
    for draw_key in jax.random.split(key, 3):
        values = bound(jax.random.split(draw_key, 20), x)
        np.testing.assert_allclose(values, oracles.linear_gaussian_log_px(params, x), atol=1e-9)


def test_closed_and_sampled_rate_agree_in_the_mean_and_lie_below_log_px(x64, key):
    model, params = oracles.linear_gaussian()
    model = oracles.poor_posterior(model)
    x = jnp.asarray(np.random.default_rng(1).normal(size=5))
    keys = jax.random.split(key, 20_000)
    closed, sampled = (
        jax.vmap(lambda k, rate=rate: draws_of_elbo(model, params, k, x, rate))(
            jax.random.clone(keys)
        )
        for rate in (terms.rate, terms.sampled_rate)
    )
    error = jnp.std(closed - sampled) / jnp.sqrt(len(keys))
    assert abs(jnp.mean(closed - sampled)) < 5 * error
    assert jnp.mean(closed) < oracles.linear_gaussian_log_px(params, x)


def test_trained_linear_vae_reaches_the_closed_form_of_ppca(x64, key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) * np.linspace(2, 0.2, 8) + 1.0
    encoder, decoder = heads.Normal(3), heads.SharedNormal(8)
    model = autoencoder(encoder, decoder, Normal(jnp.zeros(3), jnp.ones(3)))
    init_key, train_key, test_key = jax.random.split(key, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(init_key, jnp.asarray(x[0])))
    loss = elbo(model, samples=2)
    rate = optax.cosine_decay_schedule(0.05, 15_000)
    train = make_train(loss, optax.adam(rate), steps=15_000, batch_size=300)
    state, _ = jax.jit(train)(train_key, params, x)
    # At the optimum the sampled rate leaves no variance: the estimate is as good as exact.
    bound = elbo(model, samples=500, rate=terms.sampled_rate)
    reached = mean_loss(bound, state.params, test_key, x, batch_size=300)
    exact = oracles.ppca_log_likelihood(x, 3)
    assert abs(reached["elbo"] - exact) < 1e-3
    W = state.params["decoder"]["params"]["loc"]["kernel"]
    gram = np.asarray(W @ W.T)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 0.02 * np.diag(gram).max()


@pytest.fixture(scope="module")
def small():
    model = autoencoder(
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,)), heads.Bernoulli((3, 2))]),
        Normal(jnp.zeros(2), jnp.ones(2)),
    )
    return model, model.init(jax.random.key(1), jnp.zeros((3, 2)))


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, 3, 2)), jnp.float32)


def test_loss_is_distortion_plus_beta_times_rate_and_elbo_ignores_beta(small, key):
    model, params = small
    batch = Batch(images(6))
    value, metrics = compiled(model, beta=4.0)(params, key, batch, 0)
    plain, plain_metrics = compiled(model)(params, jax.random.clone(key), batch, 0)
    np.testing.assert_allclose(value, metrics["distortion"] + 4 * metrics["rate"], rtol=1e-6)
    np.testing.assert_allclose(plain, -plain_metrics["elbo"], rtol=1e-6)
    np.testing.assert_allclose(metrics["elbo"], plain_metrics["elbo"], rtol=1e-6)


def test_beta_may_be_a_schedule_of_the_step(small, key):
    model, params = small
    loss = compiled(model, beta=optax.linear_schedule(0.0, 1.0, 10))
    betas = [loss(params, key, Batch(images(2)), step)[1]["beta"] for step in (0, 5, 20)]
    np.testing.assert_allclose(betas, [0.0, 0.5, 1.0])


def test_several_samples_lower_the_variance_and_keep_the_mean(small, key):
    model, params = small
    batch = Batch(images(1))
    one, many = (
        jax.jit(jax.vmap(lambda k, s=s: elbo(model, samples=s)(params, k, batch, 0)[0]))(keys)
        for s, keys in zip((1, 16), jax.random.split(key, (2, 2000)), strict=True)
    )
    ratio = jnp.var(one) / jnp.var(many)
    assert 12 < ratio < 21  # 16 up to sampling error
    assert abs(jnp.mean(one) - jnp.mean(many)) < 5 * jnp.std(one) / jnp.sqrt(2000.0)


def test_tiling_the_image_doubles_the_distortion(key):
    """Checked against a mean over pixels beside a sum over latents."""

    def of_size(n):
        d = heads.FixedNormal((n,), 1.0)
        model = autoencoder(heads.Normal(2), d, Normal(jnp.zeros(2), jnp.ones(2)))
        params = model.init(jax.random.key(3), jnp.zeros(n))
        zeros = jax.tree.map(jnp.zeros_like, params["decoder"])
        return compiled(model)({**params, "decoder": zeros}, key, Batch(jnp.ones((4, n))), 0)[1]

    np.testing.assert_allclose(of_size(12)["distortion"], 2 * of_size(6)["distortion"], rtol=1e-6)


def test_weights_mask_examples_and_their_order_is_the_only_thing_keys_depend_on(small, key):
    model, params = small
    x = images(5)
    loss = compiled(model)
    three, _ = loss(params, key, Batch(x[:3]), 0)
    spoilt = x.at[3:].set(jnp.nan)
    masked, metrics = loss(params, key, Batch(spoilt, weight=jnp.array([1.0, 1, 1, 0, 0])), 0)
    np.testing.assert_allclose(masked, three, rtol=1e-6)
    assert all(jnp.isfinite(value) for value in metrics.values())


def test_masked_examples_leave_no_trace_in_the_gradient(small, key):
    model, params = small
    x = images(5)
    gradient = jax.jit(jax.grad(elbo(model), has_aux=True))
    three, _ = gradient(params, key, Batch(x[:3]), 0)
    spoilt = x.at[3:].set(jnp.nan)
    weight = jnp.array([1.0, 1, 1, 0, 0])
    masked, _ = gradient(params, jax.random.clone(key), Batch(spoilt, weight=weight), 0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), masked, three)


def test_rows_get_different_noise(small, key):
    """Checked against libraries whose batched samples give every row the same noise."""
    model, params = small
    x = jnp.zeros((4, 3, 2))
    z = jax.vmap(lambda k, one: draw(model, params, k, one).z)(jax.random.split(key, 4), x)
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
