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
- Two models: `compare` of their numbers, `compare_models` through a measure. `bits_per_dim` turns
  nats into bits. Inside `with progress():` measures show a bar.
- For a new measure: the decorator `measure`; `checked_batch`, `measure_each` and `check_counted`,
  or `checked_each`, which is all three.

A measure takes `(model, params, key, data, ...)`. With the same key and transform all measures
see the same examples. `data` is a Batch, or the x of one, where an example may also be a tree of
arrays; or a Source, which is read a part at a time where each example has a number of its own, and
else whole, up to 1 GiB. Examples of another shape than p(x|z) has raise ValueError.
"""

from vaejax.evaluate._compare import Comparison, bits_per_dim, compare, compare_models
from vaejax.evaluate._each import (
    check_counted,
    check_example,
    checked_batch,
    checked_each,
    measure,
    measure_each,
)
from vaejax.evaluate._mean_loss import mean_loss
from vaejax.evaluate._measures import (
    Likelihood,
    codes,
    elbo_terms,
    log_likelihood,
    log_prob,
    reconstructions,
    squared_error,
)
from vaejax.evaluate._progress import progress

__all__ = [
    "Comparison",
    "Likelihood",
    "annealing",
    "anomaly",
    "bits_per_dim",
    "bounds",
    "check_counted",
    "check_example",
    "checked_batch",
    "checked_each",
    "codes",
    "compare",
    "compare_models",
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
    "measure",
    "measure_each",
    "progress",
    "reconstructions",
    "representation",
    "squared_error",
]
