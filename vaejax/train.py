"""Training on two floors: pure programs (`make_step`, `make_scan`, `make_train`), and the loop for
people (`fit`) with progress, evaluation, early stopping, checkpoints and exact resume.

Every random number of a run comes from `TrainState.key` and the step's number, so that cutting a
run into chunks, or stopping and resuming it, changes no bit of the result.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from vaejax import checkpoint, devices, faults, loop
from vaejax.batch import as_batch, over_examples, size_of
from vaejax.faults import NonFiniteError
from vaejax.loop import Fitted, Interrupted, Terminated
from vaejax.order import Order, permute, shuffled
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform

__all__ = [
    "Fitted",
    "Interrupted",
    "NonFiniteError",
    "Order",
    "Terminated",
    "TrainState",
    "fit",
    "make_scan",
    "make_step",
    "make_train",
    "permute",
    "shuffled",
    "skipping",
    "stream",
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

    An update whose loss or gradient is not finite is not made: the state comes back as it was,
    its step not counted, so that a run stands still before the step that would have ruined it,
    with all that is needed to look at it. `skipping` goes on to the next step instead.
    """

    def init(key: Key, params: Params) -> TrainState:
        # Copies, since a donated state must not take the caller's arrays with it.
        params, key = jax.tree.map(jnp.array, params), jnp.copy(key)
        return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key, batch = _as_seen(state, batch, transform)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = gradient(state.params, key, batch, state.step)
        fine = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads))])

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return TrainState(
                optax.apply_updates(state.params, updates), opt_state, (), state.step + 1
            )

        new = lax.cond(fine.all(), update, lambda state: state, state._replace(key=()))
        return new._replace(key=state.key), {"loss": value, **metrics}

    return init, step


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
    indices: Order,
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
    indices: Order | None = None,
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


def stream(key: Key, name: str) -> Key:
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
    indices: Order | None = None,
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

    - `data`: a Batch, or the x of one, `[n, ...]`; `transform(key, x)` is applied in each step.
      `indices(key, step) -> [batch_size]` chooses the examples of a step, by default
      `shuffled(n, batch_size)`; an epoch is `n // batch_size` steps.
    - `evaluate(params, key) -> {name: number}` runs every `evaluate_every` epochs, with the same
      key each time, and after the last, where it is only recorded. The state with the lowest
      `monitor` (what is to be minimised) is kept as `best`, and after `patience` evaluations
      without a lower one training stops.
    - `directory`: where checkpoints go every `checkpoint_every` epochs and at the end, named by
      their step; the newest `keep` stay. With `resume` the newest one there is continued, bit for
      bit as if the run had not stopped (a damaged one is set aside, with a warning, for the one
      before); without it a directory that holds a run is refused.
    - `skip`: how many steps of the run may be left out, and counted as `skipped`, because their
      loss or gradient is not finite; by default the first such step ends it.
    - `chunk`: steps of one compiled call, at most; between calls signals are heeded.
    - `mesh`: several devices (`devices.mesh()`): each batch is split over them, which must divide
      it; parameters are copied, or stay as `devices.sharded` has laid them.
    - `hook(state) -> state` runs between epochs; `log(row)` gets each epoch's numbers.

    Raises NonFiniteError at the first loss that is not finite, naming the terms, the step, the
    examples and the last good checkpoint, with the state before that step; Interrupted on Ctrl-C
    and Terminated on SIGTERM, after the chunk under way is done and saved; ValueError for data
    that cannot be trained on or a directory or checkpoint that is not this run's; OSError where a
    checkpoint cannot be written. Warns of uint8 levels without a transform.
    """
    data = as_batch(data)
    size = size_of(data)
    faults.check_finite(data)
    faults.warn_of_levels(data.x, transform)
    by_default = shuffled(size, batch_size)  # refuses a batch larger than the data, or none
    order = in_order = indices or by_default
    steps = size // batch_size
    faults.check_order(order, stream(key, "order"), size, batch_size)
    init, step = make_step(loss, optimizer, transform=transform)
    step, everywhere = skipping(step) if skip else step, data
    options: dict[str, Any] = {}
    if mesh is not None:
        devices.check_divides("fit: batch_size", batch_size, mesh)
        params, everywhere = devices.placed(params, mesh), devices.put(data, devices.copied(mesh))
    state = init(key, params)
    if mesh is not None:
        state = devices.placed(state, mesh)
        order = devices.splitting(order, mesh)
        options = {"out_shardings": (jax.tree.map(lambda leaf: leaf.sharding, state), None)}
    everywhere = jax.tree.map(jnp.asarray, everywhere)
    run_chunk = jax.jit(
        lambda state, data, count: _scan_of(step, order, count)(state, data),
        static_argnums=2,
        donate_argnums=0,
        **options,
    )

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        state, history = run_chunk(state, everywhere, count)
        return state, devices.on_host(history)

    def rows(step: int) -> tuple[np.ndarray, Batch]:
        chosen = np.asarray(in_order(stream(key, "order"), jnp.asarray(step)))
        return chosen, jax.tree.map(lambda leaf: leaf[chosen], data)

    return loop.drive(
        state,
        advance=advance,
        inspect=partial(_inspect, loss, key, transform, rows, skip),
        evaluate=None if evaluate is None else partial(_evaluated, evaluate, key),
        identity={
            "examples": size,
            "data": checkpoint.digest(jax.tree.map(lambda leaf: leaf[:256], data)),
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


def _scan_of(step: Step, indices: Order, steps: int) -> Callable[..., tuple[TrainState, Metrics]]:
    def scan(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        order_key = stream(state.key, "order")

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            chosen = indices(order_key, state.step)
            return step(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data))

        return lax.scan(body, state, length=steps)

    return scan


def _as_seen(state: TrainState, batch: Any, transform: Transform | None) -> tuple[Key, Batch]:
    """The key of a step's loss, and the batch as the loss sees it."""
    batch = as_batch(batch)
    step_key = jax.random.fold_in(stream(state.key, "noise"), state.step)
    transform_key, loss_key = jax.random.split(step_key)
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    return loss_key, batch


def _evaluated(evaluate: Callable[[Params, Key], Metrics], key: Key, state: TrainState) -> Metrics:
    # The same noise at every evaluation: they differ by the parameters alone.
    return evaluate(state.params, stream(key, "evaluation"))


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
        before = sum(row["skipped"] for row in run.rows) + sum(run.partial.get("skipped", ()))
        bad = skipped & (before + np.cumsum(skipped) > skip)
    else:
        bad[min(reached, count) :] = True
    if not bad.any():
        faults.check_parameters(run.state.params, start + count - 1, last)
        return
    first = int(np.argmax(bad))
    step = start + first
    terms = {n: float(v[first]) for n, v in history.items() if n != "skipped"}
    chosen, stored = rows(step)
    # Where only a metric is not finite the run has gone on, and where steps are skipped too.
    host = devices.on_host(run.state._replace(key=(), step=()))
    state = jax.tree.map(jnp.asarray, host)._replace(key=key, step=jnp.asarray(step, jnp.int32))
    seen = faults.Seen(
        loss, state, *_as_seen(state, jax.tree.map(jnp.asarray, stored), transform), chosen
    )
    raise faults.non_finite(terms, seen, stored.x, transform, last())
