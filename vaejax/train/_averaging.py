"""An exponential moving average of the parameters, kept by an optimizer beside its own state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vaejax.errors import check_number, concrete, wrong
from vaejax.train._state import TrainState
from vaejax.types import Array, Params, describe, describe_fields


@describe_fields
class Averaging(NamedTuple):
    """The state of an optimizer by `averaging`.

    Args:
      inner: the optimizer's own state.
      average: the average of the parameters; numbers of 16 bits are averaged in float32.
      updates: how many are in it, int32 `()`.
    """

    inner: Any
    average: Params
    updates: Array


def averaging(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, which also keeps an exponential moving average (EMA) of the parameters.

    After update t the average is `a_t = sum_s d^(t-s) p_s / sum_s d^(t-s)`, s from 1 to t: of the
    parameters after each update, about the last 1 / (1 - d) of them. Those at the start are not in
    it, so that it is of use after few updates too. Training is the same as without.

    `fit` and `population.fit` see it: they evaluate the average too, under names that begin with
    `average/`, save it in checkpoints, and return it as `fitted.average`. Whatever else goes on in
    an update belongs inside: `averaging(optax.chain(...), decay)`; `optax.MultiSteps` alone goes
    around it, so that the average is over whole updates.

    Args:
      optimizer: an Optax optimizer.
      decay: d, from 0 (the last parameters alone) to below 1, such as 0.999. In a population it may
        be a hyperparameter.
    Returns:
      An Optax optimizer, whose state is an `Averaging`.
    Raises:
      TypeError: for what is no optimizer or number.
      ValueError: for another decay; when it starts, for some of the parameters alone.
    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from vaejax import train
      >>> def loss(params, key, batch, step):
      ...     return jnp.mean((batch.x - params["mean"]) ** 2), {}
      >>> optimizer = train.averaging(optax.sgd(0.25), decay=0.5)
      >>> run = train.make_train(loss, optimizer, steps=2, batch_size=2)
      >>> start = {"mean": jnp.zeros(())}
      >>> state, _ = jax.jit(run)(jax.random.key(0), start, jnp.full(4, 4.0))
      >>> float(state.params["mean"])  # after 2.0
      3.0
      >>> print(f"{train.average(state)['mean']:.4f}")  # (0.5 * 2 + 3) / 1.5
      2.6667

    References:
      Polyak and Juditsky, 1992; the weights of the first updates as in Adam, arXiv:1412.6980.
    """
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got, fix = describe(optimizer), "for instance optax.adam(1e-3)"
        raise wrong("averaging: optimizer", got, "an Optax optimizer", fix, TypeError)
    check_number("averaging: decay", decay)
    if concrete(decay) and not 0 <= decay < 1:
        raise wrong("averaging: decay", decay, "0 <= decay < 1", "such as 0.999")
    own = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Averaging:
        parts = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
        if any(isinstance(part, optax.MaskedNode) for part in parts):
            fix = "put it around the whole: averaging(optax.partition(...), decay)"
            raise wrong("averaging", "some of the parameters alone", "all of them", fix)
        # Copies, since a donated state must not hold an array twice.
        start = jax.tree.map(lambda leaf: jnp.array(leaf, _wide(leaf)), params)
        return Averaging(own.init(params), start, jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: Averaging, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Averaging]:
        if params is None:
            fix = "optimizer.update(grads, state, params)"
            raise wrong("averaging: update", "no parameters", "them beside the gradient", fix)
        updates, inner = own.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.updates)
        share = _share(decay, count)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda mean, leaf: mean + share.astype(mean.dtype) * (leaf - mean), state.average, new
        )
        return updates, Averaging(inner, average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def average(state: TrainState) -> Params:
    """The average of the parameters that an optimizer by `averaging` keeps.

    Args:
      state: of a run; of a population with the axis of members, or of one member.
    Returns:
      Parameters of the types of `state.params`; before the first update those at the start.
    Raises:
      ValueError: where the optimizer keeps none, or several.
    """
    found = named_averages(state)
    if len(found) != 1:
        got = f"{len(found)} averages in the optimizer's state"
        fix = "train with train.averaging(optimizer, decay=0.999)"
        raise wrong("average", got, "one", fix)
    (mean,) = found.values()
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), mean, state.params)


def named_averages(state: TrainState) -> dict[str, Params]:
    """The averages in the optimizer's state, by the names of their places in a `TrainState`."""

    def is_one(node: Any) -> bool:
        return isinstance(node, Averaging)

    nodes = jax.tree_util.tree_leaves_with_path(state.opt_state, is_leaf=is_one)
    place = (jax.tree_util.GetAttrKey("opt_state"),)
    return {
        jax.tree_util.keystr((*place, *path), simple=True, separator="/") + "/average": node.average
        for path, node in nodes
        if is_one(node)
    }


def with_average(of: dict[str, Any], of_average: dict[str, Any]) -> dict[str, Any]:
    """Numbers of parameters, and those of their average under `average/...`."""
    return {**of, **{f"average/{name}": value for name, value in of_average.items()}}


def _wide(leaf: Any) -> Any:
    """The type in which numbers are averaged: shares of 0.001 would be lost in 16 bits."""
    return jnp.result_type(leaf, jnp.float32)


def _share(decay: Any, count: Array) -> Array:
    """(1 - d) / (1 - d^t), of the newest parameters, without the cancellation of d near 1."""
    log: Any
    if concrete(decay) and not isinstance(decay, jax.Array):
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        log = jnp.log(decay)
    return jnp.asarray((1 - decay) / -jnp.expm1(count * log), float)
