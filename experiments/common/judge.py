"""An independent classifier, to say which class a generated image shows."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vaejax import data
from vaejax.types import Batch


def judge(
    dataset: str, *, train_split: str = "train", test_split: str = "test", epochs: int = 8
) -> tuple[Callable[[Any], np.ndarray], float]:
    """A classifier of grey images trained on a labelled data set, and its error on the test split.

    Scikit-learn's multilayer perceptron, 256 hidden units. Returns `classify(images) -> classes`
    for images in [0, 1] (means of p(x|z), not binarised draws), `[n, ...]`, and the share of test
    images that it gets wrong.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    train, test = (data.load(dataset, split) for split in (train_split, test_split))
    network = MLPClassifier(
        (256,), batch_size=min(128, len(train.x)), max_iter=epochs, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are meant to be few
        network.fit(_flat(train), train.y)
    error = float(np.mean(network.predict(_flat(test)) != test.y))
    return lambda images: network.predict(np.asarray(images).reshape(len(images), -1)), error


def _flat(batch: Batch) -> np.ndarray:
    x = np.asarray(batch.x, np.float32).reshape(len(batch.x), -1)
    return x / 255 if np.asarray(batch.x).dtype == np.uint8 else x
