"""Finished smoke runs of the recipes, which several tests look at."""

import contextlib
import importlib
import io
import pathlib
import warnings
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.conftest import drop_programs, is_prepared


class Run(NamedTuple):
    """A run that no test changes: its folder, its summary, and what it printed."""

    folder: pathlib.Path
    summary: dict[str, Any]
    printed: str

    @property
    def figures(self):
        return {path.stem for path in (self.folder / "figures").glob("*.png")}


def config_of(recipe, preset, folder, **changes):
    """The preset, shrunk, in a folder of its own; skipped where its data are not prepared."""
    config = importlib.import_module(f"experiments.{recipe}").PRESETS[preset]
    config = replace(config, **{"smoke": True, "out": folder, **changes})
    if any(field.name == "progress" for field in fields(config)):
        config = replace(config, progress=False)
    for dataset in (getattr(config, "dataset", None), *getattr(config, "others", ())):
        if str(dataset) in ("mnist", "fashion_mnist", "binarized_mnist") and not is_prepared(
            dataset
        ):
            pytest.skip(f"left out: {dataset} is not prepared under TFDS_DATA_DIR")
    if recipe == "activations" and not config.dataset.exists():
        rows = np.random.default_rng(0).normal(size=(700, 12)) * 3 + 5
        np.save(folder.parent / "rows.npy", rows)
        config = replace(config, dataset=folder.parent / "rows.npy", latent=20, k=3)
    return config


def run(recipe, config):
    """What `main` of a recipe returns and prints."""
    printed = io.StringIO()
    main = importlib.import_module(f"experiments.{recipe}").main
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Degrees of freedom")
        return main(config), printed.getvalue()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`finished(recipe, preset)`: a Run of the preset; each is run once."""
    runs = {}

    def finished(recipe, preset):
        if (recipe, preset) not in runs:
            folder = tmp_path_factory.mktemp(recipe) / "run"
            summary, printed = run(recipe, config_of(recipe, preset, folder))
            runs[recipe, preset] = Run(folder, summary, printed)
        return runs[recipe, preset]

    return finished


@pytest.fixture(autouse=True)
def few_memory_maps_of_a_test():
    """One file runs many recipes: programs are dropped as soon as they hold too many maps."""
    yield
    drop_programs()


@pytest.fixture
def unlabelled(tmp_path):
    """A file of 100 black images of 8 x 8 pixels, without labels."""
    path = tmp_path / "images.npz"
    np.savez(path, x=np.zeros((100, 8, 8), np.uint8))
    return str(path)
