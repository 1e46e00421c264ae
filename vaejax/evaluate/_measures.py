"""Numbers of a trained model on a data set: the bound and its parts, importance-sampled log p(x).

Each function is compiled once per model and transform: pass the same function object, not a new
lambda. The loop goes over chunks of examples and particles, so that memory stays bounded. Layer
noise such as dropout is off. An example's randomness depends on the key and its index alone, so
that the chunk sizes change nothing but speed and memory. `mean_loss` averages any training loss.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import over_examples, present, size_of
from vaejax.errors import checked_result, finite_values, takes, warn_of_levels, wrong
from vaejax.evaluate._each import checked_batch, measure_each
from vaejax.model import Draw, Model, deterministic, draw, reconstruct, terms
from vaejax.networks import check_module
from vaejax.types import Array, Key, Loss, Metrics, Params, PerExample, Transform


class Likelihood(NamedTuple):
    """An estimate of log p(x) for every image, and how far it can be trusted.

    Args:
      log_px: nats, a lower bound in expectation, `[n]`.
      ess: the effective sample size, `(sum w)^2 / sum w^2`, between 1 and the number of particles,
        `[n]`.
    """

    log_px: PerExample
    ess: PerExample


def elbo_terms(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    samples: int = 1,
    draw: Callable[..., Any] = draw,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> dict[str, PerExample]:
    """The bound and its parts for every example: `elbo`, `distortion` and `rate`.

    `ELBO = -(D + R)`, D and R averaged over `samples` draws of z.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`; rows of weight 0 may be anything.
      samples: draws of z per example.
      draw: how a Draw is made, as in the losses.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      `{"elbo", "distortion", "rate"}`, each `[n]`, nats.
    Raises:
      ValueError: for samples < 1, and where a number of weight above 0 is not finite, with the
        example's index.
    Example:
      >>> import jax
      >>> from vaejax import evaluate, linear
      >>> model = linear.linear_gaussian(3, latent=1)
      >>> x = jax.numpy.ones((4, 3))
      >>> params = model.init(jax.random.key(0), x[0])
      >>> found = evaluate.elbo_terms(model, params, jax.random.key(1), x)
      >>> {name: value.shape for name, value in found.items()}
      {'elbo': (4,), 'distortion': (4,), 'rate': (4,)}
    """
    batch = checked_batch("elbo_terms", key, data, samples=samples, batch_size=batch_size)
    options = model, samples, draw
    D, R = measure_each(_elbo_terms, options, transform, batch_size, params, key, batch)
    result = {"elbo": -(D + R), "distortion": D, "rate": R}
    return {
        name: check_counted("elbo_terms", name, value, batch.x, batch.weight)
        for name, value in result.items()
    }


def log_likelihood(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    particles: int,
    draw: Callable[..., Any] | None = None,
    transform: Transform | None = None,
    batch_size: int = 20,
    chunk: int = 50,
) -> Likelihood:
    """log p(x) of every example by importance sampling with q as the proposal.

    `L_K = log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)`, `z_k ~ q(z|x)`; its expectation rises with
    K towards log p(x) from below. The sum streams over chunks of particles: memory is that of
    `batch_size * chunk` decoded examples, whatever K and n are. The default, 1000 at a time, is
    what a CPU's caches like; on a GPU more are faster.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`; rows of weight 0 may be anything.
      particles: K.
      draw: how a Draw is made, where that is not the model's own way, which encodes x once for all
        its particles.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
      chunk: particles in memory at a time.
    Returns:
      A Likelihood: `log_px` `[n]`, nats, and `ess` `[n]`.
    Raises:
      ValueError: for K < 1, for a model without a prior, and where a number of weight above 0 is
        not finite, with the example's index.
      TypeError: if q(z|x) is a point (Delta) but p(z) is a density.
    Example:
      >>> import jax
      >>> from vaejax import evaluate, linear
      >>> model = linear.linear_gaussian(3, latent=1)
      >>> x = jax.numpy.ones((4, 3))
      >>> params = model.init(jax.random.key(0), x[0])
      >>> log_px, ess = evaluate.log_likelihood(model, params, jax.random.key(1), x, particles=8)
      >>> log_px.shape, ess.shape
      ((4,), (4,))

    References:
      Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    counts = {"particles": particles, "batch_size": batch_size, "chunk": chunk}
    batch = checked_batch("log_likelihood", key, data, **counts)
    options = model, particles, draw, min(chunk, particles)
    log_px, ess = measure_each(_log_likelihood, options, transform, batch_size, params, key, batch)
    log_px = check_counted("log_likelihood", "log p(x)", log_px, batch.x, batch.weight)
    return Likelihood(log_px, np.asarray(ess))


def log_prob(
    network: Any,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> PerExample:
    """The exact log p(x|c) of every example under a network without latent variables.

    Args:
      network: as in `objectives.maximum_likelihood`.
      params: its parameters.
      key: for the `transform` alone.
      data: a Batch, or the x of one, `[n, ...]`; rows of weight 0 may be anything.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      log p(x|c), nats, `[n]`.
    Raises:
      ValueError: where a number of weight above 0 is not finite, with the example's index.
    """
    batch = checked_batch("log_prob", key, data, batch_size=batch_size)
    found = measure_each(_log_prob, (network,), transform, batch_size, params, key, batch)
    return check_counted("log_prob", "log p(x)", found, batch.x, batch.weight)


def codes(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The mean code E[q(z|x)] of every example: a data set of representations.

    Rows of weight 0 are encoded as they are: their codes may be anything, NaN too, and keep the
    weight 0.

    Args:
      model, params: a Model and its parameters.
      key: for the `transform` alone.
      data: a Batch, or the x of one, `[n, ...]`.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The codes, `[n, *latent]`.
    Raises:
      ValueError: where a code of weight above 0 is not finite, with the example's index.
    """
    batch = checked_batch("codes", key, data, batch_size=batch_size)
    found = measure_each(_code, (model,), transform, batch_size, params, key, batch)
    total = jnp.sum(found, axis=range(1, found.ndim))
    check_counted("codes", "the sum of the code", total, batch.x, batch.weight)
    return found


def reconstructions(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The reconstruction r(x) = E[x|z = E[q(z|x)]] of every example.

    Args:
      model, params, key, data, transform, batch_size: as in `codes`, also for rows of weight 0.
    Returns:
      r(x), in the shape of x, `[n, ...]`.
    Raises:
      ValueError: where a reconstruction of weight above 0 is not finite, with the example's index.
    """
    batch = checked_batch("reconstructions", key, data, batch_size=batch_size)
    found = measure_each(_reconstruction, (model,), transform, batch_size, params, key, batch)
    total = jnp.sum(found, axis=range(1, found.ndim))
    check_counted("reconstructions", "the sum of r(x)", total, batch.x, batch.weight)
    return found


def squared_error(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> PerExample:
    """|x - r(x)|^2 of every example, summed over its entries.

    `r(x) = E[x|z = E[q(z|x)]]`, the reconstruction at the mean code: under the squared-error loss
    and under any other, the number that PCA's error is compared with.

    Args:
      model, params, key, data, transform, batch_size: as in `codes`, also for rows of weight 0.
    Returns:
      The error, squared units of x, `[n]`.
    Raises:
      ValueError: where an error of weight above 0 is not finite, with the example's index.
    """
    batch = checked_batch("squared_error", key, data, batch_size=batch_size)
    found = measure_each(_squared_error, (model,), transform, batch_size, params, key, batch)
    return check_counted("squared_error", "|x - r(x)|^2", found, batch.x, batch.weight)


def reconstruction_error(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> PerExample:
    """The distortion at the mean code, `-log p(x|z = E[z|x])`.

    Summed over the event, never averaged; under a Normal likelihood with fixed scale it is the
    squared error over `2 scale^2`, plus a constant.

    Args:
      model, params, key, data, transform, batch_size: as in `codes`.
    Returns:
      The distortion, nats, `[n]`.
    Raises:
      ValueError: where a number is not finite, with the example's index.
    """
    batch = checked_batch("reconstruction_error", key, data, batch_size=batch_size)
    error = measure_each(_minus_log_px, (model,), transform, batch_size, params, key, batch)
    return finite_values("reconstruction_error", "-log p(x|z)", error, batch.x)


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
      data: a Batch, or the x of one, `[n, ...]`.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples of a part, at most.
      step: what schedules see, by default past their end.
    Returns:
      Floats by name, nats per example: `loss`, and the metrics.
    Raises:
      ValueError: where no example has a weight above 0.
    """
    takes("mean_loss: loss", loss, "params, key, batch, step", "such as objectives.elbo(model)")
    data = checked_batch("evaluate.mean_loss", key, data, batch_size=batch_size)
    size = size_of(data)
    totals: dict[str, float] = {}
    whole = 0.0
    parts = -(-size // batch_size)
    for start, stop in pairwise(i * size // parts for i in range(parts + 1)):
        part = jax.tree.map(lambda leaf, s=start, e=stop: leaf[s:e], data)
        share = float(size_of(part) if isinstance(part.weight, tuple) else np.sum(part.weight))
        if share == 0:
            continue
        metrics = _batch_loss(loss, transform, params, jax.random.fold_in(key, start), part, step)
        for name, value in jax.device_get(metrics).items():
            totals[name] = totals.get(name, 0.0) + float(value) * share
        whole += share
    if whole == 0:
        fix = "give at least one example a weight"
        raise wrong("mean_loss: data.weight", "no weight above 0", "a positive sum", fix)
    return {name: total / whole for name, total in totals.items()}


def check_counted(function: str, name: str, values: Any, x: Any, weight: Any) -> PerExample:
    """`errors.finite_values` of the examples that count alone.

    Args:
      function, name: of the measure and the quantity, for the message.
      values: `[n]`.
      x: the examples `[n, ...]`, whose range the message gives.
      weight: of the examples, `[n]` or `()`.
    Returns:
      All values as they are, numpy's, `[n]`.
    Raises:
      ValueError: where a value of weight above 0 is not finite, with the example's index.
    """
    values = np.asarray(values)
    counts = isinstance(weight, tuple) or np.asarray(weight) > 0
    finite_values(function, name, np.where(counts, values, 0), x)
    return values


def _log_prob(network: Any, params: Params, key: Key, x: Any, c: Any) -> Array:
    check_module("log_prob: network", network, ("apply",))
    return network.apply(params, *present(c)).log_prob(x)


def _code(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    return deterministic(model).encode(params, x, c).mean


def _reconstruction(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    return reconstruct(deterministic(model), params, x, c)


def _squared_error(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    return jnp.sum((x - _reconstruction(model, params, key, x, c)) ** 2)


def _minus_log_px(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    model = deterministic(model)
    return -model.decode(params, model.encode(params, x, c).mean, c).log_prob(x)


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


def _elbo_terms(
    model: Model,
    samples: int,
    draw: Callable[..., Any],
    params: Params,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array]:
    model = deterministic(model)

    def one(sample_key: Key) -> tuple[Array, Array]:
        d = draw(model, params, sample_key, x, c)
        return terms.distortion(d), terms.rate(d)

    return jax.tree.map(jnp.mean, jax.vmap(one)(jax.random.split(key, samples)))


def _log_likelihood(
    model: Model,
    particles: int,
    draw: Callable[..., Any] | None,
    chunk: int,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array]:
    model = deterministic(model)
    own = draw is None
    q: Any = model.encode(params, x, c) if own else None
    pz = model.prior(params, c) if own else None

    def draw_one(key: Key) -> Draw:
        if draw is not None:
            return draw(model, params, key, x, c)
        z, log_q = q.sample_and_log_prob(key)
        return Draw(x, z, log_q, q, pz, model.decode(params, z, c))

    def log_weight(particle: Array) -> Array:
        d = draw_one(jax.random.fold_in(key, particle))
        return jnp.where(particle < particles, terms.log_weight(d), -jnp.inf)

    def add(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, squares = sums
        log_w = jax.vmap(log_weight)(i * chunk + jnp.arange(chunk))
        new = jnp.maximum(top, jnp.max(log_w))
        # While every weight so far is zero the maximum is -inf: count from 0 instead.
        shift = jnp.where(jnp.isneginf(new), 0.0, new)
        w, old = jnp.exp(log_w - shift), jnp.exp(top - shift)
        return new, total * old + jnp.sum(w), squares * old**2 + jnp.sum(w**2)

    start = (jnp.array(-jnp.inf), jnp.array(0.0), jnp.array(0.0))
    top, total, squares = lax.fori_loop(0, -(-particles // chunk), add, start)
    return top + jnp.log(total) - jnp.log(float(particles)), total**2 / squares


__all__ = [
    "Likelihood",
    "codes",
    "elbo_terms",
    "log_likelihood",
    "log_prob",
    "mean_loss",
    "reconstruction_error",
    "reconstructions",
    "squared_error",
]
