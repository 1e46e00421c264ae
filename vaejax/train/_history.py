"""The metrics of steps on the host: their values, what each step counts, and means over steps."""

import math
from typing import Any

import numpy as np

from vaejax.train._step import BATCH_WEIGHT, NORMS
from vaejax.types import Metrics, Weighted

COUNTED = "skipped", "waiting"  # of which there is nothing where it is not counted
OF_STEPS = *COUNTED, *NORMS
"""What is said of a step, whatever its batch weighs, and is no term of its loss."""


def separated(history: Metrics) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The values of each metric, and the weights of those whose steps do not count alike.

    Args:
      history: as a scan of steps returns it, on the host: arrays `[steps, ...]`, or `Weighted`.
    Returns:
      `values` and `weights`, arrays `[steps, ...]` by name; the second has only some of the names.
    """
    whole = history.get(BATCH_WEIGHT)
    values, weights = {}, {}
    for name, metric in history.items():
        if name == BATCH_WEIGHT:
            continue
        weighted = isinstance(metric, Weighted)
        values[name] = np.asarray(metric.value if weighted else metric)
        if name in OF_STEPS or (whole is None and not weighted):
            continue
        share = metric.weight if weighted else 1.0
        weights[name] = np.asarray(share) * (1.0 if whole is None else np.asarray(whole))
    return values, weights


def mean_of_steps(values: np.ndarray, weight: np.ndarray | None) -> Any:
    """The mean over the steps, `sum_s w_s v_s / sum_s w_s`; NaN where no step counts.

    Args:
      values: `[steps]`, or `[steps, members]`.
      weight: of each, the same shape; None where all steps count alike.
    Returns:
      The mean as plain numbers: a float, or a list with one for each member.
    """
    if weight is None:
        mean = values.mean(axis=0) if len(values) else math.nan * values.sum(axis=0)
    else:
        total = weight.sum(axis=0)
        summed = (weight * values).sum(axis=0)
        mean = np.where(total > 0, summed / np.where(total > 0, total, 1.0), math.nan)
    return mean.tolist()


def unmeasured(name: str, steps: int, like: Any) -> list[Any]:
    """What the history has of steps at which a metric was not measured, by another leg of the run.

    Args:
      name: of the metric.
      steps: how many.
      like: its value at another step, a number or a list with one for each member.
    Returns:
      A value for each step: NaN, or 0 of what is counted.
    """
    return np.full((steps, *np.shape(like)), 0.0 if name in COUNTED else math.nan).tolist()
