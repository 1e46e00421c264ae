"""What identifies a run, apart from its data: what its functions compute.

A function is identified by the program that JAX traces of it, with the numbers in it. So another
learning rate, loss, transform or order is seen, and a function of the same program under another
name, in another process, is the same. Another version of JAX may trace another program for the same
mathematics: the versions are kept beside it.
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from vaejax._version import __version__
from vaejax.compiling import Writer
from vaejax.errors import is_key
from vaejax.train._state import TrainState
from vaejax.train._step import as_seen
from vaejax.types import Loss, StepOrder, Transform

MEANING = {
    "data": "the examples have changed",
    "hyper": "other hyperparameters",
    "hook": "with a hook, or without one",
    "loss": "another loss or network, or other numbers in it",
    "optimizer": "another optimizer, learning rate or schedule",
    "transform": "another transform",
    "indices": "another order of the examples",
}
"""What it means that a part of a run's identity differs."""

_MOST = 200  # numbers that are kept of a function, for messages


def of_functions(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    transform: Transform | None,
    order: StepOrder,
    state: TrainState,
    example: Any,
    batch_size: int,
) -> dict[str, Any]:
    """What identifies the functions of a run, values that JSON can hold.

    Args:
      loss, optimizer, transform: as for `train.fit`.
      order: which examples a step sees.
      state: the first state, of which only types and shapes count, like of `example`.
      example: a Batch of one example or more, as stored.
    """
    return of_members(
        lambda hyper: (loss, optimizer), (), state, transform, order, example, batch_size
    )


def of_members(
    make: Callable[[Any], Any],
    hyper: Any,
    state: TrainState,
    transform: Transform | None,
    order: StepOrder,
    example: Any,
    batch_size: int,
) -> dict[str, Any]:
    """What identifies the functions of a population, of whose members each is like the others.

    Args:
      make: `make(hyper) -> (loss, optimizer)`.
      hyper, state: of one member, like `example` and the rest as for `of_functions`.
    """
    hyper, state = _kinds((hyper, state))
    stored = _kinds(example, batch_size)
    key, batch = jax.eval_shape(partial(as_seen, transform=transform), state, stored)

    def graded(hyper: Any, params: Any, key: Any, batch: Any, step: Any) -> Any:
        return jax.value_and_grad(make(hyper)[0], has_aux=True)(params, key, batch, step)

    def updated(hyper: Any, params: Any, grads: Any, opt_state: Any) -> Any:
        optimizer = make(hyper)[1]
        return optimizer.init(params), optimizer.update(grads, opt_state, params)

    params = state.params
    found = {
        "loss": fingerprint(graded, hyper, params, key, batch, state.step),
        "optimizer": fingerprint(updated, hyper, params, params, state.opt_state),
        "indices": fingerprint(order, key, state.step),
    }
    if transform is not None:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stored.x)
        found["transform"] = fingerprint(transform, key, one)
    return found


def versions() -> dict[str, str]:
    """The versions on which a fingerprint depends, and the kind of device."""
    packages = ("jax", "flax", "optax")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"vaejax": __version__, **found, "device": jax.default_backend()}


def fingerprint(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """A digest of the program that JAX traces of a function, and the numbers that are in it.

    Args:
      function: of arrays.
      arguments: types and shapes, `jax.ShapeDtypeStruct`, in trees.
    Returns:
      `sha256`, hexadecimal digits; and `numbers`, in words, for a message.
    """
    with warnings.catch_warnings(), jax.disable_jit(False):
        warnings.simplefilter("ignore")  # the run itself says it
        program = jax.make_jaxpr(function)(*arguments)
    writer = Writer()
    writer.program(program)
    numbers = sorted(writer.numbers, key=float)[:_MOST]
    return {"sha256": writer.digest.hexdigest(), "numbers": numbers}


def words_for(found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, str]:
    """How two identities of runs differ, in lines of a message.

    Args:
      found: of the checkpoint: parts by name; `functions`, from `of_functions`; and `versions`.
      expected: of the run that would go on.
    Returns:
      What surely differs, and what may be the same under other versions; "" for nothing.
    """
    own = ("functions", "versions")
    plain = _differing(
        *({n: p for n, p in run.items() if n not in own} for run in (found, expected))
    )
    if any(line.startswith(("examples:", "batch_size:", "members:")) for line in plain):
        return "\n  ".join(plain), ""  # the functions are traced for these numbers
    functions = _differing(*(run.get("functions", {}) for run in (found, expected)))
    versions = _differing(*(run.get("versions", {}) for run in (found, expected)))
    if versions:
        return "\n  ".join(plain), "\n  ".join([*functions, *versions] if functions else [])
    return "\n  ".join([*plain, *functions]), ""


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The parts of two identities that differ, each a line of a message."""
    lines = []
    for name in {**expected, **found}:
        then, now = found.get(name), expected.get(name)
        if _essence(then) == _essence(now):
            continue
        meaning = f" ({MEANING[name]})" if name in MEANING else ""
        lines.append(f"{name}: checkpoint {_told(then, now)}, here {_told(now, then)}{meaning}")
    return lines


def _essence(part: Any) -> Any:
    return part["sha256"] if isinstance(part, Mapping) else part


def _told(part: Any, other: Any) -> str:
    """A part in words: of a function the numbers that the other one has not, else its digest."""
    if part is None:
        return "none"
    if not isinstance(part, Mapping):
        return part[:12] if isinstance(part, str) else str(part)
    if isinstance(other, Mapping):
        own = [number for number in part["numbers"] if number not in other["numbers"]]
        if 0 < len(own) <= 6:
            return f"one with {', '.join(own)}"
    return f"one of digest {part['sha256'][:8]}"


def _kinds(tree: Any, leading: int | None = None) -> Any:
    """Types and shapes of a tree's leaves, whose leading axis may be another one."""

    def kind(leaf: Any) -> Any:
        shape = np.shape(leaf) if leading is None else (leading, *np.shape(leaf)[1:])
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not is_key(leaf):
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jax.ShapeDtypeStruct(shape, dtype)

    return jax.tree.map(kind, tree)
