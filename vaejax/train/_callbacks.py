"""The functions that a caller gives to a run: checked before it starts, their results when kept."""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import differences
from vaejax.errors import check_key, is_key, takes, wrong
from vaejax.train import _faults as faults
from vaejax.train._state import TrainState
from vaejax.types import describe

_EVALUATE = "return a dictionary such as {'loss': value}"


def check_functions(
    loss: Any,
    optimizer: Any,
    transform: Any,
    evaluate: Any,
    hook: Any,
    log: Any,
    log_step: Any,
    key: Any,
) -> None:
    """Raise TypeError unless `fit` was given functions, an optimizer and a key."""
    check_loss("fit", loss, optimizer)
    check_transform_and_logs("fit", transform, log, log_step)
    if evaluate is not None:
        fix = "for instance lambda params, key: evaluate.mean_loss(loss, params, key, data)"
        takes("fit: evaluate", evaluate, "params, key", fix)
    if hook is not None:
        takes("fit: hook", hook, "state", "for instance lambda state: state._replace(params=...)")
    check_key("fit", key)


def check_member(made: Any) -> None:
    """Raise TypeError unless `make` of a population returned a loss and an optimizer."""
    if not (isinstance(made, tuple | list) and len(made) == 2):
        fix = "for instance objectives.elbo(model), optax.adam(1e-3)"
        raise wrong("population.fit: make", describe(made), "(loss, optimizer)", fix, TypeError)
    check_loss("population.fit: make", *made)


def check_loss(function: str, loss: Any, optimizer: Any) -> None:
    """Raise TypeError unless these are a loss and an optimizer."""
    fix = "for instance objectives.elbo(model)"
    takes(f"{function}: loss", loss, "params, key, batch, step", fix)
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got = getattr(optimizer, "__name__", describe(optimizer))
        fix = "for instance optax.adam(1e-3)"
        raise wrong(f"{function}: optimizer", got, "an Optax optimizer", fix, TypeError)


def check_transform_and_logs(function: str, transform: Any, log: Any, log_step: Any) -> None:
    """Raise TypeError unless these are functions of the right arguments, or None."""
    if transform is not None:
        takes(f"{function}: transform", transform, "key, x", "for instance data.scale")
    for name, one in (("log", log), ("log_step", log_step)):
        if one is not None:
            takes(f"{function}: {name}", one, "row", "for instance print")


def hooked(
    function: str,
    hook: Callable[[Any], Any],
    state: TrainState,
    step: int,
    last: Callable[[], Path | None],
    begun: Set[str],
) -> TrainState:
    """The state that a hook makes of one, a copy of its own.

    Args:
      function: what the user called, for messages.
      hook: `hook(state) -> state`.
      state: before the hook, which may take its memory.
      step: the number of steps done.
      last: the path of the last good checkpoint, or None.
      begun: the names of the arrays of the optimizer's state that were not finite at first.
    Returns:
      A state of the same structure, shapes and types, with the same key and step.
    Raises:
      TypeError, ValueError: for a result of another kind.
      NonFiniteError: for parameters that are not finite, and for an optimizer's state that is
        not, and was at first.
    """
    where, fix = f"{function}: hook", "return state._replace(params=...)"
    before, structure = _kinds(state), str(jax.tree.structure(state))
    number, words = int(state.step), _words(state.key)
    new = hook(state)
    if not isinstance(new, TrainState):
        expected = "the TrainState that it is given, changed"
        raise wrong(where, f"{describe(new)} returned", expected, fix, TypeError)
    if lines := differences(_kinds(new), before, there="returned"):
        raise ValueError(f"{where} returned a state of another kind:\n  {lines}\n{fix}")
    if (found := str(jax.tree.structure(new))) != structure:
        got = f"the structure {found[:300]}"
        raise wrong(where, got, structure[:300], "change the values alone")
    if int(new.step) != number or _words(new.key) != words:
        expected = f"those of the state: {number} steps done"
        raise wrong(where, f"step {int(new.step)} or another key", expected, fix)
    check_there(where, new)
    new = jax.tree.map(jnp.copy, new)
    _check_finite(where, new, step, last, begun)
    return new


def check_there(where: str, state: Any) -> None:
    """Raise ValueError where a function took the memory of a state that it was only shown."""
    leaves = jax.tree.leaves(state)
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
        got, fix = "the parameters donated", "leave out donate_argnums in it"
        raise wrong(where, got, "them to stay as they are", fix)


def numbers(function: str, found: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """What `evaluate` returned, checked to be numbers by name; may be traced.

    Args:
      function: what the user called, for messages.
      found: what `evaluate` returned.
      shape: of each number.
    Returns:
      A dictionary of it, with the values as they are. They may be NaN.
    Raises:
      TypeError, ValueError: for anything else.
    """
    where = f"{function}: evaluate"
    if not isinstance(found, Mapping):
        got = f"{describe(found)} returned"
        raise wrong(where, got, "numbers by name", _EVALUATE, TypeError)
    for name, value in found.items():
        if not isinstance(name, str):
            raise wrong(where, f"the name {name!r}", "a string", _EVALUATE, TypeError)
        dtype = getattr(value, "dtype", None)
        try:
            dtype = np.asarray(value).dtype if dtype is None else dtype
        except ValueError:  # a ragged list
            dtype = np.dtype(object)
        real = jnp.issubdtype(dtype, np.number) and not jnp.issubdtype(dtype, np.complexfloating)
        if not (real or jnp.issubdtype(dtype, np.bool_)):
            raise wrong(f"{where}: {name!r}", describe(value), "a number", _EVALUATE, TypeError)
        if np.ma.is_masked(value):
            raise wrong(f"{where}: {name!r}", "a masked value", "a number", "nan for what is none")
        if np.shape(value) != shape:
            expected = "one number" if shape == () else f"shape {shape}"
            got = f"shape {np.shape(value)}"
            raise wrong(f"{where}: {name!r}", got, expected, "take its mean")
    return dict(found)


def _check_finite(
    where: str, state: TrainState, step: int, last: Callable[[], Path | None], begun: Set[str]
) -> None:
    """Raise NonFiniteError for parameters, or an optimizer's state, that are not finite.

    An optimizer may begin with an infinity: the lowest value so far, before there is one.
    """
    bad = sorted(faults.spoilt({"params": state.params}))
    bad += [f".opt_state{name}" for name in sorted(faults.spoilt(state.opt_state) - begun)]
    if bad:
        raise faults.NonFiniteError(
            f"{where} returned {', '.join(bad[:4])} with NaN or infinity, after step {step}; look "
            f"at what it divides by, and where it takes a logarithm. {faults.last_good(last())}",
            step,
            {},
            last(),
        )


def _kinds(tree: Any) -> dict[str, str]:
    """Types and shapes of a tree's leaves, by their names."""

    def kind(leaf: Any) -> str:
        try:
            leaf = leaf if is_key(leaf) else jnp.asarray(leaf)
        except (TypeError, ValueError):
            return type(leaf).__name__
        return f"{leaf.dtype}{list(leaf.shape)}"

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): kind(leaf) for path, leaf in leaves}


def _words(key: Any) -> list[int]:
    return np.asarray(jax.random.key_data(key) if is_key(key) else key).ravel().tolist()
