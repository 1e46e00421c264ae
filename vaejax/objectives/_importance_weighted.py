"""Importance-weighted bounds (IWAE and its relatives), with gradients through the draws of z."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.distributions import pathwise
from vaejax.errors import at_least_one, wrong
from vaejax.model import Draw, Model, check_model, draw, terms
from vaejax.objectives._log_weights import (
    MakeDraw,
    Schedule,
    bound_of,
    log_weights,
    negative_bound,
    power_mean,
    schedule,
    with_gradient_of,
)
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, describe


def iwae(model: Model, *, particles: int, draw: MakeDraw = draw) -> Loss:
    """The importance-weighted bound, negated and averaged over the batch, nats per example.

    `log p(x) >= L_K = E[log 1/K sum_k w_k]`, `w_k = p(x, z_k) / q(z_k|x)`, `z_k ~ q(z|x)`. L_1 is
    the ELBO, and L_K rises with K. The gradient is that of the value, through the draws.

    Args:
      model: the Model to train.
      particles: K.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss, -L_K. Its metrics are `bound` (L_K), `elbo` (the mean of log w) and `ess` (effective
      sample size, of K).
    Raises:
      ValueError: for particles below 1.
    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import vaejax as vae
      >>> prior = vae.distributions.Normal(jnp.zeros(2), jnp.ones(2))
      >>> model = vae.autoencoder(vae.heads.Normal(2), vae.heads.Bernoulli(4), prior)
      >>> x = jnp.ones((3, 4))
      >>> params = model.init(jax.random.key(0), x[0])
      >>> loss = jax.jit(vae.objectives.iwae(model, particles=5))
      >>> minus_bound, metrics = loss(params, jax.random.key(1), vae.Batch(x), 0)
      >>> minus_bound.shape, sorted(metrics)
      ((), ['bound', 'elbo', 'ess'])

    References:
      Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    check_model("iwae", model)
    at_least_one("iwae", particles=particles)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        return bound_of(log_weights(model, params, key, x, c, particles, draw))

    return negative_bound(example)


def stl(model: Model, *, particles: int = 1, draw: MakeDraw = draw) -> Loss:
    """`iwae`, or at K = 1 the ELBO, by sticking the landing: q's score is left out of the gradient.

    `grad_phi = sum_k w~_k d log w_k/dz_k dz_k/d phi`, with the derivative of log w by z alone. At
    K = 1 it is unbiased, and free of noise where q is the exact posterior. **At K > 1 it is
    biased** for q's parameters (`dreg` is the unbiased form); for the decoder and the prior it is
    `iwae`'s. In a `recurrent.vrnn` it also cuts the gradient of q_t through the earlier z, in the
    score alone: that is still unbiased at K = 1, but noisy at the exact posterior.

    Args:
      model: the Model to train.
      particles: K.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss with the value and the metrics of `iwae`.
    Raises:
      ValueError: for particles below 1.
    References:
      Roeder, Wu and Duvenaud, 2017, arXiv:1703.09194; the bias: Tucker et al., 2018,
      arXiv:1810.04152.
    """
    check_model("stl", model)
    at_least_one("stl", particles=particles)

    def held(*args: Any) -> Any:
        d = draw(*args)
        return d._replace(log_q=jax.lax.stop_gradient(d.q).log_prob(d.z))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        return bound_of(log_weights(model, params, key, x, c, particles, held))

    return negative_bound(example)


def dreg(model: Model, *, particles: int, draw: MakeDraw | None = None) -> Loss:
    """`iwae` with the doubly reparameterised gradient for q: less noise at every K, no bias.

    `grad_phi L_K = E[sum_k w~_k^2 d log w_k/dz_k dz_k/d phi]`, `w~_k = w_k / sum_j w_j`, with the
    derivative of log w by z alone. The gradient for the decoder and the prior is that of `iwae`.
    z has to be reparameterised, as in all losses here.

    Args:
      model: the Model to train.
      particles: K.
      draw: how a Draw is made, for models with a draw of their own; it takes `z=` too, a code to
        score. None: the model's way, which encodes x once for all its draws.
    Returns:
      A Loss with the value and the metrics of `iwae`.
    Raises:
      ValueError: for particles below 1.
      TypeError: for a draw without `z`.
    References:
      Tucker, Lawson, Gu and Maddison, 2018, arXiv:1810.04152.
    """
    check_model("dreg", model)
    at_least_one("dreg", particles=particles)
    if draw is not None:
        return _dreg_of_draws(model, particles, draw)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        encode_key, z_key, decode_key = jax.random.split(key, 3)
        q, pz = model.encode(params, x, c, key=encode_key), model.prior(params, c)
        z = jax.vmap(q.sample)(jax.random.split(z_key, particles))
        held = jax.lax.stop_gradient(q)
        z, log_q = _weighed_again(z, jax.vmap(held.log_prob)(z))

        def log_weight(z: Any, log_q: Array, key: Key) -> Array:
            return terms.log_weight(
                Draw(x, z, log_q, held, pz, model.decode(params, z, c, key=key))
            )

        log_w = jax.vmap(log_weight)(z, log_q, jax.random.split(decode_key, particles))
        return bound_of(pathwise(q, z, log_w))

    return negative_bound(example)


def _dreg_of_draws(model: Model, particles: int, draw: Any) -> Loss:
    """`dreg` where z is drawn along a path: log q of the whole path is scored, its params held."""
    if "z" not in inspect.signature(draw).parameters:
        fix = "vaejax.draw and that of a vrnn do; iwae and stl need no such draw"
        raise wrong(
            "dreg: draw", "one without z", "draw(..., z=z), a code to score", fix, TypeError
        )

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        def drawn(key: Key) -> tuple[Any, Array]:
            z = draw(model, params, key, x, c).z
            again, held = jax.random.clone(key), jax.lax.stop_gradient(params)
            return z, draw(model, held, again, x, c, z=z).log_q

        def log_weight(key: Key, z: Any, log_q: Array) -> Array:
            d = draw(model, params, jax.random.clone(key), x, c, z=z)
            return terms.log_weight(d._replace(log_q=log_q))

        keys = jax.random.split(key, particles)
        return bound_of(jax.vmap(log_weight)(keys, *_weighed_again(*jax.vmap(drawn)(keys))))

    return negative_bound(example)


def miwae(model: Model, *, outer: int, inner: int, draw: MakeDraw = draw) -> Loss:
    """The mean of M importance-weighted bounds of K draws each: between `iwae` and the ELBO.

    `L_{M,K} = E[1/M sum_m log 1/K sum_k w_{m,k}]` = L_K; M = 1 is `iwae`, K = 1 the ELBO.

    Args:
      model: the Model to train.
      outer: M.
      inner: K.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss with the metrics of `iwae`; `ess` is of K.
    Raises:
      ValueError: for outer or inner below 1.
    References:
      Rainforth et al., 2018, Tighter variational bounds are not necessarily better,
      arXiv:1802.04537.
    """
    check_model("miwae", model)
    at_least_one("miwae", outer=outer, inner=inner)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_w = log_weights(model, params, key, x, c, outer * inner, draw)
        return jax.tree.map(jnp.mean, jax.vmap(bound_of)(log_w.reshape(outer, inner)))

    return negative_bound(example)


def piwae(model: Model, *, outer: int, inner: int, draw: MakeDraw = draw) -> Loss:
    """Two players on the same M K draws: the generative model climbs `iwae`, q climbs `miwae`.

    The encoder's gradient is that of `L_{M,K} = E[1/M sum_m log 1/K sum_k w_{m,k}]`. The gradient
    of everything else (the decoder, the prior, a VRNN's cell) is that of L_{MK}. Each is taken as
    if the other's parameters were fixed. M = 1 is `iwae`.

    Args:
      model, outer, inner, draw: as for `miwae`.
    Returns:
      A Loss, -L_{MK}. Its metrics are those of `iwae` with M K particles, and `miwae`, L_{M,K}.
    Raises:
      ValueError: for outer or inner below 1.
    References:
      Rainforth et al., 2018, arXiv:1802.04537.
    """
    check_model("piwae", model)
    at_least_one("piwae", outer=outer, inner=inner)
    generative = model._replace(encode=_stopped(model.encode))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        again = jax.random.clone(key)  # the same draws for both: compiled, they are made once
        one = bound_of(log_weights(generative, params, key, x, c, outer * inner, draw))

        def encode(_: Params, *args: Any, **options: Any) -> Any:
            return model.encode(params, *args, **options)

        # All is held but what the encoder sees, a draw's own parameters too.
        inference, held = model._replace(encode=encode), jax.lax.stop_gradient(params)
        log_w = log_weights(inference, held, again, x, c, outer * inner, draw)
        other = jnp.mean(jax.vmap(bound_of)(log_w.reshape(outer, inner))["bound"])
        bound = with_gradient_of(one["bound"], one["bound"] + other)
        return {**one, "bound": bound, "miwae": other}

    return negative_bound(example)


def ciwae(model: Model, *, particles: int, beta: Schedule, draw: MakeDraw = draw) -> Loss:
    """The convex combination of the ELBO and the importance-weighted bound.

    `L = beta E[1/K sum_k log w_k] + (1 - beta) L_K <= log p(x)`: beta = 0 is `iwae`, 1 the ELBO.

    Args:
      model: the Model to train.
      particles: K.
      beta: a number in [0, 1], or a schedule of the step.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss, -L. Its metrics are `bound` (L), `iwae` (L_K), `elbo`, `ess` and `beta`.
    Raises:
      ValueError: for particles below 1, or a beta outside [0, 1].
    References:
      Rainforth et al., 2018, arXiv:1802.04537.
    """
    at_least_one("ciwae", particles=particles)
    if not callable(beta) and not 0 <= beta <= 1:
        raise wrong("ciwae: beta", beta, "a number in [0, 1]", "0 is iwae, 1 is the ELBO")
    parts = iwae(model, particles=particles, draw=draw)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        metrics = parts(params, key, batch, step)[1]
        weight = schedule(beta, step)
        # One zero weight makes the ELBO -inf, which counts only where it has a share.
        share = jnp.where(weight > 0, weight * metrics["elbo"], 0.0)
        bound = share + jnp.where(weight < 1, (1 - weight) * metrics["bound"], 0.0)
        return -bound, {**metrics, "bound": bound, "iwae": metrics["bound"], "beta": weight}

    return loss


def renyi(model: Model, *, alpha: float, particles: int, draw: MakeDraw = draw) -> Loss:
    """The variational Renyi objective by K draws, negated and averaged over the batch.

    `V = E[1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)]`: alpha = 0 is `iwae`, 1 the ELBO (its
    limit), -inf "VR-max", E[max_k log w_k]. For alpha >= 0 it is a lower bound. For **alpha < 0 it
    is none**: it may exceed log p(x), and does as K grows. The gradient is that of V itself. For
    alpha other than 1 this is a biased estimate of the limit K -> inf.

    Args:
      model: the Model to train.
      alpha: the order.
      particles: K.
      draw: how a Draw is made, for models with a draw of their own.
    Returns:
      A Loss, -V. Its metrics are `renyi` (V) and those of `iwae`, whose `bound` (L_K) is a lower
      bound at every alpha.
    Raises:
      ValueError: for particles below 1, or an alpha that is NaN.
    References:
      Li and Turner, 2016, arXiv:1602.02311.
    """
    check_model("renyi", model)
    at_least_one("renyi", particles=particles)
    if not isinstance(alpha, int | float) or math.isnan(alpha):
        raise wrong(
            "renyi: alpha", describe(alpha), "a number", "0 is iwae, 1 the ELBO, -inf VR-max"
        )

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_w = log_weights(model, params, key, x, c, particles, draw)
        return {"renyi": power_mean(log_w, 1 - alpha), **bound_of(log_w)}

    return negative_bound(example, "renyi")


def _stopped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a Model with its parameters held fixed, for the other player's gradient."""

    def held(params: Params, *args: Any, **options: Any) -> Any:
        return function(jax.lax.stop_gradient(params), *args, **options)

    return held


@jax.custom_vjp
def _weighed_again(z: Any, log_q: Array) -> tuple[Any, Array]:
    """The identity on K draws and their log q, whose gradient is multiplied by the weights w~.

    They arrive backwards: that of a bound for log_q_k is w~_k times a factor that all K share.
    """
    return z, log_q


def _weigh_forward(z: Any, log_q: Array) -> tuple[Any, None]:
    return (z, log_q), None


def _weigh_backward(_: None, cotangents: tuple[Any, Array]) -> tuple[Any, Array]:
    total = jnp.sum(cotangents[1])
    # The total is zero for an example that is masked, whose gradient is zero too.
    weights = cotangents[1] / jnp.where(total == 0, 1.0, total)
    return jax.vmap(lambda w, bars: jax.tree.map(lambda bar: w * bar, bars))(weights, cotangents)


_weighed_again.defvjp(_weigh_forward, _weigh_backward)
