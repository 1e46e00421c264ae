"""Data and mixtures that the tests of mixtures share."""

import numpy as np

from vaejax.distributions import Bernoulli, Mixture, MultivariateNormal, Normal
from vaejax.families.mixtures import (
    fit_bernoulli,
    fit_full_gaussian,
    fit_gaussian,
)

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
