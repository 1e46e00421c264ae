"""Factors of variation: sprites, what codes say of their factors, and pictures of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.image_vae import seen_by
from experiments.common.training import keys
from vaejax import data, diagnostics, disentanglement, plot, sprites, train
from vaejax.errors import at_least_one
from vaejax.model import Model
from vaejax.types import Array, Batch, Key, Params

__all__ = [
    "LABELS",
    "Images",
    "images_of",
    "information",
    "load",
    "measured",
    "shown",
    "summarised",
    "traversals",
]


def images_of(config: Any, key: Key) -> tuple[Batch, Batch]:
    """Images to train on, and those to measure: uint8, y the factors `[n, 5]` of sprites.

    Args:
      config: of experiments.disentangle.
      key: of the sprites to train on, which are drawn from the grid.
    """
    if config.dataset != "sprites":
        few = ("train[:64]", "test[:32]") if config.smoke else ("train", "test[:5000]")
        return data.load(config.dataset, few[0]), data.load(config.dataset, few[1])
    counts = {"scales": config.scales, "rotations": config.rotations}
    grid = sprites.grid(**counts, positions=config.positions, turn=config.turn)
    batches = (
        sprites.sample(key, config.examples, grid=grid, size=config.size),
        sprites.every(grid=grid, size=config.size),
    )
    # Black and white, no greys: the Bernoulli likelihood is then that of the images themselves.
    train_set, test_set = (
        Batch(np.where(b.x > 0.5, 255, 0).astype(np.uint8), y=np.asarray(b.y)) for b in batches
    )
    return train_set, test_set


class Images(NamedTuple):
    """Stored images, y their factors; some of them as the model sees them, and their mean."""

    train: Batch
    test: Batch
    seen: np.ndarray
    mean: np.ndarray


def load(config: Any) -> Images:
    """Sprites, or images of a data set. `config`: of experiments.disentangle."""
    at_least_one("disentangle", methods=len(config.methods), epochs=config.epochs)
    data_key, seen_key, *_ = keys(config, 5)
    images, test = images_of(config, data_key)
    train.shuffled(len(images.x), config.batch_size)  # refuses a batch larger than the data
    seen = seen_by(data.binarize, seen_key, images.x)
    return Images(images, test, np.asarray(seen), np.asarray(seen.mean(axis=0)))


def measured(config: Any, model: Model, params: Params, key: Key, test: Batch) -> dict[str, Any]:
    """Numbers of one trained model on all test images; `order`: its dimensions, by their KL.

    Args:
      config: of experiments.disentangle.
      model, params: the trained model.
      key: of the images as the model sees them, and of codes.
      test: stored images, y their factors.
    """
    elbo_key, part_key, code_key = jax.random.split(key, 3)
    seen = jax.jit(jax.vmap(data.binarize))(jax.random.split(elbo_key, len(test.x)), test.x)
    rates = diagnostics.rate_per_dimension(model, params, jax.random.key(0), seen)
    parts = diagnostics.decompose(model, params, part_key, seen, draws=config.draws)
    found: dict[str, Any] = {
        "elbo_nats": parts.elbo.value,
        "distortion_nats": parts.distortion.value,
        "rate_nats": parts.rate.value,
        "total_correlation_nats": parts.total_correlation,
        "collapsed_dimensions": int(np.sum(rates < 0.1)),
        "rates": rates,
        "order": np.argsort(-rates),
    }
    if config.dataset == "sprites":
        encode = jax.jit(jax.vmap(lambda key, x: model.encode(params, x).sample(key)))
        z = encode(jax.random.split(code_key, len(seen)), seen)
        found["gap"] = disentanglement.mig(z, test.y)
    return found


LABELS = {
    "mig": "mutual information gap",
    "total_correlation_nats": "total correlation, nats",
    "elbo_nats": "ELBO, nats per image",
    "beta": "weight of the rate",
    "tc_beta": "weight of the total correlation",
    "gamma": "weight of the critic's total correlation",
} | {f"gap_{name}": f"gap of the {name}" for name in sprites.FACTORS}


def summarised(config: Any, found: dict[str, Any], critic: dict[str, float]) -> dict[str, Any]:
    """What summary.json holds: the numbers of each method, and what is to be said of them.

    Args:
      config: of experiments.disentangle.
      found: what `measured` says, by method.
      critic: the numbers of FactorVAE's critic; empty without it.
    """
    summary: dict[str, Any] = {"methods": list(found)}
    for method, one in found.items():
        correlation = one["total_correlation_nats"]
        numbers = {n: one[n] for n in ("elbo_nats", "distortion_nats", "rate_nats")}
        numbers |= {"total_correlation_nats": correlation.value}
        numbers |= {"total_correlation_error": correlation.error}
        if "gap" in one:
            gaps = zip(sprites.FACTORS, one["gap"].gaps.tolist(), strict=True)
            numbers |= {"mig": one["gap"].value} | {f"gap_{name}": gap for name, gap in gaps}
        summary[method] = numbers | {"collapsed_dimensions": one["collapsed_dimensions"]}
    return {**summary, **critic, "notes": _notes(config, found, critic), "epochs": config.epochs}


def _notes(config: Any, found: Mapping[str, Any], critic: Mapping[str, float]) -> list[str]:
    """Sentences on dimensions that have collapsed, and on a critic that has won or sees nothing."""
    notes = [
        f"{method}: {one['collapsed_dimensions']} of {config.latent} dimensions have "
        "collapsed: KL below 0.1 nats"
        for method, one in found.items()
        if one["collapsed_dimensions"]
    ]
    if critic and (critic["critic_accuracy"] > 0.95 or critic["critic/loss"] < 0.1):
        notes.append(
            "factor_vae: the critic has won, its total correlation says nothing; raise "
            "gamma, or lower the critic's step size"
        )
    left = found["factor_vae"]["total_correlation_nats"].value if critic else 0.0
    if critic and critic["critic_accuracy"] < 0.55 and left > 0.5:
        notes.append(
            "factor_vae: the critic sees nothing: its accuracy is "
            f"{critic['critic_accuracy']:.2f}, the total correlation {left:.1f} nats; "
            "lower gamma, or raise the critic's step size"
        )
    return notes


def shown(config: Any, test: Batch) -> Any:
    """The stored test image whose code is traversed: the first, or a certain sprite.

    The sprite is an upright heart in the middle, whose rotation can be seen.
    """
    if config.dataset != "sprites":
        return test.x[0]
    wanted = [2, config.scales - 1, 0, config.positions // 2, config.positions // 2]
    return test.x[int(np.argmax((test.y == wanted).all(axis=1)))]


def information(config: Any, found: Mapping[str, Any]) -> Any:
    """I(factor; dimension) of every method, nats; dimensions by their KL, largest first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 0.5 * config.latent * len(found), 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    top = max(one["gap"].information.max() for one in found.values())
    for axis, (method, one) in zip(axes, found.items(), strict=True):
        shown = one["gap"].information[:, one["order"]]
        image = axis.imshow(shown, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        for (row, column), nats in np.ndenumerate(shown):
            axis.text(
                column,
                row,
                f"{nats:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if nats < 0.6 * top else "black",
            )
        axis.set(title=f"{method}, MIG {one['gap'].value:.2f}", xlabel="dimension, by its KL")
        axis.set_xticks(range(config.latent), [f"z{j + 1}" for j in one["order"]])
        axis.set_yticks(range(len(shown)), sprites.FACTORS)
    figure.colorbar(image, ax=list(axes), label="I(factor; dimension), nats")
    return figure


def traversals(model: Model, params: Params, x: Any, *, rates: Any, order: Any, **_: Any) -> Any:
    """One image's code, of which each dimension in turn is set to -2 to 2; the largest KL first.

    `rates`, `order`: of the dimensions, as `measured` gives them.
    """
    values = jnp.linspace(-2, 2, 9)
    decoded = _traversed(model, params, x, jnp.asarray(order), values)
    labels = [f"z{j + 1}, {rates[j]:.2f} nats" for j in order]
    return plot.traversals(decoded, values=values, labels=labels)


@partial(jax.jit, static_argnums=0)
def _traversed(model: Model, params: Params, x: Any, order: Array, values: Array) -> Array:
    """Decoded means `[dimensions, values, ...]`."""
    z = model.encode(params, x).mean

    def at(j: Array, value: Array) -> Array:
        return model.decode(params, z.at[j].set(value)).mean

    return jax.vmap(jax.vmap(at, (None, 0)), (0, None))(order, values)
