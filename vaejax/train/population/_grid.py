"""The settings of a population's members, and what their results are on average."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vaejax.batch import size_of
from vaejax.errors import at_least_one, wrong
from vaejax.types import describe


def grid(**values: Iterable[Any]) -> dict[str, np.ndarray]:
    """Every combination of some values, one for each member of a population.

    Args:
      values: the values of each hyperparameter, by its name.
    Returns:
      Arrays `[members]` by name; the last name changes first.
    Raises:
      ValueError: where there is no value, and where one comes twice: the same member again would
        count as a seed.
    Example:
      >>> from vaejax.train import population
      >>> hyper = population.grid(beta=[1.0, 4.0], seed=range(3))
      >>> {name: values.tolist() for name, values in hyper.items()}
      {'beta': [1.0, 1.0, 1.0, 4.0, 4.0, 4.0], 'seed': [0, 1, 2, 0, 1, 2]}
    """
    for name, one in values.items():
        if isinstance(one, str | Mapping) or not hasattr(one, "__iter__"):
            got, fix = describe(one), f"such as {name}=[1.0, 4.0]"
            raise wrong(f"population.grid: {name}", got, "a list of values", fix, TypeError)
    lists = {name: list(one) for name, one in values.items()}
    at_least_one("population.grid", **{name: len(one) for name, one in lists.items()})
    for name, one in lists.items():
        if np.array(one).dtype == object:
            fix = f"choose by a number inside of make, such as {name}=range(2)"
            raise wrong(f"population.grid: {name}", describe(one), "numbers", fix, TypeError)
        if len({value.tobytes() for value in np.array(one)}) < len(one):
            fix = "leave out what is there already; seed=range(8) makes eight runs of each setting"
            raise wrong(f"population.grid: {name}", one, "each value once", fix)
    members = list(itertools.product(*lists.values()))
    return {name: np.array([m[i] for m in members]) for i, name in enumerate(lists)}


def summarize(
    hyper: Mapping[str, Any], values: Mapping[str, Any], *, over: str = "seed"
) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds for each setting of the other hyperparameters.

    Args:
      hyper: arrays `[members]` by name, as `grid` makes them.
      values: numbers `[members]` by name.
      over: the name of the hyperparameter that is averaged over.
    Returns:
      A row for each setting: its hyperparameters; `members`, how many there are; `finite`, how many
      of them have all values finite, over which alone the rest is taken; and, for each of the
      values, `NAME` and `NAME_sd` (with n - 1; NaN for one member), in its unit.
    """
    names = [name for name in hyper if name != over]
    columns = [np.asarray(hyper[name]) for name in names]
    found = {name: np.asarray(value, float) for name, value in values.items()}
    settings: dict[tuple[Any, ...], list[int]] = {}
    for i in range(size_of((*columns, *found.values()))):
        settings.setdefault(tuple(str(column[i]) for column in columns), []).append(i)
    rows = []
    for chosen in settings.values():
        row: dict[str, Any] = {
            n: c[chosen[0]].tolist() for n, c in zip(names, columns, strict=True)
        }
        fine = [i for i in chosen if all(np.isfinite(value[i]) for value in found.values())]
        row |= {"members": len(chosen), "finite": len(fine)}
        for name, value in found.items():
            row[name] = float(value[fine].mean()) if fine else np.nan
            row[f"{name}_sd"] = float(value[fine].std(ddof=1)) if len(fine) > 1 else np.nan
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summarize` as text.

    Args:
      rows: what `summarize` returned.
    Returns:
      A line of names, then one for each row: settings, members that are finite, mean (sd).
    """
    values = [name[:-3] for name in rows[0] if name.endswith("_sd")]
    counts = ("members", "finite")
    spread = {name + "_sd" for name in values}
    settings = [n for n in rows[0] if n not in (*counts, *values) and n not in spread]
    lines = [[*settings, "finite", *values]]
    for row in rows:
        numbers = [f"{row[name]:.5g} ({row[name + '_sd']:.2g})" for name in values]
        finite = f"{row['finite']} of {row['members']}"
        lines.append([*(f"{row[name]}" for name in settings), finite, *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
