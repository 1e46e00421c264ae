"""A run of an experiment: its command line, its folder, and what it leaves there.

`DIR/config.json` (options, versions, commit), `DIR/metrics.jsonl` (one line per epoch),
`DIR/summary.json` (final numbers), `DIR/checkpoints/`, `DIR/figures/*.png`.
"""

import dataclasses
import difflib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

# What may differ between a run and its continuation.
FREE = {"epochs", "out", "resume", "progress"}


def parse(presets: Mapping[str, Config], about: str, argv: Sequence[str] | None = None) -> Config:
    """The chosen preset (by default the first) with the command line's options put over it."""
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    names = list(presets)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else names[0]
    if name not in presets:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise SystemExit(f"unknown preset {name!r}; did you mean {near!r}? Presets: {names}")
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"python -m {spec.name}" if spec is not None else None
    about = f"{about.strip()}\n\nPresets, named first (default {names[0]}): {', '.join(names)}"
    return tyro.cli(
        type(presets[name]),
        default=presets[name],
        args=arguments,
        description=about,
        prog=command,
    )


def command_line(main: Callable[[Config], Any], presets: Mapping[str, Config], about: str) -> None:
    """Run `main` on what the command line says; what the user can mend ends without a traceback."""
    from vaejax import train

    use_compilation_cache()
    try:
        main(parse(presets, about))
    except train.Interrupted as error:
        raise SystemExit(f"{error}: add --resume --out FOLDER") from error
    except (OSError, ImportError, ValueError, TypeError, FloatingPointError) as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        raised_in = Path(frames[-1][0].f_code.co_filename).parent.name
        if raised_in not in ("vaejax", "experiments"):  # none of our own messages: a bug, shown
            raise
        raise SystemExit(f"error: {error}") from error


def open_folder(config: Any, *, name: str) -> Path:
    """The folder of this run, with config.json in it; refuses one that holds another run.

    Without `config.out` a new one under `runs/`. With `config.resume` the options must be those
    that the run was started with, apart from `epochs`.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.out or f"runs/{name}-{stamp}").expanduser()
    options = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    stored = folder / "config.json"
    if config.resume and not stored.exists():
        where = f"{config.out} holds no run" if config.out else "no --out was given"
        raise SystemExit(f"--resume needs --out, the folder of the run to continue: {where}")
    if config.resume:
        before = json.loads(stored.read_text())["options"]
        changed = [
            f"{option}: then {before.get(option)}, now {value}"
            for option, value in options.items()
            if option not in FREE and before.get(option) != value
        ]
        if changed:
            raise SystemExit(f"{folder} holds a run with other options: {'; '.join(changed)}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(
            f"{folder} is not an empty folder, and nothing there is overwritten: add --resume to "
            "continue the run it holds, or choose another --out"
        )
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_json(stored, {"options": options, **circumstances()})
    return folder


def logger(folder: Path) -> Callable[[dict[str, float]], None]:
    """A function that appends an epoch's numbers, and the seconds so far, to metrics.jsonl.

    A resumed run repeats the epochs since its last checkpoint: their old lines give way, and so
    does a line that a kill cut short.
    """
    path = folder / "metrics.jsonl"
    began = time.perf_counter()
    before: list[float] = []  # seconds of the legs before this one, known at the first row

    def log(row: dict[str, float]) -> None:
        if not before:
            kept = [old for old in rows(folder) if old["epoch"] < row["epoch"]]
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(old) + "\n" for old in kept))
            part.replace(path)
            before.append(kept[-1]["seconds"] if kept else 0.0)
        seconds = before[0] + time.perf_counter() - began
        with path.open("a") as file:
            file.write(json.dumps({**row, "seconds": seconds}) + "\n")

    return log


def rows(folder: Path) -> list[dict[str, float]]:
    """The complete lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def save_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write each Figure as figures/NAME.png."""
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110, bbox_inches="tight")


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, in which what is not finite is null."""
    finite = json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
    path.write_text(json.dumps(finite, indent=2) + "\n")


def report(folder: Path, summary: Mapping[str, Any], note: str) -> None:
    """Print what summary.json holds, a word on its units, and where everything is."""
    for name, value in summary.items():
        print(f"{name:28s} {value:.6g}" if isinstance(value, float) else f"{name:28s} {value}")
    print(note)
    print(f"figures: {folder.resolve() / 'figures'} (numbers: summary.json beside them)")


def circumstances() -> dict[str, Any]:
    """Versions, device and commit, as config.json records them."""
    import jax

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


def use_compilation_cache() -> None:
    """Keep compiled programs between processes, in the user's cache folder."""
    import jax

    from vaejax.data import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
