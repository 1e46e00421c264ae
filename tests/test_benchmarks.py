"""Benchmarks run and report what they say; no test looks at a time."""

import json

import numpy as np
import pytest

from experiments import run
from experiments.benchmarks import convolution


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "convolution.json"
    config = run.parse(convolution.PRESETS, "", ["--smoke", "--out", str(out)])
    report = convolution.main(config)
    assert json.loads(out.read_text()) == report
    return report


def test_every_program_has_a_rate_and_its_ratio_is_the_quotient(report):
    programs = report["programs"]
    assert list(programs) == ["scan_product", "step_native", "scan_native", "step_flax"]
    ours = np.array(programs["scan_product"]["rate"]["rounds"])
    for program in programs.values():
        rates = np.array(program["rate"]["rounds"])
        assert rates.shape == (2,)
        assert np.all(rates > 0)
        assert program["compile_seconds"] > 0
        np.testing.assert_allclose(program["ratio"]["rounds"], ours / rates)
        for summary in (program["rate"], program["ratio"]):
            assert summary["median"] == pytest.approx(np.median(summary["rounds"]))
            assert summary["lower_quartile"] <= summary["median"] <= summary["upper_quartile"]


def test_the_three_ways_to_train_one_model_do_the_same_mathematics(report):
    ours, *others = (report["programs"][n] for n in ("scan_product", "step_native", "scan_native"))
    for other in others:
        assert other["parameters"] == ours["parameters"]
        assert other["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert np.isfinite(report["programs"]["step_flax"]["loss"])


def test_each_program_convolves_by_the_means_that_its_name_says(report):
    native = {name: facts["native_convolution"] for name, facts in report["programs"].items()}
    assert not native.pop("scan_product")
    assert all(native.values())
