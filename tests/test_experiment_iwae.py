"""The experiment `iwae`: what it leaves behind, and that its objectives are paired."""

import json
from dataclasses import replace

import pytest

from experiments import iwae


def smoke(out, **changes):
    return iwae.main(replace(iwae.DIGITS, smoke=True, progress=False, out=out, **changes))


def test_each_objective_is_trained_measured_and_drawn(tmp_path):
    summary = smoke(tmp_path / "run")
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("elbo", "iwae", "dreg"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_bound_nats"] + 5
        assert (tmp_path / "run" / name / "metrics.jsonl").exists()
    names = {"bounds", "samples_elbo", "samples_iwae", "samples_dreg"}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == names


def test_the_order_of_the_objectives_changes_no_number_and_a_run_resumes(tmp_path):
    one = smoke(tmp_path / "one", objectives=("dreg", "iwae"))
    other = smoke(tmp_path / "other", objectives=("iwae", "dreg"))
    names = ("iwae_test_nll_nats", "dreg_test_nll_nats")
    assert [one[name] for name in names] == [other[name] for name in names]
    again = smoke(tmp_path / "one", objectives=("dreg", "iwae"), resume=True)
    assert again["dreg_test_nll_nats"] == pytest.approx(one["dreg_test_nll_nats"], rel=1e-6)
