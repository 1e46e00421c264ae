"""The loop around a compiled run: progress, evaluation, early stopping, checkpoints, signals.

`train.fit` and `population.fit` give it a program that advances their state by some steps; a value
that it keeps or compares is one number for a single run, and one for each member of a population.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import at_least_one, wrong
from vaejax.train import _faults as faults
from vaejax.train import checkpoint
from vaejax.types import describe, numbers_in


class Fitted(NamedTuple):
    """What `fit` returns.

    `state`: after the last step; `best`: the state with the lowest monitored value, the last one
    where nothing was compared; `history`: arrays `[epochs]` by name (`[epochs, members]` of a
    population), nats per example, with `eval/...` NaN where an epoch was not evaluated;
    `stopped`: "epochs", "early", "interrupted", "not finite" or "not saved".
    """

    state: Any
    best: Any
    history: dict[str, np.ndarray]
    stopped: str

    @property
    def params(self) -> Any:
        """Parameters after the last step."""
        return self.state.params

    def __repr__(self) -> str:
        epochs = len(next(iter(self.history.values()), ()))
        return (
            f"Fitted(stopped={self.stopped!r}, epochs={epochs}, "
            f"steps={describe(self.state.step)}, history={list(self.history)}, "
            f"params={numbers_in(self.params)})"
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`: what was under way was saved; `fitted` holds all there was."""

    def __init__(self, message: str, fitted: Fitted):
        super().__init__(message)
        self.fitted = fitted


class Terminated(SystemExit):
    """SIGTERM during `fit`, as when a job is preempted: saved, and the process may end.

    Where nothing catches it the process ends without a traceback, with status 143, by which shells
    and schedulers know a process that SIGTERM ended. `fitted` holds all there was.
    """

    def __init__(self, message: str, fitted: Fitted):
        super().__init__(128 + signal.SIGTERM)
        self.message, self.fitted = message, fitted

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass
class Run:
    """What changes while a run goes on, all of it in every checkpoint.

    `epoch`: epochs done; `partial`: each step's metrics of the epoch under way; `rows`: of the
    epochs before; `best` is None until something was compared.
    """

    state: Any
    best: Any = None
    epoch: int = 0
    partial: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lowest: Any = math.inf
    waited: Any = 0
    stopped: bool = False

    @property
    def done(self) -> int:
        """Steps done of the epoch under way."""
        return max(map(len, self.partial.values()), default=0)

    def gather(self, history: dict[str, Any]) -> None:
        """Add a chunk's metrics, `[steps]` or `[steps, members]` each, to the epoch under way."""
        done, count = self.done, len(next(iter(history.values())))
        for name, values in history.items():
            # A resumed run may count what it did not before: its steps so far were not skipped.
            before = self.partial.setdefault(name, [0.0] * done)
            before.extend(np.asarray(values, float).tolist())
        for values in self.partial.values():
            values.extend([0.0] * (done + count - len(values)))

    def close_epoch(self) -> dict[str, Any]:
        """The means over the epoch's steps, which are no longer needed."""
        # Steps that were skipped do not count: they changed nothing.
        counted = ~np.asarray(self.partial.get("skipped", 0), bool)
        row = {}
        for name, values in self.partial.items():
            array = np.asarray(values)
            if name == "skipped":
                row[name] = array.sum(axis=0).tolist()
            else:
                array = array[counted] if counted.ndim and not counted.all() else array
                row[name] = (array.mean(axis=0) if len(array) else math.nan * array.sum(0)).tolist()
        self.partial = {}
        self.epoch += 1
        return row

    def compare(self, value: np.ndarray, patience: int | None) -> None:
        """Keep the state where its monitored value is the lowest so far, else count the waiting."""
        lower = value < np.asarray(self.lowest)
        new = self.state
        if self.best is None:
            self.best = owned(new)
        else:  # the key is the same all along
            kept = chosen(lower, new._replace(key=()), self.best._replace(key=()))
            self.best = kept._replace(key=self.best.key)
        self.lowest = np.where(lower, value, self.lowest).tolist()
        self.waited = np.where(lower, 0, np.asarray(self.waited) + 1).tolist()
        self.stopped = self.out_of(patience)

    def out_of(self, patience: int | None) -> bool:
        return patience is not None and bool(np.all(np.asarray(self.waited) >= patience))

    def record(self) -> checkpoint.Record:
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        plain["compared"] = self.best is not None
        best = self.state if self.best is None else self.best
        return checkpoint.Record(self.state, best, plain)

    def fitted(self, stopped: str) -> Fitted:
        names = dict.fromkeys(name for row in self.rows for name in row)
        width = next((len(v) for row in self.rows for v in row.values() if isinstance(v, list)), 0)
        absent = [math.nan] * width if width else math.nan
        history = {name: np.array([row.get(name, absent) for row in self.rows]) for name in names}
        best = self.state if self.best is None else self.best
        return Fitted(self.state, best, history, stopped)


def drive(
    state: Any,
    *,
    advance: Callable[[Any, int, int], tuple[Any, dict[str, Any]]],
    inspect: Callable[["Run", dict[str, Any], int, Callable[[], Path | None]], None],
    evaluate: Callable[[Any], dict[str, Any]] | None,
    identity: dict[str, Any],
    epochs: int,
    steps: int,
    chunk: int,
    evaluate_every: int,
    monitor: str,
    patience: int | None,
    directory: str | Path | None,
    keep: int,
    checkpoint_every: int,
    resume: bool,
    hook: Callable[[Any], Any] | None,
    log: Callable[[dict[str, Any]], None] | None,
    progress: bool,
) -> Fitted:
    """Advance a state through its epochs of `steps` steps, at most `chunk` at a time.

    `advance(state, step, count) -> (state, history)`: `count` steps from the `step`-th on, and each
    metric `[count, ...]` on the host; `inspect(run, history, step, last)`, where `run.state` is
    the new one, raises NonFiniteError (`last()`: path of the last good checkpoint);
    `evaluate(state)`; the rest as for `train.fit`.
    """
    _check_options(
        epochs=epochs,
        patience=patience,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        monitor=monitor,
        directory=directory,
        keep=keep,
        checkpoint_every=checkpoint_every,
        resume=resume,
        chunk=chunk,
    )
    piece = _piece(steps, chunk)
    first = jax.process_index() == 0
    with (
        checkpoint.opened(directory, identity, resume=resume, keep=keep) as store,
        _bar(epochs, progress and first) as bar,
        _signals() as signals,
    ):
        run = _begin(state, store, patience)
        bar.update(run.epoch)
        unended = (run.epoch + 1) * steps if run.done == steps else None

        def last() -> Path | None:
            return checkpoint.latest(store)

        try:
            while run.epoch < epochs and not run.stopped:
                step = run.epoch * steps + run.done
                if run.done < steps:  # else the end of this epoch failed, before it was resumed
                    count = min(piece, steps - run.done)
                    with _rescued(run, step, store):
                        run.state, history = advance(run.state, step, count)
                    inspect(run, history, step, last)
                    run.gather(history)
                    step += len(next(iter(history.values())))
                done = run.done == steps
                if done:
                    with _rescued(run, step, store):
                        means = run.close_epoch()
                        if hook is not None:
                            run.state = owned(hook(run.state))
                        row = {"epoch": float(run.epoch), "step": float(step)} | means
                        due = run.epoch % evaluate_every == 0
                        if evaluate is not None and (due or run.epoch == epochs):
                            found = evaluate(run.state).items()
                            measured = {n: np.asarray(v, float) for n, v in found}
                            faults.check_monitored(measured, monitor, step, last)
                            row |= {f"eval/{name}": v.tolist() for name, v in measured.items()}
                            if due:  # one at the end only is recorded: a longer run has it not
                                run.compare(measured[monitor], patience)
                        if log is not None and first:
                            log(row)
                        run.rows.append(row)  # the last, since the record of before shares them
                    names = (*means, f"eval/{monitor}")
                    bar.set_postfix({n: _shown(row[n]) for n in names if n in row}, refresh=False)
                    bar.update()
                caught = _agreed(signals)
                ended = run.epoch == epochs or run.stopped
                due = done and (ended or run.epoch % checkpoint_every == 0)
                if store is not None and (due or caught):
                    checkpoint.save(store, step, run.record(), again=ended and step == unended)
                if caught:
                    raise _stopped(run, steps, caught, directory)
        except (faults.NonFiniteError, checkpoint.SaveError) as error:
            full = isinstance(error, checkpoint.SaveError)
            error.fitted = run.fitted("not saved" if full else "not finite")
            raise
    return run.fitted("early" if run.stopped else "epochs")


@contextlib.contextmanager
def _rescued(run: Run, step: int, store: checkpoint.Store | None) -> Iterator[None]:
    """Where what is done here fails, the run before it, of `step` steps, is kept for a resume."""
    record = run.record()
    try:
        yield
    except faults.NonFiniteError:  # nothing to go on with
        raise
    except Exception as error:
        leaves = jax.tree.leaves((record.state, record.best))
        whole = not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)
        if store is not None and step and whole and jax.process_count() == 1:
            try:
                checkpoint.save(store, step, record)
                error.add_note(f"fit: saved before step {step}; resume=True goes on there")
            except checkpoint.SaveError as unsaved:
                error.add_note(str(unsaved))
        raise


def owned(state: Any) -> Any:
    """A copy: the program gives the buffers of its input back, so nobody else may hold them."""
    return jax.tree.map(jnp.copy, state)


@jax.jit
def chosen(whether: Any, new: Any, old: Any) -> Any:
    """`new` where `whether`, () or `[members]`, is true, else `old`, leaf by leaf."""

    def choose(new: Any, old: Any) -> Any:
        shape = whether.shape + (1,) * (new.ndim - whether.ndim)
        return jnp.where(jnp.broadcast_to(whether.reshape(shape), new.shape), new, old)

    return jax.tree.map(choose, new, old)


def _check_options(
    *,
    epochs: int,
    patience: int | None,
    evaluate: Any,
    evaluate_every: int,
    monitor: str,
    directory: Any,
    keep: int,
    checkpoint_every: int,
    resume: bool,
    chunk: int,
) -> None:
    every = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    at_least_one("fit", epochs=epochs, patience=patience, **every, keep=keep, chunk=chunk)
    if patience is not None and evaluate is None:
        raise wrong("fit: patience", patience, "evaluate beside it", "give evaluate=...")
    if resume and directory is None:
        raise wrong("fit: resume", resume, "a directory to resume from", "give directory=...")
    if monitor == "elbo":
        raise wrong("fit: monitor", "'elbo'", "what is minimised", "monitor 'loss', its negative")


def _begin(state: Any, store: checkpoint.Store | None, patience: int | None) -> Run:
    """The run as the newest good checkpoint has it, or a fresh one."""
    fresh = Run(state)
    if store is None:
        return fresh
    checkpoint.check_space(store, fresh.record())
    record = checkpoint.restore(store, like=fresh.record())
    if record is None:
        return fresh
    jax.tree.map(lambda leaf: leaf.delete(), state)  # held by the callers all along, and not needed
    progress = dict(record.progress)
    best = owned(record.best) if progress.pop("compared") else None
    run = Run(owned(record.state), best, **progress)
    run.stopped = run.out_of(patience)
    return run


def _piece(steps: int, chunk: int) -> int:
    """Steps of a call: an even part of the epoch where there is one, so as to compile once."""
    parts = -(-steps // chunk)
    even = (n for n in range(parts, min(2 * parts, steps) + 1) if steps % n == 0)
    return steps // next(even, parts) if parts > 1 else steps


def _agreed(signals: list[int]) -> list[int]:
    """The signals that any process of the run has had: all stop at the same step."""
    if jax.process_count() == 1:
        return list(signals)  # one that comes from now on is for the next look
    from jax.experimental import multihost_utils

    mine = np.array([signal.SIGINT in signals, signal.SIGTERM in signals])
    had: Any = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, 2).any(axis=0)
    found = {signal.SIGINT: had[0], signal.SIGTERM: had[1]}
    return [int(number) for number, yes in found.items() if yes]


def _stopped(run: Run, steps: int, signals: list[int], directory: Any) -> BaseException:
    terminated = signal.SIGTERM in signals
    where = (
        f"in epoch {run.epoch + 1} (step {run.done} of {steps})"
        if run.done
        else (f"after epoch {run.epoch}")
    )
    saved = f"; resume=True continues from {directory}" if directory is not None else ""
    message = f"fit: stopped by {'SIGTERM' if terminated else 'Ctrl-C'} {where}{saved}"
    return (Terminated if terminated else Interrupted)(message, run.fitted("interrupted"))


def _shown(value: Any) -> str:
    """A number, or the mean and the standard deviation of those of a population that are finite."""
    found = np.asarray(value, float)
    if found.ndim == 0:
        return f"{found:.4g}"
    found = found[np.isfinite(found)]
    return f"{found.mean():.4g} ({found.std():.2g})" if len(found) else "nan"


def _bar(epochs: int, progress: bool) -> Any:
    from tqdm import tqdm  # lazily: importing the library stays light

    # A terminal redraws the line; a log file or a notebook gets a line now and then.
    often = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=epochs, unit="epoch", disable=not progress, mininterval=often)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of raising; a second Ctrl-C raises at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)
        again = "; Ctrl-C again stops at once" * (number == signal.SIGINT)
        with contextlib.suppress(RuntimeError):  # it came while something else was printed
            print(f"\nstopping after the steps under way{again}", file=sys.stderr)

    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
    for unheeded in caught:  # while the last checkpoint was written, say: the run is done
        signal.raise_signal(unheeded)
