"""Many settings and seeds of an experiment as one program: its command line, numbers and figures.

`--seeds 8 --sweep beta=1,2,4,8` trains 32 members at once, by `population.fit`. An experiment says
what a member is (`make`, `init`), what of it can be swept, and how a trained one is measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run
from vaejax import population
from vaejax.errors import at_least_one, wrong
from vaejax.train.population import Make, Population
from vaejax.trees import on_host
from vaejax.types import Key, Params, Transform

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options(run.Options):
    """`run.Options`, where several devices share the members, and what to sweep."""

    seeds: int = 1  # runs of every setting, with seeds from --seed up
    sweep: tuple[str, ...] = ()  # NAME=VALUE,VALUE,... of every hyperparameter to vary

    @property
    def several(self) -> bool:
        return self.seeds > 1 or bool(self.sweep)


def grid(config: Options, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Every combination of the values that are asked for, and the seeds: arrays `[members]`.

    `names`: the hyperparameters that may be swept, numbers that can be arrays.
    """
    known = sorted(names)
    at_least_one("--seeds", seeds=config.seeds)
    values: dict[str, list[float]] = {}
    for part in config.sweep:
        name, _, listed = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            fix = "--seeds N is for seeds; what changes shapes or programs takes runs of its own"
            raise wrong("--sweep", name, f"one of {', '.join(known)}", fix)
        if name in values:
            raise wrong("--sweep", f"{name} twice", "it once", "put all its values into one list")
        try:
            values[name] = [float(value) for value in listed.split(",")]
        except ValueError as error:
            raise wrong(
                "--sweep", part, "NAME=VALUE,VALUE,... of numbers", f"for instance {name}=1,2,4"
            ) from error
    seeds = range(config.seed, config.seed + config.seeds)
    return population.grid(**values, seed=seeds)


def settings(hyper: Mapping[str, np.ndarray]) -> list[Row]:
    """The hyperparameters of each member, as plain numbers."""
    members = zip(*(array.tolist() for array in hyper.values()), strict=True)
    return [dict(zip(hyper, values, strict=True)) for values in members]


def fit(
    config: Options,
    folder: Path,
    make: Make,
    init: Callable[[Row], tuple[Params, Key]],
    hyper: Mapping[str, np.ndarray],
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    transform: Transform | None = None,
    evaluate: Callable[[Any, Params, Key], Any] | None = None,
    evaluate_every: int = 1,
    checkpoint_every: int = 1,
) -> Population:
    """`population.fit` with all that the options say, its records and checkpoints in `folder`.

    `init(hyper) -> (parameters, key of the run)`, of one member, gets its numbers. What is
    returned lies on one device of this process.
    """
    starts = [init(setting) for setting in settings(hyper)]
    params, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    over = run.mesh(config)
    with run.logs(config, folder) as log:
        found = population.fit(
            make,
            dict(hyper),
            params,
            data,
            keys=keys,
            epochs=epochs,
            batch_size=batch_size,
            transform=transform,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            directory=folder / "checkpoints",
            checkpoint_every=checkpoint_every,
            resume=config.resume,
            mesh=over,
            log=log,
            progress=config.progress,
        )
    if over is None:
        return found
    state, best = (s._replace(params=run.local(s.params)) for s in (found.state, found.best))
    return found._replace(hyper=on_host(found.hyper), state=state, best=best)


def measured(
    hyper: Mapping[str, np.ndarray],
    found: Population,
    measure: Callable[[Row, Params], dict[str, float]],
) -> list[Row]:
    """Each member's hyperparameters and what `measure(hyper, params)` says of it, in floats.

    A frozen member's numbers are NaN, so that no mean counts it.
    """
    every = settings(hyper)
    numbers = {
        i: measure(every[i], jax.tree.map(lambda leaf, i=i: leaf[i], found.params))
        for i in np.flatnonzero(found.frozen < 0).tolist()
    }
    names = next(iter(numbers.values()))
    frozen = dict.fromkeys(names, float("nan"))
    return [{**setting, **numbers.get(i, frozen)} for i, setting in enumerate(every)]


def report(
    config: Options,
    folder: Path,
    hyper: Mapping[str, np.ndarray],
    found: Population,
    members: Sequence[Row],
    *,
    curve: str,
    labels: Mapping[str, str],
    facts: Mapping[str, Any],
    note: str,
) -> Row:
    """Write summary.json and the figures, print the table; returns what summary.json holds.

    `members`: from `measured`; `curve`: the metric whose course is drawn, in training and on the
    test split; `labels`: what axes say, with units, of hyperparameters, measured numbers and the
    curve; `facts`: what is the same for all members.
    """
    numbers = [name for name in members[0] if name not in hyper]
    rows = population.summarize(hyper, {n: [member[n] for member in members] for n in numbers})
    frozen = [
        {"member": i, "before_step": int(found.frozen[i])} | {n: members[i][n] for n in hyper}
        for i in np.flatnonzero(found.frozen >= 0).tolist()
    ]
    summary = {
        "members": list(members),
        "settings": rows,
        "frozen": frozen,
        **facts,
        "epochs": len(found.history["epoch"]),
        "seconds_train": run.seconds(folder),
    }
    run.write_json(folder / "summary.json", summary)
    swept = [name for name in hyper if name != "seed"]
    drawn = {"curves": drawn_curves(hyper, found, curve, labels)}
    if swept:
        drawn["sweep"] = drawn_sweep(swept, rows, numbers, labels)
    run.save_figures(folder, drawn)
    print(population.table(rows))
    shown = {"members": len(members), "seconds_train": summary["seconds_train"]}
    if frozen:
        shown["frozen, not in the means"] = frozen
    run.report(folder, shown, f"{note}; mean (standard deviation over the seeds)")
    return summary


def drawn_sweep(
    swept: list[str], rows: list[Row], numbers: list[str], labels: Mapping[str, str]
) -> Any:
    """Every number against the first swept hyperparameter, one line for each setting of the rest.

    Bars: standard deviation over the seeds.
    """
    from matplotlib.figure import Figure

    name, *rest = swept
    columns = min(len(numbers), 2)
    height = -(-len(numbers) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    settings = list(dict.fromkeys(tuple(row[n] for n in rest) for row in rows))
    places = [row[name] for row in rows]
    for axis, number in zip(axes, numbers, strict=False):
        for setting, colour in zip(settings, _colours(len(settings)), strict=True):
            line = [row for row in rows if tuple(row[n] for n in rest) == setting and row["finite"]]
            line.sort(key=lambda row: row[name])
            x, y, sd = ([row[n] for row in line] for n in (name, number, f"{number}_sd"))
            axis.errorbar(
                x,
                y,
                np.nan_to_num(sd),
                fmt="o-",
                ms=4,
                capsize=3,
                color=colour,
                label=_named(rest, setting),
            )
        if min(places) > 0 and max(places) >= 5 * min(places):
            axis.set_xscale("log")
        axis.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
        axis.minorticks_off()
        axis.set(xlabel=labels.get(name, name), ylabel=labels.get(number, number))
        _plain(axis)
    for axis in axes[len(numbers) :]:
        axis.remove()
    if rest:
        axes[0].legend(frameon=False, fontsize="small")
    most = max(row["members"] for row in rows)
    figure.suptitle(f"mean and standard deviation over {most} seeds" if most > 1 else "one seed")
    return figure


def drawn_curves(
    hyper: Mapping[str, np.ndarray], found: Population, curve: str, labels: Mapping[str, str]
) -> Any:
    """A metric over the epochs, in training and on the test split: mean over the seeds, and a band
    of one standard deviation, for each setting; frozen members are left out.
    """
    from matplotlib.figure import Figure

    swept = [name for name in hyper if name != "seed"]
    each = list(zip(*(hyper[name].tolist() for name in swept), strict=True))
    each = each or [()] * len(found.frozen)
    settings = list(dict.fromkeys(each))
    panels = {
        title: found.history[name]
        for title, name in (("training", curve), ("test split", f"eval/{curve}"))
        if name in found.history
    }
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        for setting, colour in zip(settings, _colours(len(settings)), strict=True):
            chosen = [i for i, one in enumerate(each) if one == setting and found.frozen[i] < 0]
            if not chosen:
                continue
            lines = values[:, chosen]
            known = ~np.isnan(lines).any(axis=1)
            x, mean = found.history["epoch"][known], lines[known].mean(axis=1)
            sd = lines[known].std(axis=1, ddof=int(len(chosen) > 1))
            marker = "." if known.sum() <= 50 else ""
            axis.plot(x, mean, color=colour, marker=marker, label=_named(swept, setting))
            axis.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="epoch", title=title)
        _plain(axis)
    axes[0].set_ylabel(labels.get(curve, curve))
    if swept and len(settings) <= 16:
        axes[0].legend(frameon=False, fontsize="small")
    return figure


def _named(names: Sequence[str], setting: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, setting, strict=True))


def _colours(count: int) -> Any:
    """From dark to light, in the order of the settings."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
