"""The experiment on log p(x) from both sides: its numbers, and parameters of another run."""

from dataclasses import replace

import pytest

from experiments import sandwich


def test_the_gap_is_to_the_exact_value(finished):
    summary = finished("sandwich", "digits").summary
    assert {"ais_minus_exact_nats", "bdmc_gap_nats", "converged"} < summary.keys()
    assert summary["importance_log_px_nats"] == pytest.approx(
        summary["exact_log_px_nats"] - summary["importance_gap_mean_nats"], rel=1e-5
    )


def test_a_second_run_reads_the_parameters_of_the_first(finished, tmp_path):
    folder, summary, _ = finished("sandwich", "digits")
    config = replace(sandwich.DIGITS, smoke=True, progress=False, params=folder / "checkpoints")
    loaded = sandwich.main(replace(config, out=tmp_path / "again"))
    assert loaded.keys() == summary.keys() - {"epochs", "seconds_train"}
    for name in loaded.keys() - {"seconds_sandwich"}:
        assert loaded[name] == summary[name], name
    with pytest.raises(ValueError, match="--seeds, --sweep: got a run that was trained before"):
        sandwich.main(replace(config, seeds=2, out=tmp_path / "many"))
