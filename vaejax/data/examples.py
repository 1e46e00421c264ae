"""What a run is trained on: checked once, and handed on as one value."""

from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.batch import as_batch, size_of
from vaejax.data._plausible import warn_of_scales
from vaejax.data.sources import Source, in_memory
from vaejax.errors import at_least_one, warn_of_levels
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
        """SHA-256 of the first 256 examples, the same wherever they lie."""
        return self.source.digest


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
      ValueError: for NaN or infinity in arrays, and for axes that do not agree. A Source says so
        itself when it reads.
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
        _check_finite(batch)
        warn_of_scales(function, data, batch, transform)
        found = Examples(in_memory(batch), batch)
    warn_of_levels(found.source.read(np.zeros(1, int)).x, transform, function, stacklevel=4)
    return found


def _check_finite(data: Batch) -> None:
    """Raise ValueError for data with NaN or infinity, naming the first such example."""
    for name, leaf in (("x", data.x), ("c", data.c)):
        for array in map(np.asarray, jax.tree.leaves(leaf)):
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                bad = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
                raise ValueError(
                    f"fit: data.{name} holds NaN or infinite values in {len(bad)} of "
                    f"{len(array)} examples, the first at index {bad[0]}; drop or fill them"
                )


__all__ = ["Examples", "as_examples"]
