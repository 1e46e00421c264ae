"""A large file that exists for as long as a benchmark runs."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vaejax.errors import wrong


@contextmanager
def large_array(
    name: str, folder: Path, shape: tuple[int, ...], dtype: type
) -> Iterator[tuple[Path, np.memmap]]:
    """An `.npy` file on the disk, and its array to fill; both are removed at the end.

    Args:
      name: the benchmark, for the message of an error.
      folder: where a temporary folder is made for the file.
      shape: shape of the array; its first entry is the option `--rows`.
      dtype: type of its numbers.
    Returns:
      A context that gives the path `array.npy` and the memory-mapped array.
    Raises:
      ValueError: where the disk has less than 1.1 times the free space that the file needs.
    """
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        got, fix = f"{free / 1e9:.1f} GB free", "name another --folder, or fewer --rows"
        raise wrong(f"{name}: --folder", got, f"{1.1 * needed / 1e9:.1f} GB", fix)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary, "array.npy")
        yield path, np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
