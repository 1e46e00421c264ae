"""A run of an experiment: its command line, its folder, and what it leaves there.

`DIR/config.json` (options, versions, commit), `DIR/metrics.jsonl` (one line per epoch),
`DIR/summary.json` (final numbers), `DIR/checkpoints/`, `DIR/figures/*.png`; where asked for,
TensorBoard's event files and `DIR/profile/`. Of several processes all train and measure, and the
first alone writes and prints.
"""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vaejax import devices, train
from vaejax.errors import wrong
from vaejax.trees import on_host
from vaejax.types import Key, Loss, Metrics, Params, StepOrder, Transform

Config = TypeVar("Config")
Log = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
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


# What may differ between a run and its continuation.
FREE = {"out", "resume", "progress", "devices", "distributed", "tensorboard", "profile"}


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
    use_compilation_cache()
    try:
        config = parse(presets, about)
        with joined() if getattr(config, "distributed", False) else contextlib.nullcontext():
            main(config)
    except train.Interrupted as error:
        raise SystemExit(f"{error}: add --resume --out FOLDER") from error
    except train.Terminated as error:
        print(f"{error}: add --resume --out FOLDER", file=sys.stderr)
        raise
    except (OSError, ImportError, ValueError, TypeError, FloatingPointError) as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        raised_in = Path(frames[-1][0].f_code.co_filename).parent.name
        if raised_in not in ("vaejax", "experiments"):  # none of our own messages: a bug, shown
            raise
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])  # of what was saved, say
        raise SystemExit(f"error: {said}") from error


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """This process as one of the run's, of which the first alone prints; before any JAX call.

    JAX finds Slurm, MPI, Kubernetes and TPU pods itself; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who. Raises ValueError where nothing does.
    """
    # JAX reads the first of the three itself. CPUs talk over gloo, which is its default.
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
        )
    except ValueError as error:
        raise wrong(
            "--distributed",
            f"no cluster ({error})",
            "Slurm, MPI, a TPU pod or the like",
            "or set JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=N JAX_PROCESS_ID=I, "
            "with I = 0 to N - 1, for each process",
        ) from error
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not first():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


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
        mesh(config)
        if config.tensorboard:
            _summary_writer()
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
        record = json.loads(stored.read_text(encoding="utf-8"))
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
        folder.mkdir(parents=True, exist_ok=True)
        write_json(stored, {"options": options, **circumstances()})
    (folder / "figures").mkdir(exist_ok=True)


def _left(path: Path) -> bool:
    """Whether this is what a start that was killed leaves behind, before there is a run."""
    if path.name == "figures":
        return path.is_dir() and not any(path.iterdir())
    return path.name == "config.json.part"


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def mesh(config: Options) -> Mesh | None:
    """The devices of a run: `config.devices` of them, all of several processes, or None for one."""
    several, there = jax.process_count() > 1, jax.device_count()
    if several and config.devices not in (None, there):
        fix = "leave it out, or start fewer processes"
        raise wrong("--devices", config.devices, f"{there}, all that the processes have", fix)
    return devices.mesh(config.devices) if several or config.devices is not None else None


def fit(
    config: Options,
    folder: Path,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Any,
    *,
    key: Key,
    epochs: int,
    batch_size: int,
    indices: StepOrder | None = None,
    transform: Transform | None = None,
    evaluate: Callable[[Params, Key], Metrics] | None = None,
    evaluate_every: int = 1,
    monitor: str = "loss",
    checkpoint_every: int = 1,
    hook: Callable[[train.TrainState], train.TrainState] | None = None,
) -> train.Fitted:
    """`train.fit` with all that the options say, its records and checkpoints in `folder`.

    Over several devices, too, `evaluate` gets parameters that lie whole on one of this process's
    own, and so do those returned: what is done with them needs no other device or process.
    """
    over = mesh(config)
    folder.mkdir(exist_ok=True)
    measure = evaluate
    if over is not None and evaluate is not None:

        def measure(params: Params, key: Key) -> Metrics:
            return evaluate(local(params), key)

    with logs(config, folder) as log:
        fitted = train.fit(
            loss,
            optimizer,
            params,
            data,
            key=key,
            epochs=epochs,
            batch_size=batch_size,
            indices=indices,
            transform=transform,
            evaluate=measure,
            evaluate_every=evaluate_every,
            monitor=monitor,
            directory=folder / "checkpoints",
            checkpoint_every=checkpoint_every,
            resume=config.resume,
            mesh=over,
            hook=hook,
            log=log,
            progress=config.progress,
        )
    if over is None:
        return fitted
    state, best = (s._replace(params=local(s.params)) for s in (fitted.state, fitted.best))
    return fitted._replace(state=state, best=best)


def local(tree: Any) -> Any:
    """Arrays of a mesh whole on one device of this process; every process has to take part."""
    return jax.tree.map(jnp.asarray, on_host(tree))


@contextlib.contextmanager
def logs(config: Options, folder: Path) -> Iterator[Log]:
    """What takes an epoch's numbers while a run goes on: metrics.jsonl, and what options add."""
    with contextlib.ExitStack() as stack:
        takers = [logger(folder)]
        if config.tensorboard and first():
            takers.append(stack.enter_context(event_files(folder)))
        if config.profile and first():
            takers.append(stack.enter_context(profiler(folder / "profile", config.profile)))

        def log(row: dict[str, Any]) -> None:
            for take in takers:
                take(row)

        yield log


def logger(folder: Path) -> Log:
    """A function that appends an epoch's numbers, and the seconds so far, to metrics.jsonl.

    A resumed run repeats the epochs since its last checkpoint: their old lines give way, and so
    does a line that a kill cut short.
    """
    path = folder / "metrics.jsonl"
    began = time.perf_counter()
    before: list[float] = []  # seconds of the legs before this one, known at the first row

    def log(row: dict[str, Any]) -> None:
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


@contextlib.contextmanager
def event_files(folder: Path) -> Iterator[Log]:
    """A function that writes an epoch's numbers for TensorBoard, by step.

    Lists of a population's numbers become NAME/0, NAME/1, ...; what is not finite is left out. A
    resumed run's first step tells TensorBoard to forget what an earlier leg wrote from there on.
    """
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def log(row: dict[str, Any]) -> None:
            step = int(row["step"])
            if not opened:
                writer = _summary_writer()(str(folder), purge_step=step)
                opened.append(stack.enter_context(contextlib.closing(writer)))
            for name, value in row.items():
                many = isinstance(value, list)
                parts = {f"{name}/{i}": v for i, v in enumerate(value)} if many else {name: value}
                for tag, number in parts.items():
                    if math.isfinite(number):
                        opened[0].add_scalar(tag, number, step)
            opened[0].flush()

        yield log


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        fix = 'pip install "vaejax[tensorboard]"'
        raise ImportError(f"--tensorboard needs tensorboardX, not installed; {fix}") from error
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


def rows(folder: Path) -> list[dict[str, Any]]:
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
    for name, figure in figures.items() if first() else ():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110, bbox_inches="tight")


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


def use_compilation_cache() -> None:
    """Keep compiled programs between processes, in the user's cache folder."""
    from vaejax.data import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
