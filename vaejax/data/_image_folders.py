"""Folders of PNG, JPEG and other images, whose subfolders are classes: read row by row."""

import os
from pathlib import Path

import numpy as np

from vaejax.data._stored import Stored
from vaejax.errors import wrong
from vaejax.types import Batch

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARRAYS = (".npy", ".npz")


def image_folder(path: Path, files: list[str], folders: list[str]) -> Stored:
    """The images of a folder; or those of its subfolders, each of which is a class."""
    if not folders:
        return _images([str(path / name) for name in files], ())
    paths: list[str] = []
    y: list[int] = []
    for label, folder in enumerate(folders):
        images = [n for n in listed(path / folder)[0] if Path(n).suffix.lower() in IMAGES]
        if not images:
            fix = "a subfolder is a class: fill it or remove it"
            raise wrong(f"open: source {str(path / folder)!r}", "no images", "some", fix)
        paths += [str(path / folder / name) for name in images]
        y += [label] * len(images)
    return _images(paths, np.array(y, np.int32))


def listed(path: Path) -> tuple[list[str], list[str]]:
    """The names of images and arrays in a folder, and of its subfolders, sorted."""
    with os.scandir(path) as entries:
        seen = [(e.name, e.is_dir()) for e in entries if not e.name.startswith(".")]
    files = [n for n, folder in seen if not folder and Path(n).suffix.lower() in IMAGES + ARRAYS]
    return sorted(files), sorted(name for name, folder in seen if folder)


def _images(paths: list[str], y: np.ndarray | tuple[()]) -> Stored:
    """Images of one size, with their labels or ()."""
    shape = _pixels(paths[0]).shape

    def read(rows: np.ndarray) -> Batch:
        x = np.empty((len(rows), *shape), np.uint8)
        for place, row in zip(x, rows, strict=True):
            pixels = _pixels(paths[row])
            if pixels.shape != shape:
                expected = f"{list(shape)} as in {paths[0]!r}"
                fix = "resize them, or give all as many channels (Pillow: resize, convert)"
                got = f"an image {list(pixels.shape)}"
                raise wrong(f"open: source {paths[row]!r}", got, expected, fix)
            place[...] = pixels
        return Batch(x, y=y if isinstance(y, tuple) else y[rows])

    return Stored(len(paths), read, lambda row: (paths[row], 0), False)


def _pixels(path: str) -> np.ndarray:
    """A grey image as `[height, width, 1]`, a coloured one as `[height, width, 3]`: uint8."""
    from PIL import Image

    # Only what loses nothing: no dropped transparency, no 16 bits cut to 8.
    modes = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
    try:
        with Image.open(path) as image:
            mode = image.mode + (" with transparency" if "transparency" in image.info else "")
            pixels = np.asarray(image.convert(modes[mode])) if mode in modes else None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's, for damaged files
        fix = "remove it, or write it anew"
        raise wrong(f"open: source {path!r}", f"({error})", "an image", fix) from error
    if pixels is None:
        fix = 'convert it with Pillow: image.convert("RGB")'
        raise wrong(f"open: source {path!r}", f"mode {mode}", "grey or RGB of 8 bits", fix)
    return pixels[..., None] if pixels.ndim == 2 else pixels
