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

from vaejax.arrays import on_host
from vaejax.compiling import kept
from vaejax.data.examples import as_examples
from vaejax.errors import at_least, at_least_one, check_parameters
from vaejax.train import _callbacks as callbacks
from vaejax.train import _faults as faults
from vaejax.train import _identity as identity
from vaejax.train import _loop as loop
from vaejax.train import checkpoint, devices
from vaejax.train._advance import advancing
from vaejax.train._averaging import average, named_averages, with_average
from vaejax.train._bookkeeping import Bookkeeping
from vaejax.train._history import OF_STEPS
from vaejax.train._loop import Fitted
from vaejax.train._order import order_of
from vaejax.train._state import TrainState
from vaejax.train._step import as_seen, key_for, make_step, quick_step, skipping
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
    maximize: bool = False,
    patience: int | None = None,
    directory: str | Path | None = None,
    keep: int = 2,
    checkpoint_every: int = 1,
    resume: bool = False,
    skip: int = 0,
    norms: bool = False,
    chunk: int = 500,
    mesh: Mesh | None = None,
    hook: Callable[[TrainState], TrainState] | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    log_step: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Fitted:
    """Train with a progress bar, evaluation, early stopping, checkpoints and exact resume.

    An epoch is `n // batch_size` steps. Ctrl-C and SIGTERM end the run once the chunk under way is
    done and saved. A resumed run gives bit for bit what the run without a stop gives, in memory or
    from a Source. Warns of uint8 levels without a transform.

    Weights of the data count as `Batch` says: at any batch size the run minimises their weighted
    mean of the loss, and `history` weighs each step by its batch.

    Args:
      loss: what is minimised, for instance `objectives.elbo(model)`.
      optimizer: an Optax optimizer; with `averaging` around it an average of the parameters is
        kept, evaluated and saved beside them.
      params: the parameters to start from; they stay as they are.
      data: a Batch, or the x of one, `[n, ...]`, which is kept on the device. Or a Source of data
        that need not fit memory (`sources.open`; the extra `streaming`), with the same result bit
        for bit; `history` then has `waiting`, the share of time in which the device waited.
      key: the run's key, from which every random number of the run comes.
      epochs: how many the whole run has, those before a resume included. Fewer than are done
        train nothing, with a warning (UserWarning).
      batch_size: examples of a step.
      indices: `indices(key, step) -> [batch_size]` chooses the examples of a step; by default
        `shuffled(n, batch_size)`.
      transform: `transform(key, x)`, of one example, is applied in each step, anew; by default the
        loss sees the data as they are stored.
      evaluate: `evaluate(params, key) -> {name: number}`, with the same key each time; by default
        nothing is evaluated. Numbers that are not monitored may be NaN. An average of the
        parameters is evaluated too, as `average/NAME`.
      evaluate_every: epochs between two evaluations. The last epoch is always evaluated. If it
        is no multiple of `evaluate_every`, it does not count for `best` or `patience`.
      monitor: the name of the evaluated number by which the best state is kept as `best`: the
        lowest one is best.
      maximize: whether the highest one is best, as of an ELBO.
      patience: training stops after so many evaluations without a better number; None for never.
      directory: where checkpoints go, named by their step; None for nowhere. One that holds a run
        is refused without `resume`, and one in which a run goes on always.
      keep: how many of the newest checkpoints stay.
      checkpoint_every: epochs between two checkpoints; there is one at the end, too.
      resume: go on from the newest checkpoint in `directory`. A damaged one is set aside, with a
        warning, for the one before. A directory that is missing or empty starts a run anew. The
        data, batch size, key, loss, optimizer, transform and order have to be those of the run:
        what they compute is compared, for which they are traced once more. Nobody compares what
        `hook`, `evaluate`, the logs and functions that JAX calls back do, and of `params` only
        types and shapes count.
      skip: how many steps of the run may be left out because their loss or gradient is not finite,
        or the optimizer's state would not be; `history` counts them as `skipped`. By default the
        first such step ends the run.
      norms: whether each step's metrics have the norms `gradient_norm` and `update_norm`, as for
        `make_step`.
      chunk: steps of one compiled call, at most; signals are heeded between calls.
      mesh: several devices (`devices.mesh()`), which must divide the batch: each batch is split
        over them. Parameters are copied, or stay as `devices.sharded` has laid them. None is one
        device.
      hook: `hook(state) -> state` runs after each epoch, before it is evaluated. It changes
        values of parameters and of the optimizer's state, no shapes or types, key or step.
      log: `log(row)` gets each epoch's numbers.
      log_step: `log_step(row)` gets each step's metrics, with `step`, the steps done, and `epoch`,
        the epochs done, a fraction: after each compiled call those of its steps, before `log`
        gets an epoch's. A resumed run logs the steps after its checkpoint.
      progress: whether to show a progress bar.
    Returns:
      Fitted: the last state and the best one, and `history`, arrays `[epochs]`, nats per example.
    Raises:
      NonFiniteError: at the first loss or gradient that is not finite, and at a gradient so large
        that the optimizer's state would not be. It names the terms, the step, the examples and the
        last good checkpoint; its `fitted` holds the state before that step (with `skip`, the state
        at the end of the compiled chunk). Parameters or an optimizer's state that are not finite
        for another reason, such as a schedule, are seen at the end of the chunk. And for a
        monitored number, or parameters of a hook, that are not finite.
      Interrupted, Terminated: on Ctrl-C, and on SIGTERM; their `fitted` holds all there was.
      TypeError: for what is no loss, optimizer, transform or key, and for what no hook or
        evaluation returns.
      ValueError: for data that cannot be trained on, and for a directory or a checkpoint that is
        not this run's.
      BlockingIOError: where another run goes on in the directory.
      OSError: where a checkpoint cannot be written.
      Exception: whatever reading a Source, `hook`, `evaluate` or a log raises. The steps before the
        error are saved first (not in a run of several processes). Resuming repeats the call that
        failed.
    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from vaejax import train
      >>> def loss(params, key, batch, step):
      ...     return jnp.mean((batch.x - params["mean"]) ** 2), {}
      >>> fitted = train.fit(
      ...     loss,
      ...     optax.sgd(0.5),
      ...     {"mean": jnp.zeros(())},
      ...     jnp.full(6, 3.0),
      ...     key=jax.random.key(0),
      ...     epochs=2,
      ...     batch_size=2,
      ...     progress=False,
      ... )
      >>> float(fitted.params["mean"]), int(fitted.state.step), fitted.history["loss"].tolist()
      (3.0, 6, [3.0, 0.0])
    """
    callbacks.check_functions(loss, optimizer, transform, evaluate, hook, log, log_step, key)
    check_parameters("fit: params", params)
    at_least(0, "fit", skip=skip)
    at_least_one("fit", epochs=epochs)  # before it is multiplied
    examples = as_examples("fit", data, transform)
    order_key = key_for(key, "order")
    order = order_of(indices, order_key, examples.size, batch_size)
    book = Bookkeeping(
        function="fit",
        epochs=epochs,
        chunk=chunk,
        evaluate_every=evaluate_every,
        monitor=monitor,
        maximize=maximize,
        patience=patience,
        directory=directory,
        keep=keep,
        checkpoint_every=checkpoint_every,
        resume=resume,
        hook=hook,
        log=log,
        log_step=log_step,
        progress=progress,
    )
    steps = examples.size // batch_size
    mean_weight = examples.source.mean_weight
    how: dict[str, Any] = {"transform": transform, "mean_weight": mean_weight, "norms": norms}
    init, exact = make_step(loss, optimizer, **how)
    step = skipping(exact) if skip else exact
    quick = step if skip else quick_step(loss, optimizer, **how)
    if mesh is not None:
        devices.check_divides("fit: batch_size", batch_size, mesh)
        params = devices.placed(params, mesh)
        state = devices.placed(init(key, params), mesh)
    else:  # compiled, which an optimizer's moments that lie like sharded parameters must not be
        state = kept(init, key, params)(key, params)

    begun = faults.spoilt(state.opt_state)

    def rows(step: int) -> tuple[np.ndarray, Batch]:
        chosen = np.asarray(order(order_key, jnp.asarray(step)))
        return chosen, examples.source.read(chosen)

    def identified() -> dict[str, Any]:
        example = examples.source.read(np.zeros(1, int))
        return {
            "examples": examples.size,
            "data": examples.digest,
            "batch_size": batch_size,
            "key": checkpoint.key_words(key),
            "hook": "none" if hook is None else "one",
            "functions": identity.of_functions(
                loss, optimizer, transform, order, state, example, batch_size
            ),
            "versions": identity.versions(),
        }

    feeding = advancing(
        examples,
        step,
        order,
        order_key,
        quick=quick,
        stop=epochs * steps,
        state=state,
        mesh=mesh,
    )
    with feeding as advance:
        program = loop.Program(
            advance=advance,
            inspect=partial(_inspect, loss, key, transform, rows, skip, begun),
            evaluate=None if evaluate is None else partial(_evaluated, evaluate, key),
            steps=steps,
            identity=identified,
            begun=begun,
        )
        return loop.drive(state, program, book)


def _evaluated(evaluate: Callable[[Params, Key], Metrics], key: Key, state: TrainState) -> Metrics:
    # The same noise at every evaluation: they differ by the parameters alone.
    found = evaluate(state.params, key_for(key, "evaluation"))
    if not named_averages(state):
        return found
    both = found, evaluate(average(state), key_for(key, "evaluation"))
    return with_average(*(callbacks.numbers("fit", one, ()) for one in both))


def _inspect(
    loss: Loss,
    key: Key,
    transform: Transform | None,
    rows: Callable[[int], tuple[np.ndarray, Batch]],
    skip: int,
    begun: set[str],
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
        faults.check_state(run.state, start + count - 1, last, begun)
        return
    first = int(np.argmax(bad))
    step = start + first
    terms = {n: float(v[first]) for n, v in history.items() if n not in OF_STEPS}
    chosen, stored = rows(step)
    # Where steps are skipped the run has gone on.
    host = on_host(run.state._replace(key=(), step=()))
    state = jax.tree.map(jnp.asarray, host)._replace(key=key, step=jnp.asarray(step, jnp.int32))
    seen = faults.Seen(
        loss, state, *as_seen(state, jax.tree.map(jnp.asarray, stored), transform), chosen
    )
    raise faults.non_finite(terms, seen, stored.x, transform, last())
