"""The evidence lower bound, with a weight on its rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.batch import batch_mean, over_batch
from vaejax.errors import at_least_one
from vaejax.model import Draw, Model, check_model, draw, terms
from vaejax.objectives._log_weights import MakeDraw, Schedule, schedule
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def elbo(
    model: Model,
    *,
    beta: Schedule = 1.0,
    samples: int = 1,
    rate: Callable[[Draw], Array] = terms.rate,
    draw: MakeDraw = draw,
) -> Loss:
    """The negative evidence lower bound, D + beta R, averaged over the batch, nats per example.

    `log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = -(D + R)`.

    Args:
      model: the Model to train.
      beta: weight of the rate: a number, or a schedule of the step (an optax schedule, for KL
        annealing).
      samples: draws of z per example, averaged.
      rate: `terms.rate`, the KL in closed form where there is one, or `terms.sampled_rate`.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss, D + beta R. Its metrics are `elbo` (always at beta = 1), `distortion`, `rate` and
      `beta`.
    Raises:
      ValueError: for samples below 1.
    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from vaejax import Batch, autoencoder, distributions, heads, objectives
      >>> prior = distributions.Normal(jnp.zeros(2), jnp.ones(2))
      >>> model = autoencoder(heads.Normal(2), heads.Bernoulli(4), prior)
      >>> params = model.init(jax.random.key(0), jnp.zeros(4))
      >>> loss = objectives.elbo(model)
      >>> value, metrics = jax.jit(loss)(params, jax.random.key(1), Batch(jnp.ones((3, 4))), 0)
      >>> value.shape, sorted(metrics)
      ((), ['beta', 'distortion', 'elbo', 'rate'])

    References:
      Kingma and Welling, 2014, arXiv:1312.6114; beta: Higgins et al., 2017, beta-VAE.
    """
    check_model("elbo", model)
    at_least_one("elbo", samples=samples)

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
        def one(sample_key: Key) -> tuple[Array, Array]:
            d = draw(model, params, sample_key, x, c)
            return terms.distortion(d), rate(d)

        keys = jax.random.split(key, samples)
        if samples == 1:  # the same; on CPU a prior with many components is slow under an axis of 1
            return one(keys[0])
        return jax.tree.map(jnp.mean, jax.vmap(one)(keys))

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, R = batch_mean(over_batch(example, params, key, batch), batch.weight)
        weight = schedule(beta, step)
        return D + weight * R, {"elbo": -(D + R), "distortion": D, "rate": R, "beta": weight}

    return loss
