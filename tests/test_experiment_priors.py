"""The experiment `priors`: every prior is trained, measured and drawn."""

import json
from dataclasses import replace

from experiments import priors


def test_each_prior_is_trained_measured_and_drawn(tmp_path):
    out = tmp_path / "run"
    config = replace(priors.DIGITS, smoke=True, progress=False, out=out)
    summary = priors.main(replace(config, priors=("standard", "vamp")))
    assert summary == json.loads((out / "summary.json").read_text())
    for name in ("standard", "vamp"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_elbo_nats"] + 1
        assert isinstance(summary[f"{name}_collapsed"], bool)
    assert 1 <= summary["vamp_components_in_use"] <= 5
    difference = summary["standard_test_nll_nats"] - summary["vamp_test_nll_nats"]
    assert abs(summary["vamp_margin_nats"] - difference) < 1e-4
    names = {"samples_standard", "samples_vamp", "pseudo_inputs", "curves"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == names
