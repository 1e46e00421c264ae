"""The experiment `density`: its truth, and that the flow's mass is measured."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import density
from experiments.common import plane


def test_the_flow_is_trained_integrated_and_drawn_beside_the_truth(tmp_path):
    out = tmp_path / "run"
    config = replace(density.MOONS, smoke=True, progress=False, out=out)
    summary = density.main(config)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["integral"] == pytest.approx(1, abs=0.02)
    assert summary["truth_test_nats"] < summary["flow_test_nats"]
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"density", "curves"}
    with pytest.raises(ValueError, match=r"--noise: got 0, expected > 0"):
        density.main(replace(config, noise=0, out=tmp_path / "other"))


@pytest.mark.parametrize("shape", ["moons", "rings"])
def test_the_true_density_integrates_to_one(shape):
    side = np.arange(-4, 4, 0.08, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_p = jax.jit(jax.vmap(plane.curves(shape, 0.1).log_prob))(grid)
    assert np.exp(np.asarray(log_p, float)).sum() * 0.08**2 == pytest.approx(1, abs=1e-3)
