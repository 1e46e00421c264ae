"""`stream`: shuffled batches of rows that need not fit memory, read by blocks."""

import numbers
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import check_unmasked
from vaejax.data._arrays import check_rows, stored
from vaejax.data._files import PathLike, check_regular, mapped
from vaejax.errors import at_least_one, wrong
from vaejax.types import Batch, Key


class Rows(Protocol):
    """What can be streamed: it has a type and a shape `[n, ...]`, and gives slices of rows."""

    dtype: Any
    shape: Any

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: slice, /) -> Any:
        """An array of those rows."""


def stream(
    source: PathLike | Rows,
    *,
    key: Key,
    batch_size: int,
    epochs: int | None = 1,
    start: int = 0,
    block: int = 1024,
    mixed: int = 16,
) -> Iterator[Batch]:
    """Batches in a random order from an array that need not fit memory, such as a large `.npy`.

    Each epoch takes blocks of `block` neighbouring rows in a random order, copies `mixed` of them
    into memory and shuffles the rows within. So every row comes once, whole blocks are read at a
    time, and at most about `3 block mixed` rows are in anonymous memory. Rows that are similar
    because they are neighbours (tokens of one text) meet in a batch more often than by chance if
    `mixed` is small.

    The order is a function of the key and the step's number alone: with `start=s` the stream goes
    on exactly where one that had given s batches would. `stream` is for rows that cost much one by
    one (HDF5, Zarr, slow disks). `vaejax.feed` reads single rows, and gives the batches of a run in
    memory.

    Args:
      source: a path to a `.npy` file, which is memory-mapped; or anything with a shape `[n, ...]`,
        a dtype and slices of rows: an array, a memory map, an HDF5 or Zarr data set.
      key: of the order.
      batch_size: rows of a batch.
      epochs: passes over the rows; None is endless.
      start: batches to leave out, counted over the epochs; nothing of them is read.
      block: neighbouring rows that are read at once.
      mixed: blocks that are shuffled together.
    Returns:
      An iterator of numpy `Batch(x [batch_size, ...])`, `ceil(n / batch_size)` of them per epoch:
      floats as float32, uint8 as it is. Where n / batch_size is not whole, every batch has a
      `weight`, and the last of an epoch is filled up with rows of weight 0: one shape, one program.
    Raises:
      ValueError: for other types and masked values; and for rows with NaN or infinity, when their
        batch is due, naming the row and the file.
      TypeError: for counts that are not whole.
      FileNotFoundError: for a missing file.
    """
    counts = {"batch_size": batch_size, "epochs": epochs, "block": block, "mixed": mixed}
    for name, value in (counts | {"start": start}).items():
        endless = name == "epochs" and value is None
        if not (endless or isinstance(value, numbers.Integral)):
            raise wrong(f"stream: {name}", repr(value), "a whole number", "pass an int", TypeError)
    at_least_one("stream", ("epochs",), **counts)
    if start < 0:
        raise wrong("stream: start", start, "0 or more batches", "pass the number of steps done")
    rows, where = _rows(source)
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return _batches(rows, where, words, batch_size, epochs, start, block, mixed)


def _rows(source: Any) -> tuple[Rows, str]:
    """What is sliced by rows, and its name in messages."""
    where, rows = "stream: source", source
    check_unmasked(where, source)
    if isinstance(source, PathLike):
        path = Path(source).expanduser()
        where = f"stream: source {str(path)!r}"
        check_regular(path, where)
        rows = mapped(path, where)
    shape, dtype = getattr(rows, "shape", None), getattr(rows, "dtype", None)
    if not shape or 0 in shape or dtype is None:
        got, fix = f"{type(rows).__name__} of shape {shape}", "pass a path or np.asarray(rows)"
        raise wrong(where, got, "an array [n, ...] that is not empty", fix)
    if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise wrong(where, dtype, "floats or uint8", "write it as rows.astype(np.float32)")
    return rows, where


def _batches(
    rows: Rows,
    where: str,
    words: list[int],
    batch_size: int,
    epochs: int | None,
    start: int,
    block: int,
    mixed: int,
) -> Iterator[Batch]:
    """The batches of `stream`; `words`: of the key, from which each epoch's order is drawn."""
    steps = -(-len(rows) // batch_size)
    ragged = len(rows) % batch_size != 0
    epoch, first = divmod(start, steps)
    while epochs is None or epoch < epochs:
        for at, x in _epoch(rows, [*words, epoch], batch_size, first * batch_size, block, mixed):
            check_rows(x, at, lambda row: (where, row))
            missing = batch_size - len(x)
            weight = np.ones(len(x), np.float32)
            if missing:
                x = np.concatenate([x, np.repeat(x[:1], missing, axis=0)])
                weight = np.concatenate([weight, np.zeros(missing, np.float32)])
            yield Batch(x, weight=weight if ragged else ())
        epoch, first = epoch + 1, 0


def _epoch(
    rows: Rows, seed: list[int], batch_size: int, skip: int, block: int, mixed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and rows of each batch of an epoch, after the first `skip` rows of its order."""
    size = len(rows)
    starts = np.random.default_rng(seed).permutation(np.arange(0, size, block))
    at, x = np.empty(0, int), None
    for i in range(0, len(starts), mixed):
        group = starts[i : i + mixed]
        new = np.concatenate([np.arange(s, min(s + block, size)) for s in group])
        if skip >= len(new):
            skip -= len(new)
            continue
        order = np.random.default_rng([*seed, i + 1]).permutation(len(new))[skip:]
        skip = 0
        read = np.concatenate([stored(rows[s : s + block]) for s in group])[order]
        at = np.concatenate([at, new[order]])
        x = read if x is None else np.concatenate([x, read])
        whole = len(at) // batch_size * batch_size
        for j in range(0, whole, batch_size):
            yield at[j : j + batch_size], x[j : j + batch_size]
        at, x = at[whole:], x[whole:].copy()  # a view would hold the whole group
    if x is not None and len(x):
        yield at, x
