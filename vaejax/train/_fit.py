"""Training on two floors: pure programs (`make_step`, `make_scan`, `make_train`), and the loop for
people (`fit`) with progress, evaluation, early stopping, checkpoints and exact resume.

Every random number of a run comes from `TrainState.key` and the step's number, so that cutting a
run into chunks, or stopping and resuming it, changes no bit of the result.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from vaejax.batch import as_batch, over_examples, size_of
from vaejax.data import feed
from vaejax.data.sources import Source, in_memory
from vaejax.errors import warn_of_levels
from vaejax.train import _faults as faults
from vaejax.train import _loop as loop
from vaejax.train import checkpoint, devices
from vaejax.train._faults import NonFiniteError
from vaejax.train._loop import Fitted, Interrupted, Terminated
from vaejax.train._order import permute, shuffled
from vaejax.trees import finite, on_host
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, StepOrder, Transform

__all__ = [
    "Fitted",
    "Interrupted",
    "NonFiniteError",
    "StepOrder",
    "Terminated",
    "TrainState",
    "fit",
    "gradient",
    "key_for",
    "make_scan",
    "make_step",
    "make_train",
    "permute",
    "shuffled",
    "skipping",
    "update",
]


class TrainState(NamedTuple):
    """All that a run is: parameters, optimizer state, the run's key, the number of steps done."""

    params: Params
    opt_state: Any
    key: Any
    step: Array


Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, transform: Transform | None = None
) -> tuple[Callable[[Key, Params], TrainState], Step]:
    """One update: `init(key, params) -> TrainState`, `step(state, batch) -> (state, metrics)`.

    `transform(key, x)`, for one example, turns stored data into what the loss sees (binarised,
    dequantised or scaled), anew at every step. `metrics` are the loss and its named parts before
    the update, nats per example.

    An update whose loss, metrics or gradient are not finite is not made: the state comes back as
    it was, its step not counted, so that a run stands still before the step that would have ruined
    it, with all that is needed to look at it. `skipping` goes on to the next step instead.
    """

    def init(key: Key, params: Params) -> TrainState:
        # Copies, since a donated state must not take the caller's arrays with it.
        params, key = jax.tree.map(jnp.array, params), jnp.copy(key)
        return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        grads, fine, metrics = gradient(loss, state, batch, transform=transform)
        # The key stays outside: mapped over, `cond` reads it twice, as if it were used twice.
        new = lax.cond(
            fine,
            lambda state: update(optimizer, state, grads),
            lambda state: state,
            state._replace(key=()),
        )
        return new._replace(key=state.key), metrics

    return init, step


def gradient(
    loss: Loss, state: TrainState, batch: Any, *, transform: Transform | None = None
) -> tuple[Params, Array, Metrics]:
    """The first half of a step: its gradient, whether all is finite, and the metrics."""
    key, batch = _as_seen(state, batch, transform)
    with_value = jax.value_and_grad(loss, has_aux=True)
    (value, metrics), grads = with_value(state.params, key, batch, state.step)
    return grads, finite((value, metrics, grads)), {"loss": value, **metrics}


def update(optimizer: optax.GradientTransformation, state: TrainState, grads: Params) -> TrainState:
    """The second half of a step: the state after the optimizer's update."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.key, state.step + 1)


def skipping(step: Step) -> Step:
    """A step that leaves out an update that is not finite, counts it and goes on.

    The metric `skipped` is 1 for such a step, else 0.
    """

    def skip(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        skipped = (new.step == state.step).astype(jnp.float32)
        return new._replace(step=state.step + 1), {**metrics, "skipped": skipped}

    return skip


def make_scan(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    indices: StepOrder,
    transform: Transform | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """`steps` updates as one pure program: `(state, data) -> (state, history)`.

    `data` is a Batch, or the x of one, on the device as it is stored (uint8 stays uint8 until
    inside the step). `indices(key, step) -> [batch]` chooses the examples of a step. `history`
    holds each metric for every step, `[steps]`. Jit it with the state donated; any cutting into
    chunks gives the same bits.
    """
    return _scan_of(make_step(loss, optimizer, transform=transform)[1], indices, steps)


def make_train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int = 128,
    indices: StepOrder | None = None,
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


_STREAMS = {"noise": 0, "order": 1, "evaluation": 2}


def key_for(key: Key, name: str) -> Key:
    """The key of a run's "noise", "order" or "evaluation", each independent of the others."""
    return jax.random.fold_in(key, _STREAMS[name])


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Any,
    *,
    key: Key,
    epochs: int,
    batch_size: int = 128,
    indices: StepOrder | None = None,
    transform: Transform | None = None,
    evaluate: Callable[[Params, Key], Metrics] | None = None,
    evaluate_every: int = 1,
    monitor: str = "loss",
    patience: int | None = None,
    directory: str | Path | None = None,
    keep: int = 2,
    checkpoint_every: int = 1,
    resume: bool = False,
    skip: int = 0,
    chunk: int = 500,
    mesh: Mesh | None = None,
    hook: Callable[[TrainState], TrainState] | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Fitted:
    """Train with a progress bar, evaluation, early stopping, checkpoints and exact resume.

    - `data`: a Batch, or the x of one, `[n, ...]`, kept on the device; or a Source of data that
      need not fit memory (`sources.open`; the extra `streaming`), with the same result bit for
      bit, and `waiting` in `history`, the share of time in which the device waited for input.
      `transform(key, x)` is applied in each step.
      `indices(key, step) -> [batch_size]` chooses the examples of a step, by default
      `shuffled(n, batch_size)`; an epoch is `n // batch_size` steps.
    - `evaluate(params, key) -> {name: number}` runs every `evaluate_every` epochs, with the same
      key each time, and after the last, where it is only recorded. The state with the lowest
      `monitor` (what is to be minimised) is kept as `best`, and after `patience` evaluations
      without a lower one training stops.
    - `directory`: where checkpoints go every `checkpoint_every` epochs and at the end, named by
      their step; the newest `keep` stay. With `resume` the newest one there is continued, bit for
      bit as if the run had not stopped (a damaged one is set aside, with a warning, for the one
      before), and a directory that is missing or empty starts a run anew; without it a directory
      that holds a run is refused.
    - `skip`: how many steps of the run may be left out, and counted as `skipped`, because their
      loss or gradient is not finite; by default the first such step ends it.
    - `chunk`: steps of one compiled call, at most; between calls signals are heeded.
    - `mesh`: several devices (`devices.mesh()`): each batch is split over them, which must divide
      it; parameters are copied, or stay as `devices.sharded` has laid them.
    - `hook(state) -> state` runs after each epoch, before it is evaluated; `log(row)` gets
      each epoch's numbers.

    Raises NonFiniteError at the first loss that is not finite, naming the terms, the step, the
    examples and the last good checkpoint, with the state before that step in its `fitted` (under
    `skip`, after the chunk); Interrupted on Ctrl-C and Terminated on SIGTERM, after the chunk under
    way is done and saved; TypeError for what is no loss, optimizer, transform or key; ValueError
    for data that cannot be trained on or a directory or checkpoint that is not this run's; OSError
    where a checkpoint cannot be written. What reading a Source, `hook`, `evaluate` or `log` raises
    comes through, after the steps before it were saved (but by one of several processes): resuming
    goes on with what failed. Warns of uint8 levels without a transform.
    """
    faults.check_functions(loss, optimizer, transform, evaluate, key)
    if isinstance(data, Source):
        source, here = data, None
    else:
        here = as_batch(data)
        faults.check_finite_data(here)
        source = in_memory(here)
    warn_of_levels(source.read(np.zeros(1, int)).x, transform)
    by_default = shuffled(source.size, batch_size)  # refuses a batch larger than the data, or none
    order, order_key = indices or by_default, key_for(key, "order")
    steps = source.size // batch_size
    if indices is not None:
        faults.check_order(order, order_key, source.size, batch_size)
    init, step = make_step(loss, optimizer, transform=transform)
    step = skipping(step) if skip else step
    if mesh is not None:
        devices.check_divides("fit: batch_size", batch_size, mesh)
        params = devices.placed(params, mesh)
        state = devices.placed(init(key, params), mesh)
    else:  # compiled, which an optimizer's moments that lie like sharded parameters must not be
        state = jax.jit(init)(key, params)

    def rows(step: int) -> tuple[np.ndarray, Batch]:
        chosen = np.asarray(order(order_key, jnp.asarray(step)))
        return chosen, source.read(chosen)

    with contextlib.ExitStack() as feeds:
        if here is None:
            batches = feed.in_order(order, order_key)
            advance = _fed(step, source, batches, epochs * steps, state, mesh, feeds)
        else:
            advance = _scanned(step, order, here, state, mesh)
        return loop.drive(
            state,
            advance=advance,
            inspect=partial(_inspect, loss, key, transform, rows, skip),
            evaluate=None if evaluate is None else partial(_evaluated, evaluate, key),
            identity={
                "examples": source.size,
                "data": source.digest,
                "batch_size": batch_size,
                "key": checkpoint.key_words(key),
            },
            epochs=epochs,
            steps=steps,
            chunk=chunk,
            evaluate_every=evaluate_every,
            monitor=monitor,
            patience=patience,
            directory=directory,
            keep=keep,
            checkpoint_every=checkpoint_every,
            resume=resume,
            hook=hook,
            log=log,
            progress=progress,
        )


Advance = Callable[[TrainState, int, int], tuple[TrainState, Metrics]]


def _scanned(
    step: Step, order: StepOrder, data: Batch, state: TrainState, mesh: Mesh | None
) -> Advance:
    """Steps on data that lie on the device, a chunk of them by one program."""
    if mesh is not None:
        data, order = devices.put(data, devices.copied(mesh)), devices.splitting(order, mesh)
    data = jax.tree.map(jnp.asarray, data)
    run_chunk = jax.jit(
        lambda state, data, count: _scan_of(step, order, count)(state, data),
        static_argnums=2,
        donate_argnums=0,
        out_shardings=_as_before(state, mesh),
    )

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        state, history = run_chunk(state, data, count)
        return state, on_host(history)

    return advance


def _fed(
    step: Step,
    source: Source,
    batches: Any,
    stop: int,
    state: TrainState,
    mesh: Mesh | None,
    feeds: contextlib.ExitStack,
) -> Advance:
    """Steps on batches that are read while the steps before are computed.

    `history` gets `waiting`, the share of time in which the device waited for its input. Where a
    batch cannot be read the steps before it are returned, and the next call raises.
    """

    def numbered(state: TrainState, batch: Batch, number: Array) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        # Once a step was not made the run stands still: the batches after it are not for it.
        keyless = new._replace(key=()), state._replace(key=())
        kept = lax.cond(state.step == number, lambda a, b: a, lambda a, b: b, *keyless)
        return kept._replace(key=state.key), metrics

    run_step = jax.jit(numbered, donate_argnums=0, out_shardings=_as_before(state, mesh))
    place = jax.device_put if mesh is None else partial(devices.put, sharding=devices.split(mesh))
    opened: list[feed.Feed] = []
    failed: list[Exception] = []

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        if not opened:  # now it is known where the run goes on
            opened.append(feed.feed(source, batches, start=start, stop=stop, place=place))
            feeds.enter_context(opened[0])
        if failed:
            raise failed[0]
        began, waited = perf_counter(), opened[0].waited
        histories: list[Metrics] = []
        for number in range(start, start + count):
            try:
                batch = next(opened[0])
            except Exception as error:
                if not histories or jax.process_count() > 1:  # together or not at all
                    raise
                failed.append(error)
                break
            state, metrics = run_step(state, batch, np.int32(number))
            opened[0].dispatched(metrics)
            histories.append(metrics)
        found = on_host(histories)
        history = {name: np.array([one[name] for one in found]) for name in found[0]}
        share = (opened[0].waited - waited) / (perf_counter() - began)
        return state, {**history, "waiting": np.full(len(histories), min(share, 1.0))}

    return advance


def _as_before(state: TrainState, mesh: Mesh | None) -> Any:
    """Where a program's results lie: the state where it lay."""
    return None if mesh is None else (jax.tree.map(lambda leaf: leaf.sharding, state), None)


def _scan_of(
    step: Step, indices: StepOrder, steps: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    def scan(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        order_key = key_for(state.key, "order")

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            chosen = indices(order_key, state.step)
            return step(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data))

        return lax.scan(body, state, length=steps)

    return scan


def _as_seen(state: TrainState, batch: Any, transform: Transform | None) -> tuple[Key, Batch]:
    """The key of a step's loss, and the batch as the loss sees it."""
    batch = as_batch(batch)
    step_key = jax.random.fold_in(key_for(state.key, "noise"), state.step)
    transform_key, loss_key = jax.random.split(step_key)
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    return loss_key, batch


def _evaluated(evaluate: Callable[[Params, Key], Metrics], key: Key, state: TrainState) -> Metrics:
    # The same noise at every evaluation: they differ by the parameters alone.
    return evaluate(state.params, key_for(key, "evaluation"))


def _inspect(
    loss: Loss,
    key: Key,
    transform: Transform | None,
    rows: Callable[[int], tuple[np.ndarray, Batch]],
    skip: int,
    run: loop.Run,
    history: Metrics,
    start: int,
    last: Callable[[], Path | None],
) -> None:
    """Raise at the first step of a chunk that is not finite, or is the first beyond `skip`."""
    faults.check_metrics(history, 1)
    bad = ~np.all([np.isfinite(values) for values in history.values()], axis=0)
    count = len(bad)
    reached = int(run.state.step) - start
    if skip:
        skipped = np.asarray(history["skipped"], bool)
        before = sum(row.get("skipped", 0) for row in run.rows) + sum(
            run.partial.get("skipped", ())
        )
        bad = skipped & (before + np.cumsum(skipped) > skip)
    else:
        bad[min(reached, count) :] = True
    if not bad.any():
        faults.check_parameters(run.state.params, start + count - 1, last)
        return
    first = int(np.argmax(bad))
    step = start + first
    terms = {n: float(v[first]) for n, v in history.items() if n not in ("skipped", "waiting")}
    chosen, stored = rows(step)
    # Where steps are skipped the run has gone on.
    host = on_host(run.state._replace(key=(), step=()))
    state = jax.tree.map(jnp.asarray, host)._replace(key=key, step=jnp.asarray(step, jnp.int32))
    seen = faults.Seen(
        loss, state, *_as_seen(state, jax.tree.map(jnp.asarray, stored), transform), chosen
    )
    raise faults.non_finite(terms, seen, stored.x, transform, last())
