"""EM against closed forms, brute force, scikit-learn from the same start, and planted mixtures.

Tolerances were chosen before the numbers were seen.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn.mixture import GaussianMixture

from vaejax import data, mixtures
from vaejax.distributions import Bernoulli, Laplace, Mixture, MultivariateNormal, Normal
from vaejax.families.mixtures import (
    e_step,
    elbo,
    fit,
    fit_bernoulli,
    fit_full_gaussian,
    fit_gaussian,
    log_joint,
    m_step,
    responsibilities,
)
from vaejax.types import Batch

N = 240
RNG = np.random.default_rng(0)
CENTRES = np.array([[0.0, 0, 0], [6, 0, 3], [0, 7, -4]], np.float32)
LABELS = np.arange(N) % 3
POINTS = (CENTRES[LABELS] + RNG.normal(size=(N, 3)) * [0.5, 1, 1.5]).astype(np.float32)
PROBABILITIES = np.repeat(np.eye(3) * 0.8 + 0.1, 4, axis=1)  # [3, 12], four pixels on for each
BITS = (RNG.uniform(size=(N, 12)) < PROBABILITIES[LABELS]).astype(np.float32)
OVERLAPPING = RNG.normal(size=(N, 3)).astype(np.float32) * np.array([1, 2, 0.5], np.float32)
FITS = {
    "bernoulli": (fit_bernoulli, BITS),
    "gaussian": (fit_gaussian, OVERLAPPING),
    "full": (fit_full_gaussian, OVERLAPPING),
}


def mixture_of(family, seed=0, k=3, dtype=np.float32):
    """Any mixture of the family, over 12 bits or 3 numbers."""
    rng = np.random.default_rng(seed)
    logits, loc = rng.normal(size=k).astype(dtype), rng.normal(size=(k, 3)).astype(dtype)
    tril = np.tril(rng.normal(size=(k, 3, 3)) / 2 + 1.5 * np.eye(3)).astype(dtype)
    return Mixture(
        logits,
        {
            "bernoulli": lambda: Bernoulli(rng.normal(size=(k, 12)).astype(dtype)),
            "gaussian": lambda: Normal(loc, np.exp(rng.normal(size=(k, 3))).astype(dtype)),
            "full": lambda: MultivariateNormal(loc, tril),
        }[family](),
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


# ---------------------------------------------------------------- the steps


@pytest.mark.parametrize("family", FITS)
def test_the_e_step_is_bayes_rule(family):
    mixture, x = mixture_of(family), FITS[family][1]
    joint = oracle_log_joint(mixture, x)
    found = e_step(mixture, x, batch_size=100)  # a ragged end too
    np.testing.assert_allclose(found.log_px, special.logsumexp(joint, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.responsibilities, special.softmax(joint, axis=1), atol=1e-5)
    one = responsibilities(mixture, x[7])
    np.testing.assert_allclose(one, found.responsibilities[7], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(mixture.log_prob)(x), found.log_px, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FITS)
def test_log_p_is_the_bound_plus_the_divergence_from_the_posterior(family):
    mixture, x = mixture_of(family), FITS[family][1]
    q = np.random.default_rng(1).dirichlet(np.ones(3), size=N).astype(np.float32)
    q[0] = [0, 1, 0]  # 0 log 0 = 0
    found = e_step(mixture, x, batch_size=100)
    joint = oracle_log_joint(mixture, x)
    log_posterior = joint - special.logsumexp(joint, axis=1, keepdims=True)
    divergence = np.sum(special.xlogy(q, q) - q * log_posterior, axis=1)
    bound = elbo(mixture, q, x, batch_size=100)
    np.testing.assert_allclose(bound + divergence, found.log_px, rtol=1e-4, atol=1e-4)
    tight = elbo(mixture, found.responsibilities, x, batch_size=100)
    np.testing.assert_allclose(tight, found.log_px, rtol=1e-5, atol=1e-5)


def allowed(mixture, floor):
    """The nearest mixture that respects the floor."""
    match mixture.components:
        case Bernoulli(logits):
            bound = special.logit(1 - floor)
            return Mixture(mixture.logits, Bernoulli(jnp.clip(logits, -bound, bound)))
        case Normal(loc, scale):
            return Mixture(mixture.logits, Normal(loc, jnp.maximum(scale, floor)))
        case MultivariateNormal(loc, tril):
            values, vectors = jnp.linalg.eigh(jnp.tril(tril) @ jnp.tril(tril).mT)
            clipped = vectors * jnp.maximum(values, floor**2)[..., None, :] @ vectors.mT
            return Mixture(mixture.logits, MultivariateNormal(loc, jnp.linalg.cholesky(clipped)))


def check_maximal(family, m_step, floor):
    """The M step respects the floor, and no allowed mixture near it is better at its q."""
    x = jnp.asarray(FITS[family][1], float)
    start = allowed(mixture_of(family), floor)
    q = e_step(start, x).responsibilities
    best, rng = m_step(start, x, q, floor=floor), np.random.default_rng(2)

    def objective(mixture):
        return float(elbo(mixture, q, x).mean())

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
        counts = q.sum(axis=0)[:, None]
        p = (q.T @ x + 1) / (counts + 2)
        return Mixture(jnp.log(counts[:, 0]), Bernoulli(jnp.log(p) - jnp.log1p(-p)))

    with pytest.raises(AssertionError):
        check_maximal("bernoulli", smoothed, 1e-3)


def test_variances_keep_their_digits_far_from_the_origin():
    """Checked against E[x^2] - mean^2, which in single precision gives 0 or worse here."""

    def check(variances):
        x = POINTS + np.float32(5000)
        found = variances(x, np.full((N, 1), 1, np.float32))
        exact = np.var(x.astype(float), axis=0)
        np.testing.assert_allclose(found, exact, rtol=1e-3)

    def ours(x, q, family="gaussian"):
        scale = m_step(mixture_of(family, k=1), x, q).components
        if family == "full":
            return jnp.diag(scale.scale_tril[0] @ scale.scale_tril[0].T)
        return scale.scale[0] ** 2

    check(ours)
    check(partial(ours, family="full"))
    with pytest.raises(AssertionError):
        check(lambda x, q: (x**2).mean(axis=0) - x.mean(axis=0) ** 2)


def test_mistake_12_the_event_is_summed_not_averaged():
    """Checked against a mean over pixels: twice the pixels, twice the nats."""

    def check(log_joint):
        one = mixture_of("bernoulli")
        two = Mixture(one.logits, Bernoulli(np.tile(one.components.logits, 2)))
        log_w = jax.nn.log_softmax(jnp.asarray(one.logits))
        single = log_joint(one, BITS[0]) - log_w
        double = log_joint(two, np.tile(BITS[0], 2)) - log_w
        np.testing.assert_allclose(double, 2 * single, rtol=1e-5)

    def averaged(mixture, x):
        log_w = jax.nn.log_softmax(jnp.asarray(mixture.logits))
        return log_w + (log_joint(mixture, x) - log_w) / x.size

    check(log_joint)
    with pytest.raises(AssertionError):
        check(averaged)


def test_mistake_14_every_example_counts_once_also_in_a_ragged_end():
    """Checked against the whole batches alone, and against the sign of a loss."""

    def check(mean_log_px):
        mixture = mixture_of("bernoulli")
        exact = special.logsumexp(oracle_log_joint(mixture, BITS), axis=1).mean()
        assert mean_log_px(mixture, BITS) == pytest.approx(exact, rel=1e-5)

    check(lambda mixture, x: e_step(mixture, x, batch_size=100).log_px.mean())
    for mistaken in [
        lambda mixture, x: e_step(mixture, x, batch_size=100).log_px[:200].mean(),
        lambda mixture, x: -e_step(mixture, x, batch_size=100).log_px.mean(),
    ]:
        with pytest.raises(AssertionError):
            check(mistaken)


def test_mistake_18_extreme_logits_stay_finite():
    """Checked against log(-expm1(log_sigmoid)), which is NaN or infinite at large logits."""
    x = jnp.array([1.0, 0, 1, 0])
    logits = jnp.array([[1e4, 1e4, -1e4, -1e4], [0.5, 0, 0, 0]])

    def check(log_joint):
        def total(logits):
            return log_joint(Mixture(jnp.zeros(2), Bernoulli(logits)), x)

        expected = np.log(0.5) + np.array(
            [-2e4, -4 * np.log(2) + 0.5 - np.log1p(np.expm1(0.5) / 2)]
        )
        np.testing.assert_allclose(total(logits), expected, rtol=1e-5)
        assert np.isfinite(jax.jacobian(total)(logits)).all()

    def mistaken(mixture, x):
        log_one = jax.nn.log_sigmoid(mixture.components.logits)
        log_zero = jnp.log(-jnp.expm1(log_one))
        return jnp.log(0.5) + jnp.sum(x[None] * log_one + (1 - x[None]) * log_zero, axis=1)

    check(log_joint)
    with pytest.raises(AssertionError):
        check(mistaken)


# ---------------------------------------------------------------- the fit


def check_monotone(history, rounding):
    assert np.all(np.diff(history) >= -rounding)


@pytest.mark.parametrize("family", FITS)
def test_the_likelihood_never_falls(family, x64):
    """From a poor start, over many steps, also where the floor binds: in double precision."""
    x = jnp.asarray(FITS[family][1], float)
    start = mixture_of(family, k=5, dtype=np.float64)
    for floor in [1e-3, 0.2]:
        # The start may break the floor: it does not count.
        first = m_step(start, x, e_step(start, x).responsibilities, floor=floor)
        found = fit(first, x, floor=floor, iterations=60, tolerance=-1.0)
        assert len(found.history) == 61 and not found.converged
        check_monotone(found.history, 1e-12)
        assert found.history[-1] > found.history[0] + 1e-3


def test_steps_that_are_not_maxima_would_be_seen_to_fall(x64):
    """Checked against pseudo-counts of one half-example on each side: from their own maximum
    likelihood start they lose at once."""
    x, floor = jnp.asarray(BITS, float), 1e-3
    best = fit(mixture_of("bernoulli", dtype=np.float64), x, tolerance=0.0).mixture
    q = e_step(best, x).responsibilities
    p = (q.T @ x + 0.5) / (q.sum(axis=0)[:, None] + 1)
    smoothed = Mixture(best.logits, Bernoulli(jnp.log(p) - jnp.log1p(-p)))
    history = [e_step(m, x).log_px.mean() for m in (best, smoothed)]
    with pytest.raises(AssertionError):
        check_monotone(np.array(history), 1e-12)
    again = m_step(best, x, q, floor=floor)
    check_monotone(np.array([history[0], e_step(again, x).log_px.mean()]), 1e-12)


def test_single_precision_never_falls_beyond_rounding():
    for fitted in (
        fit_bernoulli(BITS, 3, key=jax.random.key(1), tolerance=0.0),
        fit_gaussian(OVERLAPPING, 3, key=jax.random.key(1), tolerance=0.0),
    ):
        check_monotone(fitted.history, 1e-5)


@pytest.mark.parametrize("family", ["gaussian", "full"])
def test_the_same_start_gives_what_scikit_learn_gives(family, x64):
    start = mixture_of(family, seed=3, dtype=np.float64)
    x = OVERLAPPING.astype(float)
    loc, weights = np.asarray(start.components.loc), np.asarray(jax.nn.softmax(start.logits))
    if family == "gaussian":
        kind, precisions = "diag", 1 / np.asarray(start.components.scale) ** 2
    else:
        tril = start.components.scale_tril
        kind, precisions = "full", np.linalg.inv(tril @ tril.mT)
    with np.errstate(all="ignore"), pytest.warns(Warning, match="did not converge"):
        theirs = GaussianMixture(
            3,
            covariance_type=kind,
            tol=0.0,
            max_iter=25,
            reg_covar=0.0,
            weights_init=weights,
            means_init=loc,
            precisions_init=precisions,
        ).fit(x)
    # Our floor must not bind; their last number is that of one M step more than they report.
    ours = fit(start, x, floor=1e-6, iterations=25, tolerance=-1.0)
    assert ours.history[-1] == pytest.approx(theirs.score(x), rel=1e-9)
    np.testing.assert_allclose(ours.mixture.components.loc, theirs.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jax.nn.softmax(ours.mixture.logits), theirs.weights_, rtol=1e-6)


def test_bernoullis_against_a_loop_over_examples(x64):
    """EM written out in numpy, one example after the other, on a case that can be read."""
    x = BITS[:20, :3].astype(float)
    p, w = np.array([[0.3, 0.6, 0.5], [0.7, 0.4, 0.2]]), np.array([0.4, 0.6])
    start = Mixture(jnp.log(w), Bernoulli(jnp.log(p / (1 - p))))
    for _ in range(7):
        q = np.zeros((20, 2))
        for n in range(20):
            for j in range(2):
                q[n, j] = w[j] * np.prod([p[j, i] if x[n, i] else 1 - p[j, i] for i in range(3)])
            q[n] /= q[n].sum()
        w = q.mean(axis=0)
        p = np.clip(q.T @ x / q.sum(axis=0)[:, None], 1e-3, 1 - 1e-3)
    found = fit(start, x, iterations=7, tolerance=-1.0).mixture
    np.testing.assert_allclose(jax.nn.softmax(found.logits), w, rtol=1e-9)
    np.testing.assert_allclose(jax.nn.sigmoid(found.components.logits), p, rtol=1e-9)


def test_one_component_is_the_closed_form():
    bits = fit_bernoulli(BITS, 1, key=jax.random.key(0))
    p = BITS.mean(axis=0).astype(float)
    expected = np.sum(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert bits.history[-1] == pytest.approx(expected, rel=1e-5)
    assert bits.converged and len(bits.history) <= 4
    full = fit_full_gaussian(POINTS, 1, key=jax.random.key(0))
    covariance = np.cov(POINTS.astype(float).T, bias=True)
    expected = -0.5 * (3 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + 3)
    assert full.history[-1] == pytest.approx(expected, rel=1e-5)
    tril = full.mixture.components.scale_tril[0]
    np.testing.assert_allclose(tril @ tril.T, covariance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(N, 12), (N, 3, 4, 1)], ids=["vectors", "images"])
def test_planted_coins_are_found(shape):
    fitted = fit_bernoulli(BITS.reshape(shape), 3, key=jax.random.key(0), restarts=3)
    found = jax.nn.sigmoid(fitted.mixture.components.logits).reshape(3, 12)
    order = np.argsort(found[:, [0, 4, 8]].argmax(axis=1))
    # Probabilities of 80 examples each: a standard error of about 0.035.
    np.testing.assert_allclose(found[order], PROBABILITIES, atol=0.15)
    np.testing.assert_allclose(jax.nn.softmax(fitted.mixture.logits), 1 / 3, atol=0.08)
    assert fitted.mixture.event_shape == shape[1:]
    assert fitted.mixture.sample(jax.random.key(0)).shape == shape[1:]
    assert fitted.mixture.mean.shape == shape[1:]
    np.testing.assert_allclose(fitted.mixture.mean.ravel(), BITS.mean(axis=0), atol=1e-4)


def test_planted_gaussians_are_found():
    fitted = fit_gaussian(POINTS, 3, key=jax.random.key(0), restarts=3)
    order = np.argsort(fitted.mixture.components.loc @ np.array([1.0, 2, 0]))
    order = order[[0, 1, 2]]
    np.testing.assert_allclose(fitted.mixture.components.loc[order], CENTRES, atol=0.6)
    scale = np.tile([0.5, 1, 1.5], (3, 1))
    np.testing.assert_allclose(fitted.mixture.components.scale[order], scale, rtol=0.3)
    q = e_step(fitted.mixture, POINTS).responsibilities
    assert np.mean(np.asarray(q.argmax(axis=1)) == np.argsort(order)[LABELS]) > 0.98


def test_restarts_keep_the_likeliest():
    """One start of these puts two components on one group of three, and ends far below."""
    one = fit_gaussian(POINTS, 3, key=jax.random.key(16))
    several = fit_gaussian(POINTS, 3, key=jax.random.key(16), restarts=4)
    assert several.history[-1] > one.history[-1] + 0.1


def test_an_empty_component_is_seeded_anew_and_the_likelihood_rises():
    """Three groups, and a start with two components on one and a third that sees nothing."""
    loc = jnp.array([[6.0, 0, 3], [0.0, 3, -2], [900.0, 900, 900]])
    start = Mixture(jnp.zeros(3), Normal(loc, jnp.ones((3, 3))))
    x = POINTS
    fitted = fit(start, x, tolerance=1e-5)
    assert fitted.reseeded.sum() >= 1 and fitted.reseeded[0] == 0
    check_monotone(fitted.history, 1e-5)
    best = fit_gaussian(x, 3, key=jax.random.key(0), restarts=3, tolerance=1e-5)
    assert fitted.history[-1] == pytest.approx(best.history[-1], abs=1e-3)
    # Without it, the third would keep its place and its weight of nothing.
    dead = start
    for _ in range(50):
        dead = m_step(dead, x, e_step(dead, x).responsibilities)
    np.testing.assert_array_equal(dead.components.loc[2], loc[2])
    assert e_step(dead, x).log_px.mean() < fitted.history[-1] - 0.1
    assert np.isfinite(jax.tree.leaves(dead)[0]).all()


def test_two_empty_coins_are_seeded_on_different_examples():
    logits = jnp.stack([jnp.zeros(12), jnp.full(12, 60.0), jnp.full(12, 60.0)])
    start = Mixture(jnp.array([0.0, -20.0, -20.0]), Bernoulli(logits))
    fitted = fit(start, BITS, tolerance=1e-5)
    assert fitted.reseeded[1] == 2
    check_monotone(fitted.history, 1e-5)
    p = jax.nn.sigmoid(fitted.mixture.components.logits)
    assert np.abs(p[1] - p[2]).max() > 0.3
    assert np.asarray(jax.nn.softmax(fitted.mixture.logits)).min() > 0.05


def test_more_components_than_different_examples():
    x = np.repeat(BITS[:3], 4, axis=0)
    fitted = fit_bernoulli(x, 8, key=jax.random.key(0))
    assert np.isfinite(fitted.history).all()
    as_many = fit_gaussian(OVERLAPPING[:5], 5, key=jax.random.key(0))
    assert np.isfinite(as_many.history).all()


def test_the_floors_keep_every_example_possible():
    fitted = fit_bernoulli(np.zeros_like(BITS), 3, key=jax.random.key(0), floor=1e-2)
    p = jax.nn.sigmoid(fitted.mixture.components.logits)
    np.testing.assert_allclose(p, 1e-2, rtol=1e-4)
    unseen = fitted.mixture.log_prob(jnp.ones(12))
    assert unseen == pytest.approx(12 * np.log(1e-2), rel=1e-3)
    constant = fit_gaussian(np.ones_like(POINTS), 3, key=jax.random.key(0), floor=0.1)
    np.testing.assert_allclose(constant.mixture.components.scale, 0.1, rtol=1e-5)
    full = fit_full_gaussian(np.ones_like(POINTS), 1, key=jax.random.key(0), floor=0.1)
    tril = full.mixture.components.scale_tril[0]
    np.testing.assert_allclose(tril @ tril.T, 0.01 * np.eye(3), atol=1e-6)


def test_a_fitted_mixture_has_finite_gradients():
    fitted = fit_bernoulli(BITS, 3, key=jax.random.key(0))
    for mixture, x in [(fitted.mixture, BITS[0]), (fitted.mixture, 1 - BITS[0])]:
        gradient = jax.grad(lambda m, x: m.log_prob(x))(mixture, x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    through = jax.grad(lambda m: e_step(m, BITS).log_px.mean())(fitted.mixture)
    # At a maximum the likelihood is flat in the weights and in the logits off their floor.
    np.testing.assert_allclose(through.logits, 0, atol=0.02)


def test_stored_data_are_drawn_once_with_the_key_of_the_fit():
    grey = np.random.default_rng(0).integers(0, 256, (N, 3, 4, 1)).astype(np.uint8)
    calls = [
        fit_bernoulli(
            grey, 3, key=jax.random.key(seed), transform=data.binarize, batch_size=size
        ).history
        for seed, size in [(0, 1000), (0, 100), (1, 1000)]
    ]
    np.testing.assert_allclose(calls[0], calls[1], rtol=1e-4)
    assert abs(calls[0][-1] - calls[2][-1]) > 1e-4


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused_in_words():
    broken = POINTS.copy()
    broken[7, 1] = np.nan
    for call, message in [
        (
            lambda: fit_bernoulli(BITS[:4], 5, key=jax.random.key(0)),
            "components: got 5, expected at most the 4",
        ),
        (
            lambda: fit_gaussian(POINTS[:4], 5, key=jax.random.key(0)),
            "components: got 5, expected at most the 4",
        ),
        (lambda: fit(mixture_of("gaussian"), POINTS[:2]), "fit: components: got 3.*at most the 2"),
        (
            lambda: fit_bernoulli(BITS, 0, key=jax.random.key(0)),
            "fit_bernoulli: expected components >= 1, got 0",
        ),
        (lambda: fit_bernoulli(BITS, 2, key=jax.random.key(0), restarts=0), "restarts >= 1, got 0"),
        (
            lambda: fit_gaussian(POINTS, 2, key=jax.random.key(0), iterations=0),
            "iterations >= 1, got 0",
        ),
        (
            lambda: fit_bernoulli(255 * BITS, 2, key=jax.random.key(0)),
            "255.* for example 0.*data.binarize",
        ),
        (
            lambda: fit_bernoulli(BITS - 1, 2, key=jax.random.key(0)),
            "fit_bernoulli: data: got values in",
        ),
        (
            lambda: fit_gaussian(broken, 2, key=jax.random.key(0)),
            "fit_gaussian: data: got NaN.*first at 7",
        ),
        (
            lambda: fit_gaussian(POINTS[:, 0], 2, key=jax.random.key(0)),
            r"event axis; .*x\[:, None\]",
        ),
        (
            lambda: fit_full_gaussian(BITS.reshape(N, 3, 4), 2, key=jax.random.key(0)),
            "vectors.*flatten",
        ),
        (lambda: fit_bernoulli(BITS, 2, key=jax.random.key(0), floor=0.3), "floor: got 0.3"),
        (
            lambda: fit_gaussian(POINTS, 2, key=jax.random.key(0), floor=0.0),
            "floor: got 0.0.*no maximum",
        ),
        (lambda: log_joint(mixture_of("full"), POINTS), r"log_joint: x: got shape \(240, 3\)"),
        (lambda: fit(mixture_of("gaussian"), broken), r"log p\(x\) is nan for example 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    laplace = Mixture(jnp.zeros(2), Laplace(jnp.zeros((2, 3)), jnp.ones((2, 3))))
    assert e_step(laplace, POINTS).log_px.shape == (N,)  # any mixture has an E step
    with pytest.raises(TypeError, match="m_step: mixture: got Laplace, expected components Bern"):
        fit(laplace, POINTS)


# ---------------------------------------------------------------- MNIST


@pytest.mark.slow
def test_a_few_steps_on_mnist_find_strokes(mnist_prepared):
    """10 components on 1000 images, against independent coins at 206 nats per image."""
    x = data.load("mnist", "train[:1000]").x
    fitted = fit_bernoulli(
        x, 10, key=jax.random.key(0), transform=data.binarize, iterations=10, floor=1e-2
    )
    assert -180 < fitted.history[-1] < -140
    check_monotone(fitted.history, 1e-3)


def test_what_does_not_fit_the_mixture_is_refused():
    mixture = Mixture(jnp.zeros(2), Bernoulli(jnp.array([[0.5, -1.0], [1.0, 0.0]])))
    x = jnp.ones((4, 2))
    for q in (jnp.ones((3, 2)) / 2, jnp.ones((4, 1))):
        with pytest.raises(ValueError, match=r"elbo: q: got .*expected \(4, 2\)"):
            mixtures.elbo(mixture, q, x)
    with pytest.raises(ValueError, match="e_step: expected batch_size >= 1, got 0"):
        mixtures.e_step(mixture, x, batch_size=0)
    with pytest.raises(ValueError, match="fit: floor: got 0.9"):
        mixtures.fit(mixture, x, floor=0.9)
    with pytest.raises(ValueError, match="fit_bernoulli: data.weight"):
        mixtures.fit_bernoulli(Batch(x, weight=jnp.ones(4)), 1, key=jax.random.key(0))
