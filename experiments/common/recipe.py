"""The flow that recipes share: load, build, train, measure, draw, report.

A recipe says what is its own in a `Recipe`; `main` does the rest, for one run or for many.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.common import sweep
from experiments.common.folder import finish, open_folder, write_json, write_text
from experiments.common.options import Options, shrunk
from experiments.common.records import seconds
from experiments.common.training import Row, apart, fit, fit_many
from vaejax import evaluate
from vaejax.errors import wrong
from vaejax.train.population import mean_loss
from vaejax.types import Key, Loss, Params, Transform

__all__ = ["Recipe", "Trained", "Trial", "main", "train_trial"]


class Trial(NamedTuple):
    """A model that is ready to be trained.

    Args:
      model: what `measure` and `draw` get to work with; for `main` it may be anything.
      init: `init() -> params`, the parameters at the start.
      loss, optimizer: of the training; with swept numbers in them, which JAX may trace.
      data: the examples to train on.
      key: of the training.
      transform: stored examples to what the model sees.
      test: examples on which the loss is evaluated during training; None for no evaluation.
      yardstick: the loss that is evaluated there; by default the loss of the training.
      evaluate: `evaluate(params, key) -> numbers`, in place of that. Runs of several seeds cannot
        use it: they evaluate the loss on `test`, if that is given.
      epochs, batch_size, evaluate_every, checkpoint_every: as for `train.fit`; by default the
        config's own, or 1 where it has none.
      ready: `ready(params) -> params`: parameters trained before, in place of those at the start;
        then nothing is trained.
      more: other keyword arguments of `train.fit` (`indices`, `monitor`, `hook`).
    """

    model: Any
    init: Callable[[], Params]
    loss: Loss
    optimizer: optax.GradientTransformation
    data: Any
    key: Key
    transform: Transform | None = None
    test: Any = None
    yardstick: Loss | None = None
    evaluate: Any = None
    epochs: int | None = None
    batch_size: int | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    more: Mapping[str, Any] = {}
    ready: Callable[[Params], Params] | None = None


class Trained(NamedTuple):
    """A trial after training.

    Args:
      model: the trial's.
      params: parameters after the last step.
      history: the metrics of every epoch, arrays `[epochs]`; those of `test` begin with `eval/`.
      seconds: of the training, in all legs of a run that was resumed.
      average: the same of the average of the parameters that `--ema` keeps; None without it.
    """

    model: Any
    params: Params
    history: Mapping[str, np.ndarray]
    seconds: float
    average: Any = None


class Recipe(NamedTuple):
    """What is an experiment's own.

    Args:
      name: of the experiment; the run's folder is called by it and the data set.
      load: `load(config) -> data`, everything that is read or made before there is a model. It
        refuses what would train on nonsense, before a folder is made.
      build: `build(config, data)`: one Trial, or several by name, each of which trains in a folder
        of its own. Swept numbers of `config` may be arrays that JAX traces.
      measure: `measure(config, data, trained) -> (numbers, kept)`: the numbers of summary.json,
        and what else `draw` needs. `trained` is a Trained, or several by name as in `build`.
      draw: `draw(config, data, trained, kept) -> figures` by name, figures/NAME.png; a string is
        written to NAME.txt.
      note: what the numbers are, printed below them; or `note(config, summary)`.
      smoke: the options that `--smoke` replaces.
      swept: the options that `--sweep` may vary, numbers that can be arrays; or `swept(config)`.
        They change neither the data nor the parameters at the start.
      labels: what an axis says, with units, of a swept option, the curve, or a measured number.
        Of many runs the measured numbers that have a label are compared.
      curve: the metric whose course is drawn for many runs.
      remade: those of the swept options that the model itself holds.
      free: options that may change when a run is resumed: `epochs`, where no schedule spans them.
      dataset: the option that the folder is called by.
      then: `then(config, folder)`: what to do next, the last line that a single run prints.
    """

    name: str
    load: Callable[[Any], Any]
    build: Callable[[Any, Any], Any]
    measure: Callable[[Any, Any, Any], tuple[dict[str, Any], Any]]
    draw: Callable[[Any, Any, Any, Any], dict[str, Any]]
    note: str | Callable[[Any, dict[str, Any]], str]
    smoke: Mapping[str, Any]
    swept: Collection[str] | Callable[[Any], Collection[str]] = ()
    labels: Mapping[str, str] = {}
    curve: str = "loss"
    remade: Collection[str] = ()
    free: Collection[str] = ()
    dataset: str = "dataset"
    then: Callable[[Any, Path], str] | None = None


def main(recipe: Recipe, config: Any) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    config = shrunk(config, **recipe.smoke)
    if getattr(config, "several", False):
        return _many(recipe, config)
    data = recipe.load(config)
    trials = recipe.build(config, data)
    folder = open_folder(config, name=_name(recipe, config), free=recipe.free)
    trained: Any
    alone: Row = {}
    if isinstance(trials, Trial):
        trained = train_trial(config, folder, trials)
        if trials.ready is None:
            epochs = len(trained.history["epoch"])
            alone = {"epochs": epochs, "seconds_train": trained.seconds}
    else:
        trained = {n: train_trial(config, folder / n, trial) for n, trial in trials.items()}
    print("trained; now what is measured, and the figures")
    with evaluate.progress(config.progress):
        numbers, kept = _measured(recipe, config, data, trained)
    numbers = {**numbers, **alone}
    write_json(folder / "summary.json", numbers)  # whatever becomes of the pictures
    figures = recipe.draw(config, data, trained, kept)
    texts = {name: figures.pop(name) for name in list(figures) if isinstance(figures[name], str)}
    for name, text in texts.items():
        write_text(folder / f"{name}.txt", text)
    finish(folder, numbers, figures, _note(recipe, config, numbers))
    if recipe.then is not None:
        print(f"next: {recipe.then(config, folder)}")
    return numbers


def train_trial(config: Options, folder: Path, trial: Trial) -> Trained:
    """Train one model, with its records and checkpoints in `folder`."""
    if trial.ready is not None:
        return Trained(trial.model, trial.ready(trial.init()), {}, 0.0)
    measure = trial.evaluate
    if measure is None and trial.test is not None:
        judged = trial.yardstick or trial.loss
        measure = partial(evaluate.mean_loss, judged, data=trial.test, transform=trial.transform)
    fitted = fit(
        config,
        folder,
        trial.loss,
        trial.optimizer,
        trial.init(),
        trial.data,
        key=trial.key,
        evaluate=measure,
        **_how(config, trial),
        **trial.more,
    )
    own, mean = apart(config, fitted)

    def trained(one: Any, average: Trained | None = None) -> Trained:
        return Trained(trial.model, one.params, one.history, seconds(folder), average)

    return trained(own, None if mean is None else trained(mean))


def _measured(recipe: Recipe, config: Any, data: Any, trained: Any) -> tuple[dict[str, Any], Any]:
    """What `measure` finds of the parameters; under `average`, what it finds of their average."""
    numbers, kept = recipe.measure(config, data, trained)
    if not config.ema:
        return numbers, kept
    several = not isinstance(trained, Trained)
    each = trained if several else {"": trained}
    averages = {name: one.average or one for name, one in each.items()}
    means = averages if several else averages[""]
    return {**numbers, "average": recipe.measure(config, data, means)[0]}, kept


def _many(recipe: Recipe, config: Any) -> dict[str, Any]:
    """`main` for every setting and seed of a sweep at once.

    All members train on the data of the first seed. Each starts from the parameters, and is
    measured on the test examples, that its own run would have.
    """
    swept = recipe.swept(config) if callable(recipe.swept) else recipe.swept
    hyper = sweep.grid(config, swept)

    @cache
    def loaded(seed: int) -> Any:
        return recipe.load(replace(config, seed=seed))

    def trials(hyper: Mapping[str, Any]) -> dict[str, Trial]:
        """The trials of one member; a traced seed stands for none, the first one's data serve."""
        own = {name: value for name, value in hyper.items() if name != "seed"}
        seed = hyper["seed"] if isinstance(hyper["seed"], int) else config.seed
        built = recipe.build(replace(config, seed=seed, **own), loaded(seed))
        return {"": built} if isinstance(built, Trial) else built

    first = trials({"seed": config.seed})
    if any(trial.ready is not None for trial in first.values()):
        fix = "leave one of the two out"
        raise wrong("--seeds, --sweep", "a run that was trained before", "runs to train", fix)
    folder = open_folder(config, name=_name(recipe, config, "sweep"), free=recipe.free)
    fitted = {name: _population(config, folder / name, trials, name, hyper) for name in first}
    of_both = {name: apart(config, one) for name, one in fitted.items()}
    found = {name: own for name, (own, _) in of_both.items()}
    models: dict[Any, dict[str, Trial]] = {}  # a new model would be compiled anew

    def measure(hyper: Row, params: Mapping[str, Any], history: Any) -> Row:
        same = tuple(hyper.get(name) for name in recipe.remade)
        if same not in models:
            models[same] = trials(hyper)
        trained: Any = {
            name: Trained(each.model, params[name], history[name], seconds(folder / name))
            for name, each in models[same].items()
        }
        member = replace(config, **hyper)
        alone = trained.get("", trained)
        return recipe.measure(member, loaded(hyper["seed"]), alone)[0]

    members = sweep.measured(hyper, found, measure, progress=config.progress)
    if config.ema:
        means = {name: mean for name, (_, mean) in of_both.items()}
        of_means = sweep.measured(hyper, means, measure, progress=config.progress)
        members = [
            row | {f"average_{name}": value for name, value in mean.items()}
            for row, mean in zip(members, of_means, strict=True)
        ]
    numbers = dict(members[0])
    return sweep.report(
        folder,
        hyper,
        found,
        members,
        curve=recipe.curve,
        labels=recipe.labels,
        note=_note(recipe, config, numbers),
    )


def _population(
    config: Options, folder: Path, trials: Any, name: str, hyper: Mapping[str, np.ndarray]
) -> Any:
    """Train one of a recipe's models for all members."""

    def make(hyper: Any) -> tuple[Loss, optax.GradientTransformation]:
        trial = trials(hyper)[name]
        return trial.loss, trial.optimizer

    def judged(hyper: Any) -> tuple[Loss, optax.GradientTransformation]:
        trial = trials(hyper)[name]
        return trial.yardstick or trial.loss, trial.optimizer

    @cache  # what can be swept does not change the start
    def started(seed: int) -> tuple[Params, Key]:
        trial = trials({"seed": seed})[name]
        return trial.init(), trial.key

    def init(hyper: Row) -> tuple[Params, Key]:
        params, key = started(hyper["seed"])
        return params, jax.random.clone(key)

    trial = trials({"seed": config.seed})[name]
    measure = None
    if trial.test is not None:
        measure = mean_loss(judged, trial.test, transform=trial.transform)
    return fit_many(
        config,
        folder,
        make,
        init,
        hyper,
        trial.data,
        evaluate=measure,
        **_how(config, trial),
    )


def _how(config: Any, trial: Trial) -> dict[str, Any]:
    """How long a trial is trained and how often it is looked at."""
    names = "epochs", "batch_size", "evaluate_every", "checkpoint_every"
    given = {name: getattr(trial, name) for name in names}
    own = {n: getattr(config, n, 1) if value is None else value for n, value in given.items()}
    return {"transform": trial.transform, **own}


def _name(recipe: Recipe, config: Any, *more: str) -> str:
    """The name of a run's folder under runs/."""
    of = getattr(config, recipe.dataset, None)
    return "-".join([recipe.name, *more, *([] if of is None else [Path(of).stem])])


def _note(recipe: Recipe, config: Any, numbers: dict[str, Any]) -> str:
    return recipe.note if isinstance(recipe.note, str) else recipe.note(config, numbers)
