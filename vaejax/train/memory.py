"""Less memory for the same numbers: recomputed activations, and batches taken part by part.

model = rematerialize(model)               # activations are computed again, not stored
loss = accumulate(elbo(model), parts=8)    # one eighth of the batch's activations at a time
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from vaejax.batch import checked_loss_batch, size_of, weights_of
from vaejax.errors import at_least_one, check_parameters, checked_result, takes, wrong
from vaejax.model import Model
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Weighted

__all__ = ["accumulate", "rematerialize"]


def rematerialize(model: Model) -> Model:
    """The model whose `encode` and `decode` keep no activations for the gradient.

    Both run again in the backward pass (`jax.checkpoint`). Between the two passes only their inputs
    and outputs are stored. Numbers and gradients are the same, for about a third more work. It pays
    for deep networks, where activations outweigh parameters.

    A network inside the Distribution (the `Partial` of an autoregressive decoder, a flow, a link of
    a `Chain`) does the same at each of its calls. It goes with mixed precision:
    `rematerialize(mixed_precision(model))`.

    Args:
      model: the Model.
    Returns:
      A Model with the same parameters.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import linear
      >>> from vaejax.train.memory import rematerialize
      >>> model = rematerialize(linear.linear_gaussian(3, latent=2))
      >>> params = model.init(jax.random.key(0), jnp.zeros(3))
      >>> model.encode(params, jnp.zeros(3)).mean.shape
      (2,)

    References:
      Chen et al., 2016, Training deep nets with sublinear memory cost, arXiv:1604.06174.
    """

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return _again(model.encode, params, x, c, key=key)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return _again(model.decode, params, z, c, key=key)

    return model._replace(encode=encode, decode=decode)


def accumulate(loss: Loss, parts: int) -> Loss:
    """The same loss, its gradient accumulated over parts of the batch: memory for one part.

    `L = sum_p W_p L_p / sum_p W_p`, W_p the weights of part p (1/parts each where there are none).
    This is the mean of the whole batch; the gradient and every metric are averaged likewise. Under
    `value_and_grad` each part's value and gradient come from one pass, in a `lax.scan`, and the
    backward pass hands out the gradient that is stored. So no part is computed twice.

    Part p holds the examples p, p + parts, p + 2 parts, ... (so that a batch sharded over devices
    stays where it is) and its key is `fold_in(key, p)`. One part is the loss itself.

    - A term of the whole batch (total correlation, MMD, batch top-k) sees one part, as it would see
      a smaller batch; its value is then another. So is a metric that is no mean, such as a ratio.
      A `types.Weighted` metric, a mean over some of the examples, stays the mean over all of those.
    - Only the gradient of the loss by the parameters is there. Any other, of a metric or by the
      batch, is NaN. Differentiate in reverse (`jax.grad`), not forward.
    - `optax.MultiSteps(optimizer, k)` accumulates over k *steps* instead, for a stream whose
      batches are as large as memory allows. It counts k steps for one update, keeps a gradient in
      its state, and takes the plain mean of the k, whatever their weights. Here a step is an
      update, so that schedules, epochs and the optimizer's state are those of the whole batch.

    Args:
      loss: a mean over the batch, deterministic or not.
      parts: how many, a divisor of the batch's size.
    Returns:
      A Loss.
    Raises:
      ValueError: for parts < 1; and, when the loss is called, where parts does not divide the
        batch.
    """
    takes("accumulate: loss", loss, "params, key, batch, step", "such as objectives.elbo(model)")
    at_least_one("accumulate", parts=parts)
    if parts == 1:
        return loss

    def checked(*of_part: Any) -> tuple[Array, Metrics]:
        return checked_result("accumulate", loss(*of_part))

    def total(one: Callable[..., Any], sums: Any, key: Key, batch: Batch) -> Any:
        """`(value, metrics), grads` of the batch, from those that `one(key_p, part_p)` returns."""

        def body(sums: Any, at: Any) -> tuple[Any, Any]:
            p, share, part = at
            (value, metrics), grads = one(jax.random.fold_in(key, p), part)
            counts = _count(share, metrics.get("loss"))
            value, grads = jax.tree.map(partial(_weighed, counts), (value, grads))
            metrics = {name: _counted(share, metric) for name, metric in metrics.items()}
            return jax.tree.map(jnp.add, sums, grads), (value, metrics)

        over = jnp.arange(parts), _shares(batch, parts), _split(batch, parts)
        sums, values = lax.scan(body, sums, over)
        value, metrics = jax.tree.map(partial(jnp.sum, axis=0), values)
        if isinstance(metrics.get("loss"), Weighted):
            whole = _or_one(metrics["loss"].weight)
            value, sums = jax.tree.map(lambda part: part / whole, (value, sums))
        return (value, {name: _divided(metric) for name, metric in metrics.items()}), sums

    @jax.custom_vjp
    def accumulated(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        return total(lambda key, part: (checked(params, key, part, step), ()), (), key, batch)[0]

    def forward(params: Params, key: Key, batch: Batch, step: Any) -> Any:
        gradient = jax.value_and_grad(checked, has_aux=True)
        start = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _at_least_float32(p)), params)
        values, grads = total(
            lambda key, part: gradient(params, key, part, step), start, key, batch
        )
        grads = jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), grads, params)
        return values, (grads, batch)

    def backward(stored: Any, cotangents: tuple[Array, Metrics]) -> Any:
        (grads, batch), (of_value, of_metrics) = stored, cotangents
        # Loud, where zero would be wrong in silence.
        asked = [jnp.any(c != 0) for c in jax.tree.leaves(of_metrics) if _is_float(c)]
        scale = jnp.where(jnp.any(jnp.stack(asked)), jnp.nan, of_value) if asked else of_value
        grads = jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads)
        nan = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan) if _is_float(a) else None, batch)
        return grads, None, nan, None

    accumulated.defvjp(forward, backward)

    def whole(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        check_parameters("loss: params", params)
        return accumulated(params, key, checked_loss_batch(key, batch), step)

    return whole


def _again(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`function(*args)` under `jax.checkpoint`, and so the networks inside what it returns."""
    return jax.tree.map(
        lambda node: Partial(_called_again, node) if _is_network(node) else node,
        jax.checkpoint(function)(*args, **options),
        is_leaf=_is_network,
    )


def _called_again(network: Any, *args: Any, **options: Any) -> Any:
    return _again(_call, network, *args, **options)


def _call(network: Any, *args: Any, **options: Any) -> Any:
    return network(*args, **options)


def _is_network(node: Any) -> bool:
    return isinstance(node, Partial)


def _shares(batch: Batch, parts: int) -> Array:
    """The share of each part in the mean over the batch, `[parts]`."""
    size = size_of(batch.x)
    if size % parts:
        fix = "take a divisor of the batch's size, or change the batch's size"
        raise wrong("accumulate: parts", parts, f"a divisor of {size}, the examples", fix)
    if isinstance(batch.weight, tuple):
        return jnp.full(parts, 1 / parts)
    weights = jnp.sum(_split(weights_of(size, batch.weight), parts), axis=1)
    return weights / _or_one(jnp.sum(weights))


def _split(tree: Any, parts: int) -> Any:
    """Every leaf `[parts * n, ...]` as `[parts, n, ...]`, its rows dealt out in turn."""

    def dealt(leaf: Array) -> Array:
        return jnp.swapaxes(jnp.reshape(leaf, (-1, parts, *jnp.shape(leaf)[1:])), 0, 1)

    return jax.tree.map(dealt, tree)


def _count(share: Array, metric: Any) -> Array:
    """What a part counts in the mean of a metric."""
    return share * metric.weight if isinstance(metric, Weighted) else share


def _counted(share: Array, metric: Any) -> Any:
    """A part's metric as a summand of the mean over the parts."""
    if not isinstance(metric, Weighted):
        return jax.tree.map(partial(_weighed, share), metric)
    counts = _count(share, metric)
    return Weighted(_weighed(counts, metric.value), counts)


def _divided(metric: Any) -> Any:
    """The mean over the parts, of the sums of `_counted`."""
    if not isinstance(metric, Weighted):
        return metric
    return Weighted(metric.value / _or_one(metric.weight), metric.weight)


def _or_one(total: Array) -> Array:
    """A sum of weights to divide by: 1 where it is 0, and so is what is divided."""
    return jnp.where(total > 0, total, jnp.ones_like(total))


def _weighed(share: Array, value: Array) -> Array:
    """A part's share of a mean: 0 where all of it is masked, since its own mean is then 0 / 0."""
    return jnp.where(share > 0, share.astype(_at_least_float32(value)) * value, 0)


def _at_least_float32(value: Any) -> Any:
    return jnp.result_type(value, jnp.float32)


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)
