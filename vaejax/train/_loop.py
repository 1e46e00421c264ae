"""The loop around a compiled run: progress, evaluation, early stopping, checkpoints, signals.

`train.fit` and `population.fit` give it a program that takes their state some steps on. Each value
that the loop keeps or compares is one number for a single run, and a list, with one number for each
member, for a population.
"""

import contextlib
import copy
import dataclasses
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import wrong
from vaejax.train import _callbacks as callbacks
from vaejax.train import _faults as faults
from vaejax.train import _signals as signals
from vaejax.train import checkpoint
from vaejax.train._averaging import average
from vaejax.train._bookkeeping import Bookkeeping
from vaejax.train._history import mean_of_steps, separated, unmeasured
from vaejax.types import describe, numbers_in


class Fitted(NamedTuple):
    """What `fit` returns.

    Args:
      state: after the last step.
      best: the state with the best monitored value; the last one where nothing was compared.
      history: arrays `[epochs]` by name (`[epochs, members]` of a population), nats per example;
        `eval/...` is NaN where an epoch was not evaluated.
      stopped: "epochs", "early", "interrupted", "not finite" or "not saved".
    """

    state: Any
    best: Any
    history: dict[str, np.ndarray]
    stopped: str

    @property
    def params(self) -> Any:
        """Parameters after the last step."""
        return self.state.params

    @property
    def average(self) -> Any:
        """The average of the parameters after the last step, of an optimizer by `averaging`."""
        return average(self.state)

    def __repr__(self) -> str:
        epochs = len(next(iter(self.history.values()), ()))
        return (
            f"Fitted(stopped={self.stopped!r}, state.step={describe(self.state.step)}, "
            f"history={list(self.history)} of {epochs} epochs, params={numbers_in(self.params)})"
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`. The steps under way were saved; `fitted` holds all there was."""

    def __init__(self, message: str, fitted: Fitted):
        super().__init__(message)
        self.fitted = fitted


class Terminated(SystemExit):
    """SIGTERM during `fit`, as when a job is preempted. The steps under way were saved.

    Where nothing catches it the process ends without a traceback, with status 143, by which shells
    and schedulers know a process that SIGTERM ended. `fitted` holds all there was, and `message`
    says where the run stopped.
    """

    def __init__(self, message: str, fitted: Fitted):
        super().__init__(128 + signal.SIGTERM)
        self.message, self.fitted = message, fitted

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass
class Run:
    """What changes while a run goes on, all of it in every checkpoint.

    Args:
      state: after the steps done so far.
      best: the state with the best monitored value; None until something was compared.
      epoch: epochs done.
      partial: each step's metrics of the epoch under way.
      weights: what each of them counts, of the metrics whose steps do not count alike.
      logged: steps of the epoch under way that the log of steps has had.
      rows: the numbers of the epochs before.
      lowest: the lowest monitored value, of its negative where it is maximised.
      waited: evaluations since then.
      stopped: whether patience has run out.
      monitor: the name of the monitored value.
      maximize: whether it is maximised.
    """

    state: Any
    best: Any = None
    epoch: int = 0
    partial: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    weights: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    logged: int = 0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lowest: Any = math.inf
    waited: Any = 0
    stopped: bool = False
    monitor: str = "loss"
    maximize: bool = False

    @property
    def done(self) -> int:
        """Steps done of the epoch under way."""
        return max(map(len, self.partial.values()), default=0)

    def gather(self, found: dict[str, Any]) -> None:
        """Add a chunk's metrics, `[steps]` or `[steps, members]` each, to the epoch under way."""
        history, weights = separated(found)
        done, count = self.done, len(next(iter(history.values())))
        for name, counts in weights.items():
            alike = np.ones((done, *counts.shape[1:])).tolist()
            self.weights.setdefault(name, alike).extend(counts.tolist())
        for name, values in history.items():
            # A resumed run may measure what it did not before, or no longer.
            before = self.partial.setdefault(name, unmeasured(name, done, values[0]))
            before.extend(np.asarray(values, float).tolist())
        for name, so_far in self.partial.items():
            so_far.extend(unmeasured(name, done + count - len(so_far), so_far[0]))

    def step_row(self, index: int) -> dict[str, Any]:
        """The metrics of a step of the epoch under way; NaN of one that no example of it has."""
        row = {}
        for name, values in self.partial.items():
            value = np.asarray(values[index])
            if name in self.weights:
                value = np.where(np.asarray(self.weights[name][index]) > 0, value, math.nan)
            row[name] = value.tolist()
        return row

    def close_epoch(self) -> dict[str, Any]:
        """The means over the epoch's steps, which are no longer needed."""
        # Steps that were skipped do not count: they changed nothing.
        counted = ~np.asarray(self.partial.get("skipped", 0), bool)
        row = {}
        for name, values in self.partial.items():
            array = np.asarray(values)
            if name == "skipped":
                row[name] = array.sum(axis=0).tolist()
                continue
            if counted.ndim and not counted.all():
                array = array[counted]
            row[name] = mean_of_steps(array, self.weight_of(name, counted))
        self.partial, self.weights, self.logged = {}, {}, 0
        self.epoch += 1
        return row

    def weight_of(self, name: str, counted: np.ndarray) -> np.ndarray | None:
        """What each counted step of the epoch under way counts in the mean of a metric."""
        if name not in self.weights:
            return None
        weight = np.asarray(self.weights[name])
        return weight[counted] if counted.ndim else weight

    def compare(self, value: np.ndarray, patience: int | None) -> None:
        """Keep the state where its monitored value is the best so far, else count the waiting."""
        value = -value if self.maximize else value
        lower = np.isfinite(value) & (value < np.asarray(self.lowest))
        new = self.state
        if self.best is None or (lower.ndim == 0 and lower):
            self.best = owned(new)
        elif lower.ndim:  # the key is the same all along
            kept = chosen(lower, new._replace(key=()), self.best._replace(key=()))
            self.best = kept._replace(key=self.best.key)
        self.lowest = np.where(lower, value, self.lowest).tolist()
        self.waited = np.where(lower, 0, np.asarray(self.waited) + 1).tolist()
        self.stopped = self.out_of(patience)

    def out_of(self, patience: int | None) -> bool:
        """Whether the run, or each member of it, has waited long enough."""
        return patience is not None and bool(np.all(np.asarray(self.waited) >= patience))

    def record(self) -> checkpoint.Record:
        """The run as a checkpoint holds it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        plain["compared"] = self.best is not None
        best = self.state if self.best is None else self.best
        return checkpoint.Record(self.state, best, plain)

    def fitted(self, stopped: str) -> Fitted:
        """The run as `fit` returns it."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        width = next((len(v) for row in self.rows for v in row.values() if isinstance(v, list)), 0)
        absent = [math.nan] * width if width else math.nan
        history = {name: np.array([row.get(name, absent) for row in self.rows]) for name in names}
        best = self.state if self.best is None else self.best
        return Fitted(self.state, best, history, stopped)


class Program(NamedTuple):
    """What a run does, as `train.fit` and `population.fit` make it.

    Args:
      advance: `(state, step, count) -> (state, history)`, `count` steps from the `step`-th on, and
        each metric `[count, ...]` on the host; fewer steps where their data could not be read.
      inspect: `(run, history, step, last)`, where `run.state` is the new one, raises
        NonFiniteError; `last()` is the path of the last good checkpoint, or None.
      evaluate: `state -> {name: number}`, or None.
      steps: how many an epoch has.
      identity: finds what tells this run from another one, values that JSON can hold.
      begun: the names of the arrays of the optimizer's state that were not finite at first.
    """

    advance: Callable[[Any, int, int], tuple[Any, dict[str, Any]]]
    inspect: Callable[[Run, dict[str, Any], int, Callable[[], Path | None]], None]
    evaluate: Callable[[Any], dict[str, Any]] | None
    steps: int
    identity: Callable[[], dict[str, Any]]
    begun: Set[str] = frozenset()


def drive(state: Any, program: Program, book: Bookkeeping) -> Fitted:
    """Take a state through its epochs, some steps at a time, and keep the books.

    Between two calls of the program signals are heeded; at the end of an epoch come the hook, the
    evaluation, the log and the checkpoint.
    """
    book.check(program.evaluate)
    opened = checkpoint.opened(
        book.directory,
        program.identity,
        resume=book.resume,
        keep=book.keep,
        function=book.function,
    )
    with opened as store, _bar(book) as bar, signals.collected() as collected:
        run = _begin(state, store, book)
        if run.epoch > book.epochs:
            warnings.warn(
                f"{book.function}: epochs: got {book.epochs}, but the run in {book.directory} has "
                f"done {run.epoch}, and epochs counts those too: nothing is trained; to go on for "
                f"n more, pass epochs={run.epoch} + n",
                stacklevel=3,
            )
        loop = _Loop(run, program, book, store)
        bar.update(run.epoch)
        resumed_at = run.epoch * program.steps + run.done
        # Such a checkpoint was saved before the end of its epoch, in which something failed.
        unended = resumed_at if run.done == program.steps else None
        try:
            while run.epoch < book.epochs and not run.stopped:
                step = loop.advance()
                loop.log_steps(step)
                epoch_is_over = run.done == program.steps
                if epoch_is_over:
                    shown = loop.end_epoch(step)
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                caught = signals.agreed(collected)
                ended = run.epoch == book.epochs or run.stopped
                due = epoch_is_over and (ended or run.epoch % book.checkpoint_every == 0)
                if store is not None and (due or caught):
                    again = ended and step == unended
                    checkpoint.save(store, step, run.record(), again=again)
                if caught:
                    raise _stopped(run, program.steps, caught, book)
        except faults.NonFiniteError as error:
            error.fitted = run.fitted("not finite")
            raise
        except checkpoint.SaveError as error:
            error.fitted = run.fitted("not saved")
            raise
    return run.fitted("early" if run.stopped else "epochs")


class _Loop(NamedTuple):
    """The parts of a run's loop, which share the run, its program, the books and the store."""

    run: Run
    program: Program
    book: Bookkeeping
    store: checkpoint.Store | None

    def advance(self) -> int:
        """The next call of the program; returns the number of steps done in all."""
        run, steps = self.run, self.program.steps
        step = run.epoch * steps + run.done
        if run.done == steps:  # the end of this epoch failed, before the run was resumed
            return step
        count = min(self.book.piece(steps), steps - run.done)
        with self.rescued(step):
            run.state, found = self.program.advance(run.state, step, count)
        history, _ = separated(found)
        try:
            self.program.inspect(run, history, step, self.last)
        except faults.NonFiniteError as error:
            made = max(error.step - step, 0)
            if self.book.log_step is not None and made:
                run.gather(jax.tree.map(lambda values: values[:made], found))
                self.log_steps(None)
            raise
        run.gather(found)
        return step + len(next(iter(history.values())))

    def log_steps(self, step: int | None) -> None:
        """Tell the log of steps of those that it has not had, so that a resume goes on there.

        `step`: the number of steps done, at which the run is saved where the log fails; None for a
        run that is not saved.
        """
        run, log, steps = self.run, self.book.log_step, self.program.steps
        if log is None or jax.process_index() != 0:
            return
        while run.logged < run.done:
            number = run.epoch * steps + run.logged + 1
            row = {"epoch": number / steps, "step": float(number)} | run.step_row(run.logged)
            with contextlib.nullcontext() if step is None else self.rescued(step):
                log(row)
            run.logged += 1

    def end_epoch(self, step: int) -> dict[str, str]:
        """The hook, the evaluation and the log; returns what the progress bar shows."""
        run, book = self.run, self.book
        with self.rescued(step):
            means = run.close_epoch()
            if book.hook is not None:
                run.state = callbacks.hooked(
                    book.function, book.hook, run.state, step, self.last, self.program.begun
                )
            row = {"epoch": float(run.epoch), "step": float(step)} | means
            row |= self.measured(step)
            if book.log is not None and jax.process_index() == 0:
                book.log(copy.deepcopy(row))  # a log may change what it is given
            run.rows.append(row)  # the last, since the record of before shares them
        return {n: _shown(row[n]) for n in (*means, f"eval/{book.monitor}") if n in row}

    def measured(self, step: int) -> dict[str, Any]:
        """What the evaluation finds, if one is due, and whether it is the best so far."""
        run, book = self.run, self.book
        due = run.epoch % book.evaluate_every == 0
        if self.program.evaluate is None or not (due or run.epoch == book.epochs):
            return {}
        found = self.program.evaluate(run.state)
        callbacks.check_there(f"{book.function}: evaluate", run.state)
        found = callbacks.numbers(book.function, found, np.shape(run.state.step))
        measured = {name: np.asarray(value).astype(float) for name, value in found.items()}
        faults.check_monitored(measured, book.monitor, step, self.last, book.function)
        if due:  # one at the end only is recorded: a longer run has it not
            run.compare(measured[book.monitor], book.patience)
        return {f"eval/{name}": value.tolist() for name, value in measured.items()}

    def last(self) -> Path | None:
        """Path of the last good checkpoint."""
        return checkpoint.latest(self.store)

    @contextlib.contextmanager
    def rescued(self, step: int) -> Iterator[None]:
        """Where what is done inside fails, the run before it is saved, at `step`, for a resume."""
        store, record = self.store, self.run.record()
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
                    where = self.book.function
                    error.add_note(f"{where}: saved before step {step}; resume=True goes on there")
                except checkpoint.SaveError as unsaved:
                    error.add_note(str(unsaved))
            raise


def owned(state: Any) -> Any:
    """A copy: a program reuses the buffers of its input, so no one else may hold them."""
    return _copied(state)


@jax.jit
def _copied(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


@jax.jit
def chosen(whether: Any, new: Any, old: Any) -> Any:
    """`new` where `whether`, `[members]`, is true, else `old`, leaf by leaf."""

    def choose(new: Any, old: Any) -> Any:
        shape = whether.shape + (1,) * (new.ndim - whether.ndim)
        return jnp.where(jnp.broadcast_to(whether.reshape(shape), new.shape), new, old)

    return jax.tree.map(choose, new, old)


def _begin(state: Any, store: checkpoint.Store | None, book: Bookkeeping) -> Run:
    """The run as the newest good checkpoint has it, or a fresh one."""
    fresh = Run(state, monitor=book.monitor, maximize=book.maximize)
    if store is None:
        return fresh
    checkpoint.check_space(store, fresh.record())
    record = checkpoint.restore(store, like=fresh.record())
    store.run()  # while all is well: it reads the data, and a step that fails is saved
    if record is None:
        return fresh
    progress = dict(record.progress)
    compared = progress.pop("compared")
    before = {name: progress.pop(name) for name in ("monitor", "maximize")}
    now: dict[str, Any] = {"monitor": book.monitor, "maximize": book.maximize}
    if compared and before != now:
        where, fix = f"{book.function}: directory {book.directory}", "resume with these"
        raise wrong(where, f"{now}", f"{before}, by which the run chose its best state", fix)
    jax.tree.map(lambda leaf: leaf.delete(), state)  # held by the callers all along, and not needed
    best = owned(record.best) if compared else None
    run = Run(owned(record.state), best, **progress, **now)
    run.stopped = run.out_of(book.patience)
    return run


def _stopped(run: Run, steps: int, caught: list[int], book: Bookkeeping) -> BaseException:
    """The error that ends a run for a signal."""
    if run.done:
        where = f"in epoch {run.epoch + 1} (step {run.done} of {steps})"
    else:
        where = f"after epoch {run.epoch}"
    kept = book.directory is not None
    saved = f"; resume=True continues from {book.directory}" if kept else ""
    fitted = run.fitted("interrupted")
    if signal.SIGTERM in caught:
        return Terminated(f"{book.function}: stopped by SIGTERM {where}{saved}", fitted)
    return Interrupted(f"{book.function}: stopped by Ctrl-C {where}{saved}", fitted)


def _shown(value: Any) -> str:
    """A number, or the mean and the standard deviation of those of a population that are finite."""
    found = np.asarray(value, float)
    if found.ndim == 0:
        return f"{found:.4g}"
    found = found[np.isfinite(found)]
    return f"{found.mean():.4g} ({found.std():.2g})" if len(found) else "nan"


def _bar(book: Bookkeeping) -> Any:
    from tqdm import tqdm  # lazily: importing the library stays light

    # A terminal redraws the line; a log file or a notebook gets a line now and then.
    often = 0.1 if sys.stderr.isatty() else 10.0
    hidden = not book.progress or jax.process_index() != 0
    return tqdm(total=book.epochs, unit="epoch", disable=hidden, mininterval=often)
