"""Losses: `(params, key, batch, step) -> (scalar, metrics)`, one function per paper.

Sums over the event, one visible mean over the batch, nats everywhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax import terms
from vaejax.batch import batch_mean, over_batch
from vaejax.errors import at_least_one
from vaejax.model import Model, draw
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params

Schedule = float | Callable[[Any], Any]


def elbo(
    model: Model,
    *,
    beta: Schedule = 1.0,
    samples: int = 1,
    rate: Callable[..., Array] = terms.rate,
    draw: Callable[..., Any] = draw,
) -> Loss:
    """The negative evidence lower bound, D + beta R, averaged over the batch, nats per example.

    `log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = -(D + R)`.

    `beta`: weight of the rate, a number or a schedule of the step (an optax schedule, for KL
    annealing); `samples`: draws of z per example, averaged; `rate`: `terms.rate`, the KL in closed
    form where there is one, or `terms.sampled_rate`; `draw`: how a Draw is made.

    The loss is D + beta R; the metrics are `elbo` (always at beta = 1), `distortion`, `rate`
    and `beta`. Raises ValueError for samples < 1.
    Kingma and Welling, 2014, arXiv:1312.6114; beta: Higgins et al., 2017, beta-VAE.
    """
    at_least_one("elbo", samples=samples)

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
        def one(sample_key: Key) -> tuple[Array, Array]:
            d = draw(model, params, sample_key, x, c)
            return terms.distortion(d), rate(d)

        return jax.tree.map(jnp.mean, jax.vmap(one)(jax.random.split(key, samples)))

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, R = batch_mean(over_batch(example, params, key, batch), batch.weight)
        weight = schedule(beta, step)
        return D + weight * R, {"elbo": -(D + R), "distortion": D, "rate": R, "beta": weight}

    return loss


def schedule(value: Schedule, step: Any) -> Array:
    """The value of a number or of a schedule at a step, `()`, in the default float type."""
    return jnp.asarray(value(step) if callable(value) else value, float)
