"""A laboratory for gradient estimators: their bias, variance and signal-to-noise ratio.

A Loss is an estimator: its gradient at one key is one draw. `compare` measures several on the same
parameters and batch; `moments` gives the mean and the variance of each coordinate. Draws are
vmapped a chunk at a time and summed as they come, so that memory is that of `chunk` gradients.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from vaejax.batch import as_batch
from vaejax.data.sources import in_arrays
from vaejax.errors import at_least_one, wrong
from vaejax.types import Array, Batch, Key, Loss, Params, describe_fields


@describe_fields
class Moments(NamedTuple):
    """Mean and (unbiased) variance of each coordinate of the gradient, in the shape of params.

    The standard error of the mean is `sqrt(variance / samples)`.

    Args:
      mean: of each coordinate.
      variance: of each coordinate, of a single draw.
      samples: the number of draws behind them; 0 for a gradient that is known exactly.
    """

    mean: Params
    variance: Params
    samples: int


class Quality(NamedTuple):
    """What n draws say about one estimator on one group of parameters. Units: nats per parameter.

    With mean m_i and variance v_i of coordinate i, and a reference of mean r_i and error e_i:

    - `bias`: `|m - r|`, the Euclidean norm over the group; noise makes it positive by about
      `bias_error`, `sqrt(sum_i v_i / n + e_i^2)`, even where there is no bias.
    - `worst`: the largest of `|m_i - r_i| / sqrt(v_i / n + e_i^2)`, in standard errors.
    - `norm`: `|m|`; `variance`: `sum_i v_i`, of a single draw.
    - `snr`: the mean over coordinates of `|m_i| / sqrt(v_i)` (Rainforth et al., 2018). n draws
      cannot show one below `snr_floor` = `sqrt(2 / (pi n))`, which pure noise gives.
      Coordinates that are always zero, of dead inputs or units, are left out; NaN if all are.
    - `norm_snr`: `sqrt(max(0, |m|^2 - variance / n) / variance)`, that of the group as one vector,
      weighed by size, with the noise of the mean taken off.
    """

    bias: float
    bias_error: float
    worst: float
    norm: float
    variance: float
    snr: float
    snr_floor: float
    norm_snr: float


def moments(
    loss: Loss,
    params: Params,
    key: Key,
    batch: Any,
    *,
    samples: int,
    chunk: int = 16,
    step: int = 2**30,
) -> Moments:
    """Mean and variance of a loss's gradient over `samples` draws, coordinate by coordinate.

    A draw depends on `key` and its number alone. It is compiled once per loss object.

    Args:
      loss: a training loss.
      params: its parameters.
      key: for the draws.
      batch: what the gradient is of, a Batch, or the x of one, `[n, ...]`.
      samples: how many draws, 2 or more.
      chunk: draws held in memory at a time.
      step: what schedules see, by default past their end.
    Returns:
      Moments.
    Raises:
      ValueError: for fewer than 2 samples, and where a gradient is not finite.
    """
    at_least_one("moments", chunk=chunk)
    if samples < 2:
        raise wrong("moments: samples", samples, "2 or more", "a variance needs two draws")
    batch = as_batch(in_arrays("moments", batch))
    mean, variance = _moments(loss, chunk, samples, params, key, batch, step)
    for path, leaf in jax.tree_util.tree_leaves_with_path((mean, variance)):
        if not np.isfinite(leaf).all():
            where = jax.tree_util.keystr(path[1:])
            fix = "look at the loss and its metrics on this batch, one key at a time"
            raise wrong(f"moments: gradient{where}", "NaN or inf", f"{samples} finite draws", fix)
    return Moments(mean, variance, samples)


def compare(
    losses: Mapping[str, Loss],
    params: Params,
    key: Key,
    batch: Any,
    *,
    samples: int,
    reference: Loss | Moments | None = None,
    reference_samples: int | None = None,
    groups: Any = None,
    chunk: int = 16,
    step: int = 2**30,
) -> dict[str, dict[str, Quality]]:
    """Bias, variance and signal-to-noise ratio of each loss's gradient, per group of parameters.

    Args:
      losses: estimators by name, measured on independent keys over `samples` draws each.
      params: their parameters.
      key: for the draws.
      batch: what the gradients are of, a Batch, or the x of one, `[n, ...]`.
      samples: how many draws, 2 or more.
      reference: what the bias is against: a Loss that is unbiased for the same objective; Moments,
        to measure a reference once; or `exactly(gradient)` where it is known. None: the first loss.
      reference_samples: draws of a reference that is a Loss; None: ten times `samples`.
      groups: names for the groups: a tree like params, or the top of one (optax's "prefix"), with a
        string at each leaf; None: the top-level keys of params.
      chunk, step: see `moments`.
    Returns:
      `{loss: {group: Quality}}`.
    Raises:
      ValueError: as `moments` does, without losses, and for a reference or groups of another shape
        than params.
    References:
      Rainforth et al., 2018, arXiv:1802.04537.
    """
    at_least_one(
        "compare", ("reference_samples",), losses=len(losses), reference_samples=reference_samples
    )
    reference_key, *keys = jax.random.split(key, len(losses) + 1)
    measure = partial(moments, params=params, batch=batch, chunk=chunk, step=step)
    if not isinstance(reference, Moments):
        loss = next(iter(losses.values())) if reference is None else reference
        reference = measure(loss, key=reference_key, samples=reference_samples or 10 * samples)
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (reference.mean, params))
    if shapes != expected:
        fix = "pass the gradient of all of params"
        raise wrong("compare: reference", shapes, f"the shapes of params, {expected}", fix)
    labels = jax.tree.leaves(_labels(groups, params))
    found = {}
    for loss_key, (name, loss) in zip(keys, losses.items(), strict=True):
        measured = measure(loss, key=loss_key, samples=samples)
        found[name] = {
            group: _quality(_flat(measured, labels, group), _flat(reference, labels, group))
            for group in dict.fromkeys(labels)
        }
    return found


def exactly(gradient: Params) -> Moments:
    """A gradient that is known, by quadrature or in closed form, as a reference without error.

    Args:
      gradient: in the shape of params.
    Returns:
      Moments of variance 0.
    """
    return Moments(gradient, jax.tree.map(jnp.zeros_like, gradient), 0)


@partial(jax.jit, static_argnums=(0, 1))
def _moments(
    loss: Loss, chunk: int, samples: Any, params: Params, key: Key, batch: Batch, step: Any
) -> tuple[Params, Params]:
    """Chan's update of mean and sum of squared deviations, one chunk of draws at a time."""

    def gradient(index: Array) -> Array:
        found = jax.grad(loss, has_aux=True)(params, jax.random.fold_in(key, index), batch, step)
        return ravel_pytree(found[0])[0]

    def add(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, mean, squares = state
        indices = i * chunk + jnp.arange(chunk)
        drawn = jax.vmap(gradient)(indices)
        kept = (indices < samples)[:, None]  # the last chunk may be ragged
        size = jnp.sum(kept)
        own = jnp.sum(jnp.where(kept, drawn, 0), axis=0) / size
        spread = jnp.sum(jnp.where(kept, (drawn - own[None]) ** 2, 0), axis=0)
        share, delta = (size / (count + size)).astype(own.dtype), own - mean
        return count + size, mean + share * delta, squares + spread + delta**2 * share * count

    flat, shaped = ravel_pytree(params)
    zeros = jnp.zeros((), int), jnp.zeros_like(flat), jnp.zeros_like(flat)
    _, mean, squares = lax.fori_loop(0, -(-samples // chunk), add, zeros)
    return shaped(mean), shaped(squares / (samples - 1))


def _labels(groups: Any, params: Params) -> Any:
    """A label for every leaf of params, from a prefix of its tree."""
    if groups is None:
        groups = {name: name for name in params} if isinstance(params, Mapping) else "all"
    try:
        return jax.tree.map(lambda name, part: jax.tree.map(lambda _: name, part), groups, params)
    except ValueError as error:
        fix = 'for instance {"encoder": "inference", "decoder": "generative"}'
        expected = "names for the whole of params, by a prefix of its tree"
        raise wrong("compare: groups", groups, expected, fix) from error


_Flat = tuple[np.ndarray, np.ndarray, int, float]


def _flat(found: Moments, labels: list[str], group: str) -> _Flat:
    """Mean and variance of a group's coordinates, `[coordinates]`, n, and the unit of rounding."""
    epsilon = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(found.mean))).eps)

    def together(tree: Params) -> np.ndarray:
        leaves = zip(jax.tree.leaves(tree), labels, strict=True)
        return np.concatenate(
            [np.ravel(leaf) for leaf, name in leaves if name == group], dtype=float
        )

    return together(found.mean), together(found.variance), found.samples, epsilon


def _quality(measured: _Flat, reference: _Flat) -> Quality:
    """The numbers of one group of coordinates."""
    mean, variance, samples, epsilon = measured
    known, spread, known_samples, _ = reference
    squared_error = variance / samples + spread / max(known_samples, 1)
    off = np.abs(mean - known)
    # Rounding is not bias: a coordinate may have no noise at all.
    rounding = 32 * epsilon * (np.abs(mean) + np.abs(known)) + np.finfo(float).tiny
    errors_off = off / (np.sqrt(squared_error) + rounding)
    moves = variance > 0
    ratios = np.abs(mean[moves]) / np.sqrt(variance[moves])
    total, length = variance.sum(), np.sqrt(np.sum(mean**2))
    signal = np.sqrt(max(0.0, length**2 - total / samples))
    return Quality(
        bias=float(np.sqrt(np.sum(off**2))),
        bias_error=float(np.sqrt(np.sum(squared_error))),
        worst=float(errors_off.max()),
        norm=float(length),
        variance=float(total),
        snr=float(ratios.mean()) if moves.any() else float("nan"),
        snr_floor=float(np.sqrt(2 / (np.pi * samples))),
        norm_snr=float(signal / np.sqrt(total)) if total else float("inf" if signal else "nan"),
    )


__all__ = ["Moments", "Quality", "compare", "exactly", "moments"]
