"""TFDS sets that lie prepared on disk: found, and read by whole batches without TensorFlow."""

import difflib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaejax.data._files import PathLike
from vaejax.errors import installing, wrong
from vaejax.types import Batch

__all__ = ["check_name", "classes", "folder", "open_set", "reader"]


def open_set(function: str, name: str, split: str, data_dir: PathLike | None) -> Any:
    """TFDS's builder, read-only, of a set that lies prepared on the disk and has the split.

    It asks no network.

    Args:
      function: the caller, for messages.
      name: as TFDS has it.
      split: the split that is going to be read.
      data_dir: where sets lie; by default as `folder` finds it.
    Returns:
      The builder.
    Raises:
      FileNotFoundError: for a set that is not prepared.
      ValueError: for an unknown name or split, and for a set whose description is damaged.
    """
    from tensorflow_datasets.core import read_only_builder, registered

    home = Path(folder(data_dir) or "~/tensorflow_datasets").expanduser()
    _check_regular(function, name, home / re.split("[/:]", name)[0])
    try:  # from files alone: TFDS's front door asks the network about a set it does not find
        builder = read_only_builder.builder_from_files(name, data_dir=folder(data_dir))
    except registered.DatasetNotFoundError as error:
        check_name(function, name)
        where = folder(data_dir) or "~/tensorflow_datasets"
        fix = (
            f"prepare it once: {installing('prepare', 'tensorflow', 'importlib_resources')} (not "
            f"needed later), then: python -m vaejax.data.prepare {name} --data_dir {where}; if "
            "it lies elsewhere, set TFDS_DATA_DIR or pass data_dir"
        )
        expected = f"a prepared set under {where}"
        where = f"{function}: source {name!r}"
        raise wrong(where, "none", expected, fix, FileNotFoundError) from error
    except Exception as error:  # of many classes, for damaged files
        raise _damaged(function, name, folder(data_dir), error) from error
    if split not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise wrong(f"{function}: split of {name}", repr(split), splits, "choose one of these")
    return builder


def reader(
    function: str, builder: Any, name: str, split: str
) -> tuple[int, Callable[[Sequence[int]], Batch]]:
    """How many examples a prepared split has, and `read(rows)`: those, with labels, as stored.

    Args:
      function: the caller, for messages.
      builder: of the set, see `open_set`.
      name: as TFDS has it, for messages.
      split: the split to read.
    Returns:
      The size, and the function, which raises ValueError for images of several sizes.
    Raises:
      ValueError: for a set that has not one image, is stored in another format, or is damaged.
    """
    import tensorflow_datasets as tfds

    image = _only(builder, "image", tfds.features.Image)
    label = _only(builder, "label", tfds.features.ClassLabel)
    where, kept = f"{function}: source {name!r}", builder.info.file_format.value
    if image is None or kept != "array_record":
        got = f"features {list(builder.info.features)} stored as {kept}"
        fix = f"python -m vaejax.data.prepare {name} --data_dir NEW_FOLDER, or pass its arrays"
        raise wrong(where, got, "one image, stored as array_record", fix)
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # the first decoded image brings advice to install OpenCV
    try:
        examples = builder.as_data_source(split=split)
        shape = examples[0][image].shape
    except Exception as error:  # of many classes, for damaged files
        raise _damaged(function, name, builder.data_path, error) from error
    finally:
        log.setLevel(level)

    def read(rows: Sequence[int]) -> Batch:
        try:
            found = examples.__getitems__([int(row) for row in rows])
        except Exception as error:  # of many classes, for damaged files
            raise _damaged(function, name, builder.data_path, error) from error
        shapes = {example[image].shape for example in found} | {shape}
        if len(shapes) > 1:
            got, fix = f"images of sizes {sorted(shapes)[:3]}", "resize them and pass the array"
            raise wrong(where, got, "one size", fix)
        y = np.array([example[label] for example in found], np.int32) if label else ()
        return Batch(np.stack([example[image] for example in found]), y=y)

    return len(examples), read


def classes(builder: Any) -> tuple[str, ...]:
    """The names of a set's classes, in the order of its labels; () where it has none.

    Args:
      builder: of the set, see `open_set`.
    Returns:
      The names, which for some sets are the numbers themselves.
    """
    import tensorflow_datasets as tfds

    label = _only(builder, "label", tfds.features.ClassLabel)
    feature = builder.info.features[label] if label else None
    return tuple(feature.names) if feature is not None and feature.num_classes else ()


def _only(builder: Any, usual: str, kind: type) -> str | None:
    """The name of the feature of a kind: the usual one, or the only one."""
    found = [k for k, feature in builder.info.features.items() if isinstance(feature, kind)]
    return usual if usual in found else found[0] if len(found) == 1 else None


def _damaged(function: str, name: str, place: Any, error: Exception) -> Exception:
    """The error for a prepared set whose files do not read."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    fix = "move it out of the way and prepare it again: python -m vaejax.data.prepare " + name
    got = f"({type(error).__name__}: {said})"
    return wrong(f"{function}: source {name!r}", got, f"a set that is whole in {place}", fix)


def _check_regular(function: str, name: str, place: Path) -> None:
    """Raise ValueError for a pipe and the like among a set's files, for which TFDS would wait."""
    for path in sorted(place.rglob("*")):
        if not path.is_file() and not path.is_dir():
            raise _damaged(function, name, place, ValueError(f"{path.name} is no regular file"))


def folder(data_dir: PathLike | None) -> str | None:
    """Where TFDS sets lie.

    Args:
      data_dir: the folder; by default $TFDS_DATA_DIR.
    Returns:
      The folder, or None for the default of TFDS.
    """
    # TFDS reads the variable once, when it is imported; a notebook may set it later.
    place = data_dir or os.environ.get("TFDS_DATA_DIR")
    return str(Path(place).expanduser()) if place else None


def check_name(function: str, name: str) -> None:
    """Raise ValueError, with the nearest names, unless TFDS knows a set of this name.

    Args:
      function: the caller, for messages.
      name: of the set, which a configuration or a version may follow.
    Raises:
      ValueError: for an unknown name.
    """
    import tensorflow_datasets as tfds

    known, base = tfds.list_builders(with_community_datasets=False), re.split("[/:]", name)[0]
    if base not in known:
        near = ", ".join(difflib.get_close_matches(base, known, 3)) or "see tfds.list_builders()"
        raise wrong(f"{function}: name", repr(name), "the name of a TFDS set", f"perhaps {near}")
