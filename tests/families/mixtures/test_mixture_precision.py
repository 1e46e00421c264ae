"""Fits of float32 data of awkward columns, against closed forms and scikit-learn in float64.

Tolerances were chosen before the numbers were seen.
"""

import jax
import numpy as np
import pytest
from sklearn import datasets
from sklearn.mixture import GaussianMixture

from tests.families.mixtures.shared import BITS, OVERLAPPING, mixture_of
from vaejax.distributions import Bernoulli, Mixture, MultivariateNormal, Normal
from vaejax.families.mixtures import _em, e_step, fit, fit_full_gaussian, fit_gaussian, m_step

FLOOR = 1e-3


def awkward(n=300):
    """Columns far from 0, nine orders of magnitude apart, doubled, constant, and nearly a sum."""
    rng = np.random.default_rng(4)
    far, small = 3e5 + 2e4 * rng.normal(size=n), 0.02 * rng.normal(size=n) + 0.4
    huge = 5e6 * rng.normal(size=n) ** 2
    almost = far + huge + 100 * rng.normal(size=n)
    columns = [far, small, small, np.full(n, 41.7), huge, almost, rng.normal(size=n)]
    return np.stack(columns, axis=1).astype(np.float32)


def optimum(x, floor=FLOOR):
    """Mean log p(x) of one Gaussian whose standard deviations are the floor or more, in float64."""
    x = np.asarray(x, float)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) / len(x) ** 0.5
    found = np.maximum(values, floor)
    return -0.5 * np.sum(2 * np.log(found) + (values / found) ** 2 + np.log(2 * np.pi))


def check_good(fitted):
    """What every fit promises of its history."""
    assert fitted.converged and fitted.history.dtype == np.float64
    assert np.all(np.diff(fitted.history) >= -1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_one_full_gaussian_of_awkward_columns_is_the_constrained_optimum(scale):
    x = awkward() * np.float32(scale)
    fitted = fit_full_gaussian(x, 1, key=jax.random.key(0))
    check_good(fitted)
    assert fitted.history[-1] == pytest.approx(optimum(x), abs=1e-3)


def test_one_diagonal_gaussian_far_from_the_origin_is_the_closed_form():
    x = awkward()
    fitted = fit_gaussian(x, 1, key=jax.random.key(0))
    check_good(fitted)
    variance = np.maximum(np.var(x.astype(float), axis=0), FLOOR**2)
    ratio = np.var(x.astype(float), axis=0) / variance
    expected = -0.5 * np.sum(np.log(2 * np.pi * variance) + ratio)
    assert fitted.history[-1] == pytest.approx(expected, abs=1e-6)


def shifted(name):
    """Iris beside a column that repeats another, or far from the origin, as float32."""
    x = datasets.load_iris().data.astype(np.float32)
    if name == "repeated":
        return np.concatenate([x, x[:, :1], 2 * x[:, 2:3]], axis=1)
    return x * np.float32([1, 1e3, 1e-1, 10]) + np.float32([0, 4e4, 0, -2e3])


@pytest.mark.parametrize("name", ["repeated", "far"])
def test_as_good_as_scikit_learn_in_double_precision(name):
    """The best of three starts each; its covariances get 1e-6 added, which our floor is too."""
    x = shifted(name)
    for k in (1, 3):
        theirs = GaussianMixture(k, n_init=3, max_iter=200, random_state=0).fit(x.astype(float))
        ours = fit_full_gaussian(x, k, key=jax.random.key(3), restarts=3)
        check_good(ours)
        assert ours.history[-1] >= theirs.score(x.astype(float)) - 0.05


def test_clusters_of_few_different_points_have_their_covariance():
    """Two points often repeated, which lie on a line, and one: rounding leaves no Cholesky root."""
    rng = np.random.default_rng(0)
    with _em.double(True):
        for _ in range(4):
            at = np.repeat(np.arange(5), 40)
            x, cluster = rng.normal(size=(5, 3))[at], np.array([0, 0, 1, 1, 2])[at]
            roots = np.tile(0.5 * np.eye(3), (3, 1, 1))
            wide = Mixture(np.zeros(3), MultivariateNormal(np.zeros((3, 3)), roots))
            found = m_step(wide, x, np.eye(3)[cluster], floor=FLOOR).components
            for j in range(3):
                apart = x[cluster == j] - x[cluster == j].mean(axis=0)
                values = np.linalg.svd(apart, compute_uv=False) / len(apart) ** 0.5
                root = np.linalg.svd(found.scale_tril[j], compute_uv=False)
                np.testing.assert_allclose(root, np.maximum(values, FLOOR), rtol=1e-6)


def test_the_mixture_given_back_scores_what_its_history_says():
    """In float32, where it is used."""
    x = awkward()
    for fitted in (
        fit_gaussian(x, 2, key=jax.random.key(1)),
        fit_full_gaussian(x, 2, key=jax.random.key(1)),
    ):
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(fitted.mixture))
        log_px = np.asarray(e_step(fitted.mixture, x).log_px)
        assert log_px.mean() == pytest.approx(fitted.history[-1], abs=0.05)


def test_a_mixture_that_float32_cannot_hold_is_said():
    x = 3e7 + np.random.default_rng(0).normal(size=(300, 7))
    with pytest.warns(UserWarning, match="fit_gaussian: mean log p.*rounded to float32.*x64"):
        fitted = fit_gaussian(x, 1, key=jax.random.key(0))
    check_good(fitted)
    expected = -0.5 * np.sum(np.log(2 * np.pi * np.var(x, axis=0)) + 1)
    assert fitted.history[-1] == pytest.approx(expected, abs=1e-6)


def test_a_start_that_breaks_the_floor_is_moved_to_it():
    """Its first step could otherwise only lose, and a loss would end the fit."""
    spikes = {
        "bernoulli": (Bernoulli(np.where(BITS[:3] > 0, 9.0, -9.0).astype(np.float32)), BITS, 0.2),
        "gaussian": (Normal(OVERLAPPING[:3], np.full((3, 3), 1e-2)), OVERLAPPING, 0.7),
        "full": (
            MultivariateNormal(OVERLAPPING[:3], np.tile(1e-2 * np.eye(3), (3, 1, 1))),
            OVERLAPPING,
            0.7,
        ),
    }
    for components, x, floor in spikes.values():
        start = Mixture(np.zeros(3, np.float32), components)
        check_good(fit(start, x, floor=floor))


def test_a_step_that_lowers_the_likelihood_is_neither_taken_nor_convergence(monkeypatch):
    """As a step did whose covariance was lost in the rounding: here its means are moved."""
    right = _em.m_step

    def spoilt(mixture, x, q, **options):
        best = right(mixture, x, q, **options)
        return Mixture(best.logits, Normal(best.components.loc + 3, best.components.scale))

    monkeypatch.setattr(_em, "m_step", spoilt)
    x = OVERLAPPING[:61]  # a shape of its own, so that no other test meets this program
    start = mixture_of("gaussian")
    with pytest.warns(UserWarning, match="fit: after .* a step would lose .* no maximum"):
        fitted = fit(start, x)
    assert not fitted.converged and np.all(np.diff(fitted.history) >= -1e-6)
    kept = e_step(fitted.mixture, x).log_px
    assert np.mean(kept) == pytest.approx(fitted.history[-1], rel=1e-5)
