"""The table of published and exact numbers: its rows, its arithmetic, and that it goes on."""

import importlib
import json
import shlex

import numpy as np
import pytest

from experiments import common
from experiments.reproduce import __main__ as reproduce
from experiments.reproduce import report, runs
from experiments.reproduce.rows import ROWS, Row

FAKE = Row("a number", "experiments.fake", lambda s: s["x"], 1, 2, "", "none")


@pytest.mark.parametrize("name", ROWS)
def test_the_command_of_every_row_is_one_of_an_experiment(name, capsys):
    row = ROWS[name]
    module, *words = shlex.split(row.command)
    if module == "pytest":
        from tests.whole.test_readme import ROOT

        assert all((ROOT / w).exists() for w in words if w.endswith(".py"))
        return
    presets = importlib.import_module(module).PRESETS
    config = common.parse(presets, "", [*words, *([row.file, "f"] if row.file else [])])
    assert any(config == preset for preset in presets.values()) == (
        "--" not in row.command and not row.file
    )


def recipe_of(row):
    return row.command.split()[0].removeprefix("experiments.")


RUN = [(name, recipe_of(row)) for name, row in ROWS.items() if recipe_of(row) != "pytest"]


@pytest.mark.parametrize(("name", "recipe"), RUN)
def test_the_number_of_a_row_is_in_the_summary_of_its_command(name, recipe, finished):
    words = ROWS[name].command.split()[1:]
    first = next(iter(importlib.import_module(f"experiments.{recipe}").PRESETS))
    assert np.isfinite(ROWS[name].read(finished(recipe, words[0] if words else first).summary))


def test_a_row_is_the_mean_and_the_deviation_over_its_seeds():
    found = {seed: {"x": x, "seconds_whole": 2.0} for seed, x in enumerate((1.0, 1.5, 2.3))}
    entry = report.entry(FAKE, found)
    assert entry["mean"] == pytest.approx(1.6) and entry["holds"]
    assert entry["sd"] == pytest.approx(np.std([1.0, 1.5, 2.3], ddof=1))
    assert report.entry(FAKE, {0: found[0]})["sd"] is None
    assert not report.entry(FAKE, {0: {"x": 2.1, "seconds_whole": 1}})["holds"]


def test_a_missed_row_says_so_and_a_row_without_a_run_says_why(monkeypatch):
    monkeypatch.setattr(report, "ROWS", {"low": FAKE, "open": FAKE._replace(title="another")})
    entry = report.entry(FAKE, {0: {"x": 0.5, "test_particles": 7, "seconds_whole": 3.0}})
    text = report.markdown({"low": entry}, {"open": "needs a GPU"})
    assert "| 1 to 2 | **0.5**, missed | K = 7 | 1 | 3 |  |" in text
    assert "- another (`experiments.fake`): needs a GPU" in text


def test_finished_runs_are_not_run_again_and_the_others_go_on(tmp_path, monkeypatch):
    """Both rows of `vae burda` share a run; one that has only begun is resumed."""
    called = []

    def process(words, **_):
        called.append(words[2:])
        folder = runs.folder_of(ROWS["vae"], int(words[words.index("--seed") + 1]), tmp_path)
        numbers = {"test_nll_nats": 90.0, "test_elbo_nats": -94.0, "test_ess_median": 5.0}
        (folder / "summary.json").write_text(json.dumps(numbers))
        return runs.subprocess.CompletedProcess(words, 0, "said", "")

    monkeypatch.setattr(runs.subprocess, "run", process)
    begun = runs.folder_of(ROWS["vae"], 1, tmp_path)
    begun.mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    monkeypatch.setattr(common, "circumstances", dict)
    config = reproduce.Config(rows=("vae", "vae_gap"), seeds=2, out=tmp_path, progress=False)
    first = reproduce.main(config)
    assert [("--resume" in words) for words in called] == [False, True]
    assert first["rows"]["vae_gap"]["values"] == {0: 4.0, 1: 4.0}
    assert reproduce.main(config)["rows"] == first["rows"] and len(called) == 2
    assert "90" in (tmp_path / "table.md").read_text()


def test_what_cannot_be_run_here_is_named(tmp_path, capsys):
    config = reproduce.Config(rows=("iwae", "characters"), out=tmp_path, progress=False)
    assert set(reproduce.main(config)["waiting"]) == {"iwae", "characters"}
    said = capsys.readouterr().out
    assert "needs a GPU" in said and "--text FILE" in said
    with pytest.raises(ValueError, match="--rows: got .*'nothing'"):
        reproduce.main(reproduce.Config(rows=("nothing",), out=tmp_path))


def test_an_identity_counts_its_tests():
    assert runs._counted("3 passed, 1 failed in 2s") == {"passed": 3, "tests": 4}


def test_a_row_that_fails_is_told_and_the_next_ones_run(tmp_path, monkeypatch, capsys):
    def process(words, **_):
        folder = tmp_path / ("iwae" if "experiments.iwae" in words else "vae")
        return runs.subprocess.CompletedProcess(words, 1, "", f"error: {folder.name} is broken\n")

    monkeypatch.setattr(runs.subprocess, "run", process)
    monkeypatch.setattr(common, "circumstances", dict)
    config = reproduce.Config(rows=("vae", "exact"), out=tmp_path, progress=False)
    assert set(reproduce.main(config)["waiting"]) == {"vae", "exact"}
    assert "failed: error: vae is broken" in capsys.readouterr().out


def put(out, row, seed, numbers, options=None):
    """The folder of a run, with these numbers in its summary."""
    folder = runs.folder_of(ROWS[row], seed, out)
    folder.mkdir(parents=True)
    record = {"options": options or {}, "device": "abacus"}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps(numbers))


def test_runs_without_numbers_do_not_stop_the_table(tmp_path, monkeypatch):
    """One stopped at its pictures has no row yet; one whose number is not finite has missed."""
    monkeypatch.setattr(common, "circumstances", dict)
    put(tmp_path, "made", 0, {"test_nll_nats": 87.0})
    put(tmp_path, "vae", 0, {"test_nll_nats": None, "test_elbo_nats": -1, "seconds_whole": 1.0})
    rows = reproduce.main(reproduce.Config(rows=("iwae",), out=tmp_path, progress=False))["rows"]
    assert set(rows) == {"vae", "vae_gap"}
    assert np.isnan(rows["vae"]["mean"]) and not rows["vae"]["holds"]
    assert "**nan**, missed" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text())["rows"]["vae"]["mean"] is None


def test_numbers_of_a_shrunk_run_are_not_those_of_the_table(tmp_path, monkeypatch):
    def process(words, **_):
        folder = runs.Path(words[words.index("--out") + 1])
        number = 500.0 if "--smoke" in words else 87.0
        (folder / "summary.json").write_text(json.dumps({"test_nll_nats": number}))
        return runs.subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(runs.subprocess, "run", process)
    monkeypatch.setattr(common, "circumstances", dict)
    config = reproduce.Config(rows=("made",), out=tmp_path, progress=False, smoke=True)
    assert reproduce.main(config)["rows"]["made"]["mean"] == 500
    whole = reproduce.main(reproduce.Config(rows=("made",), out=tmp_path, progress=False))
    assert whole["rows"]["made"]["values"] == {0: 87.0}


def test_a_seed_that_fails_is_told_beside_the_others(tmp_path, monkeypatch):
    put(tmp_path, "made", 0, {"test_nll_nats": 87.0, "seconds_whole": 1.0})
    said = runs.subprocess.CompletedProcess([], 1, "", "error: no space")
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: said)
    monkeypatch.setattr(common, "circumstances", dict)
    config = reproduce.Config(rows=("made",), seeds=2, out=tmp_path, progress=False)
    table = reproduce.main(config)
    assert table["rows"]["made"]["values"] == {0: 87.0}
    assert "seed 1: " in table["waiting"]["made"] and "no space" in table["waiting"]["made"]


def test_k_of_a_likelihood_and_the_device_are_those_of_the_run(tmp_path):
    """Of `iwae`, K in training is `particles`: it is not the K of the reported number."""
    ess = {"iwae_test_ess_median": 7.0, "particles": 5, "seconds_whole": 1.0}
    put(tmp_path, "dreg", 0, ess, {"particles": 5, "test_particles": 1000})
    found = runs.summary_of(ROWS["dreg"], 0, tmp_path)
    assert report._samples({0: found}) == "K = 1000, 7.0"
    assert found["device"] == "abacus"
    put(tmp_path, "one_class", 0, {"score_auroc_mean": 0.9, "seconds_whole": 1}, {"particles": 20})
    assert report._samples({0: runs.summary_of(ROWS["one_class"], 0, tmp_path)}) == ""


@pytest.mark.parametrize(
    ("lower", "upper", "sides"), [(-0.1, 0.1, 2), (0.01, 0.1, 1), (0.01, -0.1, 0)]
)
def test_a_bound_on_the_wrong_side_is_counted(lower, upper, sides):
    gaps = {"ais_minus_exact_nats": lower, "reverse_ais_minus_exact_nats": upper}
    assert ROWS["sandwich_sides"].read(gaps) == sides
