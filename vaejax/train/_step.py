"""One update, and a scan of updates: the pure programs on which `fit` is built.

Every random number of a run comes from `TrainState.key` and the step's number, so that cutting a
run into chunks, or stopping and resuming it, changes no bit of the result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from vaejax.batch import as_batch, over_examples, size_of
from vaejax.train._order import shuffled
from vaejax.trees import finite
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, StepOrder, Transform


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
    key, batch = as_seen(state, batch, transform)
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
    return scan_of(make_step(loss, optimizer, transform=transform)[1], indices, steps)


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


def scan_of(
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


def as_seen(state: TrainState, batch: Any, transform: Transform | None) -> tuple[Key, Batch]:
    """The key of a step's loss, and the batch as the loss sees it."""
    batch = as_batch(batch)
    step_key = jax.random.fold_in(key_for(state.key, "noise"), state.step)
    transform_key, loss_key = jax.random.split(step_key)
    if transform is not None:
        batch = batch._replace(x=over_examples(transform, transform_key, batch.x))
    return loss_key, batch
