"""Images that a recipe is given by name or file: how many of them, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import common, vae


def test_a_smoke_run_takes_at_most_what_there_is(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((60, 5, 4, 3), np.uint8))
    smoke = {"smoke": True, "train_split": "train[:50]", "test_split": "test[:32]", "batch_size": 8}
    config = replace(vae.DIGITS, dataset=str(tmp_path / "mine.npy"), **smoke)
    images, test = common.both_splits(config, "vae")
    assert len(images.x) == 50 and len(test.x) == 6  # of 54 and 6
    with pytest.raises(ValueError, match=r"split: got 'test\[:32\]', expected positions up to 6"):
        common.both_splits(replace(config, smoke=False), "vae")


@pytest.mark.parametrize("name", ["epochs", "batch_size", "latent"])
def test_counts_below_one_are_refused_before_any_work(name):
    with pytest.raises(ValueError, match=f"vae: expected {name} >= 1, got 0"):
        common.both_splits(replace(vae.DIGITS, **{name: 0}), "vae")
