"""What the losses share: log-weights, bounds made of them, schedules, and the mean over a batch."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.batch import batch_mean, over_batch
from vaejax.errors import check_number
from vaejax.model import Model, terms
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params

Schedule = float | Callable[[Any], Any]
# (model, params, key, x, c) -> Draw, for one example. Some models have a Draw of their own.
MakeDraw = Callable[[Model, Params, Key, Any, Any], Any]
Example = Callable[[Params, Key, Any, Any], Metrics]


def schedule(value: Schedule, step: Any) -> Array:
    """The value of a number or of a schedule at a step.

    Args:
      value: a number, or a function of the step (an optax schedule).
      step: the number of the optimizer step.
    Returns:
      The value, `()`, in the default float type.
    """
    if not callable(value):
        check_number("schedule: value", value)
    return jnp.asarray(value(step) if callable(value) else value, float)


def log_weights(
    model: Model, params: Params, key: Key, x: Any, c: Any, particles: int, draw: MakeDraw
) -> Array:
    """log w of `particles` draws of z for one example, `[particles]`."""

    def log_weight(key: Key) -> Array:
        return terms.log_weight(draw(model, params, key, x, c))

    return jax.vmap(log_weight)(jax.random.split(key, particles))


def bound_of(log_w: Array) -> Metrics:
    """Log-mean of the weights, mean log-weight and effective sample size of log-weights `[K]`."""
    nothing, log_w_or_0 = _all_zero(log_w)
    return {
        "bound": jnp.where(nothing, -jnp.inf, terms.log_mean_exp(log_w_or_0)),
        "elbo": jnp.mean(log_w),
        "ess": jnp.where(nothing, 0.0, terms.effective_sample_size(log_w_or_0)),
    }


def power_mean(log_w: Array, power: float) -> Array:
    """1/power log 1/K sum_k w_k^power of log-weights `[K]`, with its limits at 0 and infinity."""
    if power == 0:
        return jnp.mean(log_w)
    if math.isinf(power):
        return jnp.max(log_w) if power > 0 else jnp.min(log_w)
    nothing, log_w = _all_zero(log_w)
    # Relative to the largest summand, and by log1p: near power 0 the logarithm is of about 1.
    top = jax.lax.stop_gradient(jnp.max(log_w) if power > 0 else jnp.min(log_w))
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    mean = jnp.mean(jnp.expm1(power * (log_w - top)))
    return jnp.where(nothing, -jnp.inf, top + jnp.log1p(mean) / power)


def _all_zero(log_w: Array) -> tuple[Array, Array]:
    """Whether all weights are zero, and the log-weights: 0 then, so that no gradient is 0 / 0."""
    nothing = jnp.all(jnp.isneginf(log_w))
    return nothing, jnp.where(nothing, 0.0, log_w)


@jax.custom_jvp
def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """The first number, with the gradient of the second."""
    return value


@with_gradient_of.defjvp
def _surrogate_tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def negative_bound(example: Example, name: str = "bound") -> Loss:
    """The loss of an example's metrics: minus the batch's mean of the metric `name`."""

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        metrics = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return -metrics[name], metrics

    return loss
