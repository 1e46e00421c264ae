"""Distributions against scipy, enumeration, quadrature and their own samples."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vaejax import distributions as vd
from vaejax.distributions import kl

RNG = np.random.default_rng(0)
LOC, SCALE = RNG.normal(size=(3,)), np.array([0.4, 1.0, 2.5])
LOC2, SCALE2 = RNG.normal(size=(3,)), np.array([0.7, 0.9, 1.5])
TRIL = np.tril(RNG.normal(size=(3, 3)), -1) + np.diag([0.5, 1.2, 2.0])
TRIL2 = np.tril(RNG.normal(size=(3, 3)), -1) + np.diag([0.8, 1.0, 1.5])
LOGITS = np.array([-3.0, 0.3, 2.0])
CB_LOGITS = np.array([-7.0, 0.004, 3.0])
CLASSES = RNG.normal(size=(3, 4))
DL_LOC, DL_SCALE = np.array([-0.2, 0.4, 0.97]), np.array([0.3, 0.02, 0.1])
MIX_LOGITS, MIX_LOC = np.array([0.2, -1.0]), RNG.normal(size=(2, 3))
MIX_SCALE = np.array([[0.3, 1.0, 2.0], [1.0, 0.5, 0.7]])


def build(name):
    """One example of each, in the default floating dtype; called under `x64` it is in double."""
    a = jnp.asarray
    return {
        "normal": lambda: vd.Normal(a(LOC), a(SCALE)),
        "normal_scalar_scale": lambda: vd.Normal(a(LOC), a(0.7)),
        "multivariate": lambda: vd.MultivariateNormal(a(LOC), a(TRIL)),
        "laplace": lambda: vd.Laplace(a(LOC), a(SCALE)),
        "uniform": lambda: vd.Uniform(a(LOC), a(LOC + SCALE)),
        "bernoulli": lambda: vd.Bernoulli(a(LOGITS)),
        "continuous_bernoulli": lambda: vd.ContinuousBernoulli(a(CB_LOGITS)),
        "categorical": lambda: vd.Categorical(a(CLASSES)),
        "delta": lambda: vd.Delta(a(LOC)),
        "discretized_logistic": lambda: vd.DiscretizedLogistic(a(DL_LOC), a(DL_SCALE), levels=16),
        "mixture": lambda: vd.Mixture(a(MIX_LOGITS), vd.Normal(a(MIX_LOC), a(MIX_SCALE))),
    }[name]()


def oracle(name, x):
    """log p(x) of one event `[3]` in double precision, by other people's code."""
    st, x = scipy.stats, np.asarray(x, np.float64)
    match name:
        case "normal":
            return st.norm.logpdf(x, LOC, SCALE).sum()
        case "normal_scalar_scale":
            return st.norm.logpdf(x, LOC, 0.7).sum()
        case "multivariate":
            return st.multivariate_normal.logpdf(x, LOC, TRIL @ TRIL.T)
        case "laplace":
            return st.laplace.logpdf(x, LOC, SCALE).sum()
        case "uniform":
            return st.uniform.logpdf(x, LOC, SCALE).sum()
        case "bernoulli":
            return st.bernoulli.logpmf(x, scipy.special.expit(LOGITS)).sum()
        case "continuous_bernoulli":
            # exp(l x) on [0, 1] is an exponential cut off at 1, mirrored where l > 0.
            rate, mirrored = np.abs(CB_LOGITS), np.where(CB_LOGITS > 0, 1 - x, x)
            return st.truncexpon.logpdf(mirrored, rate, scale=1 / rate).sum()
        case "categorical":
            return scipy.special.log_softmax(CLASSES, -1)[np.arange(3), x.astype(int)].sum()
        case "delta":
            return 0.0 if np.allclose(x, LOC) else -np.inf
        case "discretized_logistic":
            upper = np.where(x == 1, np.inf, x + 0.5 / 15)
            lower = np.where(x == 0, -np.inf, x - 0.5 / 15)
            # The survival function on the upper side, where the difference of cdfs has no digits.
            by_cdf = st.logistic.cdf(upper, DL_LOC, DL_SCALE) - st.logistic.cdf(
                lower, DL_LOC, DL_SCALE
            )
            by_sf = st.logistic.sf(lower, DL_LOC, DL_SCALE) - st.logistic.sf(
                upper, DL_LOC, DL_SCALE
            )
            return np.log(np.where(x > DL_LOC, by_sf, by_cdf)).sum()
        case "mixture":
            each = st.norm.logpdf(x, MIX_LOC, MIX_SCALE).sum(-1)
            return scipy.special.logsumexp(scipy.special.log_softmax(MIX_LOGITS) + each)
    raise AssertionError(name)


NAMES = [
    "normal",
    "normal_scalar_scale",
    "multivariate",
    "laplace",
    "uniform",
    "bernoulli",
    "continuous_bernoulli",
    "categorical",
    "delta",
    "discretized_logistic",
    "mixture",
]
DENSITIES = [name for name in NAMES if name not in ("bernoulli", "categorical", "delta")]
DENSITIES.remove("discretized_logistic")


compiled_draws = jax.jit(lambda q, keys: jax.vmap(q.sample_and_log_prob)(keys))
compiled_scores = jax.jit(lambda q, x: jax.vmap(q.log_prob)(x))


def draws(distribution, keys):
    """Samples and their log-probabilities, a row for each key, as NumPy arrays."""
    return tuple(map(np.asarray, compiled_draws(distribution, keys)))


def scores(distribution, x):
    """log p of every row of x, as a NumPy array."""
    return np.asarray(compiled_scores(distribution, x))


def within(samples, truth, errors=5.0):
    """The mean of the samples is the truth, to this many standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(0) - truth), errors * error + 1e-6)


# Values


def events(name, key):
    """Eight events: the distribution's own samples, and for the grid both of its ends too."""
    x = np.array(draws(build(name), jax.random.split(key, 8))[0])
    if name == "discretized_logistic":
        x[:2] = [[0, 1, 0], [1, 0, 1]]
    return x


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_that_of_scipy(name, key):
    x = events(name, key)
    expected = [oracle(name, row) for row in x]
    np.testing.assert_allclose(scores(build(name), x), expected, rtol=1e-5, atol=2e-6)
    value = build(name).log_prob(x[0])
    assert value.shape == () and value.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_in_double_precision(name, key, x64):
    x = events(name, key)
    if name == "discretized_logistic":
        x = np.round(x * 15) / 15
    assert x.dtype == (np.int32 if name == "categorical" else np.float64)
    expected = [oracle(name, row) for row in x]
    np.testing.assert_allclose(scores(build(name), x), expected, rtol=1e-10, atol=1e-12)


def test_single_precision_parameters_stay_so_under_x64(key, x64):
    for name in NAMES:
        q = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), build(name))
        x, log_p = jax.eval_shape(q.sample_and_log_prob, key)
        assert x.dtype == (jnp.int32 if name == "categorical" else jnp.float32), name
        assert log_p.dtype == jax.eval_shape(lambda q: q.mean, q).dtype == jnp.float32, name


def test_scale_is_the_standard_deviation():
    q = vd.Normal(jnp.zeros(()), jnp.asarray(3.0))
    np.testing.assert_allclose(q.log_prob(3.0) - q.log_prob(0.0), -0.5, rtol=1e-6)
    np.testing.assert_allclose(q.log_prob(0.0), -np.log(3 * np.sqrt(2 * np.pi)), rtol=1e-6)


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
    logits = [0.0, 1e-9, -1e-4, 0.3, -0.49999, 0.49999, 0.50001, -0.50001, 2.0, -30.0]
    for logit in map(jnp.asarray, logits):
        p = np.exp(jax.vmap(vd.ContinuousBernoulli(logit).log_prob)(x))
        np.testing.assert_allclose((weights * p).sum(), 1, rtol=1e-10)
        mean = (weights * p * x).sum()
        np.testing.assert_allclose(vd.ContinuousBernoulli(logit).mean, mean, rtol=1e-10)
        slope = jax.grad(lambda v: vd.ContinuousBernoulli(v).log_prob(0.25))(logit)
        np.testing.assert_allclose(slope, 0.25 - mean, rtol=1e-9, atol=1e-12)
        variance = jax.grad(lambda v: vd.ContinuousBernoulli(v).mean)(logit)
        np.testing.assert_allclose(variance, (weights * p * (x - mean) ** 2).sum(), rtol=1e-8)


@pytest.mark.parametrize("logit", [-1e4, -40.0, -0.011, -0.009, 0.0, 0.009, 0.011, 40.0, 1e4])
def test_continuous_bernoulli_samples(logit, key):
    """Mean and pathwise gradient of the samples, around the switch of formulas and far out."""
    keys = jax.random.split(key, 20_000)
    x = draws(vd.ContinuousBernoulli(jnp.asarray(logit)), keys)[0]
    assert x.min() >= 0 and x.max() <= 1
    within(x, vd.ContinuousBernoulli(jnp.asarray(logit)).mean)
    slope = jax.vmap(
        jax.grad(lambda v, key: vd.ContinuousBernoulli(v).sample(key)), in_axes=(None, 0)
    )(jnp.asarray(logit), jax.random.clone(keys))
    variance = jax.grad(lambda v: vd.ContinuousBernoulli(v).mean)(jnp.asarray(logit))
    within(slope, variance)


def test_event_is_a_sum_not_a_mean(key):
    """Doubling the event by tiling doubles -log p: nothing is averaged over pixels."""
    for name in (
        "normal",
        "laplace",
        "uniform",
        "bernoulli",
        "continuous_bernoulli",
        "categorical",
    ):
        q = build(name)
        x = q.sample(key)
        twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), q)
        expected = 2 * q.log_prob(x)
        np.testing.assert_allclose(
            twice.log_prob(jnp.concatenate([x, x])), expected, rtol=1e-6, err_msg=name
        )
        key = jax.random.fold_in(jax.random.clone(key), 1)


def test_parameters_broadcast(key):
    loc = jax.random.normal(key, (4, 5, 1))
    for scale in (jnp.asarray(0.5), jnp.full((1, 5, 1), 0.5), 0.5):
        for kind in (vd.Normal, vd.Laplace, vd.DiscretizedLogistic):
            q, full = kind(loc, scale), kind(loc, jnp.full(loc.shape, 0.5))
            assert q.event_shape == q.mean.shape == loc.shape
            x = jnp.zeros(loc.shape)
            np.testing.assert_allclose(q.log_prob(x), full.log_prob(x), rtol=1e-6)
            assert q.sample(jax.random.key(1)).shape == loc.shape
    q = vd.Uniform(0.0, jnp.full((2, 3), 2.0))
    assert q.mean.shape == q.sample(jax.random.key(2)).shape == (2, 3)
    np.testing.assert_allclose(q.log_prob(jnp.ones((2, 3))), -6 * np.log(2), rtol=1e-6)
    assert vd.Normal(0, 1).sample(jax.random.key(3)).dtype == jnp.float32


def test_multivariate_normal_reads_the_lower_triangle_only(key):
    full = vd.MultivariateNormal(jnp.asarray(LOC), jnp.asarray(TRIL + np.triu(np.ones((3, 3)), 1)))
    lower = build("multivariate")
    x = full.sample(key)
    np.testing.assert_array_equal(x, lower.sample(jax.random.clone(key)))
    np.testing.assert_array_equal(full.log_prob(x), lower.log_prob(x))
    assert abs(kl(full, lower)) < 1e-6 and abs(kl(lower, full)) < 1e-6


# Samples


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean_and_their_log_prob(name, key):
    x, log_p = draws(build(name), jax.random.split(key, 40_000))
    if name == "categorical":
        x = jax.nn.one_hot(x, 4)
    within(x, build(name).mean)
    assert np.isfinite(log_p).all()
    again = x if name != "categorical" else jnp.argmax(x, -1)
    np.testing.assert_allclose(log_p[:50], scores(build(name), again[:50]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", SCALE**2),
        ("multivariate", np.diag(TRIL @ TRIL.T)),
        ("laplace", 2 * SCALE**2),
        ("uniform", SCALE**2 / 12),
        ("bernoulli", scipy.special.expit(LOGITS) * scipy.special.expit(-LOGITS)),
    ],
)
def test_samples_have_the_variance(name, variance, key):
    q = build(name)
    x = draws(q, jax.random.split(key, 40_000))[0]
    within((x - np.asarray(q.mean)) ** 2, variance)


def test_multivariate_normal_samples_are_correlated(key):
    x = draws(build("multivariate"), jax.random.split(key, 40_000))[0] - LOC.astype(np.float32)
    within(x[:, :, None] * x[:, None, :], TRIL @ TRIL.T)


def test_samples_have_the_probabilities(key):
    q = vd.DiscretizedLogistic(jnp.asarray(0.3), jnp.asarray(0.2), levels=5)
    grid = np.arange(5, dtype=np.float32) / 4
    x = draws(q, jax.random.split(key, 40_000))[0]
    within(x[:, None] == grid, np.exp(scores(q, grid)))
    np.testing.assert_allclose((np.exp(scores(q, grid)) * grid).sum(), q.mean, rtol=1e-5)


def test_discretized_logistic_mean_is_exact(x64):
    q = vd.DiscretizedLogistic(jnp.asarray(DL_LOC), jnp.asarray(DL_SCALE))
    grid = np.arange(256) / 255
    for i in range(3):
        one = vd.DiscretizedLogistic(q.loc[i], q.scale[i])
        np.testing.assert_allclose((np.exp(scores(one, grid)) * grid).sum(), q.mean[i], rtol=1e-10)


def test_pathwise_gradients_of_samples(key):
    """d E[x^2] / d parameters through the samples, against the closed form."""
    cases = [
        (vd.Normal, (0.5, 0.8), (2 * 0.5, 2 * 0.8)),
        (vd.Laplace, (0.5, 0.8), (2 * 0.5, 4 * 0.8)),
        (vd.Uniform, (0.5, 2.0), ((2 * 0.5 + 2.0) / 3, (0.5 + 2 * 2.0) / 3)),
    ]
    for kind, at, truth in cases:
        keys = jax.random.split(jax.random.fold_in(key, len(kind.__name__)), 20_000)
        grad = jax.grad(lambda ab, key, kind=kind: kind(*ab).sample(key) ** 2)
        slopes = jax.vmap(grad, in_axes=(None, 0))(tuple(map(jnp.asarray, at)), keys)
        for slope, expected in zip(slopes, truth, strict=True):
            within(slope, expected)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_the_loop_and_rows_have_their_own_noise(name, key):
    """Checked against: a batched distribution whose rows all received the same noise."""
    q = build(name)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 64), q)
    keys = jax.random.split(key, 64)
    again = jax.random.clone(keys)
    x = jax.vmap(lambda q, key: q.sample(key))(batch, keys)
    log_p = jax.vmap(lambda q, x: q.log_prob(x))(batch, x)
    for i, own in enumerate(again[:3]):
        np.testing.assert_allclose(x[i], q.sample(own), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(log_p[i], q.log_prob(x[i]), rtol=1e-5, atol=1e-6)
    different = {"bernoulli": 4, "categorical": 12, "discretized_logistic": 12}
    rows = len(np.unique(np.asarray(x), axis=0))
    assert rows == 1 if name == "delta" else rows >= different.get(name, 64)


def test_uniform_samples_stay_inside_for_any_rounding(key, monkeypatch):
    ends = jnp.sort(jax.random.normal(key, (2, 2000)) ** 3, axis=0)
    q = vd.Uniform(ends[0], ends[1])
    for noise in (0.0, 1 - 2.0**-23):  # the least and the greatest that jax.random.uniform gives
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, dtype, u=noise: jnp.full(shape, u, dtype)
        )
        assert np.isfinite(q.log_prob(q.sample(jax.random.key(1))))


# Extremes and the support


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -104.0, 104.0, 1e4])
def test_large_logits_are_finite(logit, x):
    """Checked against: log(-expm1(log_sigmoid(l))), which is NaN for label 1 and l >= 104."""
    logit = jnp.asarray(logit)
    right = (logit > 0) == (x == 1)
    for kind in (vd.Bernoulli, vd.ContinuousBernoulli):
        value, grad = jax.value_and_grad(lambda v, kind=kind: kind(v).log_prob(x))(logit)
        expected = 0.0 if right else -abs(logit)
        expected += 0.0 if kind is vd.Bernoulli else np.log(abs(logit))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        mean = kind(logit).mean
        np.testing.assert_allclose(grad, x - mean, atol=1e-6)
        np.testing.assert_allclose(mean, float(logit > 0), atol=1e-2)
    two = jnp.stack([jnp.zeros(()), logit])
    value, grad = jax.value_and_grad(lambda v: vd.Categorical(v).log_prob(jnp.int32(x)))(two)
    np.testing.assert_allclose(value, 0.0 if right else -abs(logit))
    assert np.isfinite(grad).all()


def test_discretized_logistic_far_in_the_tails():
    for x in (0.0, 0.2, 1.0):
        for loc in (-1e4, 1e4):
            at = (jnp.asarray(loc), jnp.asarray(0.01))
            value, grads = jax.value_and_grad(
                lambda at, x=x: vd.DiscretizedLogistic(*at).log_prob(x)
            )(at)
            assert np.isfinite(value) and value <= 0
            assert np.isfinite(grads).all()
    # A distribution far wider than the grid puts next to nothing on an inner level.
    wide = vd.DiscretizedLogistic(jnp.asarray(0.5), jnp.asarray(1e4))
    np.testing.assert_allclose(wide.log_prob(0.2), np.log(1 / 255 / 4e4), rtol=1e-5)


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
    bad = jnp.asarray(OUTSIDE[name])
    value, grad = jax.value_and_grad(lambda q: q.log_prob(bad))(build(name))
    assert value == -jnp.inf
    for leaf in jax.tree.leaves(grad):
        assert np.isfinite(leaf).all()
    if name in ("bernoulli", "continuous_bernoulli", "discretized_logistic"):
        for x in (jnp.inf, -jnp.inf, 1e30, -1 / 15, 16 / 15):
            far = jnp.full(3, x)
            value, grad = jax.value_and_grad(lambda q, far=far: q.log_prob(far))(build(name))
            assert value == -jnp.inf
            for leaf in jax.tree.leaves(grad):
                np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    if name == "categorical":
        assert build(name).log_prob(jnp.array([0, -1, 1])) == -jnp.inf


def test_raw_bytes_are_outside():
    """Stored uint8 images, not yet scaled, must not be scored by accident."""
    x = jnp.array([0, 2, 255], jnp.uint8)
    for name in ("bernoulli", "continuous_bernoulli", "discretized_logistic"):
        assert build(name).log_prob(x) == -jnp.inf, name
    assert vd.DiscretizedLogistic(jnp.zeros(3), jnp.ones(3)).log_prob(x) == -jnp.inf


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_grid_allows_for_rounding(levels):
    k = np.unique(np.linspace(0, levels - 1, 1000).astype(int))
    q = vd.DiscretizedLogistic(jnp.asarray(0.5), jnp.asarray(0.3), levels=levels)
    for x in (k.astype(np.float32) / (levels - 1), k * np.float32(1 / (levels - 1))):
        assert np.isfinite(scores(q, x.astype(np.float32))).all()
    assert (scores(q, (k[:-1].astype(np.float32) + 0.5) / (levels - 1)) == -jnp.inf).all()


def test_mixture_outside_every_component():
    q = vd.Mixture(jnp.zeros(2), vd.Uniform(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0])))
    value, grad = jax.value_and_grad(lambda q: q.log_prob(1.5))(q)
    assert value == -jnp.inf and all((leaf == 0).all() for leaf in jax.tree.leaves(grad))
    value, grad = jax.value_and_grad(lambda q: q.log_prob(0.5))(q)
    np.testing.assert_allclose(value, np.log(0.5), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    np.testing.assert_allclose(grad.logits, [0.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "categorical"])
def test_nan_gives_nan(name):
    x = build(name).mean.at[1].set(jnp.nan)
    assert np.isnan(build(name).log_prob(x))
    if name == "delta":
        assert np.isnan(vd.Delta(x).log_prob(build(name).mean))


def test_bernoulli_of_grey_targets_is_the_cross_entropy():
    x, p = np.array([0.2, 0.9, 0.5]), scipy.special.expit(LOGITS)
    expected = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum()
    np.testing.assert_allclose(build("bernoulli").log_prob(x), expected, rtol=1e-5)


def test_bernoulli_samples_with_the_sigmoid(key):
    """Checked against: softplus(logits) used as a probability when images are drawn."""
    x = draws(build("bernoulli"), jax.random.split(key, 40_000))[0]
    assert set(np.unique(x)) == {0.0, 1.0}
    within(x, scipy.special.expit(LOGITS))
    low = vd.Bernoulli(jnp.full((50_000,), -6.0, jnp.bfloat16)).sample(jax.random.key(1))
    assert low.dtype == jnp.bfloat16
    within(low.astype(jnp.float32), scipy.special.expit(-6.0))


# Pytrees and shapes


@pytest.mark.parametrize("name", NAMES)
def test_is_a_pytree(name, key):
    q = build(name)
    x = q.sample(key)
    shapes = jax.eval_shape(lambda: build(name))
    assert shapes.event_shape == q.event_shape == x.shape
    jitted = jax.jit(lambda q: jax.lax.stop_gradient(q))(q)
    assert jax.tree.structure(jitted) == jax.tree.structure(q)
    np.testing.assert_allclose(jitted.log_prob(x), q.log_prob(x), rtol=1e-6)
    empty = jax.tree.map(lambda leaf: None, q)
    assert type(empty) is type(q) and not jax.tree.leaves(empty)
    axes = jax.tree.map(lambda leaf: 0, q)
    batch = jax.tree.map(lambda leaf: leaf[None], q)
    rows = jax.vmap(lambda q: q.log_prob(x), in_axes=(axes,))(batch)
    np.testing.assert_allclose(rows[0], q.log_prob(x), rtol=1e-5, atol=1e-6)
    frozen = jax.grad(lambda q: jax.lax.stop_gradient(q).log_prob(x))(q)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize("name", NAMES)
def test_shape_mismatch_names_the_fix(name):
    q = build(name)
    kind = type(q).__name__
    x = jnp.zeros((5, 3), jnp.int32)
    text = rf"{kind}\.log_prob: expected one event of shape \(3,\), got \(5, 3\); map it: jax\.vmap"
    with pytest.raises(ValueError, match=text):
        q.log_prob(x)
    with pytest.raises(ValueError, match=rf"{kind}\.log_prob: .*got \(\)"):
        jax.jit(q.log_prob)(jnp.zeros(()))


def test_categorical_wants_integers():
    with pytest.raises(TypeError, match=r"expected integer classes, got float32.*astype"):
        build("categorical").log_prob(jnp.zeros(3))


def test_categorical_class_ruled_out(key):
    q = vd.Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    assert q.log_prob(1) == -jnp.inf
    np.testing.assert_allclose(q.log_prob(0), np.log(0.5), rtol=1e-6)
    assert 1 not in draws(q, jax.random.split(key, 200))[0]
    grad = jax.grad(lambda q: q.log_prob(0))(q)
    np.testing.assert_allclose(grad.logits, [0.5, 0, -0.5])
    p = vd.Categorical(jnp.zeros(3))
    np.testing.assert_allclose(kl(q, p), np.log(1.5), rtol=1e-6)
    assert np.isfinite(jax.grad(kl)(q, p).logits).all()
    assert kl(p, q) == jnp.inf


def test_mixture_counts_its_components(key):
    wrong = vd.Mixture(jnp.zeros(3), vd.Normal(jnp.zeros((2, 4)), jnp.ones((2, 4))))
    shared = vd.Mixture(jnp.zeros(2), vd.Normal(jnp.zeros((2, 4)), jnp.ones(())))
    for q in (wrong, shared):
        for use in (lambda q: q.log_prob(jnp.zeros(4)), lambda q: q.sample(key), lambda q: q.mean):
            with pytest.raises(ValueError, match=r"Mixture: expected logits \[k\].*jax\.vmap"):
                use(q)


def test_mixtures_of_discrete_distributions(key):
    q = vd.Mixture(jnp.array([0.3, -0.2]), vd.Bernoulli(jnp.array([[-1.0, 2.0], [0.5, -2.0]])))
    x = jnp.array(list(itertools.product([0.0, 1.0], repeat=2)))
    p = np.exp(scores(q, x))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(p @ x, q.mean, rtol=1e-5)
    assert q.discrete and not build("mixture").discrete
    classes = vd.Mixture(jnp.zeros(2), vd.Categorical(jax.random.normal(key, (2, 3, 4))))
    assert classes.event_shape == (3,) and classes.mean.shape == (3, 4)
    grid = vd.Mixture(jnp.zeros(2), vd.DiscretizedLogistic(jnp.zeros(2), jnp.ones(2), levels=3))
    np.testing.assert_allclose(np.exp(scores(grid, jnp.arange(3) / 2)).sum(), 1, rtol=1e-6)


# Kullback-Leibler divergence


def pairs(name):
    a = jnp.asarray
    return {
        "normal": lambda: (build("normal"), vd.Normal(a(LOC2), a(SCALE2))),
        "normal_scalar": lambda: (build("normal"), vd.Normal(a(0.3), jnp.ones(3))),
        "multivariate": lambda: (build("multivariate"), vd.MultivariateNormal(a(LOC2), a(TRIL2))),
        "multivariate_normal": lambda: (build("multivariate"), vd.Normal(a(LOC2), a(SCALE2))),
        "multivariate_scalar": lambda: (build("multivariate"), vd.Normal(a(LOC2), a(1.5))),
        "normal_multivariate": lambda: (
            build("normal_scalar_scale"),
            vd.MultivariateNormal(a(LOC2), a(TRIL2)),
        ),
        "laplace": lambda: (build("laplace"), vd.Laplace(a(LOC2), a(SCALE2))),
        "bernoulli": lambda: (build("bernoulli"), vd.Bernoulli(a(LOC2))),
        "categorical": lambda: (build("categorical"), vd.Categorical(a(CLASSES[::-1].copy()))),
        "uniform": lambda: (build("uniform"), vd.Uniform(a(LOC - 0.1), a(LOC + 2 * SCALE))),
    }[name]()


PAIRS = [
    "normal",
    "normal_scalar",
    "multivariate",
    "multivariate_normal",
    "multivariate_scalar",
    "normal_multivariate",
    "laplace",
    "bernoulli",
    "categorical",
    "uniform",
]


@pytest.mark.parametrize("name", PAIRS)
def test_kl_is_the_mean_log_ratio(name, key):
    q, p = pairs(name)
    x, log_q = draws(q, jax.random.split(key, 40_000))
    value = kl(q, p)
    assert value.shape == () and value > 0.01
    within(log_q - scores(p, x), value)


@pytest.mark.parametrize("name", PAIRS)
def test_kl_of_equals_is_zero(name, x64):
    q, p = pairs(name)
    np.testing.assert_allclose([kl(q, q), kl(p, p)], 0, atol=1e-12)
    grads = jax.grad(kl, argnums=(0, 1))(q, q)
    if name != "uniform":  # whose KL is a corner there
        for leaf in jax.tree.leaves(grads):
            np.testing.assert_allclose(leaf, 0, atol=1e-12)


def test_kl_enumerated(x64):
    """Discrete pairs by summing over all events."""
    for name, values in (("bernoulli", [0.0, 1.0]), ("categorical", range(4))):
        q, p = pairs(name)
        x = jnp.asarray(list(itertools.product(values, repeat=3)))
        log_q, log_p = scores(q, x), scores(p, x)
        np.testing.assert_allclose(kl(q, p), (np.exp(log_q) * (log_q - log_p)).sum(), rtol=1e-10)


def test_kl_of_gaussians_agrees_between_forms(x64):
    """The same Gaussians, written as diagonal and as full."""
    q, p = pairs("normal")
    full_q = vd.MultivariateNormal(q.loc, jnp.diag(q.scale))
    full_p = vd.MultivariateNormal(p.loc, jnp.diag(p.scale))
    expected = kl(q, p)
    for pair in ((full_q, full_p), (full_q, p), (q, full_p)):
        np.testing.assert_allclose(kl(*pair), expected, rtol=1e-12)
    by_hand = np.log(SCALE2 / SCALE) + (SCALE**2 + (LOC - LOC2) ** 2) / (2 * SCALE2**2) - 0.5
    np.testing.assert_allclose(expected, by_hand.sum(), rtol=1e-12)


@pytest.mark.parametrize("a", [-1e4, -20.0, 0.0, 20.0, 1e4])
@pytest.mark.parametrize("b", [-1e4, -20.0, 0.0, 20.0, 1e4])
def test_kl_of_bernoullis_at_large_logits(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = scipy.special.expit(a)
        expected = p * (np.logaddexp(0, -b) - np.logaddexp(0, -a)) + scipy.special.expit(-a) * (
            np.logaddexp(0, b) - np.logaddexp(0, a)
        )
    at = (vd.Bernoulli(jnp.asarray(a)), vd.Bernoulli(jnp.asarray(b)))
    value, grads = jax.value_and_grad(kl, argnums=(0, 1))(*at)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-8)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(grads))
    two = [vd.Categorical(jnp.array([0.0, v])) for v in (a, b)]
    assert np.isfinite(kl(*two)) and kl(*two) >= 0


def test_kl_of_uniforms_not_contained():
    q, p = vd.Uniform(0.0, jnp.array([1.0, 1.0])), vd.Uniform(0.0, jnp.array([2.0, 0.9]))
    assert kl(q, p) == jnp.inf
    np.testing.assert_allclose(
        kl(p, vd.Uniform(-1.0, jnp.full(2, 3.0))), np.log(2 * 4 / 0.9), rtol=1e-6
    )


def test_kl_of_a_delta():
    x = jnp.array([0.0, 1.0, 1.0])
    for name in ("bernoulli", "discretized_logistic"):
        np.testing.assert_allclose(kl(vd.Delta(x), build(name)), -build(name).log_prob(x))
    classes = jnp.array([0, 3, 1])
    q = build("categorical")
    np.testing.assert_allclose(kl(vd.Delta(classes), q), -q.log_prob(classes))
    assert kl(vd.Delta(x), vd.Delta(x)) == 0 and kl(vd.Delta(x), vd.Delta(x + 1)) == jnp.inf
    for name in DENSITIES:
        with pytest.raises(
            TypeError, match=r"Delta is discrete .* not defined.*leave the term out"
        ):
            kl(vd.Delta(x), build(name))
    with pytest.raises(TypeError, match="Normal is a density and Bernoulli is discrete"):
        kl(build("normal"), build("bernoulli"), sample=(x, jnp.zeros(())))


def test_kl_without_a_closed_form_wants_a_sample(key):
    q = vd.Normal(jnp.asarray(0.2), jnp.asarray(0.5))
    p = vd.Mixture(jnp.zeros(2), vd.Laplace(jnp.array([-1.0, 1.0]), jnp.array([0.5, 1.0])))
    with pytest.raises(
        TypeError, match=r"KL\(Normal \|\| Mixture\).*sample=q\.sample_and_log_prob"
    ):
        kl(q, p)
    one = jax.jit(jax.vmap(lambda key: kl(q, p, sample=q.sample_and_log_prob(key))))
    x = 0.2 + np.linspace(-5, 5, 20_001)
    log_q, log_p = scipy.stats.norm.logpdf(x, 0.2, 0.5), scores(p, x)
    within(
        one(jax.random.split(key, 40_000)), (np.exp(log_q) * (log_q - log_p)).sum() * 10 / 20_000
    )
    # Where there is a closed form, the sample is not looked at.
    exact = kl(q, q, sample=(jnp.nan, jnp.nan))
    np.testing.assert_allclose(exact, 0, atol=1e-6)


def test_kl_wants_one_event_shape():
    with pytest.raises(
        ValueError, match=r"kl: .*Normal over \(3,\) and Normal over \(2, 3\).*vmap"
    ):
        kl(build("normal"), vd.Normal(jnp.zeros((2, 3)), jnp.ones(())))
    with pytest.raises(ValueError, match=r"as many classes, got logits of shape \(3, 4\)"):
        kl(build("categorical"), vd.Categorical(jnp.zeros((3, 5))))


def test_kl_maps_over_batches():
    q = vd.Normal(jnp.zeros((5, 3)), jnp.ones((5, 3)))
    p = vd.Normal(jnp.ones((5, 3)), jnp.ones((5, 3)))
    np.testing.assert_allclose(jax.jit(jax.vmap(kl))(q, p), np.full(5, 1.5), rtol=1e-6)


def test_bernoulli_softplus_has_every_derivative_also_at_zero(x64):
    """log(1 + exp(l)): at l = 0 a derivative through max and abs would be 0 where it is 1/4."""
    logits = np.array([-800.0, -30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 800.0])

    def log_p(logit):
        return vd.Bernoulli(logit).log_prob(jnp.zeros(()))

    s = scipy.special.expit(logits)
    expected = -np.logaddexp(0, logits), -s, -s * (1 - s)
    function = log_p
    for truth in expected:
        np.testing.assert_allclose(jax.vmap(function)(jnp.asarray(logits)), truth, rtol=1e-12)
        function = jax.grad(function)


def test_bernoulli_in_single_precision_is_exact_to_rounding():
    """784 terms against double precision: no worse than the library softplus."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 784), scale=5).astype(np.float32)
    x = rng.uniform(size=784).round()
    double = logits.astype(np.float64)
    exact = (x * double - np.logaddexp(0, double)).sum(-1)
    got = jax.vmap(lambda row: vd.Bernoulli(row).log_prob(jnp.asarray(x, jnp.float32)))(logits)
    np.testing.assert_allclose(got, exact, rtol=1e-6)


@pytest.mark.parametrize("scalar", [False, True])
def test_an_image_scores_as_its_pixels_in_a_row(scalar):
    rng = np.random.default_rng(4)
    loc, x = rng.normal(size=(2, 4, 3, 1)).astype(np.float32)
    scale = np.float32(0.7) if scalar else rng.uniform(0.5, 2, (3, 1)).astype(np.float32)
    whole = np.broadcast_to(scale, loc.shape)
    expected = scipy.stats.norm.logpdf(x, loc, whole).sum()
    assert vd.Normal(loc, scale).log_prob(x) == pytest.approx(expected, rel=1e-6)
    q = vd.Bernoulli(loc)
    x = (x > 0).astype(np.float32)
    assert q.log_prob(x) == pytest.approx(vd.Bernoulli(loc.ravel()).log_prob(x.ravel()))


def test_public_docstrings_say_something():
    for kind in vars(vd).values():
        if isinstance(kind, type) and issubclass(kind, vd.Distribution):
            assert len(kind.__doc__) >= 60
    assert len(kl.__doc__) >= 60
    for method in ("sample", "log_prob", "sample_and_log_prob"):
        assert len(getattr(vd.Distribution, method).__doc__) >= 60


def structures_differ(classes):
    """As many fields, but never one structure, which is what compiled functions go by."""
    trees = [jax.tree.structure(cls(1.0, 2.0)) for cls in classes]
    assert all(a != b for a, b in itertools.combinations(trees, 2)), trees


def test_two_distributions_never_share_a_compiled_program():
    """Checked against structures that compare equal whatever the class, as in jax 0.10.2."""
    structures_differ([vd.Normal, vd.Laplace, vd.Uniform])
    coins = jax.tree.structure(vd.Bernoulli(1.0)), jax.tree.structure(vd.ContinuousBernoulli(1.0))
    assert coins[0] != coins[1]
    sixteen, more = (vd.DiscretizedLogistic(0.0, 1.0, levels) for levels in (16, 256))
    assert jax.tree.structure(sixteen) != jax.tree.structure(more)
    with pytest.raises(AssertionError):
        structures_differ([vd.Normal, lambda *args: vd.Normal(*args)])
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(vd.Normal(1.0, 2.0))[1][0]) == (
        ".scale"
    )
