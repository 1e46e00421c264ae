"""Experiments as their users run them: presets, own files, resume, and what is left behind."""

import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from experiments import common, vae
from experiments.common import figures, image_vae, options, training
from vaejax import data, plot, train

ROOT = Path(__file__).resolve().parents[2]


def smoke(preset, out, **changes):
    config = replace(vae.PRESETS[preset], smoke=True, progress=False, out=out, **changes)
    return vae.main(config)


@pytest.fixture
def digits(finished):
    """A finished run of the first preset, which no test changes: its folder and its summary."""
    return finished("vae", "digits")[:2]


@pytest.mark.parametrize("preset", sorted(vae.PRESETS))
def test_the_bound_of_every_preset_is_its_two_parts(preset, finished):
    summary = finished("vae", preset).summary
    bound = -(summary["test_distortion_nats"] + summary["test_rate_nats"])
    assert summary["test_elbo_nats"] == pytest.approx(bound, rel=1e-4)
    assert summary.keys() >= {"test_nll_nats", "test_nll_particles", "epochs", "seconds_train"}
    assert preset != "mnist" or 100 < -summary["test_elbo_nats"] < 600


@pytest.mark.parametrize("shape", [(28, 20), (33, 17, 3)], ids=str)
def test_own_images_of_any_size_train_with_the_convolutional_preset(shape, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", rng.integers(0, 256, (400, *shape)).astype(np.uint8))
    likelihood = "bernoulli" if len(shape) == 2 else "discretized_logistic"
    summary = smoke(
        "conv", tmp_path / "run", dataset=str(tmp_path / "own.npz"), likelihood=likelihood
    )
    assert np.isfinite(summary["test_elbo_nats"])
    assert (tmp_path / "run" / "figures" / "samples.png").exists()


@pytest.mark.parametrize("kind", ["uint8", "floats", "binary", "grey", "kept"])
def test_colours_that_would_be_binarised_are_told_once(kind, recwarn):
    x = np.random.default_rng(1).integers(0, 256, (50, 6, 5, 3)).astype(np.uint8)
    x = {"floats": x / np.float32(255), "binary": 255 * (x > 127), "grey": x[..., :1]}.get(kind, x)
    likelihood = "shared_normal" if kind == "kept" else "bernoulli"
    image_vae.check_images(
        vae.Config(likelihood=likelihood), x.astype(np.float32 if kind == "floats" else np.uint8)
    )
    said = [str(one.message) for one in recwarn]
    assert len(said) == (kind in ("uint8", "floats"))
    assert all("3 channels to binarise" in one and "--likelihood" in one for one in said)


def test_the_first_run_reports_a_probability_and_says_what_to_do_next(finished):
    folder, summary, printed = finished("vae", "digits")
    assert summary["levels"] == 17 and "a probability of pixels of 17 levels" in printed
    assert summary["test_elbo_nats"] < 0 < summary["test_nll_nats"]
    bits = summary["test_nll_nats"] / np.log(2) / 64
    assert summary["test_nll_bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    last = printed.splitlines()[-1]
    assert last.startswith(f"next: look at {folder}") and "python -m experiments." in last


def test_figures_are_written_for_print_where_that_is_asked_for(tmp_path):
    figure = plot.curves({"loss": [3.0, 2.0]})
    (tmp_path / "figures").mkdir()
    for asked in ({}, {"print_figures": "no"}, {"print_figures": "svg"}):
        common.write_json(tmp_path / "config.json", {"options": asked})
        common.save_figures(tmp_path, {"curves": figure})
        endings = {path.suffix for path in (tmp_path / "figures").iterdir()}
        assert endings == ({".png", ".svg"} if "svg" in asked.values() else {".png"})
    assert "training curves" not in (tmp_path / "figures" / "curves.svg").read_text()


@pytest.mark.parametrize("levels", [2, 17, 100, 256])
def test_levels_of_images_are_counted(levels):
    grid = np.arange(levels) / (levels - 1)
    x = np.random.default_rng(0).permutation(np.tile(grid, 3)).reshape(-1, levels)
    for stored in (np.rint(255 * x).astype(np.uint8), x.astype(np.float32), x):
        assert common.levels_of(stored[:2], stored[2:]) == levels
        seen = data.quantize(jax.random.key(0), stored, levels=levels)
        np.testing.assert_allclose(seen, x, atol=1e-6)
    assert common.levels_of(0.9 * x + np.e / 100) is None


def test_vectors_train_without_pictures(tmp_path):
    rows = np.random.default_rng(0).uniform(size=(400, 7)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    own = {"dataset": str(tmp_path / "rows.npy")}
    with pytest.raises(ValueError, match="got floats of no such levels, .*--likelihood fixed_norm"):
        smoke("digits", tmp_path / "run", **own)
    smoke("digits_density", tmp_path / "run", **own)
    assert not list((tmp_path / "run" / "figures").glob("*.png"))


def test_another_seed_gives_other_numbers(digits, tmp_path):
    assert (
        smoke("digits", tmp_path / "other", seed=1)["test_elbo_nats"] != digits[1]["test_elbo_nats"]
    )


def test_a_folder_with_another_run_is_not_touched(digits):
    folder = digits[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="not an empty folder.*--resume.*another --out"):
        smoke("digits", folder)
    with pytest.raises(SystemExit, match="run with other options: latent: then 10, now 3"):
        smoke("digits", folder, latent=3, resume=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_experiment_repeats_the_numbers_of_one_go(digits, tmp_path, monkeypatch):
    whole = digits[1]
    fit = train.fit

    def cut_short(*arguments, epochs, **options):
        fit(*arguments, epochs=1, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", cut_short)
    with pytest.raises(KeyboardInterrupt):
        smoke("digits", tmp_path / "cut")
    monkeypatch.undo()
    again = smoke("digits", tmp_path / "cut", resume=True)
    assert {**whole, "seconds_train": 0} == {**again, "seconds_train": 0}
    first, second = common.rows(tmp_path / "cut")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert again["seconds_train"] == second["seconds"] > first["seconds"]  # both legs


def test_a_failed_start_leaves_the_folder_free(tmp_path):
    for wrong_option in ({"batch_size": 5000}, {"particles": 0}):
        with pytest.raises(ValueError, match="--batch-size: got 5000|--particles: got 0"):
            vae.main(replace(vae.Config(), out=tmp_path / "run", **wrong_option))
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="needs --out.*no --out was given"):
        smoke("digits", None, resume=True)
    with pytest.raises(SystemExit, match="holds no run"):
        smoke("digits", tmp_path / "typo", resume=True)


@pytest.mark.parametrize(
    "images", [(30, 5, 6), (30, 4, 4, 4), (12, 3, 4)], ids=["few", "four channels", "one to test"]
)
def test_few_images_or_channels_that_cannot_be_drawn_do_not_spoil_a_run(images, tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 256, images, np.uint8))
    small = {
        "latent": len(images) - 1,
        "epochs": 1,
        "batch_size": 8,
        "particles": 2,
        "progress": False,
    }
    config = vae.Config(dataset=str(tmp_path / "own.npy"), out=tmp_path / "run", **small)
    assert np.isfinite(vae.main(config)["test_elbo_nats"])


def test_metrics_of_repeated_epochs_give_way(tmp_path):
    for epochs in [(1, 2, 3), (2, 3, 4)]:
        log = common.logger(tmp_path)
        for epoch in epochs:
            log({"epoch": float(epoch), "loss": float(10 * epochs[0] + epoch)})
    found = [(row["epoch"], row["loss"]) for row in common.rows(tmp_path)]
    assert found == [(1, 11), (2, 22), (3, 23), (4, 24)]


def test_a_line_of_metrics_that_a_kill_cut_short_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1.0, "seconds": 5.0}\n{"epoch": 2.0, "se')
    log = common.logger(tmp_path)
    log({"epoch": 2.0})
    rows = common.rows(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["seconds"] > 5


def test_the_command_line_takes_a_preset_and_options():
    config = common.parse(vae.PRESETS, "about", ["burda", "--epochs", "3", "--resume"])
    assert config == replace(vae.PRESETS["burda"], epochs=3, resume=True)
    assert common.parse(vae.PRESETS, "about", []) == vae.PRESETS["digits"]
    assert common.parse(vae.PRESETS, "about", ["--latent", "3"]).latent == 3


def test_a_misspelt_preset_option_or_value_is_answered_in_one_line():
    for words, message in (
        (["mnits"], "got 'mnits', expected a preset, .*did you mean 'mnist'"),
        (["mnist", "--epcohs", "3"], "option --epcohs, .*did you mean --epochs"),
        (["mnist", "--network", "con"], "--network: got 'con', expected one of mlp, conv"),
        (["--hidden", "8", "many"], "--hidden: got 'many', expected a whole number from 1 up"),
        (["--epochs", "2.5"], "--epochs: got '2.5', expected a whole number from 1 up"),
        (["--epochs"], "--epochs: got no value"),
        (["--resume", "yes"], "got 'yes', expected a preset"),
        (["--resume=yes"], "--resume: got '--resume=yes', expected no value"),
        (["mnist", "conv"], "got 'conv', expected options after 'mnist'"),
    ):
        with pytest.raises(ValueError, match=message):
            common.parse(vae.PRESETS, "about", words)


def test_a_preset_may_stand_behind_options_and_is_no_value_of_one():
    for words in (["--epochs", "3", "mnist"], ["--hidden", "400", "mnist", "--epochs=3"]):
        found = common.parse(vae.PRESETS, "about", words)
        assert found == replace(vae.PRESETS["mnist"], epochs=3)
    assert common.parse(vae.PRESETS, "about", ["--dataset", "mnist"]).hidden == vae.DIGITS.hidden


def test_smoke_leaves_what_the_command_line_names_and_refuses_what_is_wrong(monkeypatch):
    found = []
    monkeypatch.setattr(options.compiling, "keep_on_disk", lambda: None)
    monkeypatch.setattr(vae, "load", lambda config: found.append(config) or 1 / 0)
    recipe = vae.RECIPE._replace(load=vae.load)
    for words in (["--smoke", "--batch-size", "4"], ["--smoke", "--particles", "0"]):
        monkeypatch.setattr(sys, "argv", ["experiments.vae", *words])
        with pytest.raises((ZeroDivisionError, SystemExit)):
            common.command_line(partial(common.main, recipe), vae.PRESETS, "about")
    (config,) = found
    assert (config.batch_size, config.epochs) == (4, 2)
    assert (
        common.shrunk(replace(vae.DIGITS, smoke=True, batch_size=4), batch_size=16).batch_size == 16
    )


def test_help_names_every_option_in_a_word_or_more(capsys):
    with pytest.raises(SystemExit):
        common.parse(vae.PRESETS, vae.__doc__, ["--help"])
    text = capsys.readouterr().out
    for field in fields(vae.Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "nats per image" in text and "Presets" in text
    for unit in ("epochs over which", "images per step", "epochs between", "importance samples"):
        assert unit in text


def test_what_a_user_can_mend_ends_without_a_traceback():
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.vae", "--dataset", "mnits"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 1
    assert "perhaps 'mnist'" in ended.stderr and "Traceback" not in ended.stderr


def test_importing_the_library_pulls_in_no_plotting_cli_or_dataset_package():
    heavy = {"matplotlib", "tyro", "tensorflow_datasets", "tensorflow", "sklearn", "orbax", "PIL"}
    code = f"import sys, vaejax; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_images_that_would_train_on_nonsense_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for images, option, message in [
        (rng.uniform(0, 16, (200, 5, 6)), {}, r"floats in \[.*16\], expected \[0, 1\]"),
        (rng.uniform(size=(200, 7)), {"network": "conv"}, "got vectors.*expected images"),
    ]:
        np.save(tmp_path / "own.npy", images.astype(np.float32))
        with pytest.raises(ValueError, match=message):
            vae.main(replace(vae.Config(), dataset=str(tmp_path / "own.npy"), **option))


def test_a_run_with_an_average_norms_steps_cycles_and_free_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "vae", lambda *_: {})
    rate = {"warmup_epochs": 1, "cycles": 2, "free_nats": 0.3}
    asked = {"ema": 0.9, "norms": True, "log_steps": True, **rate}
    small = {"smoke": True, "progress": False, "hidden": (8,), "latent": 2}
    config = replace(vae.DIGITS, out=tmp_path / "run", **small, **asked)
    summary = vae.main(config)
    average, rows = summary["average"], common.rows(tmp_path / "run")
    assert set(average) == set(summary) - {"average", "epochs", "seconds_train"}
    assert np.isfinite(average["test_nll_nats"])
    assert average["test_elbo_nats"] != summary["test_elbo_nats"]
    assert {"eval/average/elbo", "gradient_norm", "free_groups"} <= set(rows[-1])
    steps = common.rows(tmp_path / "run", "steps.jsonl")
    assert [row["step"] for row in steps] == list(range(1, int(rows[-1]["step"]) + 1))
    assert steps[0]["beta"] == 0 and max(row["beta"] for row in steps) == 1
    for changes, message in (
        ({"warmup_epochs": 0}, "--cycles: got 2, expected --warmup-epochs beside it"),
        ({"posterior": "full_covariance"}, "--free-nats: got 0.3, expected --posterior diagonal"),
        ({"ema": 1.0}, r"--ema: got 1.0, expected a share in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.main(replace(config, out=tmp_path / "other", **changes))


def test_the_numbers_of_an_average_are_told_apart_from_those_of_the_parameters():
    optimizer = train.averaging(optax.sgd(0.5), 0.5)
    state = train.make_step(lambda p, k, b, s: (p.sum(), {}), optimizer)[0](0, np.zeros(2))
    kept = state.opt_state._replace(average=np.ones(2))
    state = state._replace(opt_state=kept)
    history = {"loss": 1, "eval/loss": 2, "eval/rate": 3, "eval/average/loss": 4}
    fitted = train.Fitted(state, state, {**history, "eval/average/rate": 5}, "epochs")
    own, mean = training.apart(replace(vae.DIGITS, ema=0.5), fitted)
    assert own.history == {"loss": 1, "eval/loss": 2, "eval/rate": 3}
    assert mean.history == {"loss": 1, "eval/loss": 4, "eval/rate": 5}
    assert own.params.tolist() == [0, 0] and mean.params.tolist() == [1, 1]
    assert training.apart(vae.DIGITS, fitted) == (fitted, None)
