"""The table in Markdown and as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reproduce.rows import LEFT_OUT, ROWS, Row

HEAD: tuple[str, ...] = ("row", "command", "data", "published", "expected", "reached")
HEAD += ("K, median ESS", "seeds", "s", "device")


def entry(row: Row, summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of one row: mean and standard deviation (n - 1) over its seeds.

    Args:
      row: the row.
      summaries: of its finished runs, by seed.
    """
    values = [float(row.read(found)) for found in summaries.values()]
    several = len(values) > 1
    return {
        "values": dict(zip(summaries, values, strict=True)),
        "mean": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if several else None,
        "holds": row.holds(float(np.mean(values))) if values else None,
        "seconds": [found["seconds_whole"] for found in summaries.values()],
        "samples": _samples(summaries),
        "devices": sorted({str(found.get("device", "")) for found in summaries.values()} - {""}),
    }


def _samples(summaries: Mapping[int, Mapping[str, Any]]) -> str:
    """K and the median effective sample size of the first run, where its summary has them.

    The samples of annealing are its chains.
    """
    first: Mapping[str, Any] = next(iter(summaries.values()), {})
    of = {name: v for name, v in first.items() if isinstance(v, int | float)}
    count = next(
        (v for n, v in of.items() if n.endswith(("nll_particles", "test_particles", "chains"))),
        None,
    )
    ess = [v for n, v in of.items() if n.endswith("ess_median")]
    said = [f"K = {count:g}"] if count is not None else []
    return ", ".join(said + [f"{value:.1f}" for value in ess])


def markdown(found: Mapping[str, Mapping[str, Any]], waiting: Mapping[str, str]) -> str:
    """The table, and what has not been run with its reason.

    Args:
      found: an `entry` by the name of its row.
      waiting: why a row has no number, by its name.
    """
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for name, row in ROWS.items():
        if name in found:
            lines.append(_line(_cells(row, found[name])))
    text = "\n".join(lines)
    left = [
        f"- {ROWS[name].title} (`{ROWS[name].command}`): {why}" for name, why in waiting.items()
    ]
    left += [f"- {title}: {why}" for title, why in LEFT_OUT.items()]
    return f"{text}\n\nNot in the table, or not whole:\n\n" + "\n".join(left) + "\n"


def _cells(row: Row, found: Mapping[str, Any]) -> Sequence[str]:
    spread = "" if found["sd"] is None else f" ({found['sd']:.2g})"
    reached = f"{found['mean']:.5g}{spread}"
    seeds = len(found["values"]) if row.seeds else ""
    return (
        row.title,
        f"`{row.command}`",
        row.images,
        row.published,
        row.expected,
        reached if found["holds"] else f"**{reached}**, missed",
        found["samples"],
        str(seeds),
        f"{np.mean(found['seconds']):.0f}",
        ", ".join(found["devices"]),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
