"""What identifies examples: a digest of all rows, or of a sample that a change does not escape."""

import hashlib
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vaejax.data._arrays import native
from vaejax.types import Batch

ROWS = 2500  # a change of 1 % of the rows escapes so many with a probability of 1e-11
_AT_ONCE = 250  # rows
_WHOLE, _PART, _PARTS = 1 << 20, 1 << 16, 16  # bytes of a file that is read whole; of its parts


def of_rows(size: int, read: Callable[[np.ndarray], Batch]) -> str:
    """The digest of examples: SHA-256 of their number, names, types, shapes, and of rows.

    Up to 2500 rows all are digested, and of more one in each of 2500 equal parts, which depends on
    the size alone. The same data have the same digest wherever they lie: types are those that the
    model sees.

    Args:
      size: how many rows there are.
      read: the rows of given numbers.
    Returns:
      Hexadecimal digits.
    """
    found = hashlib.sha256(repr(size).encode())
    rows = _sampled(size)
    for start in range(0, len(rows), _AT_ONCE):
        batch = read(rows[start : start + _AT_ONCE])
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            array = native(np.asarray(leaf))
            array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
            name = f"{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape[1:]}"
            found.update(name.encode())
            found.update(array.tobytes())
    return found.hexdigest()


def of_files(paths: Sequence[str]) -> str:
    """SHA-256 of files: of each its size, and its bytes, or 16 parts of a large one.

    Args:
      paths: of the files, in order.
    Returns:
      Hexadecimal digits.
    """
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(size.to_bytes(8, "little"))
            if size <= _WHOLE:
                found.update(file.read())
                continue
            for i in range(_PARTS):
                file.seek(i * (size - _PART) // (_PARTS - 1))
                found.update(file.read(_PART))
    return found.hexdigest()


def _sampled(size: int) -> np.ndarray:
    """Numbers of rows, ascending: all, or one in each of `ROWS` equal parts."""
    if size <= ROWS:
        return np.arange(size)
    # Drawn by a hash, whose bits no release of numpy changes.
    words = hashlib.shake_128(f"vaejax {size}".encode()).digest(4 * ROWS)
    within = np.frombuffer(words, "<u4").astype(np.float64) / 2**32
    starts = np.arange(ROWS + 1, dtype=np.int64) * size // ROWS
    return starts[:-1] + (within * np.diff(starts)).astype(np.int64)


def joined(*digests: str) -> str:
    """One digest of several."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
