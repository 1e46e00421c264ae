"""A function of arrays as a list of steps with its numbers, which interpreter.js runs.

The function is traced once. Calls inside it are written out, a choice by platform takes its
default, and what the result does not need is left out. All values are float32: truth is 0 or 1.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vaejax.errors import wrong

__all__ = ["Unsupported", "traced"]

ELEMENTWISE = {
    *("neg", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sqrt", "rsqrt", "cbrt"),
    *("abs", "sign", "floor", "ceil", "round", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "square", "is_finite"),
    *("add", "sub", "mul", "max", "min", "pow", "rem", "atan2", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "or", "xor"),
}
SAME = {"copy", "copy_p", "reduce_precision", "optimization_barrier", "stop_gradient"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LARGEST_WHOLE = 2**24  # float32 holds every whole number up to here


class Unsupported(ValueError):
    """A decoder with an operation that the page cannot run; the message names it."""


def traced(function: Callable[..., Any], *examples: Any) -> dict[str, Any]:
    """The program of `function(*examples)`, one array, for JSON.

    Args:
      function: of arrays, which returns one array.
      examples: arrays of the shapes that it takes.
    Returns:
      `shapes` of all values by number, the numbers of `inputs` and `output`, the `constants` with
      their place in the base64 of `numbers`, and `steps`: operation, out, in, settings.
    Raises:
      Unsupported: where an operation has no counterpart in the page.
    """
    closed = jax.make_jaxpr(function)(*examples)
    writer = _Writer()
    inputs = [writer.new(np.shape(one)) for one in examples]
    (output,) = writer.inlined(closed.jaxpr, closed.consts, inputs)
    return writer.program(inputs, output)


class _Writer:
    """The program while it is written; a value is its number."""

    def __init__(self) -> None:
        self.shapes: list[list[int]] = []
        self.steps: list[tuple[str, list[int], list[int], dict[str, Any]]] = []
        self.known: dict[int, np.ndarray] = {}
        self.seen: dict[int, tuple[Any, int]] = {}

    def new(self, shape: Sequence[int]) -> int:
        self.shapes.append([int(size) for size in shape])
        return len(self.shapes) - 1

    def constant(self, value: Any) -> int:
        """A value that is in the program from the start, once, however often it is used."""
        if id(value) in self.seen:
            return self.seen[id(value)][1]
        if jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key):
            raise _no("a random key")
        array = np.asarray(value)
        if array.dtype.kind in "iu" and array.size and np.abs(array).max() > LARGEST_WHOLE:
            raise _no("whole numbers above 2^24")
        if array.dtype.kind == "c":
            raise _no("complex numbers")
        number = self.new(array.shape)
        self.known[number] = array.astype(np.float32)
        self.seen[id(value)] = value, number  # kept alive, so that no other gets its id
        return number

    def step(self, name: str, shape: Sequence[int], given: list[int], **settings: Any) -> int:
        out = self.new(shape)
        self.steps.append((name, [out], given, settings))
        return out

    def inlined(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[int]) -> list[int]:
        """The numbers of what a jaxpr returns, its steps written."""
        names: dict[Any, int] = dict(zip(jaxpr.invars, given, strict=True))
        names |= {var: self.constant(v) for var, v in zip(jaxpr.constvars, consts, strict=True)}

        def of(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else names[atom]

        for equation in _needed(jaxpr):
            found = self.equation(equation, [of(atom) for atom in equation.invars])
            names.update(zip(equation.outvars, found, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, given: list[int]) -> list[int]:
        name, settings = equation.primitive.name, equation.params
        if name == "platform_index":
            return [self.constant(np.float32(_default_of(settings["platforms"])))]
        if name == "cond":
            if given[0] not in self.known:
                raise _no("cond (a choice that depends on the code)")
            branch = settings["branches"][int(self.known[given[0]])]
            return self.inlined(branch.jaxpr, branch.consts, given[1:])
        inner = next((settings[key] for key in CALLS if key in settings), None)
        if inner is not None and name not in ("scan", "while"):
            consts = getattr(inner, "consts", ())
            return self.inlined(getattr(inner, "jaxpr", inner), consts, given)
        if name in SAME:
            return given
        shapes = [var.aval.shape for var in equation.outvars]
        if name == "split":
            return self.split(shapes, given, settings)
        return [self.one(equation, name, shapes[0], given, settings)]

    def one(self, equation: Any, name: str, shape: Any, given: list[int], settings: Any) -> int:
        """The step of an operation with one result."""
        kind = equation.outvars[0].aval.dtype
        if name.startswith("random") or jax.dtypes.issubdtype(kind, jax.dtypes.prng_key):
            raise _no(name)
        whole = np.issubdtype(kind, np.integer)
        if name == "add_any":
            name = "add"
        if name in ("and", "or", "xor") and whole:
            raise _no(f"{name} of whole numbers")
        if name in ELEMENTWISE:
            nearest_even = name == "round" and int(settings["rounding_method"]) == 1
            return self.step("round_even" if nearest_even else name, shape, given)
        if name in REDUCTIONS:
            return self.step(name, shape, given, axes=list(settings["axes"]))
        match name:
            case "div":
                return self.step("quotient" if whole else "div", shape, given)
            case "not":
                return self.step("not", shape, given)
            case "integer_pow":
                power = self.constant(np.float32(settings["y"]))
                return self.step("pow", shape, [*given, power])
            case "convert_element_type":
                if kind == np.bool_:
                    return self.step("truth", shape, given)
                return self.step("trunc", shape, given) if whole else given[0]
            case "reshape" | "squeeze" | "expand_dims":
                return self.step("reshape", shape, given)
            case "select_n" | "clamp":
                return self.step(name, shape, given)
            case "broadcast_in_dim":
                axes = list(settings["broadcast_dimensions"])
                return self.step("broadcast", shape, given[:1], axes=axes)
            case "transpose":
                return self.transposed(given[0], settings["permutation"])
            case "rev":
                return self.step("rev", shape, given, axes=list(settings["dimensions"]))
            case "concatenate":
                return self.step("concatenate", shape, given, axis=settings["dimension"])
            case "stack":
                axis = settings["axis"]
                rows = [*shape[:axis], 1, *shape[axis + 1 :]]
                parts = [self.step("reshape", rows, [one]) for one in given]
                return self.step("concatenate", shape, parts, axis=axis)
            case "tile":
                own = self.shapes[given[0]]
                both = [n for pair in zip(settings["reps"], own, strict=True) for n in pair]
                axes = list(range(1, len(both), 2))
                return self.step("reshape", shape, [self.step("broadcast", both, given, axes=axes)])
            case "iota":
                return self.step("iota", shape, [], axis=settings["dimension"])
            case "cumsum":
                how = {"axis": settings["axis"], "reverse": bool(settings["reverse"])}
                return self.step("cumsum", shape, given, **how)
            case "pad":
                config = [list(one) for one in settings["padding_config"]]
                return self.step("pad", shape, given, config=config)
            case "slice":
                start, by = settings["start_indices"], settings["strides"]
                by = list(by or [1] * len(start))
                return self.step("slice", shape, given, start=list(start), by=by)
            case "dynamic_slice":
                return self.step("dynamic_slice", shape, given)
            case "dot_general":
                return self.product(shape, given, settings)
            case "conv_general_dilated":
                return self.convolution(given, settings)
        raise _no(name)

    def transposed(self, value: int, order: Sequence[int]) -> int:
        if list(order) == list(range(len(order))):
            return value
        shape = [self.shapes[value][axis] for axis in order]
        return self.step("transpose", shape, [value], order=[int(axis) for axis in order])

    def split(self, shapes: Any, given: list[int], settings: Any) -> list[int]:
        found, at = [], 0
        for shape in shapes:
            start = [0] * len(shape)
            start[settings["axis"]] = at
            at += shape[settings["axis"]]
            found.append(self.step("slice", shape, given, start=start, by=[1] * len(shape)))
        return found

    def product(self, shape: Any, given: list[int], settings: Any) -> int:
        """A product of matrices `[batch, m, k] [batch, k, n]`, whatever the order of the axes."""
        (left, right), batch = settings["dimension_numbers"]
        sizes = [self.shapes[one] for one in given]
        free = [
            [axis for axis in range(len(size)) if axis not in (*summed, *shared)]
            for size, summed, shared in zip(sizes, (left, right), batch, strict=True)
        ]
        a = self.transposed(given[0], [*batch[0], *free[0], *left])
        b = self.transposed(given[1], [*batch[1], *right, *free[1]])
        counts = [
            int(np.prod([sizes[which][axis] for axis in axes]))
            for which, axes in ((0, batch[0]), (0, free[0]), (0, left), (1, free[1]))
        ]
        return self.step("product", shape, [a, b], counts=counts)

    def convolution(self, given: list[int], settings: Any) -> int:
        """A convolution of `[n, h, w, c]` by `[h, w, c, features]`, then back to its own order."""
        numbers = settings["dimension_numbers"]
        if len(numbers.lhs_spec) != 4:
            raise _no(f"conv_general_dilated over {len(numbers.lhs_spec) - 2} axes")
        if settings["batch_group_count"] != 1:
            raise _no("conv_general_dilated with groups of the batch")
        batch, channel, *space = numbers.lhs_spec
        out, into, *window = numbers.rhs_spec
        x = self.transposed(given[0], [batch, *space, channel])
        kernel = self.transposed(given[1], [*window, into, out])
        size, side = self.shapes[x], self.shapes[kernel]
        strides, pads = settings["window_strides"], settings["padding"]
        spread, holes = settings["lhs_dilation"], settings["rhs_dilation"]
        sizes = [
            (
                ((size[1 + i] - 1) * spread[i] + 1 + sum(pads[i]) - (side[i] - 1) * holes[i] - 1)
                // strides[i]
                + 1
            )
            for i in (0, 1)
        ]
        found = self.step(
            "conv",
            [size[0], *sizes, side[3]],
            [x, kernel],
            strides=list(strides),
            pads=[int(pad[0]) for pad in pads],
            spread=list(spread),
            holes=list(holes),
            groups=int(settings["feature_group_count"]),
        )
        own = numbers.out_spec  # where batch, features, height and width are in the result
        places = {own[0]: 0, own[1]: 3, own[2]: 1, own[3]: 2}
        return self.transposed(found, [places[axis] for axis in range(4)])

    def program(self, inputs: list[int], output: int) -> dict[str, Any]:
        """What is written, for JSON; without the constants that no step takes."""
        used = {output, *(one for _, _, given, _ in self.steps for one in given)}
        constants, parts, at = [], [], 0
        for number, value in self.known.items():
            if number in used:
                constants.append([number, at])
                parts.append(np.ascontiguousarray(value).astype("<f4").ravel())
                at += value.size
        numbers = np.concatenate(parts) if parts else np.zeros(0, "<f4")
        return {
            "shapes": self.shapes,
            "inputs": inputs,
            "output": output,
            "constants": constants,
            "numbers": base64.b64encode(numbers.tobytes()).decode(),
            "steps": [[name, out[0], given, settings] for name, out, given, settings in self.steps],
        }


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which the results depend, in order."""
    wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted |= {atom for atom in equation.invars if not isinstance(atom, core.Literal)}
    return kept[::-1]


def _default_of(platforms: Sequence[Any]) -> int:
    """Which branch of a choice by platform is the one for all others, else the CPU's."""
    platforms = list(platforms)
    if None in platforms:
        return platforms.index(None)
    return next(i for i, names in enumerate(platforms) if "cpu" in names)


def _no(name: str) -> Exception:
    fix = "add --serve: a local page then, for which Python decodes"
    return wrong("explorer: the decoder", name, "operations that the page has", fix, Unsupported)
