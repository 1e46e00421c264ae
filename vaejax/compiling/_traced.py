"""A program that JAX traced, in words that two of the same mathematics share."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import Mesh, Sharding

from vaejax.arrays import on_host
from vaejax.errors import is_key

# Names, and rules of a derivative, which is taken when a program is traced.
_WITHOUT_MEANING = {"name", "debug_info", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"}


class Writer:
    """Writes a program in words that do not depend on the process.

    Not on addresses, names of functions, or where arrays lie; nor on which parts of it are compiled
    by themselves. `numbers` gets the single numbers that occur, `objects` what has no words:
    functions that are called at run time, and where arrays lie.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: set[str] = set()
        self.objects: list[Any] = []
        self.variables = 0

    def say(self, *words: str) -> None:
        for word in words:
            self.digest.update(word.encode() + b"\n")

    def program(self, closed: ClosedJaxpr) -> None:
        """A program of its own."""
        inputs = [self.variable(v) for v in closed.jaxpr.invars]
        self.say("program", *inputs)
        self.say("returns", *self.called(closed, inputs))

    def called(self, closed: ClosedJaxpr, inputs: list[str]) -> list[str]:
        """The operations of a program on inputs that have names; returns those of its outputs."""
        program = closed.jaxpr
        names: dict[Any, str] = dict(zip(program.invars, inputs, strict=True))
        names |= {
            v: self.constant(c) for v, c in zip(program.constvars, closed.consts, strict=True)
        }

        def name(one: Any) -> str:
            return self.constant(one.val) if isinstance(one, Literal) else names[one]

        for operation in program.eqns:
            given, kind = list(map(name, operation.invars)), operation.primitive.name
            if kind in ("jit", "pjit"):
                made = self.called(operation.params["jaxpr"], given)
                self.objects += _shardings(operation.params)
            else:
                self.say(kind, *given)
                for parameter, value in sorted(operation.params.items()):
                    if parameter not in _WITHOUT_MEANING:
                        self.say(parameter)
                        self.value(value)
                made = [self.variable(v) for v in operation.outvars]
                self.say("makes", *made)
            names.update(zip(operation.outvars, made, strict=True))
        return list(map(name, program.outvars))

    def variable(self, variable: Any) -> str:
        self.variables += 1
        aval = variable.aval
        kind = f"{getattr(aval, 'dtype', '-')}{list(getattr(aval, 'shape', ()))}"
        return f"{self.variables}:{kind}"

    def constant(self, value: Any) -> str:
        if is_key(value):
            return f"{value.dtype} {self.constant(jax.random.key_data(value))}"
        array = np.asarray(on_host(value))
        if array.shape == () and array.dtype.kind in "fV" and math.isfinite(number := float(array)):
            self.numbers.add(f"{number:.6g}")
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return f"{array.dtype}{list(array.shape)} {digest}"

    def value(self, value: Any) -> None:
        """A parameter of an operation."""
        if isinstance(value, ClosedJaxpr):
            self.program(value)
        elif isinstance(value, Jaxpr):
            inputs = [*value.constvars, *value.invars]
            self.program(ClosedJaxpr(value.replace(constvars=[], invars=inputs), []))
        elif isinstance(value, tuple | list):
            self.say(f"{len(value)} entries")
            for entry in value:
                self.value(entry)
        elif isinstance(value, Mapping):
            for name in sorted(value, key=str):
                self.say(str(name))
                self.value(value[name])
        elif isinstance(value, set | frozenset):
            self.say(str(sorted(map(str, value))))
        elif is_key(value) or hasattr(value, "__array__") or isinstance(value, float | complex):
            self.say(self.constant(value))
        elif isinstance(value, type):
            self.say(value.__name__)
        elif callable(value) or isinstance(value, Mesh | Sharding):
            self.objects.append(value)
        else:
            text = repr(value)
            self.say(type(value).__name__ if " at 0x" in text else text)


def _shardings(parameters: Mapping[str, Any]) -> list[Any]:
    """Where an inner `jit` was told that its arrays lie."""
    told = jax.tree.leaves([parameters.get(name) for name in ("in_shardings", "out_shardings")])
    return [sharding for sharding in told if isinstance(sharding, Sharding)]


__all__ = ["Writer"]
