"""Data that are surely not meant as they are: levels that nobody scaled, columns of all sizes."""

import warnings
from typing import Any

import jax
import numpy as np

from vaejax.types import Batch, Transform

ROWS = 500  # that are looked at, evenly spread
SPAN = 1e6  # between the largest and the smallest spread of a column


def warn_of_scales(function: str, data: Any, batch: Batch, transform: Transform | None) -> None:
    """Warn (UserWarning) of numbers that no likelihood but one for them can take, with the remedy.

    These are floats or 16-bit integers that look like the levels of images, 0..255 or 0..65535,
    and tables whose columns span six orders of magnitude. What counts is what the transform makes
    of them.

    Args:
      function: what the user called, for the message.
      data: what the user gave, which may name the columns.
      batch: the same as arrays, some rows of which are looked at.
      transform: what is done to an example before the model sees it, or None.
    """
    leaves = jax.tree.leaves(batch.x)
    if len(leaves) != 1 or not hasattr(leaves[0], "dtype"):
        return
    x, size = leaves[0], len(leaves[0])
    rows = np.unique(np.linspace(0, size - 1, min(size, ROWS)).astype(int))
    some = np.asarray(x)[rows]
    names = getattr(getattr(data, "x", data), "columns", None)
    warn_of_rounding(function, some, names)
    words = _levels(some) or _columns(some, names)
    if not words:
        return
    if transform is not None:
        try:
            keys = jax.random.split(jax.random.key(0), len(some))
            some = np.asarray(jax.vmap(transform)(keys, some))
        except Exception:  # what is wrong with the transform is said where it is used
            return
        if not (_levels(some) or _columns(some, None)):
            return
    warnings.warn(f"{function}: {words}", stacklevel=4)


def warn_of_rounding(where: str, x: np.ndarray, names: Any = None) -> None:
    """Warn (UserWarning) of numbers of 64 bits that float32 rounds until they hardly vary.

    Such as times in seconds since 1970, of one hour: float32 has steps of 128 there.

    Args:
      where: the function and argument that the message names.
      x: some examples, as they were given.
      names: of the columns, or None.
    """
    wide = x.dtype.kind in "iuf" and x.dtype.itemsize > 4 and x.ndim > 1 and x.size > 0
    if not wide or jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        flat = x.reshape(len(x), -1).astype(np.float64)
        moved = np.abs(flat - flat.astype(np.float32)).max(axis=0)
        spread, largest = flat.std(axis=0), np.abs(flat).max(axis=0)
        # What varies less is no more than the rounding of float64.
        lost = np.flatnonzero((moved > 0.01 * spread) & (spread > 1e-12 * largest))
        lost = lost[np.isfinite(moved[lost])]
    if not len(lost):
        return
    at = int(lost[0])
    name = str(at if names is None or x.ndim > 2 else repr(list(names)[at]))
    warnings.warn(
        f"{where}: column {name} of x has a standard deviation of {spread[at]:.3g} around "
        f"{flat[:, at].mean():.6g}, and float32 moves its numbers by up to {moved[at]:.3g}; "
        "standardise x before: (x - x.mean(axis=0)) / x.std(axis=0)",
        stacklevel=5,
    )


def _levels(x: np.ndarray) -> str:
    """Words for levels of images that are stored as other numbers than uint8; "" for others.

    Counts and measurements are whole numbers too: levels reach from 0 or nearly so, and lie in
    images, or end exactly where a type of levels does.
    """
    image = x.ndim >= 3 and min(x.shape[1:3]) >= 4
    if not (x.dtype.kind == "f" or (image and x.dtype in (np.uint16, np.int16))) or not x.size:
        return ""
    low, high = float(x.min()), float(x.max())
    if low < 0 or not 128 <= high <= 65535:
        return ""
    if x.dtype.kind != "f" and high <= 255:  # or classes of an Embed
        return ""
    if x.dtype.kind == "f" and low > 0 and not (low < 16 and high > 240):
        return ""
    if not image and not (x.ndim == 2 and x.shape[1] >= 16 and high in (255.0, 65535.0)):
        return ""
    if x.dtype.kind == "f" and not np.all(x == np.floor(x)):
        return ""
    top = 255 if high <= 255 else 65535
    fix = f"pass x / {top}"
    if top == 255:
        fix += ", or x.astype(np.uint8) with transform=data.scale"
    return (
        f"x holds whole numbers from 0 to {high:g} as {x.dtype}, which look like levels 0..{top} "
        f"of images that nobody scaled; {fix}"
    )


def _columns(x: np.ndarray, names: Any) -> str:
    """Words for a table whose columns differ in size by orders of magnitude; "" for others."""
    if x.ndim != 2 or x.shape[1] < 2 or len(x) < 8 or x.dtype.kind not in "iuf":
        return ""
    with np.errstate(over="ignore"):
        spread = np.ptp(x.astype(np.float64), axis=0)
    vary = np.flatnonzero((spread > 0) & np.isfinite(spread))
    if len(vary) < 2:
        return ""
    small, large = (vary[int(pick(spread[vary]))] for pick in (np.argmin, np.argmax))
    if spread[large] < SPAN * spread[small]:
        return ""
    one, other = (str(at if names is None else repr(list(names)[at])) for at in (small, large))
    return (
        f"column {one} of x spreads over {spread[small]:.3g} and column {other} over "
        f"{spread[large]:.3g}, so that the loss sees the larger one alone; standardise them: "
        "(x - x.mean(axis=0)) / x.std(axis=0)"
    )


__all__ = ["ROWS", "warn_of_rounding", "warn_of_scales"]
