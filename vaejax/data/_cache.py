"""Decoded copies of prepared TFDS sets: made at the first read, memory-mapped afterwards."""

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vaejax.data import tfds
from vaejax.data._arrays import checked
from vaejax.data._files import PathLike
from vaejax.types import Batch


def cache_folder(cache_dir: PathLike | None = None) -> Path:
    """The folder of decoded copies and compiled programs, which may be deleted at any time.

    Args:
      cache_dir: the folder; by default $VAEJAX_CACHE, else $XDG_CACHE_HOME/vaejax, else
        ~/.cache/vaejax.
    Returns:
      The path. The folder need not exist.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vaejax")
    return Path(cache_dir or os.environ.get("VAEJAX_CACHE") or home).expanduser()


def from_tfds(
    name: str, split: str, data_dir: PathLike | None, cache_dir: PathLike | None
) -> Batch:
    """One split of a prepared set, from its decoded copy, which the first read makes.

    The copy's name holds a digest of the prepared files: a set that is prepared anew is decoded
    anew. Where no copy can be written, a UserWarning says so.

    Args:
      name: as TFDS has it, such as "mnist".
      split: its name, without a slice.
      data_dir, cache_dir: as in `load`.
    Returns:
      The examples: x is memory-mapped from the second read on.
    Raises:
      ValueError: for an unknown name or split, and for sets without one image of one size.
      FileNotFoundError: for a set that is not prepared.
    """
    builder = tfds.open_set("load", name, split, data_dir)
    place = Path(builder.data_path).resolve()
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(place.iterdir())]
    digest = hashlib.sha256(repr((place, state)).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir)
    stem = f"{re.sub('[^a-z0-9_.]', '-', name)}-{builder.info.version}-{split}-{digest}"
    x_path, y_path = folder / f"{stem}.x.npy", folder / f"{stem}.y.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged
        x, y = np.load(x_path, mmap_mode="r"), np.load(y_path)
        return Batch(x, y=y if y.size else ())
    batch = _decode(builder, name, split)
    try:
        _write(y_path, np.asarray(batch.y, np.int32))
        _write(x_path, batch.x)
    except OSError as error:
        warnings.warn(
            f"load: cache_dir: no decoded copy of {name} is kept ({error}), so that every read "
            "decodes it anew; pass a folder that can be written",
            stacklevel=3,
        )
    return batch


def _decode(builder: Any, name: str, split: str) -> Batch:
    from tqdm import tqdm

    size, read = tfds.reader("load", builder, name, split)
    whole = jax.tree.map(lambda leaf: np.empty((size, *leaf.shape[1:]), leaf.dtype), read([0]))
    for start in tqdm(range(0, size, 4096), f"decoding {name}", leave=False, delay=2):
        part = read(range(start, min(start + 4096, size)))
        for leaf, piece in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            leaf[start : start + len(piece)] = piece
    binary = whole.x.dtype == np.uint8 and whole.x.max() == 1
    return checked(whole._replace(x=whole.x.astype(bool)) if binary else whole, f"load: {name}")


def _write(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name first, so that no process ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        np.save(Path(folder, "part.npy"), array)
        os.replace(Path(folder, "part.npy"), path)
