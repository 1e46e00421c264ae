"""What all measures of a data set share: checks at the start, and one compiled loop.

`measure` is the decorator of a function `(model, params, key, data, ...)`: it checks those four.

A measure of single examples is a function at the top level of its module:

    one(*options, params, key, x, c) -> numbers

`options` are hashable: the model first, then counts and functions. `measure_each` compiles it once
for each measure, options, transform, batch size and shape of the data. The function has to return
numbers or plain arrays, never a Draw: `vmap` would copy parameters inside its distributions for
every example. `checked_each` does the same for a Source too, of which it reads a part at a time.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import as_batch, check_some_weight, example_at, over_data, size_of
from vaejax.data.sources import Source
from vaejax.distributions import Categorical
from vaejax.errors import at_least_one, check_key, check_parameters, finite_values, takes, wrong
from vaejax.evaluate._progress import bar, called, in_parts, is_shown, progress
from vaejax.model import Model, check_model
from vaejax.types import Array, Batch, Key, Params, PerExample, Transform, describe

Function = TypeVar("Function", bound=Callable[..., Any])

PART = 2**26  # bytes of a Source that are read at a time
MOST = 2**30  # bytes of a Source that are read at once, where a measure needs all examples


def measure(function: Function) -> Function:
    """Decorator of a measure `function(model, params, key, data, ...)`: its first four arguments.

    It says in words which one is missing or in the wrong place, and takes `data` as a Batch, or
    leaves a Source as it is. Where the first argument is a Model, the examples must have the shape
    of its p(x|z): numbers of other shapes would broadcast. That is found by abstract evaluation,
    once for each shape of the data.

    Args:
      function: the measure; its first argument may also be a loss or a network.
    Returns:
      The measure with these checks.
    """
    signature, name = inspect.signature(function), function.__name__
    first, _, _, _ = order = tuple(signature.parameters)[:4]

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            bound = signature.bind(*args, **options)
        except TypeError:
            _check_present(name, order, signature, args, options)
            return function(*args, **options)  # Python says what it misses
        model, params, _, data = (bound.arguments[argument] for argument in order)
        _check_places(name, order, model, params)
        transform = bound.arguments.get("transform")
        if transform is not None:
            takes(f"{name}: transform", transform, "key, x", "for instance data.scale")
        if isinstance(data, Source):
            head = data.read(np.zeros(1, int)) if data.size > 0 else Batch(())
        else:
            head = bound.arguments[order[3]] = _examples(name, order, data)
        if first == "model" and isinstance(model, Model) and jax.tree.leaves(head.x):
            one = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)),
                (head.x, head.c),
            )
            check_example(f"{name}: data", model, params, transform, *one)
        with called(name):
            return function(*bound.args, **bound.kwargs)

    return checked  # type: ignore[return-value]


def checked_batch(function: str, key: Key, data: Any, **counts: int) -> Batch:
    """The data as a Batch in memory, after the checks that all measures make.

    Args:
      function: the name of the measure, for the messages.
      key: one key.
      data: a Batch, or the x of one, `[n, ...]`; or a Source, which is read whole.
      counts: numbers that have to be 1 or more, by name, such as `batch_size`.
    Returns:
      The Batch.
    Raises:
      ValueError: for a count below 1, for no examples, for other lengths in x and c, for labels or
        weights that are none, where all weights are 0, and for a Source of more than 1 GiB.
      TypeError: for what is no key, and for a key among the data.
    """
    if isinstance(data, Source):
        data = _whole(function, data)
    batch = as_batch(data)
    at_least_one(function, **counts, examples=size_of(batch.x))
    check_key(function, key)
    check_some_weight(function, batch)
    return batch


def measure_each(
    measure: Callable[..., Any],
    options: tuple[Any, ...],
    transform: Transform | None,
    batch_size: int,
    params: Params,
    key: Key,
    batch: Batch,
    *,
    first: int = 0,
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
      first: the index of the first of them in the whole data set.
    Returns:
      What the measure returns, with a leading axis `[n]` on every leaf.
    """
    program = measure, options, transform, batch_size
    if not is_shown():
        return _loop(program, params, key, batch.x, batch.c, first)
    x, c = jax.tree.map(jnp.asarray, (batch.x, batch.c))  # on the device, once

    def part(start: Any, count: int, width: int) -> Any:
        return _part(program, count, width, params, key, x, c, first, start)

    return in_parts("", part, size_of(x), batch_size)


def checked_each(
    function: str,
    quantities: Callable[[Any], dict[str, Any]],
    measure: Callable[..., Any],
    options: tuple[Any, ...],
    transform: Transform | None,
    batch_size: int,
    params: Params,
    key: Key,
    data: Any,
    **counts: int,
) -> Any:
    """`measure_each` of checked data; a Source is read and measured a part at a time.

    Args:
      function: the name of the measure, for the messages.
      quantities: `found -> {name: [n]}`, of what was measured, the numbers that have to be finite
        for each example that counts.
      measure, options, transform, batch_size, params, key: as in `measure_each`.
      data: a Batch, or the x of one, `[n, ...]`; or a Source.
      counts: as in `checked_batch`.
    Returns:
      What the measure returns, with a leading axis `[n]` on every leaf; numpy's for a Source.
    Raises:
      ValueError: as `checked_batch` does, and where a quantity of weight above 0 is not finite,
        with the example's index.
      TypeError: as `checked_batch` does.
    """
    counts["batch_size"] = batch_size
    program = measure, options, transform, batch_size

    def found_of(batch: Batch, first: int) -> Any:
        found = measure_each(*program, params, key, batch, first=first)
        for name, values in quantities(found).items():
            check_counted(function, name, values, batch.x, batch.weight, first=first)
        return found

    if not isinstance(data, Source):
        return found_of(checked_batch(function, key, data, **counts), 0)
    at_least_one(function, **counts, examples=data.size)
    check_key(function, key)
    parts = []
    with bar("", data.size) as move, progress(False):
        for rows in rows_of_parts(data, batch_size):
            found = found_of(as_batch(data.read(rows)), int(rows[0]))
            parts.append(jax.tree.map(np.asarray, found))
            move(len(np.unique(rows)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: data.size], *parts)


def rows_of_parts(source: Source, batch_size: int) -> Iterator[np.ndarray]:
    """The rows of a Source in parts of one size, the last example again in the ragged end.

    Args:
      source: the Source.
      batch_size: a part is this large at least, and else some 64 MiB.
    Yields:
      Rows, integers `[part]`.
    """
    most = max(batch_size, PART // max(1, _bytes_of_row(source)))
    parts = -(-source.size // most)
    width = -(-source.size // parts)
    for start in range(0, parts * width, width):
        yield np.minimum(start + np.arange(width), source.size - 1)


def check_counted(
    function: str, name: str, values: Any, x: Any, weight: Any, *, first: int = 0
) -> PerExample:
    """`errors.finite_values` of the examples that count alone.

    Args:
      function, name: of the measure and the quantity, for the message.
      values: `[n]`.
      x: the examples `[n, ...]`, whose range the message gives.
      weight: of the examples, `[n]` or `()`.
      first: the index of the first of them in the whole data set.
    Returns:
      All values as they are, numpy's, `[n]`.
    Raises:
      ValueError: where a value of weight above 0 is not finite, with the example's index.
    """
    values = np.asarray(values)
    counts = isinstance(weight, tuple) or np.asarray(weight) > 0
    finite_values(function, name, np.where(counts, values, 0), x, first=first)
    return values


def total_of(found: Any) -> Array:
    """The sum of all numbers of each example, `[n]`: finite where each of them is.

    Args:
      found: arrays `[n, ...]`, or a tree of them.
    Returns:
      The sums, `[n]`.
    """
    sums = [jnp.sum(leaf, axis=range(1, jnp.ndim(leaf))) for leaf in jax.tree.leaves(found)]
    return functools.reduce(jnp.add, sums)


@partial(jax.jit, static_argnums=0)
def _loop(
    program: tuple[Any, ...], params: Params, key: Key, x: Any, c: Any, first: Any = 0
) -> Any:
    return over_data(_example(program, params, key, x, c, first), size_of(x), program[-1])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _part(
    program: tuple[Any, ...],
    count: int,
    width: int,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
    first: Any,
    start: Any,
) -> Any:
    """`_loop` of `count` examples from `start` on, `width` at a time."""
    one, last = _example(program, params, key, x, c, first), size_of(x) - 1
    return over_data(lambda i: one(jnp.minimum(start + i, last)), count, width)


def _example(
    program: tuple[Any, ...], params: Params, key: Key, x: Any, c: Any, first: Any
) -> Callable[[Array], Any]:
    """What is measured of the example at an index."""
    measure, options, transform, _ = program

    def example(index: Array) -> Any:
        one_x, one_c, rest = example_at(key, transform, index, x, c, first=first)
        return measure(*options, params, rest, one_x, one_c)

    return example


def _check_present(
    function: str, order: tuple[str, ...], signature: inspect.Signature, args: Any, options: Any
) -> None:
    """Raise where one of the first four arguments is missing."""
    try:
        given = signature.bind_partial(*args, **options).arguments
    except TypeError:  # too many, or one of another name: Python says which
        return
    absent = [argument for argument in order if argument not in given]
    if not absent:
        return
    fix = f"call {function}({order[0]}, params, jax.random.key(0), data)"
    try:
        check_key(function, given.get("key", jax.random.key(0)))
    except TypeError as error:
        got, expected = describe(given["key"]), "one PRNG key, the third argument"
        raise wrong(f"{function}: key", got, expected, fix, TypeError) from error
    raise wrong(f"{function}: {' and '.join(absent)}", "nothing", "a value", fix, TypeError)


def _check_places(function: str, order: tuple[str, ...], model: Any, params: Any) -> None:
    """Raise where the model or its parameters are something else, such as each other."""
    fix = f"the order is {function}({', '.join(order)})"
    if order[0] == "model":
        check_model(function, model, ", ".join(order))
    if order[0] == "loss" and not callable(model):
        raise wrong(f"{function}: loss", describe(model), "a loss", fix, TypeError)
    if isinstance(params, Model | Batch | Source):
        got = type(params).__name__
        raise wrong(f"{function}: params", got, "the model's parameters", fix, TypeError)
    check_parameters(f"{function}: params", params)


def _examples(function: str, order: tuple[str, ...], data: Any) -> Batch:
    """The data as a Batch whose x has one leading axis."""
    batch = as_batch(data, function)
    try:
        size_of(batch.x)
    except ValueError as error:
        got = f"arrays of shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(batch.x)]}"
        fix = f"the order is {function}({', '.join(order)})"
        raise wrong(f"{function}: data", got, "examples [n, ...]", fix) from error
    return batch


def check_example(
    where: str,
    model: Model,
    params: Params,
    transform: Transform | None,
    x: Any,
    c: Any,
    fix: str = "",
) -> None:
    """Raise where an example, as the model sees it, is no event of p(x|z).

    Args:
      where: the function and its argument, for the message.
      model, params, transform: what sees it.
      x, c: an example and its condition, or their shapes and types.
      fix: what mends it; by default that is told for the x of a data set.
    Raises:
      ValueError: where it is none.
    """
    seen, event = _seen_and_event.eval_shape(model, transform, params, x, c)
    if not jax.tree.leaves(event):
        return
    got, expected = (jax.tree.map(jnp.shape, tree) for tree in (seen, event))
    if got == expected or _is_rearranged(seen, event):
        return
    both = isinstance(seen, jax.ShapeDtypeStruct) and isinstance(event, jax.ShapeDtypeStruct)
    if both and not fix:
        if seen.size == event.size:
            fix = f"reshape the data: x.reshape({', '.join(map(str, (-1, *event.shape)))})"
        elif seen.shape[1:] == event.shape:
            fix = "one axis is too many: x is [n, ...], without an axis of batches"
    fix = fix or "give x the decoder's shape"
    raise wrong(where, f"examples {got}", f"{expected}, as p(x|z)", fix)


def _is_rearranged(seen: Any, event: Any) -> bool:
    """Whether x is a tree of as many numbers as a decoder rebuilds as one vector."""
    if isinstance(seen, jax.ShapeDtypeStruct) or not isinstance(event, jax.ShapeDtypeStruct):
        return False
    return sum(leaf.size for leaf in jax.tree.leaves(seen)) == event.size


@partial(jax.jit, static_argnums=(0, 1))
def _seen_and_event(
    model: Model, transform: Transform | None, params: Params, x: Any, c: Any
) -> tuple[Any, Any]:
    """One example as the model sees it, and an event of p(x|z); `()` where that is not known."""
    seen = x if transform is None else transform(jax.random.key(0), x)
    try:
        return seen, _event(likelihood_of(model, params, seen, c), seen)
    except Exception:  # what is wrong there the measure itself will say
        return seen, ()


def likelihood_of(model: Model, params: Params, x: Any, c: Any) -> Any:
    """p(x|z) at some z, also where x is not what the encoder takes."""
    try:
        z = model.encode(params, x, c).sample(jax.random.key(0))
    except Exception:
        z = model.prior(params, c).sample(jax.random.key(0))
    return model.decode(params, z, c)


def _event(px: Any, x: Any) -> Any:
    """An event of px; x itself where px takes it for one, `()` for the labels of a classifier."""
    if isinstance(px, Categorical) and px.event_shape == ():
        return ()
    plain = isinstance(x, jax.Array)
    with contextlib.suppress(Exception):  # of a Distribution over a tree, which has no one shape
        if plain and px.event_shape == x.shape:
            return x
    with contextlib.suppress(Exception):  # such as a sequence and its mask
        if not plain and jnp.shape(px.log_prob(x)) == ():
            return x
    return px.sample(jax.random.key(0))


def _bytes_of_row(source: Source) -> int:
    row = source.read(np.zeros(1, int))
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(row))


def _whole(function: str, source: Source) -> Batch:
    """All examples of a Source, where they fit."""
    at_least_one(function, examples=source.size)
    total = source.size * _bytes_of_row(source)
    if total > MOST:
        got = f"a Source of {source.size} examples, {total / 2**30:.1f} GiB"
        expected = f"at most {MOST / 2**30:g} GiB, since this measure needs all of them at once"
        fix = "pass some of them: source.read(np.arange(1000))"
        raise wrong(f"{function}: data", got, expected, fix)
    return source.read(np.arange(source.size))


__all__ = [
    "check_counted",
    "check_example",
    "checked_batch",
    "checked_each",
    "measure",
    "measure_each",
]
