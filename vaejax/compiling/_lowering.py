"""How three of JAX's operations are compiled for a CPU: the same numbers, sooner and faster.

XLA's compiler for CPUs takes long for random bits on arrays of several short axes, whose loops it
unrolls one by one. It runs a convolution in a loop many times slower than outside of one, unless
its arrays lie in the one order of axes that its fast kernels take. A product that sums over several
axes, such as a layer's gradient by its weights under `vmap`, it precedes by a slow transposition,
which one axis in their place does not need. All are mended where JAX turns an operation into one of
XLA, for the whole process, with what is public in `jax.interpreters` and
`jax.extend` and a table beside them. Where a version of JAX has none of these, everything stays
as it is. Other devices are not concerned.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

UNROLLED = range(4, 4097)  # sizes at which the rounds of the hash are written out
SHORT = 32  # of larger arrays a last axis of this length or more is compiled well as it is


def install() -> None:
    """Replace JAX's three rules for CPUs in this process; importing the library does it.

    A second call changes nothing. A version of JAX without the table keeps its own rules.
    """
    with contextlib.suppress(AttributeError, KeyError, NotImplementedError):
        for primitive, rule_of in (
            (threefry2x32_p, _random_bits),
            (primitives.conv_general_dilated_p, _convolution),
            (primitives.dot_general_p, _product),
        ):
            on_cpu = mlir._platform_specific_lowerings["cpu"][primitive].rule
            if not hasattr(on_cpu, "before"):
                rule = rule_of(on_cpu)
                rule.before = on_cpu  # type: ignore[attr-defined]
                mlir.register_lowering(primitive, rule, platform="cpu")


def _random_bits(rolled: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for threefry, on arrays of one axis: its bits depend on no shape.

    Args:
      rolled: JAX's rule for a CPU, a loop over the rounds.
    """

    def flat(*arguments: Any) -> list[Any]:
        shape = jnp.broadcast_shapes(*map(jnp.shape, arguments))
        rows = [jnp.broadcast_to(argument, shape).reshape(-1) for argument in arguments]
        return [bits.reshape(shape) for bits in threefry2x32_p.bind(*rows)]

    flattened = mlir.lower_fun(flat, multiple_results=True)

    def rule(context: Any, *arguments: Any) -> Any:
        aval = context.avals_out[0]
        if _is_plain(aval) and math.prod(aval.shape) in UNROLLED:
            return _hashed(aval.shape, arguments)
        if _is_plain(aval) and aval.ndim > 1 and aval.size and aval.shape[-1] < SHORT:
            return flattened(context, *arguments)
        return rolled(context, *arguments)

    return rule


def _hashed(shape: tuple[int, ...], arguments: tuple[Any, ...]) -> list[Any]:
    """Threefry-2x32 of 20 rounds, written in XLA's operations: JAX would trace some 130 each time.

    Source: Salmon et al., 2011, Parallel random numbers: as easy as 1, 2, 3.

    Args:
      shape: of the result.
      arguments: two words of the key and two of the counter, values of MLIR.
    """
    word = ir.IntegerType.get_unsigned(32)
    whole, row = (ir.RankedTensorType.get(s, word) for s in (shape, (math.prod(shape),)))

    def flat(value: Any) -> Any:
        rank = ir.RankedTensorType(value.type).rank
        places = ir.DenseI64ArrayAttr.get(range(len(shape) - rank, len(shape)))
        return hlo.reshape(row, hlo.broadcast_in_dim(whole, value, places))

    @functools.cache
    def constant(number: int) -> Any:
        number_attribute = ir.IntegerAttr.get(word, number)
        return hlo.constant(ir.DenseElementsAttr.get_splat(row, number_attribute))

    first, second, left, right = map(flat, arguments)
    parity = hlo.xor(hlo.xor(first, second), constant(0x1BD11BDA))
    keys = first, second, parity
    left, right = hlo.add(left, first), hlo.add(right, second)
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            left = hlo.add(left, right)
            up = hlo.shift_left(right, constant(bits))
            down = hlo.shift_right_logical(right, constant(32 - bits))
            right = hlo.xor(left, hlo.or_(up, down))
        left = hlo.add(left, keys[(group + 1) % 3])
        right = hlo.add(hlo.add(right, keys[(group + 2) % 3]), constant(group + 1))
    return [hlo.reshape(whole, half) for half in (left, right)]


def _convolution(native: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for a convolution of one or two axes, with its arrays turned to NHWC and HWIO.

    Args:
      native: JAX's rule for a CPU.
    """

    def rule(context: Any, *arguments: Any, **options: Any) -> Any:
        aval, (left, right, out) = context.avals_out[0], options["dimension_numbers"]
        last = aval.ndim - 1
        middle = tuple(range(1, last))
        fast = (0, last, *middle), (last, last - 1, *range(last - 1)), (0, last, *middle)
        if (left, right, out) == fast or not middle or len(middle) > 2 or not _is_plain(aval):
            return native(context, *arguments, **options)

        def turned(x: Any, kernel: Any) -> Any:
            x = lax.transpose(x, (left[0], *left[2:], left[1]))
            kernel = lax.transpose(kernel, (*right[2:], right[1], right[0]))
            inside = dict(options, dimension_numbers=lax.ConvDimensionNumbers(*fast))
            y = primitives.conv_general_dilated_p.bind(x, kernel, **inside)
            places = dict(zip(out, (0, last, *middle), strict=True))
            return lax.transpose(y, [places[axis] for axis in range(last + 1)])

        return mlir.lower_fun(turned, multiple_results=False)(context, *arguments)

    return rule


def _product(native: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for a product of arrays, with the axes that it sums over made one.

    Args:
      native: JAX's rule for a CPU.
    """

    def rule(context: Any, *arguments: Any, **options: Any) -> Any:
        summed, batch = options["dimension_numbers"]
        together = all(_are_neighbours(axes) for axes in summed) and len(summed[0]) > 1
        if not together or not all(map(_is_plain, (*context.avals_in, *context.avals_out))):
            return native(context, *arguments, **options)

        def merged(*arrays: Any) -> Any:
            flat = [_with_one_axis(a, axes) for a, axes in zip(arrays, summed, strict=True)]
            later = len(summed[0]) - 1
            moved = [
                tuple(axis - later * (axis > axes[0]) for axis in kept)
                for kept, axes in zip(batch, summed, strict=True)
            ]
            numbers = tuple((axes[0],) for axes in summed), tuple(moved)
            inside = dict(options, dimension_numbers=numbers)
            return primitives.dot_general_p.bind(*flat, **inside)

        return mlir.lower_fun(merged, multiple_results=False)(context, *arguments)

    return rule


def _are_neighbours(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[0] + len(axes))) if axes else False


def _with_one_axis(array: Any, axes: Sequence[int]) -> Any:
    """Neighbouring axes of an array as one."""
    first, last = axes[0], axes[-1] + 1
    size = math.prod(array.shape[first:last])
    return array.reshape(*array.shape[:first], size, *array.shape[last:])


def _is_plain(aval: Any) -> bool:
    """Whether an array's sizes are numbers, and none of its axes is split over devices by type."""
    spec = getattr(getattr(aval, "sharding", None), "spec", ())
    return all(isinstance(size, int) for size in aval.shape) and not any(spec)


__all__ = ["install"]
