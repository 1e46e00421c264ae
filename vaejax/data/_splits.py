"""Splits of a data set: their names, slices of them, every n-th of an array, a hash for folders."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vaejax.errors import wrong
from vaejax.types import Batch, describe

SPLITS = ("train", "valid", "validation", "val", "test")  # that a .npz may name, and its arrays


def split_of(function: str, split: str) -> tuple[str, Callable[[int], slice]]:
    """The name of a split, and `window(n) -> slice`: which of its n examples are meant.

    Args:
      function: the caller, for messages.
      split: a name and at most one slice, such as `"train[:50000]"` or `"test[10%:20%]"`.
    Returns:
      The name, and the function that makes the slice once the split's size is known. That function
      raises ValueError for positions beyond the split and for a slice without examples.
    Raises:
      ValueError: for text of another form.
      TypeError: for what is no text.
    """
    if not isinstance(split, str):
        fix = 'write for instance "train", "train[:50000]" or "train[10%:20%]"'
        raise wrong(f"{function}: split", describe(split), "a name", fix, TypeError)
    parsed = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    where = f"{function}: split"
    if parsed is None:
        fix = 'write for instance "train", "train[:50000]" or "train[10%:20%]"'
        raise wrong(where, repr(split), "a name and at most one slice", fix)
    name, start, stop = parsed.groups()

    def position(text: str | None, n: int) -> int | None:
        if not text:
            return None
        percent, value = text.endswith("%"), int(text.rstrip("%"))
        # Cut short in silence, a paper's 50,000 examples could be fewer.
        if abs(value) > (100 if percent else n):
            fix = "leave the slice open to take all"
            raise wrong(where, repr(split), f"positions up to {n}, all there are", fix)
        return n * value // 100 if percent else value

    def window(n: int) -> slice:
        chosen = slice(position(start, n), position(stop, n))
        if len(range(n)[chosen]) == 0:
            fix = 'widen the slice, or pass split="all" where there are few'
            raise wrong(where, f"{split!r} of {n} examples", "at least one example", fix)
        return chosen

    return name, window


def every_nth(
    function: str, n: int, split: str, size: int
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """How many of `size` examples a split has, and `rows(i)`, which they are.

    The n-th, 2n-th, ... example is "test", the others are "train", and "all" is everything.

    Args:
      function: the caller, for messages.
      n: one of how many examples is for testing.
      split: "train", "test" or "all".
      size: of the whole data set.
    Returns:
      The split's size, and a function from places in the split to places in the data set.
    Raises:
      ValueError: for another split.
    """
    if split == "all":
        return size, lambda i: i
    if split == "test":
        return size // n, lambda i: n * i + n - 1
    if split == "train":
        return size - size // n, lambda i: i + i // (n - 1)
    raise wrong(f"{function}: split", repr(split), "train, test or all", "choose one of these")


def by_name(
    function: str, n: int, split: str, names: Sequence[str], ends: np.ndarray
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """As `every_nth`, for rows in several files: a row's split depends on its own file alone.

    Row i of a file is "test" where (i + hash of the file's name) % n is n - 1. So no row changes
    its split when other files come or go, and of single images one in n, by chance, is "test".

    Args:
      function: the caller, for messages.
      n: one of how many examples is for testing.
      split: "train", "test" or "all".
      names: of the files, relative to their folder, one after the other.
      ends: how many rows there are up to the end of each file.
    Returns:
      The split's size, and a function from places in the split to places in the data set.
    Raises:
      ValueError: for another split.
    """
    if split not in ("train", "test"):
        return every_nth(function, n, split, int(ends[-1]))
    first = np.array([n - 1 - _hash(name) % n for name in names])  # in a file, the first "test"
    lengths = np.diff(ends, prepend=0)
    counts = np.maximum(0, -((first - lengths) // n))
    counts = counts if split == "test" else lengths - counts
    last = np.cumsum(counts)

    def rows(i: np.ndarray) -> np.ndarray:
        file = np.searchsorted(last, i, side="right")
        before, inside = first[file], i - (last - counts)[file]
        if split == "test":
            inside = before + n * inside
        else:
            beyond = inside - before
            inside = inside + np.where(beyond >= 0, 1 + beyond // (n - 1), 0)
        return (ends - lengths)[file] + inside

    return int(last[-1]), rows


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def cut(n: int, split: str, batch: Batch) -> Batch:
    """The examples of one split of `load`'s data in memory, by `every_nth`."""
    count, rows = every_nth("load", n, split, len(batch.x))
    chosen = rows(np.arange(count))
    return batch if split == "all" else jax.tree.map(lambda leaf: leaf[chosen], batch)
