"""Examples on the disk, as they are stored there."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vaejax.types import Batch


class Stored(NamedTuple):
    """What lies on the disk, as it is stored.

    `size`: how many rows there are. `read`: the rows of given numbers. `place`: of a row, what
    messages call its file, and its number there. `split`: whether the split was chosen by name
    already, or is still to be cut from all. `files`: the files that hold the examples one after the
    other, and `ends`: the number of rows up to the end of each; `beside`: those of their labels.
    `classes`: the names that labels are places in.
    """

    size: int
    read: Callable[[np.ndarray], Batch]
    place: Callable[[int], tuple[str, int]]
    split: bool
    files: Sequence[str] = ()
    ends: np.ndarray = np.empty(0, int)
    beside: Sequence[str] = ()
    classes: tuple[str, ...] = ()
