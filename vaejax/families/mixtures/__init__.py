"""Mixtures fitted by expectation-maximisation: densities of their own, and the classical bound.

For any q over the components, log p(x) = ELBO(q) + KL(q || p(j|x)). The E step sets q to the
posterior over the components, the responsibilities; the bound then equals log p(x). The M step
raises the bound at fixed q. So log p(x) never falls.

A fitted `distributions.Mixture` samples, scores and trains like any Distribution. For a whole data
set, `e_step(mixture, x).log_px` gives the same numbers as its mapped `log_prob`, and is much
faster.

References:
  Dempster, Laird and Rubin, 1977, Maximum likelihood from incomplete data via the EM algorithm.
  Neal and Hinton, 1998, A view of the EM algorithm that justifies incremental, sparse, and other
  variants.
"""

from vaejax.families.mixtures._em import Fitted, fit
from vaejax.families.mixtures._start import fit_bernoulli, fit_full_gaussian, fit_gaussian
from vaejax.families.mixtures._steps import (
    Expectation,
    e_step,
    elbo,
    log_joint,
    m_step,
    responsibilities,
)

__all__ = [
    "Expectation",
    "Fitted",
    "e_step",
    "elbo",
    "fit",
    "fit_bernoulli",
    "fit_full_gaussian",
    "fit_gaussian",
    "log_joint",
    "m_step",
    "responsibilities",
]
