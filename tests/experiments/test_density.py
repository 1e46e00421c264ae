"""The experiment `density`: its truth, and that the flow's mass is measured."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import density
from experiments.common import two_curves


def test_the_mass_of_the_flow_is_one_and_no_density_beats_the_truth(finished):
    summary = finished("density", "moons").summary
    assert summary["integral"] == pytest.approx(1, abs=0.02)
    assert summary["truth_test_nats"] < summary["flow_test_nats"]


def test_a_curve_without_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--noise: got 0, expected > 0"):
        density.main(replace(density.MOONS, noise=0, out=tmp_path / "run"))


@pytest.mark.parametrize("shape", ["moons", "rings"])
def test_the_true_density_integrates_to_one(shape):
    side = np.arange(-4, 4, 0.08, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_p = jax.jit(jax.vmap(two_curves.truth(shape, 0.1).log_prob))(grid)
    assert np.exp(np.asarray(log_p, float)).sum() * 0.08**2 == pytest.approx(1, abs=1e-3)
