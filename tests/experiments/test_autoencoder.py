"""The experiment `autoencoder`: beside PCA, and what it refuses."""

from dataclasses import replace

import pytest

from experiments import autoencoder


@pytest.mark.parametrize("preset", ["linear", "tied"])
def test_a_linear_run_is_measured_against_pca(preset, finished):
    summary = finished("autoencoder", preset).summary
    assert summary["test_squared_error"] > summary["pca_squared_error"] > 0
    assert 0 < summary["principal_angle_rad"] <= 1.571


@pytest.mark.parametrize("preset", ["digits", "deep_bernoulli", "conv"])
def test_only_a_linear_one_has_an_angle_to_pca(preset, finished):
    summary = finished("autoencoder", preset).summary
    assert summary["test_squared_error"] > 0 and "principal_angle_rad" not in summary


def test_a_tied_convolution_is_refused(tmp_path):
    config = replace(autoencoder.PRESETS["conv"], dataset="digits", hidden=(4,), tie=True)
    with pytest.raises(ValueError, match="--tie: got --network conv, expected dense layers"):
        autoencoder.main(replace(config, smoke=True, out=tmp_path / "run"))
