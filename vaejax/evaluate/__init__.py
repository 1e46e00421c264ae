"""Evaluation: measures of a data set, bounds of log p(x), exact values, and diagnostics."""

from vaejax.evaluate import (
    annealing,
    anomaly,
    bounds,
    decomposition,
    diagnostics,
    exact,
    gradients,
    inference,
    representation,
)
from vaejax.evaluate._measures import (
    Likelihood,
    check_counted,
    codes,
    elbo_terms,
    log_likelihood,
    log_prob,
    mean_loss,
    over_prepared,
    reconstructions,
    squared_error,
)

__all__ = [
    "Likelihood",
    "annealing",
    "anomaly",
    "bounds",
    "check_counted",
    "codes",
    "decomposition",
    "diagnostics",
    "elbo_terms",
    "exact",
    "gradients",
    "inference",
    "log_likelihood",
    "log_prob",
    "mean_loss",
    "over_prepared",
    "reconstructions",
    "representation",
    "squared_error",
]
