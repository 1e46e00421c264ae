"""The sparse experiments, shrunk; and how the atoms that are found are counted."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import activations, common, sparse
from experiments.benchmarks import streaming
from experiments.common import dictionary, sparse_code

PLAIN = {"curves", "units"}
IMAGES = PLAIN | {"reconstructions", "filters", "atoms"}


def smoke(preset, out, **changes):
    config = replace(sparse.PRESETS[preset], smoke=True, progress=False, out=out, **changes)
    return sparse.main(config)


def check_left(out, summary, figures):
    assert summary == json.loads((out / "summary.json").read_text())
    assert {path.stem for path in (out / "figures").glob("*.png")} == figures
    assert all(np.isfinite(v) and v >= 0 for v in summary.values())


@pytest.mark.parametrize("code", ["kl", "batch_top_k"])
def test_codes_of_images(code, tmp_path):
    out = tmp_path / "run"
    summary = smoke("digits", out, code=code, latent=40, k=3)
    check_left(out, summary, IMAGES)
    if code == "batch_top_k":
        assert summary["active_units"] == pytest.approx(3, abs=1.5)
        assert summary["threshold"] > 0
    assert ("units_within_factor_2" in summary) == (code == "kl")


def test_a_top_k_code_has_so_many_active_units(finished):
    assert finished("sparse", "digits").summary["active_units"] == 6


def test_a_known_dictionary(tmp_path):
    summary = smoke("dictionary", tmp_path / "run", atoms=20, size=10, latent=20, active=2)
    check_left(tmp_path / "run", summary, PLAIN | {"recovered"})
    assert 0 <= summary["recovered"] <= 1


def test_examples_are_made_of_as_many_atoms_as_said():
    config = replace(sparse.PRESETS["dictionary"], atoms=8, size=16, active=3, examples=50)
    atoms, x = dictionary.make_dictionary(config)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    coefficients = x @ np.linalg.pinv(atoms)
    assert ((np.abs(coefficients) > 1e-4).sum(axis=1) == 3).all()
    kept = coefficients[np.abs(coefficients) > 1e-4]
    assert 0.5 - 1e-4 < kept.min() < 0.6 and 1.4 < kept.max() < 1.5 + 1e-4


def test_recovery_counts_found_doubled_and_wrong_units():
    true = np.eye(4, 6)
    near = true[0] + 0.3 * np.eye(4, 6)[1]  # cosine 0.958 with the first
    units = np.stack([true[0], near, true[2] + true[3], -true[1]])
    params = {"encoder": {}, "decoder": {"loc": {"kernel": jnp.asarray(3 * units)}}}
    found = dictionary.recovery(true, params)
    assert found["recovered"] == 0.25  # of opposite sign is not the same
    assert (found["units_doubled"], found["units_on_no_atom"]) == (1, 2)
    assert found["mean_cosine"] == pytest.approx((1 + 0.3 / 1.09**0.5 + 2 * 0.5**0.5) / 4)


def test_revivals_come_when_units_have_had_their_time(monkeypatch):
    config = replace(sparse.PRESETS["dictionary"], revive_every=100)
    calls = []
    monkeypatch.setattr(sparse_code.sparsity, "revive", lambda *_, **__: calls.append)
    rest = {"model": None, "adam": None, "x": None, "steps": 900, "between": 30, "transform": None}
    hook = sparse_code.reviving(config, **rest)
    for step in range(30, 901, 30):
        hook(SimpleNamespace(step=step))
    assert [state.step for state in calls] == [120, 210, 300, 420, 510]
    for without in (replace(config, revive=False), replace(config, code="kl")):
        assert sparse_code.reviving(without, **rest) is None


def test_rows_of_a_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(700, 12)) * 3 + 5
    np.save(tmp_path / "rows.npy", rows)
    config = activations.Config(
        dataset=tmp_path / "rows.npy",
        latent=20,
        k=3,
        batch_size=64,
        sample=256,
        smoke=True,
        code="batch_top_k",
        out=tmp_path / "run",
    )
    summary = activations.main(config)
    check_left(tmp_path / "run", summary, PLAIN)
    assert (summary["rows"], summary["steps"]) == (700, 11)
    with np.load(tmp_path / "run" / "parameters.npz") as saved:
        assert saved["encoder/params/code/kernel"].shape == (12, 20)
        np.testing.assert_allclose(saved["mean"], rows.mean(axis=0), atol=1)
    rows[5, 5] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(ValueError, match=r"bad.npy': got NaN or infinity in row 5 "):
        activations.main(replace(config, dataset=tmp_path / "bad.npy", out=tmp_path / "b"))
    np.save(tmp_path / "images.npy", np.ones((50, 3, 3)))
    with pytest.raises(ValueError, match=r"--dataset: got rows of shape \(3, 3\)"):
        activations.main(replace(config, dataset=tmp_path / "images.npy"))


def test_bad_options_are_refused(tmp_path):
    for changes, message in (
        ({"code": "kl", "rho": 1.0}, r"kl: rho: got 1.0, expected .* inside \(0, 1\)"),
        ({"code": "squared", "rho": 0.0}, "squared: rho: got 0.0"),
        ({"k": 200}, "--k: got 200, expected at most 100"),
        ({"code": "batch_top_k", "k": 200}, "--k: got 200, expected at most 100"),
    ):
        with pytest.raises(ValueError, match=message):
            smoke("digits", tmp_path / str(len(message)), **changes)
    chosen = common.parse(sparse.PRESETS, "", ["mnist", "--rho", "0.1"])
    assert (chosen.code, chosen.rho, chosen.dataset) == ("kl", 0.1, "mnist")


def test_the_streaming_benchmark_reports_memory_and_leaves_nothing(tmp_path):
    config = streaming.Config(smoke=True, folder=tmp_path, out=tmp_path / "report.json")
    report = streaming.main(config)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert report["rss_anon_peak_gb"] > 0.05
    assert report["rows"] == 3000
    with pytest.raises(ValueError, match="streaming: --folder: got .* GB free"):
        streaming.main(replace(config, smoke=False, rows=10**12))


@pytest.mark.parametrize("rows, asked", [(300, 8192), (1000, 400)])
def test_the_sample_of_a_stream_holds_each_row_once_and_no_filling(rows, asked, tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(rows, dtype=np.float32)[:, None])
    config = replace(activations.PRESETS["activations"], dataset=path, sample=asked)
    found = activations.sampled(config, jax.random.key(0))[:, 0]
    assert len(found) == len(np.unique(found)) == min(rows, asked)
