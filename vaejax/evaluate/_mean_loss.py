"""A training loss and its metrics, averaged over a data set."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from vaejax.batch import over_examples, size_of, weights_of
from vaejax.data.sources import Source
from vaejax.errors import at_least_one, checked_result, takes, warn_of_levels, wrong
from vaejax.evaluate._each import checked_batch, measure
from vaejax.types import Key, Loss, Metrics, Params, Transform, Weighted


@measure
def mean_loss(
    loss: Loss,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
    step: int = 2**30,
) -> Metrics:
    """A training loss and its metrics averaged over a whole data set, the ragged end included.

    The same numbers at the same scale as in training, for validation and early stopping:
    `evaluate=partial(mean_loss, loss, data=x_valid)`. The loss is taken as it is: for a model with
    dropout evaluate `elbo(deterministic(model))`. It is compiled once per loss object, so build it
    once. Examples count by their weights where the batch has them. The data are split into
    almost equal parts of at most `batch_size`. So no part has a single example, which a loss that
    compares the examples of a batch could not take.

    Args:
      loss: a training loss.
      params: its parameters.
      key: for the loss and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`, or a Source.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples of a part, at most.
      step: what schedules see, by default past their end.
    Returns:
      Floats by name, nats per example: `loss`, and the metrics. A metric of some of the examples
      alone is their mean over the data, NaN where there are none.
    Raises:
      ValueError: where no example has a weight above 0.
    """
    takes("mean_loss: loss", loss, "params, key, batch, step", "such as objectives.elbo(model)")
    if isinstance(data, Source):
        at_least_one("evaluate.mean_loss", batch_size=batch_size, examples=data.size)
        size, part_of = data.size, lambda start, stop: data.read(np.arange(start, stop))
    else:
        data = checked_batch("evaluate.mean_loss", key, data, batch_size=batch_size)
        size, part_of = (
            size_of(data),
            lambda start, stop: jax.tree.map(lambda leaf: leaf[start:stop], data),
        )
    totals: dict[str, float] = {}
    counted: dict[str, float] = {}
    parts = -(-size // batch_size)
    for start, stop in pairwise(i * size // parts for i in range(parts + 1)):
        part = part_of(start, stop)
        weight = np.asarray(weights_of(size_of(part), part.weight))
        share = float(np.sum(weight, dtype=float))
        if share == 0:
            continue
        metrics = _batch_loss(loss, transform, params, jax.random.fold_in(key, start), part, step)
        for name, metric in jax.device_get(metrics).items():
            counts = share * float(metric.weight) if isinstance(metric, Weighted) else share
            totals[name] = totals.get(name, 0.0) + float(metric) * counts
            counted[name] = counted.get(name, 0.0) + counts
    if not totals:
        fix = "give at least one example a weight"
        raise wrong("mean_loss: data.weight", "no weight above 0", "a positive sum", fix)
    return {
        name: total / counted[name] if counted[name] else math.nan for name, total in totals.items()
    }


@partial(jax.jit, static_argnums=(0, 1))
def _batch_loss(
    loss: Loss, transform: Transform | None, params: Params, key: Key, batch: Any, step: Any
) -> Metrics:
    transform_key, loss_key = jax.random.split(key)
    warn_of_levels(batch.x, transform, "evaluate.mean_loss")
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    value, metrics = checked_result("mean_loss", loss(params, loss_key, batch, step))
    return {"loss": value, **metrics}


__all__ = ["mean_loss"]
