"""Weights of examples: whole ones give what repeated examples give, start included.

Tolerances were chosen before the numbers were seen.
"""

import jax
import numpy as np
import pytest

from tests.families.mixtures.shared import FITS, POINTS, N, mixture_of
from vaejax.distributions import Mixture, Normal
from vaejax.families.mixtures import e_step, fit, fit_gaussian, m_step
from vaejax.types import Batch

COUNTS = np.random.default_rng(5).integers(0, 4, N)


def check_same(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found.history, expected.history, rtol=rtol)
    np.testing.assert_array_equal(found.reseeded, expected.reseeded)
    pair = (jax.tree.leaves(one.mixture) for one in (found, expected))
    for leaf, other in zip(*pair, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FITS)
def test_whole_weights_repeat_examples_and_their_unit_does_not_matter(family):
    """What has weight 0 may hold anything."""
    call, x = FITS[family]
    masked = np.where(COUNTS[:, None] > 0, x, np.nan)
    expected = call(np.repeat(x, COUNTS, axis=0), 3, key=jax.random.key(2), restarts=2)
    for unit in (1, 2.0**-20):
        weighted = Batch(masked, weight=(unit * COUNTS).astype(np.float32))
        check_same(call(weighted, 3, key=jax.random.key(2), restarts=2), expected)
    ignored = call(Batch(x, weight=np.ones(N, np.float32)), 3, key=jax.random.key(2), restarts=2)
    assert abs(ignored.history[-1] - expected.history[-1]) > 1e-3


def test_an_empty_component_is_placed_as_among_repeated_examples():
    """One component sees nothing at first. Weights whose sum is 1 leave no component empty."""
    loc = np.array([[6.0, 0, 3], [0.0, 3, -2], [900.0, 900, 900]], np.float32)
    start = Mixture(np.zeros(3, np.float32), Normal(loc, np.ones((3, 3), np.float32)))
    expected = fit(start, np.repeat(POINTS, COUNTS, axis=0))
    assert expected.reseeded.sum() == 1
    weight = COUNTS / COUNTS.sum()
    check_same(fit(start, Batch(POINTS, weight=weight.astype(np.float32))), expected, 1e-6)


@pytest.mark.parametrize("family", FITS)
def test_the_m_step_under_weights(family):
    mixture, x = mixture_of(family), FITS[family][1]
    q = np.asarray(e_step(mixture, x).responsibilities)
    found = m_step(mixture, Batch(x.tolist(), weight=COUNTS.astype(np.float32)), q)
    expected = m_step(mixture, np.repeat(x, COUNTS, axis=0), np.repeat(q, COUNTS, axis=0))
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-4)


def test_weights_that_leave_too_little_are_refused():
    few = np.zeros(N, np.float32)
    with pytest.raises(ValueError, match="fit_gaussian: data.weight: got no weight above 0"):
        fit_gaussian(Batch(POINTS, weight=few), 1, key=jax.random.key(0))
    few[:2] = 3
    with pytest.raises(ValueError, match="components: got 3, expected at most the 2 examples"):
        fit_gaussian(Batch(POINTS, weight=few), 3, key=jax.random.key(0))
