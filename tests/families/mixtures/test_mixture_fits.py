"""EM against closed forms, loops, scikit-learn from the same start, and planted mixtures.

Tolerances were chosen before the numbers were seen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.mixture import GaussianMixture

from tests.families.mixtures.shared import (
    BITS,
    CENTRES,
    FITS,
    LABELS,
    OVERLAPPING,
    POINTS,
    PROBABILITIES,
    N,
    mixture_of,
)
from vaejax import data
from vaejax.distributions import Bernoulli, Laplace, Mixture, Normal
from vaejax.families.mixtures import (
    Fitted,
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


def check_monotone(history, rounding):
    assert np.all(np.diff(history) >= -rounding)


STEPS = {"iterations": 40, "tolerance": -1.0}  # alike in the tests, so that they share programs


@pytest.mark.parametrize("family", FITS)
def test_the_likelihood_never_falls(family, x64):
    """From a poor start, over many steps, also where the floor binds: in double precision."""
    x = FITS[family][1].astype(float)
    start = mixture_of(family, dtype=np.float64)
    for floor in [1e-3, 0.2]:
        # The start may break the floor: it does not count.
        first = m_step(start, x, e_step(start, x).responsibilities, floor=floor)
        found = fit(first, x, floor=floor, **STEPS)
        assert len(found.history) == 41 and not found.converged
        check_monotone(found.history, 1e-12)
        assert found.history[-1] > found.history[0] + 1e-3


def test_steps_that_are_not_maxima_would_be_seen_to_fall(x64):
    """Checked against pseudo-counts of one half-example on each side: from their own maximum
    likelihood start they lose at once."""
    x = BITS.astype(float)
    best = fit(mixture_of("bernoulli", dtype=np.float64), x, **STEPS).mixture
    q = np.asarray(e_step(best, x).responsibilities)
    p = (q.T @ x + 0.5) / (q.sum(axis=0)[:, None] + 1)
    smoothed = Mixture(best.logits, Bernoulli(special.logit(p)))
    history = [np.mean(e_step(m, x).log_px) for m in (best, smoothed)]
    with pytest.raises(AssertionError):
        check_monotone(np.array(history), 1e-12)
    again = m_step(best, x, q, floor=1e-3)
    check_monotone(np.array([history[0], np.mean(e_step(again, x).log_px)]), 1e-12)


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
    loc, weights = start.components.loc, special.softmax(start.logits)
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
            max_iter=40,
            reg_covar=0.0,
            weights_init=weights,
            means_init=loc,
            precisions_init=precisions,
        ).fit(x)
    # Our floor must not bind; their last number is that of one M step more than they report.
    ours = fit(start, x, floor=1e-6, **STEPS)
    assert ours.history[-1] == pytest.approx(theirs.score(x), rel=1e-9)
    np.testing.assert_allclose(ours.mixture.components.loc, theirs.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(special.softmax(ours.mixture.logits), theirs.weights_, rtol=1e-6)


def test_bernoullis_against_a_loop_over_examples(x64):
    """EM written out in numpy, one example after the other."""
    x, start = BITS.astype(float), mixture_of("bernoulli", dtype=np.float64)
    p, w = special.expit(start.components.logits), special.softmax(start.logits)
    for _ in range(STEPS["iterations"]):
        q = np.zeros((N, 3))
        for n in range(N):
            for j in range(3):
                q[n, j] = w[j] * np.prod(np.where(x[n] == 1, p[j], 1 - p[j]))
            q[n] /= q[n].sum()
        w = q.mean(axis=0)
        p = np.clip(q.T @ x / q.sum(axis=0)[:, None], 1e-3, 1 - 1e-3)
    found = fit(start, x, **STEPS).mixture
    np.testing.assert_allclose(special.softmax(found.logits), w, rtol=1e-9)
    np.testing.assert_allclose(special.expit(found.components.logits), p, rtol=1e-9)


def test_one_component_is_the_closed_form():
    full = fit_full_gaussian(POINTS, 1, key=jax.random.key(0))
    covariance = np.cov(POINTS.astype(float).T, bias=True)
    expected = -0.5 * (3 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + 3)
    assert full.history[-1] == pytest.approx(expected, rel=1e-5)
    assert full.converged and len(full.history) <= 4
    tril = np.asarray(full.mixture.components.scale_tril[0])
    np.testing.assert_allclose(tril @ tril.T, covariance, rtol=1e-3, atol=1e-3)


def test_planted_coins_are_found():
    """In images, of which the fit flattens each and gives back the shape."""
    shape = (3, 4, 1)
    fitted = fit_bernoulli(BITS.reshape(N, *shape), 3, key=jax.random.key(0), restarts=3)
    found = special.expit(fitted.mixture.components.logits).reshape(3, 12)
    order = np.argsort(found[:, [0, 4, 8]].argmax(axis=1))
    # Probabilities of 80 examples each: a standard error of about 0.035.
    np.testing.assert_allclose(found[order], PROBABILITIES, atol=0.15)
    np.testing.assert_allclose(special.softmax(fitted.mixture.logits), 1 / 3, atol=0.08)
    assert fitted.mixture.event_shape == shape
    sample, mean = jax.jit(lambda m, key: (m.sample(key), m.mean))(
        fitted.mixture, jax.random.key(0)
    )
    assert sample.shape == shape
    np.testing.assert_allclose(mean, BITS.mean(axis=0).reshape(shape), atol=1e-4)


def test_planted_gaussians_are_found():
    fitted = fit_gaussian(POINTS, 3, key=jax.random.key(0), restarts=3)
    components = jax.tree.map(np.asarray, fitted.mixture.components)
    order = np.argsort(components.loc @ np.array([1.0, 2, 0]))
    np.testing.assert_allclose(components.loc[order], CENTRES, atol=0.6)
    scale = np.tile([0.5, 1, 1.5], (3, 1))
    np.testing.assert_allclose(components.scale[order], scale, rtol=0.3)
    q = e_step(fitted.mixture, POINTS).responsibilities
    assert np.mean(np.argmax(q, axis=1) == order[LABELS]) > 0.98


def test_restarts_keep_the_likeliest():
    """More components than groups: where EM ends depends on the start."""
    one, several = (
        [
            fit_gaussian(OVERLAPPING[:60], 6, key=jax.random.key(seed), restarts=restarts).history[
                -1
            ]
            for seed in range(3)
        ]
        for restarts in (1, 6)
    )
    assert np.mean(several) > np.mean(one) + 0.01 and min(several) > min(one)


def test_an_empty_component_is_seeded_anew_and_the_likelihood_rises():
    """Three groups, and a start with two components on one and a third that sees nothing."""
    loc = np.array([[6.0, 0, 3], [0.0, 3, -2], [900.0, 900, 900]], np.float32)
    start = Mixture(np.zeros(3, np.float32), Normal(loc, np.ones((3, 3), np.float32)))
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
    assert np.mean(e_step(dead, x).log_px) < fitted.history[-1] - 0.1
    assert np.isfinite(jax.tree.leaves(dead)[0]).all()


def test_two_empty_coins_are_seeded_on_different_examples():
    logits = np.repeat(np.array([[0.0], [60.0], [60.0]], np.float32), 12, axis=1)
    start = Mixture(np.array([0, -20, -20], np.float32), Bernoulli(logits))
    fitted = fit(start, BITS, tolerance=1e-5)
    assert fitted.reseeded[1] == 2
    check_monotone(fitted.history, 1e-5)
    p = special.expit(fitted.mixture.components.logits)
    assert np.abs(p[1] - p[2]).max() > 0.3
    assert special.softmax(fitted.mixture.logits).min() > 0.05


def test_more_components_than_different_examples():
    x = np.repeat(BITS[:2], N // 2, axis=0)
    fitted = fit_bernoulli(x, 3, key=jax.random.key(0))
    assert np.isfinite(fitted.history).all()
    as_many = fit_gaussian(OVERLAPPING[:5], 5, key=jax.random.key(0))
    assert np.isfinite(as_many.history).all()


def test_the_floors_keep_every_example_possible():
    fitted = fit_bernoulli(np.zeros_like(BITS), 3, key=jax.random.key(0), floor=1e-2)
    p = special.expit(fitted.mixture.components.logits)
    np.testing.assert_allclose(p, 1e-2, rtol=1e-4)
    unseen = e_step(fitted.mixture, np.ones_like(BITS)).log_px[0]
    assert unseen == pytest.approx(12 * np.log(1e-2), rel=1e-3)
    constant = fit_gaussian(np.ones_like(POINTS), 3, key=jax.random.key(0), floor=0.1)
    np.testing.assert_allclose(constant.mixture.components.scale, 0.1, rtol=1e-5)
    full = fit_full_gaussian(np.ones_like(POINTS), 1, key=jax.random.key(0), floor=0.1)
    tril = np.asarray(full.mixture.components.scale_tril[0])
    np.testing.assert_allclose(tril @ tril.T, 0.01 * np.eye(3), atol=1e-6)


def test_a_fitted_mixture_has_finite_gradients():
    mixture = fit_bernoulli(BITS, 3, key=jax.random.key(0)).mixture

    @jax.jit
    def gradients(mixture, x):
        each = jax.vmap(jax.grad(lambda m, x: m.log_prob(x)), (None, 0))(mixture, x)
        return each, jax.grad(lambda m: e_step(m, BITS).log_px.mean())(mixture)

    each, through = gradients(mixture, np.stack([BITS[0], 1 - BITS[0]]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(each))
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


BROKEN = POINTS.copy()
BROKEN[7, 1] = np.nan


@pytest.mark.parametrize(
    "call, data, components, options, message",
    [
        (fit_bernoulli, BITS[:4], 5, {}, "components: got 5, expected at most the 4"),
        (fit_gaussian, POINTS[:4], 5, {}, "components: got 5, expected at most the 4"),
        (fit_bernoulli, BITS, 0, {}, "fit_bernoulli: expected components >= 1, got 0"),
        (fit_bernoulli, BITS, 2, {"restarts": 0}, "restarts >= 1, got 0"),
        (fit_gaussian, POINTS, 3, {"iterations": 0}, "iterations >= 1, got 0"),
        (fit_bernoulli, 255 * BITS, 2, {}, "255.* for example 0.*data.binarize"),
        (fit_bernoulli, BITS - 1, 2, {}, "fit_bernoulli: data: got values in"),
        (fit_gaussian, (POINTS, BITS), 2, {}, r"fit_gaussian: data: got .*Batch\(x, y="),
        (fit_gaussian, BROKEN, 2, {}, "fit_gaussian: data: got NaN.*first at 7"),
        (fit_gaussian, POINTS[:, 0], 2, {}, r"event axis; .*x\[:, None\]"),
        (fit_full_gaussian, BITS.reshape(N, 3, 4), 2, {}, "vectors.*flatten"),
        (fit_bernoulli, BITS, 2, {"floor": 0.3}, "floor: got 0.3"),
        (fit_gaussian, POINTS, 2, {"floor": 0.0}, "floor: got 0.0.*no maximum"),
    ],
)
def test_bad_data_and_options_of_a_fit_are_refused(call, data, components, options, message):
    with pytest.raises(ValueError, match=message):
        call(data, components, key=jax.random.key(0), **options)


def test_what_does_not_fit_the_mixture_is_refused():
    gaussian = mixture_of("gaussian")
    with pytest.raises(ValueError, match="fit: components: got 3.*at most the 2"):
        fit(gaussian, POINTS[:2])
    with pytest.raises(ValueError, match=r"log p\(x\) is nan for example 7"):
        fit(gaussian, BROKEN)
    with pytest.raises(ValueError, match="fit: floor: got 0.9"):
        fit(mixture_of("bernoulli"), BITS, floor=0.9)
    with pytest.raises(ValueError, match=r"log_joint: x: got shape \(240, 3\)"):
        log_joint(mixture_of("full"), POINTS)
    with pytest.raises(TypeError, match=r"key: got 0, .*; jax\.random\.key\(0\) makes one$"):
        fit_gaussian(POINTS, 2, key=0)
    full = mixture_of("full")
    with pytest.raises(ValueError, match=r"responsibilities: x: got shape \(240, 3\).*map it"):
        responsibilities(full, POINTS)
    with pytest.raises(ValueError, match=r"e_step: x: got shape \(2,\), .*; pass what has"):
        e_step(full, POINTS[:, :2])
    fitted, q = Fitted(full, np.zeros(2), np.zeros(2), True), np.ones((N, 2)) / 2
    for name, call in {
        "log_joint": lambda: log_joint(fitted, POINTS[0]),
        "responsibilities": lambda: responsibilities(fitted, POINTS[0]),
        "e_step": lambda: e_step(fitted, POINTS),
        "elbo": lambda: elbo(fitted, q, POINTS),
        "m_step": lambda: m_step(fitted, POINTS, q),
        "fit": lambda: fit(fitted, POINTS),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name}: .*got .*; pass its \.mixture"):
            call()
    for q in (np.ones((3, 3)) / 3, np.ones((N, 1))):
        with pytest.raises(ValueError, match=r"elbo: q: got .*expected \(240, 3\)"):
            elbo(gaussian, q, POINTS)
    with pytest.raises(ValueError, match="e_step: expected batch_size >= 1, got 0"):
        e_step(gaussian, POINTS, batch_size=0)
    laplace = Mixture(jnp.zeros(2), Laplace(jnp.zeros((2, 3)), jnp.ones((2, 3))))
    assert e_step(laplace, POINTS).log_px.shape == (N,)  # any mixture has an E step
    with pytest.raises(TypeError, match="m_step: mixture: got Laplace, expected components Bern"):
        fit(laplace, POINTS)


@pytest.mark.statistics
def test_a_few_steps_on_mnist_find_strokes(mnist_prepared):
    """10 components on 1000 images, against independent coins at 206 nats per image."""
    x = data.load("mnist", "train[:1000]").x
    fitted = fit_bernoulli(
        x, 10, key=jax.random.key(0), transform=data.binarize, iterations=10, floor=1e-2
    )
    assert -180 < fitted.history[-1] < -140
    check_monotone(fitted.history, 1e-3)
