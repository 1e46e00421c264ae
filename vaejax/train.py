"""Training on two floors: pure programs (`make_step`, `make_scan`, `make_train`), and the loop for
people (`fit`) with progress, evaluation, early stopping, checkpoints and exact resume.

Every random number of a run comes from `TrainState.key` and the step's number, so that cutting a
run into chunks, or stopping and resuming it, changes no bit of the result.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vaejax import checkpoint
from vaejax.batch import as_batch, over_examples, size_of
from vaejax.errors import at_least_one, wrong
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform


class TrainState(NamedTuple):
    """All that a run is: parameters, optimizer state, the run's key, the number of steps done."""

    params: Params
    opt_state: Any
    key: Key
    step: Array


class Fitted(NamedTuple):
    """What `fit` returns.

    `state`: after the last step; `best`: the state with the lowest monitored value, the last one
    where nothing was compared; `history`: arrays `[epochs]` by name, nats per example, with
    `eval/...` NaN where an epoch was not evaluated; `stopped`: "epochs", "early" or "interrupted".
    """

    state: TrainState
    best: TrainState
    history: dict[str, np.ndarray]
    stopped: str

    @property
    def params(self) -> Params:
        """Parameters after the last step."""
        return self.state.params


class NonFiniteError(FloatingPointError):
    """A loss or one of its terms became infinite or NaN.

    `step`: the first such step, counted from 0; `terms`: their values there; `checkpoint`: the
    last good one on disk, or None.
    """

    def __init__(self, message: str, step: int, terms: dict[str, float], checkpoint: Path | None):
        super().__init__(message)
        self.step, self.terms, self.checkpoint = step, terms, checkpoint


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`: the epoch was finished and saved; `fitted` holds all there was."""

    def __init__(self, message: str, fitted: Fitted):
        super().__init__(message)
        self.fitted = fitted


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, transform: Transform | None = None
) -> tuple[Callable[..., TrainState], Callable[..., tuple[TrainState, Metrics]]]:
    """One update: `init(key, params) -> TrainState`, `step(state, batch) -> (state, metrics)`.

    `transform(key, x)`, for one example, turns stored data into what the loss sees (binarised,
    dequantised or scaled), anew at every step. `metrics` are the loss and its named parts before
    the update, nats per example.
    """

    def init(key: Key, params: Params) -> TrainState:
        # Copies, since a donated state must not take the caller's arrays with it.
        params = jax.tree.map(jnp.array, params)
        return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        batch = as_batch(batch)
        step_key = jax.random.fold_in(_stream(state.key, "noise"), state.step)
        transform_key, loss_key = jax.random.split(step_key)
        if transform is not None:
            batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = gradient(state.params, loss_key, batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.key, state.step + 1), {"loss": value, **metrics}

    return init, step


def make_scan(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    indices: Callable[[Key, Array], Array],
    transform: Transform | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """`steps` updates as one pure program: `(state, data) -> (state, history)`.

    `data` is a Batch, or the x of one, on the device as it is stored (uint8 stays uint8 until
    inside the step). `indices(key, step) -> [batch]` chooses the examples of a step. `history`
    holds each metric for every step, `[steps]`. Jit it with the state donated; any cutting into
    chunks gives the same bits.
    """
    _, step = make_step(loss, optimizer, transform=transform)

    def scan(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        order_key = _stream(state.key, "order")

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            chosen = indices(order_key, state.step)
            return step(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data))

        return lax.scan(body, state, length=steps)

    return scan


def make_train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int = 128,
    indices: Callable[[Key, Array], Array] | None = None,
    transform: Transform | None = None,
) -> Callable[[Key, Params, Any], tuple[TrainState, Metrics]]:
    """A whole run as one pure function `(key, params, data) -> (state, history)`.

    Jit it, `vmap` it over keys, or shard it. `indices` defaults to `shuffled(n, batch_size)`;
    the rest is as in `make_scan`.
    """
    init, _ = make_step(loss, optimizer)

    def train(key: Key, params: Params, data: Any) -> tuple[TrainState, Metrics]:
        chosen = indices or shuffled(size_of(data), batch_size)
        scan = make_scan(loss, optimizer, steps=steps, indices=chosen, transform=transform)
        return scan(init(key, params), data)

    return train


def shuffled(size: int, batch_size: int) -> Callable[[Key, Array], Array]:
    """`indices(key, step) -> [batch_size]`: each epoch visits the examples in a new random order.

    An epoch is `size // batch_size` steps; what is left over is dropped, others each epoch. The
    order is a keyed permutation evaluated only where it is needed (a Feistel network with cycle
    walking), so that no step sorts the data set and none depends on the one before.
    Black and Rogaway, 2002, Ciphers with arbitrary finite domains.
    """
    if not 1 <= batch_size <= size:
        fix = "lower it; one example alone needs a leading axis: x[None]"
        raise wrong("shuffled: batch_size", batch_size, f"1 to {size}, the examples", fix)
    steps = size // batch_size

    def indices(key: Key, step: Array) -> Array:
        epoch_key = jax.random.fold_in(key, step // steps)
        first = (step % steps) * batch_size
        return permute(epoch_key, first + jnp.arange(batch_size), size)

    return indices


def permute(key: Key, positions: Array, size: int) -> Array:
    """The entries at `positions` `[k]` of a random permutation of 0..size-1: int32 `[k]`."""
    half = max(3, -(-(size - 1).bit_length() // 2))
    mask = jnp.uint32((1 << half) - 1)
    rounds = jax.random.bits(key, (8,), jnp.uint32)

    def shuffle(index: Array) -> Array:
        left, right = index >> half, index & mask
        for i in range(8):
            left, right = right, left ^ (_mix(right + rounds[i]) & mask)
        return (left << half) | right

    # Whoever lands outside walks on along its cycle until it is inside: still a permutation.
    inside = lax.while_loop(
        lambda index: jnp.any(index >= size),
        lambda index: jnp.where(index >= size, shuffle(index), index),
        shuffle(positions.astype(jnp.uint32)),
    )
    return inside.astype(jnp.int32)


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Any,
    *,
    key: Key,
    epochs: int,
    batch_size: int = 128,
    indices: Callable[[Key, Array], Array] | None = None,
    transform: Transform | None = None,
    evaluate: Callable[[Params, Key], Metrics] | None = None,
    evaluate_every: int = 1,
    monitor: str = "loss",
    patience: int | None = None,
    directory: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    hook: Callable[[TrainState], TrainState] | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Fitted:
    """Train with a progress bar, evaluation, early stopping, checkpoints and exact resume.

    - `data`: a Batch, or the x of one, `[n, ...]`; `transform(key, x)` is applied in each step.
      `indices(key, step) -> [batch_size]` chooses the examples of a step, by default
      `shuffled(n, batch_size)`; an epoch is `n // batch_size` steps.
    - `evaluate(params, key) -> {name: number}` runs every `evaluate_every` epochs, with the same
      key each time, and after the last, where it is only recorded. The state with the lowest
      `monitor` (what is to be minimised) is kept as `best`, and after `patience` evaluations
      without a lower one training stops.
    - `directory`: where checkpoints go every `checkpoint_every` epochs and at the end. With
      `resume` the newest one there is continued, bit for bit as if the run had not stopped;
      without it a directory that holds a run is refused.
    - `hook(state) -> state` runs between epochs; `log(row)` gets each epoch's numbers.

    Raises NonFiniteError at the first loss that is not finite, naming the terms, the step and the
    last good checkpoint; Interrupted on Ctrl-C, after the epoch is done and saved; ValueError for
    data that cannot be trained on or a directory or checkpoint that is not this run's. Warns of
    uint8 levels without a transform.
    """
    every = {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    at_least_one("fit", epochs=epochs, patience=patience, **every)
    if patience is not None and evaluate is None:
        raise wrong("fit: patience", patience, "evaluate beside it", "give evaluate=...")
    if resume and directory is None:
        raise wrong("fit: resume", resume, "a directory to resume from", "give directory=...")
    if monitor == "elbo":
        raise wrong("fit: monitor", "'elbo'", "what is minimised", "monitor 'loss', its negative")
    data = as_batch(data)
    size = size_of(data)
    _check_finite(data)
    _warn_of_levels(data, transform)
    in_order = shuffled(size, batch_size)  # refuses a batch larger than the data, or none
    order, steps = indices or in_order, size // batch_size
    _check_order(order, _stream(key, "order"), size, batch_size)
    scan = make_scan(loss, optimizer, steps=steps, indices=order, transform=transform)
    run_epoch = jax.jit(scan, donate_argnums=0)
    device_data = jax.tree.map(jnp.asarray, data)
    identity = {
        "examples": size,
        "data": checkpoint.digest(jax.tree.map(lambda leaf: leaf[:256], data)),
        "batch_size": batch_size,
        "key": checkpoint.key_words(key),
    }
    with (
        checkpoint.opened(directory, identity, resume=resume) as store,
        _bar(epochs, progress) as bar,
        _interrupts() as interrupts,
    ):
        run = _begin(make_step(loss, optimizer)[0](key, params), store, patience)
        bar.update(run.epoch)
        while run.epoch < epochs and not run.stopped:
            run.state, history = run_epoch(run.state, device_data)
            history = jax.device_get(history)
            _check_history(history, run.epoch * steps, store, order, key, data, transform)
            _check_parameters(run.state, store)
            run.epoch += 1
            run.state = _owned(hook(run.state)) if hook is not None else run.state
            row = {"epoch": float(run.epoch), "step": float(run.epoch * steps)}
            row |= {name: float(np.mean(values, dtype=float)) for name, values in history.items()}
            if run.lowest == math.inf:
                run.best = run.state
            due = run.epoch % evaluate_every == 0
            if evaluate is not None and (due or run.epoch == epochs):
                measured = _evaluated(
                    evaluate, run.state.params, key, monitor, run.epoch * steps, store
                )
                row |= {f"eval/{name}": value for name, value in measured.items()}
                if due:  # one at the end only is recorded: a longer run would not have had it
                    run.compare(measured[monitor], patience)
            run.rows.append(row)
            if log is not None:
                log(row)
            shown = [name for name in (*history, f"eval/{monitor}") if name in row]
            bar.set_postfix({name: f"{row[name]:.4g}" for name in shown}, refresh=False)
            bar.update()
            done = run.epoch == epochs or run.stopped or interrupts
            if store is not None and (done or run.epoch % checkpoint_every == 0):
                checkpoint.save(store, run.epoch, run.record())
            if interrupts:
                saved = f"; resume=True continues from {directory}" if store is not None else ""
                message = f"fit: stopped by Ctrl-C after epoch {run.epoch}{saved}"
                raise Interrupted(message, run.fitted("interrupted"))
    return run.fitted("early" if run.stopped else "epochs")


@dataclasses.dataclass
class _Run:
    """What changes while `fit` runs, all of it in every checkpoint."""

    state: TrainState
    best: TrainState
    epoch: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    lowest: float = math.inf
    waited: int = 0
    stopped: bool = False

    def compare(self, value: float, patience: int | None) -> None:
        """Keep the state if its monitored value is the lowest so far, else count the waiting."""
        if value < self.lowest:
            self.best, self.lowest, self.waited = _owned(self.state), value, 0
        else:
            self.waited += 1
        self.stopped = patience is not None and self.waited >= patience

    def record(self) -> checkpoint.Record:
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return checkpoint.Record(self.state, self.best, plain)

    def fitted(self, stopped: str) -> Fitted:
        names = dict.fromkeys(name for row in self.rows for name in row)
        history = {n: np.array([row.get(n, math.nan) for row in self.rows]) for n in names}
        return Fitted(self.state, self.best, history, stopped)


def _begin(state: TrainState, store: checkpoint.Store | None, patience: int | None) -> _Run:
    """The run as the newest checkpoint has it, or a fresh one."""
    fresh = _Run(state, state)
    record = checkpoint.restore(store, like=fresh.record()) if store is not None else None
    run = fresh if record is None else _Run(record.state, record.best, **record.progress)
    run.stopped = patience is not None and run.waited >= patience
    run.state, run.best = _owned(run.state), _owned(run.best)
    return run


def _owned(state: TrainState) -> TrainState:
    """A copy: the program gives the buffers of its input back, so nobody else may hold them."""
    return jax.tree.map(jnp.copy, state)


_STREAMS = {"noise": 0, "order": 1, "evaluation": 2}


def _stream(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, _STREAMS[name])


def _mix(x: Array) -> Array:
    """Finalizer of MurmurHash3 on 32-bit words: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _evaluated(
    evaluate: Callable[[Params, Key], Metrics],
    params: Params,
    key: Key,
    monitor: str,
    step: int,
    store: checkpoint.Store | None,
) -> dict[str, float]:
    # The same noise at every evaluation: they differ by the parameters alone.
    measured = evaluate(params, _stream(key, "evaluation"))
    if monitor not in measured:
        raise ValueError(
            f"fit: monitor={monitor!r} is not among what evaluate returned: {sorted(measured)}"
        )
    values = {name: float(value) for name, value in measured.items()}
    if not math.isfinite(values[monitor]):
        raise NonFiniteError(
            f"fit: evaluate returned {values} after step {step}, of which {monitor!r} is monitored "
            f"and not finite. {_last_good(store)}",
            step,
            values,
            checkpoint.latest(store),
        )
    return values


@jax.jit
def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _check_parameters(state: TrainState, store: checkpoint.Store | None) -> None:
    """A finite loss can have a gradient that is not: what it leaves must not be kept as good."""
    if not _all_finite(state.params):
        step = int(state.step) - 1
        raise NonFiniteError(
            f"fit: parameters are not finite after step {step}, though every loss was: a gradient "
            f"was not; clip it, or mask what divides by zero. {_last_good(store)}",
            step,
            {},
            checkpoint.latest(store),
        )


def _last_good(store: checkpoint.Store | None) -> str:
    last = checkpoint.latest(store)
    return f"Last good checkpoint: {last}" if last else "No checkpoint has been written."


def _check_order(order: Any, key: Key, size: int, batch_size: int) -> None:
    """JAX reads the last example for an index that is past it, and says nothing."""
    chosen = np.asarray(order(key, jnp.zeros((), jnp.int32)))
    if chosen.shape != (batch_size,):
        fix = "give fit and indices one batch_size, which also says how many steps an epoch has"
        raise wrong("fit: indices", f"shape {chosen.shape}", f"({batch_size},)", fix)
    if chosen.min() < 0 or chosen.max() >= size:
        got, fix = f"{chosen.min()} to {chosen.max()}", "make them for the data that fit is given"
        raise wrong("fit: indices", got, f"0 to {size - 1}, the examples", fix)


def _check_finite(data: Batch) -> None:
    for name, leaf in (("x", data.x), ("c", data.c)):
        for array in map(np.asarray, jax.tree.leaves(leaf)):
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                bad = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
                raise ValueError(
                    f"fit: data.{name} holds NaN or infinite values in {len(bad)} of "
                    f"{len(array)} examples, the first at index {bad[0]}; drop or fill them"
                )


def _warn_of_levels(data: Batch, transform: Transform | None) -> None:
    levels = [getattr(leaf, "dtype", None) == np.uint8 for leaf in jax.tree.leaves(data.x)]
    if transform is None and all(levels):
        warnings.warn(
            "fit: data.x holds uint8 levels 0..255 and there is no transform, so the model sees "
            "numbers up to 255; pass transform=data.scale (or data.binarize, data.dequantize)",
            stacklevel=3,
        )


def _check_history(
    history: Metrics, start: int, store: Any, order: Any, key: Key, data: Batch, transform: Any
) -> None:
    for name, values in history.items():
        if np.ndim(values) != 1:
            shape = np.shape(values)[1:]
            raise wrong(f"fit: metric {name!r}", f"shape {shape}", "a scalar", "take its mean")
    bad = ~np.all([np.isfinite(values) for values in history.values()], axis=0)
    if not bad.any():
        return
    first = int(np.argmax(bad))
    terms = {name: float(values[first]) for name, values in history.items()}
    step = start + first
    chosen = np.asarray(order(_stream(key, "order"), jnp.asarray(step)))
    ranges = ", ".join(
        f"[{np.min(leaf[chosen]):.4g}, {np.max(leaf[chosen]):.4g}]"
        for leaf in map(np.asarray, jax.tree.leaves(data.x))
    )
    raise NonFiniteError(
        f"fit: {', '.join(n for n, v in terms.items() if not math.isfinite(v))} not finite at step "
        f"{step} ({', '.join(f'{n} = {v:.6g}' for n, v in terms.items())}). The batch's stored x "
        f"lies in {ranges}, with {'no transform' if transform is None else 'a transform'}: check "
        f"that {_suspect(terms)}, then try a lower learning rate or clipped gradients. "
        f"{_last_good(store)}",
        step,
        terms,
        checkpoint.latest(store),
    )


def _suspect(terms: dict[str, float]) -> str:
    """What to look at first, by the term that is not finite."""
    bad = {name for name, value in terms.items() if not math.isfinite(value)}
    if "penalty" in bad and "distortion" not in bad:
        return "the codes lie where the penalty wants them (sparsity.kl: in [0, 1], by nn.sigmoid)"
    if "cross_entropy" in bad:
        return "x is finite and the labels are from 0 to classes - 1"
    return "the likelihood's support holds it (data.binarize, data.scale)"


def _bar(epochs: int, progress: bool) -> Any:
    from tqdm import tqdm  # lazily: importing the library stays light

    # A terminal redraws the line; a log file or a notebook gets a line now and then.
    often = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=epochs, unit="epoch", disable=not progress, mininterval=often)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising; a second one raises at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handler(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        print("\nfinishing this epoch; Ctrl-C again stops at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, previous)
