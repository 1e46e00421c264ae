"""From one example to a batch, or a whole data set: keys, `vmap`, and one visible mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.arrays import examples, numbers
from vaejax.errors import check_key, takes, warn_of_levels, wrong
from vaejax.types import Array, Batch, Key, Params, Transform, describe


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
      ValueError: where there are not as many conditions as examples.
    """
    batch = _in_arrays(data if isinstance(data, Batch) else Batch(data), function)
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
        raise wrong(where, f"{y.dtype}{y.shape}", "one integer per example", fix)
    return y


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

    An example that is masked, by a weight of 0, is replaced by one that counts.

    Args:
      example: a function of one example. It returns numbers or plain arrays, never a Draw: `vmap`
        would copy the parameters inside its distributions for each example.
      params: of the model; the same for all examples.
      key: one PRNG key, from which each example gets its own.
      batch: the examples.
    Returns:
      What `example` returns, with a leading batch axis.
    Raises:
      TypeError: for what is no Batch, or no key.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import Batch, over_batch
      >>> def example(params, key, x, c):
      ...     return params * jnp.sum(x)
      >>> batch = Batch(jnp.ones((4, 3)))
      >>> over_batch(example, jnp.asarray(2.0), jax.random.key(0), batch).tolist()
      [6.0, 6.0, 6.0, 6.0]
    """
    if not isinstance(batch, Batch):
        raise wrong("loss: batch", describe(batch), "a Batch", "pass Batch(x)", TypeError)
    check_key("loss", key)
    batch = as_batch(batch, "loss")
    x, c = batch.x, batch.c
    if not isinstance(batch.weight, tuple):
        # What is masked may hold anything, NaN too, and must leave no trace in the gradient.
        # By zeros it would not do: they need not lie in the likelihood's support.
        counts = batch.weight > 0
        first = jnp.argmax(counts)

        def filled(leaf: Array) -> Array:
            return jax.vmap(lambda counted, one: jnp.where(counted, one, leaf[first]))(counts, leaf)

        x, c = jax.tree.map(filled, (x, c))
    return over_examples(lambda k, x, c: example(params, k, x, c), key, x, c)


def batch_mean(values: Any, weight: Any = ()) -> Any:
    """The mean over the batch, `sum_i w_i v_i / sum_i w_i` under weights.

    Args:
      values: arrays `[batch]`, or a tree of them.
      weight: how much each example counts, `[batch]`; by default, `()`, all count alike.
    Returns:
      The means, `()` each.
    """
    if isinstance(weight, tuple):
        return jax.tree.map(jnp.mean, values)
    return jax.tree.map(
        lambda v: jnp.sum(jnp.where(weight > 0, weight * v, 0)) / jnp.sum(weight), values
    )


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
    key: Key, transform: Transform | None, index: Array, x: Any, c: Any
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
    Returns:
      The example, its condition and a key.
    """
    check_key("evaluation", key)
    if transform is not None:
        takes("evaluation: transform", transform, "key, x", "for instance data.scale")
    warn_of_levels(x, transform, "evaluation")
    transform_key, rest = jax.random.split(jax.random.fold_in(key, index))
    x, c = jax.tree.map(lambda leaf: leaf[index], (x, c))
    return (x if transform is None else transform(transform_key, x)), c, rest


__all__ = [
    "as_batch",
    "batch_mean",
    "example_at",
    "keys_of",
    "labels_of",
    "over_batch",
    "over_data",
    "over_examples",
    "present",
    "size_of",
]
