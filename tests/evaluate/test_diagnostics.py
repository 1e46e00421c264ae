"""Active units, verdicts and calibration against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import oracles
from tests.known_codes import LOC, NORMAL, SCALE, STANDARD, TABLE, places, table
from tests.tempered import SIGMA, TEMPERED, W, tempered_data, tempered_params, tempered_point
from vaejax import diagnostics, flows
from vaejax.distributions import Bernoulli, Delta, Laplace, Mixture, Normal
from vaejax.evaluate.diagnostics import active_units, calibration, decompose
from vaejax.model import Model
from vaejax.types import Batch


def test_rate_per_dimension_is_the_closed_form_and_sums_to_the_rate(key):
    each = 0.5 * (LOC**2 + SCALE**2 - 1 - 2 * np.log(SCALE)).mean(axis=0)
    found = diagnostics.rate_per_dimension(
        NORMAL, TABLE, jax.random.key(0), places(13), batch_size=5
    )
    np.testing.assert_allclose(found, each, rtol=1e-5)
    assert decompose(NORMAL, TABLE, key, places(13)).rate.value == pytest.approx(each.sum())


def test_active_units_are_the_variances_of_the_means():
    units = active_units(NORMAL, TABLE, jax.random.key(0), places(13), threshold=1.0, batch_size=4)
    np.testing.assert_allclose(units.variance, LOC.var(axis=0), rtol=1e-5)
    assert units.active == np.sum(LOC.var(axis=0) > 1.0)
    point = table(Delta, STANDARD, TABLE[:1])
    np.testing.assert_allclose(
        active_units(point, TABLE[:1], jax.random.key(0), places(13)).variance,
        LOC.var(axis=0),
        rtol=1e-5,
    )


def test_examples_are_transformed_alike_in_every_pass(key):
    stored = (np.arange(13)[:, None] * 10).astype(np.uint8)

    def transform(key, x):
        return x / 10.0

    plain, through = (
        decompose(NORMAL, TABLE, jax.random.clone(key), x, transform=t)
        for x, t in [(places(13), None), (stored, transform)]
    )
    np.testing.assert_allclose(through.information, plain.information, rtol=1e-4)
    np.testing.assert_allclose(through.distortion, plain.distortion, rtol=1e-4)
    units = active_units(NORMAL, TABLE, jax.random.clone(key), stored, transform=transform)
    np.testing.assert_allclose(units.variance, LOC.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_implied_beta_is_the_beta_for_which_the_posterior_is_optimal(beta, key):
    found = diagnostics.implied_beta(
        TEMPERED, tempered_params(beta), key, tempered_data(2000), samples=8
    )
    assert found.error < 0.04 * beta and abs(found.value - beta) < 4 * found.error


def test_implied_beta_of_a_full_covariance(key):
    model, params = oracles.linear_gaussian(d=5, latent=2)
    x = np.random.default_rng(0).multivariate_normal(
        params["mu"], params["W"] @ params["W"].T + 0.25 * np.eye(5), 2000
    )
    found = diagnostics.implied_beta(model, params, key, x.astype(np.float32))
    assert found.error < 0.04 and abs(found.value - 1) < 4 * found.error


def test_the_rate_distortion_curve_is_exact_and_has_slope_minus_beta(key):
    x, betas = tempered_data(500), (0.5, 0.98, 1.02, 5.0)
    population = [tempered_params(beta) for beta in betas]
    curve = diagnostics.rate_distortion(TEMPERED, population, key, x, samples=200)
    exact = np.array([tempered_point(beta, x) for beta in betas])
    np.testing.assert_allclose(curve.rate, exact[:, 1], rtol=1e-4)
    assert np.all(abs(curve.distortion - exact[:, 0]) < 0.03)  # 100,000 draws of sd < 2
    # The same draws for all, so that the difference of near points is known better than each.
    slope = np.diff(curve.distortion)[1] / np.diff(curve.rate)[1]
    assert slope == pytest.approx(-1.0, abs=0.05)
    assert np.all(curve.distortion_error > 0) and curve.rate_error.shape == (4,)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0])
def test_calibration_of_data_from_the_model_is_exact_and_halved_scales_show(ratio, key):
    """With z from the exact posterior (x - loc)/scale is normal with variance 1/ratio^2."""
    params = tempered_params(1.0, ratio=ratio)
    found = calibration(TEMPERED, params, key, tempered_data(3000, seed=1))
    bound = stats.norm.ppf((1 + found.levels) / 2)
    truth = 2 * stats.norm.cdf(ratio * bound) - 1
    assert np.all(abs(found.coverage - truth) < 4 * found.error)
    assert found.error.max() < 0.01
    assert abs(found.mean_square.value - ratio**-2) < 4 * found.mean_square.error
    if ratio != 1:
        assert abs(found.coverage[8] - 0.9) > 10 * found.error[8]
    assert "90.0% interval holds" in str(found)


REPORTED = {"particles": 50, "examples": 300, "draws": 200}


@pytest.mark.parametrize(
    ("verdicts", "beta", "shift", "size", "used"),
    [
        (("healthy",), 1.0, 0.0, 4.0, 2),
        (("over-regularised",), 6.0, 0.0, 4.0, 2),
        (("under-regularised",), 0.2, 0.0, 4.0, 2),
        (("encoder lags",), 1.0, 1.0, 4.0, 3),
        (("collapsed",), 1.0, 0.0, 0.01, 0),
        (("collapsed", "encoder lags"), 1e6, 0.0, 4.0, 0),  # though the decoder listens
    ],
)
def test_the_report_names_what_is_wrong(verdicts, beta, shift, size, used, key):
    """The third column of W is zero: a unit that is off does not count against the model."""
    x, train = tempered_data(1000, size=size), tempered_data(300, seed=1, size=size)
    params = tempered_params(beta, shift, size=size)
    report = diagnostics.inference_report(TEMPERED, params, key, x, train=train, **REPORTED)
    assert report.verdicts == verdicts and report.used == used
    assert report.units.active == (0 if "collapsed" in verdicts else 2)
    text = str(report)
    assert text.startswith(" and ".join(verdicts)) and "nan" not in text
    for name in ("collapsed", "encoder lags", "over-regularised", "under-regularised"):
        assert f"{name}: {'yes' if name in verdicts else 'no'};" in text
    assert f"the rate is {report.decomposition.rate.value:.3f} nats" in text
    if verdicts == ("healthy",):
        for gap in (report.gap, report.train_gap):
            assert abs(gap.value) < 4 * gap.error + 1e-3


@pytest.mark.statistics
@pytest.mark.parametrize("family", ["prior", "posterior"])
def test_the_report_takes_distributions_of_other_families(family, key):
    """The same prior as a mixture, or the same posterior behind a flow that moves nothing."""
    x, params = tempered_data(300), tempered_params(1.0)
    if family == "prior":
        twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), TEMPERED.prior(params))
        model = TEMPERED._replace(prior=lambda params, c=(): Mixture(jnp.zeros(2), twice))
    else:

        def encode(params, x, c=(), *, key=None):
            return flows.Transformed(TEMPERED.encode(params, x), flows.Composed(()))

        model = TEMPERED._replace(encode=encode)
    report = diagnostics.inference_report(model, params, key, x, **REPORTED)
    text = str(report)
    assert report.verdicts == ("healthy",) and report.used is None
    assert "by KL" not in text and "nan" not in text
    assert ("2 of 3 units" in text) == (family == "prior") == (report.units is not None)
    assert ("implies no beta" in text) == (family == "posterior")
    rate = report.decomposition.rate
    assert abs(rate.value - tempered_point(1.0, x)[1]) < 4 * rate.error < 0.5


def test_collapse_is_told_by_kl_where_active_units_still_count_some(key):
    """Means whose variances, 0.036 and 0.016, are active and carry 0.018 and 0.008 nats."""
    size = 0.045
    x, train = tempered_data(1000, size=size), tempered_data(300, seed=1, size=size)
    report = diagnostics.inference_report(
        TEMPERED, tempered_params(1.0, size=size), key, x, train=train, **REPORTED
    )
    assert report.units.active == 2 and report.used == 0
    assert "collapsed" in report.verdicts
    variance = SIGMA**2 / (SIGMA**2 + np.sum((size * W) ** 2, axis=0))
    assert report.units.variance[:2] == pytest.approx(1 - variance[:2], rel=0.2)
    exact = tempered_point(1.0, x, size=size)[1]
    assert report.decomposition.rate.value == pytest.approx(exact, rel=1e-4)


KEY = jax.random.key(0)
WITHOUT = NORMAL._replace(prior=lambda params, c=(): None)
POINT = table(Delta, STANDARD, TABLE[:1])
LAPLACE = table(Laplace, STANDARD, TABLE)
COIN = NORMAL._replace(decode=lambda params, z, c=(), *, key=None: Bernoulli(z[:1]))
FUNCTIONS = {
    "active_units": active_units,
    "rate_per_dimension": diagnostics.rate_per_dimension,
    "decompose": decompose,
    "implied_beta": diagnostics.implied_beta,
    "inference_report": diagnostics.inference_report,
    "calibration": calibration,
    "rate_distortion": lambda m, p, k, x, **o: diagnostics.rate_distortion(m, [p], k, x, **o),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_example_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: data: got 1 examples, expected 2 or more"):
        FUNCTIONS[name](NORMAL, TABLE, jax.random.clone(KEY), places(1))


@pytest.mark.parametrize("name", ["rate_per_dimension", "decompose", "implied_beta"])
def test_models_without_a_rate_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: model: got one without a prior"):
        FUNCTIONS[name](WITHOUT, TABLE, jax.random.clone(KEY), places(13))
    with pytest.raises(TypeError, match=f"{name}: Delta is discrete and Normal is a density"):
        FUNCTIONS[name](POINT, TABLE[:1], jax.random.clone(KEY), places(13))


def given():
    return NORMAL, TABLE, jax.random.clone(KEY), places(13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decompose(*given(), draws=3), "draws: got 3, expected 4"),
        (lambda: decompose(*given(), components=1), "got 1, expected 2 to"),
        (lambda: decompose(*given(), components=14), "got 14, .*2 to 13"),
        (
            lambda: decompose(NORMAL, (TABLE[0].at[5].set(jnp.nan), TABLE[1]), *given()[2:]),
            "decompose: the distortion is nan for example 5",
        ),
        (
            lambda: active_units(*given(), batch_size=0),
            "batch_size >= 1, got 0",
        ),
        (
            lambda: calibration(*given(), levels=(0.5, 1.0)),
            r"calibration: levels: got .* in \(0, 1\)",
        ),
        (lambda: calibration(*given(), samples=0), "samples >= 1, got 0"),
        (lambda: diagnostics.rate_distortion(NORMAL, [], *given()[2:]), "population >= 1"),
        (lambda: diagnostics.implied_beta(*given(), samples=0), "samples >= 1, got 0"),
        (lambda: diagnostics.inference_report(*given(), particles=0), "particles >= 1, got 0"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_distributions_without_the_closed_form_needed_are_refused():
    with pytest.raises(TypeError, match="rate_per_dimension.*Laplace and Normal.*two diagonal"):
        diagnostics.rate_per_dimension(LAPLACE, TABLE, jax.random.key(0), places(13))
    with pytest.raises(TypeError, match="implied_beta: posterior: got Laplace"):
        diagnostics.implied_beta(LAPLACE, TABLE, jax.random.clone(KEY), places(13))
    with pytest.raises(TypeError, match="calibration: likelihood: got Bernoulli, expected Normal"):
        calibration(COIN, TABLE, jax.random.clone(KEY), places(13))


def test_calibration_refuses_examples_of_another_shape():
    """Checked against [4, 4] less [4, 4, 1], which broadcasts to [4, 4, 4] without a word."""
    model, x = MODEL_OF_MAPS, jnp.zeros((6, 4, 4))
    with pytest.raises(ValueError, match=r"calibration: data: got examples \(4, 4\)"):
        calibration(model, (), jax.random.key(0), x)
    assert calibration(model, (), jax.random.key(0), x[..., None]).mean_square.value == 0


def test_weights_are_refused_where_all_examples_count_alike(key):
    batch = Batch(jnp.zeros((6, 4, 4, 1)), weight=jnp.ones(6))
    with pytest.raises(ValueError, match=r"active_units: data.weight: got weights"):
        active_units(MODEL_OF_MAPS, (), jax.random.key(0), batch)


MODEL_OF_MAPS = Model(
    lambda key, x, c=(): (),
    lambda params, c=(): Normal(jnp.zeros(2), jnp.ones(2)),
    lambda params, x, c=(), *, key=None: Normal(jnp.zeros(2), jnp.ones(2)),
    lambda params, z, c=(), *, key=None: Normal(jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))),
)
