"""`fit`: training with progress, evaluation, early stopping, checkpoints and exact resume."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vaejax.data.examples import as_examples
from vaejax.train import _faults as faults
from vaejax.train import _loop as loop
from vaejax.train import checkpoint, devices
from vaejax.train._advance import advancing
from vaejax.train._bookkeeping import Bookkeeping
from vaejax.train._loop import Fitted
from vaejax.train._order import order_of
from vaejax.train._step import TrainState, as_seen, key_for, make_step, skipping
from vaejax.trees import on_host
from vaejax.types import Batch, Key, Loss, Metrics, Params, StepOrder, Transform


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
    examples = as_examples("fit", data, transform)
    order_key = key_for(key, "order")
    order = order_of(indices, order_key, examples.size, batch_size)
    book = Bookkeeping(
        epochs=epochs,
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
    steps = examples.size // batch_size
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
        return chosen, examples.source.read(chosen)

    feeding = advancing(
        examples, step, order, order_key, stop=epochs * steps, state=state, mesh=mesh
    )
    with feeding as advance:
        program = loop.Program(
            advance=advance,
            inspect=partial(_inspect, loss, key, transform, rows, skip),
            evaluate=None if evaluate is None else partial(_evaluated, evaluate, key),
            steps=steps,
            identity={
                "examples": examples.size,
                "data": examples.digest,
                "batch_size": batch_size,
                "key": checkpoint.key_words(key),
            },
        )
        return loop.drive(state, program, book)


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
        loss, state, *as_seen(state, jax.tree.map(jnp.asarray, stored), transform), chosen
    )
    raise faults.non_finite(terms, seen, stored.x, transform, last())
