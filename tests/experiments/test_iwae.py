"""The experiment `iwae`: what it leaves behind, and that its objectives are paired."""

import json
from dataclasses import replace

import pytest

from experiments import iwae
from tests.conftest import some_slow

ONE, ALL = ("dreg",), ("elbo", "iwae", "dreg")


def smoke(out, **changes):
    return iwae.main(replace(iwae.DIGITS, smoke=True, progress=False, out=out, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iwae") / "run"
    return folder, smoke(folder)


@pytest.mark.parametrize("objectives", some_slow([ONE, ALL], [ALL]), ids=["one", "all"])
def test_each_objective_is_trained_measured_and_drawn(objectives, request, tmp_path):
    folder = tmp_path / "run"
    if objectives == ALL:
        folder, summary = request.getfixturevalue("finished")
    else:
        summary = smoke(folder, objectives=objectives)
    assert summary == json.loads((folder / "summary.json").read_text())
    for name in objectives:
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_bound_nats"] + 5
        assert (folder / name / "metrics.jsonl").exists()
    names = {"bounds", *(f"samples_{name}" for name in objectives)}
    assert {path.stem for path in (folder / "figures").glob("*.png")} == names


@pytest.mark.slow
def test_the_order_of_the_objectives_changes_no_number_and_a_run_resumes(finished, tmp_path):
    whole = finished[1]  # elbo, iwae, dreg
    options = {"objectives": ("dreg", "iwae")}
    other = smoke(tmp_path / "other", **options)
    names = ("iwae_test_nll_nats", "dreg_test_nll_nats")
    assert [whole[name] for name in names] == [other[name] for name in names]
    again = smoke(tmp_path / "other", **options, resume=True)
    assert again["dreg_test_nll_nats"] == pytest.approx(other["dreg_test_nll_nats"], rel=1e-6)
