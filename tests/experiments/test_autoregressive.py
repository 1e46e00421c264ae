"""The experiment on MADE and the gated PixelCNN runs, and leaves what it says."""

import json
from dataclasses import replace

import pytest

from experiments import autoregressive
from tests.conftest import some_slow


@pytest.mark.parametrize("preset", some_slow(["digits", "digits_levels"], ["digits_levels"]))
def test_smoke(tmp_path, preset):
    order = "columns" if preset == "digits" else "raster"
    config = replace(autoregressive.PRESETS[preset], order=order, smoke=True, progress=False)
    summary = autoregressive.main(replace(config, out=tmp_path / "run"))
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_nll_nats"] > summary.get("floor_nats", 0)
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"samples", "expected", "completions", "curves"}


def test_refuses_one_level(tmp_path):
    config = replace(autoregressive.PRESETS["digits"], levels=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="--levels: got 1, expected 2 or more"):
        autoregressive.main(config)
