"""Errors of a run: wrong arguments before it starts, and numbers that are not finite in it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import finite
from vaejax.errors import unscaled, wrong
from vaejax.types import Batch, Key, Loss, Metrics


class NonFiniteError(FloatingPointError):
    """A loss, one of its terms, its gradient or the optimizer's state became infinite or NaN.

    Args:
      message: what is said.
      step: the first such step, counted from 0.
      terms: the values of the loss's terms there.
      checkpoint: the last good one on disk, or None.
      examples: the indices of the examples whose loss is not finite by itself; () where that holds
        for none or for all.

    `fitted` holds all there was, with the state before that step (under `skip`, after the chunk).
    """

    def __init__(
        self,
        message: str,
        step: int,
        terms: dict[str, float],
        checkpoint: Path | None,
        examples: tuple[int, ...] = (),
    ):
        super().__init__(message)
        self.step, self.terms, self.checkpoint = step, terms, checkpoint
        self.examples = examples
        self.fitted: Any = None


class Seen(NamedTuple):
    """A step as its loss saw it.

    Args:
      loss: what is minimised.
      state: the state before the step.
      key: the key of its noise.
      batch: what it saw.
      indices: the places of its examples in the data, `[batch]`.
    """

    loss: Loss
    state: Any
    key: Key
    batch: Batch
    indices: np.ndarray


def non_finite(
    terms: dict[str, float], seen: Seen, stored: Any, transform: Any, last: Path | None
) -> NonFiniteError:
    """The error that names the term, the step and the examples, and says what to look at.

    `terms` are those of the loss at the step, `stored` is the x of its examples as stored, and
    `last` the last good checkpoint.
    """
    step = int(seen.state.step)
    check_parameters(seen.state.params, step - 1, lambda: last)
    values = ", ".join(f"{name} = {value:.6g}" for name, value in terms.items())
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if not bad:
        message = f"fit: {_of_gradient(seen, step, values)}. {last_good(last)}"
        return NonFiniteError(message, step, terms, last)
    examples = _examples_to_blame(seen)
    blamed = ""
    if examples:
        blamed = f"Example {', '.join(map(str, examples[:8]))} of the data by itself. "
    lowest = [(np.min(leaf), np.max(leaf)) for leaf in map(np.asarray, jax.tree.leaves(stored))]
    message = (
        f"fit: {', '.join(bad)} not finite at step {step} ({values}). {blamed}The batch's stored x "
        f"lies in {', '.join(f'[{low:.4g}, {high:.4g}]' for low, high in lowest)}, with "
        f"{'no transform' if transform is None else 'a transform'}: "
        f"check that {_suspect(bad, stored)}, then try a lower learning rate or clipped gradients. "
        f"{last_good(last)}"
    )
    return NonFiniteError(message, step, terms, last, examples)


def last_good(checkpoint: Path | None) -> str:
    """The last sentence of an error: where to go on from, a checkpoint's path or None."""
    if checkpoint is None:
        return "No checkpoint has been written."
    return f"Last good checkpoint: {checkpoint}"


def check_parameters(params: Any, step: int, last: Callable[[], Path | None]) -> None:
    """Raise NonFiniteError where the optimizer made parameters not finite of a finite gradient."""
    if spoilt(params):
        raise _by_the_optimizer("parameters are", step, last())


def check_state(state: Any, step: int, last: Callable[[], Path | None], begun: set[str]) -> None:
    """Raise NonFiniteError where parameters or the optimizer's state are not finite after a step.

    `begun` are the names of the arrays of the optimizer's state that were not finite at first (the
    best loss so far, infinity).
    """
    check_parameters(state.params, step, last)
    if names := spoilt(state.opt_state) - begun:
        raise _by_the_optimizer(f"the optimizer's {sorted(names)[0]} is", step, last())


def spoilt(tree: Any) -> set[str]:
    """The names of the arrays of a tree that hold NaN or infinity."""
    numbers = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else (), tree)
    leaves = jax.tree.leaves(numbers)
    if jax.default_backend() == "cpu":  # where they lie in memory, and nothing need be compiled
        fine = [all(np.isfinite(part).all() for part in _parts(leaf)) for leaf in leaves]
    else:
        fine = jax.device_get(_each_finite(leaves))
    if all(fine):  # their names take longer than all else
        return set()
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(numbers)]
    return {path for path, one in zip(paths, fine, strict=True) if not one}


def check_metrics(history: Metrics, dimensions: int, function: str = "fit") -> None:
    """Raise ValueError for a metric that is not one number (for each member, of a population)."""
    for name, values in history.items():
        if np.ndim(values) != dimensions:
            shape = np.shape(values)[dimensions:]
            where = f"{function}: metric {name!r}"
            raise wrong(where, f"shape {shape}", "a scalar", "take its mean")


def check_monitored(
    measured: dict[str, Any],
    monitor: str,
    step: int,
    last: Callable[[], Path | None],
    function: str = "fit",
) -> None:
    """Raise where the monitored number was not measured, or is not finite."""
    if monitor not in measured:
        raise ValueError(
            f"{function}: monitor={monitor!r} is not among what evaluate returned: "
            f"{sorted(measured)}; pass monitor= one of these"
        )
    if not np.isfinite(measured[monitor]).any():
        raise NonFiniteError(
            f"{function}: evaluate returned {measured} after step {step}, of which {monitor!r} "
            f"is monitored and not finite. {last_good(last())}",
            step,
            measured,
            last(),
        )


def _by_the_optimizer(what: str, step: int, last: Path | None) -> NonFiniteError:
    message = (
        f"fit: {what} not finite after step {step}, though every loss and gradient was: look at "
        f"the optimizer's schedule and settings. {last_good(last)}"
    )
    return NonFiniteError(message, step, {}, last)


@jax.jit
def _each_finite(leaves: list[Any]) -> list[Any]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _parts(array: Any) -> list[Any]:
    """What lies in this process of an array, in numpy."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return [np.asarray(array)]
    return [np.asarray(shard.data) for shard in array.addressable_shards]


def _suspect(bad: list[str], stored: Any) -> str:
    """What to look at first, by the terms that are not finite."""
    if "penalty" in bad and "distortion" not in bad:
        return "the codes lie where the penalty wants them (sparsity.kl: in [0, 1], by nn.sigmoid)"
    if "cross_entropy" in bad:
        return "x is finite and the labels are from 0 to classes - 1"
    return f"the likelihood's support holds it ({unscaled(stored)})"


def _examples_to_blame(seen: Seen) -> tuple[int, ...]:
    """The examples whose loss is not finite where they alone count; none if that holds for all."""
    given = 1.0 if isinstance(seen.batch.weight, tuple) else seen.batch.weight
    weights = np.eye(len(seen.indices), dtype=np.float32) * np.asarray(given, np.float32)

    def fine(weight: Any) -> Any:
        batch = seen.batch._replace(weight=weight)
        key = jax.random.clone(seen.key)  # of the same noise for each
        value, metrics = seen.loss(seen.state.params, key, batch, seen.state.step)
        return finite((value, metrics))

    try:
        alone = np.asarray(jax.jit(lambda weights: lax.map(fine, weights))(weights))
    except Exception:  # a loss that takes no weights cannot be asked
        return ()
    alone = alone | (weights.sum(axis=1) == 0)
    return tuple(np.asarray(seen.indices)[~alone].tolist()) if alone.any() else ()


def _of_gradient(seen: Seen, step: int, values: str) -> str:
    """What is wrong with a step whose loss is finite: its gradient, or what is made of it."""

    def value(params: Any) -> Any:
        return seen.loss(params, seen.key, seen.batch, seen.state.step)[0]

    grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(value))(seen.state.params))
    largest = {jax.tree_util.keystr(path): np.max(np.abs(np.asarray(leaf))) for path, leaf in grads}
    names = [name for name, size in largest.items() if not np.isfinite(size)]
    if names:
        return (
            f"the gradient of {', '.join(names[:4])} is not finite at step {step}, though the loss "
            f"is ({values}): a root or a quotient at 0; clipping does not mend NaN, masking what "
            "divides by zero does"
        )
    name = max(largest, key=lambda name: float(largest[name]))
    return (
        f"the optimizer's state would not be finite after step {step}, though the loss ({values}) "
        f"and the gradient are: that of {name} reaches {float(largest[name]):.3g}, which "
        "or whose square overflows; clip each entry first, optax.chain(optax.clip(1.0), "
        "optimizer), or look for what makes it so steep (a scale near 0)"
    )
