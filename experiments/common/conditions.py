"""Images with a condition, a class or what a hidden block leaves: data, numbers, pictures."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.images import both_splits
from experiments.common.judge import judge
from vaejax import conditional, corruption, data, plot
from vaejax.batch import over_examples
from vaejax.errors import wrong
from vaejax.model import Model, generate
from vaejax.types import Batch, Key, Params

__all__ = ["Images", "class_rows", "completions", "hide", "load", "recognised", "under_every_class"]


class Images(NamedTuple):
    """Images with their condition c.

    Args:
      train: stored images to train on; without c, where c is what a block leaves.
      test: binarised images to test on, with c.
      classes: how many there are; 0 where c is what a block leaves.
    """

    train: Batch
    test: Batch
    classes: int


def hide(side: int) -> Callable[[Key, Any], Any]:
    """Draws what a hidden block of so many pixels a side leaves of an image, and its mask."""
    return conditional.observed(corruption.erased_block(side))


def load(config: Any, keys: Key) -> Images:
    """Both splits of `config` with their condition.

    Args:
      config: of experiments.cvae: the splits, `condition` and `block`.
      keys: two, `[2]`: of the binarised test images, and of what is hidden of them.
    """
    stored, test = both_splits(config, "cvae", binarised=True)
    classed = config.condition == "class"
    if isinstance(stored.y, tuple) and classed:
        raise wrong("cvae: --dataset", "no labels", "labelled images", "take --condition block")
    x = over_examples(data.binarize, keys[0], test.x)
    if not classed:
        hidden = over_examples(hide(config.block), keys[1], x)
        return Images(Batch(stored.x), Batch(x, c=hidden), 0)
    classes = int(stored.y.max()) + 1
    of_train, of_test = (conditional.one_hot(part.y, classes) for part in (stored, test))
    return Images(Batch(stored.x, c=of_train), Batch(x, c=of_test), classes)


def recognised(
    config: Any, model: Model, params: Params, key: Key, classes: int
) -> tuple[dict[str, float], np.ndarray]:
    """The share of samples that a classifier recognises as their class, and ten of each class.

    Args:
      config: of experiments.cvae: the splits, and the number of `samples`.
      model, params: a trained model of images, given their class.
      key: of the samples.
      classes: how many there are.
    Returns:
      The share and the classifier's own error; images `[classes, at most 10, ...]`.
    """
    splits = {"train_split": config.train_split, "test_split": config.test_split}
    check, error = judge(config.dataset, **splits)
    y = np.repeat(np.arange(classes), max(1, config.samples // classes))
    c = conditional.one_hot(y, classes)
    sample = jax.jit(jax.vmap(lambda key, c: generate(model, params, key, c).mean))
    means = np.asarray(sample(jax.random.split(key, len(y)), c))
    numbers = {"samples_recognised": float(np.mean(check(means) == y)), "judge_error": error}
    return numbers, means.reshape(classes, -1, *means.shape[1:])[:, :10]


def class_rows(samples: np.ndarray, title: str) -> Any:
    """A row of samples for every class; `samples`: `[classes, n, height, width, channels]`."""
    return plot.images(
        samples.reshape(-1, *samples.shape[2:]),
        columns=samples.shape[1],
        title=title,
        labels=[f"class {i}" for i in range(len(samples))],
    )


def completions(model: Model, params: Params, key: Key, batch: Batch, draws: int = 6) -> Any:
    """Rows of an image, what is seen of it, several completions, and the average of 100.

    Args:
      model, params: a trained model of images, given what a hidden block leaves of them.
      key: of the completions.
      batch: images x as the model sees them, and c: the rest of each image and its mask. The first
        eight are drawn.
      draws: how many completions are drawn in a row.
    """
    rows = []
    fill = jax.jit(partial(conditional.complete, model, draws=100))
    for i, one in enumerate(np.asarray(batch.x[:8])):
        seen, known = (np.asarray(part[i]) for part in batch.c)
        means = np.asarray(fill(params, jax.random.fold_in(key, i), one, known).mean)
        rows.append([one, np.where(known == 1, seen, 0.5), *means[:draws], means.mean(axis=0)])
    figure = _rows(rows, ["x", "seen", *(f"draw {i + 1}" for i in range(draws)), "average"])
    title = "completions: mean of p(x|z, c), z ~ p(z|c)"
    figure.axes[0].set(title=title, xlabel="", ylabel="test image")
    return figure


def under_every_class(images: np.ndarray, decoded: np.ndarray) -> Any:
    """Images `[n, ...]`, each beside its code decoded under every class, `[n, classes, ...]`."""
    rows = np.concatenate([images[:, None], decoded], axis=1)
    figure = _rows(rows, ["x", *map(str, range(decoded.shape[1]))])
    figure.axes[0].set(
        title="the code z of a test image, decoded under every class",
        ylabel="",
        xlabel="class y of p(x|z, y)",
    )
    return figure


def _rows(rows: Any, names: Sequence[str]) -> Any:
    """A figure of a row for each image, whose columns have names."""
    labels = [f"image {i + 1}" for i in range(len(rows))]
    figure = plot.traversals(np.asarray(rows), labels=labels)
    axis = figure.axes[0]
    axis.set_xticks(axis.get_xticks(), names)
    return figure
