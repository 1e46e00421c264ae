"""The runs behind the rows: one process each, in a folder of its own, finished once and for all.

`FOLDER/COMMAND/seed-N/summary.json` says that a run is done. A run that was stopped before goes on
where its checkpoints end, if its experiment can resume.
"""

import importlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.common import write_json
from experiments.reproduce.rows import Row


def folder_of(row: Row, seed: int, out: Path) -> Path:
    """Where the run lies; rows of one command share it."""
    name = re.sub(r"[^\w.]+", "-", row.command.removeprefix("experiments.")).strip("-")
    return out / name / f"seed-{seed}"


def summary_of(row: Row, seed: int, out: Path) -> dict[str, Any] | None:
    """What a finished run holds, or None."""
    folder = folder_of(row, seed, out)
    found = _read(folder / "summary.json")
    if "seconds_whole" not in found:  # it was stopped at its pictures
        return None
    record = _read(folder / "config.json")
    more = {"device": record.get("device", "")}
    options = record.get("options", {})
    samples = options.get("test_particles", options.get("particles"))
    if isinstance(samples, int) and any(name.endswith("ess_median") for name in found):
        more["test_particles"] = samples
    # A number that was not finite is null there.
    return more | {name: math.nan if v is None else v for name, v in found.items()}


def run(row: Row, seed: int, out: Path, *, given: str = "", smoke: bool = False) -> dict[str, Any]:
    """Run the command of a row with one seed, or go on with it, and return its summary.

    Args:
      row: the row.
      seed: of the run.
      out: the folder of the table.
      given: the file that the row asks for.
      smoke: whether the run is shrunk to seconds.
    Raises:
      RuntimeError: where the command fails, with its last line.
    """
    folder, words = folder_of(row, seed, out), shlex.split(row.command)
    begun = (folder / "config.json").exists()
    if begun and not resumes(words[0]):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    is_test = words[0] == "pytest"
    if not is_test:
        words += ["--seed", str(seed), "--out", str(folder)]
        words += [row.file, given] if row.file else []
        words += ["--smoke"] if smoke else []
        words += ["--resume"] if begun and resumes(words[0]) else []
    said = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    (folder / "output.txt").write_text(said.stdout + said.stderr)
    seconds = time.perf_counter() - began
    if is_test:
        found = _counted(said.stdout)
        if not found["tests"]:
            raise RuntimeError(_failed(words, said))
    elif said.returncode:
        raise RuntimeError(_failed(words, said))
    else:
        found = json.loads((folder / "summary.json").read_text())
    # Of a run that was stopped in between, the last part alone.
    timed = {**found, "seconds_whole": seconds}
    write_json(folder / "summary.json", timed)
    return timed


def resumes(module: str) -> bool:
    """Whether an experiment can go on with a run."""
    presets = importlib.import_module(module).PRESETS
    return any(field.name == "resume" for field in fields(next(iter(presets.values()))))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _failed(words: list[str], said: Any) -> str:
    last = [line for line in (said.stdout + said.stderr).strip().splitlines() if line][-1:]
    return f"python -m {' '.join(words)} failed: {' '.join(last)}"


def _counted(said: str) -> dict[str, Any]:
    """How many tests pytest passed and ran."""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", said)}
    return {"passed": counts.get("passed", 0), "tests": sum(counts.values())}
