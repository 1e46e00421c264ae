"""The recurrent experiment: its numbers, and the Kalman filter beside it."""

import numpy as np
import pytest
from scipy import stats

from experiments.common import sequences


@pytest.mark.parametrize("preset", ["digits", "linear", "sentences"])
def test_the_bound_is_split_and_a_collapse_is_said(preset, finished):
    one = finished("recurrent", preset)
    parts = one.summary["test_distortion_nats"] + one.summary["test_rate_nats"]
    assert one.summary["test_elbo_nats"] == pytest.approx(-parts, rel=1e-5)
    assert one.summary["collapsed"] == (one.summary["test_rate_nats"] < 0.1)
    assert (one.folder / "samples.txt").exists() == (preset == "sentences")


def test_kalman_filter_equals_the_joint_normal_of_all_steps():
    x = sequences.turns(np.random.default_rng(0), 4)
    powers = [np.linalg.matrix_power(sequences.TURN, k) for k in range(4)]
    # z = L e stacked over the steps, with L[t, s] = TURN^(t - s) NOISE.
    L = np.block([[powers[max(t - s, 0)] * (t >= s) for s in range(4)] for t in range(4)])
    of_x = np.kron(np.eye(4), sequences.MIX) @ (sequences.NOISE * L)
    covariance = of_x @ of_x.T + sequences.BLUR**2 * np.eye(12)
    expected = stats.multivariate_normal(np.zeros(12), covariance).logpdf(x.ravel())
    assert sequences.kalman(x) == pytest.approx(expected, rel=1e-10)
