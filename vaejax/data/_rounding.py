"""Numbers of 64 bits that float32 rounds until they hardly vary."""

import warnings
from typing import Any

import jax
import numpy as np

ROWS = 500  # that are looked at, evenly spread


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


__all__ = ["ROWS", "warn_of_rounding"]
