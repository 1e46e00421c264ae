"""Programs timed in turn, A B A B ..., and the ratios of their speeds within each round.

On a machine that others use too, absolute rates drift. The ratio of two runs made one right after
the other drifts far less.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.benchmarks.options import Timed
from experiments.benchmarks.suite import summary


class Program(NamedTuple):
    """One variant: `run(start())` does `work` units of work, and only `run` is timed.

    start: makes what `run` takes, such as a fresh state.
    run: does the work and returns the last loss. The clock stops when the loss is there.
    work: how many units of work one call of `run` does.
    facts: what to report beside the rates; `compile_seconds` has to be among them.
    """

    start: Callable[[], Any]
    run: Callable[[Any], Any]
    work: int
    facts: dict[str, Any]


def measure(
    programs: Mapping[str, Program], config: Timed, *, unit: str, numerator: str
) -> dict[str, Any]:
    """Time all programs in each of `config.rounds` rounds, print a table, write `config.out`.

    Args:
      programs: the variants by name.
      config: the options of the benchmark.
      unit: what `Program.work` counts, such as images.
      numerator: the program whose rate is divided by the rate of each other one.
    Returns:
      The config, the circumstances, and for each program its facts, its last loss, its rate (units
      per second) and its ratio (rate of the numerator / rate of this one). A rate and a ratio are
      every round, the median and the quartiles.
    """
    rates: dict[str, list[float]] = {name: [] for name in programs}
    facts = {name: dict(program.facts) for name, program in programs.items()}
    for i in range(config.rounds + 1):
        for name, program in programs.items():
            state = jax.block_until_ready(program.start())
            began = perf_counter()
            result = jax.block_until_ready(program.run(state))
            seconds = perf_counter() - began
            facts[name]["loss"] = float(result)
            if i > 0:  # round 0 only warms up
                rates[name].append(program.work / seconds)
    ratios = {name: np.divide(rates[numerator], rates[name]) for name in programs}
    report = {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        **common.circumstances(),
        "unit": f"{unit}/s",
        "numerator": numerator,
        "programs": {
            name: {**facts[name], "rate": summary(rates[name]), "ratio": summary(ratios[name])}
            for name in programs
        },
    }
    _print_table(report)
    if config.out is not None:
        common.write_json(config.out, report)
    return report


def seconds_to_compile(function: Callable[[], Any], *, calls: int) -> float:
    """Seconds that the first call takes longer than the fastest of the `calls` - 1 calls after it.

    For a function whose number of particles is fixed while it compiles: compiling a smaller call
    would say nothing of this one.
    """
    seconds = []
    for _ in range(calls):
        began = perf_counter()
        function()
        seconds.append(perf_counter() - began)
    return max(seconds[0] - min(seconds[1:]), 0.0)


def _print_table(report: dict[str, Any]) -> None:
    """One line per program: rate, ratio with its quartiles, seconds of compilation."""
    over = f"{report['numerator']} / this"
    print(f"{'':14s} {report['unit']:>10s} {over:>22s} {'compile s':>20s}")
    for name, row in report["programs"].items():
        rate, compiling = row["rate"]["median"], row["compile_seconds"]
        spread = "{median:.2f} ({lower_quartile:.2f}-{upper_quartile:.2f})".format(**row["ratio"])
        print(f"{name:14s} {rate:10.0f} {spread:>22s} {compiling:20.1f}")
