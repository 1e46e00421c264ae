"""The experiment on MADE and the gated PixelCNN: its numbers, and the order of the pixels."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import autoregressive
from experiments.common import pixels


@pytest.mark.parametrize("preset", ["digits", "digits_levels"])
def test_no_model_is_better_than_the_entropy_of_the_binarisation(preset, finished):
    summary = finished("autoregressive", preset).summary
    assert ("floor_nats" in summary) == (preset == "digits")
    assert summary["test_nll_nats"] > summary.get("floor_nats", 0)


def test_pixels_come_in_the_order_that_is_asked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 1), np.uint8)
    orders = {"raster": (), "columns": (0, 2, 4, 1, 3, 5)}
    for name, order in orders.items():
        config = replace(autoregressive.DIGITS, order=name, hidden=(4,))
        assert pixels.network_for(config, images).order == order
    config = replace(autoregressive.DIGITS, order="random", hidden=(4,))
    assert sorted(pixels.network_for(config, images).order) == list(range(6))
    out = tmp_path / "run"
    config = replace(autoregressive.DIGITS, order="columns", smoke=True, progress=False, out=out)
    summary = autoregressive.main(replace(config, epochs=1))
    assert summary["test_nll_nats"] > summary["floor_nats"]


def test_refuses_one_level(tmp_path):
    config = replace(autoregressive.DIGITS, levels=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="--levels: got 1, expected 2 or more"):
        autoregressive.main(config)
