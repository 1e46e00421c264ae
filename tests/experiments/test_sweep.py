"""Sweeps of an experiment: members as their own runs, records, figures, resume, refusals."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, vae
from experiments.common import figures, sweep
from vaejax import population
from vaejax.train import TrainState

NUMBERS = ("test_elbo_nats", "test_nll_nats", "test_distortion_nats", "test_rate_nats")
SMALL = replace(
    vae.DENSITY,
    smoke=True,
    progress=False,
    hidden=(16,),
    latent=2,
    evaluate_every=1,
    checkpoint_every=1,
)
SWEPT = replace(SMALL, ema=0.5, log_steps=True, seeds=2, sweep=("beta=1,4", "scale=0.2,0.3"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 8 members, stopped after an epoch and resumed: its folder, summary and print."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    config = replace(SWEPT, out=folder)
    fit, printed = population.fit, []

    def cut_short(*arguments, epochs, **options):
        fit(*arguments, epochs=1, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "print", lambda *what: printed.extend(what), raising=False)
        patch.setattr(population, "fit", cut_short)
        with pytest.raises(KeyboardInterrupt):
            vae.main(config)
        patch.setattr(population, "fit", fit)
        summary = vae.main(replace(config, resume=True, tensorboard=True))
    return folder, summary, "\n".join(printed)


def test_a_sweep_leaves_what_it_promises(swept):
    folder, summary, printed = swept
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [(m["beta"], m["scale"], m["seed"]) for m in summary["members"]] == [
        (beta, scale, seed) for beta in (1, 4) for scale in (0.2, 0.3) for seed in (0, 1)
    ]
    assert [row["finite"] for row in summary["settings"]] == [2] * 4 and summary["frozen"] == []
    for i, row in enumerate(summary["settings"]):
        for name in NUMBERS:
            pair = [member[name] for member in summary["members"][2 * i : 2 * i + 2]]
            assert row[name] == pytest.approx(np.mean(pair), rel=1e-12)
            assert row[f"{name}_sd"] == pytest.approx(np.std(pair, ddof=1), rel=1e-9)
    assert "2 of 2" in printed and "test_nll_nats" in printed and len(printed.splitlines()) == 5
    rows = common.rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2] and len(rows[1]["eval/loss"]) == 8
    # Members are compared by the bound, whatever their beta.
    np.testing.assert_allclose(rows[1]["eval/loss"], np.negative(rows[1]["eval/elbo"]), rtol=1e-6)
    assert not np.allclose(rows[1]["loss"], np.negative(rows[1]["elbo"]))
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "sweep.png"}
    assert list((folder / "checkpoints").iterdir())


def test_averages_of_members_are_evaluated_and_measured_too(swept):
    folder, summary, printed = swept
    last = common.rows(folder)[-1]
    for i, member in enumerate(summary["members"]):
        for elbo in (member["average_test_elbo_nats"], last["eval/average/elbo"][i]):
            assert np.isfinite(elbo) and elbo != member["test_elbo_nats"]
    assert "average_test_nll_nats" in printed
    steps = common.rows(folder, "steps.jsonl")
    assert [row["step"] for row in steps] == list(range(1, int(last["step"]) + 1))
    assert len(steps[0]["loss"]) == 8


def test_a_sweep_can_be_looked_at_with_tensorboard(swept):
    (events,) = swept[0].glob("events.out.tfevents.*")
    assert b"eval/loss/7" in events.read_bytes() and b"each/loss/7" in events.read_bytes()


def test_a_member_of_a_resumed_sweep_says_what_its_own_run_says(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "vae", lambda *_: {})
    alone = vae.main(replace(SMALL, seed=1, beta=4.0, scale=0.3, out=tmp_path / "run"))
    for name in NUMBERS:
        assert swept[1]["members"][-1][name] == pytest.approx(alone[name], rel=1e-4)


def test_another_sweep_is_not_continued(swept):
    for changes in ({"seeds": 3}, {"sweep": ("beta=1,5", "scale=0.2,0.3")}):
        with pytest.raises(SystemExit, match="other options: (seeds: then 2, now 3|sweep: then)"):
            vae.main(replace(SWEPT, out=swept[0], resume=True, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"sweep": ("latent=2,5",)},
            "--sweep: got 'latent', expected one of adam_epsilon, beta, "
            "learning_rate, scale; .*runs of its own",
        ),
        ({"sweep": ("seed=1,2",)}, "--seeds N is for seeds"),
        ({"sweep": ("scale=1,2",), "likelihood": "bernoulli"}, "of adam_epsilon, beta, learning_r"),
        ({"sweep": ("beta=1,two",)}, "got beta=1,two, expected NAME=VALUE,VALUE.* numbers"),
        ({"sweep": ("beta",)}, "got beta, expected NAME=VALUE"),
        ({"sweep": ("beta=1", "beta=2")}, "beta twice"),
        ({"sweep": ("beta=1,2,1.0",)}, "beta: got .*each value once"),
        ({"sweep": ("beta=1,nan",)}, "--beta: got nan, expected a number from 0 up"),
        ({"sweep": ("learning_rate=1e-3,0",)}, "--learning-rate: got 0.0, expected .* above 0"),
        ({"sweep": ("beta=1",), "seeds": 0}, "--seeds: got 0, expected .* from 1 up"),
        ({"sweep": ("beta=1,2",), "devices": 99}, "devices.mesh: count: got 99"),
    ],
)
def test_what_cannot_be_swept_is_refused_and_leaves_no_folder(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vae.main(replace(SMALL, out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_hyperparameters_as_its_options_are_spelt():
    config = common.parse(
        vae.PRESETS, "", ["digits", "--seeds", "2", "--sweep", "learning-rate=1,2"]
    )
    hyper = sweep.grid(config, ["learning_rate"])
    assert hyper["learning_rate"].tolist() == [1, 1, 2, 2] and hyper["seed"].tolist() == [0, 1] * 2


def test_frozen_members_are_named_and_are_in_no_mean(tmp_path):
    hyper = population.grid(beta=[1.0, 2.0], seed=[0, 1])
    state = TrainState(
        {"w": jnp.arange(4.0)}, (), jax.random.split(jax.random.key(0), 4), jnp.array([8, 8, 8, 3])
    )
    history = {"epoch": np.array([1.0, 2.0]), "elbo": np.array([[1.0, 3, 5, 7], [2, 4, 6, np.nan]])}
    frozen = np.array([-1, -1, -1, 3])
    found = population.Population(hyper, state, state, history, "epochs", frozen)
    populations = {"": found}
    rows = sweep.measured(hyper, populations, lambda h, params, _: nats_of(params[""]))
    members, facts = sweep.compared(hyper, rows, {"nats": "nats"})
    assert [member["nats"] for member in members[:3]] == [0, 10, 20] and facts == {"images": 3}
    assert np.isnan(members[3]["nats"])
    config = replace(SMALL, out=tmp_path / "run")
    summary = sweep.report(
        common.open_folder(config, name="x"),
        hyper,
        populations,
        rows,
        curve="elbo",
        labels={"nats": "nats"},
        note="nats",
    )
    assert summary["images"] == 3
    assert summary["frozen"] == [{"member": 3, "before_step": 3, "beta": 2.0, "seed": 1}]
    assert [(row["finite"], row["nats"]) for row in summary["settings"]] == [(2, 5.0), (1, 20.0)]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["members"][3]["nats"] is None


def nats_of(params):
    return {"nats": 10 * float(params["w"]), "images": 3}
