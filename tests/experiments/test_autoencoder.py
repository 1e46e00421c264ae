"""The experiment `autoencoder`: what it leaves behind, for every kind of network."""

import json
from dataclasses import replace

import pytest

from experiments import autoencoder
from tests.conftest import some_slow


def smoke(out, preset, **changes):
    config = replace(autoencoder.PRESETS[preset], dataset="digits", smoke=True, progress=False)
    return autoencoder.main(replace(config, out=out, **changes))


def test_a_linear_run_is_measured_against_pca_and_drawn(tmp_path):
    summary = smoke(tmp_path, "linear")
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_squared_error"] > summary["pca_squared_error"] > 0
    assert 0 < summary["principal_angle_rad"] <= 1.571
    names = {"filters", "interpolations", "latent", "random_codes", "reconstructions"}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == names


@pytest.mark.parametrize(
    "preset", some_slow(["tied", "deep_bernoulli", "conv"], ["deep_bernoulli", "conv"])
)
def test_the_other_networks_run(preset, tmp_path):
    hidden = {"tied": (), "deep_bernoulli": (16, 8), "conv": (4, 8)}[preset]
    summary = smoke(tmp_path, preset, hidden=hidden)
    assert summary["test_squared_error"] > 0
    assert ("principal_angle_rad" in summary) == (preset == "tied")


def test_a_tied_convolution_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tied: the encoder: got convolutions"):
        smoke(tmp_path, "conv", hidden=(4,), tie=True)
