"""The table of what is reproduced: published and exact numbers beside what this library reaches.

    python -m experiments.reproduce [--rows vae dreg] [--seeds 3] [--out FOLDER]

Each row is the command of an experiment, or of tests of an identity. A run that is finished is not
run again, and one that was stopped goes on, so the command may be stopped and given again. Writes
table.md and table.json into the folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments import common
from experiments.reproduce import report, runs
from experiments.reproduce.rows import ROWS
from vaejax.errors import wrong


@dataclass(frozen=True)
class Config:
    rows: tuple[str, ...] = ()  # names of rows; none: all that this machine can do
    seeds: int = 1  # runs of each row
    seed: int = 0  # of the first run, from which the seeds go up
    text: Path | None = None  # the file of tiny shakespeare, for the row `characters`
    gpu_rows: bool = False  # run the rows that need a GPU on a CPU too: each takes hours
    out: Path = Path("runs/reproduce")  # folder of the table and of its runs
    smoke: bool = False  # shrink every run to seconds, to see that it runs
    progress: bool = True  # show a bar


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, then print and write the table; returns what table.json holds."""
    unknown = set(config.rows) - set(ROWS)
    if unknown:
        raise wrong("--rows", sorted(unknown), f"some of {list(ROWS)}", "--help lists the options")
    if config.smoke:  # numbers of shrunk runs are no numbers of the table
        config = replace(config, out=config.out / "smoke")
    failed: dict[str, str] = {}
    waiting = {n: why for n in config.rows or ROWS if (why := _why_not(config, n))}
    todo = [
        (name, seed)
        for name in config.rows or ROWS
        if name not in waiting
        for seed in range(config.seed, config.seed + (config.seeds if ROWS[name].seeds else 1))
    ]
    bar = tqdm(todo, disable=not config.progress, unit="run")
    for name, seed in bar:
        bar.set_description(f"{name}, seed {seed}")
        if runs.summary_of(ROWS[name], seed, config.out) is None:
            given = str(config.text) if ROWS[name].file else ""
            try:
                runs.run(ROWS[name], seed, config.out, given=given, smoke=config.smoke)
            except RuntimeError as error:  # the other rows can still be run
                failed[name] = f"seed {seed}: {error}"
        _written(config, waiting, failed)
    table = _written(config, waiting, failed)
    print((config.out / "table.md").read_text())
    return table


def _why_not(config: Config, name: str) -> str:
    """Why a row is not run here, or nothing."""
    if ROWS[name].gpu and jax.default_backend() == "cpu" and not config.gpu_rows:
        return "needs a GPU (--gpu-rows runs it on a CPU)"
    if ROWS[name].file and config.text is None:
        return f"needs a file: --text FILE, passed on as {ROWS[name].file}"
    return ""


def _written(config: Config, waiting: dict[str, str], failed: dict[str, str]) -> dict[str, Any]:
    """table.json and table.md of all the runs that are finished, also by an earlier call.

    A run that failed is told even where other seeds of its row are finished.
    """
    rows: dict[str, Any] = {}
    for name, row in ROWS.items():
        paths = sorted(runs.folder_of(row, 0, config.out).parent.glob("seed-*/summary.json"))
        seeds = sorted(int(path.parent.name.removeprefix("seed-")) for path in paths)
        found = {seed: runs.summary_of(row, seed, config.out) for seed in seeds}
        finished = {seed: summary for seed, summary in found.items() if summary is not None}
        if finished:
            rows[name] = report.entry(row, finished)
    open_rows = {name: why for name, why in waiting.items() if name not in rows} | failed
    table = {"rows": rows, "waiting": open_rows, **common.circumstances()}
    config.out.mkdir(parents=True, exist_ok=True)
    common.write_json(config.out / "table.json", table)
    common.write_text(config.out / "table.md", report.markdown(rows, open_rows))
    return table


if __name__ == "__main__":
    common.command_line(main, {"all": Config()}, __doc__)
