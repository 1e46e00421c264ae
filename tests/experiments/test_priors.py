"""The experiment `priors`: what it leaves behind, and its paired differences."""

import json
from dataclasses import replace

from experiments import priors
from experiments.common import variations


def test_a_prior_is_trained_measured_and_drawn(tmp_path):
    out = tmp_path / "run"
    config = replace(priors.DIGITS, smoke=True, progress=False, out=out)
    summary = priors.main(replace(config, priors=("vamp",)))
    assert summary == json.loads((out / "summary.json").read_text())
    assert 10 < summary["vamp_test_nll_nats"] <= -summary["vamp_test_elbo_nats"] + 1
    assert summary["vamp_collapsed"] is (summary["vamp_test_rate_nats"] < 2)
    assert 1 <= summary["vamp_components_in_use"] <= 5
    names = {"samples_vamp", "pseudo_inputs", "curves"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == names


def test_a_margin_is_of_paired_differences():
    found = variations.margin([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert found == {"margin_nats": 2.0, "margin_error_nats": 1 / 3**0.5}
