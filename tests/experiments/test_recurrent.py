"""The experiment runs in each of its kinds, and leaves what it promises."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments import recurrent
from experiments.common import sequences
from tests.conftest import some_slow

FIGURES = {
    "digits": {"curves", "samples", "completions", "rates"},
    "linear": {"curves", "data", "samples", "rates"},
    "sentences": {"curves", "rates"},
}


@pytest.mark.parametrize("preset", some_slow(FIGURES, ["linear", "sentences"]))
def test_smoke_run_leaves_its_numbers_and_pictures(preset, tmp_path):
    config = recurrent.PRESETS[preset]
    summary = recurrent.main(replace(config, smoke=True, out=tmp_path / "run", progress=False))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    parts = summary["test_distortion_nats"] + summary["test_rate_nats"]
    assert summary["test_elbo_nats"] == pytest.approx(-parts, rel=1e-5)
    assert summary["collapsed"] == (summary["test_rate_nats"] < 0.1)
    assert {f.stem for f in (tmp_path / "run" / "figures").iterdir()} == FIGURES[preset]
    assert (tmp_path / "run" / "samples.txt").exists() == (preset == "sentences")


def test_kalman_filter_equals_the_joint_normal_of_all_steps():
    x = sequences.turns(np.random.default_rng(0), 4)
    powers = [np.linalg.matrix_power(sequences.TURN, k) for k in range(4)]
    # z = L e stacked over the steps, with L[t, s] = TURN^(t - s) NOISE.
    L = np.block([[powers[max(t - s, 0)] * (t >= s) for s in range(4)] for t in range(4)])
    of_x = np.kron(np.eye(4), sequences.MIX) @ (sequences.NOISE * L)
    covariance = of_x @ of_x.T + sequences.BLUR**2 * np.eye(12)
    expected = stats.multivariate_normal(np.zeros(12), covariance).logpdf(x.ravel())
    assert sequences.kalman(x) == pytest.approx(expected, rel=1e-10)
