"""What every experiment can be told, and its command line."""

import contextlib
import dataclasses
import difflib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

import experiments
import vaejax
from experiments.common.processes import joined
from vaejax import train

__all__ = ["FREE", "Options", "SweepOptions", "command_line", "parse", "shrunk"]

Config = TypeVar("Config")

OURS = [Path(package.__path__[0]).resolve() for package in (vaejax, experiments)]
"""The folders whose errors are messages for the user."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every experiment that trains by `fit` can be told."""

    seed: int = 0  # of every random number in the run
    out: Path | None = None  # folder of the run; by default a new one under runs/
    resume: bool = False  # continue the run that the folder holds
    smoke: bool = False  # shrink everything to seconds, to see that it runs
    progress: bool = True  # show a progress bar
    devices: int | None = None  # devices to split batches over; by default one, or all processes'
    distributed: bool = False  # join the other processes of the run (cluster, or JAX_... variables)
    tensorboard: bool = False  # write event files for TensorBoard beside metrics.jsonl
    profile: int = 0  # epochs after the first to trace with JAX's profiler, into profile/; 0: none


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """`Options`, and what to sweep; several devices then share the members."""

    seeds: int = 1  # runs of every setting, with seeds from --seed up
    sweep: tuple[str, ...] = ()  # NAME=VALUE,VALUE,... of every hyperparameter to vary

    @property
    def several(self) -> bool:
        """Whether more than one run is asked for."""
        return self.seeds > 1 or bool(self.sweep)


FREE = {"out", "resume", "progress", "devices", "distributed", "tensorboard", "profile"}
"""The options that may differ between a run and its continuation."""


def shrunk(config: Any, **smaller: Any) -> Any:
    """The config with these options instead of its own, where `--smoke` asks for it."""
    return dataclasses.replace(config, **smaller) if config.smoke else config


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


def command_line(
    main: Callable[[Config], Any], presets: Mapping[str, Config], about: str | None
) -> None:
    """Run `main` on what the command line says.

    What the user can mend ends in one line without a traceback; a bug keeps its traceback.
    """
    use_compilation_cache()
    try:
        config = parse(presets, about or "")
        with joined() if getattr(config, "distributed", False) else contextlib.nullcontext():
            main(config)
    except train.Interrupted as error:
        raise SystemExit(f"{error}: add --resume --out FOLDER") from error
    except train.Terminated as error:
        print(f"{error}: add --resume --out FOLDER", file=sys.stderr)
        raise
    except (OSError, ImportError, ValueError, TypeError, FloatingPointError) as error:
        if not for_the_user(error):
            raise
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note]
        said = "\n".join([str(error), *notes])  # notes of what was saved, say
        raise SystemExit(f"error: {said}") from error


def for_the_user(error: Exception) -> bool:
    """Whether a `raise` of the library or of an experiment made this error: a message to read.

    Everything else is a bug: an error of another package, or of Python itself in a line of ours.
    The disk and a package that is missing are no bugs of ours, wherever a line of ours met them.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = not set(OURS).isdisjoint(Path(last.filename).resolve().parents)
    outside = isinstance(error, OSError | ImportError)
    return ours and (outside or (last.line or "").startswith("raise"))


def use_compilation_cache() -> None:
    """Keep compiled programs between processes, in the user's cache folder."""
    from vaejax.data import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
