"""The experiment on log p(x) from both sides, as its users run it."""

import json
from dataclasses import replace

import pytest

from experiments import sandwich


@pytest.mark.slow
def test_it_runs_and_leaves_what_it_promises(tmp_path):
    """Every preset's network, shrunk."""
    config = replace(sandwich.DIGITS, smoke=True, progress=False, out=tmp_path / "run")
    summary = sandwich.main(config)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"ais_minus_exact_nats", "bdmc_gap_nats", "converged"} < summary.keys()
    assert summary["importance_log_px_nats"] == pytest.approx(
        summary["exact_log_px_nats"] - summary["importance_gap_mean_nats"], rel=1e-5
    )
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"images", "ladder", "temperatures"}


@pytest.mark.slow
def test_a_second_run_reads_the_parameters_of_the_first(tmp_path):
    config = replace(sandwich.DIGITS, smoke=True, progress=False, out=tmp_path / "run")
    summary = sandwich.main(config)
    loaded = sandwich.main(
        replace(config, out=tmp_path / "again", params=tmp_path / "run" / "checkpoints")
    )
    same = [name for name in summary if name != "seconds_sandwich"]
    assert [loaded[name] for name in same] == [summary[name] for name in same]
