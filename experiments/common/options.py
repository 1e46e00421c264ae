"""What every experiment can be told, and its command line."""

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax

import experiments
import vaejax
from experiments.common import words
from experiments.common.limits import check
from experiments.common.processes import joined
from vaejax import compiling, train
from vaejax.errors import missing

__all__ = ["FREE", "Options", "SweepOptions", "command_line", "parse", "shrunk"]

Config = TypeVar("Config")

OURS = [Path(package.__path__[0]).resolve() for package in (vaejax, experiments)]
"""The folders whose errors are messages for the user."""

GIVEN: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())
"""The options that the command line of this process names: `--smoke` leaves them as they are."""


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
    print_figures: Literal["no", "pdf", "svg"] = "no"  # figures for print, too, without titles
    profile: int = 0  # epochs after the first to trace with JAX's profiler, into profile/; 0: none
    ema: float = 0.0  # decay of a moving average of the parameters, such as 0.999; 0: none is kept
    norms: bool = False  # record the norms of the gradient and of the update
    log_steps: bool = False  # write the numbers of each step, too, to steps.jsonl


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """`Options`, and what to sweep; several devices then share the members."""

    seeds: int = 1  # runs of every setting, with seeds from --seed up
    sweep: tuple[str, ...] = ()  # NAME=VALUE,VALUE,... of every hyperparameter to vary

    @property
    def several(self) -> bool:
        """Whether more than one run is asked for."""
        return self.seeds > 1 or bool(self.sweep)


FREE = {
    *("out", "resume", "progress", "devices", "distributed", "tensorboard", "profile"),
    *("norms", "log_steps", "print_figures"),
}
"""The options that may differ between a run and its continuation."""


def shrunk(config: Any, **smaller: Any) -> Any:
    """The config, checked; where `--smoke` asks for it, with these options instead of its own.

    What the command line names beside `--smoke` stays as it is there.
    """
    check(config)
    if not config.smoke:
        return config
    rest = {name: value for name, value in smaller.items() if name not in GIVEN.get()}
    return dataclasses.replace(config, **rest)


def parse(presets: Mapping[str, Config], about: str, argv: Sequence[str] | None = None) -> Config:
    """The chosen preset (by default the first) with the command line's options put over it.

    Args:
      presets: configs by name.
      about: what `--help` says first.
      argv: the words of the command line; by default this process's own.
    Returns:
      The config.
    Raises:
      ValueError: for words that are no preset, option or value of one; it names the first.
      SystemExit: where `--help` is asked for.
    """
    return _parsed(presets, about, sys.argv[1:] if argv is None else argv)[0]


def _parsed(
    presets: Mapping[str, Config], about: str, argv: Sequence[str]
) -> tuple[Config, frozenset[str]]:
    """The config, and the names of the options that the command line gives."""
    try:
        import tyro
    except ImportError as error:
        raise missing("experiments", "tyro", "experiments") from error
    first = next(iter(presets))
    call = command(type(presets[first]))
    said = words.read(presets, list(argv), call)
    chosen = presets[said.preset or first]
    config = tyro.cli(
        type(chosen),
        default=chosen,
        args=said.options,
        description=f"{about.strip()}\n\nPresets, named first (default {first}): "
        + ", ".join(presets),
        prog=call,
    )
    check(config)
    return config, said.given


def command(of: type) -> str:
    """The call of the program that a class of options belongs to, as a user types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    running = spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0]
    return f"python -m {running if of.__module__ == '__main__' else of.__module__}"


def command_line(
    main: Callable[[Config], Any], presets: Mapping[str, Config], about: str | None
) -> None:
    """Run `main` on what the command line says.

    What the user can mend ends in one line without a traceback, with status 2 where the words of
    the command line are wrong, else with status 1. A bug keeps its traceback.
    """
    compiling.keep_on_disk()
    try:
        config, given = _parsed(presets, about or "", sys.argv[1:])
    except (ValueError, ImportError) as error:
        if not for_the_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    named = GIVEN.set(given)
    try:
        with joined() if getattr(config, "distributed", False) else contextlib.nullcontext():
            main(config)
    except train.Interrupted as error:
        raise SystemExit(f"{error}: add --resume --out FOLDER") from error
    except train.Terminated as error:
        print(f"{error}: add --resume --out FOLDER", file=sys.stderr)
        raise
    except Exception as error:
        if not for_the_user(error):
            raise
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note]
        said = "\n".join([_said(error), *notes])  # notes of what was saved, say
        raise SystemExit(f"error: {said}") from error
    finally:
        GIVEN.reset(named)


def for_the_user(error: Exception) -> bool:
    """Whether this error is a message to read: what the user, or the machine, can mend.

    It is, if a `raise` of the library or of an experiment made it. So is what the disk, a package
    that is missing and too little memory raise, wherever a line of ours met them. Everything else
    is a bug: an error of another package, or of Python itself in a line of ours.
    """
    if isinstance(error, OSError) or _out_of_memory(error):
        return True
    if not isinstance(error, ImportError | ValueError | TypeError | FloatingPointError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = not set(OURS).isdisjoint(Path(last.filename).resolve().parents)
    return ours and (isinstance(error, ImportError) or (last.line or "").startswith("raise"))


def _out_of_memory(error: Exception) -> bool:
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return full or isinstance(error, MemoryError)


def _said(error: Exception) -> str:
    """The error in one line."""
    if _out_of_memory(error):
        return "the memory is full; lower --batch-size, or the sizes of data and networks"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
