"""What all exact sums share: the loop over batches of images, the prior, and log p(x|z) of pairs.

An exact measure is a function of a batch of images, for which it decodes each point z once:

    measure(*options, params, keys, x, c) -> numbers

`keys` `[b]` and `x` `[b, ...]` are of the batch, c is one condition for all of it. A batch is
therefore a single image where images have conditions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.batch import example_at, size_of
from vaejax.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Distribution,
    Laplace,
    Normal,
)
from vaejax.errors import wrong
from vaejax.model import Model, check_model
from vaejax.types import Array, Batch, Key, Params, Transform

MOST_ELEMENTS = 2**24  # of log p(x|z) per pixel that are in memory at once
ELEMENTWISE = (ContinuousBernoulli, DiscretizedLogistic, Laplace, Normal)


class Program(NamedTuple):
    """What the loop of an exact measure is compiled for, as in `measure_each`; hashable.

    Args:
      measure: the function of a batch of images.
      options: its first arguments.
      transform: what is done to a stored image first, or None.
      batch_size: how many images a point z is decoded for at once.
    """

    measure: Callable[..., Any]
    options: tuple[Any, ...]
    transform: Transform | None
    batch_size: int


def measure_batches(program: Program, params: Any, key: Key, batch: Batch) -> Any:
    """`measure(*options, params, keys, x, c)` of all images, as one compiled loop over batches.

    It is compiled once for each program and shape of the data; images and keys are the same as in
    `measure_each`. `params`: the parameters, and any other arrays that all batches share.
    """
    if jax.tree.leaves(batch.c):
        program = program._replace(batch_size=1)
    return _loop(program, params, key, batch.x, batch.c)


@partial(jax.jit, static_argnums=0)
def _loop(program: Program, params: Any, key: Key, x: Any, c: Any) -> Any:
    measure, options, transform, batch_size = program
    size = size_of(x)
    batches = -(-size // batch_size)
    width = -(-size // batches)

    def one(indices: Array) -> Any:
        seen, given, keys = jax.vmap(lambda index: example_at(key, transform, index, x, c))(indices)
        return measure(*options, params, keys, seen, first(given))

    # The last example counts again in the ragged end, rather than compiling a second program.
    indices = jnp.minimum(jnp.arange(batches * width), size - 1).reshape(batches, width)
    result = lax.map(one, indices)
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[:size], result)


def first(c: Any) -> Any:
    """The condition of the first image."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], c)


def prior_of(function: str, model: Model, params: Params, c: Any) -> Distribution:
    """The prior under the first condition; ValueError where the model has none."""
    check_model(function, model)
    pz = model.prior(params, first(c))
    if pz is None:
        fix = "give autoencoder(..., prior=...)"
        raise wrong(f"{function}: model", "no prior", "p(z) to integrate over", fix)
    return pz


def latent_size(function: str, model: Model, params: Params, c: Any) -> int:
    """How many dimensions a density over z has: one, two or three, else an error."""
    pz = prior_of(function, model, params, c)
    if pz.discrete:
        fix = "use enumerate_latents"
        raise wrong(f"{function}: prior", type(pz).__name__, "a density", fix, TypeError)
    shape = jax.tree.map(jnp.shape, jax.eval_shape(pz.sample, jax.random.key(0)))
    if not isinstance(shape, tuple) or len(shape) != 1 or not 1 <= shape[0] <= 3:
        fix = "estimate it: evaluate.log_likelihood"
        raise wrong(f"{function}: latent", f"shape {shape}", "(1,), (2,) or (3,)", fix)
    return shape[0]


def log_px_given(model: Model, params: Params, z: Any, x: Any, c: Any) -> Array:
    """log p(x_j|z_i, c) for every pair, `[points, n]`; each z_i is decoded once."""
    px = jax.eval_shape(model.decode, params, jax.tree.map(lambda leaf: leaf[0], z), c)
    if type(px) is Bernoulli:
        return _log_coins(jax.vmap(lambda one: model.decode(params, one, c).logits)(z), x)
    flat = type(px) in ELEMENTWISE and len(px.event_shape) > 1
    if flat:
        # On CPU a sum over [28, 28, 1] is about a hundred times as slow as one over [784].
        _check_event(x, px.event_shape)
        x = x.reshape(len(x), -1)

    def point(one: Any) -> Array:
        # What decode makes stays in here: vmap would copy a network in it for every point.
        px = model.decode(params, one, c)
        return jax.vmap((_flattened(px) if flat else px).log_prob)(x)

    together = max(1, MOST_ELEMENTS // max(1, sum(leaf.size for leaf in jax.tree.leaves(x))))
    return lax.map(point, z, batch_size=min(together, size_of(z)))


def _log_coins(logits: Array, x: Array) -> Array:
    """log p(x_j|logits_i) of Bernoullis, `[points, n]`: `sum x l - softplus(l)` by one product.

    About ten times as fast as pair by pair, where softplus is computed again for every image.
    """
    _check_event(x, logits.shape[1:])
    logits, x = logits.reshape(len(logits), -1), x.reshape(len(x), -1).astype(logits.dtype)
    outside = jnp.any((x < 0) | (x > 1), axis=1)
    products = jnp.matmul(logits, x.T, precision=lax.Precision.HIGHEST)
    log_px = products - jnp.sum(jax.nn.softplus(logits), axis=1)[:, None]
    return jnp.where(outside[None], -jnp.inf, log_px)


def _flattened(px: Any) -> Any:
    """A distribution of independent elements over the event as one vector."""
    event = px.event_shape
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, event).reshape(-1) if jnp.ndim(leaf) else leaf, px
    )


def _check_event(x: Any, event: tuple[int, ...]) -> None:
    if jnp.shape(x)[1:] != event:
        fix = "reshape the data"
        raise wrong("exact: data", jnp.shape(x), f"examples {event}, as decode makes them", fix)
