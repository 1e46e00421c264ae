"""The semi-supervised experiment: its numbers, its labels, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import semisupervised
from experiments.common import labelled

NUMBERS = {
    "test_accuracy",
    "test_accuracy_labels_alone",
    "gain_points",
    "test_accuracy_by_bayes",
    "labelled_images",
    "test_images",
    "test_elbo_nats",
    "test_nll_nats",
    "test_nll_particles",
    "test_nll_images",
    "classes_predicted",
    "epochs",
    "seconds_train",
}


def test_accuracies_are_compared_with_those_of_the_labels_alone(finished):
    summary = finished("semisupervised", "digits").summary
    assert summary.keys() == NUMBERS
    assert summary["labelled_images"] == 20 and summary["test_images"] == 32
    gain = summary["test_accuracy"] - summary["test_accuracy_labels_alone"]
    assert summary["gain_points"] == pytest.approx(100 * gain)


def test_as_many_labels_of_each_class_are_kept_and_the_seed_says_which():
    y = np.arange(60, dtype=np.int32) % 3
    kept = [labelled.partly_labelled(y, 4, seed) for seed in (0, 0, 1)]
    for known in kept:
        assert known.dtype == y.dtype
        assert np.unique(known, return_counts=True)[1].tolist() == [48, 4, 4, 4]
        np.testing.assert_array_equal(known[known != -1], y[known != -1])
    np.testing.assert_array_equal(kept[0], kept[1])
    assert (kept[0] != kept[2]).any()
    with pytest.raises(ValueError, match="got 20 images of class 0, expected 21 or more; lower"):
        labelled.partly_labelled(y, 21, 0)


def test_what_it_cannot_run_on(unlabelled):
    for options, message in (
        ({"dataset": unlabelled}, "semisupervised: --dataset: got no labels"),
        ({"labels_per_class": 0}, "--labels-per-class: got 0"),
        ({"labelled": 101}, "labelled_ratio: labelled: got 101, expected 1 to 100"),
    ):
        with pytest.raises(ValueError, match=message):
            semisupervised.main(replace(semisupervised.DIGITS, **options))
