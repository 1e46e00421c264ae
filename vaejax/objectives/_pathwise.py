"""Losses: `(params, key, batch, step) -> (scalar, metrics)`, one function per paper.

Sums over the event, one visible mean over the batch, nats everywhere. The value is the negative
bound (for `elbo` at beta = 1) whatever estimates its gradient. A draw `z ~ q(z|x)` has the
log-weight `log w = log p(x, z) - log q(z|x)`; normalised weights are `w~_k = w_k / sum_j w_j`:

| loss | bound | gradient for q's parameters |
| --- | --- | --- |
| `elbo` | E[log w], the rate in closed form | pathwise |
| `iwae`, `miwae`, `ciwae`, `renyi` | E[log 1/K sum_k w_k] and relatives | pathwise |
| `stl`, `dreg` | that of `iwae` | pathwise, without (doubly, in `dreg`) the score |
| `piwae` | `iwae` with M K draws | that of `miwae` |
| `score_function`, `vimco` | those of `elbo` and `iwae` | f grad log q: discrete z too |
| `reweighted_wake_sleep` | that of `iwae` | its own, towards p(z\\|x): discrete z too |
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.batch import batch_mean, over_batch, present
from vaejax.errors import at_least_one, wrong
from vaejax.model import Draw, Model, draw, terms
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

        keys = jax.random.split(key, samples)
        if samples == 1:  # the same; on CPU a prior with many components is slow under an axis of 1
            return one(keys[0])
        return jax.tree.map(jnp.mean, jax.vmap(one)(keys))

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
        return _bound(_log_weights(model, params, key, x, c, particles, draw))

    return _negative_bound(example)


def stl(model: Model, *, particles: int = 1, draw: Callable[..., Any] = draw) -> Loss:
    """`iwae`, or at K = 1 the ELBO, by sticking the landing: q's score is left out of the gradient.

    `grad_phi = sum_k w~_k d log w_k/dz_k dz_k/d phi`, the derivative of log w by z alone. At K = 1
    it is unbiased, and free of noise where q is the exact posterior. **At K > 1 it is biased** for
    q's parameters (`dreg` is the same thing done right); for the decoder and prior it is `iwae`'s.
    Of a `recurrent.vrnn` the gradient of q_t through the earlier z is cut too, in the score alone:
    still unbiased at K = 1, but with noise at the exact posterior.

    The value, the metrics and the arguments are `iwae`'s. Raises ValueError for K < 1.
    Roeder, Wu and Duvenaud, 2017, arXiv:1703.09194; the bias: Tucker et al., 2018.
    """
    at_least_one("stl", particles=particles)

    def held(*args: Any) -> Any:
        d = draw(*args)
        return d._replace(log_q=jax.lax.stop_gradient(d.q).log_prob(d.z))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        return _bound(_log_weights(model, params, key, x, c, particles, held))

    return _negative_bound(example)


def dreg(model: Model, *, particles: int) -> Loss:
    """`iwae` with the doubly reparameterised gradient for q: less noise at every K, no bias.

    `grad_phi L_K = E[sum_k w~_k^2 d log w_k/dz_k dz_k/d phi]`, `w~_k = w_k / sum_j w_j`, with the
    derivative of log w by z alone; the gradient for the decoder and the prior is that of `iwae`.

    The value and the metrics are `iwae`'s. z has to be reparameterised: a q whose sample has no
    gradient leaves the encoder untrained. Raises ValueError for K < 1.
    Tucker, Lawson, Gu and Maddison, 2018, arXiv:1810.04152.
    """
    at_least_one("dreg", particles=particles)

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

        return _bound(jax.vmap(log_weight)(z, log_q, jax.random.split(decode_key, particles)))

    return _negative_bound(example)


def miwae(model: Model, *, outer: int, inner: int, draw: Callable[..., Any] = draw) -> Loss:
    """The mean of M importance-weighted bounds of K draws each: a compromise between both.

    `L_{M,K} = E[1/M sum_m log 1/K sum_k w_{m,k}]` = L_K; M = 1 is `iwae`, K = 1 the ELBO.

    `outer`: M; `inner`: K; `draw`: how a Draw is made. The metrics are `iwae`'s, `ess` of K.
    Raises ValueError for M < 1 or K < 1.
    Rainforth et al., 2018, Tighter variational bounds are not necessarily better, arXiv:1802.04537.
    """
    at_least_one("miwae", outer=outer, inner=inner)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_w = _log_weights(model, params, key, x, c, outer * inner, draw)
        return jax.tree.map(jnp.mean, jax.vmap(_bound)(log_w.reshape(outer, inner)))

    return _negative_bound(example)


def piwae(model: Model, *, outer: int, inner: int, draw: Callable[..., Any] = draw) -> Loss:
    """Two players on the same M K draws: the generative model climbs `iwae`, q climbs `miwae`.

    The encoder's gradient is that of `L_{M,K} = E[1/M sum_m log 1/K sum_k w_{m,k}]`, and that of
    all else, the decoder, the prior and a VRNN's cell, that of L_{MK}, each as if the other's
    parameters were fixed: M = 1 is `iwae`.

    `outer`: M; `inner`: K; `draw`: how a Draw is made. The loss is -L_{MK}; the metrics are
    `iwae`'s with M K particles, and `miwae`, L_{M,K}. Raises ValueError for M < 1 or K < 1.
    Rainforth et al., 2018, arXiv:1802.04537.
    """
    at_least_one("piwae", outer=outer, inner=inner)
    generative = model._replace(encode=_stopped(model.encode))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        again = jax.random.clone(key)  # the same draws for both: compiled, they are made once
        one = _bound(_log_weights(generative, params, key, x, c, outer * inner, draw))

        def encode(_: Params, *args: Any, **options: Any) -> Any:
            return model.encode(params, *args, **options)

        # All is held but what the encoder sees, a draw's own parameters too.
        inference, held = model._replace(encode=encode), jax.lax.stop_gradient(params)
        log_w = _log_weights(inference, held, again, x, c, outer * inner, draw)
        other = jnp.mean(jax.vmap(_bound)(log_w.reshape(outer, inner))["bound"])
        bound = _with_gradient_of(one["bound"], one["bound"] + other)
        return {**one, "bound": bound, "miwae": other}

    return _negative_bound(example)


def ciwae(model: Model, *, particles: int, beta: Schedule, draw: Callable[..., Any] = draw) -> Loss:
    """The convex combination of the ELBO and the importance-weighted bound.

    `L = beta E[1/K sum_k log w_k] + (1 - beta) L_K <= log p(x)`: beta = 0 is `iwae`, 1 the ELBO.

    `particles`: K; `beta`: a number in [0, 1] or a schedule of the step; `draw`: how a Draw is
    made. The loss is -L; the metrics are `bound` (L), `iwae` (L_K), `elbo`, `ess` and `beta`.
    Raises ValueError for K < 1 or a beta outside [0, 1].
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


def renyi(model: Model, *, alpha: float, particles: int, draw: Callable[..., Any] = draw) -> Loss:
    """The variational Renyi objective by K draws, negated and averaged over the batch.

    `V = E[1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)]`: alpha = 0 is `iwae`, 1 the ELBO (its
    limit), -inf "VR-max", E[max_k log w_k]. For alpha >= 0 it is a lower bound; for **alpha < 0 it
    is none**: it may exceed log p(x), and does as K grows. The gradient is that of V itself, which
    for alpha other than 1 is a biased estimate of the limit K -> inf.

    `alpha`: the order; `particles`: K; `draw`: how a Draw is made. The loss is -V; the metrics are
    `renyi` (V) and `iwae`'s, whose `bound` (L_K) is a lower bound at every alpha. Raises ValueError
    for K < 1 or an alpha that is NaN. Li and Turner, 2016, arXiv:1602.02311.
    """
    at_least_one("renyi", particles=particles)
    if math.isnan(alpha):
        raise wrong("renyi: alpha", alpha, "a number", "0 is iwae, 1 the ELBO, -inf VR-max")

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_w = _log_weights(model, params, key, x, c, particles, draw)
        return {"renyi": _power_mean(log_w, 1 - alpha), **_bound(log_w)}

    return _negative_bound(example, "renyi")


def maximum_likelihood(network: Any) -> Loss:
    """-log p(x|c) of a network without latent variables, averaged over the batch, nats per example.

    `network`: any object with `.init(key, *c) -> params` and `.apply(params, *c, rngs=None)`, the
    Distribution of one example: a Linen module that returns one (a flow, a mixture), or
    `autoregressive.Causal`. The metrics are `log_px`.
    """

    def example(params: Params, key: Key, x: Any, c: Any) -> Array:
        return network.apply(params, *present(c), rngs={"dropout": key}).log_prob(x)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        log_px = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return -log_px, {"log_px": log_px}

    return loss


def leave_one_out(signal: Array) -> Array:
    """The baseline of each draw: the mean of the others, `[K] -> [K]`; zero for a single draw."""
    return jnp.sum(_others(signal), axis=1) / max(signal.size - 1, 1)


def score_function(
    model: Model, *, samples: int, baseline: Callable[[Array], Array] = leave_one_out
) -> Loss:
    """The ELBO by the score-function estimator (REINFORCE): any q with a log_prob, discrete too.

    `grad = E[1/K sum_k grad log p(x, z_k) + (log w_k - b_k) grad log q(z_k|x)]` at fixed z_k; the
    mean of the first term alone is not the gradient, since the draws move with q.

    `samples`: K; `baseline`: the signals log w `[K]` to b `[K]`, where b_k must not depend on z_k:
    `leave_one_out`, `jnp.zeros_like` for none, or a function of one's own. The loss is minus the
    mean of log w; the metrics are `iwae`'s with `elbo` under the name of `bound` too, and `iwae`.
    Raises ValueError for K < 1. Williams, 1992, Machine Learning 8; Mnih and Gregor, 2014,
    arXiv:1402.0030; the baseline: Kool, van Hoof and Welling, 2019.
    """
    at_least_one("score_function", samples=samples)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_p, log_q = _at_fixed_draws(model, params, key, x, c, samples)
        signal = jax.lax.stop_gradient(log_p - log_q)
        # A draw of weight zero makes the value -inf, and its gradient one of nothing: none.
        finite = jnp.all(jnp.isfinite(signal))
        advantage = jnp.where(finite, signal - baseline(signal), 0.0)
        advantage = jax.lax.stop_gradient(advantage)
        metrics = _bound(signal)
        bound = _with_gradient_of(metrics["elbo"], jnp.mean(log_p + advantage * log_q))
        return {**metrics, "bound": bound, "iwae": metrics["bound"]}

    return _negative_bound(example)


def vimco(model: Model, *, particles: int) -> Loss:
    """`iwae` by the score-function estimator, each draw with the others as its baseline.

    `grad L_K = E[sum_k (L - L_-k) grad log q(z_k|x) + w~_k grad log w_k]` at fixed z_k, where L is
    the log-mean of the weights and L_-k the same with w_k replaced by the others' geometric mean.

    `particles`: K; the value and the metrics are `iwae`'s; z may be discrete. Raises ValueError for
    K < 2, which leaves no others: take `score_function`.
    Mnih and Rezende, 2016, arXiv:1602.06725.
    """
    if particles < 2:
        raise wrong("vimco: particles", particles, "2 or more", "for one take score_function")

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        log_p, log_q = _at_fixed_draws(model, params, key, x, c, particles)
        metrics = _bound(log_p - log_q)
        log_w = jax.lax.stop_gradient(log_p - log_q)
        replaced = _others(log_w) + jnp.diag(leave_one_out(log_w))
        without = jax.vmap(_bound)(replaced)["bound"]
        # Where all others weigh nothing their log-mean is -inf, and any other constant serves.
        without = jnp.where(jnp.isneginf(without), 0.0, without)
        value = jax.lax.stop_gradient(metrics["bound"])
        advantage = jnp.where(jnp.isneginf(value), 0.0, value - without)
        bound = _with_gradient_of(metrics["bound"], metrics["bound"] + jnp.sum(advantage * log_q))
        return {**metrics, "bound": bound}

    return _negative_bound(example)


def reweighted_wake_sleep(model: Model, *, particles: int, sleep: float = 0.5) -> Loss:
    """Reweighted wake-sleep: p climbs `iwae`, q follows the posterior, through no draw; any q.

    Wake, for p: `sum_k w~_k grad log p(x, z_k)`, unbiased for L_K. For q, `1 - sleep` times wake,
    `sum_k w~_k grad log q(z_k|x)`, plus `sleep` times `grad log q(z'|x')` at a dream
    `x', z' ~ p(x, z)`. They lower KL(p(z|x) || q(z|x)), on the data (wake: **biased** at finite K,
    and nothing at K = 1) and on the model's own data (sleep: unbiased); not the gap of the bound.

    `particles`: K; `sleep`: the dream's share in [0, 1]. The value and the metrics are `iwae`'s.
    Raises ValueError for K < 1 or a share outside [0, 1].
    Bornschein and Bengio, 2015, arXiv:1406.2751.
    """
    at_least_one("reweighted_wake_sleep", particles=particles)
    if not 0 <= sleep <= 1:
        fix = "0 is wake alone, 1 sleep alone"
        raise wrong("reweighted_wake_sleep: sleep", sleep, "a share in [0, 1]", fix)

    def dream(params: Params, key: Key, c: Any) -> Array:
        z_key, decode_key, x_key, encode_key = jax.random.split(key, 4)
        z = model.prior(params, c).sample(z_key)
        x = model.decode(params, z, c, key=decode_key).sample(x_key)
        x, z = jax.lax.stop_gradient((x, z))
        return model.encode(params, x, c, key=encode_key).log_prob(z)

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        wake_key, dream_key = jax.random.split(key)
        log_p, log_q = _at_fixed_draws(model, params, wake_key, x, c, particles)
        metrics = _bound(log_p - jax.lax.stop_gradient(log_q))
        # The bound's own derivatives by the log-weights are the normalised weights.
        weights = jax.grad(lambda w: _bound(w)["bound"])(jax.lax.stop_gradient(log_p - log_q))
        towards = metrics["bound"] + (1 - sleep) * jnp.sum(weights * log_q)
        if sleep > 0:
            towards += sleep * dream(params, dream_key, c)
        return {**metrics, "bound": _with_gradient_of(metrics["bound"], towards)}

    return _negative_bound(example)


def schedule(value: Schedule, step: Any) -> Array:
    """The value of a number or of a schedule at a step, `()`, in the default float type."""
    return jnp.asarray(value(step) if callable(value) else value, float)


def _log_weights(
    model: Model, params: Params, key: Key, x: Any, c: Any, particles: int, draw: Callable[..., Any]
) -> Array:
    """log w of `particles` draws of z for one example, `[particles]`."""

    def log_weight(key: Key) -> Array:
        return terms.log_weight(draw(model, params, key, x, c))

    return jax.vmap(log_weight)(jax.random.split(key, particles))


def _at_fixed_draws(
    model: Model, params: Params, key: Key, x: Any, c: Any, particles: int
) -> tuple[Array, Array]:
    """log p(x, z_k) and log q(z_k|x), `[particles]` each, with no gradient through the draws."""
    encode_key, z_key, decode_key = jax.random.split(key, 3)
    q, pz = model.encode(params, x, c, key=encode_key), model.prior(params, c)

    def log_probs(z_key: Key, decode_key: Key) -> tuple[Array, Array]:
        z = jax.lax.stop_gradient(q.sample(z_key))
        px = model.decode(params, z, c, key=decode_key)
        unweighted = Draw(x, z, jnp.zeros(()), q, pz, px)  # log p(x, z) is its log-weight
        return terms.log_weight(unweighted), q.log_prob(z)

    keys = (jax.random.split(key, particles) for key in (z_key, decode_key))
    return jax.vmap(log_probs)(*keys)


def _bound(log_w: Array) -> Metrics:
    """Log-mean of the weights, mean log-weight and effective sample size of log-weights `[K]`."""
    nothing, log_w_or_0 = _all_zero(log_w)
    return {
        "bound": jnp.where(nothing, -jnp.inf, terms.log_mean_exp(log_w_or_0)),
        "elbo": jnp.mean(log_w),
        "ess": jnp.where(nothing, 0.0, terms.effective_sample_size(log_w_or_0)),
    }


def _power_mean(log_w: Array, power: float) -> Array:
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
    """Whether every weight is zero; and the log-weights, 0 then, so that no gradient is 0 / 0."""
    nothing = jnp.all(jnp.isneginf(log_w))
    return nothing, jnp.where(nothing, 0.0, log_w)


def _others(values: Array) -> Array:
    """`[K, K]`: in row k all values `[K]`, with a zero in place of the k-th."""
    return jnp.where(jnp.eye(values.size, dtype=bool), 0.0, values[None, :])


def _stopped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a Model with its parameters held fixed, for the other player's gradient."""

    def held(params: Params, *args: Any, **options: Any) -> Any:
        return function(jax.lax.stop_gradient(params), *args, **options)

    return held


@jax.custom_jvp
def _with_gradient_of(value: Array, surrogate: Array) -> Array:
    """The first number, with the gradient of the second."""
    return value


@_with_gradient_of.defjvp
def _surrogate_tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], tangents[1]


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


def _negative_bound(example: Callable[..., Metrics], name: str = "bound") -> Loss:
    """The loss of an example's metrics: minus the batch's mean of the one of that name."""

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        metrics = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return -metrics[name], metrics

    return loss
