"""The refined posterior and the split gap, against the linear-Gaussian model's closed forms.

At fixed precision matrix P and mean m of the exact posterior, the diagonal Gaussian nearest to it
in KL(q || p) has mean m and variances 1 / P_ii. Tolerances were chosen before the numbers were
seen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vaejax import evaluate, exact, inference
from vaejax.distributions import Bernoulli, Delta, MultivariateNormal, Normal, kl
from vaejax.evaluate._refine import Gaussian, best_gaussian
from vaejax.evaluate.inference import inference_gap, refine
from vaejax.types import Batch

MODEL, PARAMS = oracles.linear_gaussian(d=5, latent=2)
POOR = oracles.poor_posterior(MODEL)
X = np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)
EXACT = oracles.linear_gaussian_log_px(PARAMS, X)
POSTERIOR = jax.vmap(lambda x: MODEL.encode(PARAMS, x))(X)
PRECISION = np.linalg.inv(np.asarray(POSTERIOR.scale_tril @ POSTERIOR.scale_tril.mT))
BEST = Normal(POSTERIOR.loc, jnp.asarray(1 / np.sqrt(np.diagonal(PRECISION, axis1=1, axis2=2))))
APPROXIMATION = np.asarray(jax.vmap(kl)(BEST, POSTERIOR))
POOR_GAP = np.asarray(jax.vmap(lambda x, p: kl(POOR.encode(PARAMS, x), p))(X, POSTERIOR))


@pytest.fixture(scope="module")
def refined():
    return refine(POOR, PARAMS, jax.random.key(0), X, steps=400, learning_rate=0.1)


def check_best(q):
    np.testing.assert_allclose(q.loc, BEST.loc, atol=0.02)
    np.testing.assert_allclose(q.scale, BEST.scale, rtol=0.03)


def test_a_diagonal_posterior_is_refined_to_the_best_one_in_closed_form(refined):
    check_best(refined)
    # Nothing is lost in the bound either: the divergence from the posterior is the smallest.
    found = np.asarray(jax.vmap(kl)(refined, POSTERIOR))
    assert np.all(found > APPROXIMATION - 1e-5)
    np.testing.assert_allclose(found, APPROXIMATION, atol=2e-3)


def test_matching_the_marginals_is_not_the_best_diagonal_posterior(refined):
    """Checked against variances of the exact posterior's marginals: too wide, a lower bound."""
    covariance = np.asarray(POSTERIOR.scale_tril @ POSTERIOR.scale_tril.mT)
    marginals = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    with pytest.raises(AssertionError):
        check_best(Normal(POSTERIOR.loc, jnp.asarray(marginals)))


def test_a_full_covariance_is_refined_to_the_exact_posterior():
    def encode(params, x, c=(), *, key=None):
        q = POOR.encode(params, x)
        return MultivariateNormal(q.loc, -jnp.diag(q.scale))  # any sign is a valid factor

    full = POOR._replace(encode=encode)
    q = refine(full, PARAMS, jax.random.key(0), X, steps=400, samples=50, learning_rate=0.1)
    np.testing.assert_allclose(jax.vmap(kl)(q, POSTERIOR), 0, atol=2e-3)


@pytest.mark.statistics
def test_the_gap_and_its_parts_equal_their_closed_forms():
    gap = inference_gap(
        POOR, PARAMS, jax.random.key(2), X, particles=500, steps=400, samples=400, learning_rate=0.1
    )
    np.testing.assert_allclose(gap.log_px, EXACT, atol=0.2)
    assert abs(np.mean(gap.log_px - EXACT)) < 0.03 and np.all(gap.ess > 50)
    # One ELBO draw varies by about sqrt(2 gap) and less than 3 nats here: 400 draws, 23 examples.
    assert gap.approximation.value == pytest.approx(APPROXIMATION.mean(), abs=0.1)
    assert gap.amortisation.value == pytest.approx((POOR_GAP - APPROXIMATION).mean(), abs=0.15)
    parts = gap.elbo + gap.amortisation.value + gap.approximation.value
    assert np.mean(parts) == pytest.approx(np.mean(gap.log_px), abs=1e-4)
    differences = gap.elbo_refined - gap.elbo
    error = differences.std(ddof=1) / np.sqrt(len(X))
    assert gap.amortisation.error == pytest.approx(error, rel=1e-5)
    assert np.all(differences > 0)


def test_a_known_log_px_takes_the_place_of_the_estimate():
    options = {"steps": 5, "samples": 5, "particles": 1}
    gap = inference_gap(POOR, PARAMS, jax.random.key(2), X, log_px=EXACT, **options)
    np.testing.assert_array_equal(gap.log_px, EXACT)
    assert np.isnan(gap.ess).all()
    assert np.isnan(inference._mean(gap.elbo[:1]).error)  # one example has no spread
    for log_px, transform in [(EXACT[:3], None), (EXACT, lambda key, x: x)]:
        with pytest.raises(ValueError, match=r"inference_gap: log_px.*expected \[23\]"):
            inference_gap(
                POOR, PARAMS, jax.random.key(2), X, log_px=log_px, transform=transform, **options
            )


def coins(scale):
    """A posterior that is not Gaussian: coins of logits W z, and an encoder that never looks."""
    W = np.random.default_rng(7).normal(size=(9, 2)) * scale

    def encode(params, x, c=(), *, key=None):
        return Normal(params["loc"], params["scale"])

    return POOR._replace(
        encode=encode, decode=lambda params, z, c=(), *, key=None: Bernoulli(params["W"] @ z)
    ), {"W": jnp.asarray(W), "loc": jnp.full(2, 5.0), "scale": jnp.full(2, 30.0)}


COINS, COIN_PARAMS = coins(2.0)
SIDES = np.random.default_rng(8).integers(0, 2, (6, 9)).astype(np.float32)


def test_an_example_depends_on_the_key_and_its_index_alone():
    key = jax.random.key(4)
    whole = refine(COINS, COIN_PARAMS, key, SIDES)
    chunks = refine(COINS, COIN_PARAMS, jax.random.clone(key), SIDES, batch_size=4)
    np.testing.assert_allclose(whole.loc, chunks.loc, rtol=1e-3, atol=1e-3)
    copies = np.stack([SIDES[0]] * 6)
    twice = refine(COINS, COIN_PARAMS, jax.random.clone(key), copies)
    assert np.all(np.asarray(twice.scale[0] != twice.scale[1]))


def test_where_the_posterior_is_not_gaussian_the_gap_has_its_sign_and_size():
    """Checked against a grid; the encoder is five deviations off and thirty times too wide."""
    truth = exact.quadrature(COINS, COIN_PARAMS, jax.random.key(0), SIDES, spacing=0.05).log_px
    gap = inference_gap(COINS, COIN_PARAMS, jax.random.key(9), SIDES, particles=1000)
    assert gap.converged and np.all(gap.left < 0.05)
    np.testing.assert_allclose(gap.log_px, truth, atol=0.1)
    noise = 3 * np.sqrt(2 / 1000)  # of a bound by 1000 draws, whose terms vary by about 1 here
    assert np.all(truth - gap.elbo_refined > -noise)
    assert 0 < np.mean(truth - gap.elbo_refined) < 0.5
    assert np.all(gap.elbo_refined > gap.elbo)


def far_off(d, latent, scale):
    """A linear Gaussian model whose encoder's q is moved and stretched by its parameters."""
    model, params = oracles.linear_gaussian(d=d, latent=latent, scale=scale)
    P = np.asarray(params["W"].T @ params["W"], float) / scale**2 + np.eye(latent)

    def encode(params, x, c=(), *, key=None):
        widths = params["widths"]
        return Normal(model.encode(params, x).loc + params["off"] * widths, params["by"] * widths)

    params = params | {"widths": jnp.asarray(1 / np.sqrt(np.diag(P)), jnp.float32)}
    exact_gap = 0.5 * (np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1])
    return model._replace(encode=encode), params, exact_gap


@pytest.mark.parametrize(
    ("d", "latent", "scale", "n"),
    [(40, 3, 0.004, 12), pytest.param(26, 16, 0.3, 40, marks=pytest.mark.statistics)],
)
def test_the_refinement_converges_from_encoders_that_are_far_off(d, latent, scale, n):
    """Posteriors of deviation 6e-4, and of 16 correlated dimensions; checked to 0.05 nats."""
    model, params, exact_gap = far_off(d, latent, scale)
    rng = np.random.default_rng(11)
    z = rng.normal(size=(n, latent))
    x = z @ np.asarray(params["W"]).T + np.asarray(params["mu"]) + scale * rng.normal(size=(n, d))
    x = x.astype(np.float32)
    truth = oracles.linear_gaussian_log_px(params, x, scale=scale)
    for off, by in ((10.0, 100.0), (-10.0, 0.01)):
        there = params | {"off": jnp.asarray(off), "by": jnp.asarray(by)}
        gap = inference_gap(model, there, jax.random.key(12), x, particles=500)
        assert gap.converged and np.all(gap.left < 1e-3)
        assert gap.approximation.value == pytest.approx(exact_gap, abs=0.05)
        np.testing.assert_allclose(gap.log_px, truth, atol=0.3)


def test_what_has_not_converged_is_no_number():
    """One step is too few where the posterior is not Gaussian, and two particles always are."""
    options, few = {"samples": 1000, "particles": 1000}, {"learning_rate": 0.01, "steps": 1}
    gap = inference_gap(COINS, COIN_PARAMS, jax.random.key(13), SIDES, **few, **options)
    assert not gap.converged and gap.left.mean() > 0.05
    for part in (gap.approximation, gap.amortisation):
        assert str(part) == "not converged" and np.isnan(part.value)
    assert "not converged" in str(gap) and "steps of the refinement would gain" in str(gap)
    assert repr(gap).startswith("InferenceGap(log_px=f32[6], ")
    with pytest.warns(UserWarning, match="refine: not converged: further steps .* of 6"):
        refine(COINS, COIN_PARAMS, jax.random.key(13), SIDES, **few)
    words = inference._uncertain(np.array([1.5, 3.0]), 200)
    assert len(words) == 1 and "has an ESS of 2.2 of 200 in the median, 1.5 at least" in words[0]
    assert inference._uncertain(np.array([100.0, 80.0]), 200) == ()
    assert inference._uncertain(np.full(2, np.nan), 200) == ()


def test_conditions_and_transforms_reach_the_model():
    """x = stored + c: the refined q of shifted data equals that of the data themselves."""

    def shift(key, x):
        return x + 1.0

    moved = oracles.shifted_by_condition(POOR)._replace(prior=lambda params, c: MODEL.prior(params))
    batch = Batch(X - 1.0 + 2.0, c=np.full((len(X), 5), 2.0, np.float32))
    key = jax.random.key(5)
    plain = refine(POOR, PARAMS, key, X, steps=3)
    found = refine(moved, PARAMS, jax.random.clone(key), batch, transform=shift, steps=3)
    np.testing.assert_allclose(found.loc, plain.loc, atol=1e-4)
    options = {"transform": shift, "particles": 10, "samples": 2, "steps": 3}
    gap = inference_gap(moved, PARAMS, jax.random.key(6), batch, **options)
    assert np.isfinite(gap.log_px).all()


def test_the_bounds_are_those_of_evaluate():
    """At no refinement (a step of size 0) both bounds are that of the encoder."""
    gap = inference_gap(
        POOR, PARAMS, jax.random.key(3), X, particles=10, steps=5, samples=5, learning_rate=0.0
    )
    np.testing.assert_allclose(gap.elbo, gap.elbo_refined, rtol=1e-4, atol=1e-4)
    key = jax.random.split(jax.random.key(3), 4)[2]
    expected = evaluate.elbo_terms(POOR, PARAMS, key, X, samples=5, batch_size=100)["elbo"]
    np.testing.assert_allclose(gap.elbo, expected, rtol=1e-5)


def test_what_cannot_be_refined_is_refused():
    point = MODEL._replace(encode=lambda params, x, c=(), *, key=None: Delta(jnp.zeros(2)))
    with pytest.raises(TypeError, match="refine: encode: got Delta, expected a Normal or a Multi"):
        refine(point, PARAMS, jax.random.key(0), X)
    for name in ("steps", "samples", "batch_size"):
        with pytest.raises(ValueError, match=f"refine: expected {name} >= 1, got 0"):
            refine(POOR, PARAMS, jax.random.key(0), X, **{name: 0})
    with pytest.raises(ValueError, match="particles >= 1, got 0"):
        inference_gap(POOR, PARAMS, jax.random.key(0), X, particles=0)
    with pytest.raises(ValueError, match=r"refine: q\* is nan for example 3"):
        broken = np.where(np.arange(23)[:, None] == 3, np.nan, X)
        refine(POOR, PARAMS, jax.random.key(0), broken, steps=3)


@pytest.mark.parametrize("wide", ["nothing", "the energy", "the prior", "the start"])
def test_a_search_keeps_to_one_type_where_doubles_are_on(wide, x64):
    """Traced alone: a loop refuses what changes its type."""
    of = {
        part: jnp.float64 if part == wide else jnp.float32 for part in ("the energy", "the prior")
    }
    start = jnp.ones(2, jnp.float64 if wide == "the start" else jnp.float32)
    found = jax.eval_shape(
        lambda: best_gaussian(
            lambda z: jnp.sum(z**2).astype(of["the energy"]),
            Gaussian(start, start),
            lambda key: jax.random.normal(key, (2,), of["the prior"]),
            jax.random.key(0),
            pairs=2,
            steps=2,
            rate=1.0,
        )
    )
    expected = jnp.float32 if wide == "nothing" else jnp.float64
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(expected)}
