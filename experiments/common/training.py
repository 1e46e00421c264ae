"""Training with all that the options say: records, checkpoints, resume, devices."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.options import Options
from experiments.common.processes import local, mesh
from experiments.common.records import logs
from vaejax import checkpoint, train
from vaejax.arrays import on_host
from vaejax.errors import wrong
from vaejax.train import population
from vaejax.train.population import Make, Population
from vaejax.types import Key, Loss, Metrics, Params

__all__ = [
    "LABELS",
    "Row",
    "apart",
    "falling_adam",
    "fit",
    "fit_many",
    "keys",
    "settings",
    "stored",
    "together",
    "whole_run",
]

LABELS = {"learning_rate": "step size of Adam at the start", "loss": "loss, nats per example"}
"""What axes say of what all recipes have."""

Row = dict[str, Any]
"""Numbers by name: of a member, or of a setting."""


def keys(config: Any, count: int) -> Key:
    """So many keys from the seed of the config, `[count]`; the same ones at every call."""
    return jax.random.split(jax.random.key(config.seed), count)


def together(losses: Mapping[str, Loss]) -> Loss:
    """Several networks trained in one scalar, each as if alone, Adam being elementwise."""

    def loss(params: Any, key: Any, batch: Any, step: Any) -> Any:
        keys = dict(zip(losses, jax.random.split(key, len(losses)), strict=True))
        values = {n: one(params[n], keys[n], batch, step)[0] for n, one in losses.items()}
        return jnp.asarray(sum(values.values())), values

    return loss


def falling_adam(config: Any, size: int, **options: Any) -> optax.GradientTransformation:
    """Adam, its step size falling from `learning_rate` to 0 along a cosine over all the epochs.

    `config`: with `learning_rate`, `epochs` and `batch_size`; `size`: examples to train on.
    `options`: of `optax.adam`.
    """
    steps = config.epochs * (size // config.batch_size)
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps), **options)


def stored(option: str, folder: Path | None) -> Callable[[Params], Params] | None:
    """`like -> params` that reads the checkpoints in the folder of an option; None without one."""
    if folder is None:
        return None
    if not (folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())):
        fix = "name one that such a run has left"
        raise wrong(option, repr(str(folder)), "a folder of checkpoints", fix)
    return lambda like: checkpoint.load(folder, like=like)


def whole_run(
    recipe: str, loss: Loss, rate: float, steps: int, batch_size: int
) -> Callable[[Key, Params, Any], Params]:
    """`(key, params, x) -> params`: a run without records, compiled once; ValueError if it fails.

    Adam's step size falls from `rate` to 0 along a cosine.
    """
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    run = jax.jit(train.make_train(loss, adam, steps=steps, batch_size=batch_size))

    def fit(key: Key, params: Params, x: Any) -> Params:
        state, history = run(key, params, x)
        if not np.isfinite(history["loss"]).all():
            fix = "lower --learning-rate"
            raise wrong(f"{recipe}: training", "a loss not finite", "finite", fix)
        return state.params

    return fit


def fit(
    config: Options,
    folder: Path,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Any,
    *,
    evaluate: Callable[[Params, Key], Metrics] | None = None,
    **how: Any,
) -> train.Fitted:
    """`train.fit` with all that the options say, its records and checkpoints in `folder`.

    Over several devices, too, `evaluate` gets parameters that lie whole on one of this process's
    own, and so do those returned: what is done with them needs no other device or process.
    With `--ema` their average is kept, too.
    `how`: the other keyword arguments of `train.fit`: key, epochs, batch_size, transform, ...
    """
    over = mesh(config.devices)
    optimizer = _averaging(config, optimizer)
    measure = evaluate
    if over is not None and evaluate is not None:

        def measure(params: Params, key: Key) -> Metrics:
            return evaluate(local(params), key)

    with _kept(config, folder) as kept:
        fitted = train.fit(loss, optimizer, params, data, evaluate=measure, **kept, **how)
    return fitted if over is None else _on_one_device(fitted)


def fit_many(
    config: Options,
    folder: Path,
    make: Make,
    init: Callable[[Row], tuple[Params, Key]],
    hyper: Mapping[str, np.ndarray],
    data: Any,
    **how: Any,
) -> Population:
    """`population.fit` with all that the options say, its records and checkpoints in `folder`.

    `init(hyper) -> (parameters, key of the run)`, of one member, gets its numbers. What is
    returned lies on one device of this process. `how`: the other keyword arguments of
    `population.fit`: epochs, batch_size, transform, evaluate, ...
    """

    def averaging(hyper: Any) -> tuple[Loss, optax.GradientTransformation]:
        loss, optimizer = make(hyper)
        return loss, _averaging(config, optimizer)

    starts = [init(setting) for setting in settings(hyper)]
    params, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    with _kept(config, folder) as kept:
        found = population.fit(averaging, dict(hyper), params, data, keys=keys, **kept, **how)
    if kept["mesh"] is None:
        return found
    return _on_one_device(found)._replace(hyper=on_host(found.hyper))


@contextmanager
def _kept(config: Options, folder: Path) -> Iterator[dict[str, Any]]:
    """The options of a `fit` whose records and checkpoints are in `folder`, which is made."""
    over = mesh(config.devices)
    folder.mkdir(exist_ok=True)
    with logs(config, folder) as (log, log_step):
        yield {
            "directory": folder / "checkpoints",
            "resume": config.resume,
            "mesh": over,
            "norms": config.norms,
            "log": log,
            "log_step": log_step,
            "progress": config.progress,
        }


def apart(config: Options, fitted: Any) -> tuple[Any, Any]:
    """What `fit` or `fit_many` returned, as of the parameters alone; and as of their average.

    That one has the average, whole on one device, for its parameters, and what it was evaluated to
    for its history; it is None without `--ema`.
    """
    if not config.ema:
        return fitted, None
    start = "eval/average/"
    own = {name: v for name, v in fitted.history.items() if not name.startswith(start)}
    evaluated = {
        f"eval/{name.removeprefix(start)}": v
        for name, v in fitted.history.items()
        if name.startswith(start)
    }
    state = fitted.state._replace(params=local(fitted.average))
    return (
        fitted._replace(history=own),
        fitted._replace(history=own | evaluated, state=state),
    )


def _averaging(
    config: Options, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer, which keeps an average of the parameters where `--ema` asks for one."""
    return train.averaging(optimizer, config.ema) if config.ema else optimizer


def _on_one_device(fitted: Any) -> Any:
    """The same result with its parameters on one device of this process."""
    state, best = (s._replace(params=local(s.params)) for s in (fitted.state, fitted.best))
    return fitted._replace(state=state, best=best)


def settings(hyper: Mapping[str, np.ndarray]) -> list[Row]:
    """The hyperparameters of each member, as plain numbers."""
    members = zip(*(array.tolist() for array in hyper.values()), strict=True)
    return [dict(zip(hyper, values, strict=True)) for values in members]
