"""Decoded copies of prepared TFDS sets: made at the first read, memory-mapped afterwards."""

import hashlib
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vaejax.compiling import cache_folder
from vaejax.data import tfds
from vaejax.data._arrays import checked
from vaejax.data._files import PathLike
from vaejax.types import Batch


def from_tfds(
    name: str, split: str, data_dir: PathLike | None, cache_dir: PathLike | None
) -> Batch:
    """One split of a prepared set, from its decoded copy, which the first read makes.

    The copy's name holds a digest of the prepared files: a set that is prepared anew is decoded
    anew. Checksums of the copy lie beside it and are verified at each read, which takes about a
    second a gigabyte; a copy that does not match is made again, and a UserWarning says so, as it
    does where no copy can be written.

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
    copy = folder / f"{re.sub('[^a-z0-9_.]', '-', name)}-{builder.info.version}-{split}-{digest}"
    try:
        kept = _kept(copy)
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(
            f"load: cache_dir: the decoded copy {copy}.* is damaged ({error}), and is made again",
            stacklevel=3,
        )
        kept = None
    if kept is not None:
        return kept
    batch = _decode(builder, name, split)
    try:
        _keep(copy, batch)
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


def _paths(copy: Path) -> dict[str, Path]:
    """Where a copy's arrays lie, and their checksums, which are written last."""
    ends = {"x": ".x.npy", "y": ".y.npy", "sums": ".sha256.json"}
    return {name: copy.with_name(copy.name + end) for name, end in ends.items()}


def _kept(copy: Path) -> Batch | None:
    """A copy whose files have their checksums; None where there is none, ValueError for others.

    The checksums are of the files' bytes, so of types, shapes and numbers of examples too.
    """
    paths = _paths(copy)
    if not os.path.lexists(paths["sums"]):
        return None
    stored = json.loads(_bytes(paths["sums"]))
    if stored != {"copy": copy.name, "x": _sha256(paths["x"]), "y": _sha256(paths["y"])}:
        raise ValueError("its files do not match their checksums")
    x, y = np.load(paths["x"], mmap_mode="r"), np.load(paths["y"])
    return Batch(x, y=y if y.size else ())


def _keep(copy: Path, batch: Batch) -> None:
    """Write a copy, and its checksums at the end.

    Processes that do so at the same time write the same bytes.
    """
    paths = _paths(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Each under a temporary name first, so that no process ever reads half a file.
    with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
        parts = {name: Path(folder, path.name) for name, path in paths.items()}
        np.save(parts["x"], batch.x)
        np.save(parts["y"], np.asarray(batch.y, np.int32))
        sums = {name: _sha256(parts[name]) for name in ("x", "y")}
        parts["sums"].write_text(json.dumps({"copy": copy.name, **sums}))
        for name, path in paths.items():
            os.replace(parts[name], path)


def _bytes(path: Path) -> bytes:
    _check_regular(path)
    return path.read_bytes()


def _sha256(path: Path) -> str:
    _check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_regular(path: Path) -> None:
    if not path.is_file():  # to open a pipe would wait for its writer
        raise ValueError(f"{path.name} is no file")
