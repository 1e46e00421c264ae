"""The stacked experiment, shrunk; and that both starts are treated alike."""

import json

import numpy as np
import pytest

from experiments import common, stacked
from experiments.common.figures import starts
from experiments.common.images import drawn_labels
from vaejax import data
from vaejax.types import Batch


def test_the_summary_is_of_the_seeds(finished):
    folder, summary, _ = finished("stacked", "digits")
    rows = json.loads((folder / "seeds.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    for name in starts.STARTS:
        errors = [row[f"{name}_test_error"] for row in rows]
        assert all(0 <= error <= 1 for error in errors)
        assert summary[f"{name}_test_error_mean"] == pytest.approx(np.mean(errors))
        assert summary[f"{name}_test_error_sd"] == pytest.approx(np.std(errors, ddof=1))
    won = [row["scratch_test_error"] > row["pretrained_test_error"] for row in rows]
    assert summary["seeds_won"] == sum(won)
    assert summary["fine_tuned_squared_error"] < summary["pretrained_squared_error"]


def test_labels_are_balanced_drawn_by_the_seed_and_apart_from_validation():
    """Checked against labels that the validation images lend to training."""
    images = data.load("digits", "train")
    numbered = Batch(np.arange(len(images.x)), y=images.y)
    first, again, other = (drawn_labels(numbered, 50, 300, seed) for seed in (0, 0, 1))
    assert np.bincount(first.y).tolist() == [5] * 10
    np.testing.assert_array_equal(images.y[first.x], first.y)
    np.testing.assert_array_equal(first.x, again.x)
    assert set(first.x) != set(other.x)
    assert len(set(first.x)) == 50 and first.x.max() < len(images.x) - 300
    with pytest.raises(ValueError, match="stacked: --labels: got 5 of 10 classes"):
        drawn_labels(numbered, 5, 300, 0)
    with pytest.raises(ValueError, match="stacked: --labels: got 2000 of 10 classes"):
        drawn_labels(numbered, 2000, 300, 0)


def test_levels_are_denoising_plain_or_contractive_and_presets_are_read():
    for level in ("denoising", "plain", "contractive"):
        config = common.parse(stacked.PRESETS, "", ["mnist", "--level", level])
        assert config.dataset == "mnist"
        loss = stacked.loss_of(config)(stacked.build(config, (28, 28, 1))[0])
        assert loss.__qualname__.startswith(
            "contractive" if level == "contractive" else "reconstruction"
        )
