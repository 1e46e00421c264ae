"""The contractive experiment and its benchmark, shrunk; no test looks at a time."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, contractive
from experiments.benchmarks import contractive as benchmark
from experiments.common import measures
from vaejax import autoencoders, data
from vaejax.types import Batch


def test_it_runs_and_leaves_what_it_promises(tmp_path):
    some = ("plain", "masking", "contractive")
    config = replace(
        contractive.Config(),
        smoke=True,
        out=tmp_path / "run",
        methods=some,
        seeds=1,
        weight=10.0,
        learning_rate=0.05,
    )
    summary = contractive.main(config)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    for method in config.methods:
        assert 0 < summary[f"{method}_error_percent"] < 60
        assert summary[f"{method}_squared_norm"] >= summary[f"{method}_jacobian_norm"] ** 2
    assert summary["plain_over_contractive_jacobian_norm"] > 1.2  # the weight is large
    assert summary["plain_over_contractive_reconstruction_nats"] < 1
    names = {"spectrum", "filters", *(f"tangents_{method}" for method in config.methods)}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == names
    assert common.parse(contractive.PRESETS, "", ["mnist"]).seeds == 5


def test_the_order_of_errors_is_counted_seed_by_seed():
    def rows(*errors, norm):
        return [
            {"error_percent": e, "jacobian_norm": norm, "reconstruction_nats": 1.0} for e in errors
        ]

    table = {
        "plain": rows(3.0, 3.0, 3.0, norm=8.0),
        "gaussian": rows(2.0, 3.0, 2.0, norm=4.0),
        "contractive": rows(2.0, 1.0, 2.5, norm=2.0),
    }
    summary = measures.summarise(table)
    assert summary["seeds_in_order_gaussian"] == "1 of 3"  # a tie with plain is none
    assert summary["plain_over_contractive_jacobian_norm"] == 4.0
    assert summary["gaussian_error_percent"] == pytest.approx(7 / 3)
    assert summary["gaussian_error_percent_sd"] == pytest.approx(np.sqrt(1 / 3))


def test_weight_decay_is_of_the_squared_kernel(key):
    config = contractive.Config(units=3, decay=0.5)
    x = data.load("digits", "test[:4]").x / np.float32(255)
    model = contractive.build(config, x.mean(axis=0))
    params = model.init(key, x[0])
    plain, ours = (contractive.loss_of(config, model, m) for m in ("plain", "decayed"))
    values = [loss(params, jax.random.key(1), Batch(x), 0)[0] for loss in (plain, ours)]
    squares = jnp.sum(params["encoder"]["params"]["code"]["kernel"] ** 2)
    np.testing.assert_allclose(values[1] - values[0], 0.5 * squares, rtol=1e-4)
    same = autoencoders.reconstruction(model)(params, jax.random.key(1), Batch(x), 0)[0]
    assert values[0] == same


def test_the_benchmarks_programs_compute_one_penalty(tmp_path):
    for name, preset in benchmark.PRESETS.items():
        out = tmp_path / f"{name}.json"
        report = benchmark.main(replace(preset, smoke=True, out=out))
        assert json.loads(out.read_text()) == report
        programs = report["programs"]
        assert list(programs) == ["closed_form", "hutchinson", "jacfwd", "jacrev"]
        truth = programs["jacrev"]["loss"]
        for exact in ("closed_form", "jacfwd"):
            assert programs[exact]["loss"] == pytest.approx(truth, rel=1e-4)
        assert 0.2 * truth < programs["hutchinson"]["loss"] < 3 * truth
        assert all(len(row["ratio"]["rounds"]) == 2 for row in programs.values())
