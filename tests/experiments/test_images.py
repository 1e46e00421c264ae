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


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("epochs", 0, "a whole number from 1 up; --epochs 500 is"),
        ("latent", 2.5, "a whole number from 1 up"),
        ("batch_size", True, "a whole number from 1 up"),
        ("hidden", (8, -3), "a whole number from 1 up; --hidden 300 is the default"),
        ("latent", 2_000_000_000, "a whole number from 1 to 1048576; --latent 10 is the default"),
        ("hidden", (8, 2**21), "a whole number from 1 to 1048576"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
        ("learning_rate", 0.0, "a number above 0"),
        ("beta", float("inf"), "a number from 0 up"),
    ],
)
def test_what_an_option_cannot_be_is_refused_before_any_work(name, value, expected):
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: got .*{expected}"):
        common.shrunk(replace(vae.DIGITS, **{name: value}))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="--batch-size: got 65, expected 1 to 60, .*-size 60$"):
        common.check_batch(replace(vae.DIGITS, batch_size=65), 60)
