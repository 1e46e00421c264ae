"""What all recipes promise: numbers, records and figures, every preset, resume, many seeds."""

import importlib
import json
import math
import pathlib
from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from experiments import common
from experiments.common import sweep
from tests.experiments.conftest import config_of, run
from vaejax import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem != "__init__")
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}
CASES = [(name, preset) for name, module in MODULES.items() for preset in module.PRESETS]
FIRST = {name: next(iter(module.PRESETS)) for name, module in MODULES.items()}
TRAINED_BY_FIT = [n for n in NAMES if isinstance(MODULES[n].PRESETS[FIRST[n]], common.Options)]
SWEPT = [n for n in NAMES if isinstance(MODULES[n].PRESETS[FIRST[n]], common.SweepOptions)]

USUAL = {"curves", "interpolations", "latent", "reconstructions", "samples", "traversals"}
CODES = {"interpolations", "latent", "random_codes", "reconstructions"}
DIRECTIONS = {"latent", "slant", "slant_measured", "thickness", "thickness_measured"}
SPARSE = {"curves", "units", "atoms", "filters", "reconstructions"}
TANGENTS = {f"tangents_{n}" for n in ("contractive", "decayed", "gaussian", "masking", "plain")}
GAME = {"samples", "players", "critic"}
# Of a recipe, and of a preset where it draws others.
FIGURES = {
    "activations": {"curves", "units"},
    "adversarial": GAME | {"reconstructions", "codes", "curves"},
    "adversarial digits_vae_gan": GAME | {"reconstructions", "curves"},
    "adversarial mnist_vae_gan": GAME | {"reconstructions", "curves"},
    "adversarial digits_gan": GAME,
    "adversarial mnist_gan": GAME,
    "anomaly": {"auroc", "extremes"},
    "autoencoder": CODES,
    "autoencoder linear": CODES | {"filters"},
    "autoencoder tied": CODES | {"filters"},
    "autoregressive": {"samples", "expected", "completions", "curves"},
    "charmodel": {"curves", "context"},
    "collapse": {"rate_distortion", "rates"},
    "collapse digits": {"rate_distortion", "rates", "calibration"},
    "contractive": {"filters", "spectrum"} | TANGENTS,
    "cvae": {"samples", "curves"},
    "cvae digits_completion": {"completions", "curves"},
    "cvae mnist_completion": {"completions", "curves"},
    "denoising": {"curves", "images"},
    "density": {"density", "curves"},
    "disentangle": {"traversals_beta_tcvae", "traversals_factor_vae", "information", "curves"},
    "disentangle mnist": {"traversals_beta_tcvae", "traversals_factor_vae", "curves"},
    "em": {"components", "em", "em_gap", "vae"},
    "gradients": {"bias", "snr", "variance"},
    "hierarchical": {"active_units", "bounds", "samples_elbo", "samples_iwae"},
    "iwae": {"bounds", "samples_dreg", "samples_elbo", "samples_iwae"},
    "posteriors": {"curves", "samples_diagonal", "samples_iaf", "samples_planar"},
    "posteriors digits": {
        *("curves", "clouds", "samples_diagonal", "samples_iaf", "samples_planar"),
    },
    "priors": {"curves", "pseudo_inputs", "samples_mixture", "samples_standard", "samples_vamp"},
    "recurrent": {"curves", "samples", "completions", "rates"},
    "recurrent linear": {"curves", "data", "samples", "rates"},
    "recurrent sentences": {"curves", "rates"},
    "representation": DIRECTIONS,
    "sandwich": {"images", "ladder", "temperatures"},
    "score_field": {"field", "langevin"},
    "semisupervised": {"samples", "analogies", "curves"},
    "sparse": SPARSE,
    "sparse dictionary": {"curves", "units", "recovered"},
    "stacked": {"errors", "filters", "fine_tuning", "pretraining"},
    "structure": {"elsewhere", "reconstructions", "samples"},
    "vae": USUAL,
    "vae manifold": USUAL | {"manifold"},
    "vq": {"perplexity", "reconstructions", "samples", "usage"},
}
UNITS = ["nats", "dB", "squared error", "share", "mean AUROC", "exponents", "rows", "cosine"]
UNITS += ["variance", "accurac"]
SECONDS = ("seconds", "rows_per_second")


def flat(numbers):
    """All entries of a summary, those of dictionaries and lists inside it too."""
    for name, value in numbers.items() if isinstance(numbers, dict) else enumerate(numbers):
        if isinstance(value, dict | list):
            yield from ((f"{name}/{inside}", v) for inside, v in flat(value))
        else:
            yield str(name), value


def timeless(numbers):
    return {n: v for n, v in flat(numbers) if not any(word in n for word in SECONDS)}


@pytest.mark.parametrize(("recipe", "preset"), CASES)
def test_a_run_leaves_its_options_numbers_and_figures(recipe, preset, finished):
    one = finished(recipe, preset)
    assert one.summary == json.loads((one.folder / "summary.json").read_text())
    record = json.loads((one.folder / "config.json").read_text())
    assert record["options"]["seed"] == 0 and record["versions"]["jax"] == jax.__version__
    numbers = [v for _, v in flat(one.summary) if isinstance(v, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert any(unit in one.printed for unit in UNITS), "the report names no unit"
    assert one.figures == FIGURES.get(f"{recipe} {preset}", FIGURES[recipe])
    if recipe in TRAINED_BY_FIT:
        found = list(one.folder.rglob("metrics.jsonl"))
        assert found
        for path in found:
            epochs = [row["epoch"] for row in common.rows(path.parent)]
            assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize("recipe", TRAINED_BY_FIT)
def test_a_run_that_was_cut_short_goes_on_to_the_same_numbers(
    recipe, finished, tmp_path, monkeypatch
):
    whole = finished(recipe, FIRST[recipe]).summary
    config = config_of(recipe, FIRST[recipe], tmp_path / "run")
    fit = train.fit

    def cut_short(*arguments, epochs, **options):
        fit(*arguments, epochs=1, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, config)
    monkeypatch.undo()
    summary, _ = run(recipe, replace(config, resume=True))
    assert timeless(summary) == timeless(whole)


@pytest.mark.parametrize("recipe", SWEPT)
def test_a_member_of_a_sweep_has_the_numbers_of_its_own_run(recipe, finished, tmp_path):
    alone = sweep.flat(finished(recipe, FIRST[recipe]).summary)
    config = config_of(recipe, FIRST[recipe], tmp_path / "run")
    options = MODULES[recipe].RECIPE.swept
    names = sorted(options(config) if callable(options) else options)
    asked = [f"{n}={getattr(config, n)},{2 * getattr(config, n)}" for n in names[:1]]
    summary, printed = run(recipe, replace(config, seeds=2, sweep=tuple(asked)))
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    members, settings = summary["members"], summary["settings"]
    assert [m["seed"] for m in members] == [0, 1] * 2 ** len(asked) and not summary["frozen"]
    assert all(row["finite"] == 2 for row in settings) and "2 of 2" in printed
    compared = [name for name in members[0] if name not in ("seed", *names)]
    assert compared
    for name in compared:
        assert members[0][name] == pytest.approx(alone[name], rel=2e-3, abs=1e-3), name
        pair = [member[name] for member in members[:2]]
        assert settings[0][name] == pytest.approx(np.mean(pair), rel=1e-9, abs=1e-12)
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert any(name.startswith("curves") for name in figures)
    assert ("sweep" in figures) == bool(asked)


@pytest.mark.parametrize("recipe", NAMES)
def test_the_command_line_knows_presets_and_options_and_refuses_others(recipe, capsys):
    module = MODULES[recipe]
    assert common.parse(module.PRESETS, "", []) == module.PRESETS[FIRST[recipe]]
    for preset, config in module.PRESETS.items():
        assert common.parse(module.PRESETS, "", [preset, "--seed", "7"]) == replace(config, seed=7)
        assert common.parse(module.PRESETS, "", ["--seed", "7", preset]) == replace(config, seed=7)
    with pytest.raises(ValueError, match="got the option --no-such-option, expected .*--help"):
        common.parse(module.PRESETS, "", ["--no-such-option", "1"])
    with pytest.raises(ValueError, match=f"experiments.{recipe}: got 'none', expected a preset"):
        common.parse(module.PRESETS, "", ["none"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        common.parse(module.PRESETS, module.__doc__, ["--help"])
    text = capsys.readouterr().out
    for field in fields(module.PRESETS[FIRST[recipe]]):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Presets" in text


def test_every_recipe_is_short_and_says_how_it_is_run():
    for name, module in MODULES.items():
        lines = (ROOT / "experiments" / f"{name}.py").read_text().splitlines()
        assert len(lines) <= 150, name
        assert f"python -m experiments.{name}" in module.__doc__
