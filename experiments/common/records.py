"""The numbers of a run while it goes on: metrics.jsonl, TensorBoard's event files, a profile."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.common.options import Options
from experiments.common.processes import first
from vaejax.errors import missing, wrong

__all__ = ["Log", "event_files", "logger", "logs", "profiler", "rows", "seconds", "summary_writer"]

Log = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def logs(config: Options, folder: Path) -> Iterator[tuple[Log, Log | None]]:
    """What takes an epoch's numbers while a run goes on: metrics.jsonl, and what options add.

    And what takes those of a step, where that is asked for: steps.jsonl, and event files, in which
    their names begin with `each/`.
    """
    with contextlib.ExitStack() as stack:
        takers = [logger(folder)]
        of_steps = [logger(folder, "steps.jsonl", "step")] if config.log_steps else []
        if config.tensorboard and first():
            events = stack.enter_context(event_files(folder))
            takers.append(events)
            if config.log_steps:
                of_steps.append(lambda row: events(_of_step(row)))
        if config.profile and first():
            takers.append(stack.enter_context(profiler(folder / "profile", config.profile)))
        yield _to_all(takers), _to_all(of_steps) if config.log_steps else None


def _to_all(takers: list[Log]) -> Log:
    """One taker of numbers for all."""

    def log(row: dict[str, Any]) -> None:
        for take in takers:
            take(row)

    return log


def _of_step(row: dict[str, Any]) -> dict[str, Any]:
    """A step's numbers by names that are not those of an epoch's."""
    own = {name: value for name, value in row.items() if name not in ("epoch", "step")}
    return {"step": row["step"], **{f"each/{name}": value for name, value in own.items()}}


def logger(folder: Path, file: str = "metrics.jsonl", by: str = "epoch") -> Log:
    """A function that appends an epoch's numbers, and the seconds so far, to metrics.jsonl.

    A resumed run repeats the epochs since its last checkpoint: their old lines give way, and so
    does a line that a kill cut short. `file`, `by`: another file, whose lines are in the order of
    that number.
    """
    path, found = folder / file, rows(folder, file)
    began = time.perf_counter()
    before: float | None = None  # seconds of the legs before this one, known at the first row

    def log(row: dict[str, Any]) -> None:
        nonlocal before
        if before is None:
            kept = [old for old in found if old[by] < row[by]]
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(old) + "\n" for old in kept))
            part.replace(path)
            before = kept[-1]["seconds"] if kept else 0.0
        seconds = before + time.perf_counter() - began
        with path.open("a") as file:
            file.write(json.dumps({**row, "seconds": seconds}) + "\n")

    return log


@contextlib.contextmanager
def event_files(folder: Path) -> Iterator[Log]:
    """A function that writes an epoch's numbers for TensorBoard, by step.

    Lists of a population's numbers become NAME/0, NAME/1, ...; what is not finite is left out. A
    resumed run's first step tells TensorBoard to forget what an earlier leg wrote from there on.
    """
    with contextlib.ExitStack() as stack:
        writer: Any = None  # opened at the first row, whose step it has to know

        def log(row: dict[str, Any]) -> None:
            nonlocal writer
            step = int(row["step"])
            if writer is None:
                opened = summary_writer()(str(folder), purge_step=step)
                writer = stack.enter_context(contextlib.closing(opened))
            for name, value in row.items():
                many = isinstance(value, list)
                parts = {f"{name}/{i}": v for i, v in enumerate(value)} if many else {name: value}
                for tag, number in parts.items():
                    if math.isfinite(number):
                        writer.add_scalar(tag, number, step)
            writer.flush()

        yield log


def summary_writer() -> Any:
    """The class that writes TensorBoard's event files; ImportError where it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise missing("--tensorboard", "tensorboardX", "tensorboard") from error
    return SummaryWriter


@contextlib.contextmanager
def profiler(folder: Path, epochs: int) -> Iterator[Log]:
    """Traces `epochs` epochs after the first, which compiles, as it is told of each one's end."""
    seen = 0

    def log(row: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            jax.profiler.start_trace(str(folder))
        elif seen == epochs + 1:
            jax.profiler.stop_trace()

    try:
        yield log
    finally:
        if 1 <= seen <= epochs:
            jax.profiler.stop_trace()


def seconds(folder: Path) -> float:
    """Seconds of training so far, in all legs; NaN where this process does not see the records."""
    found = rows(folder)
    return found[-1]["seconds"] if found else math.nan


def rows(folder: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; ValueError for one that is no epoch's numbers."""
    path = folder / file
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found = []
    for number, line in enumerate(lines[:-1], 1):  # behind the last end of a line: cut by a kill
        try:
            row = json.loads(line)
            _ = float(row["epoch"]), float(row["seconds"])
        except (ValueError, TypeError, KeyError) as error:
            fix = "remove that line, or take the file away: it holds records alone"
            expected = "an epoch's numbers in JSON"
            raise wrong(f"{path}: line {number}", "damaged", expected, fix) from error
        found.append(row)
    return found
