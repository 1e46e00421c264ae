"""A run's folder, opened: its model, its parameters, its test images and their codes."""

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import experiments
from experiments.common import sweep
from experiments.common.limits import hints
from experiments.common.recipe import Recipe, Trial
from experiments.common.training import settings
from vaejax import checkpoint, draw, evaluate
from vaejax.errors import wrong
from vaejax.model import Model, terms
from vaejax.types import Batch, Params

__all__ = ["Opened", "opened"]

IMAGES = 1000  # test images whose codes are shown


class Opened(NamedTuple):
    """What the page shows of a run.

    Args:
      title: the experiment and its data.
      model, params: of the run.
      codes: of test images, `[n, *latent]`.
      labels: their classes, `[n]`, or None.
      conditions: the one-hot rows of the classes that may be chosen, or None.
      shape: of an image, `[height, width, channels]`.
      sizes: how much each dimension of the code is used, `[latent]`, and `measure`, in words.
    """

    title: str
    model: Model
    params: Params
    codes: np.ndarray
    labels: np.ndarray | None
    conditions: np.ndarray | None
    shape: tuple[int, int, int]
    sizes: np.ndarray
    measure: str

    def decode(self, z: Any, c: Any = ()) -> Any:
        """The mean of p(x|z, c) of one code, flat or not, `[height, width, channels]`."""
        z = jnp.reshape(z, self.codes.shape[1:])
        return jnp.reshape(self.model.decode(self.params, z, c).mean, self.shape)


def opened(
    folder: Path, *, experiment: str = "", part: str = "", member: int | None = None
) -> Opened:
    """The run in a folder, ready to be shown.

    Args:
      folder: of the run.
      experiment: its name, for a run whose config.json does not say it.
      part: which of several models that the run has trained.
      member: which of the runs of a sweep, from 0.
    Raises:
      FileNotFoundError: where there is no run.
      ValueError: for a run that a page of images cannot show; it says what can be done.
    """
    recipe, config = _recipe_of(folder, experiment)
    config, trials, hyper = _trials(recipe, config, member)
    trial, inner = _one_of(trials, part)
    if not isinstance(trial.model, Model):
        got = f"a {type(trial.model).__name__}, no Model with a code"
        raise wrong(f"explorer: {folder}", got, "a Model", "take a run of experiments.vae, say")
    params = _params(folder / inner, trial, hyper, member)
    if isinstance(params, dict) and "model" in params and "decoder" not in params:
        params = params["model"]  # trained beside other networks
    test = _test_of(recipe.load(config))
    shape = _image_shape(folder, test.x)
    test = jax.tree.map(lambda leaf: leaf[:IMAGES], test)
    key, again = jax.random.split(jax.random.key(0))
    codes = np.asarray(
        evaluate.codes(trial.model, params, key, Batch(test.x, c=test.c), transform=trial.transform)
    )
    if codes.ndim < 2 or codes.dtype.kind != "f":
        got = f"codes {codes.dtype} {list(codes.shape[1:])}"
        raise wrong(f"explorer: {folder}", got, "numbers to move", "take a run with real codes")
    labels = np.asarray(test.y) if np.ndim(test.y) == 1 else None
    sizes, measure = _used(trial, params, again, test, codes)
    conditions = _conditions(folder, test.c)
    if labels is None and conditions is not None:
        labels = np.argmax(test.c, axis=1)
    name = getattr(config, recipe.dataset, "")
    title = " ".join([recipe.name, *inner.split("/"), Path(str(name)).stem]).replace("  ", " ")
    return Opened(title, trial.model, params, codes, labels, conditions, shape, sizes, measure)


def _recipe_of(folder: Path, experiment: str) -> tuple[Recipe, Any]:
    """The recipe of a run, and its config."""
    stored = folder / "config.json"
    if not stored.is_file():
        fix = "train one: python -m experiments.vae --out " + str(folder)
        raise wrong("explorer: RUN", f"{folder}, without config.json", "a run's folder", fix,
                    FileNotFoundError)  # fmt: skip
    try:
        record = json.loads(stored.read_text(encoding="utf-8"))
        options = dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        fix = "restore it from a copy"
        raise wrong(f"explorer: {stored}", "a damaged file", "a run's options", fix) from error
    name = experiment or record.get("experiment") or _guessed(folder, options)
    name = name.removeprefix("experiments.")
    if name not in {module.name for module in pkgutil.iter_modules(experiments.__path__)}:
        fix = "name the experiment: --experiment vae"
        raise wrong("explorer: --experiment", repr(name), "a file of experiments/", fix)
    module = importlib.import_module(f"experiments.{name}")
    recipe, of = getattr(module, "RECIPE", None), getattr(module, "Config", None)
    if not isinstance(recipe, Recipe) or of is None:
        fix = "use the library: docs/how-to/explorer.md shows how"
        raise wrong(f"explorer: {folder}", f"a run of {name}", "a run of one recipe", fix)
    return recipe, _config(of, options)


def _guessed(folder: Path, options: dict[str, Any]) -> str:
    """The experiment with these options, for a run that was made before its name was kept."""
    names = [m.name for m in pkgutil.iter_modules(experiments.__path__) if not m.ispkg]
    fits = []
    for name in names:
        of = getattr(importlib.import_module(f"experiments.{name}"), "Config", None)
        if of is not None and {field.name for field in dataclasses.fields(of)} == set(options):
            fits.append(name)
    if len(fits) != 1:
        fix = f"name it: --experiment {fits[0] if fits else 'vae'}"
        got = f"options that fit {' and '.join(fits) or 'none'}"
        raise wrong(f"explorer: {folder}", got, "those of one experiment", fix)
    return fits[0]


def _config(of: type, options: dict[str, Any]) -> Any:
    """The config of a class whose options JSON has kept."""

    def value(hint: Any, found: Any) -> Any:
        if isinstance(found, list):
            return tuple(value(None, one) for one in found)
        return Path(found) if "Path" in str(hint) and isinstance(found, str) else found

    kinds = hints(of)
    own = {name: value(kinds[name], found) for name, found in options.items() if name in kinds}
    return of(**own | {"progress": False} if "progress" in kinds else own)


def _trials(recipe: Recipe, config: Any, member: int | None) -> tuple[Any, Any, Any]:
    """The config of one run, its trials, and the numbers of all members of a sweep."""
    hyper = None
    if getattr(config, "several", False):
        swept = recipe.swept(config) if callable(recipe.swept) else recipe.swept
        hyper = settings(sweep.grid(config, swept))
        if member is None or not 0 <= member < len(hyper):
            listed = "; ".join(
                f"{i}: " + ", ".join(f"{name}={number:g}" for name, number in one.items())
                for i, one in enumerate(hyper)
            )
            fix = f"choose one with --member ({listed})"
            got = f"{len(hyper)} runs at once" if member is None else f"member {member}"
            raise wrong("explorer: --member", got, "the number of one", fix)
        config = dataclasses.replace(config, **hyper[member])
    elif member is not None:
        raise wrong("explorer: --member", member, "a sweep", "leave it out: this is a single run")
    return config, recipe.build(config, recipe.load(config)), hyper


def _one_of(trials: Any, part: str) -> tuple[Trial, str]:
    """One model of a run, and the folder of it in the run's."""
    names = [] if isinstance(trials, Trial) else list(trials)
    if part not in (names or [""]):
        got, fix = repr(part), f"--part {names[0]}" if names else "leave it out"
        raise wrong("explorer: --part", got, f"one of {names}" if names else "no name", fix)
    return (trials[part], part) if names else (trials, "")


def _params(folder: Path, trial: Trial, hyper: Any, member: int | None) -> Params:
    """The parameters after the last checkpoint; of a sweep those of one member."""
    like = trial.init()
    if trial.ready is not None:
        return trial.ready(like)
    if hyper is None:
        return checkpoint.load(folder / "checkpoints", like=like)
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(hyper), *leaf.shape)), like)
    found = checkpoint.load(folder / "checkpoints", like=many)
    return jax.tree.map(lambda leaf: leaf[member], found)


def _test_of(data: Any) -> Batch:
    """The test examples among what a recipe has loaded."""
    test = getattr(data, "test", None)
    if test is None and isinstance(data, tuple) and len(data) > 1:
        test = data[1]
    if not isinstance(test, Batch):
        fix = "take a run of images: python -m experiments.vae"
        raise wrong("explorer: RUN", "data without test images", "images", fix)
    return test


def _image_shape(folder: Path, x: Any) -> tuple[int, int, int]:
    """Height, width and channels of the images."""
    if np.ndim(x) == 4 and np.shape(x)[-1] in (1, 3):
        _, height, width, channels = np.shape(x)
        return height, width, channels
    fix = "give images [n, height, width, 1 or 3]; plot.latent draws the codes of other data"
    shape = list(np.shape(x)) if hasattr(x, "shape") else type(x).__name__
    raise wrong(f"explorer: {folder}", f"data {shape}", "images", fix)


def _conditions(folder: Path, c: Any) -> np.ndarray | None:
    """One row per class where the condition is a class; None without one."""
    if isinstance(c, tuple) and not c:
        return None
    rows: Any = np.asarray(c) if hasattr(c, "shape") else np.zeros(0)
    if rows.ndim == 2 and np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all():
        return np.eye(rows.shape[1], dtype=np.float32)
    fix = "take a run whose condition is a class: python -m experiments.cvae --condition class"
    raise wrong(f"explorer: {folder}", "a condition that is no class", "a class to choose", fix)


def _used(trial: Trial, params: Params, key: Any, test: Batch, codes: np.ndarray) -> Any:
    """How much each dimension of the code is used: its rate, or the variance of its codes."""
    some = jax.tree.map(lambda leaf: leaf[:200], Batch(test.x, c=test.c))

    def rates(key: Any, x: Any, c: Any) -> Any:
        first, second = jax.random.split(key)
        x = x if trial.transform is None else trial.transform(first, x)
        return terms.rate_per_dimension(draw(trial.model, params, second, x, c))

    try:
        keys = jax.random.split(key, len(some.x))
        found = np.asarray(jax.jit(jax.vmap(rates))(keys, some.x, some.c)).mean(axis=0).ravel()
    except (TypeError, ValueError):  # no prior, or a rate that is no sum over the dimensions
        found = None
    if found is not None and found.shape == (codes[0].size,):
        return found, "rate, nats"
    return codes.reshape(len(codes), -1).var(axis=0), "variance"
