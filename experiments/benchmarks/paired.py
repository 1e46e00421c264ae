"""Programs timed in turn, A B A B ..., and the ratios of their speeds within each round.

On a machine that others use too, absolute rates drift; the ratio of two runs made one right after
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
from experiments.benchmarks.suite import summary


class Program(NamedTuple):
    """One variant: `run(start())` does `work` units of work, and only `run` is timed.

    `run` returns the last loss, waited for before the clock stops; `facts`: what to report beside
    the rates, with `compile_seconds` among them.
    """

    start: Callable[[], Any]
    run: Callable[[Any], Any]
    work: int
    facts: dict[str, Any]


def measure(
    programs: Mapping[str, Program], config: Any, *, unit: str, numerator: str
) -> dict[str, Any]:
    """Time all programs in each of `config.rounds` rounds, print a table, write `config.out`.

    `unit`: what `work` counts; `numerator`: the program whose rate is divided by each of the
    others'. Returns config, circumstances, and by program its facts, the loss, its rate (units per
    second) and its ratio `rate of the numerator / rate of this one`: every round, median and
    quartiles.
    """
    rates: dict[str, list[float]] = {name: [] for name in programs}
    facts = {name: dict(program.facts) for name, program in programs.items()}
    for counted in [False] + [True] * config.rounds:  # the first round only warms up
        for name, program in programs.items():
            state = jax.block_until_ready(program.start())
            began = perf_counter()
            result = jax.block_until_ready(program.run(state))
            seconds = perf_counter() - began
            facts[name]["loss"] = float(result)
            if counted:
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
    print(f"{'':14s} {unit + '/s':>10s} {numerator + ' / this':>22s} {'compile s':>20s}")
    for name, row in report["programs"].items():
        ratio, rate = row["ratio"], row["rate"]["median"]
        spread = (
            f"{ratio['median']:.2f} ({ratio['lower_quartile']:.2f}-{ratio['upper_quartile']:.2f})"
        )
        print(f"{name:14s} {rate:10.0f} {spread:>22s} {row['compile_seconds']:20.1f}")
    if config.out is not None:
        common.write_json(config.out, report)
    return report
