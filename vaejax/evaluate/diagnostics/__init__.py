"""What a trained model's code carries: active units, collapse, rate and distortion, calibration.

- `active_units` and `rate_per_dimension`: which dimensions of the code are used.
- `implied_beta` and `rate_distortion`: how rate is traded for distortion.
- `calibration`: whether the decoder's standard deviations are right.
- `inference_report`: all of these as verdicts in words, for one model.
- `decompose`, of `vaejax.decomposition`: the averaged ELBO taken apart.

All figures are nats per example unless said otherwise. Layer noise such as dropout is off. `data`
is a Batch, or the x of one: stored data if a `transform(key, x)` is given, which is drawn once per
example.
"""

from vaejax.evaluate.decomposition import Decomposition, decompose
from vaejax.evaluate.diagnostics._calibration import Calibration, calibration
from vaejax.evaluate.diagnostics._rate import RateDistortion, implied_beta, rate_distortion
from vaejax.evaluate.diagnostics._report import Report, inference_report
from vaejax.evaluate.diagnostics._units import ActiveUnits, active_units, rate_per_dimension
from vaejax.types import Estimate

__all__ = [
    "ActiveUnits",
    "Calibration",
    "Decomposition",
    "Estimate",
    "RateDistortion",
    "Report",
    "active_units",
    "calibration",
    "decompose",
    "implied_beta",
    "inference_report",
    "rate_distortion",
    "rate_per_dimension",
]
