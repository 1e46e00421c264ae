"""Sparsity: penalties on the codes of a batch, the largest of its codes, and how often units fire.

Penalties for `autoencoders.sparse`; each is called as `penalty(z, weight=()) -> ()`, with z
`[batch, latent]`:

| penalty | Omega(z) |
| --- | --- |
| `l1` | mean over the batch of `sum_j abs(z_j)` |
| `kl(rho)` | `sum_j KL(Bernoulli(rho) || Bernoulli(mean of z_j))`, codes in (0, 1) |
| `squared(rho)` | `sum_j (mean of z_j - rho)^2` |

The means are of each unit over the batch, so the last two say nothing about one example alone.
`heads.TopK` makes codes of exactly k active units; `autoencoders.batch_top_k` has k in the mean.

All that `autoencoders.dictionaries` offers is here too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import numbers
from vaejax.batch import batch_mean, example_at, size_of, weights_of
from vaejax.distributions import Delta
from vaejax.errors import concrete, is_whole, wrong
from vaejax.evaluate import check_counted, checked_batch, measure
from vaejax.families.autoencoders.dictionaries import atoms, revive, transposed, unit_columns
from vaejax.model import Model, deterministic
from vaejax.types import Array, Batch, Key, Params, PerUnit, Transform, describe


class Penalty(Protocol):
    """What is asked of the codes of a batch."""

    def __call__(self, z: Array, weight: Any = (), /) -> Array:
        """One number, `()`, of codes z `[batch, latent]`; weight: `[batch]`, or `()` for none."""


def l1(z: Array, weight: Any = ()) -> Array:
    """The mean over the batch of `||z||_1 = sum_j |z_j|`.

    It can be read as a prior of the code. With `lambda` the `weight` of `autoencoders.sparse`, n
    independent Laplace units have `-log p(z) = lambda ||z||_1 - n log(lambda / 2)` nats. The last
    part is constant in z, so D + lambda ||z||_1 is -log p(x, z) at the code, up to that constant.

    The decoder's atoms need a fixed norm (`unit_columns`): else small codes and large atoms satisfy
    the penalty, and nothing is sparse.

    Args:
      z: codes, `[batch, latent]`.
      weight: how much each example counts, `[batch]`; by default all count alike.
    Returns:
      The mean, in the units of z, `()`.
    References:
      Olshausen and Field, 1996, Nature 381.
    """
    return batch_mean(jnp.sum(jnp.abs(_codes("l1", z)), axis=1), weight)


def kl(rho: float) -> Penalty:
    """The penalty that pulls the mean activation of sigmoid codes to rho.

    `Omega = sum_j rho log(rho / m_j) + (1 - rho) log((1 - rho) / (1 - m_j))`, m_j the mean of unit
    j over the batch: KL(Bernoulli(rho) || Bernoulli(m_j)).

    m_j is moved into [eps, 1 - eps] by `eps + (1 - 2 eps) m_j`, with eps of the float type
    (1.2e-7). So a unit that is dead or stuck has a large finite gradient, which mends it; a clipped
    mean would have none. Means and divergence of bfloat16 codes are computed in float32. What
    rounding takes below zero counts as zero. A mean outside [0, 1], which ReLU codes have, gives
    NaN: use `squared` for them.

    A rho outside (0, 1) is a ValueError; one that is traced, as under vmap, is not checked.

    Args:
      rho: the mean activation to reach, inside (0, 1).
    Returns:
      The Penalty, nats.
    References:
      Ng, 2011, Sparse autoencoder, CS294A lecture notes.
    """
    _check_rho("kl", rho)

    def penalty(z: Array, weight: Any = ()) -> Array:
        m = _unit_means("kl", z, weight)
        eps = float(jnp.finfo(m.dtype).eps)
        m = eps + (1 - 2 * eps) * m
        divergence = rho * jnp.log(rho / m) + (1 - rho) * jnp.log((1 - rho) / (1 - m))
        below = lax.stop_gradient(jnp.minimum(divergence, 0))  # rounding; the gradient is right
        return jnp.sum(divergence - below)

    return penalty


def squared(rho: float) -> Penalty:
    """The penalty on the squared distance of each unit's mean from rho, for any codes.

    `Omega = sum_j (m_j - rho)^2`, m_j the mean of unit j over the batch.

    It serves ReLU codes, whose means may pass 1, in place of `kl`. For them too rho has to be
    inside (0, 1): their scale is free, since the decoder's undoes it.

    A rho outside (0, 1) is a ValueError; one that is traced, as under vmap, is not checked.

    Args:
      rho: the mean activation to reach, inside (0, 1).
    Returns:
      The Penalty, in the units of z squared.
    """
    _check_rho("squared", rho)

    def penalty(z: Array, weight: Any = ()) -> Array:
        return jnp.sum((_unit_means("squared", z, weight) - rho) ** 2)

    return penalty


def largest(z: Array, k: int, weight: Any = ()) -> Array:
    """The codes with the `k batch` largest entries of the whole batch kept, the others zero.

    Of equal entries the first ones are kept.

    Args:
      z: codes, `[batch, latent]`.
      k: entries kept per example in the mean, 1 to latent.
      weight: of the examples, `[batch]`. Of those with a weight of 0 nothing is kept, and they are
        no part of the batch. By default all count.
    Returns:
      The codes, `[batch, latent]`.
    Raises:
      TypeError: for a k that is not a whole number.
      ValueError: unless 1 <= k <= latent.
    """
    batch, latent = z.shape
    if not is_whole(k):
        raise wrong("batch_top_k: k", describe(k), "a whole number", "pass an int", TypeError)
    if not 1 <= k <= latent:
        raise wrong("batch_top_k: k", k, f"1 to {latent}, the code's size", "lower k")
    counted = weights_of(batch, weight) > 0
    flat = jnp.where(counted[:, None], z, -jnp.inf).ravel()
    _, kept = lax.top_k(flat, batch * k)
    inside = jnp.arange(batch * k) < k * jnp.sum(counted)
    mask = jnp.zeros(flat.shape, bool).at[kept].set(inside)
    return jnp.where(mask.reshape(z.shape), z, 0)


def smallest_active(z: Array) -> Array:
    """The smallest entry that is above zero.

    Args:
      z: codes, of any shape.
    Returns:
      The entry, `()`; infinity where none is above zero.
    """
    return jnp.min(jnp.where(z > 0, z, jnp.inf))


@measure
def threshold(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    k: int,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> float:
    """The activation above which a model trained with `batch_top_k` keeps a unit at inference.

    `theta = mean over batches of min{z_ij kept, z_ij > 0}`.

    With it each example is coded alone (see `thresholded`), and k of its units are active in the
    mean over the data. Examples of weight 0 are no part of their batch, and batches of them alone
    do not count.

    Args:
      model, params: an autoencoder and its parameters.
      key: of the transform, which alone uses it.
      data: a Batch or the x of one, `[n, ...]`, in a random order.
      k: as in training.
      transform: of stored data, drawn once per example; by default none.
      batch_size: as in training; the examples left over are not used.
    Returns:
      theta > 0, in the units of z.
    Raises:
      ValueError: for k outside the code's size, where nothing is active, where no example has a
        weight, and where a code is not finite, with the example's index.
    References:
      Bussmann, Leask and Nanda, 2024, arXiv:2412.06410.
    """
    batch = checked_batch("threshold", key, data, batch_size=batch_size)
    batch_size = min(batch_size, size_of(batch.x))
    smallest, totals = _smallest(model, transform, batch_size, k, params, key, batch)
    weight = np.asarray(weights_of(size_of(batch.x), batch.weight))[: len(totals)]
    check_counted("threshold", _TOTAL, totals, batch.x, weight)
    theta = float(np.mean(smallest[(weight > 0).reshape(-1, batch_size).any(axis=1)]))
    if not np.isfinite(theta):
        fix = "train it with batch_top_k first, or end the encoder with heads.Code(n, nn.relu)"
        raise wrong("threshold: the codes", "a batch with none above zero", "active units", fix)
    return theta


def thresholded(model: Model, theta: float | Array) -> Model:
    """The model whose code keeps the entries above theta: z_j where z_j > theta, else 0.

    Each example is coded by itself.

    Args:
      model: an autoencoder.
      theta: a number, for instance from `threshold`, or one for each unit, `[latent]`.
    Returns:
      The Model, with the same parameters.
    References:
      Bussmann, Leask and Nanda, 2024, arXiv:2412.06410.
    """

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Delta:
        z = model.encode(params, x, c, key=key).mean
        return Delta(jnp.where(z > theta, z, 0))

    return model._replace(encode=encode)


@measure
def firing(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> PerUnit:
    """The share of examples in which each unit is active, z_j != 0.

    A unit with a share of 0 is dead.

    Args:
      model, params: an autoencoder and its parameters.
      key: of the transform, which alone uses it.
      data: a Batch, whose weights count, or the x of one, `[n, ...]`.
      transform: of stored data, drawn once per example; by default none.
      batch_size: examples that are held in memory at a time, beside the data.
    Returns:
      The shares, between 0 and 1, `[latent]`.
    Raises:
      ValueError: where a code is not finite, with the example's index, unless its weight is 0; and
        where no example has a weight.
    """
    batch = checked_batch("firing", key, data, batch_size=batch_size)
    weight = np.asarray(weights_of(size_of(batch.x), batch.weight))
    share, totals = _firing(model, transform, batch_size, params, key, batch)
    check_counted("firing", _TOTAL, totals, batch.x, weight)
    return np.asarray(share)


_TOTAL = "the sum of the code"


@partial(jax.jit, static_argnums=(0, 1, 2))
def _firing(
    model: Model,
    transform: Transform | None,
    batch_size: int,
    params: Params,
    key: Key,
    batch: Batch,
) -> tuple[Array, Array]:
    """The share of each unit, `[latent]`, and the sum of each example's code, `[n]`."""
    code, size = _code(model, transform, params, key, batch), size_of(batch.x)
    width = min(batch_size, size)
    weight = weights_of(size, batch.weight)

    def chunk(start: Array) -> tuple[Array, Array]:
        at = start + jnp.arange(width)
        inside = jnp.where(at < size, weight[jnp.minimum(at, size - 1)], 0)
        z = jax.vmap(code)(jnp.minimum(at, size - 1))
        return inside @ (z != 0), jnp.sum(z, axis=1)

    def add(total: Array, start: Array) -> tuple[Array, Array]:
        fired, sums = chunk(start)
        return total + fired, sums

    starts = jnp.arange(0, size, width)
    fired = jax.eval_shape(chunk, starts[0])[0]
    total, sums = lax.scan(add, jnp.zeros(fired.shape, fired.dtype), starts)
    return total / jnp.sum(weight), sums.ravel()[:size]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _smallest(
    model: Model,
    transform: Transform | None,
    batch_size: int,
    k: int,
    params: Params,
    key: Key,
    batch: Batch,
) -> tuple[Array, Array]:
    """The smallest activation kept in each batch, and the sum of each of their examples' codes."""
    code, batches = _code(model, transform, params, key, batch), size_of(batch.x) // batch_size
    weight = weights_of(size_of(batch.x), batch.weight)

    def one(start: Array) -> tuple[Array, Array]:
        at = start + jnp.arange(batch_size)
        z = jax.vmap(code)(at)
        return smallest_active(largest(z, k, weight[at])), jnp.sum(z, axis=1)

    smallest, sums = lax.map(one, batch_size * jnp.arange(batches))
    return smallest, sums.ravel()


def _code(
    model: Model, transform: Transform | None, params: Params, key: Key, batch: Batch
) -> Callable[[Array], Array]:
    """The code of the example at an index, flat, layer noise off."""
    quiet = deterministic(model)

    def code(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return jnp.ravel(quiet.encode(params, x, c).mean)

    return code


def _codes(function: str, z: Any) -> Array:
    """Codes as an array `[batch, latent]`; an error for anything else."""
    z = jnp.asarray(numbers(f"{function}: z", z, "codes [batch, latent]"))
    if z.ndim != 2 or not z.shape[0]:
        fix = "flatten each example's: z.reshape(len(z), -1)"
        raise wrong(f"{function}: z", f"shape {z.shape}", "codes [batch, latent]", fix)
    return z


def _unit_means(function: str, z: Any, weight: Any) -> Array:
    z = _codes(function, z)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return jax.vmap(lambda unit: batch_mean(unit, weight), in_axes=1)(z)


def _check_rho(function: str, rho: float) -> None:
    if concrete(rho) and not 0 < float(rho) < 1:
        fix = "0.05 makes a unit active in a twentieth of the examples"
        raise wrong(f"{function}: rho", rho, "a mean activation inside (0, 1)", fix)


__all__ = [
    "Penalty",
    "atoms",
    "firing",
    "kl",
    "l1",
    "largest",
    "revive",
    "smallest_active",
    "squared",
    "threshold",
    "thresholded",
    "transposed",
    "unit_columns",
]
