"""Data that are surely not meant as they are: levels that nobody scaled, columns of all sizes."""

import warnings
from typing import Any

import jax
import numpy as np

from vaejax.data._rounding import ROWS, warn_of_rounding
from vaejax.data.sources import Source
from vaejax.types import Batch, Transform

READ = 64  # of a Source, whose rows lie on a disk
SPAN = 1e6  # between the largest and the smallest spread of a column


def warn_of_scales(
    function: str, data: Any, source: Source, first: Batch, transform: Transform | None
) -> None:
    """Warn (UserWarning) of numbers that no likelihood but one for them can take, with the remedy.

    These are floats or 16-bit integers that look like the levels of images, 0..255 or 0..65535,
    and tables whose columns span six orders of magnitude. What counts is what the transform makes
    of them. At most one array of x is warned of.

    Args:
      function: what the user called, for the message.
      data: what the user gave, which may name the columns.
      source: the same as a Source, some rows of which are looked at.
      first: one example of it.
      transform: what is done to an example before the model sees it, or None.
    """
    if all(np.asarray(leaf).dtype in (np.uint8, np.bool_) for leaf in jax.tree.leaves(first.x)):
        return  # nothing has to be read
    most = READ if data is source else ROWS
    rows = np.unique(np.linspace(0, source.size - 1, min(source.size, most)).astype(int))
    some = jax.tree.map(np.asarray, source.read(rows).x)
    names = getattr(getattr(data, "x", data), "columns", None)
    for leaf in jax.tree.leaves(some):
        warn_of_rounding(function, leaf, names)
    words = _words(some, names)
    if not words:
        return
    if transform is not None:
        try:
            keys = jax.random.split(jax.random.key(0), len(rows))
            seen = jax.tree.map(np.asarray, jax.vmap(transform)(keys, some))
        except Exception:  # what is wrong with the transform is said where it is used
            return
        if not _words(seen, None):
            return
    warnings.warn(f"{function}: {words}", stacklevel=4)


def _words(x: Any, names: Any) -> str:
    """Words for the first array of a tree that is surely not meant as it is; "" for none."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    found = (
        _levels(f"x{jax.tree_util.keystr(path)}", leaf)
        or _columns(f"x{jax.tree_util.keystr(path)}", leaf, names)
        for path, leaf in leaves
    )
    return next(filter(None, found), "")


def _levels(name: str, x: np.ndarray) -> str:
    """Words for levels of images that are stored as other numbers than uint8; "" for others.

    Counts and measurements are whole numbers too: levels reach from 0 or nearly so, and lie in
    images, or end exactly where a type of levels does. Levels that were resized or dequantised are
    no whole numbers, and reach from nearly 0 to nearly 255.
    """
    image = x.ndim >= 3 and min(x.shape[1:3]) >= 4
    floats = x.dtype.kind == "f"
    if not (floats or (image and x.dtype in (np.uint16, np.int16))) or not x.size:
        return ""
    low, high = float(x.min()), float(x.max())
    if low < 0 or not 128 <= high <= 65535:
        return ""
    whole = not floats or bool(np.all(x == np.floor(x)))
    from_nearly_0_to_255 = low < 16 and 240 < high <= 256
    if not floats and high <= 255:  # or classes of an Embed
        return ""
    if floats and low > 0 and not (low < 16 and high > 240):
        return ""
    if not image and not (x.ndim == 2 and x.shape[1] >= 16 and high in (255.0, 65535.0)):
        return ""
    if not whole and not (image and from_nearly_0_to_255):
        return ""
    top = 255 if high <= 256 else 65535
    fix = f"pass x / {top}"
    if top == 255 and whole:
        fix += ", or x.astype(np.uint8) with transform=data.scale"
    return (
        f"{name} holds {'whole ' if whole else ''}numbers from {low:g} to {high:g} as {x.dtype}, "
        f"which look like levels 0..{top} of images that nobody scaled; {fix}"
    )


def _columns(name: str, x: np.ndarray, names: Any) -> str:
    """Words for a table whose columns differ in size by orders of magnitude; "" for others."""
    if x.ndim != 2 or x.shape[1] < 2 or len(x) < 8 or x.dtype.kind not in "iuf":
        return ""
    with np.errstate(over="ignore"):
        wide = x.astype(np.float64)
        spread = np.ptp(wide, axis=0)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(wide).max(axis=0)  # constant, as floats go
    vary = np.flatnonzero((spread > rounding) & np.isfinite(spread))
    if len(vary) < 2:
        return ""
    small, large = (vary[int(pick(spread[vary]))] for pick in (np.argmin, np.argmax))
    if spread[large] < SPAN * spread[small]:
        return ""
    one, other = (str(at if names is None else repr(list(names)[at])) for at in (small, large))
    return (
        f"column {one} of {name} spreads over {spread[small]:.3g} and column {other} over "
        f"{spread[large]:.3g}, so that the loss sees the larger one alone; standardise them: "
        f"({name} - {name}.mean(axis=0)) / {name}.std(axis=0)"
    )


__all__ = ["warn_of_scales"]
