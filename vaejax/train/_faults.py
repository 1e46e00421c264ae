"""Errors of a run: wrong arguments before it starts, and numbers that are not finite in it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.errors import check_key, takes, unscaled, wrong
from vaejax.trees import finite
from vaejax.types import Batch, Key, Loss, Metrics


class NonFiniteError(FloatingPointError):
    """A loss, one of its terms or its gradient became infinite or NaN.

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
        names = _parameters_to_blame(seen)
        message = (
            f"fit: the gradient of {', '.join(names[:4]) or 'some parameter'} is not "
            f"finite at step {step}, though the loss is ({values}): a root or a quotient at 0; "
            f"clipping does not mend NaN, masking what divides by zero does. {last_good(last)}"
        )
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
    if not _all_finite(params):
        raise NonFiniteError(
            f"fit: parameters are not finite after step {step}, though every loss and gradient "
            f"was: look at the optimizer's schedule and settings. {last_good(last())}",
            step,
            {},
            last(),
        )


def check_metrics(history: Metrics, dimensions: int) -> None:
    """Raise ValueError for a metric that is not one number (for each member, of a population)."""
    for name, values in history.items():
        if np.ndim(values) != dimensions:
            shape = np.shape(values)[dimensions:]
            raise wrong(f"fit: metric {name!r}", f"shape {shape}", "a scalar", "take its mean")


def check_functions(loss: Any, optimizer: Any, transform: Any, evaluate: Any, key: Any) -> None:
    """Raise TypeError unless `fit` was given functions, an optimizer and a key."""
    fix = "for instance objectives.elbo(model)"
    takes("fit: loss", loss, "params, key, batch, step", fix)
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got = getattr(optimizer, "__name__", type(optimizer).__name__)
        fix = "for instance optax.adam(1e-3)"
        raise wrong("fit: optimizer", got, "an Optax optimizer", fix, TypeError)
    if transform is not None:
        takes("fit: transform", transform, "key, x", "for instance data.scale")
    if evaluate is not None:
        fix = "for instance lambda params, key: evaluate.mean_loss(loss, params, key, data)"
        takes("fit: evaluate", evaluate, "params, key", fix)
    check_key("fit", key)


def check_monitored(
    measured: dict[str, Any], monitor: str, step: int, last: Callable[[], Path | None]
) -> None:
    """Raise where the monitored number was not measured, or is not finite."""
    if monitor not in measured:
        raise ValueError(
            f"fit: monitor={monitor!r} is not among what evaluate returned: {sorted(measured)}"
        )
    if not np.isfinite(measured[monitor]).any():
        raise NonFiniteError(
            f"fit: evaluate returned {measured} after step {step}, of which {monitor!r} is "
            f"monitored and not finite. {last_good(last())}",
            step,
            measured,
            last(),
        )


def _all_finite(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    if jax.default_backend() == "cpu":  # where they lie in memory, and nothing need be compiled
        return all(
            np.isfinite(np.asarray(shard.data)).all() for a in leaves for shard in _shards(a)
        )
    return bool(jax.jit(finite)(leaves))


def _shards(array: Any) -> Any:
    return jnp.asarray(array).addressable_shards


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
        return jnp.all(jnp.stack([jnp.isfinite(v) for v in (value, *metrics.values())]))

    try:
        alone = np.asarray(jax.jit(lambda weights: lax.map(fine, weights))(weights))
    except Exception:  # a loss that takes no weights cannot be asked
        return ()
    alone = alone | (weights.sum(axis=1) == 0)
    return tuple(np.asarray(seen.indices)[~alone].tolist()) if alone.any() else ()


def _parameters_to_blame(seen: Seen) -> list[str]:
    """Names of the parameters whose gradient is not finite."""

    def value(params: Any) -> Any:
        return seen.loss(params, seen.key, seen.batch, seen.state.step)[0]

    grads = jax.jit(jax.grad(value))(seen.state.params)
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.isfinite(np.asarray(leaf)).all()
    ]
