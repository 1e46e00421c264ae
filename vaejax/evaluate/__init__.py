"""Evaluation: measures of a data set, bounds of log p(x), exact values, and diagnostics."""

from vaejax.evaluate import (
    annealing,
    anomaly,
    bounds,
    decomposition,
    diagnostics,
    disentanglement,
    exact,
    gradients,
    inference,
    representation,
)
from vaejax.evaluate._each import checked_batch, measure_each
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
    "checked_batch",
    "codes",
    "decomposition",
    "diagnostics",
    "disentanglement",
    "elbo_terms",
    "exact",
    "gradients",
    "inference",
    "log_likelihood",
    "log_prob",
    "mean_loss",
    "measure_each",
    "over_prepared",
    "reconstructions",
    "representation",
    "squared_error",
]
