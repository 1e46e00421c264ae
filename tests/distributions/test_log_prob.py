"""Log-probabilities against scipy, enumeration and quadrature, and outside the support."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.laws import (
    DENSITIES,
    DL_LOC,
    DL_SCALE,
    LOC,
    LOGITS,
    MIX_LOGITS,
    NAMES,
    SCALE,
    TRIL,
    build,
    compiled_mean,
    events,
    oracle,
    scores,
    value_and_slope,
)
from vaejax import distributions as vd

# Values


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_that_of_scipy_and_nan_gives_nan(name):
    x = events(name)
    x = x if name == "categorical" else x.astype(np.float32)
    got = scores(build(name), x)
    assert got.shape == (8,) and got.dtype == np.float32
    expected = [oracle(name, row) for row in x]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
    if name != "categorical":
        x[3, 1] = np.nan
        np.testing.assert_array_equal(np.isnan(scores(build(name), x)), np.arange(8) == 3)
    if name == "delta":
        assert np.isnan(scores(vd.Delta(jnp.asarray(x[3])), events(name))).all()


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_in_double_precision(name, x64):
    x = events(name)
    assert x.dtype == (np.int32 if name == "categorical" else np.float64)
    expected = [oracle(name, row) for row in x]
    np.testing.assert_allclose(scores(build(name), x), expected, rtol=1e-10, atol=1e-12)


def test_single_precision_parameters_stay_so_under_x64(key, x64):
    for name in NAMES:
        q = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), build(name))
        x, log_p = jax.eval_shape(q.sample_and_log_prob, key)
        assert x.dtype == (jnp.int32 if name == "categorical" else jnp.float32), name
        assert log_p.dtype == jax.eval_shape(lambda q: q.mean, q).dtype == jnp.float32, name


@pytest.mark.parametrize("family", [vd.Normal, vd.Laplace, vd.Uniform])
def test_parameters_that_are_no_arrays_of_numbers_are_refused(family):
    with pytest.raises(TypeError, match=rf"{family.__name__}: got \[2.0, 3.0\], .*jnp.asarray"):
        family(jnp.zeros(2), [2.0, 3.0]).log_prob(jnp.ones(2))
    with pytest.raises(TypeError, match=rf"{family.__name__}: got 'wide', expected parameters of"):
        family(0.0, "wide").log_prob(0.5)


def test_scale_is_the_standard_deviation():
    at_mean, beyond = scores(vd.Normal(np.float32(0), np.float32(3)), np.float32([0, 3]))
    np.testing.assert_allclose(beyond - at_mean, -0.5, rtol=1e-6)
    np.testing.assert_allclose(at_mean, -np.log(3 * np.sqrt(2 * np.pi)), rtol=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name, x64):
    """Each coordinate of an independent density, and the joint of the others by a 1-D slice."""
    if name == "multivariate":
        q = vd.MultivariateNormal(jnp.asarray(LOC[:2]), jnp.asarray(TRIL[:2, :2]))
        axis = np.linspace(-12, 12, 401)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        mass = np.exp(scores(q, grid)).sum() * (axis[1] - axis[0]) ** 2
    else:
        # The first coordinate alone: parameters [..., :1].
        q = jax.tree.map(lambda leaf: leaf[..., :1] if leaf.ndim else leaf, build(name))
        if name == "mixture":
            q = vd.Mixture(jnp.asarray(MIX_LOGITS), q.components)
        ends = {"uniform": (LOC[0], LOC[0] + SCALE[0]), "continuous_bernoulli": (0.0, 1.0)}
        low, high = ends.get(name, (LOC[0] - 20, LOC[0] + 20))
        # Midpoints, and a whole number of them on each side of the Laplace's kink.
        x = low + (high - low) * (np.arange(200_000) + 0.5) / 200_000
        mass = np.exp(scores(q, x[:, None])).mean() * (high - low)
    np.testing.assert_allclose(mass, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bernoulli", [0.0, 1.0]),
        ("categorical", [0, 1, 2, 3]),
        ("discretized_logistic", [k / 15 for k in range(16)]),
    ],
)
def test_discrete_probabilities_sum_to_one(name, values):
    x = np.array(list(itertools.product(values, repeat=3)))
    x = x.astype(np.int32 if name == "categorical" else np.float32)
    np.testing.assert_allclose(np.exp(scores(build(name), x)).sum(), 1, rtol=1e-5)


def test_continuous_bernoulli_across_its_switches(x64):
    """Value, mean and gradient on both sides of the series, against quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x, weights = (nodes + 1) / 2, weights / 2
    logits = np.array([0.0, 1e-9, -1e-4, 0.3, -0.49999, 0.49999, 0.50001, -0.50001, 2.0, -30.0])

    @jax.jit
    @jax.vmap
    def measured(logit):
        q = vd.ContinuousBernoulli(logit)
        slope = jax.grad(lambda v: vd.ContinuousBernoulli(v).log_prob(0.25))(logit)
        variance = jax.grad(lambda v: vd.ContinuousBernoulli(v).mean)(logit)
        return jax.vmap(q.log_prob)(x), q.mean, slope, variance

    log_p, mean, slope, variance = map(np.asarray, measured(logits))
    p = weights * np.exp(log_p)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-10)
    expected = p @ x
    np.testing.assert_allclose(mean, expected, rtol=1e-10)
    np.testing.assert_allclose(slope, 0.25 - expected, rtol=1e-9, atol=1e-12)
    squares = (p * (x - expected[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(variance, squares, rtol=1e-8)


def test_event_is_a_sum_not_a_mean():
    """Doubling the event by tiling doubles -log p: nothing is averaged over pixels."""
    names = [n for n in NAMES if n not in ("delta", "discretized_logistic", "mixture")]
    names = [name for name in names if name not in ("normal_scalar_scale", "multivariate")]

    @jax.jit
    def both(laws, x):
        twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (laws, x))
        return [
            [q.log_prob(one) for q, one in zip(*pair, strict=True)] for pair in (twice, (laws, x))
        ]

    twice, once = both([build(name) for name in names], [jnp.asarray(events(n)[0]) for n in names])
    np.testing.assert_allclose(twice, 2 * np.asarray(once), rtol=1e-6)


def test_discretized_logistic_mean_is_exact(x64):
    grid = np.arange(256) / 255
    for loc, scale in zip(DL_LOC, DL_SCALE, strict=True):
        one = vd.DiscretizedLogistic(jnp.asarray(loc), jnp.asarray(scale))
        mean = (np.exp(scores(one, grid)) * grid).sum()
        np.testing.assert_allclose(mean, compiled_mean(one), rtol=1e-10)


def test_bernoulli_of_grey_targets_is_the_cross_entropy():
    x, p = np.array([[0.2, 0.9, 0.5]]), scipy.special.expit(LOGITS)
    expected = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum()
    np.testing.assert_allclose(scores(build("bernoulli"), x), expected, rtol=1e-5)


def test_bernoulli_softplus_has_every_derivative_also_at_zero(x64):
    """log(1 + exp(l)): at l = 0 a derivative through max and abs would be 0 where it is 1/4."""
    logits = np.array([-800.0, -30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 800.0])

    def log_p(logit):
        return vd.Bernoulli(logit).log_prob(jnp.zeros(()))

    slope = jax.grad(log_p)
    found = jax.jit(lambda at: [jax.vmap(f)(at) for f in (log_p, slope, jax.grad(slope))])(logits)
    s = scipy.special.expit(logits)
    for got, truth in zip(found, (-np.logaddexp(0, logits), -s, -s * (1 - s)), strict=True):
        np.testing.assert_allclose(got, truth, rtol=1e-12)


def test_bernoulli_in_single_precision_is_exact_to_rounding():
    """784 terms against double precision: no worse than the library softplus."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 784), scale=5).astype(np.float32)
    x = rng.uniform(size=784).round()
    double = logits.astype(np.float64)
    exact = (x * double - np.logaddexp(0, double)).sum(-1)
    score = jax.vmap(lambda row: vd.Bernoulli(row).log_prob(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(jax.jit(score)(logits), exact, rtol=1e-6)


@pytest.mark.parametrize("scalar", [False, True])
def test_an_image_scores_as_its_pixels_in_a_row(scalar):
    rng = np.random.default_rng(4)
    loc, x = rng.normal(size=(2, 4, 3, 1)).astype(np.float32)
    scale = np.float32(0.7) if scalar else rng.uniform(0.5, 2, (3, 1)).astype(np.float32)
    expected = scipy.stats.norm.logpdf(x, loc, np.broadcast_to(scale, loc.shape)).sum()
    assert scores(vd.Normal(loc, scale), x[None])[0] == pytest.approx(expected, rel=1e-6)
    x = (x > 0).astype(np.float32)
    in_a_row = scores(vd.Bernoulli(loc.ravel()), x.reshape(1, -1))[0]
    assert scores(vd.Bernoulli(loc), x[None])[0] == pytest.approx(in_a_row)


# Extremes and the support


def test_large_logits_are_finite():
    """Checked against: log(-expm1(log_sigmoid(l))), which is NaN for label 1 and l >= 104."""
    logit, x = map(np.ravel, np.meshgrid(np.float32([-1e4, -104, 104, 1e4]), np.float32([0, 1])))
    right = (logit > 0) == (x == 1)

    @jax.jit
    @jax.vmap
    def measured(logit, x):
        found = [
            (*jax.value_and_grad(lambda v, kind=kind: kind(v).log_prob(x))(logit), kind(logit).mean)
            for kind in (vd.Bernoulli, vd.ContinuousBernoulli)
        ]
        two = jnp.stack([jnp.zeros(()), logit])
        choice = jax.value_and_grad(lambda v: vd.Categorical(v).log_prob(x.astype(int)))(two)
        return found, choice

    found, (choice, slopes) = measured(logit, x)
    for (value, slope, mean), more in zip(found, (0.0, np.log(np.abs(logit))), strict=True):
        np.testing.assert_allclose(value, np.where(right, 0, -np.abs(logit)) + more, rtol=1e-5)
        np.testing.assert_allclose(slope, x - mean, atol=1e-6)
        np.testing.assert_allclose(mean, logit > 0, atol=1e-2)
    np.testing.assert_allclose(choice, np.where(right, 0, -np.abs(logit)))
    assert np.isfinite(slopes).all()


def test_discretized_logistic_far_in_the_tails():
    for loc in (-1e4, 1e4):
        q = vd.DiscretizedLogistic(jnp.asarray(loc), jnp.asarray(0.01))
        value, slope = value_and_slope(q, np.float32([0, 0.2, 1]))
        assert np.isfinite(value).all() and (value <= 0).all()
        assert np.isfinite(slope.loc).all() and np.isfinite(slope.scale).all()
    # A distribution far wider than the grid puts next to nothing on an inner level.
    wide = vd.DiscretizedLogistic(jnp.asarray(0.5), jnp.asarray(1e4))
    value, _ = value_and_slope(wide, np.float32([0, 0.2, 1]))
    np.testing.assert_allclose(value[1], np.log(1 / 255 / 4e4), rtol=1e-5)


OUTSIDE = {
    "uniform": LOC - 0.01,
    "bernoulli": np.array([0.0, 1.0, 1.01]),
    "continuous_bernoulli": np.array([0.5, -0.01, 0.5]),
    "categorical": np.array([0, 4, 1], np.int32),
    "delta": LOC + 1e-3,
    "discretized_logistic": np.array([0.0, 0.5 / 15, 1.0]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_support(name):
    far = np.array([[v] * 3 for v in (np.inf, -np.inf, 1e30, -1 / 15, 16 / 15)])
    x = np.stack([OUTSIDE[name], [0, -1, 1]]) if name == "categorical" else OUTSIDE[name][None]
    if name in ("bernoulli", "continuous_bernoulli", "discretized_logistic"):
        x = np.concatenate([x, far])
    value, slope = value_and_slope(build(name), x)
    assert (value == -np.inf).all()
    for leaf in jax.tree.leaves(slope):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf[1:], np.zeros_like(leaf[1:]))


def test_raw_bytes_are_outside():
    """Stored uint8 images, not yet scaled, must not be scored by accident."""
    x = np.array([[0, 2, 255]], np.uint8)
    for name in ("bernoulli", "continuous_bernoulli", "discretized_logistic"):
        assert scores(build(name), x) == -np.inf, name
    assert scores(vd.DiscretizedLogistic(np.zeros(3), np.ones(3)), x) == -np.inf


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_grid_allows_for_rounding(levels):
    k = np.unique(np.linspace(0, levels - 1, 1000).astype(int)).astype(np.float32)
    q = vd.DiscretizedLogistic(jnp.asarray(0.5), jnp.asarray(0.3), levels=levels)
    between = (k + np.float32(0.5)) / (levels - 1)  # its last is beyond the end
    found = [scores(q, x) for x in (k / (levels - 1), k * np.float32(1 / (levels - 1)), between)]
    assert np.isfinite(found[:2]).all() and (found[2] == -np.inf).all()


def test_mixture_outside_every_component():
    q = vd.Mixture(jnp.zeros(2), vd.Uniform(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0])))
    value, slope = value_and_slope(q, np.float32([1.5, 0.5]))
    assert value[0] == -jnp.inf and all((leaf[0] == 0).all() for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(value[1], np.log(0.5), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(slope.logits[1], [0.5, -0.5], rtol=1e-6)


def test_categorical_class_ruled_out():
    q = vd.Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    value, slope = value_and_slope(q, np.int32([1, 0]))
    np.testing.assert_allclose(value, [-np.inf, np.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(slope.logits[1], [0.5, 0, -0.5])


def test_mixtures_of_discrete_distributions(key):
    q = vd.Mixture(jnp.array([0.3, -0.2]), vd.Bernoulli(jnp.array([[-1.0, 2.0], [0.5, -2.0]])))
    x = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    p = np.exp(scores(q, x))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(p @ x, compiled_mean(q), rtol=1e-5)
    assert q.discrete and not build("mixture").discrete
    classes = vd.Mixture(np.zeros(2), vd.Categorical(np.zeros((2, 3, 4))))
    assert classes.event_shape == (3,)
    assert jax.eval_shape(lambda q: q.mean, classes).shape == (3, 4)
    grid = vd.Mixture(np.zeros(2), vd.DiscretizedLogistic(np.zeros(2), np.ones(2), levels=3))
    np.testing.assert_allclose(np.exp(scores(grid, np.arange(3) / 2)).sum(), 1, rtol=1e-6)
