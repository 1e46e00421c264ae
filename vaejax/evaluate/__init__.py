"""Evaluation: what a trained model's numbers are, and how far they can be trusted.

- Measures of a data set: `elbo_terms`, `log_likelihood`, `log_prob`, `codes`, `reconstructions`,
  `squared_error`, `mean_loss`.
- log p(x): `bounds` (the importance-weighted ladder, and the interval around it), `annealing`,
  `exact` (quadrature and enumeration).
- The code: `diagnostics` (active units, collapse, calibration), `decomposition` (the averaged ELBO
  taken apart), `representation` (probes, directions), `disentanglement` (the mutual information
  gap).
- Inference and training: `inference` (refined posteriors, and the gap of the bound), `gradients`
  (bias and variance of estimators).
- Anomaly detection: `anomaly`.
- For a new measure: `checked_batch`, `measure_each` and `check_counted`.

A measure takes `(model, params, key, data, ...)`. With the same key and transform all measures
see the same examples.
"""

from vaejax.evaluate._each import checked_batch, measure_each
from vaejax.evaluate._measures import (
    Likelihood,
    check_counted,
    codes,
    elbo_terms,
    log_likelihood,
    log_prob,
    mean_loss,
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
    "reconstructions",
    "representation",
    "squared_error",
]
