"""The one convention for examples in memory: types, ranks, finite numbers, labels."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vaejax.batch import check_unmasked
from vaejax.data._rounding import ROWS, warn_of_rounding
from vaejax.errors import WHOLE_LABELS, wrong
from vaejax.types import Batch


def checked(batch: Batch, where: str) -> Batch:
    """A batch in the one convention: uint8 levels or finite float32, of rank 2 or 4; labels int32.

    Warns (UserWarning) of images that look as if their channels came first, and of numbers whose
    rounding to float32 hides how they vary.

    Args:
      batch: examples as they were given or read.
      where: the function and argument that error messages name.
    Returns:
      The batch in numpy arrays; grey images got an axis of one channel.
    Raises:
      ValueError: for other types and ranks, numbers that are not finite, uint8 that holds only 0
        and 1, masked values, and labels, conditions or weights of another length.
    """
    x, y = unmasked(batch.x, where), batch.y
    got = f"{x.dtype} of shape {x.shape}"
    if x.dtype.names:
        fix = "pass numpy.lib.recfunctions.structured_to_unstructured(x), which is to be imported"
        raise wrong(where, f"rows of fields {x.dtype.names}", "an array of numbers", fix)
    if x.ndim not in (2, 3, 4) or not x.size:
        expected = "vectors [n, d] or images [n, height, width] or [n, height, width, channels]"
        fix = "one example needs an axis in front: x[None]"
        fix = f"{fix}; n numbers, one behind: x[:, None]" if x.ndim == 1 else fix
        raise wrong(where, got, expected, fix if x.ndim and x.size else "pass some examples")
    warn_of_rounding(where, x[:ROWS])
    given, binary, x = x, x.dtype == bool, stored(x)
    if x.dtype == np.float32:
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            first = given[tuple(bad[0])]
            what, fix = "not finite", "drop them: x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]"
            if np.isfinite(first):
                what, fix = f"beyond float32 ({first:.3g})", "scale them: x / np.abs(x).max(axis=0)"
            got += f" with {len(bad)} values {what}, the first at {bad[0].tolist()}"
            raise wrong(where, got, "finite values", fix)
    elif x.dtype != np.uint8:
        raise wrong(where, got, "uint8 (grey levels 0..255), bool or floats", f"pass {_fix(x)}")
    elif not binary and x.max() == 1:
        fix = "pass bool for binary images: x.astype(bool)"
        raise wrong(where, f"{got} holding only 0 and 1", "grey levels 0..255", fix)
    y = y if isinstance(y, tuple) else as_labels(y, where)
    c = jax.tree.map(lambda leaf: native(unmasked(leaf, f"{where}: c")), batch.c)
    weight = jax.tree.map(lambda leaf: native(unmasked(leaf, f"{where}: weight")), batch.weight)
    batch = Batch(x[..., None] if x.ndim == 3 else x, c, y, weight)
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(rows) > 1:
        expected = f"labels, conditions and weights of the {len(x)} examples"
        raise wrong(where, f"leaves of lengths {sorted(rows)}", expected, "cut or complete them")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        warnings.warn(
            f"{where}: got {got}, which looks like [n, channels, height, width], and is taken for "
            "[n, height, width, channels]; where channels come first: np.moveaxis(x, 1, -1)",
            stacklevel=4,
        )
    return batch


def _fix(x: np.ndarray) -> str:
    """What makes numbers of examples that are neither levels nor floats, and loses nothing."""
    if x.dtype.kind == "c":
        return "np.stack([x.real, x.imag], axis=-1)"
    if x.dtype.kind not in "iu":
        return "numbers, all rows of one length: np.array(x.tolist(), np.float32)"
    floats = "x.astype(np.float32), scaled as you mean it"
    if x.min() < 0 or x.max() > 255:
        return floats
    return f"x.astype(np.uint8) for grey levels 0..255; for counts and other numbers, {floats}"


def unmasked(array: ArrayLike, where: str) -> np.ndarray:
    """An array in numpy; ValueError where it has a mask, which numpy would drop."""
    check_unmasked(where, array)
    return np.asarray(array)


def native(x: np.ndarray) -> np.ndarray:
    """The same numbers in this machine's order of bytes."""
    return x.astype(x.dtype.newbyteorder("=")) if x.dtype.byteorder == ">" else x


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
      ValueError: for other types and shapes, such as one-hot rows, for numbers below -1, and for
        those beyond int32.
    """
    where = f"{where}: labels"
    y = unmasked(y, where)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iub" or y.ndim != 1:
        fix = "for one-hot rows: y.argmax(axis=1)"
        if y.ndim == 1:
            fix = "names, y = np.unique(y, return_inverse=True) numbers them, over all splits"
            fix = WHOLE_LABELS if y.dtype.kind == "f" else fix
        raise wrong(where, f"{y.dtype} of shape {y.shape}", "integers [n]", fix)
    if y.size and not -1 <= int(y.min()) <= int(y.max()) <= np.iinfo(np.int32).max:
        at = int(np.argmax((y < -1) | (y > np.iinfo(np.int32).max)))
        fix = "number them anew, over all splits: names, y = np.unique(y, return_inverse=True)"
        expected = "class numbers from 0 to 2**31 - 1, -1 where unknown"
        raise wrong(where, f"{y[at]} at index {at}", expected, fix)
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
        got = f"NaN or infinity in row {row} ({len(bad)} such rows in the batch, taken for float32)"
        fix = "write the file again without such rows, or with scaled numbers"
        raise wrong(where, got, "finite numbers", fix)
