"""The averaged ELBO taken apart, against quadrature, closed forms and enumeration."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.known_codes import LOC, NORMAL, SCALE, TABLE, places, table
from tests.tempered import SIGMA, TEMPERED, tempered_data, tempered_params
from vaejax import decomposition
from vaejax.distributions import Categorical, Laplace, Normal
from vaejax.evaluate.diagnostics import Estimate, active_units, decompose
from vaejax.types import Batch


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


@pytest.mark.statistics
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


@pytest.mark.statistics
@pytest.mark.parametrize("draws", [8, 52], ids=["four of thirteen examples", "all"])
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


@pytest.mark.statistics
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
    units = active_units(TEMPERED, params, jax.random.key(0), x)
    assert np.all(abs(units.variance - np.diag(moved)) < 4 * units.error + 1e-6)
    expected = np.diag(moved) * np.sqrt(2 / 4000)  # of the variance of Gaussian numbers
    np.testing.assert_allclose(units.error, expected, rtol=0.15, atol=1e-9)
    assert units.active == 2 and units.interval == (2, 2)  # the third column of W is zero


@pytest.mark.statistics
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


@pytest.mark.statistics
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
    assert (
        not found.capped and active_units(NORMAL, empty, jax.random.key(0), places(13)).active == 0
    )


def subset_ratios(components):
    """q(z)/q(z|x) at draws for all 13 examples, as estimated from some of the components."""
    keys, data = (jax.random.key(1), jax.random.key(2)), (places(13)[:4], ())
    chosen = jnp.arange(4), jnp.asarray(components)
    log_ratio = decomposition._log_ratios(NORMAL, None, (100, 2), TABLE, keys, data, *chosen)
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


def test_the_own_example_has_its_weight_on_the_diagonal():
    """Checked against 1/N put in column 0 of the weights instead of at each draw's own example."""
    check_unbiased(subset_ratios)
    check_unbiased(weighted)
    with pytest.raises(AssertionError):
        check_unbiased(partial(weighted, log_weights=column_zero))


def test_a_weight_counts_once_not_once_per_dimension():
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


def test_independent_codes_have_no_total_correlation(key):
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
        arrays = TABLE, keys, (x, ()), jnp.arange(50), jnp.arange(n)
        lowered = decomposition._log_ratios.lower(NORMAL, None, (10, 2), *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # An example adds its place among the components, and not its 100 x 3 scores of 4 bytes.
    assert peak(60_000) - peak(20_000) < 0.1 * (100 * 3 * 4 * 40_000)


def test_one_condition_is_taken_out_of_the_question_and_several_are_refused(key):
    one = Batch(places(13), np.ones((13, 2), np.float32))
    found = decompose(NORMAL, TABLE, key, one)
    plain = decompose(NORMAL, TABLE, jax.random.clone(key), places(13))
    assert found.information == plain.information
    with pytest.raises(ValueError, match="decompose: data.c: got several conditions"):
        decompose(NORMAL, TABLE, key, one._replace(c=np.eye(13, dtype=np.float32)))
