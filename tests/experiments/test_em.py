"""The EM experiment: half-steps as the theory has them, and what a run leaves behind."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import em
from experiments.common import em_steps


@pytest.mark.parametrize("preset", sorted(em.PRESETS))
def test_the_gap_of_the_vae_is_split_and_followed(preset, finished):
    folder, summary, _ = finished("em", preset)
    parts = summary["vae_elbo"] + summary["vae_amortisation"] + summary["vae_approximation"]
    assert parts == pytest.approx(summary["vae_log_px"], abs=1e-3)
    gaps = json.loads((folder / "gap.json").read_text())
    assert gaps["epoch"] == [0, 1, 2] and len(gaps["elbo"]) == 3


def test_the_e_step_closes_the_gap_and_the_m_step_raises_the_bound():
    rng = np.random.default_rng(0)
    x = (rng.uniform(size=(60, 4, 4, 1)) < rng.uniform(size=(60, 1, 1, 1))).astype(np.float32)
    config = replace(em.PRESETS["digits"], components=3, half_steps=8)
    log_px, bound = np.array(em_steps.half_steps(jax.numpy.asarray(x), config, jax.random.key(0))).T
    assert len(bound) == 9 and np.all(bound <= log_px + 1e-5)
    np.testing.assert_allclose(bound[1::2], log_px[1::2], atol=1e-5)  # tight after E
    assert np.all(log_px[1::2] == log_px[:-1:2])  # which leaves the model as it is
    assert np.all(np.diff(bound) > -1e-5)  # both steps raise the bound
    assert log_px[2] > bound[2] + 1e-4  # after M the gap is open again
