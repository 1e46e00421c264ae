"""Numbers of a trained model on a data set: the bound and its parts, importance-sampled log p(x).

`elbo_terms` and `log_likelihood` are compiled once per model (and transform: pass the same function
object, not a new lambda), chunked over examples and particles so that memory stays bounded, with
layer noise such as dropout off. An example's randomness depends on the key and its index alone, so
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

from vaejax.batch import as_batch, example_at, over_data, over_examples, present, size_of
from vaejax.data.sources import in_arrays
from vaejax.errors import at_least_one, check_key, finite_values, warn_of_levels, wrong
from vaejax.model import Draw, Model, deterministic, draw, reconstruct, terms
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform


class Likelihood(NamedTuple):
    """Per-image estimate of log p(x) and how far it can be trusted.

    `log_px` `[n]`: nats, a lower bound in expectation; `ess` `[n]`: effective sample size,
    `(sum w)^2 / sum w^2`, between 1 and the number of particles.
    """

    log_px: np.ndarray
    ess: np.ndarray


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
) -> dict[str, np.ndarray]:
    """The bound and its parts for every example: `elbo`, `distortion`, `rate`, each `[n]`, nats.

    `ELBO = -(D + R)`, D and R averaged over `samples` draws of z. `data` is a Batch, or the x of
    one, `[n, ...]`: stored data if a `transform(key, x)` is given (drawn once per example), else
    what the likelihood sees. `draw`: how a Draw is made, as in the losses. Rows of weight 0 may be
    anything. Raises ValueError where another number is not finite, with the example's index.
    """
    batch = as_batch(data)
    counts = {"samples": samples, "batch_size": batch_size, "examples": size_of(batch.x)}
    at_least_one("elbo_terms", **counts)
    sizes = samples, draw, transform, batch_size
    D, R = _elbo_terms(model, *sizes, params, key, batch.x, batch.c)
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
    `batch_size * chunk` decoded examples, whatever K and n are; the default, 1000 at a time, is
    what a CPU's caches like, and on a GPU more are faster.

    `data`: a Batch, or the x of one, `[n, ...]`; `particles`: K; `draw`: how a Draw is made, where
    that is not the model's own way (which encodes x once for all its particles); returns `log_px`
    `[n]` (nats) and `ess` `[n]`. Rows of weight 0 may be anything. Raises ValueError for K < 1, for
    a model without a prior, and where another number is not finite, with the example's index;
    TypeError for a point posterior under a density.
    Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    batch = as_batch(data)
    counts = {"particles": particles, "batch_size": batch_size, "examples": size_of(batch.x)}
    at_least_one("log_likelihood", **counts, chunk=chunk)
    sizes = particles, draw, transform, batch_size, min(chunk, particles)
    log_px, ess = _log_likelihood(model, *sizes, params, key, batch.x, batch.c)
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
) -> np.ndarray:
    """The exact log p(x|c) of every example under a network without latent variables: `[n]`, nats.

    `network`: as in `objectives.maximum_likelihood`; the other arguments as in `elbo_terms`. Rows
    of weight 0 may be anything. Raises ValueError where another number is not finite, with the
    example's index.
    """
    batch = as_batch(data)
    at_least_one("log_prob", batch_size=batch_size, examples=size_of(batch.x))
    found = _log_prob(network, transform, batch_size, params, key, batch)
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
    """The mean code E[q(z|x)] of every example, `[n, *latent]`: a data set of representations.

    `data`: a Batch, or the x of one, `[n, ...]`; `transform(key, x)`: of stored data, drawn once
    per example, which alone uses the key; `batch_size`: examples in memory at a time.
    Rows of weight 0 are encoded as they are: their codes may be anything, NaN too, and keep the
    weight 0. Raises ValueError where another code is not finite, with the example's index.
    """
    batch = as_batch(data)
    at_least_one("codes", batch_size=batch_size, examples=size_of(batch.x))
    found = over_prepared(_code, model, transform, batch_size, params, key, batch)
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
    """The reconstruction r(x) = E[x|z = E[q(z|x)]] of every example, in the shape of x: `[n, ...]`.

    Arguments, and rows of weight 0, as for `codes`. Raises ValueError where another reconstruction
    is not finite, with the example's index.
    """
    batch = as_batch(data)
    at_least_one("reconstructions", batch_size=batch_size, examples=size_of(batch.x))
    found = over_prepared(reconstruct, model, transform, batch_size, params, key, batch)
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
) -> np.ndarray:
    """|x - r(x)|^2 of every example, summed over its entries: `[n]`, squared units of x.

    `r(x) = E[x|z = E[q(z|x)]]`, the reconstruction at the mean code: under the squared-error loss
    and under any other, the number that PCA's error is compared with. Arguments, and rows of
    weight 0, as for `codes`. Raises ValueError where another error is not finite, with the
    example's index.
    """
    batch = as_batch(data)
    at_least_one("squared_error", batch_size=batch_size, examples=size_of(batch.x))
    found = over_prepared(_squared_error, model, transform, batch_size, params, key, batch)
    return check_counted("squared_error", "|x - r(x)|^2", found, batch.x, batch.weight)


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
    once. `step` is what schedules see, by default past their end. Examples count by their weights
    where the batch has them. The parts, of `batch_size` at most, are equally large up to one
    example, so that a loss that compares the examples of a batch has none of one alone. Returns
    floats by name, nats per example.
    """
    data = as_batch(in_arrays("evaluate.mean_loss", data))
    size = size_of(data)
    at_least_one("mean_loss", batch_size=batch_size, examples=size)
    check_key("evaluate.mean_loss", key)
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


def check_counted(function: str, name: str, values: Any, x: Any, weight: Any) -> np.ndarray:
    """`errors.check_finite` of the examples that count alone; all values `[n]` as they are."""
    values = np.asarray(values)
    counts = isinstance(weight, tuple) or np.asarray(weight) > 0
    finite_values(function, name, np.where(counts, values, 0), x)
    return values


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def over_prepared(
    measure: Callable[..., Array],
    model: Model,
    transform: Transform | None,
    batch_size: int,
    params: Params,
    key: Key,
    batch: Batch,
) -> Array:
    """`measure(model, params, x, c)` of every example, layer noise off."""
    model = deterministic(model)

    def example(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return measure(model, params, x, c)

    return over_data(example, size_of(batch.x), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_prob(
    network: Any, transform: Any, batch_size: int, params: Params, key: Key, batch: Batch
) -> Array:
    def example(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return network.apply(params, *present(c)).log_prob(x)

    return over_data(example, size_of(batch.x), batch_size)


def _code(model: Model, params: Params, x: Any, c: Any) -> Array:
    return model.encode(params, x, c).mean


def _squared_error(model: Model, params: Params, x: Any, c: Any) -> Array:
    return jnp.sum((x - reconstruct(model, params, x, c)) ** 2)


@partial(jax.jit, static_argnums=(0, 1))
def _batch_loss(
    loss: Loss, transform: Transform | None, params: Params, key: Key, batch: Any, step: Any
) -> Metrics:
    transform_key, loss_key = jax.random.split(key)
    warn_of_levels(batch.x, transform, "evaluate.mean_loss")
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    value, metrics = loss(params, loss_key, batch, step)
    return {"loss": value, **metrics}


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _elbo_terms(
    model: Model,
    samples: int,
    draw: Callable[..., Any],
    transform: Any,
    batch_size: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array]:
    model = deterministic(model)

    def example(index: Array) -> tuple[Array, Array]:
        one_x, one_c, samples_key = example_at(key, transform, index, x, c)

        def one(sample_key: Key) -> tuple[Array, Array]:
            d = draw(model, params, sample_key, one_x, one_c)
            return terms.distortion(d), terms.rate(d)

        return jax.tree.map(jnp.mean, jax.vmap(one)(jax.random.split(samples_key, samples)))

    return over_data(example, size_of(x), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _log_likelihood(
    model: Model,
    particles: int,
    draw: Callable[..., Any] | None,
    transform: Any,
    batch_size: int,
    chunk: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array]:
    model = deterministic(model)

    def example(index: Array) -> tuple[Array, Array]:
        one_x, one_c, particles_key = example_at(key, transform, index, x, c)
        own = draw is None
        q: Any = model.encode(params, one_x, one_c) if own else None
        pz = model.prior(params, one_c) if own else None

        def draw_one(key: Key) -> Draw:
            if draw is not None:
                return draw(model, params, key, one_x, one_c)
            z, log_q = q.sample_and_log_prob(key)
            return Draw(one_x, z, log_q, q, pz, model.decode(params, z, one_c))

        def log_weight(particle: Array) -> Array:
            d = draw_one(jax.random.fold_in(particles_key, particle))
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

    return over_data(example, size_of(x), batch_size)


__all__ = [
    "Likelihood",
    "codes",
    "elbo_terms",
    "log_likelihood",
    "log_prob",
    "mean_loss",
    "reconstructions",
    "squared_error",
]
