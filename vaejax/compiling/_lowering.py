"""How two of JAX's operations are compiled for a CPU: the same numbers, sooner and faster.

XLA's compiler for CPUs takes long for random bits on arrays of several short axes, whose loops it
unrolls one by one. It runs a convolution in a loop many times slower than outside of one, unless
its arrays lie in the one order of axes that its fast kernels take. Both are mended where JAX turns
an operation into one of XLA, for the whole process, with what is public in `jax.interpreters` and
`jax.extend` and two tables beside them. Where a version of JAX has none of these, everything stays
as it is. Other devices are not concerned.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

SHORT = 32  # a last axis of this length or more is compiled well as it is
UNROLLED = range(4, 4097)  # sizes at which the rounds of the hash are written out


def install() -> None:
    """Replace JAX's two rules for CPUs in this process; importing the library does it.

    A second call changes nothing. A version of JAX without the tables keeps its own rules.
    """
    with contextlib.suppress(AttributeError, KeyError, NotImplementedError):
        for primitive, rule_of in (
            (threefry2x32_p, _random_bits),
            (primitives.conv_general_dilated_p, _convolution),
        ):
            on_cpu = mlir._platform_specific_lowerings["cpu"][primitive].rule
            anywhere = mlir._lowerings[primitive].rule
            if not hasattr(on_cpu, "before"):
                rule = rule_of(on_cpu, anywhere)
                rule.before = on_cpu  # type: ignore[attr-defined]
                mlir.register_lowering(primitive, rule, platform="cpu")


def _random_bits(rolled: Callable[..., Any], written_out: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for threefry, on arrays of one axis: its bits depend on no shape.

    Args:
      rolled: JAX's rule for a CPU, a loop over the rounds.
      written_out: its rule for any device, without that loop.
    """

    def flat(*arguments: Any) -> list[Any]:
        shape = jnp.broadcast_shapes(*map(jnp.shape, arguments))
        rows = [jnp.broadcast_to(argument, shape).reshape(-1) for argument in arguments]
        return [bits.reshape(shape) for bits in threefry2x32_p.bind(*rows)]

    flattened = mlir.lower_fun(flat, multiple_results=True)

    def rule(context: Any, *arguments: Any) -> Any:
        aval = context.avals_out[0]
        if not _is_plain(aval):
            return rolled(context, *arguments)
        size = math.prod(aval.shape)
        if aval.ndim > 1 and aval.shape[-1] < SHORT and size >= UNROLLED.start:
            return flattened(context, *arguments)
        if aval.ndim == 1 and size in UNROLLED:
            return written_out(context, *arguments)
        return rolled(context, *arguments)

    return rule


def _convolution(native: Callable[..., Any], _: Callable[..., Any]) -> Callable[..., Any]:
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


def _is_plain(aval: Any) -> bool:
    """Whether an array's sizes are numbers, and none of its axes is split over devices by type."""
    spec = getattr(getattr(aval, "sharding", None), "spec", ())
    return all(isinstance(size, int) for size in aval.shape) and not any(spec)


__all__ = ["install"]
