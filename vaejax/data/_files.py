"""Names of data sets, and `.npz` and `.npy` files as data sets."""

import difflib
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vaejax.data._arrays import checked
from vaejax.data._splits import SPLITS, cut
from vaejax.errors import wrong
from vaejax.types import Batch

NAMES = ("digits", "mnist", "fashion_mnist", "binarized_mnist")
PathLike = str | os.PathLike
DATA = ("x", "images", "data")  # what an array of examples may be called
LABELS = ("y", "labels", "label", "targets")


def from_file(path: Path, split: str) -> Batch:
    """One split of the examples in a `.npz` or `.npy` file.

    Args:
      path: of the file.
      split: its name, without a slice.
    Returns:
      The examples; those of a `.npy` file stay memory-mapped where no conversion is needed.
    Raises:
      ValueError: for files that hold no plain numbers, for types and values that `checked` refuses,
        and for an unknown split.
      FileNotFoundError: for a missing file.
    """
    where = f"load: source {str(path)!r}"
    check_file(path, where)
    if not is_archive(path):
        return cut(10, split, checked(Batch(mapped(path, where)), where))
    names = members(path, where)
    keys = npz_keys(list(names), split, where)
    warn_of_unread_arrays(where, keys.unread)
    try:
        with zipfile.ZipFile(path) as archive:
            x, y = (_unpacked(archive, names[key]) if key else () for key in (keys.x, keys.labels))
    except Exception as error:  # of many classes, for damaged files
        raise unreadable(where, error) from error
    batch = checked(Batch(x, y=y), where)
    return batch if keys.own_splits else cut(10, split, batch)


def check_file(path: Path, where: str, kinds: str = "a path to .npz or .npy") -> None:
    """Raise ValueError for what is neither a name nor such a path, FileNotFoundError for none.

    Args:
      path: what the caller was given.
      where: the function and argument that messages name.
      kinds: the paths that the caller takes, for messages.
    """
    expected = f'one of {", ".join(NAMES)}, "tfds:NAME", or {kinds}'
    if path.is_dir():
        fix = "read it by vaejax.sources.open(path, split)"
        raise wrong(where, "a folder", expected, fix)
    if path.suffix.lower() not in (".npz", ".npy"):
        named = len(path.parts) > 1 or (path.suffix and ":" not in path.name)  # as paths are
        if named and not path.exists():
            fix, got = "correct the path", "no such file or folder"
            raise wrong(where, got, path.absolute(), fix, FileNotFoundError)
        if path.exists():
            fix = "write its numbers as one array: np.save(NEW, x)"
            raise wrong(where, "another kind of file", expected, fix)
        near = (difflib.get_close_matches(str(path), NAMES, 1) or [f"tfds:{path}"])[0]
        raise wrong(where, "an unknown name", expected, f"perhaps {near!r}")
    check_regular(path, where)


def check_regular(path: Path, where: str) -> None:
    """Raise FileNotFoundError unless there is such a file, and it is no folder, pipe or device."""
    if not path.is_file():
        got = "no regular file" if path.exists() else "no such file"
        raise wrong(where, got, path.absolute(), "correct the path", FileNotFoundError)


def written(path: PathLike) -> tuple[int, ...]:
    """What changes when a mapped file is written to; () where nothing lies there any more.

    A file that takes its place is another one, of which the mapping sees nothing.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_unwritten(where: str, path: PathLike, before: tuple[int, ...]) -> None:
    """Raise ValueError where a mapped file was written to: to read what it has lost is a crash."""
    now = written(path)
    if now != before and now[:2] == before[:2] != ():
        fix = "write such changes to another path, and open it again"
        raise wrong(where, "a file that was written to since", "the file that was opened", fix)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive of arrays, by its first bytes and not by its name."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def mapped(path: Path, where: str) -> np.ndarray:
    """A `.npy` file, memory-mapped; ValueError where it is none, or not all of one array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive of arrays, which has the ending .npz")
        size, offset = path.stat().st_size, getattr(array, "offset", None)
        if offset is not None and size != offset + array.nbytes:
            raise ValueError(f"{size} bytes, where its header speaks of {offset + array.nbytes}")
    except Exception as error:  # of many classes, for damaged files
        raise unreadable(where, error) from error
    return array


def members(path: Path, where: str) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an archive by name; ValueError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
        names = [info.filename.removesuffix(".npy") for info in found]
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"two arrays of one name among {names}")
    except Exception as error:  # of many classes, for damaged files
        raise unreadable(where, error) from error
    return dict(zip(names, found, strict=True))


def member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An array within an archive, mapped where it lies, which numpy itself does not do.

    Raises ValueError where it is compressed, holds objects, or is not all there.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        got, fix = "a compressed file", "write it by np.savez, not np.savez_compressed"
        raise wrong(f"open: source {str(path)!r}", got, "one that can be mapped", fix)
    try:
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)  # the local header ends with name and extra bytes
            file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
            shape, fortran, dtype = _header(file, info)
            if 0 in shape:
                return np.empty(shape, dtype)
            order: Any = "F" if fortran else "C"
            return np.memmap(path, dtype, "r", file.tell(), shape, order)
    except Exception as error:  # of many classes, for damaged files
        raise unreadable(f"open: source {str(path)!r}", error) from error


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive in memory, its checksum verified by the archive's reader."""
    with archive.open(info) as file:
        _header(file, info)  # which claims no more than there is, before memory is asked for
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array that begins here and is as long as the archive says."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, fortran, dtype = headers[version > (1, 0)](file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds objects")
    size = file.tell() - start + math.prod(shape) * dtype.itemsize
    if size != info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, its header claims {size}")
    return shape, fortran, dtype


def unreadable(where: str, error: Exception) -> Exception:
    """The error for a file of arrays that is damaged, or holds no plain numbers."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    fix = (
        "write it anew from arrays of numbers: np.savez(path, x=images, y=labels), np.save(path, x)"
    )
    return wrong(where, f"({said})", "plain numpy arrays", fix)


class Keys(NamedTuple):
    """Which arrays of an archive are a split's examples and labels, by their names.

    `x`, and `labels` or None. `own_splits`: whether the names tell splits apart; where they do not,
    x holds all examples, and `every_nth` cuts it. `unread`: the names that mean nothing here.
    """

    x: str
    labels: str | None
    own_splits: bool
    unread: list[str]


def npz_keys(files: list[str], split: str, where: str) -> Keys:
    """Find a split's arrays by their names.

    Args:
      files: the arrays' names.
      split: the split that is asked for.
      where: the function and argument that messages name.
    Returns:
      The names.
    Raises:
      ValueError: where no array is x, or more than one may be, or the archive names splits but not
        this one.
    """
    keys = {key.lower(): key for key in files}

    def find(stems: tuple[str, ...], *forms: str) -> str | None:
        names = list(dict.fromkeys(form.format(stem) for form in forms for stem in stems))
        found = [keys[name] for name in names if name in keys]
        if len(found) > 1:
            fix = "write the one that is meant alone: np.savez(path, x=images, y=labels)"
            raise wrong(where, f"{' and '.join(found)}", f"one of {names[0]!r} and the like", fix)
        return found[0] if found else None

    named = {s: find(DATA, s, "{}_" + s, s + "_{}") for s in SPLITS}
    splits = {s: key for s, key in named.items() if key}
    if splits:
        labels = {s: find(LABELS, "{}_" + s, s + "_{}") for s in splits}
        if split not in splits:
            raise wrong(f"{where}: split", repr(split), list(splits), "choose one of these")
        known = {*splits.values(), *labels.values()}
        return Keys(splits[split], labels[split], True, [f for f in files if f not in known])
    key, label = find(DATA, "{}"), find(LABELS, "{}")
    others = [other for low, other in keys.items() if low not in LABELS]
    key = key or (others[0] if len(others) == 1 else None)
    if key is None:
        fix = "np.savez(path, x=images, y=labels), or x_train, y_train, x_test, ..."
        raise wrong(where, f"arrays {files}", "one array of data, or named splits", fix)
    return Keys(key, label, False, [f for f in files if f not in (key, label)])


def warn_of_unread_arrays(where: str, names: Iterable[str]) -> None:
    """Warn (UserWarning) of arrays whose names say neither examples nor labels."""
    if unread := sorted(set(names)):
        warnings.warn(
            f"{where}: the arrays {', '.join(unread)} are not read; what is read is called "
            f"{', '.join(DATA)} and {', '.join(LABELS)}; pass others as Batch(x, c=c, weight=w)",
            stacklevel=4,
        )
