"""Data that stay on the disk: opened at once whatever their size, and read by whole batches.

`open` knows sets of TFDS, files and folders. `vaejax.feed` takes their batches to the device in the
order that a trainer asks for.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.batch import check_unmasked, mean_weight_of, size_of
from vaejax.data import _digest, tfds
from vaejax.data._arrays import as_labels, check_rows, checked, stored
from vaejax.data._files import (
    DATA,
    LABELS,
    NAMES,
    Keys,
    PathLike,
    check_file,
    check_unwritten,
    is_archive,
    mapped,
    member,
    members,
    npz_keys,
    warn_of_unread_arrays,
    written,
)
from vaejax.data._image_folders import (
    ARRAYS,
    IMAGES,
    classes_of,
    image_folder,
    listed,
    warn_of_unread,
)
from vaejax.data._load import load
from vaejax.data._rounding import ROWS, warn_of_rounding
from vaejax.data._splits import SPLITS, by_name, every_nth, split_of
from vaejax.data._stored import Stored
from vaejax.errors import wrong
from vaejax.types import Batch

__all__ = ["IMAGES", "Source", "digest", "in_arrays", "in_memory", "open"]


class Source(NamedTuple):
    """Examples that need not fit memory: how many, how to read them, and what identifies them.

    Any function that keeps to this may make a Source.

    Args:
      size: how many examples there are.
      read: `read(indices [k]) -> Batch`, those examples in numpy arrays. One call reads a whole
        batch, in any order, with repetitions, and several threads may call it at once.
      digest: what identifies the examples, a text or a function without arguments that finds it
        out; by default `sources.digest` reads a sample of them.
      classes: the names of the classes, where they are known: a label is a place among them.
      mean_weight: the mean of all weights, where the batches have any. A run needs it before it has
        read them all. None where there are no weights.
    """

    size: int
    read: Callable[[np.ndarray], Batch]
    digest: str | Callable[[], str] | None = None
    classes: tuple[str, ...] = ()
    mean_weight: float | None = None


def digest(source: Source) -> str:
    """What identifies the examples of a source: a run goes on only with the same ones.

    Unless the source has an answer of its own, up to 2500 rows are read and digested, all of them,
    and of more one row in each of 2500 equal parts, so that a change of 1 % of the rows escapes
    with a probability of 1e-11. That takes 0.01 s in memory, 1 s of a set of TFDS and 1 ms for each
    PNG of 64 x 64. Of a folder of more than 2500 rows, the sizes and bytes of all files of the
    split are digested too (of a file above 1 MiB, 16 parts): 0.1 ms a file.

    Args:
      source: the examples.
    Returns:
      Hexadecimal digits, the same for the same data in memory and on the disk; a folder of more
      than 2500 rows has its own.
    """
    found = source.digest
    if found is None:
        return _digest.of_rows(source.size, source.read)
    return found() if callable(found) else found


def in_memory(batch: Batch) -> Source:
    """A Batch in memory as a Source.

    Args:
      batch: arrays `[n, ...]`, or memory maps of them.
    Returns:
      A Source that reads from them.
    Raises:
      ValueError: for masked values, and for axes that do not agree.
    """
    for leaf in jax.tree.leaves(batch):
        check_unmasked("in_memory: batch", leaf)
    size = size_of(batch)

    def read(indices: np.ndarray) -> Batch:
        inside = _inside(indices, size)
        return jax.tree.map(lambda leaf: np.asarray(leaf[inside]), batch)

    @functools.cache
    def found() -> str:
        host = jax.tree.map(np.asarray, batch)  # rows of an array on a device cost a program
        return _digest.of_rows(size, lambda rows: jax.tree.map(lambda leaf: leaf[rows], host))

    return Source(size, read, found, mean_weight=mean_weight_of(batch))


def in_arrays(function: str, data: Any) -> Any:
    """`data` as they are, for a function that reads arrays alone.

    Args:
      function: the caller, for the message.
      data: what the caller was given.
    Returns:
      `data`.
    Raises:
      TypeError: where `data` is a Source.
    """
    if isinstance(data, Source):
        fix = "read it, where it fits: source.read(np.arange(source.size))"
        raise wrong(f"{function}: data", "a Source", "arrays in memory", fix, TypeError)
    return data


def open(
    source: PathLike | Batch | np.ndarray | jax.Array,
    split: str = "train",
    *,
    data_dir: PathLike | None = None,
) -> Source:
    """Open one split of a data set of any size, reading no more than its first 256 examples.

    The examples, their types and their splits are those of `data.load`, bit for bit, where both
    read a source. A folder that does not name its splits is split by the names of its files, so
    that a file that comes or goes moves no other one to another split: row i of a file is "test"
    where (i + hash of its name within the folder) % 10 is 9. Of images, one in ten is, by chance.

    Args:
      source: what `data.load` takes. These stay on the disk: `"mnist"` or `"tfds:NAME"`, prepared
        by TFDS; a path to a `.npy` file (or its memory map); a path to an `.npz` file that
        `np.savez` wrote. `open` also takes a path to a folder, which holds one of
        - images of one size, grey or RGB; or subfolders of them, one for each class: `y` is the
          place of its name among the sorted names, over all splits;
        - `.npz` files with the same arrays, each with a part of the examples, in the order of
          their names;
        - `.npy` files, each with a part of an array: `images-00.npy`, `images-01.npy`,
          `labels-00.npy`, ... are an `.npz` whose arrays are cut into pieces, and files of any
          other names are all `x`.
        A folder may name its splits by subfolders, `train`, `test` and so on.
      split, data_dir: as in `data.load`.
    Returns:
      A Source. Its `read` raises ValueError for NaN or infinity, naming the row and the file, for
      a file of arrays that was written to since, and
      for an image that cannot be read or is of another size, naming the file. Images are turned as
      their EXIF orientation says. The checksum of an `.npz` is not verified, since that would read
      all of it: `data.load` does.
    Raises:
      ValueError: for what is empty, mixed, compressed or of an unsupported type or value, and for
        an unknown name or split.
      FileNotFoundError: for a path or a prepared set that is missing.
    """
    name, window = split_of("open", split)
    path = None
    if isinstance(source, str) and (source in NAMES[1:] or source.startswith("tfds:")):
        where = f"open: source {source!r}"
        found = _tfds(source.removeprefix("tfds:"), name, data_dir, where)
    elif isinstance(source, np.memmap):
        where = "open: source"
        found = _pieces({str(source.filename): source}, {}, where)
    elif isinstance(source, PathLike) and source != "digits":
        path = Path(source).expanduser()
        where = f"open: source {str(path)!r}"
        if path.is_dir():
            found = _folder(path, name, where)
        else:
            check_file(path, where, "a path to .npz, .npy or a folder")
            kind = _archives if is_archive(path) else _arrays
            found = kind([path], name, where)._replace(files=())
    else:
        return in_memory(load(source, split))
    count, rows = found.size, lambda i: i
    if not found.split and path and found.files:
        names = [os.path.relpath(file, path).replace(os.sep, "/") for file in found.files]
        count, rows = by_name("open", 10, name, names, found.ends)
    elif not found.split:
        count, rows = every_nth("open", 10, name, found.size)
    chosen = range(count)[window(count)]

    def read(indices: np.ndarray) -> Batch:
        return _checked_rows(found, rows(chosen.start + _inside(indices, len(chosen))), where)

    @functools.cache
    def identity() -> str:
        by_rows = _digest.of_rows(len(chosen), read)
        if len(chosen) <= _digest.ROWS or not found.files:
            return by_rows
        files = [*found.files, *found.beside]
        if len(found.files) == found.size:  # an image each: those of other splits are not meant
            files = [files[row] for row in rows(np.arange(chosen.start, chosen.stop))]
        return _digest.joined(by_rows, _digest.of_files(files))

    checked(read(np.arange(min(256, len(chosen)))), where)
    return Source(len(chosen), read, identity, found.classes)


def _inside(indices: np.ndarray, size: int) -> np.ndarray:
    """The indices, if there are such examples: beyond a split lie those of another."""
    found = np.asarray(indices, np.int64)
    if found.size and not 0 <= found.min() <= found.max() < size:
        got, fix = f"{found.min()} to {found.max()}", "make the order for this split's size"
        raise wrong("read: indices", got, f"0 to {size - 1}, the examples", fix, IndexError)
    return found


def _checked_rows(found: Stored, rows: np.ndarray, where: str) -> Batch:
    """A batch by the convention of `data.load`."""
    batch = found.read(rows)
    x = stored(batch.x)
    if x.dtype == np.float32:
        check_rows(x, rows, found.place)
    y = batch.y if isinstance(batch.y, tuple) else as_labels(batch.y, where)
    return Batch(x[..., None] if x.ndim == 3 else x, y=y)


def _tfds(name: str, split: str, data_dir: PathLike | None, where: str) -> Stored:
    """A prepared set; one whose first 256 images hold only 0 and 1 is taken for binary."""
    builder = tfds.open_set("open", name, split, data_dir)
    size, read = tfds.reader("open", builder, name, split)
    head = read(range(min(256, size))).x
    binary = head.dtype == np.uint8 and head.max() == 1

    def levels(rows: np.ndarray) -> Batch:
        batch = read(rows.tolist())
        if binary and batch.x.max() > 1:  # else an image of levels would turn to black and white
            row = rows[np.argmax(batch.x.reshape(len(rows), -1).max(axis=1) > 1)]
            got, fix = f"levels up to {batch.x.max()} in row {row}", "read it with data.load"
            raise wrong(where, got, "0 and 1, as in its first 256", fix)
        return batch._replace(x=batch.x.astype(bool)) if binary else batch

    names = tfds.classes(builder)
    return Stored(size, levels, lambda row: (where, row), True, classes=names)


def _arrays(paths: Sequence[Path], split: str, where: str) -> Stored:
    """`.npy` files, each a part of x."""
    return _pieces({str(path): mapped(path, _source(path)) for path in paths}, {}, where)


def _source(path: Path) -> str:
    return f"open: source {str(path)!r}"


def _named_arrays(paths: Sequence[Path], split: str, where: str) -> Stored:
    """`.npy` files that are pieces of the arrays of an `.npz`, by their names, or all x."""
    known = {*DATA, *LABELS, *SPLITS}
    parts: dict[str, list[Path]] = {}
    for path in paths:  # images-0003.npy, x_train_7-of-9.npy: the name of an array, and a number
        stem = path.stem.split("-of-")[0].rstrip("0123456789").rstrip("-_.")
        parts.setdefault(stem, []).append(path)
    if not any(known.issuperset(name.lower().split("_")) for name in parts):
        return _arrays(paths, split, where)
    keys = npz_keys(list(parts), split, where)
    warn_of_unread_arrays(where, keys.unread)
    x, y = (
        {str(path): mapped(path, _source(path)) for path in parts.get(key or "", [])}
        for key in (keys.x, keys.labels)
    )
    return _pieces(x, y, where, keys.own_splits)


def _archives(paths: Sequence[Path], split: str, where: str) -> Stored:
    """`.npz` files, each a part of the examples."""
    x: dict[str, np.ndarray] = {}
    y: dict[str, np.ndarray] = {}
    found: list[Keys] = []
    for path in paths:
        arrays = members(path, _source(path))
        found.append(keys := npz_keys(list(arrays), split, _source(path)))
        x[str(path)] = member(path, arrays[keys.x])
        if keys.labels:
            y[str(path)] = member(path, arrays[keys.labels])
    warn_of_unread_arrays(where, [name for keys in found for name in keys.unread])
    return _pieces(x, y, where, found[0].own_splits)


def _pieces(
    x: dict[str, np.ndarray], y: dict[str, np.ndarray], where: str, own_split: bool = False
) -> Stored:
    """Arrays that lie one after the other, by the names of their files."""
    size, read_x, place = _joined(x)
    warn_of_rounding(where, next(iter(x.values()))[:ROWS])
    files, ends = list(x), np.cumsum([len(array) for array in x.values()])
    if not y:
        return Stored(size, lambda rows: Batch(read_x(rows)), place, own_split, files, ends)
    count, read_y, _ = _joined(y)
    if count != size:
        got, fix = f"{count} labels for {size} examples", "one file of labels for each of examples"
        raise wrong(where, got, "as many", fix)
    beside = [name for name in y if name not in x]

    def read(rows: np.ndarray) -> Batch:
        return Batch(read_x(rows), y=read_y(rows))

    return Stored(size, read, place, own_split, files, ends, beside)


def _joined(
    maps: dict[str, np.ndarray],
) -> tuple[int, Callable[[np.ndarray], np.ndarray], Callable[[int], tuple[str, int]]]:
    """How many rows there are in all, `read(rows)`, and `place(row)`: the file, and the row there.

    Raises ValueError unless the arrays are alike.
    """
    names, arrays = list(maps), list(maps.values())
    for name, array in maps.items():
        got = f"{array.dtype} of shape {array.shape}"
        if array.ndim == 0 or not array.size:
            fix = "write its rows, or move the file out of the folder"
            raise wrong(f"open: source {name!r}", got, "an array [n, ...] that is not empty", fix)
        if (array.dtype, array.shape[1:]) != (arrays[0].dtype, arrays[0].shape[1:]):
            expected = f"{arrays[0].dtype} [n, {str(arrays[0].shape[1:])[1:-1]}] as in {names[0]!r}"
            raise wrong(f"open: source {name!r}", got, expected, "put other data elsewhere")
    ends = np.cumsum([len(array) for array in arrays])
    starts = ends - [len(array) for array in arrays]
    opened = [written(name) for name in names]

    def read(rows: np.ndarray) -> np.ndarray:
        which = np.searchsorted(ends, rows, side="right")
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for piece in np.unique(which):
            mine = which == piece
            check_unwritten(f"open: source {names[piece]!r}", names[piece], opened[piece])
            out[mine] = arrays[piece][rows[mine] - starts[piece]]  # np.take could copy it whole
        return out

    def place(row: int) -> tuple[str, int]:
        piece = np.searchsorted(ends, row, side="right")
        return f"open: source {names[piece]!r}", int(row - starts[piece])

    return int(ends[-1]), read, place


def _folder(path: Path, split: str, where: str) -> Stored:
    """A folder, whose subfolders may be its splits."""
    files, folders = listed(path)
    named = {name.lower(): name for name in folders if name.lower() in SPLITS}
    if len(named) > 1 and (files or len(named) < len(folders)):
        others = [*(name for name in folders if name.lower() not in named), *files][:3]
        fix = "move the others elsewhere"
        raise wrong(where, f"splits {sorted(named)} beside {others}", "splits alone", fix)
    if named and not files and len(named) == len(folders):
        if split not in named:
            raise wrong(f"{where}: split", repr(split), sorted(named), "choose one of these")
        # Numbered over all splits: one of them may lack a class.
        inside = {name: listed(path / name)[1] for name in folders}
        classes = classes_of(inside, where)
        found = _folder_of(path / named[split], where, "all", classes)._replace(split=True)
        others = [name for name in folders if name != named[split]]
    else:
        found, others = _folder_of(path, where, split, folders), []
    read, first = list(found.files), Path(found.files[0])
    if first.suffix.lower() in ARRAYS:  # arrays of other splits, of others there was a warning
        read = [str(first.with_name(name)) for name in listed(first.parent)[0]]
    warn_of_unread(path, read, others, where)
    return found


def _folder_of(path: Path, where: str, split: str, classes: Sequence[str]) -> Stored:
    """A folder of images, of subfolders of images, or of arrays."""
    files, folders = listed(path)
    kinds = {Path(name).suffix.lower() for name in files}
    kinds = {"images" if kind in IMAGES else kind for kind in kinds}
    kinds |= {"subfolders"} if folders else set()
    if len(kinds) != 1:
        nothing = "a folder without them" if any(path.iterdir()) else "an empty folder"
        got = f"a folder of {' and '.join(sorted(kinds))}" if kinds else nothing
        expected = "images, subfolders of images, .npy files or .npz files"
        raise wrong(where, got, expected, "put each kind into a folder of its own")
    if kinds <= set(ARRAYS):
        kind = _archives if kinds == {".npz"} else _named_arrays
        return kind([path / name for name in files], split, where)
    return image_folder(path, files, classes if folders else ())
