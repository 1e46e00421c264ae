"""From one example to a batch, or a whole data set: keys, `vmap`, and one visible mean."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import check_unmasked, examples, numbers
from vaejax.errors import (
    WHOLE_LABELS,
    check_key,
    concrete,
    takes,
    warn_of_levels,
    wrong,
)
from vaejax.types import Array, Batch, Key, Metrics, Params, Transform, Weighted, describe


def size_of(tree: Any) -> int:
    """The length of the leading axis that all leaves share.

    Args:
      tree: of arrays.
    Returns:
      The length.
    Raises:
      ValueError: where there are no arrays, or their lengths differ.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError("size_of: expected arrays with a leading axis, got none")
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else -1 for leaf in leaves}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            "size_of: expected one length of the leading axis on every leaf, got shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}"
        )
    return lengths.pop()


def as_batch(data: Any, function: str = "Batch") -> Batch:
    """A Batch of arrays, of a Batch or of examples alone.

    Arrays stay as they are. `arrays.numbers` says what else is taken for one: tensors of other
    libraries, lists of rows, data frames.

    Args:
      data: a Batch, or examples `[n, ...]`, an array or a tree of them (a dictionary or a tuple; a
        list is rows).
      function: what the user called, for the messages.
    Returns:
      The Batch.
    Raises:
      TypeError: where x, c, y or weight holds no numbers.
      ValueError: where there are not as many conditions as examples, for masked values, and for
        labels or weights that `check_companions` refuses.
    """
    batch = data if isinstance(data, Batch) else Batch(data)
    for name, part in zip(batch._fields, batch, strict=True):
        for leaf in jax.tree.leaves(part):
            check_unmasked(f"{function}: {name}", leaf)
    batch = _in_arrays(batch, function)
    check_companions(function, batch)
    if jax.tree.leaves(batch.c) and size_of(batch.c) != size_of(batch.x):
        raise ValueError(
            f"Batch: got {size_of(batch.c)} conditions c for {size_of(batch.x)} examples x, "
            "expected as many; give one for each example"
        )
    return batch


def _in_arrays(batch: Batch, function: str) -> Batch:
    """The Batch with whatever holds numbers turned into arrays; `()` stays absent."""
    x = examples(f"{function}: x", batch.x)
    if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(x)):
        got, fix = describe(batch.x), "give examples an axis in front: x[None]"
        raise wrong(f"{function}: x", got, "examples [n, ...]", fix)
    c, y, weight = (
        field
        if isinstance(field, tuple) and not field
        else convert(f"{function}: {name}", field, e)
        for name, field, convert, e in (
            ("c", batch.c, examples, "conditions [n, ...]"),
            ("y", batch.y, examples, "labels [n]"),
            ("weight", batch.weight, numbers, "weights [n]"),
        )
    )
    return Batch(x, c, y, weight)


def check_companions(where: str, batch: Batch) -> None:
    """Raise unless the labels and weights of a batch are what Batch says.

    Shapes and types are checked always; values only where they are known, which they are not inside
    `jit`.

    Args:
      where: what the messages name before the field, such as "Batch".
      batch: the Batch.
    Raises:
      ValueError: for labels that are not one integer (or row of integers) per example, from -1 on;
        and for weights that are not one number per example, finite and not negative.
    """
    for name, kind, leaves in (
        ("y", jnp.integer, jax.tree.leaves(batch.y)),
        ("weight", jnp.floating, list(present(batch.weight))),
    ):
        for leaf in leaves:
            _check_companion(f"{where}: {name}", kind, leaf, size_of(batch.x))


def check_some_weight(function: str, batch: Batch) -> None:
    """Raise where data have weights and all of them are 0.

    Args:
      function: what the user called, for the message.
      batch: whole data, after `check_companions`.
    Raises:
      ValueError: where nothing counts.
    """
    if _is_known(batch.weight) and not np.any(np.asarray(batch.weight) > 0):
        fix = "give at least one example a weight"
        raise wrong(f"{function}: data.weight", "no weight above 0", "a positive sum", fix)


def check_unweighted(function: str, batch: Batch) -> None:
    """Raise for weights, where a number over the data counts all examples alike.

    Args:
      function: what the user called, for the message.
      batch: the data.
    Raises:
      ValueError: where there are weights.
    """
    if not isinstance(batch.weight, tuple):
        fix = "choose them first, and leave weight=()"
        raise wrong(f"{function}: data.weight", "weights", "none: all examples count alike", fix)


def mean_weight_of(batch: Batch) -> Any:
    """The mean of the weights of a data set, to which training scales each batch.

    Args:
      batch: whole data.
    Returns:
      A float where the weights are known, an array `()` inside `jit`; None where there are none.
    """
    if isinstance(batch.weight, tuple):
        return None
    if _is_known(batch.weight):
        return float(np.mean(np.asarray(batch.weight), dtype=np.float64))
    return jnp.mean(batch.weight, dtype=float)


def labels_of(where: str, batch: Batch) -> Any:
    """The labels of a batch, checked: an integer for each example, -1 where it is unknown.

    Args:
      where: who asks, and for what, for the messages, such as "m2: batch.y".
      batch: the Batch.
    Returns:
      The labels, `[batch]`.
    Raises:
      ValueError: where there are none, not as many as examples, or other numbers than integers.
    """
    fix = "pass Batch(x, y=labels) with integers from 0, -1 where unknown"
    if isinstance(batch.y, tuple):
        raise wrong(where, "no labels", "one integer per example", fix)
    y = jnp.asarray(numbers(where, batch.y, "one integer per example"))
    if y.shape != (size_of(batch.x),) or not jnp.issubdtype(y.dtype, jnp.integer):
        if y.ndim == 2 and y.shape[1] > 1:
            fix = "for one-hot rows: y.argmax(axis=1)"
        raise wrong(where, f"{y.dtype}{y.shape}", "one integer per example", fix)
    # Types without a sign have no -1 to compare with.
    return y.astype(jnp.int32) if jnp.issubdtype(y.dtype, jnp.unsignedinteger) else y


def present(c: Any) -> tuple[Any, ...]:
    """A condition as what a network takes beside its input.

    Args:
      c: a condition, or `()`.
    Returns:
      `(c,)`, or `()` where it is absent.
    """
    return () if isinstance(c, tuple) and not c else (c,)


def keys_of(key: Key, indices: Array) -> Key:
    """A key for each example, which depends on the key and the example's index alone.

    Args:
      key: one PRNG key.
      indices: of the examples, integers `[n]`.
    Returns:
      Keys, `[n]`.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def over_examples(function: Callable[..., Any], key: Key, *arrays: Any) -> Any:
    """`vmap` of `function(key_i, *arrays_i)` over the leading axis, with one key per example.

    Args:
      function: of one example.
      key: one PRNG key.
      arrays: arrays, or trees of them, with one leading axis `[n]`.
    Returns:
      What the function returns, with a leading axis `[n]`.
    Raises:
      TypeError: for what is no function, no key, or no arrays.
    """
    if not callable(function):
        fix = "lambda key, x: ..."
        raise wrong("over_examples: function", describe(function), "a function", fix, TypeError)
    check_key("over_examples", key)
    arrays = tuple(examples("over_examples", one) if present(one) else one for one in arrays)
    size = size_of(arrays)
    return jax.vmap(function)(keys_of(key, jnp.arange(size)), *arrays)


def over_batch(example: Callable[..., Any], params: Params, key: Key, batch: Batch) -> Any:
    """`example(params, key_i, x_i, c_i)` for every example of the batch.

    An example that is masked, by a weight of 0, is replaced by one that counts. Where none counts
    all are replaced by zeros, and nothing that comes of them has a gradient by the parameters.

    Args:
      example: a function of one example. It returns numbers or plain arrays, never a Draw: `vmap`
        would copy the parameters inside its distributions for each example.
      params: of the model; the same for all examples.
      key: one PRNG key, from which each example gets its own.
      batch: the examples.
    Returns:
      What `example` returns, with a leading batch axis.
    Raises:
      TypeError, ValueError: as `checked_loss_batch` does.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Batch, over_batch
      >>> def example(params, key, x, c):
      ...     return params * jnp.sum(x)
      >>> batch = Batch(jnp.ones((4, 3)))
      >>> over_batch(example, jnp.asarray(2.0), jax.random.key(0), batch).tolist()
      [6.0, 6.0, 6.0, 6.0]
    """
    batch = checked_loss_batch(key, batch)
    x, c = batch.x, batch.c
    if not isinstance(batch.weight, tuple):
        check_companions("Batch", batch._replace(y=()))
        # What is masked may hold anything, NaN too, and must leave no trace in the gradient.
        # By zeros it would not do: they need not lie in the likelihood's support.
        counts = jnp.asarray(batch.weight) > 0
        first, some = jnp.argmax(counts), jnp.any(counts)

        def filled(leaf: Array) -> Array:
            leaf = jnp.asarray(leaf)
            instead = jnp.where(some, leaf[first], jnp.zeros_like(leaf[first]))
            return jax.vmap(lambda counted, one: jnp.where(counted, one, instead))(counts, leaf)

        x, c = jax.tree.map(filled, (x, c))
        # Zeros may lie outside of a likelihood's support. Cut at the parameters, NaN that a
        # gradient of 0 was multiplied with on the way is left behind.
        params = jax.tree.map(partial(_held_unless, some), params)
    return over_examples(lambda k, x, c: example(params, k, x, c), key, x, c)


def checked_loss_batch(key: Key, batch: Batch) -> Batch:
    """The batch of a loss, after the checks that all losses make.

    Args:
      key: of the loss.
      batch: of the loss.
    Returns:
      The Batch, its fields in arrays.
    Raises:
      TypeError: for what is no Batch, or no key.
      ValueError: for a Batch of no examples, whose mean would be NaN, and as `as_batch` does.
    """
    if not isinstance(batch, Batch):
        raise wrong("loss: batch", describe(batch), "a Batch", "pass Batch(x)", TypeError)
    check_key("loss", key)
    batch = as_batch(batch, "loss")
    if size_of(batch.x) == 0:
        raise wrong("loss: batch", "no examples", "one or more", "their mean would be NaN")
    return batch


def batch_mean(values: Any, weight: Any = ()) -> Any:
    """The mean over the batch, `sum_i w_i v_i / sum_i w_i` under weights; 0 where all w are 0.

    Args:
      values: arrays `[batch]`, or a tree of them.
      weight: how much each example counts, `[batch]`; by default, `()`, all count alike.
    Returns:
      The means, `()` each.
    Raises:
      ValueError: for weights of another shape than the values have.
    """
    if isinstance(weight, tuple):
        return jax.tree.map(jnp.mean, values)
    for leaf in jax.tree.leaves(values):
        if jnp.shape(weight) != jnp.shape(leaf):
            expected = f"{jnp.shape(leaf)}, as the values have"
            raise wrong(
                "batch_mean: weight", f"shape {jnp.shape(weight)}", expected, _column(weight)
            )
    weight = weights_of(jnp.size(weight), weight)
    total = jnp.sum(weight)
    total = jnp.where(total > 0, total, jnp.ones_like(total))
    return jax.tree.map(lambda v: jnp.sum(jnp.where(weight > 0, weight * v, 0)) / total, values)


def weights_of(size: int, weight: Any) -> Array:
    """How much each example counts, as numbers that can be summed: 16 bits would overflow.

    Args:
      size: the number of examples.
      weight: their weights `[size]`, of any type, or `()`, where all count alike.
    Returns:
      The weights, in float32 or wider, `[size]`; 1 where there are none.
    """
    if isinstance(weight, tuple):
        return jnp.ones(size)
    return jnp.asarray(weight).astype(jnp.promote_types(jnp.result_type(weight), jnp.float32))


def mean_over(values: Any, some: Array, weight: Any = ()) -> Any:
    """The mean over those examples of a batch that a metric concerns, and their share of it.

    `sum_i w_i s_i v_i / sum_i w_i s_i`, s_i whether example i is one of them; 0 where none is.

    Args:
      values: arrays `[batch]`, or a tree of them. Those of other examples may be anything.
      some: which examples, booleans `[batch]`.
      weight: how much each example counts, `[batch]`; by default all count alike.
    Returns:
      `types.Weighted(mean, share)` in place of each array.
    Example:
      >>> import jax.numpy as jnp
      >>> from vaejax.batch import mean_over
      >>> found = mean_over(jnp.array([1.0, 3.0, 8.0, 9.0]), jnp.array([True, True, False, False]))
      >>> float(found.value), float(found.weight)
      (2.0, 0.5)
    """
    counts = jnp.asarray(some).astype(float)
    share = batch_mean(counts, weight)
    counts = counts if isinstance(weight, tuple) else counts * weight
    return jax.tree.map(lambda v: Weighted(batch_mean(v, counts), share), values)


def over_batches(metrics: Metrics, weight: Any) -> Metrics:
    """Metrics of several batches as those of all of them together.

    Args:
      metrics: arrays `[batches]`, or `Weighted` of two such, by name.
      weight: of each batch, `[batches]`; 0 for one that is not there.
    Returns:
      Numbers `()` by name, or `Weighted` of two.
    """

    def mean(metric: Any) -> Any:
        if not isinstance(metric, Weighted):
            return batch_mean(metric, weight)
        share = metric.weight * weight
        return Weighted(batch_mean(metric.value, share), batch_mean(metric.weight, weight))

    return {name: mean(metric) for name, metric in metrics.items()}


def over_data(example: Callable[[Array], Any], size: int, batch_size: int) -> Any:
    """`example(index)` for every example of a data set, as one compiled loop.

    Args:
      example: a function of an example's index, int32 `()`.
      size: how many examples there are.
      batch_size: how many are held in memory at a time.
    Returns:
      What `example` returns, with a leading axis `[size]`.
    """
    chunks = -(-size // batch_size)
    width = -(-size // chunks)
    # The last examples count again in the ragged end, rather than compiling it as a second program.
    indices = jnp.minimum(jnp.arange(chunks * width), size - 1)
    return jax.tree.map(lambda v: v[:size], lax.map(example, indices, batch_size=width))


def example_at(
    key: Key, transform: Transform | None, index: Array, x: Any, c: Any, *, first: Any = 0
) -> tuple[Any, Any, Key]:
    """The example at an index as the model sees it, its condition, and a key for the rest.

    Whatever measures a data set prepares it by this function, so that the same key shows all of
    them the same images. Warns of uint8 levels without a transform.

    Args:
      key: one PRNG key.
      transform: what is done to an example before the model sees it, or None.
      index: of the example, int32 `()`.
      x: the data, `[n, ...]`.
      c: the conditions, `[n, ...]`, or `()`.
      first: the index of the first of x in a data set of which they are a part.
    Returns:
      The example, its condition and a key.
    """
    check_key("evaluation", key)
    if transform is not None:
        takes("evaluation: transform", transform, "key, x", "for instance data.scale")
    warn_of_levels(x, transform, "evaluation")
    transform_key, rest = jax.random.split(jax.random.fold_in(key, first + index))
    x, c = jax.tree.map(lambda leaf: leaf[index], (x, c))
    return (x if transform is None else transform(transform_key, x)), c, rest


def _check_companion(where: str, kind: Any, leaf: Any, size: int) -> None:
    """Raise ValueError unless an array is the labels (integers) or weights of `size` examples."""
    labels = kind is jnp.integer
    expected = f"{'one integer' if labels else 'one number'} for each of the {size} examples"
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        raise wrong(where, type(leaf).__name__, expected, "pass an array: np.asarray(...)")
    got = f"{dtype} of shape {shape}"
    if shape[:1] != (size,) or (not labels and len(shape) != 1):
        raise wrong(where, got, expected, _column(leaf))
    kinds = [kind] if labels else [jnp.floating, jnp.integer, jnp.bool_]
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        fix = WHOLE_LABELS if labels else "w.astype(np.float32)"
        if labels and len(shape) == 2 and shape[1] > 1:
            fix = f"for one-hot rows: y.argmax(axis=1); for several factors: {WHOLE_LABELS}"
        raise wrong(where, got, expected, fix)
    if not _is_known(leaf):
        return
    values = np.asarray(leaf)
    if labels:
        bad = (values < -1) | (values > np.iinfo(np.int32).max)
        expected, fix = "classes from 0, or -1 for unknown", "number the classes from 0"
    else:
        bad = ~np.isfinite(values) | (values < 0)
        expected, fix = "finite numbers from 0 on", "mask an example by a weight of 0"
    if bad.any():
        first = np.argwhere(bad)[0].tolist()
        got = f"{values[tuple(first)]} for example {first[0]} ({int(bad.sum())} such)"
        raise wrong(where, got, expected, fix)


def _held_unless(some: Array, leaf: Any) -> Any:
    """A parameter as it is, without a gradient where `some` is false."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return leaf
    return jnp.where(some, leaf, lax.stop_gradient(leaf))


def _column(array: Any) -> str:
    """What mends a shape that is not `[n]`."""
    shape = np.shape(array)
    if len(shape) == 2 and shape[1] == 1:
        return "take its only column: w[:, 0]"
    return "give one for each example"


def _is_known(array: Any) -> bool:
    """Whether the numbers of an array can be looked at here, by this process."""
    if isinstance(array, tuple) or not concrete(array):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


__all__ = [
    "as_batch",
    "batch_mean",
    "check_companions",
    "check_some_weight",
    "check_unweighted",
    "checked_loss_batch",
    "example_at",
    "keys_of",
    "labels_of",
    "mean_over",
    "mean_weight_of",
    "over_batch",
    "over_batches",
    "over_data",
    "over_examples",
    "present",
    "size_of",
    "weights_of",
]
