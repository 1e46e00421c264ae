"""Images of a recipe: both splits, checked; their mean; and what can be drawn."""

from typing import Any

import numpy as np

from vaejax import data, train
from vaejax.errors import at_least_one, wrong
from vaejax.types import Batch

__all__ = ["FEW_IMAGES", "both_splits", "drawable", "mean_of"]

FEW_IMAGES = {"train_split": "train[:64]", "test_split": "test[:32]"}
"""What `--smoke` reads."""


def both_splits(
    config: Any, recipe: str, *, labelled: bool = False, **counts: int
) -> tuple[Batch, Batch]:
    """The examples to train on and those to report on, as `config` names them.

    Args:
      config: with `dataset`, `train_split` and `test_split`; its `batch_size` and `epochs`, where
        it has them, are checked.
      recipe: its name, for error messages.
      labelled: whether labels are needed.
      counts: other numbers of the config that have to be at least 1.
    Returns:
      Two Batches of stored examples, for instance uint8 images `[n, height, width, channels]`.
    Raises:
      ValueError: where a count is below 1, a batch is larger than the data, or labels are missing.
    """
    given = {n: getattr(config, n) for n in ("epochs", "batch_size") if hasattr(config, n)}
    at_least_one(recipe, **(given | counts))
    images = data.load(config.dataset, config.train_split)
    test = data.load(config.dataset, config.test_split)
    if "batch_size" in given:
        train.shuffled(len(images.x), config.batch_size)  # refuses a batch larger than the data
    if labelled and (isinstance(images.y, tuple) or isinstance(test.y, tuple)):
        fix = "give a .npz with x and y"
        raise wrong(f"{recipe}: --dataset", "no labels", "labelled images", fix)
    return images, test


def mean_of(images: Any) -> np.ndarray:
    """The mean image, in [0, 1]: where the biases of a decoder's pixels start."""
    return images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)


def drawable(images: Any) -> bool:
    """Whether these are grey or coloured images `[n, height, width, 1 or 3]`."""
    return images.ndim == 4 and images.shape[-1] in (1, 3)
