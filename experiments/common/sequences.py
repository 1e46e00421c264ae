"""Sequences of experiments.recurrent: rows of images, and a linear-Gaussian process; a VRNN."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common.images import split_of
from vaejax import data, heads, networks, plot, recurrent
from vaejax.distributions import kl
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder
from vaejax.types import Key, Params, Transform

__all__ = ["BLUR", "MIX", "NOISE", "TURN", "Task", "kalman", "linear", "rows", "turns"]

MIX = np.array([[1.0, 0.5], [-0.7, 1.0], [0.3, -1.0]])  # of the linear-Gaussian sequences
TURN = 0.9 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
NOISE, BLUR = 0.5, 0.4


class Task(NamedTuple):
    """Sequences, the model that is trained on them, and what else there is to measure and draw.

    Args:
      model: of a whole sequence.
      draw: one pass of inference, as the losses take it.
      train, test: stored sequences.
      transform: stored sequences to what the model sees; None if they are the same.
      finish: `finish(params, key, folder) -> (more numbers, figures)`, after the training.
    """

    model: Model
    draw: Any
    train: Any
    test: Any
    transform: Transform | None
    finish: Callable[[Params, Key, Path], tuple[dict[str, Any], dict[str, Any]]]


def rows(config: Any) -> Task:
    """Binarised images, which a VRNN reads from top to bottom.

    `config`: of experiments.recurrent.
    """
    train, test = (
        split_of(config, f"{split}[:64]" if config.smoke else split).x
        for split in ("train", "test")
    )
    if train.ndim != 4 or train.shape[-1] != 1:
        fix = "give images [n, height, width, 1]"
        raise wrong("recurrent: --dataset", f"x {train.shape}", "grey images", fix)
    train, test = train[..., 0], test[..., 0]
    vrnn = _vrnn(config, heads.Bernoulli(train.shape[2]))
    height = train.shape[1]

    def finish(params: Params, key: Key, folder: Path) -> Any:
        make_key, see_key, complete_key, rate_key = jax.random.split(key, 4)
        make = jax.jit(jax.vmap(partial(vrnn.generate, params, steps=height)))
        made = make(jax.random.split(make_key, 64))
        few = jnp.asarray(test[:256])
        seen = jax.jit(jax.vmap(data.binarize))(jax.random.split(see_key, len(few)), few)
        complete = jax.vmap(
            lambda key, x: vrnn.generate(params, key, steps=height, x=x, known=height // 2)
        )
        wanted = jnp.repeat(seen[:8], 6, axis=0)
        drawn = jax.jit(complete)(jax.random.split(complete_key, len(wanted)), wanted).x
        grid = jnp.concatenate([seen[:8, None], drawn.reshape(8, 6, *seen.shape[1:])], axis=1)
        figures = {
            "samples": plot.images(made.mean, title="samples: mean of each row's p(x|z, h)"),
            "completions": plot.images(
                grid.reshape(-1, *seen.shape[1:]),
                columns=7,
                title="test image (first), and draws of its lower half given the upper",
            ),
            "rates": _rates(vrnn, params, rate_key, seen),
        }
        return {}, figures

    return Task(vrnn.model, vrnn.draw, train, test, data.binarize, finish)


def linear(config: Any) -> Task:
    """Noisy turns of a point, 5 to 20 steps of them, beside a Kalman filter.

    `config`: of experiments.recurrent.
    """
    rng = np.random.default_rng(config.seed)
    made = [turns(rng, length) for length in rng.integers(5, 21, 96 if config.smoke else 4000)]
    values, mask = recurrent.padded(made)
    x, split = (values.astype(np.float32), mask), len(made) * 3 // 4
    vrnn = _vrnn(config, heads.Normal(len(MIX)))

    def finish(params: Params, key: Key, folder: Path) -> Any:
        make_key, rate_key = jax.random.split(key)
        make = jax.jit(jax.vmap(partial(vrnn.generate, params, steps=20)))
        drawn = make(jax.random.split(make_key, 4)).x
        figures = {"rates": _rates(vrnn, params, rate_key, test)}
        for name, shown in (("data", values[mask.all(axis=1)]), ("samples", drawn)):
            lines = {f"sequence {i + 1}": one[:, 0] for i, one in enumerate(shown[:4])}
            figures[name] = plot.curves(lines, xlabel="step", ylabel="first coordinate", title=name)
        return {"kalman_nll_nats": float(-np.mean([kalman(one) for one in made[split:]]))}, figures

    train, test = (tuple(leaf[part] for leaf in x) for part in (slice(split), slice(split, None)))
    return Task(vrnn.model, vrnn.draw, train, test, None, finish)


def _vrnn(config: Any, likelihood: Any) -> recurrent.Recurrent:
    """Networks of one hidden layer for a step's posterior, likelihood and prior."""

    def network(head: Any) -> Any:
        return nn.Sequential([networks.MLP((2 * config.features,)), head])

    step = autoencoder(
        network(heads.Normal(config.latent)),
        network(likelihood),
        network(heads.Normal(config.latent)),
    )
    return recurrent.vrnn(step, recurrent.Cell(config.features), features=config.features)


def _rates(vrnn: recurrent.Recurrent, params: Any, key: Any, x: Any) -> Any:
    """The mean KL of each step over the sequences that have it, drawn."""

    def one(key: Any, x: Any) -> Any:
        d = vrnn.draw(vrnn.model, params, key, x)
        rate = jax.vmap(kl)(d.q.each, d.pz.each)
        counts = jnp.ones(len(rate)) if isinstance(d.q.mask, tuple) else d.q.mask
        return jnp.where(counts, rate, 0.0), counts

    size = len(jax.tree.leaves(x)[0])
    rate, counts = jax.jit(jax.vmap(one))(jax.random.split(key, size), x)
    ylabel, title = "KL of the step, nats", "what each step's code carries"
    mean = rate.sum(axis=0) / counts.sum(axis=0)
    return plot.curves({"rate": mean}, xlabel="step", ylabel=ylabel, title=title)


def turns(rng: np.random.Generator, length: int) -> np.ndarray:
    """A sequence x `[length, 3]`.

    `z_t = TURN z_{t-1} + NOISE e`, `x_t = MIX z_t + BLUR e`, from z_0 = 0.
    """
    z, x = np.zeros(2), []
    for _ in range(length):
        z = TURN @ z + NOISE * rng.normal(size=2)
        x.append(MIX @ z + BLUR * rng.normal(size=len(MIX)))
    return np.stack(x)


def kalman(x: np.ndarray) -> float:
    """log p(x) of such a sequence x `[length, 3]` by the Kalman filter, nats."""
    mean, V, total = np.zeros(2), np.zeros((2, 2)), 0.0
    for one in x:
        mean, V = TURN @ mean, TURN @ V @ TURN.T + NOISE**2 * np.eye(2)
        S, off = MIX @ V @ MIX.T + BLUR**2 * np.eye(len(MIX)), one - MIX @ mean
        total -= 0.5 * (off @ np.linalg.solve(S, off) + np.linalg.slogdet(2 * np.pi * S)[1])
        gain = V @ MIX.T @ np.linalg.inv(S)
        mean, V = mean + gain @ off, V - gain @ MIX @ V
    return float(total)
