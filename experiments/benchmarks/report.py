"""Shows the rows of a comparison: a table, the bars that were to be reached, a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.suite import BARS, EPOCH_BARS, MEMORY_BAR, WORKLOADS

Row = dict[str, Any]
COLUMNS = {
    "compile s": ("compile_seconds", ".1f"),
    "ready s": ("ready_seconds", ".1f"),  # from the start of the process to the first burst's end
    "anon MB": ("rss_anon_peak_mb", ".0f"),
    "of peak": ("utilisation", ".1%"),  # matrix products alone
}


def print_table(name: str, rows: Sequence[Row]) -> None:
    """One line per variant; a ratio above 1 means that vaejax is faster (epoch: slower)."""
    about = WORKLOADS[name].about if name in WORKLOADS else "a whole process, one epoch of W1"
    over = "this / torch" if name == "epoch" else "vaejax / this"
    heads = (rows[0]["unit"], f"{over} (quartiles)", *COLUMNS)
    print(f"\n{name}: {about}")
    print("{:18s} {:>11s} {:>26s} {:>10s} {:>8s} {:>8s} {:>8s}".format("", *heads))
    for row in rows:
        spread = "{median:.2f} ({lower_quartile:.2f}-{upper_quartile:.2f})".format(**row["ratio"])
        cells = [
            "" if row.get(column) is None else format(row[column], form)
            for column, form in COLUMNS.values()
        ]
        line = (row["variant"], row["rate"]["median"], spread, *cells)
        print("{:18s} {:11.4g} {:>26s} {:>10s} {:>8s} {:>8s} {:>8s}".format(*line))
        if row.get("members", 1) > 1:
            print("  {members} models: {times_one_model:.2f} times the time of one".format(**row))


def bars(rows: Sequence[Row], platform: str) -> list[dict[str, Any]]:
    """Each bar with the value that was reached, and whether it is met.

    The bars are for two CPU cores. On another platform each says "no bar".
    """
    found = {(row["workload"], row["variant"]): row for row in rows}
    result = []

    def add(what: str, value: float, bar: float, met: bool) -> None:
        verdict = ("met" if met else "missed") if platform == "cpu" else "no bar"
        result.append({"what": what, "value": value, "bar": bar, "met": verdict})

    for (workload, variant), bar in BARS.items():
        if (row := found.get((workload, variant))) is not None:
            value = row["ratio"]["median"]
            add(f"{workload}: vaejax / {variant}, at least", value, bar, value >= bar)
    for name, bar in EPOCH_BARS.items():
        row = found.get(("epoch", f"vaejax_{name}"))
        if row is not None and row["against"] == "torch":
            value = row["ratio"]["median"]
            add(f"epoch, {name} cache: seconds / torch's, at most", value, bar, value <= bar)
    for workload in WORKLOADS:
        ours, theirs = (found.get((workload, v), {}) for v in ("vaejax", "torch_eager"))
        for when, name in {"cold": "rss_anon_peak_mb", "warm": "warm_rss_anon_peak_mb"}.items():
            if ours.get(name) and theirs.get("rss_anon_peak_mb"):
                value = ours[name] / theirs["rss_anon_peak_mb"]
                what = f"{workload}, {when} cache: peak of memory / torch_eager's, at most"
                add(what, value, MEMORY_BAR, value <= MEMORY_BAR)
    return result


def draw(rows: Sequence[Row], path: Path) -> None:
    """The ratios with their quartiles, a panel per workload, as a picture."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["workload"] for row in rows))
    counts = [sum(row["workload"] == name for row in rows) for name in names]
    figure = Figure(figsize=(8, 1 + 0.32 * sum(counts) + 0.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=counts)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        shown = [row for row in rows if row["workload"] == name]
        ratios = [row["ratio"] for row in shown]
        middle = [r["median"] for r in ratios]
        spread = [
            [r["median"] - r["lower_quartile"] for r in ratios],
            [r["upper_quartile"] - r["median"] for r in ratios],
        ]
        panel.barh(range(len(shown)), middle, xerr=spread, color="#4477aa", ecolor="#bb5566")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_yticks(range(len(shown)), [row["variant"] for row in shown])
        panel.invert_yaxis()
        over = "seconds / torch's" if name == "epoch" else "vaejax's rate / this one's"
        panel.set_title(f"{name}: {over}", loc="left", fontsize=9)
        if max(middle) > 30:
            panel.set_xscale("log")
    figure.savefig(path, dpi=120)
