"""Losses without a gradient through the draws of z: any q with a log_prob, discrete z too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.distributions import Delta
from vaejax.errors import at_least_one, wrong
from vaejax.model import Draw, Model, check_model, fixed, placed, terms
from vaejax.objectives._log_weights import MakeDraw, bound_of, negative_bound, with_gradient_of
from vaejax.types import Array, Key, Loss, Metrics, Params


def leave_one_out(signal: Array) -> Array:
    """The baseline of each draw: the mean of the others; zero for a single draw.

    Args:
      signal: one number for each draw, `[K]`.
    Returns:
      `[K]`.
    """
    return jnp.sum(_others(signal), axis=1) / max(signal.size - 1, 1)


def score_function(
    model: Model,
    *,
    samples: int,
    baseline: Callable[[Array], Array] = leave_one_out,
    draw: MakeDraw | None = None,
) -> Loss:
    """The ELBO by the score-function estimator (REINFORCE): any q with a log_prob, discrete too.

    `grad = E[1/K sum_k grad log p(x, z_k) + (log w_k - b_k) grad log q(z_k|x)]` at fixed z_k. The
    mean of the first term alone is not the gradient, since the draws move with q.

    Args:
      model: the Model to train.
      samples: K.
      baseline: from the signals log w `[K]` to b `[K]`, where b_k must not depend on z_k:
        `leave_one_out`, `jnp.zeros_like` for none, or a function of one's own.
      draw: how a Draw is made, for models with a draw of their own; None: the model's way, which
        encodes x once for all its draws.
    Returns:
      A Loss, minus the mean of log w. Its metrics are those of `iwae`, but `bound` is the ELBO
      too, and `iwae` is L_K.
    Raises:
      ValueError: for samples below 1.
    References:
      Williams, 1992, Machine Learning 8; Mnih and Gregor, 2014, arXiv:1402.0030; the baseline:
      Kool, van Hoof and Welling, 2019.
    """
    check_model("score_function", model)
    at_least_one("score_function", samples=samples)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_p, log_q = _at_fixed_draws(model, params, key, x, c, samples, draw)
        signal = jax.lax.stop_gradient(log_p - log_q)
        # A draw of weight zero makes the value -inf, and its gradient one of nothing: none.
        finite = jnp.all(jnp.isfinite(signal))
        advantage = jnp.where(finite, signal - baseline(signal), 0.0)
        advantage = jax.lax.stop_gradient(advantage)
        metrics = bound_of(signal)
        bound = with_gradient_of(metrics["elbo"], jnp.mean(log_p + advantage * log_q))
        return {**metrics, "bound": bound, "iwae": metrics["bound"]}

    return negative_bound(example)


def vimco(model: Model, *, particles: int, draw: MakeDraw | None = None) -> Loss:
    """`iwae` by the score-function estimator, each draw with the others as its baseline.

    `grad L_K = E[sum_k (L - L_-k) grad log q(z_k|x) + w~_k grad log w_k]` at fixed z_k. L is the
    log-mean of the weights. L_-k is the same with w_k replaced by the others' geometric mean.

    Args:
      model: the Model to train; z may be discrete.
      particles: K.
      draw: as for `score_function`.
    Returns:
      A Loss with the value and the metrics of `iwae`.
    Raises:
      ValueError: for particles below 2, which leaves no others: take `score_function`.
    References:
      Mnih and Rezende, 2016, arXiv:1602.06725.
    """
    check_model("vimco", model)
    at_least_one("vimco", particles=particles)
    if particles < 2:
        raise wrong("vimco: particles", particles, "2 or more", "for one take score_function")

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_p, log_q = _at_fixed_draws(model, params, key, x, c, particles, draw)
        metrics = bound_of(log_p - log_q)
        log_w = jax.lax.stop_gradient(log_p - log_q)
        replaced = _others(log_w) + jnp.diag(leave_one_out(log_w))
        without = jax.vmap(bound_of)(replaced)["bound"]
        # Where all others weigh nothing their log-mean is -inf, and any other constant serves.
        without = jnp.where(jnp.isneginf(without), 0.0, without)
        value = jax.lax.stop_gradient(metrics["bound"])
        advantage = jnp.where(jnp.isneginf(value), 0.0, value - without)
        bound = with_gradient_of(metrics["bound"], metrics["bound"] + jnp.sum(advantage * log_q))
        return {**metrics, "bound": bound}

    return negative_bound(example)


def reweighted_wake_sleep(
    model: Model, *, particles: int, sleep: float = 0.5, draw: MakeDraw | None = None
) -> Loss:
    """Reweighted wake-sleep: p climbs `iwae`, q follows the posterior, through no draw; any q.

    The wake phase gives p `sum_k w~_k grad log p(x, z_k)`, unbiased for L_K. The gradient of q is
    `1 - sleep` times wake, `sum_k w~_k grad log q(z_k|x)`, plus `sleep` times
    `grad log q(z'|x')` at a dream `x', z' ~ p(x, z)`. Both lower KL(p(z|x) || q(z|x)), and not the
    gap of the bound. Wake does so on the data; it is **biased** at finite K, and zero on average at
    K = 1. Sleep does so on the model's own data; it is unbiased.

    Args:
      model: the Model to train; z may be discrete.
      particles: K.
      sleep: the dream's share, in [0, 1].
      draw: as for `score_function`. The dream is drawn from the model alone, so that with a draw
        of its own there is only wake, `sleep=0`.
    Returns:
      A Loss with the value and the metrics of `iwae`.
    Raises:
      ValueError: for particles below 1, a share outside [0, 1], or one above 0 with a `draw`.
    References:
      Bornschein and Bengio, 2015, arXiv:1406.2751.
    """
    check_model("reweighted_wake_sleep", model)
    at_least_one("reweighted_wake_sleep", particles=particles)
    if not 0 <= sleep <= 1:
        fix = "0 is wake alone, 1 sleep alone"
        raise wrong("reweighted_wake_sleep: sleep", sleep, "a share in [0, 1]", fix)
    if draw is not None and sleep > 0:
        fix = "pass sleep=0: a dream x, z ~ p(x, z) has no draw of its own"
        raise wrong("reweighted_wake_sleep: sleep", sleep, "0 where there is a draw", fix)

    def dream(params: Params, key: Key, c: Any) -> Array:
        z_key, decode_key, x_key, encode_key = jax.random.split(key, 4)
        z = model.prior(params, c).sample(z_key)
        x = model.decode(params, z, c, key=decode_key).sample(x_key)
        x, z = jax.lax.stop_gradient((x, z))
        return model.encode(params, x, c, key=encode_key).log_prob(z)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        wake_key, dream_key = jax.random.split(key)
        log_p, log_q = _at_fixed_draws(model, params, wake_key, x, c, particles, draw)
        metrics = bound_of(log_p - jax.lax.stop_gradient(log_q))
        # The bound's own derivatives by the log-weights are the normalised weights.
        weights = jax.grad(lambda w: bound_of(w)["bound"])(jax.lax.stop_gradient(log_p - log_q))
        towards = metrics["bound"] + (1 - sleep) * jnp.sum(weights * log_q)
        if sleep > 0:
            towards += sleep * dream(params, dream_key, c)
        return {**metrics, "bound": with_gradient_of(metrics["bound"], towards)}

    return negative_bound(example)


def _at_fixed_draws(
    model: Model,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
    particles: int,
    draw: MakeDraw | None,
) -> tuple[Array, Array]:
    """log p(x, z_k) and log q(z_k|x), `[particles]` each, with no gradient through the draws."""
    if draw is not None:

        def of_draw(key: Key) -> tuple[Array, Array]:
            d = draw(placed(model, fixed), params, key, x, c)
            _check_no_point(d.q)
            return _log_joint(d), d.log_q

        return jax.vmap(of_draw)(jax.random.split(key, particles))
    encode_key, z_key, decode_key = jax.random.split(key, 3)
    q, pz = model.encode(params, x, c, key=encode_key), model.prior(params, c)
    _check_no_point(q)

    def log_probs(z_key: Key, decode_key: Key) -> tuple[Array, Array]:
        z = jax.lax.stop_gradient(q.sample(z_key))
        px = model.decode(params, z, c, key=decode_key)
        return _log_joint(Draw(x, z, jnp.zeros(()), q, pz, px)), q.log_prob(z)

    keys = (jax.random.split(key, particles) for key in (z_key, decode_key))
    return jax.vmap(log_probs)(*keys)


def _log_joint(d: Draw) -> Array:
    """log p(x, z): the log-weight without log q, and with no gradient by q."""
    unweighted = d._replace(log_q=jnp.zeros(()), q=jax.lax.stop_gradient(d.q))
    return terms.log_weight(unweighted)


def _check_no_point(q: Any) -> None:
    if isinstance(q, Delta):
        expected = "one whose log_prob has a gradient, which that of a point has not"
        fix = "train it by elbo, through the draws, or by a loss of its own family"
        raise wrong("q(z|x)", type(q).__name__, expected, fix, TypeError)


def _others(values: Array) -> Array:
    """`[K, K]`: in row k all values `[K]`, with a zero in place of the k-th."""
    return jnp.where(jnp.eye(values.size, dtype=bool), 0.0, values[None, :])
