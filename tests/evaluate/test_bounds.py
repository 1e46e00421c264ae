"""The ladder of importance-weighted bounds, and the interval around log p(x), by exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from tests import oracles
from vaejax import data, evaluate, heads
from vaejax.distributions import Bernoulli, Normal
from vaejax.evaluate.bounds import Interval, Ladder, ladder, sandwich
from vaejax.model import autoencoder

MODEL, PARAMS = oracles.linear_gaussian(d=5, latent=2)
POOR = oracles.poor_posterior(MODEL)
X = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
EXACT = oracles.linear_gaussian_log_px(PARAMS, X)
KS = (1, 5, 50, 500)


def rungs_over_keys(repeats):
    keys = jax.random.split(jax.random.key(0), repeats)
    return [ladder(POOR, PARAMS, key, X, particles=KS) for key in keys]


@pytest.fixture(scope="module")
def rungs():
    return rungs_over_keys(30)


@pytest.mark.statistics
def test_elbo_below_iwae_below_log_px_rising_in_k(rungs):
    """ELBO <= IWAE_K <= log p for K in 1, 5, 50, 500: in every image by construction, in the mean
    against the closed form."""
    for one in rungs:
        assert np.all(np.diff(one.log_px, axis=0) > -1e-5)
    values = np.array([one.log_px.mean(axis=1) for one in rungs])
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert np.all(mean < EXACT.mean() + 3 * error)
    assert np.all(np.diff(mean) > 3 * np.hypot(error[1:], error[:-1]))
    assert mean[0] < EXACT.mean() - 0.5 and abs(mean[-1] - EXACT.mean()) < 0.05
    elbo = evaluate.elbo_terms(POOR, PARAMS, jax.random.key(9), X, samples=2000)["elbo"]
    assert abs(mean[0] - elbo.mean()) < 0.05


@pytest.mark.statistics
def test_standard_errors_are_those_seen_over_keys(rungs):
    spread = np.std([one.log_px for one in rungs], axis=0, ddof=1)
    claimed = np.sqrt(np.mean([one.error**2 for one in rungs], axis=0))
    ratio = np.sqrt((claimed**2).mean(axis=1) / (spread**2).mean(axis=1))
    np.testing.assert_allclose(ratio, 1, atol=0.25)


def test_rungs_are_means_over_disjoint_groups_of_one_set_of_draws():
    """The same draws, one by one in double precision; 12 draws make 2 groups of 5 and leave 2.

    Checked against sum(w~ log w), better than the bound by up to log K.
    """
    key, particles = jax.random.key(3), (1, 5, 12)
    result = ladder(POOR, PARAMS, key, X[:3], particles=particles, chunk=5)
    weights = oracles.log_weights(POOR, PARAMS, jax.random.clone(key), X[:3], 12)
    for i, log_w in enumerate(weights):
        groups = [log_w[:, None], log_w[:10].reshape(2, 5), log_w[None]]
        values = [logsumexp(g, axis=1) - np.log(g.shape[1]) for g in groups]
        w = [np.exp(g - g.max(axis=1, keepdims=True)) for g in groups]
        ess = [(v.sum(axis=1) ** 2 / (v**2).sum(axis=1)).mean() for v in w]
        np.testing.assert_allclose(result.log_px[:, i], [v.mean() for v in values], rtol=1e-5)
        np.testing.assert_allclose(result.ess[:, i], ess, rtol=1e-4)
        errors = [v.std(ddof=1) / np.sqrt(len(v)) for v in values[:2]]
        errors.append(np.sqrt(1 / ess[-1] - 1 / 12))
        np.testing.assert_allclose(result.error[:, i], errors, rtol=1e-3)


def test_the_last_rung_is_the_likelihood_that_evaluate_gives():
    """Counts of draws: all K of them, whatever the chunks; the same image from the same key."""
    prior = Normal(jnp.zeros(2), jnp.ones(2))
    model = autoencoder(heads.Normal(2), heads.Bernoulli((3, 2)), prior)
    grey = np.full((7, 3, 2), 128, np.uint8)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((3, 2)))
    settings = {"transform": data.binarize, "batch_size": 3, "chunk": 4}
    key = jax.random.key(4)
    whole = evaluate.log_likelihood(model, params, key, grey, particles=13, **settings)
    rungs = ladder(model, params, jax.random.clone(key), grey, particles=(2, 13), **settings)
    np.testing.assert_allclose(rungs.log_px[-1], whole.log_px, rtol=1e-5)
    np.testing.assert_allclose(rungs.ess[-1], whole.ess, rtol=1e-4)


def test_the_worst_images_are_named():
    """One image far from what the posterior expects has the lowest ESS and stands in the table."""
    far = MODEL._replace(
        encode=lambda params, x, c=(), *, key=None: Normal(
            MODEL.encode(params, x).loc + 1.5 * (x[0] > 5), jnp.full(2, 0.2)
        )
    )
    x = X.copy()
    x[13, 0] = 6.0
    rungs = ladder(far, PARAMS, jax.random.key(0), x, particles=(10, 200))
    assert rungs.worst(3)[0] == 13 and rungs.worst(3).shape == (3,)
    lines = str(rungs).splitlines()
    assert lines[0].endswith("20 images, nats per image") and lines[2].split()[0] == "10"
    assert lines[5].startswith(f"  image 13: ESS {rungs.ess[-1, 13]:.1f}, log p(x) >= ")


SETTINGS = {"temperatures": 60, "particles": (1, 50), "chains": 16}


@jax.jit
def posterior_draws(key, x=X):
    keys = jax.random.split(key, (len(x), 16))
    return jax.vmap(lambda x, keys: jax.vmap(MODEL.encode(PARAMS, x).sample)(keys))(x, keys)


@pytest.mark.statistics
def test_interval_with_posterior_draws_holds_the_exact_value():
    """X is atypical of the model, so the tolerance is wide for these few temperatures."""
    draws = posterior_draws(jax.random.key(1))
    found = sandwich(POOR, PARAMS, jax.random.key(2), X, posterior=draws, tolerance=0.3, **SETTINGS)
    assert isinstance(found, Interval) and found.converged and found.problems == ()
    assert found.simulated is None and found.temperatures == 60
    assert abs(found.lower.log_px.mean() - EXACT.mean()) < 0.2
    assert abs(found.upper.log_px.mean() - EXACT.mean()) < 0.2
    text = str(found)
    for part in (
        f"lower bound, AIS: {found.lower.log_px.mean():.3f} (",
        f"reverse AIS from the given posterior draws: {found.upper.log_px.mean():.3f} (",
        "16 chains, 60 temperatures, acceptance 0.6",
        "interval of the means: ",
        f"importance weighting with K = 50: {found.ladder.log_px[-1].mean():.3f} (",
        "furthest below AIS",
    ):
        assert part in text


@pytest.mark.statistics
def test_draws_that_are_not_of_the_posterior_are_found_out():
    draws = np.zeros((20, 16, 2), np.float32) + 3.0
    found = sandwich(POOR, PARAMS, jax.random.key(2), X, posterior=draws, **SETTINGS)
    assert not found.converged and "draws given are not of the posterior" in found.problems[0]


@pytest.mark.statistics
def test_without_draws_the_upper_bound_is_on_simulated_data_and_said_to_be():
    found = sandwich(POOR, PARAMS, jax.random.key(2), X, tolerance=0.3, **SETTINGS)
    assert found.upper is None and found.simulated.gap.shape == (20,)
    assert found.converged and -0.1 < found.simulated.gap.mean() < 0.3
    text = str(found)
    assert "BDMC gap on 20 examples simulated from the model (not a bound for the images): " in text
    assert "upper bound" not in text


@pytest.mark.statistics
def test_what_has_not_converged_says_so_instead_of_printing_a_number():
    """As many temperatures, nearly all at the end: the chains have no time to follow."""
    betas = np.concatenate([[0.0], np.linspace(0.9, 1.0, 59)])
    found = sandwich(POOR, PARAMS, jax.random.key(2), X, **(SETTINGS | {"temperatures": betas}))
    assert not found.converged
    text, reasons = str(found), "; ".join(found.problems)
    assert f"lower bound, AIS: not converged: {reasons}" in text
    assert f"{found.lower.log_px.mean():.3f}" not in text
    for reason in (
        "on simulated data the upper bound is ",
        "AIS has an ESS of ",
        "importance weighting is ",
    ):
        assert reason in reasons
    assert f"K = 50: {found.ladder.log_px[-1].mean():.3f} (" in text  # a bound all the same


def test_wrong_settings_are_refused():
    key = jax.random.key(0)
    for particles in ((0, 5), (), (5, 5), (10, 5)):
        with pytest.raises(ValueError, match="ladder: particles: .* K >= 1 or several, rising"):
            ladder(MODEL, PARAMS, key, X, particles=particles)
    for particles in ("5", 2.5, ["1", "10"], None):
        with pytest.raises(TypeError, match="ladder: particles: got .*, expected whole numbers"):
            ladder(MODEL, PARAMS, key, X, particles=particles)
    with pytest.raises(ValueError, match="ladder: expected chunk >= 1, got 0"):
        ladder(MODEL, PARAMS, key, X, chunk=0)
    with pytest.raises(ValueError, match="sandwich: tolerance: got 0"):
        sandwich(MODEL, PARAMS, key, X, tolerance=0.0)
    with pytest.raises(ValueError, match="sandwich: expected simulations >= 0, got -1"):
        sandwich(MODEL, PARAMS, key, X, simulations=-1)
    with pytest.raises(ValueError, match="ais: expected chains >= 1, got 0"):
        sandwich(MODEL, PARAMS, key, X, chains=0)
    x = X.copy()
    x[4, 0] = np.nan
    with pytest.raises(ValueError, match="ladder: log p.x. with K = 1 is nan for example 4"):
        ladder(MODEL, PARAMS, key, x, particles=(1, 5))


def test_discrete_latents_have_a_ladder_but_no_sandwich():
    """One fair coin z, x|z ~ N(z, 1): the ladder from its own prior reaches log p(x)."""
    coin = Bernoulli(jnp.zeros(1))
    model = MODEL._replace(
        prior=lambda params, c=(): coin,
        encode=lambda params, x, c=(), *, key=None: coin,
        decode=lambda params, z, c=(), *, key=None: Normal(z, jnp.ones(1)),
    )
    x = np.array([[0.5], [2.0]], np.float32)
    rungs = ladder(model, {}, jax.random.key(0), x, particles=(1, 2000))
    densities = np.exp(-0.5 * (x - np.array([[0.0, 1.0]])) ** 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(rungs.log_px[-1], np.log(densities.mean(axis=1)), atol=0.08)
    with pytest.raises(TypeError, match="ais: the prior Bernoulli is discrete"):
        sandwich(model, {}, jax.random.key(0), x)


def test_a_ladder_is_plain_arrays_also_of_a_single_image():
    one = Ladder((1,), np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)))
    assert "image 0: ESS 1.0" in str(one)
