"""The folder of a run, and what is written there: config.json, summary.json, figures, a report.

`DIR/config.json` (options, versions, commit), `DIR/metrics.jsonl` (one line per epoch),
`DIR/summary.json` (final numbers), `DIR/checkpoints/`, `DIR/figures/*.png`; where asked for,
TensorBoard's event files and `DIR/profile/`. Of several processes the first alone writes.
"""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.options import FREE, Options
from experiments.common.processes import first, mesh
from experiments.common.records import summary_writer
from vaejax import plot
from vaejax.errors import wrong

__all__ = [
    "circumstances",
    "finish",
    "open_folder",
    "report",
    "save_figures",
    "write_json",
    "write_text",
]


def open_folder(config: Any, *, name: str, free: Collection[str] = ()) -> Path:
    """The folder of this run, with config.json in it; refuses one that holds another run.

    Without `config.out` a new one under `runs/`. With `config.resume` the options must be those
    that the run was started with, apart from `FREE` and `free`: `epochs`, where no schedule of the
    experiment depends on them. Several processes get one and the same, which all of them have to
    see: it has to be named.
    """
    several = jax.process_count() > 1
    if several and config.out is None:
        raise SystemExit("several processes write to one folder that all of them see: give --out")
    if isinstance(config, Options):  # what is asked for in vain leaves no folder behind
        mesh(config.devices)
        if config.tensorboard:
            summary_writer()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.out or f"runs/{name}-{stamp}").expanduser()
    refused: BaseException | None = None
    if first():
        try:
            _begin(config, folder, {*FREE, *free})
        except (SystemExit, OSError) as error:
            refused = error
    if several:
        from jax.experimental import multihost_utils

        any_refused = np.any(multihost_utils.process_allgather(np.array(refused is not None)))
        if any_refused and refused is None:
            raise SystemExit(f"the first process refused {folder}; it says why")
    if refused is not None:
        raise refused
    return folder


def _begin(config: Any, folder: Path, free: Collection[str]) -> None:
    options = _plain(config)
    stored = folder / "config.json"
    if config.resume and not stored.exists():
        where = f"{config.out} holds no run" if config.out else "no --out was given"
        raise SystemExit(f"--resume needs --out, the folder of the run to continue: {where}")
    if config.resume:
        # Options that there were not yet when the run was started had their defaults.
        record = _record(stored)
        before = {**_plain(type(config)()), **record["options"]}
        changed = [
            f"{option}: then {before.get(option)}, now {value}"
            for option, value in options.items()
            if option not in free and before.get(option) != value
        ]
        if changed:
            message = f"{folder} holds a run with other options: {'; '.join(changed)}"
            message += "; repeat those that it was started with"
            if "epochs" not in free and before.get("epochs") != options.get("epochs"):
                message += (
                    "; the schedules of this experiment span its epochs, so that more of them are "
                    f"another run: resume with --epochs {before['epochs']}, or choose another --out"
                )
            raise SystemExit(message)
        options["resume"] = record["options"].get("resume")
        if options != record["options"]:  # versions and commit stay those of the start
            write_json(stored, {**record, "options": options})
    elif folder.exists() and not (folder.is_dir() and all(map(_left, folder.iterdir()))):
        raise SystemExit(
            f"{folder} is not an empty folder, and nothing there is overwritten: add --resume to "
            "continue the run it holds, or choose another --out"
        )
    else:
        _make(folder)
        write_json(stored, {"options": options, **circumstances()})
    (folder / "figures").mkdir(exist_ok=True)


def _record(stored: Path) -> dict[str, Any]:
    """What config.json of a run holds."""
    try:
        record = json.loads(stored.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text at all
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        fix = "restore it from a copy, or start the run anew with another --out"
        raise wrong(f"--resume: {stored}", "a damaged file", "the options of a run", fix)
    return record


def _make(folder: Path) -> None:
    """Make a run's folder, where it can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got, fix = f"{str(folder)!r} ({error.strerror})", "name another one"
        raise wrong("--out", got, "a folder that can be written", fix, type(error)) from error


def _left(path: Path) -> bool:
    """Whether this is what a start that was killed leaves behind, before there is a run."""
    if path.name == "figures":
        return path.is_dir() and not any(path.iterdir())
    return path.name == "config.json.part"


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def save_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write each Figure as figures/NAME.png, and as `--print-figures` asks for."""
    stored = folder / "config.json"
    kind = _record(stored)["options"].get("print_figures", "no") if stored.exists() else "no"
    for name, figure in figures.items() if first() else ():
        path = folder / "figures" / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        if kind != "no":
            plot.save(figure, path.with_suffix(f".{kind}"), title=False)


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, in which what is not finite is null."""
    finite = json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
    write_text(path, json.dumps(finite, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, if this process is the one that does."""
    if not first():
        return
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def report(folder: Path, summary: Mapping[str, Any], note: str) -> None:
    """Print what summary.json holds, a word on its units, and where everything is."""
    for name, value in summary.items():
        print(f"{name:28s} {value:.6g}" if isinstance(value, float) else f"{name:28s} {value}")
    print(note)
    print(f"figures: {folder.resolve() / 'figures'} (numbers: summary.json beside them)")


def finish(
    folder: Path,
    summary: dict[str, Any],
    figures: Mapping[str, Any],
    note: str,
    shown: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write summary.json and the figures, and print what they hold; returns the summary.

    Args:
      folder: of the run.
      summary: what summary.json holds.
      figures: by the name of their files.
      note: what the numbers are.
      shown: what is printed of them; by default all.
    """
    write_json(folder / "summary.json", summary)
    save_figures(folder, figures)
    report(folder, summary if shown is None else shown, note)
    return summary


def circumstances() -> dict[str, Any]:
    """Versions, device and commit, as config.json records them."""
    packages = ["vaejax", "jax", "flax", "optax", "numpy", "orbax-checkpoint"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
        "platform": jax.default_backend(),
        "commit": commit.stdout.strip() or "unknown",
    }
