"""One example of each distribution, its log-probability by scipy, and compiled means to use it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from vaejax import distributions as vd

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
            cdf, sf = st.logistic.cdf, st.logistic.sf
            by_cdf = cdf(upper, DL_LOC, DL_SCALE) - cdf(lower, DL_LOC, DL_SCALE)
            by_sf = sf(lower, DL_LOC, DL_SCALE) - sf(upper, DL_LOC, DL_SCALE)
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
DISCRETE = ("bernoulli", "categorical", "delta", "discretized_logistic")
DENSITIES = [name for name in NAMES if name not in DISCRETE]


def events(name):
    """Eight events inside the support, for the grid both of its ends too, in double precision."""
    rng = np.random.default_rng(1)
    uniform = rng.uniform(0.02, 0.98, (8, 3))
    match name:
        case "uniform":
            return LOC + SCALE * uniform
        case "continuous_bernoulli":
            return uniform
        case "bernoulli":
            return rng.integers(0, 2, (8, 3)).astype(float)
        case "categorical":
            return rng.integers(0, 4, (8, 3)).astype(np.int32)
        case "delta":
            return np.tile(LOC, (8, 1))
        case "discretized_logistic":
            return np.array([[0, 15, 0], [15, 0, 15], *rng.integers(0, 16, (6, 3))]) / 15
    return LOC + SCALE * rng.normal(size=(8, 3))


compiled_draws = jax.jit(lambda q, keys: jax.vmap(q.sample_and_log_prob)(keys))
compiled_scores = jax.jit(lambda q, x: jax.vmap(q.log_prob)(x))
compiled_mean = jax.jit(lambda q: q.mean)
value_and_slope = jax.jit(
    lambda q, x: jax.vmap(jax.value_and_grad(lambda q, x: q.log_prob(x)), (None, 0))(q, x)
)


def draws(distribution, keys):
    """Samples and their log-probabilities, a row for each key, as NumPy arrays."""
    return tuple(map(np.asarray, compiled_draws(distribution, keys)))


@functools.cache
def many_draws(name):
    """40,000 samples of an example, and their log-probabilities."""
    return draws(build(name), jax.random.split(jax.random.key(0), 40_000))


def scores(distribution, x):
    """log p of every row of x, as a NumPy array."""
    return np.asarray(compiled_scores(distribution, x))


def within(samples, truth, errors=5.0):
    """The mean of the samples is the truth, to this many standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0) / np.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(0) - truth), errors * error + 1e-6)
