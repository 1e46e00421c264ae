"""Images of a recipe: both splits, checked; their mean; and what can be drawn."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.common.limits import check_batch
from vaejax import data
from vaejax.errors import wrong
from vaejax.types import Batch

__all__ = [
    "FEW_IMAGES",
    "SOME_IMAGES",
    "Splits",
    "both_splits",
    "check_unit_interval",
    "drawable",
    "drawn_labels",
    "levels_of",
    "mean_of",
    "scaled",
    "split_of",
    "warn_of_colours",
]

FEW_IMAGES: dict[str, Any] = {"train_split": "train[:64]", "test_split": "test[:32]"}
"""What `--smoke` reads."""

SOME_IMAGES: dict[str, Any] = {"train_split": "train[:200]", "test_split": "test[:50]"}
"""What it reads where every class has to be among them."""


@dataclass(frozen=True)
class Splits:
    """Which images an experiment reads."""

    # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE of images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on


def both_splits(
    config: Any,
    recipe: str,
    *,
    labelled: bool = False,
    bounded: bool = False,
    binarised: bool = False,
) -> tuple[Batch, Batch]:
    """The examples to train on and those to report on, as `config` names them.

    Args:
      config: with `dataset`, `train_split` and `test_split`; a `batch_size`, where it has one, is
        checked.
      recipe: its name, for error messages.
      labelled: whether labels are needed.
      bounded: whether floats have to lie in [0, 1].
      binarised: whether the model sees them binarised, so that colours are lost.
    Returns:
      Two Batches of stored examples, for instance uint8 images `[n, height, width, channels]`.
    Raises:
      ValueError: where a batch is larger than the data, or labels are missing.
    """
    images = split_of(config, config.train_split)
    test = split_of(config, config.test_split)
    if labelled and (isinstance(images.y, tuple) or isinstance(test.y, tuple)):
        fix = "give a .npz with x and y"
        raise wrong(f"{recipe}: --dataset", "no labels", "labelled images", fix)
    if hasattr(config, "batch_size"):
        check_batch(config, len(images.x))
    if binarised:
        warn_of_colours(recipe, images.x)
    if bounded:
        check_unit_interval(recipe, images.x)
    return images, test


def split_of(config: Any, split: str) -> Batch:
    """A split of the config's data; under `--smoke` at most what there is of it."""
    sliced = re.fullmatch(r"(\w+)\[:(\d+)\]", split)
    if config.smoke and sliced is not None:
        whole = data.load(config.dataset, sliced[1])
        if len(whole.x) < int(sliced[2]):
            return whole
    return data.load(config.dataset, split)


def warn_of_colours(recipe: str, images: Any, fix: str = "") -> None:
    """Warn (UserWarning) where images with colours are going to be binarised.

    Args:
      recipe: its name.
      images: as they are stored.
      fix: the option that takes them as they are; by default another recipe is named.
    """
    if images.ndim != 4 or images.shape[-1] == 1:
        return
    largest = 255 if images.dtype == np.uint8 else 1
    if np.isin(images[:1000], (0, largest)).all():  # binary already
        return
    model = "discretized_logistic"
    fix = fix or f"for colours take python -m experiments.vae conv --likelihood {model}"
    warnings.warn(
        f"{recipe}: got images of {images.shape[-1]} channels to binarise, expected grey ones: "
        f"every number becomes 0 or 1 at random, and the colours are lost; {fix}",
        stacklevel=3,
    )


def scaled(images: Batch) -> np.ndarray:
    """Images in [0, 1], as `data.scale` has them; not while JAX traces."""
    return np.asarray(data.scale(jax.random.key(0), images.x))


def mean_of(images: Any) -> np.ndarray:
    """The mean image, in [0, 1]: where the biases of a decoder's pixels start."""
    return images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)


def levels_of(*images: Any) -> int | None:
    """How many levels, spread evenly over black to white, all these images have.

    The fewest that hold every value: 17 of digits, whose scans count 0 to 16; 256 of photographs.
    None for floats that are on no grid of up to 256 levels.
    """
    found: Any = np.empty(0)
    for part in images:
        for i in range(0, len(part), 1000):  # many images would take as much memory again
            found = np.union1d(found, part[i : i + 1000])
            if len(found) > 256:
                return None
    whole = all(part.dtype == np.uint8 for part in images)
    values = found / 255 if whole else found
    for levels in range(2, 257):
        at = np.rint(values * (levels - 1)) / (levels - 1)
        if whole and np.array_equal(np.rint(at * 255), found):  # they are themselves rounded
            return levels
        if not whole and np.all(np.abs(at - values) * (levels - 1) <= 1e-4):
            return levels
    return None


def drawable(images: Any) -> bool:
    """Whether these are grey or coloured images `[n, height, width, 1 or 3]`."""
    return images.ndim == 4 and images.shape[-1] in (1, 3)


def check_unit_interval(recipe: str, images: Any) -> None:
    """Raise ValueError unless the images hold whole numbers 0 to 255, or floats from 0 to 1."""
    if images.dtype != np.uint8 and not 0 <= images.min() <= images.max() <= 1:
        got = f"floats in [{images.min():.4g}, {images.max():.4g}]"
        fix = "store uint8, or (x - x.min()) / (x.max() - x.min())"
        raise wrong(f"{recipe}: --dataset", got, "[0, 1]", fix)


def drawn_labels(images: Batch, labels: int, valid: int, seed: int) -> Batch:
    """A balanced random set of so many labelled images.

    The last `valid` images, which are kept for validation, are not among them.
    """
    if valid >= len(images.y):
        expected = f"fewer than {len(images.y)}, the images to train on"
        raise wrong("stacked: --valid", valid, expected, "lower it")
    rng = np.random.default_rng(seed)
    y = images.y[: len(images.y) - valid]
    each = labels // len(np.unique(y))
    by_class = [rng.permutation(np.flatnonzero(y == label))[:each] for label in np.unique(y)]
    if each < 1 or min(map(len, by_class)) < each:
        got = f"{labels} of {len(by_class)} classes"
        expected = "1 or more of each, and no more than there are outside validation"
        raise wrong("stacked: --labels", got, expected, "change --labels or --valid")
    chosen = np.concatenate(by_class)
    return Batch(images.x[chosen], y=images.y[chosen])
