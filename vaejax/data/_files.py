"""Names of data sets, and `.npz` and `.npy` files as data sets."""

import difflib
import os
import zipfile
from pathlib import Path

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
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return cut(10, split, checked(Batch(loaded), where))
        with loaded:
            key, label, own_splits = npz_keys(loaded.files, split, where)
            batch = checked(Batch(loaded[key], y=loaded[label] if label else ()), where)
            return batch if own_splits else cut(10, split, batch)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if str(error).startswith("load:"):
            raise
        fix = "write it anew: np.savez(path, x=images.astype(np.uint8), y=labels)"
        raise wrong(where, f"({error})", "plain numpy arrays", fix) from error


def check_file(path: Path, where: str, kinds: str = "a path to .npz or .npy") -> None:
    """Raise ValueError for what is neither a name nor such a path, FileNotFoundError for none.

    Args:
      path: what the caller was given.
      where: the function and argument that messages name.
      kinds: the paths that the caller takes, for messages.
    """
    if path.suffix not in (".npz", ".npy"):
        near = (difflib.get_close_matches(str(path), NAMES, 1) or [f"tfds:{path}"])[0]
        expected = f'one of {", ".join(NAMES)}, "tfds:NAME", or {kinds}'
        raise wrong(where, "an unknown name", expected, f"perhaps {near!r}")
    if not path.is_file():
        raise wrong(where, "no such file", path.absolute(), "correct the path", FileNotFoundError)


def npz_keys(files: list[str], split: str, where: str) -> tuple[str, str | None, bool]:
    """Which arrays of an archive are a split's examples and labels, by their names.

    Args:
      files: the arrays' names.
      split: the split that is asked for.
      where: the function and argument that messages name.
    Returns:
      The name of x; that of y, or None; and whether the names tell splits apart. Where they do not,
      x holds all examples, and `every_nth` cuts it.
    Raises:
      ValueError: where no array is x, or the archive names splits but not this one.
    """
    keys = {key.lower(): key for key in files}

    def find(stems: tuple[str, ...], *forms: str) -> str | None:
        names = [form.format(stem) for form in forms for stem in stems]
        return next((keys[name] for name in names if name in keys), None)

    named = {s: find(DATA, s, "{}_" + s, s + "_{}") for s in SPLITS}
    splits = {s: key for s, key in named.items() if key}
    if splits:
        if split not in splits:
            raise wrong(f"{where}: split", repr(split), list(splits), "choose one of these")
        return splits[split], find(LABELS, "{}_" + split, split + "_{}"), True
    others = [key for low, key in keys.items() if low not in LABELS]
    key = find(DATA, "{}") or (others[0] if len(others) == 1 else None)
    if key is None:
        fix = "np.savez(path, x=images, y=labels), or x_train, y_train, x_test, ..."
        raise wrong(where, f"arrays {files}", "one array of data, or named splits", fix)
    return key, find(LABELS, "{}"), False
