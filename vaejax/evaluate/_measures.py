"""Numbers of a trained model on a data set: the bound and its parts, importance-sampled log p(x).

Each function is compiled once per model and transform: pass the same function object, not a new
lambda. The loop goes over chunks of examples and particles, so that memory stays bounded. Layer
noise such as dropout is off. An example's randomness depends on the key and its index alone, so
that the chunk sizes change nothing but speed and memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import present
from vaejax.errors import at_least_one, wrong
from vaejax.evaluate._each import checked_each, measure, total_of
from vaejax.model import (
    Draw,
    Model,
    at_mean,
    deterministic,
    draw,
    placed,
    reconstruct,
    terms,
)
from vaejax.networks import functional
from vaejax.types import (
    Array,
    Key,
    Params,
    PerExample,
    Transform,
    describe_fields,
)


@describe_fields
class Likelihood(NamedTuple):
    """An estimate of log p(x) for every image, and how far it can be trusted.

    Args:
      log_px: nats, a lower bound in expectation, `[n]`.
      ess: the effective sample size, `(sum w)^2 / sum w^2`, between 1 and the number of particles,
        `[n]`.
    """

    log_px: PerExample
    ess: PerExample


@measure
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
      data: a Batch, or the x of one, `[n, ...]`, or a Source; rows of weight 0 may be anything.
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
    options = model, samples, draw
    loop = _elbo_terms, options, transform, batch_size
    found = checked_each("elbo_terms", _bound, *loop, params, key, data, samples=samples)
    return {name: np.asarray(values) for name, values in _bound(found).items()}


@measure
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
      data: a Batch, or the x of one, `[n, ...]`, or a Source; rows of weight 0 may be anything.
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
    at_least_one("log_likelihood", particles=particles, chunk=chunk)
    options = model, particles, draw, min(chunk, particles)
    loop = _log_likelihood, options, transform, batch_size
    found = checked_each("log_likelihood", _log_px, *loop, params, key, data)
    return Likelihood(*map(np.asarray, found))


@measure
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
      data: a Batch, or the x of one, `[n, ...]`, or a Source; rows of weight 0 may be anything.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      log p(x|c), nats, `[n]`.
    Raises:
      ValueError: where a number of weight above 0 is not finite, with the example's index.
    """
    loop = _log_prob, (network,), transform, batch_size
    return np.asarray(checked_each("log_prob", _log_px, *loop, params, key, data))


@measure
def codes(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    draw: Callable[..., Any] | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The mean code E[q(z|x)] of every example: a data set of representations.

    Rows of weight 0 are encoded as they are: their codes may be anything, NaN too, and keep the
    weight 0.

    Args:
      model, params: a Model and its parameters.
      key: for the `transform` alone.
      data: a Batch, or the x of one, `[n, ...]`, or a Source.
      draw: how a Draw is made, where that is not the model's own way. Its z is the code, with
        every posterior on the way at its mean: so do the steps of a `recurrent.vrnn` follow each
        other, and the code of a masked step is 0.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The codes, `[n, *latent]`.
    Raises:
      ValueError: where a code of weight above 0 is not finite, with the example's index.
    """
    loop = _code, (model, draw), transform, batch_size
    return checked_each("codes", _summed_code, *loop, params, key, data)


@measure
def reconstructions(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    draw: Callable[..., Any] | None = None,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The reconstruction r(x) = E[x|z = E[q(z|x)]] of every example.

    Args:
      model, params, key, data, draw, transform, batch_size: as in `codes`, also for rows of weight
        0.
    Returns:
      r(x), in the shape of x, `[n, ...]`.
    Raises:
      ValueError: where a reconstruction of weight above 0 is not finite, with the example's index.
    """
    loop = _reconstruction, (model, draw), transform, batch_size
    return checked_each("reconstructions", _summed_reconstruction, *loop, params, key, data)


@measure
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
    loop = _squared_error, (model,), transform, batch_size
    return np.asarray(checked_each("squared_error", _error, *loop, params, key, data))


@measure
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
    loop = _minus_log_px, (model,), transform, batch_size
    return np.asarray(checked_each("reconstruction_error", _distortion, *loop, params, key, data))


# What has to be finite in what was measured, by the names of the messages.
def _bound(found: tuple[Array, Array]) -> dict[str, Array]:
    D, R = map(np.asarray, found)  # eager sums of JAX's would be compiled
    return {"elbo": -(D + R), "distortion": D, "rate": R}


def _log_px(found: Any) -> dict[str, Array]:
    return {"log p(x)": found[0] if isinstance(found, tuple) else found}


def _summed_code(found: Any) -> dict[str, Array]:
    return {"the sum of the code": total_of(found)}


def _summed_reconstruction(found: Any) -> dict[str, Array]:
    return {"the sum of r(x)": total_of(found)}


def _error(found: Array) -> dict[str, Array]:
    return {"|x - r(x)|^2": found}


def _distortion(found: Array) -> dict[str, Array]:
    return {"-log p(x|z)": found}


def _log_prob(network: Any, params: Params, key: Key, x: Any, c: Any) -> Array:
    return (
        functional(network, "log_prob: network", ("apply",)).apply(params, *present(c)).log_prob(x)
    )


def _code(
    model: Model, draw: Callable[..., Any] | None, params: Params, key: Key, x: Any, c: Any
) -> Array:
    model = deterministic(model)
    if draw is not None:
        return draw(placed(model, at_mean), params, key, x, c).z
    return model.encode(params, x, c).mean


def _reconstruction(
    model: Model, draw: Callable[..., Any] | None, params: Params, key: Key, x: Any, c: Any
) -> Array:
    model = deterministic(model)
    if draw is not None:
        return draw(placed(model, at_mean), params, key, x, c).px.mean
    return reconstruct(model, params, x, c)


def _squared_error(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    r = _reconstruction(model, None, params, key, x, c)
    given, found = (jax.tree.map(jnp.shape, tree) for tree in (x, r))
    if given != found:  # they would broadcast
        fix = "a model whose p(x|z) has a mean in the shape of x has this error"
        raise wrong("squared_error: data", f"examples {given}", f"{found}, as E[x|z]", fix)
    errors = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), x, r))
    return functools.reduce(jnp.add, errors)


def _minus_log_px(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    model = deterministic(model)
    return -model.decode(params, model.encode(params, x, c).mean, c).log_prob(x)


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
    "reconstruction_error",
    "reconstructions",
    "squared_error",
]
