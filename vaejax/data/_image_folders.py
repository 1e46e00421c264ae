"""Folders of PNG, JPEG and other images, whose subfolders are classes: read row by row."""

import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vaejax.data._images import pixels
from vaejax.data._stored import Stored
from vaejax.errors import wrong
from vaejax.types import Batch

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARRAYS = (".npy", ".npz")

# Files that lie beside data and hold none.
_BESIDE = re.compile(r"(readme|licen[cs]e|citation|changelog)\b.*|thumbs\.db|desktop\.ini", re.I)


def image_folder(path: Path, files: list[str], classes: Sequence[str]) -> Stored:
    """The images of a folder; or those of its subfolders, each of which is a class.

    Args:
      path: the folder.
      files: its images.
      classes: the names of all classes. Those that are subfolders of this one have their images
        there; `y` is the place of a name among all.
    Returns:
      The images.
    Raises:
      ValueError: for a class without images, or with subfolders.
    """
    if not classes:
        return _images([str(path / name) for name in files], ())
    paths: list[str] = []
    y: list[int] = []
    for label, name in enumerate(classes):
        folder = path / name
        if not folder.is_dir():  # a class that another split has
            continue
        found, inside = listed(folder)
        where = f"open: source {str(folder)!r}"
        if inside:
            fix = "move their images up, or open a folder whose subfolders are the classes"
            raise wrong(where, f"subfolders {inside[:3]} in a class", "images alone", fix)
        images = [n for n in found if Path(n).suffix.lower() in IMAGES]
        if not images:
            fix = "a subfolder is a class: fill it, or move it out of the folder"
            raise wrong(where, "no images", "some", fix)
        paths += [str(folder / name) for name in images]
        y += [label] * len(images)
    return _images(paths, np.array(y, np.int32))._replace(classes=tuple(classes))


def classes_of(splits: Mapping[str, Sequence[str]], where: str) -> list[str]:
    """The names of the classes of all splits, sorted: one of the splits may lack some.

    Args:
      splits: of each split its subfolders.
      where: the function and argument that the message names.
    Returns:
      The names.
    Raises:
      ValueError: where two names differ only in case, spaces around them or the form of their
        Unicode, and no split has both: one class would be counted as two.
    """
    classes = sorted({one for names in splits.values() for one in names})
    forms: dict[str, list[str]] = {}
    for name in classes:
        forms.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), []).append(name)
    for alike in forms.values():
        if len(alike) > 1 and not any(len({*alike} & {*names}) > 1 for names in splits.values()):
            got = f"the classes {' and '.join(map(ascii, alike))}, each in another split"
            fix = "rename one; two classes of such names have both folders in some split"
            raise wrong(where, got, "the same names in all splits", fix)
    return classes


def listed(path: Path) -> tuple[list[str], list[str]]:
    """The names of images and arrays in a folder, and of its subfolders, sorted.

    Raises ValueError for what has such a name and is no regular file, such as a pipe.
    """
    with os.scandir(path) as entries:
        seen = [e for e in entries if not e.name.startswith(".")]
        folders = sorted(e.name for e in seen if e.is_dir())
        files = [e for e in seen if Path(e.name).suffix.lower() in IMAGES + ARRAYS]
        for entry in files:
            if not entry.is_file() and not entry.is_dir():
                got, fix = "a pipe, a device or a link to nothing", "move it out of the folder"
                raise wrong(f"open: source {str(path / entry.name)!r}", got, "a file", fix)
    return sorted(e.name for e in files if e.name not in folders), folders


def warn_of_unread(path: Path, read: Sequence[str], other: Sequence[str], where: str) -> None:
    """Warn (UserWarning), once, of files in a folder that are not read, and may be meant to be.

    Args:
      path: the folder.
      read: the paths of the files that are read.
      other: names of subfolders that another split reads.
      where: the function and argument that the message names.
    """
    known, unread = set(read), []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(
            n for n in folders if n[0] != "." and not (n in other and folder == str(path))
        )
        for name in sorted(names):
            hidden = name.startswith(".")
            if hidden and (name[1:2] == "_" or Path(name).suffix.lower() not in IMAGES + ARRAYS):
                continue
            full = os.path.join(folder, name)
            if full not in known and not _BESIDE.fullmatch(name):
                unread.append(os.path.relpath(full, path))
    if unread:
        shown = ", ".join(map(repr, unread[:4])) + (", ..." if len(unread) > 4 else "")
        warnings.warn(
            f"{where}: {len(unread)} of its files not read: {shown}; the name of what is read ends "
            f"in {', '.join(IMAGES + ARRAYS)} and begins with no dot: write them as one of these, "
            "or move them out of the folder",
            stacklevel=4,
        )


def _images(paths: list[str], y: np.ndarray | tuple[()]) -> Stored:
    """Images of one size, with their labels or ()."""
    shape = pixels(paths[0]).shape

    def read(rows: np.ndarray) -> Batch:
        x = np.empty((len(rows), *shape), np.uint8)
        for place, row in zip(x, rows, strict=True):
            found = pixels(paths[row])
            if found.shape != shape:
                expected = f"{list(shape)} as in {paths[0]!r}"
                fix = "resize them, or give all as many channels (Pillow: resize, convert)"
                got = f"an image {list(found.shape)}"
                raise wrong(f"open: source {paths[row]!r}", got, expected, fix)
            place[...] = found
        return Batch(x, y=y if isinstance(y, tuple) else y[rows])

    ends = np.arange(1, len(paths) + 1)
    return Stored(len(paths), read, lambda row: (paths[row], 0), False, paths, ends)
