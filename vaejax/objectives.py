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
from vaejax.model import Draw, Model, draw
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


def iwae(model: Model, *, particles: int, draw: Callable[..., Any] = draw) -> Loss:
    """The importance-weighted bound, negated and averaged over the batch, nats per example.

    `log p(x) >= L_K = E[log 1/K sum_k w_k]`, `w_k = p(x, z_k) / q(z_k|x)`, `z_k ~ q(z|x)`; L_1 is
    the ELBO, and L_K rises with K. The gradient is that of the value, through the draws.

    `particles`: K; `draw`: how a Draw is made. The loss is -L_K; the metrics are `bound` (L_K),
    `elbo` (mean of log w) and `ess` (effective sample size, of K). Raises ValueError for K < 1.
    Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    at_least_one("iwae", particles=particles)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        def log_weight(sample_key: Key) -> Array:
            return terms.log_weight(draw(model, params, sample_key, x, c))

        return _bound(jax.vmap(log_weight)(jax.random.split(key, particles)))

    return _negative_bound(example)


def dreg(model: Model, *, particles: int) -> Loss:
    """`iwae` with the doubly reparameterised gradient for q: less noise at every K, no bias.

    `grad_phi L_K = E[sum_k w~_k^2 d log w_k/dz_k dz_k/d phi]`, `w~_k = w_k / sum_j w_j`, with the
    derivative of log w by z alone; the gradient for the decoder and the prior is that of `iwae`.

    The value and the metrics are `iwae`'s. z has to be reparameterised: a q whose sample has no
    gradient leaves the encoder untrained. Raises ValueError for K < 1.
    Tucker, Lawson, Gu and Maddison, 2019, arXiv:1810.04152.
    """
    at_least_one("dreg", particles=particles)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        encode_key, z_key, decode_key = jax.random.split(key, 3)
        q, pz = model.encode(params, x, c, key=encode_key), model.prior(params, c)
        z = jax.vmap(q.sample)(jax.random.split(z_key, particles))
        z, zeros = _weighed_again(z, jnp.zeros(particles))
        held = jax.lax.stop_gradient(q)

        def log_weight(z: Any, key: Key) -> Array:
            px = model.decode(params, z, c, key=key)
            return terms.log_weight(Draw(x, z, held.log_prob(z), held, pz, px))

        return _bound(jax.vmap(log_weight)(z, jax.random.split(decode_key, particles)) + zeros)

    return _negative_bound(example)


@jax.custom_vjp
def _weighed_again(z: Any, zeros: Array) -> tuple[Any, Array]:
    """The identity, whose gradient for z `[K, ...]` is multiplied by the normalised weights.

    They arrive backwards: `zeros` `[K]` are added to the log-weights, so that their cotangents are
    the normalised weights times a factor that all K share.
    """
    return z, zeros


def _weigh_forward(z: Any, zeros: Array) -> tuple[Any, None]:
    return (z, zeros), None


def _weigh_backward(_: None, cotangents: tuple[Any, Array]) -> tuple[Any, Array]:
    z_bar, weights = cotangents
    total = jnp.sum(weights)
    # The total is zero for an example that is masked, whose gradient is zero too.
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jax.vmap(lambda w, bar: jax.tree.map(lambda b: w * b, bar))(weights, z_bar), weights


_weighed_again.defvjp(_weigh_forward, _weigh_backward)


def _bound(log_w: Array) -> Metrics:
    return {
        "bound": terms.log_mean_exp(log_w),
        "elbo": jnp.mean(log_w),
        "ess": terms.effective_sample_size(log_w),
    }


def _negative_bound(example: Callable[..., Metrics]) -> Loss:
    """The loss of an example's metrics: minus the batch's mean of their `bound`."""

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        metrics = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return -metrics["bound"], metrics

    return loss


def schedule(value: Schedule, step: Any) -> Array:
    """The value of a number or of a schedule at a step, `()`, in the default float type."""
    return jnp.asarray(value(step) if callable(value) else value, float)
