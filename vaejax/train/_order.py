"""Which examples a step sees: a function of a key and the step's number, computed where needed."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.errors import at_least_one, takes, wrong
from vaejax.types import Array, Key, StepOrder


def shuffled(size: int, batch_size: int) -> StepOrder:
    """An order in which each epoch visits the examples in a new random order.

    An epoch is `size // batch_size` steps. The examples that are left over are not seen in that
    epoch; they are others in each. The order is a keyed permutation evaluated only where it is
    needed (a Feistel network with cycle walking). So no step sorts the data set, and none depends
    on the one before.

    Args:
      size: how many examples there are.
      batch_size: examples of a step.
    Returns:
      `indices(key, step) -> [batch_size]`, int32, from 0 to size - 1.
    Raises:
      ValueError: unless batch_size is from 1 to size.
    References:
      Black and Rogaway, 2002, Ciphers with arbitrary finite domains.
    """
    _check_batch_size("shuffled", size, batch_size)
    steps = size // batch_size

    def indices(key: Key, step: Array) -> Array:
        epoch_key = jax.random.fold_in(key, step // steps)
        first = (step % steps) * batch_size
        return permute(epoch_key, first + jnp.arange(batch_size), size)

    return indices


def order_of(
    indices: StepOrder | None, key: Key, size: int, batch_size: int, function: str = "fit"
) -> StepOrder:
    """The order of a run: the caller's `indices`, once checked, or `shuffled`.

    Raises ValueError for a batch larger than the data, for indices that are not one batch, and for
    those beyond the data: JAX would read the last example for them, and say nothing.
    """
    _check_batch_size("fit", size, batch_size)
    if indices is None:
        return shuffled(size, batch_size)
    takes("fit: indices", indices, "key, step", "for instance train.shuffled(size, batch_size)")
    chosen = np.asarray(indices(key, jnp.zeros((), jnp.int32)))
    if chosen.shape != (batch_size,):
        fix = f"give {function} and indices one batch_size, which also says how long an epoch is"
        raise wrong(f"{function}: indices", f"shape {chosen.shape}", f"({batch_size},)", fix)
    if chosen.min() < 0 or chosen.max() >= size:
        got, fix = f"{chosen.min()} to {chosen.max()}", f"make them for the data of {function}"
        raise wrong(f"{function}: indices", got, f"0 to {size - 1}, the examples", fix)
    return indices


def _check_batch_size(function: str, size: int, batch_size: int) -> None:
    """Raise unless a batch is a whole number of examples, and there are as many."""
    at_least_one(function, size=size, batch_size=batch_size)
    if batch_size > size:
        fix = "lower it; one example alone needs a leading axis: x[None]"
        raise wrong(f"{function}: batch_size", batch_size, f"1 to {size}, the examples", fix)


def permute(key: Key, positions: Array, size: int) -> Array:
    """Some entries of a random permutation of 0..size-1.

    Args:
      key: which permutation.
      positions: the places whose entries are asked for, integers `[k]`.
      size: the length of the permutation.
    Returns:
      int32 `[k]`.
    """
    half = max(3, -(-(size - 1).bit_length() // 2))
    mask = jnp.uint32((1 << half) - 1)
    rounds = jax.random.bits(key, (8,), jnp.uint32)

    def shuffle(index: Array) -> Array:
        left, right = index >> half, index & mask
        for i in range(8):
            left, right = right, left ^ (_mix(right + rounds[i]) & mask)
        return (left << half) | right

    def walk(state: tuple[Array, Array]) -> tuple[Array, Array]:
        index, outside = state
        index = jnp.where(outside, shuffle(index), index)
        return index, index >= size

    # An index that lands outside goes on along its cycle until it is inside: still a permutation.
    start = positions.astype(jnp.uint32), jnp.ones_like(positions, bool)
    inside, _ = lax.while_loop(lambda state: jnp.any(state[1]), walk, start)
    return inside.astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Finalizer of MurmurHash3 on 32-bit words: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
