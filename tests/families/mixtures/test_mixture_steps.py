"""The E step, the M step and the bound against scipy, closed forms and brute force.

Tolerances were chosen before the numbers were seen.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests.families.mixtures.shared import (
    BITS,
    FITS,
    POINTS,
    N,
    mixture_of,
)
from vaejax import mixtures
from vaejax.distributions import Bernoulli, Mixture, MultivariateNormal, Normal
from vaejax.families.mixtures import (
    e_step,
    elbo,
    log_joint,
    m_step,
    responsibilities,
)


def oracle_log_joint(mixture, x):
    """[n, k] by scipy in double precision."""
    log_w = special.log_softmax(np.asarray(mixture.logits, float))
    match mixture.components:
        case Bernoulli(logits):
            p = special.expit(np.asarray(logits, float))
            log_p = [stats.bernoulli.logpmf(x.astype(int), one).sum(axis=1) for one in p]
        case Normal(loc, scale):
            pairs = zip(loc, scale, strict=True)
            log_p = [stats.norm.logpdf(x, m, s).sum(axis=1) for m, s in pairs]
        case MultivariateNormal(loc, tril):
            pairs = zip(np.asarray(loc, float), np.asarray(tril, float), strict=True)
            log_p = [stats.multivariate_normal(m, L @ L.T).logpdf(x) for m, L in pairs]
    return log_w + np.stack(log_p, axis=1)


class Found(NamedTuple):
    expectation: mixtures.Expectation
    one: jax.Array  # p(j|x) of one example
    mapped: jax.Array  # log p(x) as the distribution has it
    bound: jax.Array  # at any q
    tight: jax.Array  # at the posterior


@jax.jit
def all_of(mixture, x, q):
    """What the steps find, in batches of 100 with a ragged end."""
    expectation = e_step(mixture, x, batch_size=100)
    return Found(
        expectation,
        responsibilities(mixture, x[7]),
        jax.vmap(mixture.log_prob)(x),
        elbo(mixture, q, x, batch_size=100),
        elbo(mixture, expectation.responsibilities, x, batch_size=100),
    )


@pytest.fixture(scope="module", params=FITS)
def steps(request):
    """A mixture of each family, its data, a q, and what the steps find."""
    mixture, x = mixture_of(request.param), FITS[request.param][1]
    q = np.random.default_rng(1).dirichlet(np.ones(3), size=N).astype(np.float32)
    q[0] = [0, 1, 0]  # 0 log 0 = 0
    return mixture, x, q, all_of(mixture, x, q)


def test_the_e_step_is_bayes_rule(steps):
    mixture, x, _, found = steps
    joint = oracle_log_joint(mixture, x)
    expectation = found.expectation
    np.testing.assert_allclose(expectation.log_px, special.logsumexp(joint, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        expectation.responsibilities, special.softmax(joint, axis=1), atol=1e-5
    )
    np.testing.assert_allclose(found.one, expectation.responsibilities[7], atol=1e-6)
    np.testing.assert_allclose(found.mapped, expectation.log_px, rtol=1e-5, atol=1e-5)


def test_log_p_is_the_bound_plus_the_divergence_from_the_posterior(steps):
    mixture, x, q, found = steps
    joint = oracle_log_joint(mixture, x)
    log_posterior = joint - special.logsumexp(joint, axis=1, keepdims=True)
    divergence = np.sum(special.xlogy(q, q) - q * log_posterior, axis=1)
    log_px = found.expectation.log_px
    np.testing.assert_allclose(found.bound + divergence, log_px, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.tight, log_px, rtol=1e-5, atol=1e-5)


def allowed(mixture, floor):
    """The nearest mixture that respects the floor."""
    match mixture.components:
        case Bernoulli(logits):
            bound = special.logit(1 - floor)
            return Mixture(mixture.logits, Bernoulli(np.clip(logits, -bound, bound)))
        case Normal(loc, scale):
            return Mixture(mixture.logits, Normal(loc, np.maximum(scale, floor)))
        case MultivariateNormal(loc, tril):
            tril = np.tril(tril)
            values, vectors = np.linalg.eigh(tril @ tril.mT)
            clipped = vectors * np.maximum(values, floor**2)[..., None, :] @ vectors.mT
            return Mixture(mixture.logits, MultivariateNormal(loc, np.linalg.cholesky(clipped)))


def check_maximal(family, m_step, floor):
    """The M step respects the floor, and no allowed mixture near it is better at its q."""
    x = FITS[family][1].astype(float)
    start = allowed(mixture_of(family, dtype=np.float64), floor)
    q = e_step(start, x).responsibilities
    best = jax.tree.map(np.asarray, m_step(start, x, q, floor=floor))
    rng = np.random.default_rng(2)

    def objective(mixture):
        return float(np.mean(elbo(mixture, q, x)))

    top = objective(best)
    assert top == pytest.approx(objective(allowed(best, floor)), rel=1e-9)
    assert top >= objective(start)
    for size in [1e-3, 1e-2, 1e-1] * 10:
        near = jax.tree.map(lambda v, s=size: v + s * rng.normal(size=np.shape(v)), best)
        assert objective(allowed(near, floor)) <= top + 1e-12


@pytest.mark.parametrize("floor", [1e-3, 0.2])
@pytest.mark.parametrize("family", FITS)
def test_the_m_step_is_the_constrained_maximum(family, floor, x64):
    """With the floor out of reach, and where it binds."""
    floor = 4 * floor if family != "bernoulli" else floor
    check_maximal(family, m_step, floor)


def test_pseudo_counts_would_not_be_that_maximum(x64):
    """Checked against adding to the counts: the likelihood may then fall from step to step."""

    def smoothed(mixture, x, q, *, floor):
        q = np.asarray(q)
        counts = q.sum(axis=0)[:, None]
        p = (q.T @ x + 1) / (counts + 2)
        return Mixture(np.log(counts[:, 0]), Bernoulli(special.logit(p)))

    with pytest.raises(AssertionError):
        check_maximal("bernoulli", smoothed, 1e-3)


def test_variances_keep_their_digits_far_from_the_origin():
    """Checked against E[x^2] - mean^2, which in single precision gives 0 or worse here."""

    def check(variances):
        x = POINTS + np.float32(5000)
        found = variances(x, np.tile(np.array([[1, 0, 0]], np.float32), (N, 1)))
        exact = np.var(x.astype(float), axis=0)
        np.testing.assert_allclose(found, exact, rtol=1e-3)

    def ours(x, q, family="gaussian"):
        components = jax.tree.map(np.asarray, m_step(mixture_of(family), x, q).components)
        if family == "full":
            return np.diag(components.scale_tril[0] @ components.scale_tril[0].T)
        return components.scale[0] ** 2

    check(ours)
    check(partial(ours, family="full"))
    with pytest.raises(AssertionError):
        check(lambda x, q: (x**2).mean(axis=0) - x.mean(axis=0) ** 2)


def test_log_densities_are_summed_over_the_event():
    """Checked against a mean over pixels: twice the pixels, twice the nats."""
    one = mixture_of("bernoulli")
    two = Mixture(one.logits, Bernoulli(np.tile(one.components.logits, 2)))
    log_w = special.log_softmax(one.logits)

    def check(log_joint):
        single = log_joint(one, BITS[0]) - log_w
        double = log_joint(two, np.tile(BITS[0], 2)) - log_w
        np.testing.assert_allclose(double, 2 * single, rtol=1e-5)

    ours = jax.jit(log_joint)

    def averaged(mixture, x):
        return log_w + (ours(mixture, x) - log_w) / x.size

    check(ours)
    with pytest.raises(AssertionError):
        check(averaged)


def test_every_example_counts_once_also_in_a_ragged_end(steps):
    """Checked against the whole batches alone, and against the sign of a loss."""
    mixture, x, _, found = steps

    def check(mean_log_px):
        exact = special.logsumexp(oracle_log_joint(mixture, x), axis=1).mean()
        assert mean_log_px == pytest.approx(exact, rel=1e-5)

    log_px = np.asarray(found.expectation.log_px)
    check(log_px.mean())
    for mistaken in (log_px[:200].mean(), -log_px.mean()):
        with pytest.raises(AssertionError):
            check(mistaken)


def test_extreme_logits_stay_finite():
    """Checked against log(-expm1(log_sigmoid)), which is NaN or infinite at large logits."""
    x = np.array([1.0, 0, 1, 0], np.float32)
    logits = np.array([[1e4, 1e4, -1e4, -1e4], [0.5, 0, 0, 0]], np.float32)

    def check(log_joint):
        def total(logits):
            return log_joint(Mixture(jnp.zeros(2), Bernoulli(logits)), x)

        expected = np.log(0.5) + np.array(
            [-2e4, -4 * np.log(2) + 0.5 - np.log1p(np.expm1(0.5) / 2)]
        )
        value, jacobian = jax.jit(lambda logits: (total(logits), jax.jacobian(total)(logits)))(
            logits
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.isfinite(jacobian).all()

    def mistaken(mixture, x):
        log_one = jax.nn.log_sigmoid(mixture.components.logits)
        log_zero = jnp.log(-jnp.expm1(log_one))
        return jnp.log(0.5) + jnp.sum(x[None] * log_one + (1 - x[None]) * log_zero, axis=1)

    check(log_joint)
    with pytest.raises(AssertionError):
        check(mistaken)
