"""Data that stay on the disk: opened at once whatever their size, and read by whole batches.

`open` knows sets of TFDS, files and folders. `vaejax.feed` takes their batches to the device in the
order that a trainer asks for.
"""

import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.batch import mean_weight_of, size_of
from vaejax.data import tfds
from vaejax.data._arrays import as_labels, check_rows, checked, stored
from vaejax.data._files import DATA, LABELS, NAMES, PathLike, check_file, npz_keys
from vaejax.data._image_folders import ARRAYS, IMAGES, image_folder, listed
from vaejax.data._load import load
from vaejax.data._splits import SPLITS, every_nth, split_of
from vaejax.data._stored import Stored
from vaejax.errors import wrong
from vaejax.trees import digest
from vaejax.types import Batch

__all__ = ["IMAGES", "Source", "in_arrays", "in_memory", "open"]


class Source(NamedTuple):
    """Examples that need not fit memory: how many, how to read them, and what identifies them.

    Any function that keeps to this may make a Source.

    Args:
      size: how many examples there are.
      read: `read(indices [k]) -> Batch`, those examples in numpy arrays. One call reads a whole
        batch, in any order, with repetitions, and several threads may call it at once.
      digest: `trees.digest` of the first 256 examples, the same as for the same data in memory.
      mean_weight: the mean of all weights, where the batches have any. A run needs it before it has
        read them all. None where there are no weights.
    """

    size: int
    read: Callable[[np.ndarray], Batch]
    digest: str
    mean_weight: float | None = None


def in_memory(batch: Batch) -> Source:
    """A Batch in memory as a Source.

    Args:
      batch: arrays `[n, ...]`, or memory maps of them.
    Returns:
      A Source that reads from them.
    """
    size = size_of(batch)

    def read(indices: np.ndarray) -> Batch:
        inside = _inside(indices, size)
        return jax.tree.map(lambda leaf: np.asarray(leaf[inside]), batch)

    head = jax.tree.map(lambda leaf: leaf[:256], batch)
    return Source(size, read, digest(head), mean_weight_of(batch))


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
    read a source.

    Args:
      source: what `data.load` takes. These stay on the disk: `"mnist"` or `"tfds:NAME"`, prepared
        by TFDS; a path to a `.npy` file (or its memory map); a path to an `.npz` file that
        `np.savez` wrote. `open` also takes a path to a folder, which holds one of
        - images of one size, grey or RGB; or subfolders of them, one for each class: `y` is the
          place of its name among the sorted names;
        - `.npz` files with the same arrays, each with a part of the examples, in the order of
          their names;
        - `.npy` files, each with a part of an array: `images-00.npy`, `images-01.npy`,
          `labels-00.npy`, ... are an `.npz` whose arrays are cut into pieces, and files of any
          other names are all `x`.
        A folder may name its splits by subfolders, `train`, `test` and so on.
      split, data_dir: as in `data.load`.
    Returns:
      A Source. Its `read` raises ValueError for NaN or infinity, naming the row and the file, and
      for an image that cannot be read or is of another size, naming the file.
    Raises:
      ValueError: for what is empty, mixed, compressed or of an unsupported type or value, and for
        an unknown name or split.
      FileNotFoundError: for a path or a prepared set that is missing.
    """
    name, window = split_of("open", split)
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
            found = (
                _archives([path], name, where) if path.suffix == ".npz" else _arrays([path], where)
            )
    else:
        return in_memory(load(source, split))
    count, rows = found.size, lambda i: i
    if not found.split:
        count, rows = every_nth("open", 10, name, found.size)
    chosen = range(count)[window(count)]

    def read(indices: np.ndarray) -> Batch:
        return _checked_rows(found, rows(chosen.start + _inside(indices, len(chosen))), where)

    head = checked(read(np.arange(min(256, len(chosen)))), where)
    return Source(len(chosen), read, digest(head))


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

    return Stored(size, levels, lambda row: (where, row), True)


def _arrays(paths: Sequence[Path], where: str) -> Stored:
    """`.npy` files, each a part of x."""
    return _pieces({str(path): _mapped(path) for path in paths}, {}, where)


def _named_arrays(paths: Sequence[Path], split: str, where: str) -> Stored:
    """`.npy` files that are pieces of the arrays of an `.npz`, by their names, or all x."""
    known = {*DATA, *LABELS, *SPLITS}
    parts: dict[str, list[Path]] = {}
    for path in paths:  # images-0003.npy, x_train_7-of-9.npy: the name of an array, and a number
        stem = path.stem.split("-of-")[0].rstrip("0123456789").rstrip("-_.")
        parts.setdefault(stem, []).append(path)
    if not any(known.issuperset(name.lower().split("_")) for name in parts):
        return _arrays(paths, where)
    key, label, own = npz_keys(list(parts), split, where)
    x, y = ({str(path): _mapped(path) for path in parts.get(k or "", [])} for k in (key, label))
    return _pieces(x, y, where, own)


def _archives(paths: Sequence[Path], split: str, where: str) -> Stored:
    """`.npz` files, each a part of the examples."""
    x: dict[str, np.ndarray] = {}
    y: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            key, label, own = npz_keys(list(members), split, f"open: source {str(path)!r}")
            x[str(path)] = _member(path, members[key])
            if label:
                y[str(path)] = _member(path, members[label])
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            if str(error).startswith("open:"):
                raise
            raise _unreadable(path, error) from error
    return _pieces(x, y, where, own)


def _mapped(path: Path) -> np.ndarray:
    """A `.npy` file, memory-mapped."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error


def _member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An array within an archive, mapped where it lies, which numpy itself does not do."""
    if info.compress_type != zipfile.ZIP_STORED:
        got, fix = "a compressed file", "write it by np.savez, not np.savez_compressed"
        raise wrong(f"open: source {str(path)!r}", got, "one that can be mapped", fix)
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the local header ends with the name and extra bytes
        file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
        version = np.lib.format.read_magic(file)
        headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, fortran, dtype = headers[version > (1, 0)](file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        order: Any = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _unreadable(path: Path, error: Exception) -> Exception:
    """The error for a file of arrays that numpy refuses."""
    fix = "write it anew: np.save(path, images.astype(np.uint8))"
    return wrong(f"open: source {str(path)!r}", f"({error})", "plain numpy arrays", fix)


def _pieces(
    x: dict[str, np.ndarray], y: dict[str, np.ndarray], where: str, own_split: bool = False
) -> Stored:
    """Arrays that lie one after the other, by the names of their files."""
    size, read_x, place = _joined(x)
    if not y:
        return Stored(size, lambda rows: Batch(read_x(rows)), place, own_split)
    count, read_y, _ = _joined(y)
    if count != size:
        got, fix = f"{count} labels for {size} examples", "one file of labels for each of examples"
        raise wrong(where, got, "as many", fix)
    return Stored(size, lambda rows: Batch(read_x(rows), y=read_y(rows)), place, own_split)


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
            fix = "remove the file, or write its rows"
            raise wrong(f"open: source {name!r}", got, "an array [n, ...] that is not empty", fix)
        if (array.dtype, array.shape[1:]) != (arrays[0].dtype, arrays[0].shape[1:]):
            expected = f"{arrays[0].dtype} [n, {str(arrays[0].shape[1:])[1:-1]}] as in {names[0]!r}"
            raise wrong(f"open: source {name!r}", got, expected, "put other data elsewhere")
    ends = np.cumsum([len(array) for array in arrays])
    starts = ends - [len(array) for array in arrays]

    def read(rows: np.ndarray) -> np.ndarray:
        which = np.searchsorted(ends, rows, side="right")
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for piece in np.unique(which):
            mine = which == piece
            out[mine] = arrays[piece][rows[mine] - starts[piece]]  # np.take could copy it whole
        return out

    def place(row: int) -> tuple[str, int]:
        piece = np.searchsorted(ends, row, side="right")
        return f"open: source {names[piece]!r}", int(row - starts[piece])

    return int(ends[-1]), read, place


def _folder(path: Path, split: str, where: str) -> Stored:
    """A folder, whose subfolders may be its splits."""
    files, folders = listed(path)
    named = {name.lower(): name for name in folders}
    if named and not files and set(named) <= set(SPLITS):
        if split not in named:
            raise wrong(f"{where}: split", repr(split), sorted(named), "choose one of these")
        return _folder_of(path / named[split], where)._replace(split=True)
    return _folder_of(path, where, split)


def _folder_of(path: Path, where: str, split: str = "all") -> Stored:
    """A folder of images, of subfolders of images, or of arrays."""
    files, folders = listed(path)
    kinds = {Path(name).suffix.lower() for name in files}
    kinds = {"images" if kind in IMAGES else kind for kind in kinds}
    kinds |= {"subfolders"} if folders else set()
    if len(kinds) != 1:
        got = f"a folder of {' and '.join(sorted(kinds))}" if kinds else "an empty folder"
        expected = "images, subfolders of images, .npy files or .npz files"
        raise wrong(where, got, expected, "put each kind into a folder of its own")
    if kinds <= set(ARRAYS):
        kind = _archives if kinds == {".npz"} else _named_arrays
        return kind([path / name for name in files], split, where)
    return image_folder(path, files, folders)
