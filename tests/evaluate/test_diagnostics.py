"""Decompositions, active units, verdicts and calibration against quadrature and closed forms."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import oracles
from tests.conftest import some_slow
from vaejax import decomposition, diagnostics, plot
from vaejax.distributions import Bernoulli, Categorical, Delta, Laplace, Normal
from vaejax.evaluate.diagnostics import Estimate, active_units, calibration, decompose
from vaejax.model import Model
from vaejax.types import Batch


def table(q, prior, params):
    """A model whose posterior for x = [n] is `q` of the n-th row of every parameter."""

    def encode(params, x, c=(), *, key=None):
        return q(*(leaf[x[0].astype(int)] for leaf in params))

    def decode(params, z, c=(), *, key=None):
        return Normal(jnp.sum(z)[None], jnp.ones(1))

    return Model(lambda key, x, c=(): params, lambda params, c=(): prior, encode, decode)


def places(n):
    return np.arange(n, dtype=np.float32)[:, None]


STANDARD = Normal(jnp.zeros(2), jnp.ones(2))
LOC = np.random.default_rng(0).normal(size=(13, 2)) * np.array([1.5, 0.7])
LOC[:, 1] += 0.8 * LOC[:, 0]  # dependent dimensions
SCALE = np.random.default_rng(1).uniform(0.2, 0.9, size=(13, 2))
TABLE = jnp.asarray(LOC, jnp.float32), jnp.asarray(SCALE, jnp.float32)
NORMAL = table(Normal, STANDARD, TABLE)


def exact_parts(loc, scale):
    """Every part of the decomposition of a 2-D table of Normals, by quadrature on a grid."""
    grid = np.linspace(-9, 9, 1201)
    step = grid[1] - grid[0]
    one = stats.norm.pdf(grid[:, None, None], loc, scale)  # [grid, N, 2]
    joint = one[:, None, :, 0] * one[None, :, :, 1]  # [grid, grid, N]
    q, p = joint.mean(axis=-1), stats.norm.pdf(grid)[:, None] * stats.norm.pdf(grid)
    entropy = -np.sum(q * np.log(q + 1e-300)) * step**2
    cross = -np.sum(q * np.log(p)) * step**2
    conditional = np.sum(np.log(scale * np.sqrt(2 * np.pi * np.e)), axis=1).mean()
    own = [np.log(scale[:, j] * np.sqrt(2 * np.pi * np.e)).mean() for j in (0, 1)]
    sides = [one[..., j].mean(axis=1) for j in (0, 1)]
    side_entropy = np.array([-np.sum(s * np.log(s + 1e-300)) * step for s in sides])
    side_cross = np.array([-np.sum(s * stats.norm.logpdf(grid)) * step for s in sides])
    return {
        "rate": cross - conditional,
        "information": entropy - conditional,
        "aggregated_kl": cross - entropy,
        "conditional_entropy": conditional,
        "cross_entropy": cross,
        "entropy": entropy,
        "total_correlation": side_entropy.sum() - entropy,
        "dimension_information": side_entropy - own,
        "dimension_kl": side_cross - side_entropy,
        "dimension_rate": side_cross - own,
    }


def test_every_part_agrees_with_quadrature_within_the_error_that_it_prints(key):
    """50,000 draws take two chunks of components, 8 and a ragged 5."""
    exact = exact_parts(LOC, SCALE)
    found = decompose(NORMAL, TABLE, key, places(13), draws=50_000)
    for name, truth in exact.items():
        parts = getattr(found, name)
        for part, value in zip(
            parts if isinstance(parts, list) else [parts], np.atleast_1d(truth), strict=True
        ):
            assert abs(part.value - value) < 4 * part.error + 1e-5, (name, part, value)
            assert part.error < 0.01
    assert found.information.error > 0 and found.rate.error == 0
    assert exact["total_correlation"] > 0.1 and exact["aggregated_kl"] > 0.1  # nothing trivial
    assert not found.capped and found.cap == pytest.approx(np.log(13))
    assert found.elbo.value == pytest.approx(-found.distortion.value - found.rate.value, rel=1e-5)


@pytest.mark.parametrize("draws", some_slow([8, 52], [8]), ids=["four of thirteen examples", "all"])
def test_the_printed_errors_are_those_of_repetition(draws):
    """Standard scores over 200 keys have standard deviation 1, with the examples chosen anew."""
    exact = exact_parts(LOC, SCALE)
    runs = [
        decompose(NORMAL, TABLE, jax.random.key(seed), places(13), draws=draws)
        for seed in range(200)
    ]
    for name in ("information", "total_correlation"):
        values = np.array([getattr(run, name) for run in runs])
        printed, repeated = np.sqrt(np.mean(values[:, 1] ** 2)), values[:, 0].std()
        assert printed == pytest.approx(repeated, rel=0.2)
        assert abs(values[:, 0].mean() - exact[name]) < 4 * repeated / np.sqrt(200)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_gaussian_data_in_the_limit_of_many(beta):
    """x from the model: I = 1/2 log det Cov(z) - 1/2 log det S, and A_u = Var(mean code).

    With q = N(m(x), S) of a linear m, q(z) is Gaussian; for beta = 1, with S the posterior's, it is
    the prior and its KL is 0. The spread of 4000 examples adds about 0.015 nats to the error bars.
    """
    params = tempered_params(beta)
    x = tempered_data(4000)
    W, s = np.asarray(params["W"], float), SIGMA
    S = np.diag(1 / (1 + np.sum(W**2, axis=0) / (beta * s**2)))
    gain = S @ W.T / (beta * s**2)
    moved = gain @ (W @ W.T + s**2 * np.eye(len(W))) @ gain.T
    whole = moved + S
    information = 0.5 * (np.linalg.slogdet(whole)[1] - np.linalg.slogdet(S)[1])
    away = 0.5 * (np.trace(whole) - len(S) - np.linalg.slogdet(whole)[1])
    found = decompose(TEMPERED, params, jax.random.key(1), x, draws=4000)
    assert abs(found.information.value - information) < 4 * np.hypot(found.information.error, 0.015)
    assert abs(found.aggregated_kl.value - away) < 4 * np.hypot(found.aggregated_kl.error, 0.015)
    assert away == pytest.approx(0, abs=1e-9) or beta != 1
    units = active_units(TEMPERED, params, x)
    assert np.all(abs(units.variance - np.diag(moved)) < 4 * units.error + 1e-6)
    expected = np.diag(moved) * np.sqrt(2 / 4000)  # of the variance of Gaussian numbers
    np.testing.assert_allclose(units.error, expected, rtol=0.15, atol=1e-9)
    assert units.active == 2 and units.interval == (2, 2)  # the third column of W is zero


def test_a_posterior_without_closed_forms_is_averaged_over_draws(key):
    """Laplace against Normal, in one dimension, by quadrature."""
    loc, scale = np.array([[-1.0], [0.5], [2.0]]), np.array([[0.3], [0.5], [0.2]])
    params = jnp.asarray(loc), jnp.asarray(scale)
    model = table(Laplace, Normal(jnp.zeros(1), jnp.ones(1)), params)
    found = decompose(model, params, key, np.tile(places(3), (400, 1)), draws=4800)
    grid = np.linspace(-12, 12, 200_001)
    step = grid[1] - grid[0]
    each = stats.laplace.pdf(grid[:, None], loc[:, 0], scale[:, 0])
    q = each.mean(axis=1)
    conditional = np.log(2 * np.e * scale).mean()
    entropy, cross = (-np.sum(q * f) * step for f in (np.log(q + 1e-300), stats.norm.logpdf(grid)))
    for part, truth in [
        (found.information, entropy - conditional),
        (found.aggregated_kl, cross - entropy),
        (found.conditional_entropy, conditional),
        (found.cross_entropy, cross),
        (found.rate, cross - conditional),
        (found.entropy, entropy),
    ]:
        assert 0 < part.error < 0.05 and abs(part.value - truth) < 4 * part.error
    assert found.total_correlation is None and found.dimension_kl is None
    assert "total correlation" not in str(found)


def test_discrete_codes_by_enumeration(key):
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    params = (jnp.log(jnp.asarray(p))[:, None],)
    model = table(Categorical, Categorical(jnp.zeros((1, 3))), params)
    found = decompose(model, params, key, places(2), draws=4000)
    entropy, conditional = stats.entropy(p.mean(axis=0)), stats.entropy(p, axis=1).mean()
    assert abs(found.information.value - (entropy - conditional)) < 4 * found.information.error
    assert abs(found.aggregated_kl.value - (np.log(3) - entropy)) < 4 * found.aggregated_kl.error
    assert found.rate.value == pytest.approx(np.log(3) - conditional, rel=1e-5)


def test_separate_codes_say_that_log_n_is_the_cap_and_empty_codes_say_nothing(key):
    apart = (TABLE[0] * 0 + 20.0 * places(13), TABLE[1])
    found = decompose(NORMAL, apart, key, places(13))
    assert found.information.value == pytest.approx(np.log(13), abs=1e-5) and found.capped
    assert "capped, take more examples" in str(found)
    empty = tuple(jnp.full((13, 2), value) for value in (0.0, 1.0))
    found = decompose(NORMAL, empty, jax.random.key(1), places(13))
    for part in (found.information, found.aggregated_kl, found.rate, found.total_correlation):
        assert abs(part.value) < 1e-5
    assert not found.capped and active_units(NORMAL, empty, places(13)).active == 0


def subset_ratios(components):
    """q(z)/q(z|x) at draws for all 13 examples, as estimated from some of the components."""
    draws = [jax.random.key(1), jax.random.key(2)]
    log_ratio = decomposition._log_ratios(
        NORMAL,
        None,
        100,
        2,
        *draws,
        TABLE,
        places(13)[:4],
        (),
        jnp.arange(4),
        jnp.asarray(components),
    )
    return np.exp(-np.asarray(log_ratio, float)).reshape(8, 3)


OWN = np.repeat(np.arange(4), 2)
Z = np.random.default_rng(2).normal(size=(8, 2)) * SCALE[OWN] + LOC[OWN]
LOG_Q = stats.norm.logpdf(Z[:, None], LOC[:4], SCALE[:4])  # [draws, components, latent]


def weighted(components, *, log_weights=None, per_dimension=False):
    """The same from numpy, with the weights of a mistake: [draws of the components' own, 3]."""
    m = len(components)
    log_w = np.full((8, m), np.log(3 / 4 / (m - 1)))
    own = OWN[:, None] == np.asarray(components)
    log_w = np.where(own, np.log(1 / 4), log_w) if log_weights is None else log_weights(log_w)
    log_q = LOG_Q[:, components]
    if per_dimension:
        joint = np.sum(log_q + log_w[..., None], axis=-1)
    else:
        joint = np.sum(log_q, axis=-1) + log_w
    both = np.concatenate([joint[..., None], log_q + log_w[..., None]], axis=-1)
    mine = np.take_along_axis(LOG_Q, OWN[:, None, None], axis=1)[:, 0]
    mine = np.concatenate([mine.sum(axis=-1, keepdims=True), mine], axis=-1)
    return np.exp(np.logaddexp.reduce(both, axis=1) - mine)


def check_unbiased(ratios):
    """Over the subsets that hold an example, the estimates of q(z) average to the full-data one."""
    pairs = list(combinations(range(4), 2))
    found = {pair: ratios(list(pair)) for pair in pairs}
    exact = ratios([0, 1, 2, 3])
    for draw in range(8):
        with_own = [found[pair][draw] for pair in pairs if OWN[draw] in pair]
        np.testing.assert_allclose(np.mean(with_own, axis=0), exact[draw], rtol=1e-4)


def column_zero(log_w):
    return np.where(np.arange(log_w.shape[1]) == 0, np.log(1 / 4), log_w)


def test_mistake_4_the_own_example_has_its_weight_on_the_diagonal():
    """Checked against 1/N put in column 0 of the weights instead of at each draw's own example."""
    check_unbiased(subset_ratios)
    check_unbiased(weighted)
    with pytest.raises(AssertionError):
        check_unbiased(partial(weighted, log_weights=column_zero))


def test_mistake_6_a_weight_counts_once_not_once_per_dimension():
    """Checked against log-weights added in every dimension before the sum over dimensions."""

    def check(ratios):
        """On all the data the weights are 1/N, and q(z) is the mean of the posteriors."""
        exact = np.exp(LOG_Q.sum(axis=-1)).mean(axis=1) / np.exp(
            np.take_along_axis(LOG_Q.sum(axis=-1), OWN[:, None], axis=1)[:, 0]
        )
        np.testing.assert_allclose(ratios([0, 1, 2, 3])[:, 0], exact, rtol=1e-6)

    check(weighted)
    with pytest.raises(AssertionError):
        check(partial(weighted, per_dimension=True))
    check_unbiased(subset_ratios)  # ours keeps the joint and the dimensions apart in one pass
    with pytest.raises(AssertionError):
        check_unbiased(partial(weighted, per_dimension=True))


def test_some_components_stand_for_all_when_codes_are_apart(key):
    """The entropy of q(z) from 10 of 100 components: the own term carries it, at weight 1/N."""
    loc = 3.0 * np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(100, 2)
    params = jnp.asarray(loc, jnp.float32), jnp.full((100, 2), 0.3)
    found = decompose(NORMAL, params, key, places(100), components=10)
    assert found.information.value == pytest.approx(np.log(100), abs=0.01)


def test_mistake_5_independent_codes_have_no_total_correlation(key):
    """Checked against minibatch weights 1/(N M), whose total correlation is off by (d-1) log N."""
    first, second = np.meshgrid(np.linspace(-2, 2, 5), [-1.0, 0.0, 1.5, 2.0])
    loc = np.stack([first.ravel(), second.ravel()], axis=-1)
    params = jnp.asarray(loc, jnp.float32), jnp.full((20, 2), 0.4)

    def ours():
        return decompose(NORMAL, params, key, places(20)).total_correlation

    def minibatch_weighted():
        z = loc + 0.4 * np.random.default_rng(0).normal(size=loc.shape)
        log_q = stats.norm.logpdf(z[:, None], loc, 0.4)
        joint = np.logaddexp.reduce(log_q.sum(axis=-1), axis=1) - np.log(20 * 20)
        sides = np.logaddexp.reduce(log_q, axis=1) - np.log(20 * 20)
        return Estimate(np.mean(joint - sides.sum(axis=-1)), 0.0)

    def check(total_correlation):
        found = total_correlation()
        assert abs(found.value) < 4 * found.error + 1e-4

    check(ours)
    with pytest.raises(AssertionError):
        check(minibatch_weighted)
    assert minibatch_weighted().value == pytest.approx(np.log(20), abs=1e-6)


def test_memory_does_not_grow_with_the_examples():
    def peak(n):
        x = jax.ShapeDtypeStruct((n, 1), jnp.float32)
        keys = jax.random.key(0), jax.random.key(1)
        arrays = TABLE, x, (), jnp.arange(50), jnp.arange(n)
        lowered = decomposition._log_ratios.lower(NORMAL, None, 10, 2, *keys, *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # An example adds its place among the components, and not its 100 x 3 scores of 4 bytes.
    assert peak(60_000) - peak(20_000) < 0.1 * (100 * 3 * 4 * 40_000)


def test_rate_per_dimension_is_the_closed_form_and_sums_to_the_rate(key):
    each = 0.5 * (LOC**2 + SCALE**2 - 1 - 2 * np.log(SCALE)).mean(axis=0)
    found = diagnostics.rate_per_dimension(NORMAL, TABLE, places(13), batch_size=5)
    np.testing.assert_allclose(found, each, rtol=1e-5)
    assert decompose(NORMAL, TABLE, key, places(13)).rate.value == pytest.approx(each.sum())


def test_active_units_are_the_variances_of_the_means():
    units = active_units(NORMAL, TABLE, places(13), threshold=1.0, batch_size=4)
    np.testing.assert_allclose(units.variance, LOC.var(axis=0), rtol=1e-5)
    assert units.active == np.sum(LOC.var(axis=0) > 1.0)
    point = table(Delta, STANDARD, TABLE[:1])
    np.testing.assert_allclose(
        active_units(point, TABLE[:1], places(13)).variance, LOC.var(axis=0), rtol=1e-5
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
    units = active_units(NORMAL, TABLE, stored, transform=transform, key=jax.random.clone(key))
    np.testing.assert_allclose(units.variance, LOC.var(axis=0), rtol=1e-5)


# z ~ N(0, I), x|z ~ N(W z, s^2 I) with orthogonal columns, the last one zero. The posterior
# q proportional to p(z) p(x|z)^(1/beta) is the minimiser of D + beta R over all q; it is
# moved by `shift`.
SIGMA = 0.7


def tempered_model():
    def prior(params, c=()):
        return Normal(jnp.zeros(3), jnp.ones(3))

    def encode(params, x, c=(), *, key=None):
        W, noise = params["W"], params["beta"] * SIGMA**2
        variance = 1 / (1 + jnp.sum(W**2, axis=0) / noise)
        return Normal(variance * (W.T @ x) / noise + params["shift"], jnp.sqrt(variance))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["W"] @ z, params["ratio"] * SIGMA)

    return Model(lambda key, x, c=(): None, prior, encode, decode)


TEMPERED = tempered_model()
W = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))[0] * np.array([3.0, 2.0, 0.0])


def tempered_params(beta, shift=0.0, ratio=1.0, size=1.0):
    """`ratio`: of the decoder's predicted standard deviation to the true one; `size`: of W."""
    values = {"W": size * W, "beta": beta, "shift": shift, "ratio": ratio}
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def tempered_data(n, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) @ (size * W).T + SIGMA * rng.normal(size=(n, 5))).astype(
        np.float32
    )


def tempered_point(beta, x):
    """Exact distortion and rate of the tempered posterior, nats per example."""
    variance = 1 / (1 + np.sum(W**2, axis=0) / (beta * SIGMA**2))
    mean = x.astype(float) @ W * variance / (beta * SIGMA**2)
    error = np.sum((x - mean @ W.T) ** 2, axis=1) + np.sum(variance * np.sum(W**2, axis=0))
    D = 0.5 * error / SIGMA**2 + 2.5 * np.log(2 * np.pi * SIGMA**2)
    R = 0.5 * np.sum(mean**2 + variance - 1 - np.log(variance), axis=1)
    return D.mean(), R.mean()


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
    report = diagnostics.inference_report(
        TEMPERED, params, key, x, train=train, particles=50, examples=300, draws=200
    )
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


def test_collapse_is_told_by_kl_where_active_units_still_count_some(key):
    """Means that move by 0.15 are active (A_u = 0.0225) and carry 0.01 nats each."""
    loc = 0.15 * np.where(np.arange(32)[:, None] >> np.arange(2) & 1, 1.0, -1.0)
    params = jnp.asarray(loc, jnp.float32), jnp.ones((32, 2))
    report = diagnostics.inference_report(NORMAL, params, key, places(32), draws=200, particles=5)
    assert report.units.active == 2 and report.used == 0
    assert "collapsed" in report.verdicts
    assert report.decomposition.rate.value == pytest.approx(2 * 0.15**2 / 2, rel=1e-4)


def test_one_condition_is_taken_out_of_the_question_and_several_are_refused(key):
    one = Batch(places(13), np.ones((13, 2), np.float32))
    found = decompose(NORMAL, TABLE, key, one)
    plain = decompose(NORMAL, TABLE, jax.random.clone(key), places(13))
    assert found.information == plain.information
    with pytest.raises(ValueError, match="decompose: data.c: got several conditions"):
        decompose(NORMAL, TABLE, key, one._replace(c=np.eye(13, dtype=np.float32)))


KEY = jax.random.key(0)
WITHOUT = NORMAL._replace(prior=lambda params, c=(): None)
POINT = table(Delta, STANDARD, TABLE[:1])
LAPLACE = table(Laplace, STANDARD, TABLE)
COIN = NORMAL._replace(decode=lambda params, z, c=(), *, key=None: Bernoulli(z[:1]))
FUNCTIONS = {
    "active_units": lambda *a, **o: active_units(a[0], a[1], a[3], **o),
    "rate_per_dimension": lambda *a, **o: diagnostics.rate_per_dimension(a[0], a[1], a[3], **o),
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
            lambda: active_units(NORMAL, TABLE, places(13), transform=lambda k, x: x),
            "active_units: key: got None, expected a key beside a transform",
        ),
        (lambda: active_units(NORMAL, TABLE, places(13), batch_size=0), "batch_size >= 1, got 0"),
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
        diagnostics.rate_per_dimension(LAPLACE, TABLE, places(13))
    with pytest.raises(TypeError, match="implied_beta: posterior: got Laplace"):
        diagnostics.implied_beta(LAPLACE, TABLE, jax.random.clone(KEY), places(13))
    with pytest.raises(TypeError, match="calibration: likelihood: got Bernoulli, expected Normal"):
        calibration(COIN, TABLE, jax.random.clone(KEY), places(13))


def test_the_rate_distortion_picture_has_a_line_of_the_best_bound(tmp_path):
    figure = plot.rate_distortion([9.0, 4.0, 0.0], [1.0, 4.0, 20.0], ["a", "b", "c"])
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0, 4, 9])
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [20, 4, 1])
    dashed = next(line for line in axis.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(np.add(*dashed.get_data()), 8.0)  # the smallest D + R
    assert dashed.get_label() == "ELBO = -8.0 nats, the best"
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c"]
    assert "rate" in axis.get_xlabel() and "nats" in axis.get_ylabel()


def test_the_picture_of_rates_is_sorted_and_floored(tmp_path):
    figure = plot.rates({"one": [0.0, 2.0, 0.5], "two": [0.1, -1e-7, 0.2]}, used=0.3)
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [2.0, 0.5, 1e-4])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [0.2, 0.1, 1e-4])
    assert axis.get_yscale() == "log" and axis.lines[2].get_ydata()[0] == 0.3


def test_the_picture_of_calibration_has_the_diagonal_and_the_intervals(tmp_path):
    figure = plot.calibration([0.5, 0.9], {"test": [0.4, 0.8]}, errors={"test": [0.01, 0.02]})
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [0, 1])
    np.testing.assert_array_equal(axis.lines[1].get_ydata(), [0.4, 0.8])
    ends = axis.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([end[:, 1] for end in ends], [[0.3804, 0.4196], [0.7608, 0.8392]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.rate_distortion([1.0], [1.0, 2.0], ["a"]), "rate_distortion: distortion"),
        (lambda: plot.rate_distortion([1.0], [1.0], []), "rate_distortion: labels: got 0"),
        (lambda: plot.rates({}), "rates: rates: got no model"),
        (lambda: plot.rates({"a": [1.0, -1.0]}), "at least 0"),
        (lambda: plot.calibration([0.5], {}), "calibration: coverage: got no model"),
        (
            lambda: plot.calibration([0.5], {"a": [1.5]}),
            r"in \[1.5, 1.5\], expected .* in \[0, 1\]",
        ),
    ],
)
def test_pictures_refuse_what_they_cannot_draw(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_calibration_refuses_examples_of_another_shape():
    """Checked against [4, 4] less [4, 4, 1], which broadcasts to [4, 4, 4] without a word."""
    model, x = MODEL_OF_MAPS, jnp.zeros((6, 4, 4))
    with pytest.raises(ValueError, match=r"calibration: data: got examples \(4, 4\)"):
        calibration(model, (), jax.random.key(0), x)
    assert calibration(model, (), jax.random.key(0), x[..., None]).mean_square.value == 0


def test_weights_are_refused_where_all_examples_count_alike(key):
    batch = Batch(jnp.zeros((6, 4, 4, 1)), weight=jnp.ones(6))
    with pytest.raises(ValueError, match=r"active_units: data.weight: got weights"):
        active_units(MODEL_OF_MAPS, (), batch)


MODEL_OF_MAPS = Model(
    lambda key, x, c=(): (),
    lambda params, c=(): Normal(jnp.zeros(2), jnp.ones(2)),
    lambda params, x, c=(), *, key=None: Normal(jnp.zeros(2), jnp.ones(2)),
    lambda params, z, c=(), *, key=None: Normal(jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))),
)
