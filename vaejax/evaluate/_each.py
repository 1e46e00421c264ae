"""What all measures of a data set share: checks at the start, and one compiled loop.

A measure is a function of one example, at the top level of its module:

    measure(*options, params, key, x, c) -> numbers

`options` are hashable: the model first, then counts and functions. `measure_each` compiles it once
for each measure, options, transform, batch size and shape of the data. The function has to return
numbers or plain arrays, never a Draw: `vmap` would copy parameters inside its distributions for
every example.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from vaejax.batch import as_batch, example_at, over_data, size_of
from vaejax.data.sources import in_arrays
from vaejax.errors import at_least_one, check_key, check_parameters, wrong
from vaejax.types import Array, Batch, Key, Params, Transform, describe


def checked_batch(function: str, key: Key, data: Any, **counts: int) -> Batch:
    """The data as a Batch, after the checks that all measures make.

    Args:
      function: the name of the measure, for the messages.
      key: one key.
      data: a Batch, or the x of one, `[n, ...]`, in memory.
      counts: numbers that have to be 1 or more, by name, such as `batch_size`.
    Returns:
      The Batch.
    Raises:
      ValueError: for a count below 1, for no examples, and for other lengths in x and c.
      TypeError: for what is no key, for a key among the data, and for a Source.
    """
    batch = as_batch(in_arrays(function, data))
    at_least_one(function, **counts, examples=size_of(batch.x))
    check_key(function, key)
    return batch


def measure_each(
    measure: Callable[..., Any],
    options: tuple[Any, ...],
    transform: Transform | None,
    batch_size: int,
    params: Params,
    key: Key,
    batch: Batch,
) -> Any:
    """`measure(*options, params, key_i, x_i, c_i)` of every example, as one compiled loop.

    The key of an example depends on `key` and the example's index alone. The transform is drawn
    from another part of it, so that all measures with the same key see the same examples.

    Args:
      measure: the function of one example; give the same object each time.
      options: what the compiled program depends on, hashable.
      transform: what is done to a stored example first, or None.
      batch_size: how many examples are held in memory at a time.
      params: the parameters, and any other arrays that all examples share.
      key: one key.
      batch: the examples; weights and labels are not looked at.
    Returns:
      What the measure returns, with a leading axis `[n]` on every leaf.
    Raises:
      TypeError: for what are no parameters, and for a dictionary in place of the model.
    """
    check_parameters("evaluation: params", params)
    for option in options:
        if isinstance(option, dict | list):
            fix = "the order is model, params, key, data"
            raise wrong("evaluation: model", describe(option), "a Model", fix, TypeError)
    program = measure, options, transform, batch_size
    return _loop(program, params, key, batch.x, batch.c)


@partial(jax.jit, static_argnums=0)
def _loop(program: tuple[Any, ...], params: Params, key: Key, x: Any, c: Any) -> Any:
    measure, options, transform, batch_size = program

    def example(index: Array) -> Any:
        one_x, one_c, rest = example_at(key, transform, index, x, c)
        return measure(*options, params, rest, one_x, one_c)

    return over_data(example, size_of(x), batch_size)


__all__ = ["checked_batch", "measure_each"]
