"""What a run is trained on: checked once, and handed on as one value."""

from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.batch import as_batch, check_some_weight, size_of
from vaejax.data._plausible import warn_of_scales
from vaejax.data.sources import Source, digest, in_memory
from vaejax.errors import at_least_one, warn_of_levels, wrong
from vaejax.types import Batch, Transform


class Examples(NamedTuple):
    """The examples of a run, and where they lie.

    Args:
      source: reads any rows of them, in numpy arrays.
      arrays: all of them as a Batch of arrays `[size, ...]`, which fit the device; None where they
        are read from the source while the run goes on.
    """

    source: Source
    arrays: Batch | None

    @property
    def size(self) -> int:
        """How many examples there are."""
        return self.source.size

    @property
    def digest(self) -> str:
        """What identifies the examples, the same wherever they lie; see `sources.digest`."""
        return digest(self.source)


def as_examples(function: str, data: Any, transform: Transform | None) -> Examples:
    """The data that a caller gave, checked, as one value.

    Warns (UserWarning) of uint8 levels without a transform, of other numbers that look like levels,
    and of tables whose columns span six orders of magnitude.

    Args:
      function: what the user called, for messages.
      data: a Batch, or the x of one, `[n, ...]`; or a Source.
      transform: what a training step does to each x, or None; only whether there is one counts.
    Returns:
      Examples, whose `arrays` are None for a Source.
    Raises:
      TypeError: for a key in place of the data.
      ValueError: for NaN or infinity in arrays, for axes that do not agree, and for labels or
        weights that `batch.check_companions` refuses; a Source says so itself when it reads. For
        data whose weights are all 0, and for a Source with weights but without their mean.
    Example:
      >>> import numpy as np
      >>> from vaejax.data.examples import as_examples
      >>> examples = as_examples("fit", np.zeros((5, 4, 3), np.float32), None)
      >>> examples.size, examples.source.read(np.array([4, 0])).x.shape
      (5, (2, 4, 3))
    """
    if isinstance(data, Source):
        found = Examples(data, None)
    else:
        batch = as_batch(data, function)
        at_least_one(function, examples=size_of(batch.x))
        check_some_weight(function, batch)
        _check_finite(function, batch)
        _check_whole_numbers(function, batch)
        found = Examples(in_memory(batch), batch)
    first = found.source.read(np.zeros(1, int))
    _check_mean_weight(function, found.source, first)
    warn_of_levels(first.x, transform, function, stacklevel=4)
    warn_of_scales(function, data, found.source, first, transform)
    return found


def _check_mean_weight(function: str, source: Source, first: Batch) -> None:
    """Raise ValueError for a Source with weights whose mean is not known before they are read."""
    mean = source.mean_weight
    if isinstance(first.weight, tuple) or (mean is not None and 0 < mean < np.inf):
        return
    fix = "give it: Source(..., mean_weight=weights.mean())"
    expected = "the mean of all weights, a positive number, since its batches have weights"
    raise wrong(f"{function}: Source.mean_weight", mean, expected, fix)


def _counted(tree: Any, array: np.ndarray) -> Any:
    """What counts of an array of the tree: all, or what the mask of padded sequences says.

    Those are a pair of values `[n, steps, ...]` and a mask `[n, steps]` (`recurrent.padded`).
    """
    if not isinstance(tree, tuple) or len(tree) != 2 or np.ndim(tree[1]) != 2:
        return True
    mask = np.asarray(tree[1])
    if array.shape[:2] != mask.shape or not np.isin(mask, (0, 1)).all():
        return True
    return mask.astype(bool).reshape(*mask.shape, *[1] * (array.ndim - 2))


def _check_finite(function: str, data: Batch) -> None:
    """Raise ValueError for data with NaN or infinity, naming the first such example."""
    for name, leaf in (("x", data.x), ("c", data.c)):
        for array in map(np.asarray, jax.tree.leaves(leaf)):
            if not np.issubdtype(array.dtype, np.floating):
                continue
            with np.errstate(over="ignore"):
                seen = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
            if np.isfinite(seen).all():
                continue
            bad = np.unique(np.argwhere(~np.isfinite(seen) & _counted(leaf, array))[:, 0])
            if len(bad):
                large = np.isfinite(array[bad]).all()
                what = f"values beyond {seen.dtype}" if large else "NaN or infinite values"
                raise ValueError(
                    f"{function}: data.{name} holds {what} in {len(bad)} of {len(array)} examples, "
                    f"the first at index {bad[0]}; {'scale' if large else 'drop or fill'} them"
                )


def _check_whole_numbers(function: str, data: Batch) -> None:
    """Raise ValueError for whole numbers that JAX would cut: it takes 2**32 + 5 for 5."""
    for name in ("x", "c"):
        for leaf in jax.tree.leaves(getattr(data, name)):
            dtype = getattr(leaf, "dtype", np.dtype(bool))
            if isinstance(leaf, jax.Array) or not np.issubdtype(dtype, np.integer):
                continue
            fits = np.iinfo(jax.dtypes.canonicalize_dtype(dtype))
            if (
                dtype != fits.dtype
                and not fits.min <= int(leaf.min()) <= int(leaf.max()) <= fits.max
            ):
                at = int(np.argwhere((leaf < fits.min) | (leaf > fits.max))[0][0])
                got = f"{dtype} with {leaf[at].max()} at index {at}"
                fix = "number classes anew: names, y = np.unique(y, return_inverse=True)"
                raise wrong(f"{function}: data.{name}", got, f"numbers within {fits.dtype}", fix)


__all__ = ["Examples", "as_examples"]
