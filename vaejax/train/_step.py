"""One update, and a scan of updates: the pure programs on which `fit` is built.

Every random number of a run comes from `TrainState.key` and the step's number, so that cutting a
run into chunks, or stopping and resuming it, changes no bit of the result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from vaejax.arrays import finite
from vaejax.batch import as_batch, mean_weight_of, over_examples, size_of
from vaejax.errors import at_least_one, check_key, check_parameters, checked_result, takes, wrong
from vaejax.train._order import shuffled
from vaejax.train._state import TrainState
from vaejax.types import (
    Array,
    Batch,
    Key,
    Loss,
    Metrics,
    Params,
    StepOrder,
    Transform,
    Weighted,
    describe,
)

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


BATCH_WEIGHT = "batch_weight"
"""The metric that a step on a batch with weights has beside those of its loss."""

NORMS = "gradient_norm", "update_norm"
"""The metrics that a step has where `norms` are asked for."""


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    transform: Transform | None = None,
    mean_weight: Any = None,
    norms: bool = False,
) -> tuple[Callable[[Key, Params], TrainState], Step]:
    """One update as two pure functions: `init` makes the first state, `step` the next one.

    An update whose loss, metrics or gradient are not finite is not made, and neither is one that
    would make the parameters or the optimizer's state so because the gradient is huge (its square
    overflows). The state then comes back as it was, and its step is not counted. So a run stands
    still before the step that would have ruined it, with all that is needed to look at it.
    `skipping` goes on to the next step instead.

    Args:
      loss: what is minimised.
      optimizer: an Optax optimizer.
      transform: `transform(key, x)`, of one example, turns stored data into what the loss sees
        (binarised, dequantised or scaled), anew at every step; by default the loss sees the data.
      mean_weight: the mean of `Batch.weight` over the data that batches are drawn from. The
        gradient is then multiplied by (mean weight of the batch) / mean_weight, and so minimises
        the weighted mean over the data. By default it is that of each batch's own mean, as masks
        of ragged ends want.
      norms: whether the metrics have `gradient_norm`, the Euclidean norm of the gradient that the
        optimizer gets, and `update_norm`, that of what the update changes the parameters by.
    Returns:
      `init(key, params) -> TrainState` and `step(state, batch) -> (state, metrics)`. The metrics
      are the loss and its named parts before the update, nats per example; of a batch with weights
      also `batch_weight`, their mean, by which means over steps are weighed.
    Raises:
      TypeError: for what is no loss, optimizer or transform.
      ValueError: when it is traced, for a loss that has metrics by the names of the norms.
    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from vaejax import train
      >>> def loss(params, key, batch, step):
      ...     return jnp.mean((batch.x - params["mean"]) ** 2), {}
      >>> init, step = train.make_step(loss, optax.sgd(0.5))
      >>> state = init(jax.random.key(0), {"mean": jnp.zeros(())})
      >>> state, metrics = jax.jit(step)(state, jnp.full(4, 3.0))
      >>> float(metrics["loss"]), float(state.params["mean"]), int(state.step)
      (9.0, 3.0, 1)
    """

    takes("make_step: loss", loss, "params, key, batch, step", "such as objectives.elbo(model)")
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got, fix = describe(optimizer), "for instance optax.adam(1e-3)"
        raise wrong("make_step: optimizer", got, "an Optax optimizer", fix, TypeError)
    if transform is not None:
        takes("make_step: transform", transform, "key, x", "for instance data.scale")

    def init(key: Key, params: Params) -> TrainState:
        # Copies, since a donated state must not take the caller's arrays with it.
        params, key = jax.tree.map(jnp.array, params), jnp.copy(key)
        return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))

    return init, _guarded(loss, optimizer, transform, mean_weight, norms, holds)


def quick_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    transform: Transform | None = None,
    mean_weight: Any = None,
    norms: bool = False,
) -> Step:
    """A step as `make_step` makes it, which does not make an update of a steep gradient either.

    Where no gradient is steep it is the same step. It compiles in four fifths of the time, having
    no second update, on trial; a run of such steps goes on with the other one where it stood still.

    Args:
      loss, optimizer, transform, mean_weight, norms: as for `make_step`.
    Returns:
      `step(state, batch) -> (state, metrics)`.
    """

    def gentle(_: Any, state: TrainState, grads: Params) -> Array:
        return moderate(grads, state.opt_state)

    return _guarded(loss, optimizer, transform, mean_weight, norms, gentle)


def _guarded(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    transform: Transform | None,
    mean_weight: Any,
    norms: bool,
    sound: Callable[[optax.GradientTransformation, TrainState, Params], Array],
) -> Step:
    """A step whose update is made where the metrics are finite and the gradient is `sound`."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        grads, metrics = _gradient(loss, state, batch, transform, mean_weight)
        # The key stays outside: mapped over, `cond` reads it twice, as if it were used twice.
        old = state._replace(key=())
        new = lax.cond(
            finite(metrics) & sound(optimizer, old, grads),
            lambda state: update(optimizer, state, grads),
            lambda state: state,
            old,
        )
        if norms:
            metrics = with_norms(metrics, grads, state.params, new.params)
        return new._replace(key=state.key), metrics

    return step


def with_norms(metrics: Metrics, grads: Params, before: Params, after: Params) -> Metrics:
    """Metrics, and with them the norms of the gradient and of the change of the parameters.

    Args:
      metrics: of a step.
      grads: the gradient, as the optimizer gets it.
      before, after: the parameters.
    Returns:
      The metrics of both.
    Raises:
      ValueError: where the loss has metrics by these names.
    """
    if taken := sorted(set(NORMS) & set(metrics)):
        got, fix = f"a loss with the metrics {taken}", "rename them"
        raise wrong("fit: norms", got, "these names to be free", fix)
    moved = jax.tree.map(lambda new, old: jnp.subtract(*map(_wide, (new, old))), after, before)
    return {**metrics, **dict(zip(NORMS, map(norm, (grads, moved)), strict=True))}


def norm(tree: Any) -> Array:
    """The root of the sum of squares of all numbers of a tree, `()`; no square overflows."""
    leaves = [_wide(leaf) for leaf in jax.tree.leaves(tree)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]))
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / unit)) for leaf in leaves))


def _wide(leaf: Any) -> Array:
    return jnp.asarray(leaf, jnp.result_type(leaf, jnp.float32))


def gradient(
    loss: Loss,
    state: TrainState,
    batch: Any,
    *,
    transform: Transform | None = None,
    mean_weight: Any = None,
) -> tuple[Params, Array, Metrics]:
    """The first half of a step: the gradient.

    Args:
      loss: what is minimised.
      state: the state before the step.
      batch: a Batch, or the x of one, `[batch, ...]`.
      transform, mean_weight: as for `make_step`.
    Returns:
      The gradient by the parameters; whether it, the loss and the metrics are finite, `()`; and the
      metrics, nats per example, as those of `make_step`.
    """
    grads, metrics = _gradient(loss, state, batch, transform, mean_weight)
    return grads, finite((metrics, grads)), metrics


def _gradient(
    loss: Loss, state: TrainState, batch: Any, transform: Transform | None, mean_weight: Any
) -> tuple[Params, Metrics]:
    """The gradient, scaled by the batch's weight, and the metrics."""
    key, batch = as_seen(state, batch, transform)

    def checked(*arguments: Any) -> tuple[Array, Metrics]:
        return checked_result("fit", loss(*arguments))

    with_value = jax.value_and_grad(checked, has_aux=True)
    (value, metrics), grads = with_value(state.params, key, batch, state.step)
    metrics = {"loss": value, **metrics}
    if isinstance(batch.weight, tuple):
        return grads, metrics
    weight = jnp.mean(batch.weight, dtype=float)
    if mean_weight is not None:
        share = metrics["loss"].weight if isinstance(metrics["loss"], Weighted) else 1.0
        scale = share * weight / mean_weight
        # What a batch that does not count gives is nothing, NaN too.
        grads = jax.tree.map(lambda g: jnp.where(scale > 0, scale * g, 0).astype(g.dtype), grads)
    return grads, {**metrics, BATCH_WEIGHT: weight}


def moderate(grads: Params, opt_state: Any) -> Array:
    """Whether no entry of a gradient is NaN, infinite or huge, so that sums of squares are finite.

    Huge is beyond the cube root of the largest number of its type, and of the types that the
    optimizer keeps its state in (7e12 in float32, 40 in float16).

    Args:
      grads: a tree of arrays.
      opt_state: the optimizer's state, of which types alone count.
    Returns:
      A boolean, `()`.
    """
    kept = {leaf.dtype for leaf in jax.tree.leaves(opt_state)}
    kept = {dtype for dtype in kept if jnp.issubdtype(dtype, jnp.inexact)}

    def small(leaf: Array) -> Array:
        largest = min(float(jnp.finfo(dtype).max) for dtype in {leaf.dtype, *kept})
        return jnp.all(jnp.abs(leaf) <= largest ** (1 / 3))

    return jnp.stack([small(leaf) for leaf in jax.tree.leaves(grads)]).all()


def unspoilt(new: Any, old: Any) -> Array:
    """Whether every number of a state that was finite still is.

    An optimizer may begin with infinity on purpose (the best loss so far).

    Args:
      new, old: the same tree after and before an update.
    Returns:
      A boolean, `()`.
    """
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    found = [
        jnp.all(jnp.isfinite(one) | ~jnp.isfinite(other))
        for one, other in pairs
        if jnp.issubdtype(one.dtype, jnp.inexact)
    ]
    return jnp.stack(found).all()


def holds(optimizer: optax.GradientTransformation, state: TrainState, grads: Params) -> Array:
    """Whether the gradient is finite, and the parameters and the optimizer's state after it too.

    A moderate gradient cannot break a state of sums of squares, so nothing is computed for it. Else
    the update is made on trial, and only this answer leaves the branch: a branch that returned the
    state would cost every step a copy of it, a tenth of its time.
    """

    def tried(state: TrainState) -> Array:
        new = update(optimizer, state, grads)
        after, before = (new.params, new.opt_state), (state.params, state.opt_state)
        return finite(grads) & unspoilt(after, before)

    return lax.cond(
        moderate(grads, state.opt_state), lambda state: jnp.ones((), bool), tried, state
    )


def update(optimizer: optax.GradientTransformation, state: TrainState, grads: Params) -> TrainState:
    """The second half of a step: the optimizer's update.

    Args:
      optimizer: an Optax optimizer.
      state: the state before the step.
      grads: the gradient by the parameters.
    Returns:
      The state after the step.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.key, state.step + 1)


def skipping(step: Step) -> Step:
    """A step that leaves out an update that is not finite, counts it and goes on.

    Args:
      step: as `make_step` returns it.
    Returns:
      A step with one more metric, `skipped`: 1 where the update was left out, else 0.
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
    norms: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Some updates as one pure program.

    Jit it with the state donated. Any cutting of a run into such programs gives the same bits.

    Args:
      loss: what is minimised.
      optimizer: an Optax optimizer.
      steps: how many updates.
      indices: `indices(key, step) -> [batch]` chooses the examples of a step, for instance
        `shuffled(n, batch_size)`.
      transform, norms: as for `make_step`.
    Returns:
      `(state, data) -> (state, history)`. `data` is a Batch, or the x of one, on the device as it
      is stored (uint8 stays uint8 until inside the step). `history` holds each metric for every
      step, `[steps]`, nats per example; NaN where a metric of some of the examples has none in the
      batch. Weights count as in `make_step` with the mean weight of `data`.
    """

    def scan(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        mean_weight = mean_weight_of(data)
        how: dict[str, Any] = {"transform": transform, "mean_weight": mean_weight}
        step = make_step(loss, optimizer, norms=norms, **how)[1]
        state, history = scan_of(step, indices, steps)(state, data)
        return state, values_of(history)

    return scan


def make_train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int = 128,
    indices: StepOrder | None = None,
    transform: Transform | None = None,
    norms: bool = False,
) -> Callable[[Key, Params, Any], tuple[TrainState, Metrics]]:
    """A whole run as one pure program. Jit it, `vmap` it over keys, or shard it.

    Args:
      loss: what is minimised.
      optimizer: an Optax optimizer.
      steps: how many updates.
      batch_size: examples of a step, where `indices` is not given.
      indices: as for `make_scan`; by default `shuffled(n, batch_size)`.
      transform, norms: as for `make_step`.
    Returns:
      `(key, params, data) -> (state, history)`, with `data` and `history` as for `make_scan`.
    """
    init, _ = make_step(loss, optimizer)
    at_least_one("make_train", steps=steps, batch_size=batch_size)

    def train(key: Key, params: Params, data: Any) -> tuple[TrainState, Metrics]:
        check_key("make_train", key)
        check_parameters("make_train: params", params)
        data = as_batch(data, "make_train")
        chosen = indices or shuffled(size_of(data), batch_size)
        how: dict[str, Any] = {"transform": transform, "norms": norms}
        scan = make_scan(loss, optimizer, steps=steps, indices=chosen, **how)
        return scan(init(key, params), data)

    return train


_USES = {"noise": 0, "order": 1, "evaluation": 2}


def key_for(key: Key, name: str) -> Key:
    """The key for one use of a run's key, independent of those for other uses.

    Args:
      key: the run's key.
      name: the use: "noise", "order" or "evaluation".
    Returns:
      A key.
    """
    return jax.random.fold_in(key, _USES[name])


def scan_of(
    step: Step, indices: StepOrder, steps: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """A scan of any step, as `make_scan` makes it of a loss and an optimizer."""

    def scan(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        data = as_batch(data)
        order_key = key_for(state.key, "order")

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            chosen = indices(order_key, state.step)
            return step(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data))

        return lax.scan(body, state, length=steps)

    return scan


def values_of(history: Metrics) -> Metrics:
    """Metrics of steps as arrays alone: of a `Weighted` its value, NaN where it has no example."""

    def values(metric: Any) -> Any:
        if not isinstance(metric, Weighted):
            return metric
        return jnp.where(metric.weight > 0, metric.value, jnp.nan)

    return {name: values(metric) for name, metric in history.items()}


def as_seen(state: TrainState, batch: Any, transform: Transform | None) -> tuple[Key, Batch]:
    """The key of a step's loss, and the batch as the loss sees it."""
    check_key("fit", state.key)
    batch = as_batch(batch)
    step_key = jax.random.fold_in(key_for(state.key, "noise"), state.step)
    transform_key, loss_key = jax.random.split(step_key)
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    return loss_key, batch
