"""How time and memory grow with the sizes of a problem, and how they should.

    python -m experiments.benchmarks.growth [--only batch mig] [--out FILE.png]

Each curve has four sizes. Each size is a process of its own, and the four are timed in turn. Prints
two tables in Markdown. `--out` writes the picture, and the numbers as JSON beside it. Method and
figures: experiments/benchmarks/README.md.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import common
from experiments.benchmarks import processes
from experiments.benchmarks.options import Options
from experiments.benchmarks.processes import Worker
from experiments.benchmarks.suite import IWAE, WORKLOADS, Burst, Sizes, summary

W1 = replace(WORKLOADS["W1-binary"], images=8192)
FITTED = 3  # the largest sizes, whose exponent is fitted
SLACK = 0.15  # an exponent above the expected one by more is marked
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
LEAST = 20.0  # MB: less is lost in what compilation leaves behind


class Expected(NamedTuple):
    """An exponent, and why it is that."""

    exponent: float
    why: str


class Curve(NamedTuple):
    """A cost against one size.

    what, against: the cost, and what is varied, for the tables and the picture.
    workload: what `in_growth.made` calls it.
    sizes: from small to large. The time of a burst is divided by its `steps`.
    place: where a size stands on the axis; None: at its number of parameters.
    seconds, memory: how the two should grow.
    """

    what: str
    against: str
    workload: str
    sizes: list[Sizes]
    place: Callable[[Sizes], float] | None
    seconds: Expected
    memory: Expected


def varied(base: Sizes, name: str, values: Sequence[Any], steps: Sequence[int]) -> list[Sizes]:
    """`base` with one field varied, and bursts of so many steps."""
    return [replace(base, **{name: v}, steps=n) for v, n in zip(values, steps, strict=True)]


ONCE = (1, 1, 1, 1)
SMALL = replace(W1, side=8, latent=5)  # little data, which hide nothing of what a measure needs
CURVES = {
    "parameters": Curve(
        "training step of W1 with two layers of 256 to 2048 units",
        "parameters",
        "training",
        varied(W1, "hidden", [(w, w) for w in (256, 512, 1024, 2048)], (24, 12, 6, 2)),
        None,
        Expected(1, "a weight is used three times per example, and updated once"),
        Expected(1, "weights, gradients and Adam's two moments"),
    ),
    "batch": Curve(
        "training step of W1",
        "batch",
        "training",
        varied(W1, "batch", (64, 256, 1024, 4096), (32, 12, 4, 2)),
        lambda sizes: sizes.batch,
        Expected(1, "examples share nothing but the update"),
        Expected(1, "activations"),
    ),
    "particles": Curve(
        "training step of W2 (IWAE)",
        "particles k",
        "training",
        varied(replace(IWAE, images=8192), "particles", (5, 20, 80, 320), (32, 16, 6, 2)),
        lambda sizes: sizes.particles,
        Expected(1, "each is decoded and weighed alone"),
        Expected(1, "activations of all particles, for the gradient"),
    ),
    "likelihood-n": Curve(
        "`log_likelihood`, K = 50",
        "examples n",
        "likelihood",
        varied(replace(WORKLOADS["W4"], particles=50), "images", (40, 160, 640, 2560), ONCE),
        lambda sizes: sizes.images,
        Expected(1, "examples are scored alone"),
        Expected(1, "the images; a chunk is always 20 of them"),
    ),
    "likelihood-K": Curve(
        "`log_likelihood`, n = 20",
        "particles K",
        "likelihood",
        varied(replace(WORKLOADS["W4"], images=20), "particles", (100, 400, 1600, 6400), ONCE),
        lambda sizes: sizes.particles,
        Expected(1, "each is decoded and weighed alone"),
        Expected(0, "sums stream over chunks of 50"),
    ),
    "members": Curve(
        "step of a `population` of W1",
        "members",
        "population",
        varied(W1, "members", (2, 4, 8, 16), (16, 8, 4, 2)),
        lambda sizes: sizes.members,
        Expected(1, "members share nothing but the images and their order"),
        Expected(1, "weights, moments and activations of each"),
    ),
    "decompose": Curve(
        "`decompose`, 5 dimensions, 1000 draws",
        "examples n",
        "decompose",
        varied(replace(SMALL, particles=1000), "images", (250, 1000, 4000, 16_000), ONCE),
        lambda sizes: sizes.images,
        Expected(1, "each of the draws is scored under all n posteriors"),
        Expected(1, "the images, and a few numbers of each; a chunk of scores is always the same"),
    ),
    "decompose-pairs": Curve(
        "`decompose`, 5 dimensions, n draws",
        "examples n",
        "decompose",
        [replace(SMALL, images=n, particles=n, steps=1) for n in (512, 1024, 2048, 4096)],
        lambda sizes: sizes.images,
        Expected(2, "all pairs of a draw and a posterior"),
        Expected(1, "the draws and their sums; pairs come in chunks"),
    ),
    "mig": Curve(
        "`mig`, 20 dimensions, 5 factors",
        "examples n",
        "mig",
        varied(W1, "images", (4096, 16_384, 65_536, 262_144), ONCE),
        lambda sizes: sizes.images,
        Expected(1, "counts; sorting's log n adds 0.1"),
        Expected(1, "codes, factors and their places"),
    ),
}


@dataclass(frozen=True)
class Config(Options):
    only: tuple[str, ...] = ()  # parameters, batch, particles, likelihood-n ...; none: all
    rounds: int = 5  # times that the sizes of a curve are run, in turn


class Here:
    """What a Worker is, in this process and without its memory: for the dry run."""

    def __init__(self, workload: str, sizes: Sizes):
        from experiments.benchmarks import in_growth

        self._burst: Burst = in_growth.made(workload, sizes)
        self._burst.run()
        self.facts: dict[str, Any] = self._burst.facts | {"mb": 0.0, "rss_anon_peak_mb": 0.0}

    def burst(self) -> dict[str, float]:
        """Seconds of one burst, and its last loss."""
        began = time.perf_counter()
        loss = self._burst.run()
        return {"seconds": time.perf_counter() - began, "loss": loss}

    def stop(self) -> None:
        """Nothing has to be ended."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print, write and draw; returns what the JSON file holds."""
    if unknown := set(config.only) - set(CURVES):
        raise SystemExit(f"--only: got {sorted(unknown)}, expected some of {list(CURVES)}")
    if config.smoke:  # what runs once need not be optimised
        os.environ.setdefault("XLA_FLAGS", QUICK)
    began = time.perf_counter()
    # A process of its own looks at the device, so that this one takes none of its memory.
    machine = common.circumstances() if config.smoke else processes.probe("jax", "32")
    curves = []
    with tempfile.TemporaryDirectory() as cache:
        for name in config.only or CURVES:
            rows = _measured(config, CURVES[name], machine["platform"] != "cpu", Path(cache))
            curves.append(fitted(name, CURVES[name], rows))
            print(f"{name}: {time.perf_counter() - began:.0f} s")
    facts = {name: machine[name] for name in ("platform", "device", "python", "commit", "versions")}
    found = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        **facts,
        "curves": curves,
        "seconds": time.perf_counter() - began,
    }
    print("\n" + sizes_table(curves) + "\n\n" + exponents_table(curves))
    if config.out is not None:
        path = config.out.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        common.write_json(path.with_suffix(".json"), found)
        draw(curves, path.with_suffix(".png"))
        print(f"\n{path.with_suffix('.png').resolve()}, and {path.with_suffix('.json').name}")
    return found


def _measured(config: Config, curve: Curve, accelerator: bool, cache: Path) -> list[dict[str, Any]]:
    """One row per size: its place, seconds of each round, and memory."""
    sizes = _shrunk(curve) if config.smoke else curve.sizes

    def start(one: Sizes) -> Worker | Here:
        if config.smoke:
            return Here(curve.workload, one)
        request = {"workload": curve.workload, "variant": "growth", "sizes": asdict(one)}
        return Worker(request, accelerator=accelerator, cache=cache)

    # The largest first, so that the last one to start is soon ready.
    with ThreadPoolExecutor(1 if config.smoke else 2) as pool:
        starting = [pool.submit(start, one) for one in reversed(sizes)][::-1]
    try:
        workers = [future.result() for future in starting]
        seconds: list[list[float]] = [[] for _ in workers]
        for _ in range(2 if config.smoke else config.rounds):
            for worker, one, found in zip(workers, sizes, seconds, strict=True):
                found.append(worker.burst()["seconds"] / one.steps)
    finally:
        for future in starting:
            if future.exception() is None:
                future.result().stop()
    return [
        {
            "place": curve.place(one) if curve.place else worker.facts["parameters"],
            "sizes": asdict(one),
            "seconds": summary(found),
            "mb": worker.facts["mb"],
            "process_mb": worker.facts["rss_anon_peak_mb"],
        }
        for worker, one, found in zip(workers, sizes, seconds, strict=True)
    ]


def _shrunk(curve: Curve) -> list[Sizes]:
    """The first two sizes at so small a scale that they run in a moment."""
    from experiments.benchmarks import in_growth

    tiny = in_growth.tiny(curve.sizes[0])
    fields = ("hidden", "batch", "particles", "images", "members")
    varied = [f for f in fields if getattr(curve.sizes[0], f) != getattr(curve.sizes[1], f)]
    double = {"hidden": (16,), **{f: 2 * getattr(tiny, f) for f in fields[1:]}}
    return [tiny, replace(tiny, **{f: double[f] for f in varied})]


def fitted(name: str, curve: Curve, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The curve with its exponents: of time in each round, of memory once."""
    places, memory = (np.array([row[name] for row in rows]) for name in ("place", "mb"))
    rounds = np.array([row["seconds"]["rounds"] for row in rows])
    last = slice(-FITTED, None)
    more = memory - memory[0]  # than the smallest size: without Python and libraries
    seen = np.flatnonzero(more >= LEAST)[-FITTED:]
    return {
        "name": name,
        "what": curve.what,
        "against": curve.against,
        "rows": rows,
        "fitted": places[last].tolist(),
        "exponent": summary([slope(places[last], each[last]) for each in rounds.T]),
        "expected": curve.seconds._asdict(),
        "memory_fitted": places[seen].tolist(),
        "memory_exponent": slope(places[seen] - places[0], more[seen]) if len(seen) > 1 else None,
        "memory_expected": curve.memory._asdict(),
    }


def slope(places: Any, values: Any) -> float:
    """The exponent e of values = constant places^e, by least squares of the logarithms."""
    return float(np.polyfit(np.log(places), np.log(values), 1)[0])


def sizes_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: each size with its time and memory."""
    lines = [
        "| cost | size | ms (quartiles) | running, MB | process, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for curve in curves:
        for i, row in enumerate(curve["rows"]):
            ms = {k: _short(1e3 * v) for k, v in row["seconds"].items() if k != "rounds"}
            spread = "{median} ({lower_quartile} to {upper_quartile})".format(**ms)
            cells = (
                "" if i else curve["what"],
                f"{row['place']:,.0f}" + ("" if i else f" {curve['against']}"),
                spread,
                f"{row['mb']:.0f}",
                f"{row['process_mb']:.0f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exponents_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the exponents found beside the expected ones; one that is too high is marked."""
    lines = [
        "| cost | fitted over | time: found | expected | why | memory: found | expected | why |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for curve in curves:
        time, memory = curve["expected"], curve["memory_expected"]
        lower, upper = (curve["exponent"][f"{q}_quartile"] for q in ("lower", "upper"))
        found = f"{curve['exponent']['median']:.2f} ({lower:.2f} to {upper:.2f})"
        held = curve["memory_exponent"]
        cells = (
            curve["what"],
            f"{curve['fitted'][0]:,.0f} to {curve['fitted'][-1]:,.0f} {curve['against']}",
            _marked(found, lower, time["exponent"]),
            f"{time['exponent']:g}",
            time["why"],
            "flat" if held is None else _marked(f"{held:.2f}", held, memory["exponent"]),
            f"{memory['exponent']:g}",
            memory["why"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel per curve: time and memory against the size, and how they should grow."""
    from matplotlib.figure import Figure

    columns = min(len(curves), 3)
    height = -(-len(curves) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * height), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for panel, curve in zip(panels, curves, strict=False):
        places = np.array([row["place"] for row in curve["rows"]])
        middle, low, high = (
            1e3 * np.array([row["seconds"][name] for row in curve["rows"]])
            for name in ("median", "lower_quartile", "upper_quartile")
        )
        memory = np.array([row["mb"] for row in curve["rows"]])
        panel.plot(places, middle, marker="o", markersize=4, color="#4477aa")
        power = middle[-1] * (places / places[-1]) ** curve["expected"]["exponent"]
        panel.plot(places, power, linestyle="--", linewidth=1, color="#4477aa", alpha=0.6)
        panel.errorbar(places, middle, [middle - low, high - middle], fmt="none", ecolor="#4477aa")
        other = panel.twinx()
        other.plot(places, memory, marker="s", markersize=4, color="#bb5566")
        other.set(ylim=(0, 1.15 * max(*memory, 1)))
        panel.set(xscale="log", yscale="log", ylim=_range(middle))
        for axis in (panel, other):
            axis.spines["top"].set_visible(False)
        panel.set_ylabel("ms", color="#4477aa")
        other.set_ylabel("MB", color="#bb5566")
        panel.set_xticks(places, [f"{place:,.0f}" for place in places], fontsize=8)
        panel.minorticks_off()
        panel.set_xlabel(curve["against"])
        panel.set_title(curve["what"].replace("`", ""), loc="left", fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[len(curves) :]:
        panel.remove()
    figure.suptitle(
        "time (circles; dashed: growth as expected), and memory while it runs (squares)",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


def _range(values: Any) -> tuple[float, float]:
    """Limits of an axis: a decade at least, so that what hardly grows looks flat."""
    low, high = float(np.min(values)) / 1.6, float(np.max(values)) * 1.6
    return min(low, high / 10), high


def _short(value: float) -> str:
    """Three digits: 0.123, 12.3, 1230."""
    return f"{float(f'{value:.3g}'):g}"


def _marked(text: str, found: float, expected: float) -> str:
    return f"**{text}**" if found > expected + SLACK else text


if __name__ == "__main__":
    main(common.parse({"all": Config()}, __doc__ or ""))
