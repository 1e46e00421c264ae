"""The evidence lower bound, with a weight on its rate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.batch import batch_mean, over_batch
from vaejax.errors import at_least_one, check_number, concrete, wrong
from vaejax.model import Draw, Model, check_model, draw, terms
from vaejax.objectives._log_weights import MakeDraw, Schedule, schedule
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def elbo(
    model: Model,
    *,
    beta: Schedule = 1.0,
    samples: int = 1,
    rate: Callable[[Draw], Array] = terms.rate,
    free_nats: Schedule | None = None,
    draw: MakeDraw = draw,
) -> Loss:
    """The negative evidence lower bound, D + beta R, averaged over the batch, nats per example.

    `log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = -(D + R)`.

    Args:
      model: the Model to train.
      beta: weight of the rate: a number, or a schedule of the step (an optax schedule, for KL
        annealing).
      samples: draws of z per example, averaged.
      rate: `terms.rate`, the KL in closed form where there is one, or `terms.sampled_rate`; or a
        rate in parts, `[groups]`, such as `terms.rate_per_dimension`.
      free_nats: lambda, nats that each group of latents may cost for nothing ("free bits"): a
        number, or a schedule of the step. The loss is then `D + beta sum_j max(lambda, R_j)`, with
        R_j the batch's mean of the rate of group j. Its gradient is exactly zero while R_j is not
        above lambda, so that no group is driven below it. A rate that is one number is one group.
        None: no nats are free.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss, D + beta R. Its metrics are `elbo` (always at beta = 1, with the whole rate),
      `distortion`, `rate` and `beta`; with `free_nats` also lambda, `free_nats`, and the number of
      groups that are not above it, `free_groups`.
    Raises:
      ValueError: for samples below 1, and for `free_nats` below 0.
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
      Kingma and Welling, 2014, arXiv:1312.6114; beta: Higgins et al., 2017, beta-VAE; free bits:
      Kingma et al., 2016, arXiv:1606.04934, section 5.
    """
    check_model("elbo", model)
    at_least_one("elbo", samples=samples)
    if free_nats is not None and not callable(free_nats):
        check_number("elbo: free_nats", free_nats)
        if concrete(free_nats) and free_nats < 0:
            raise wrong("elbo: free_nats", free_nats, "0 nats or more", "such as 0.5")

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
        def one(sample_key: Key) -> tuple[Array, Array]:
            d = draw(model, params, sample_key, x, c)
            return terms.distortion(d), rate(d)

        keys = jax.random.split(key, samples)
        if samples == 1:  # the same; on CPU a prior with many components is slow under an axis of 1
            return one(keys[0])
        return jax.tree.map(partial(jnp.mean, axis=0), jax.vmap(one)(keys))

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, R = _means(over_batch(example, params, key, batch), batch.weight)
        weight = schedule(beta, step)
        paid, more = R, {}
        if free_nats is not None:
            free = schedule(free_nats, step)
            paid = jnp.where(free >= R, free, R)
            more = {"free_nats": free, "free_groups": jnp.sum(free >= R, dtype=float)}
        R, paid = (one if one.ndim == 0 else jnp.sum(one) for one in (R, paid))
        value = D + weight * paid
        return value, {"elbo": -(D + R), "distortion": D, "rate": R, "beta": weight, **more}

    return loss


def _means(values: tuple[Array, Array], weight: Any) -> tuple[Array, Array]:
    """The batch's means of D `[batch]`, and of R `[batch]` or, in parts, `[batch, groups]`."""
    D, R = values
    if R.ndim == 1:
        return batch_mean(values, weight)
    if R.ndim != 2:
        got, fix = f"shape {R.shape[1:]}", "ravel it"
        raise wrong("elbo: rate", got, "one number, or one for each group", fix)
    return batch_mean(D, weight), jax.vmap(partial(batch_mean, weight=weight), 1)(R)
