"""Many settings and seeds of an experiment as one program: its grid, its numbers, its report.

`--seeds 8 --sweep beta=1,2,4,8` trains 32 members at once, by `population.fit`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.common.folder import finish
from experiments.common.limits import check, check_number
from experiments.common.options import SweepOptions
from experiments.common.records import seconds
from experiments.common.sweep_figures import drawn_curves
from experiments.common.training import Row, settings
from vaejax import plot
from vaejax.errors import wrong
from vaejax.train import population
from vaejax.train.population import Population

__all__ = ["compared", "flat", "frozen", "grid", "measured", "report"]


def grid(config: SweepOptions, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Every combination of the values that are asked for, and the seeds: arrays `[members]`.

    `names`: the hyperparameters that may be swept, numbers that can be arrays.
    """
    known = sorted(names)
    check(config)
    values: dict[str, list[float]] = {}
    for part in config.sweep:
        name, _, listed = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            fix = "--seeds N is for seeds; what changes shapes or programs takes runs of its own"
            expected = f"one of {', '.join(known)}" if known else "nothing here: only --seeds"
            raise wrong("--sweep", repr(name), expected, fix)
        if name in values:
            raise wrong("--sweep", f"{name} twice", "it once", "put all its values into one list")
        try:
            values[name] = [float(value) for value in listed.split(",")]
        except ValueError as error:
            raise wrong(
                "--sweep", part, "NAME=VALUE,VALUE,... of numbers", f"for instance {name}=1,2,4"
            ) from error
        for value in values[name]:
            check_number(type(config), name, value)
    seeds = range(config.seed, config.seed + config.seeds)
    return population.grid(**values, seed=seeds)


def frozen(found: Mapping[str, Population]) -> dict[int, int]:
    """The members that were frozen in any of the populations, and the step before which."""
    stops = np.stack([one.frozen for one in found.values()])
    return {
        int(i): int(stops[:, i][stops[:, i] >= 0].min())
        for i in np.flatnonzero((stops >= 0).any(axis=0))
    }


def measured(
    hyper: Mapping[str, np.ndarray],
    found: Mapping[str, Population],
    measure: Callable[[Row, Mapping[str, Any], Mapping[str, Any]], Row],
    *,
    progress: bool = False,
) -> list[Row]:
    """What `measure(hyper, params, history)` says of each member.

    Args:
      hyper: the hyperparameters, arrays `[members]` by name.
      found: the population of each of the recipe's models.
      measure: gets one member's hyperparameters, and its parameters and history by model.
      progress: whether to show a bar.
    Returns:
      Each member's numbers; none of a member that was frozen.
    """
    stopped = frozen(found)
    rows: list[Row] = []
    bar = tqdm(settings(hyper), desc="measuring", unit=" members", delay=1.0, disable=not progress)
    for i, setting in enumerate(bar):
        params = {name: _member(one.params, i) for name, one in found.items()}
        history = {name: _history(one, i) for name, one in found.items()}
        rows.append({} if i in stopped else flat(measure(setting, params, history)))
    return rows


def compared(
    hyper: Mapping[str, np.ndarray], rows: Sequence[Row], labels: Mapping[str, str]
) -> tuple[list[Row], Row]:
    """What the members differ in, and what is the same for all.

    Returns:
      For each member its hyperparameters and the numbers that have a label, in floats, NaN for a
      frozen one so that no mean counts it; and the rest, where all members agree on it.
    """
    first, *others = (row for row in rows if row)
    names = [name for name in first if name in labels]
    missing = dict.fromkeys(names, float("nan"))
    members = [
        setting | ({name: float(row[name]) for name in names} if row else missing)
        for setting, row in zip(settings(hyper), rows, strict=True)
    ]
    facts = {
        name: value
        for name, value in first.items()
        if name not in labels and all(row[name] == value for row in others)
    }
    return members, facts


def report(
    folder: Path,
    hyper: Mapping[str, np.ndarray],
    found: Mapping[str, Population],
    rows: Sequence[Row],
    *,
    curve: str,
    labels: Mapping[str, str],
    note: str,
) -> Row:
    """Write summary.json and the figures, and print the table.

    Args:
      folder: of the run.
      hyper, found: as for `measured`.
      rows: from `measured`.
      curve: the metric whose course is drawn, in training and on the test examples.
      labels: what axes say, with units, of hyperparameters, measured numbers and the curve.
      note: what the numbers are.
    Returns:
      What summary.json holds.
    """
    labels = {
        **labels,
        **{f"{m}_{n}": f"{m}: {label}" for m in found for n, label in labels.items()},
    }
    labels |= {f"average_{n}": f"average of parameters: {label}" for n, label in labels.items()}
    members, facts = compared(hyper, rows, labels)
    numbers = [name for name in members[0] if name not in hyper]
    table = population.summarize(hyper, {n: [member[n] for member in members] for n in numbers})
    stopped = [
        {"member": i, "before_step": step} | {n: members[i][n] for n in hyper}
        for i, step in frozen(found).items()
    ]
    summary = {
        "members": members,
        "settings": table,
        "frozen": stopped,
        **facts,
        "epochs": max(len(one.history["epoch"]) for one in found.values()),
        "seconds_train": sum(seconds(folder / name) for name in found),
    }
    figures = {
        "_".join(filter(None, ["curves", name])): drawn_curves(hyper, one, curve, labels)
        for name, one in found.items()
    }
    swept = [name for name in hyper if name != "seed"]
    if swept:
        each = {name: [member[name] for member in members] for name in numbers}
        figures["sweep"] = plot.sweep(hyper, each, labels=labels)
    print(population.table(table))
    shown = {"members": len(members), "seconds_train": summary["seconds_train"]}
    if stopped:
        shown["frozen, not in the means"] = stopped
    note = f"{note}; mean (standard deviation over the seeds)"
    finish(folder, summary, figures, note, shown=shown)
    return summary


def flat(numbers: Row) -> Row:
    """The numbers, with those inside another dictionary by both names: `NAME_NUMBER`."""
    found: Row = {}
    for name, value in numbers.items():
        inside = value.items() if isinstance(value, dict) else ()
        found |= {f"{name}_{n}": v for n, v in inside} if inside else {name: value}
    return found


def _member(params: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], params)


def _history(one: Population, i: int) -> dict[str, np.ndarray]:
    return {
        name: values[:, i] if values.ndim == 2 else values for name, values in one.history.items()
    }
