"""The experiment `hierarchical`, shrunk: two objectives, and what they leave behind."""

import json
from dataclasses import replace

from experiments import hierarchical


def test_both_objectives_are_trained_measured_and_drawn(tmp_path):
    config = replace(hierarchical.DIGITS, smoke=True, progress=False, out=tmp_path / "run")
    summary = hierarchical.main(config)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("elbo", "iwae"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_elbo_nats"] + 5
        units, collapsed = summary[f"{name}_active_units"], summary[f"{name}_collapsed_layers"]
        assert len(units) == 2 and 0 <= units[0] <= 6 and 0 <= units[1] <= 3
        assert collapsed == [layer for layer in (1, 2) if units[layer - 1] == 0]
    names = {"active_units", "bounds", "samples_elbo", "samples_iwae"}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == names
