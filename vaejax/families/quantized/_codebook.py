"""How a codebook is used, where it starts, and what becomes of entries that no code chooses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import numbers
from vaejax.batch import as_batch, example_at, over_data, size_of
from vaejax.errors import at_least_one, check_parameters, concrete, finite_values, wrong
from vaejax.evaluate import checked_batch, checked_each, measure
from vaejax.families.quantized._model import VectorQuantized, check_quantized
from vaejax.model import Model, check_model, deterministic
from vaejax.train import TrainState
from vaejax.types import Array, Batch, Key, Params, Transform, describe


def perplexity(used: Array) -> Array:
    """exp(H), with H the entropy of the shares in which entries are used.

    Args:
      used: counts or shares, `[entries]`, for instance of `usage`.
    Returns:
      a number from 1 to `entries`, `()`; 1 where nothing is used.
    """
    total = jnp.sum(used)
    share = used / jnp.where(total > 0, total, jnp.ones_like(total))
    return jnp.exp(
        -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    )


def usage(index: Any, entries: int) -> np.ndarray:
    """The share of the codes that chose each entry.

    Args:
      index: the indices of the codes, `[...]`, as `indices` returns them.
      entries: number of entries in the codebook.
    Returns:
      the shares, `[entries]`, which sum to 1; an entry of share 0 is dead.
    Raises:
      ValueError: for no code, and for an index outside of the codebook.
    """
    at_least_one("usage", entries=entries)
    index = np.asarray(numbers("usage: index", index, "codes, whole numbers")).ravel()
    if index.size and index.dtype.kind not in "iu":
        fix = "pass what indices(model, ...) returns"
        raise wrong("usage: index", index.dtype, "codes, whole numbers", fix, TypeError)
    if not index.size or index.min() < 0 or index.max() >= entries:
        got = f"{index.size} codes" + (f" in {index.min()}..{index.max()}" if index.size else "")
        fix = "pass what indices(model, ...) returns, and that model's number of entries"
        raise wrong("usage: index", got, f"some, in 0..{entries - 1}", fix)
    return np.bincount(index, minlength=entries) / index.size


@measure
def indices(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The indices of every example's entries: the data of the second stage.

    `evaluate.codes` gives the entries themselves.

    Args:
      model: from `quantize`.
      params: its parameters.
      key: random key, for the transform.
      data: a Batch, or the x of one, `[n, ...]`.
      transform: what is done to each stored example first, if anything.
      batch_size: examples at a time.
    Returns:
      the indices, int32 `[n, ...]`.
    Raises:
      ValueError: where the encoder's output is not finite, with the example's index.
    """
    loop = _index, (model,), transform, batch_size
    found, _ = checked_each("indices", lambda pair: {_OUTPUT: pair[1]}, *loop, params, key, data)
    return found


@measure
def from_data(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
) -> Params:
    """The parameters with a codebook of different encodings of the data, drawn at random.

    Entries that start where codes are get used. After a start at random most of them die.

    Args:
      model: from `quantize`.
      params: its parameters.
      key: random key, for the draws and the transform.
      data: a Batch, or the x of one, `[n, ...]`; rows of weight 0 are left out.
      transform: what is done to each stored example first, if anything.
    Returns:
      the parameters with the new `"codebook"`; all else is as it was.
    Raises:
      ValueError: for a codebook with more entries than all examples together have codes, and
        where the encoder's output is not finite.
    """
    check_model("from_data", model)
    check_parameters("from_data: params", params)
    batch = checked_batch("from_data", key, data)._replace(y=())
    rows_key, transform_key, choice_key = jax.random.split(key, 3)
    count = _enough("from_data", model, params, batch, transform, size_of(batch.x))
    rows = _rows(rows_key, batch, count)
    chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch)
    features = _features(model, transform, params, transform_key, chosen)
    totals = jnp.sum(features.reshape(count, -1), axis=1)
    if concrete(totals):
        finite_values("from_data", _OUTPUT, totals, chosen.x)
    return {**params, "codebook": _different(choice_key, features, len(params["codebook"]))}


def revive(
    model: Model,
    data: Any,
    *,
    examples: int = 1024,
    share: float = 0.0,
    transform: Transform | None = None,
) -> Callable[[TrainState], TrainState]:
    """A hook that gives entries that no code chooses a new start at random encodings.

    An entry is dead if at most `share` of the codes of `examples` random examples choose it. It
    takes the place of an encoding drawn from them, each dead entry another one. All else stays, bit
    for bit. Plain SGD, the optimizer of a moving average, remembers nothing of the old place.

    Leave the hook out in the last epochs, in which the decoder has to learn what a new entry means.

    Args:
      model: from `quantize`.
      data: as in `train.fit`; rows of weight 0 are left out.
      examples: how many examples are encoded at each call.
      share: the share of the codes up to which an entry is dead, in [0, 1).
      transform: as in `train.fit`.
    Returns:
      `TrainState -> TrainState` for `fit(hook=...)`: pure, a function of the state's key and step.
      At its first call it raises ValueError for a codebook with more entries than all examples have
      codes.
    Raises:
      ValueError: where share is outside of [0, 1), or examples is below 1.
    References:
      Dhariwal et al., 2020, Jukebox, arXiv:2005.00341 (random restarts).
    """
    if concrete(share) and not 0 <= float(share) < 1:
        raise wrong("revive: share", share, "a share in [0, 1)", "0.001: one code in a thousand")
    at_least_one("revive", examples=examples)
    batch = jax.tree.map(jnp.asarray, as_batch(data)._replace(y=()))

    def hook(state: TrainState) -> TrainState:
        count = _enough("revive", model, state.params, batch, transform, examples)
        return _revived(model, transform, count, share, state, batch)

    return hook


@partial(jax.jit, static_argnums=(0, 1))
def _features(model: Model, transform: Any, params: Params, key: Key, batch: Batch) -> Array:
    """The encoder's output for every example: `[codes, size]`, one row per code."""
    quiet = deterministic(model)

    def example(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return quiet.encode(params, x, c).features

    return over_data(example, size_of(batch.x), 500).reshape(-1, params["codebook"].shape[1])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _revived(
    model: Model, transform: Any, examples: int, share: Any, state: TrainState, batch: Batch
) -> TrainState:
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REVIVE), state.step)
    rows_key, transform_key, choice_key = jax.random.split(key, 3)
    rows = _rows(rows_key, batch, examples)
    chosen = jax.tree.map(lambda leaf: leaf[rows], batch)
    features = _features(model, transform, state.params, transform_key, chosen)
    codebook = state.params["codebook"]
    index = VectorQuantized.nearest(features, codebook).index
    used = jnp.zeros(len(codebook)).at[index].add(1 / len(features))
    fresh = _different(choice_key, features, len(codebook))
    codebook = jnp.where((used <= share)[:, None], fresh, codebook)
    return state._replace(params={**state.params, "codebook": codebook})


def _rows(key: Key, batch: Batch, count: int) -> Array:
    """As many different rows `[count]`, drawn at random from those that count."""
    size, p = size_of(batch.x), None
    if not isinstance(batch.weight, tuple):
        counts = jnp.asarray(batch.weight) > 0
        p = counts / jnp.sum(counts)
    return jax.random.choice(key, size, (count,), replace=False, p=p)


def _different(key: Key, features: Array, count: int) -> Array:
    """As many rows of `[codes, size]`, drawn at random, equal ones only where no others are left.

    Of equal entries the first alone is ever chosen, and empty places of images have equal codes.
    """
    bits = lax.bitcast_convert_type(features.astype(jnp.float32), jnp.uint32)
    odd = [pow(0x9E3779B1, j, 2**32) for j in range(1, 1 + features.shape[1])]
    mixed = (bits ^ (bits >> 15)) * jnp.asarray(np.array(odd, np.uint32))[None]
    label = jnp.sum(mixed, axis=1, dtype=jnp.uint32)  # equal for equal rows
    order = jnp.argsort(label)
    ranked = label[order]
    first = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
    share = jnp.zeros(len(features)).at[order].set(jnp.where(first, 1.0, 0.0))
    return jax.random.choice(key, features, (count,), replace=False, p=share / jnp.sum(share))


_REVIVE = 0x76717276  # "vqrv": apart from the streams of `train`
_OUTPUT = "the encoder's output"


def _enough(
    function: str, model: Model, params: Params, batch: Batch, transform: Any, examples: int
) -> int:
    """As many of the examples as count, at most; ValueError if they have too few codes."""
    weight = np.ones(size_of(batch.x)) if isinstance(batch.weight, tuple) else batch.weight
    if not isinstance(params, dict) or "codebook" not in params:
        fix = "pass what the init of a model from quantize made"
        raise wrong(f"{function}: params", describe(params), "those with a codebook", fix)
    entries = len(params["codebook"])
    examples = min(examples, int(np.count_nonzero(np.asarray(weight) > 0)))
    one = jax.eval_shape(
        partial(_features, model, transform),
        params,
        jax.random.key(0),
        jax.tree.map(lambda leaf: leaf[:1], batch),
    )
    if examples * len(one) < entries:
        got = f"a codebook of {entries} entries for {examples * len(one)} codes"
        fix = f"give fewer entries, or more examples, of {len(one)} codes each"
        raise wrong(f"{function}: data", got, "no more entries than codes", fix)
    return examples


def _index(model: Model, params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
    """The indices of one example, and the sum of what they were chosen by."""
    code = check_quantized("indices", deterministic(model).encode(params, x, c))
    return code.index, jnp.sum(code.features)
