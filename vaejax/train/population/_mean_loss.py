"""What a population's members are evaluated by while they are trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, check_some_weight, over_batches, over_examples, size_of
from vaejax.data.sources import in_arrays
from vaejax.errors import at_least_one
from vaejax.train.population._fit import Make
from vaejax.types import Array, Batch, Key, Metrics, Params, Transform, Weighted


def mean_loss(
    make: Make,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
    step: int = 2**30,
) -> Callable[[Any, Params, Key], Metrics]:
    """An `evaluate` for `fit`: a member's loss and metrics over a whole data set.

    These are the numbers of training, at the same scale, the ragged end included. Examples count by
    their weights, and a metric of some of the examples is NaN where there are none. The data become
    part of the compiled program, so a part of a large set is enough.

    Args:
      make: `make(hyper) -> (loss, optimizer)`, of one member.
      data, transform, batch_size, step: as for `evaluate.mean_loss`.
    Returns:
      `evaluate(hyper, params, key) -> {name: number}`, of one member, nats per example.
    Raises:
      ValueError: where no example has a weight above 0.
    """
    data = as_batch(in_arrays("population.mean_loss", data))
    check_some_weight("population.mean_loss", data)
    size = size_of(data)
    at_least_one("mean_loss", batch_size=batch_size, examples=size)
    width = min(batch_size, size)
    parts = -(-size // width)
    # Filled up by examples of weight 0: one shape, one program.
    at = np.arange(parts * width).reshape(parts, width)
    weight = np.ones(size, np.float32) if isinstance(data.weight, tuple) else data.weight
    inside = (at < size).astype(np.float32)
    at = np.minimum(at, size - 1)

    def evaluate(hyper: Any, params: Params, key: Key) -> Metrics:
        loss, _ = make(hyper)

        def part(number: Array, at: Array, inside: Array) -> tuple[Metrics, Array]:
            batch: Batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[at], data)
            transform_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
            if transform is not None:
                batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
            weights = inside * jnp.asarray(weight)[at]
            value, metrics = loss(params, loss_key, batch._replace(weight=weights), step)
            return {"loss": value, **metrics}, weights.sum()

        found, counts = lax.map(lambda arguments: part(*arguments), (jnp.arange(parts), at, inside))
        return {name: _number(metric) for name, metric in over_batches(found, counts).items()}

    return evaluate


def _number(metric: Any) -> Any:
    """A metric as a number, NaN where the data have no example that it concerns."""
    if not isinstance(metric, Weighted):
        return metric
    return jnp.where(metric.weight > 0, metric.value, jnp.nan)
