"""Benchmarks run and report what they say; no test looks at a time."""

import json
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import run
from experiments.benchmarks import convolution, feeding, likelihood, paired
from vaejax import evaluate


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


SMALL = replace(likelihood.Config(), size=(4, 3), hidden=(8,), latent=2, images=7, particles=2000)


def test_likelihood_by_torch_is_the_same_estimate_whatever_its_chunks():
    """Under a posterior made wider than the prior, whose weights are bounded: to their noise."""
    pytest.importorskip("torch", reason="left out: PyTorch is not installed (extra: benchmarks)")
    model, params, x = likelihood.problem(SMALL)
    params["encoder"]["params"]["layers_1"]["scale"]["bias"] += 1.0
    ours, ess = evaluate.log_likelihood(model, params, jax.random.key(0), x, particles=2000)
    np.testing.assert_array_equal(likelihood.in_vaejax(SMALL, model, params, x)(), ours)
    for sizes in [{"batch_size": 3, "chunk": 300}, {"batch_size": 1, "chunk": 2000}]:
        theirs = likelihood.in_torch(replace(SMALL, **sizes), params, x)()
        assert np.all(np.abs(theirs - ours) < 5 * np.sqrt(2 / ess))
        assert np.max(5 * np.sqrt(2 / ess)) < 0.4  # a term left out is more


def test_likelihood_benchmark_reports_every_program(tmp_path):
    pytest.importorskip("torch", reason="left out: PyTorch is not installed (extra: benchmarks)")
    config = replace(likelihood.PRESETS["burda"], smoke=True, out=tmp_path / "report.json")
    programs = likelihood.main(config)["programs"]
    assert list(programs) == ["vaejax", "torch_chunks", "torch_images"]
    assert all(len(row["ratio"]["rounds"]) == 2 for row in programs.values())


def test_likelihood_benchmark_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'no PyTorch.*pip install "torch>=2"'):
        likelihood.main(replace(likelihood.Config(), smoke=True))


def test_the_peak_of_memory_is_seen_after_it_has_gone():
    with paired.peak_memory() as peak:
        time.sleep(0.2)
        before = peak()
        block = np.ones(50_000_000)  # 400 MB
        time.sleep(0.2)
        del block
        time.sleep(0.2)
        assert before > 10
        assert before + 350 < peak() < before + 450


def test_feeding_reports_memory_waiting_and_both_rates(tmp_path):
    config = replace(feeding.Config(), smoke=True, folder=tmp_path, out=tmp_path / "report.json")
    report = feeding.main(config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["file_gb"] == pytest.approx(2000 * 784 / 1e9, rel=1e-3)
    assert 0 <= report["waited_share"] <= 1
    assert list(report["programs"]) == ["streamed", "in_memory"]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]


def test_one_call_for_memory_reports_its_counts(tmp_path):
    config = replace(SMALL, compare=False, particles=50, out=tmp_path / "report.json")
    report = likelihood.main(config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["images"], report["particles"]) == (7, 50)
    assert np.isfinite(report["nll_nats"])
    assert report["samples_per_second"] == pytest.approx(350 / report["seconds"])
