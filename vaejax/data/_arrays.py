"""The one convention for examples in memory: types, ranks, finite numbers, labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vaejax.errors import wrong
from vaejax.types import Batch


def checked(batch: Batch, where: str) -> Batch:
    """A batch in the one convention: uint8 levels or finite float32, of rank 2 or 4; labels int32.

    Args:
      batch: examples as they were given or read.
      where: the function and argument that error messages name.
    Returns:
      The batch in numpy arrays; grey images got an axis of one channel.
    Raises:
      ValueError: for other types and ranks, numbers that are not finite, uint8 that holds only 0
        and 1, and labels, conditions or weights of another length.
    """
    x, y = np.asarray(batch.x), batch.y
    got = f"{x.dtype} of shape {x.shape}"
    if x.ndim not in (2, 3, 4) or not x.size:
        expected = "vectors [n, d] or images [n, height, width] or [n, height, width, channels]"
        raise wrong(where, got, expected, "one example needs an axis in front: x[None]")
    binary, x = x.dtype == bool, stored(x)
    if x.dtype == np.float32:
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            got += f" with {len(bad)} values not finite, the first at {bad[0].tolist()}"
            fix = "drop them: x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]"
            raise wrong(where, got, "finite values", fix)
    elif x.dtype != np.uint8:
        levels = x.dtype.kind in "iu" and x.min() >= 0 and x.max() <= 255
        fix = "x.astype(np.uint8)" if levels else "x.astype(np.float32), scaled as you mean it"
        raise wrong(where, got, "uint8 (grey levels 0..255), bool or floats", f"pass {fix}")
    elif not binary and x.max() == 1:
        fix = "pass bool for binary images: x.astype(bool)"
        raise wrong(where, f"{got} holding only 0 and 1", "grey levels 0..255", fix)
    y = y if isinstance(y, tuple) else as_labels(y, where)
    batch = jax.tree.map(np.asarray, batch._replace(x=x[..., None] if x.ndim == 3 else x, y=y))
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(rows) > 1:
        expected = f"labels, conditions and weights of the {len(x)} examples"
        raise wrong(where, f"leaves of lengths {sorted(rows)}", expected, "cut or complete them")
    return batch


def stored(x: ArrayLike) -> np.ndarray:
    """Bool as levels 0 and 255, and floats as float32: what overflows is infinity from then on."""
    x = np.asarray(x)
    if x.dtype == bool:
        return x * np.uint8(255)
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False) if jnp.issubdtype(x.dtype, jnp.floating) else x


def as_labels(y: ArrayLike, where: str) -> np.ndarray:
    """Labels as int32 `[n]`; -1 is "unknown".

    Args:
      y: whole numbers or bool, `[n]` or `[n, 1]`.
      where: the function and argument that error messages name.
    Returns:
      int32 `[n]`.
    Raises:
      ValueError: for other types and shapes, such as one-hot rows.
    """
    y = np.asarray(y)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iub" or y.ndim != 1:
        got, fix = f"{y.dtype} of shape {y.shape}", "for one-hot rows: y.argmax(axis=1)"
        raise wrong(f"{where}: labels", got, "integers [n]", fix)
    return y.astype(np.int32)


def check_rows(x: np.ndarray, at: np.ndarray, place: Callable[[int], tuple[str, int]]) -> None:
    """Raise ValueError where rows of x are not finite, naming the first of them.

    Args:
      x: rows `[n, ...]`.
      at: the number of each row in the whole data set, `[n]`.
      place: of one of these numbers, what messages call its file, and the row's number there.
    """
    bad = at[~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))]
    if len(bad):
        where, row = place(int(bad[0]))
        got = f"NaN or infinity in row {row} ({len(bad)} such rows in the batch)"
        raise wrong(where, got, "finite numbers", "write the file again without such rows")
