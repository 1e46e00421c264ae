"""Disentangled codes of sprites: VAE, beta-VAE, beta-TCVAE and FactorVAE side by side.

    python -m experiments.disentangle [preset] --methods vae beta_tcvae --seed S

Sprites are made on the device (vaejax.sprites): shape, scale, rotation, x and y are known, and MIG
is how much more of a factor the best dimension says than the next (Chen et al., 2018,
arXiv:1802.04942; FactorVAE: Kim and Mnih, 2018, arXiv:1802.05983). Training draws sprites from a
grid of factors; every image of the grid is then measured, so that q(z) and the total correlation
are exact. Expected: MIG of beta-TCVAE and FactorVAE above VAE's. Other data sets (mnist, digits)
have no factors: traversals and total correlation alone. Numbers and wall times:
experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common, vae
from experiments.common import image_vae
from vaejax import (
    data,
    diagnostics,
    disentangle,
    disentanglement,
    networks,
    objectives,
    plot,
    sprites,
    train,
)
from vaejax.errors import at_least_one
from vaejax.model import Model
from vaejax.types import Batch, Key, Params


@dataclass(frozen=True)
class Config(common.Options):
    # what is added to the negative ELBO, one model each
    methods: tuple[Literal["vae", "beta_vae", "beta_tcvae", "factor_vae"], ...] = (
        "vae",
        "beta_vae",
        "beta_tcvae",
        "factor_vae",
    )
    dataset: str = "sprites"  # sprites; or mnist, digits, a FILE: images without known factors
    examples: int = 4096  # sprites to train on, drawn from the grid
    size: int = 16  # pixels along a side of a sprite
    scales: int = 3  # values of the factor
    rotations: int = 4  # values of the factor
    positions: int = 8  # values of x, and of y
    turn: float = 2 * np.pi  # radians that the rotations cover; pi / 2: no two images are the same
    hidden: tuple[int, ...] = (128, 128)  # units of the encoder's layers
    latent: int = 8  # latent dimensions
    beta: float = 4.0  # weight of beta_vae's rate
    tc_beta: float = 6.0  # weight of beta_tcvae's total correlation
    gamma: float = 30.0  # weight of factor_vae's total correlation
    critic: tuple[int, ...] = (128, 128, 128)  # units of its critic's layers
    critic_learning_rate: float = 3e-3  # Adam's step size for it
    epochs: int = 200  # passes over the training images
    batch_size: int = 128  # images per step
    learning_rate: float = 2e-3  # Adam's step size
    draws: int = 1000  # codes that the total correlation is measured with


PRESETS = {
    "small": Config(),
    "sprites": Config(
        examples=24_576,
        size=32,
        scales=6,
        rotations=8,
        positions=16,
        hidden=(256, 256),
        latent=10,
        critic=(256, 256, 256),
        epochs=60,
    ),
    "mnist": Config(dataset="mnist", hidden=(400,), latent=10, learning_rate=1e-3, epochs=20),
}


def images_of(config: Config, key: Key) -> tuple[Batch, Batch]:
    """Images to train on, and those to measure: uint8, y the factors `[n, 5]` of sprites."""
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


def trained(
    config: Config, method: str, model: Model, start: Params, key: Key, x: Any, folder: Path
) -> tuple[Params, dict[str, Any]]:
    """Parameters of the model by one method, and the history of its training."""
    critic = nn.Sequential([networks.MLP(config.critic, activation=nn.leaky_relu), nn.Dense(1)])
    start_key, train_key = jax.random.split(key)
    loss = {
        "vae": lambda: objectives.elbo(model),
        "beta_vae": lambda: objectives.elbo(model, beta=config.beta),
        "beta_tcvae": lambda: disentangle.beta_tcvae(model, beta=config.tc_beta),
        "factor_vae": lambda: disentangle.factor_vae(model, critic, gamma=config.gamma),
    }[method]()
    adam = optax.adam(config.learning_rate)
    if method == "factor_vae":
        start = {"model": start, "critic": critic.init(start_key, jnp.zeros(config.latent))}
        names = {"model": "model", "critic": "critic"}
        of_critic = optax.adam(config.critic_learning_rate, b1=0.5, b2=0.9)
        adam = optax.partition({"model": adam, "critic": of_critic}, names)
    fitted = common.fit(
        config,
        folder / method,
        loss,
        adam,
        start,
        x,
        key=train_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        checkpoint_every=max(1, config.epochs // 4),
    )
    params = fitted.params["model"] if method == "factor_vae" else fitted.params
    return params, fitted.history


def measured(config: Config, model: Model, params: Params, key: Key, test: Batch) -> dict[str, Any]:
    """Numbers of one trained model on all test images; `order`: its dimensions, by their KL."""
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


def summarised(config: Config, found: dict[str, Any], critic: dict[str, float]) -> dict[str, Any]:
    """What summary.json holds: lists in the order of the methods."""
    every, numbers = list(found.values()), ("elbo_nats", "distortion_nats", "rate_nats")
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
    summary: dict[str, Any] = {"methods": list(found)}
    if "gap" in every[0]:
        summary["mig"] = [one["gap"].value for one in every]
        gaps = np.stack([one["gap"].gaps for one in every]).T
        summary |= {
            f"gap_{name}": row.tolist() for name, row in zip(sprites.FACTORS, gaps, strict=True)
        }
    summary |= {name: [one[name] for one in every] for name in numbers}
    correlations = [one["total_correlation_nats"] for one in every]
    summary["total_correlation_nats"] = [one.value for one in correlations]
    summary["total_correlation_error"] = [one.error for one in correlations]
    summary["collapsed_dimensions"] = [one["collapsed_dimensions"] for one in every]
    return {**summary, **critic, "notes": notes, "epochs": config.epochs}


def drawn_information(config: Config, found: dict[str, Any]) -> Any:
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


def drawn_traversals(
    model: Model, params: Params, x: Any, *, rates: Any, order: Any, **_: Any
) -> Any:
    """One image's code, each dimension in turn set to -2 to 2; the largest KL first."""
    values = jnp.linspace(-2, 2, 9)
    decoded = traversed(model, params, x, jnp.asarray(order), values)
    labels = [f"z{j + 1}, {rates[j]:.2f} nats" for j in order]
    return plot.traversals(decoded, values=values, labels=labels)


@partial(jax.jit, static_argnums=0)
def traversed(model: Model, params: Params, x: Any, order: Any, values: Any) -> Any:
    """Decoded means `[dimensions, values, ...]`."""
    z = model.encode(params, x).mean

    def at(j: Any, value: Any) -> Any:
        return model.decode(params, z.at[j].set(value)).mean

    return jax.vmap(jax.vmap(at, (None, 0)), (0, None))(order, values)


def main(config: Config) -> dict[str, Any]:
    """Train each method, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            methods=config.methods[-2:],
            epochs=1,
            batch_size=16,
            size=8,
            examples=64,
            scales=2,
            rotations=2,
            positions=3,
            hidden=(16,),
            critic=(16,),
            draws=100,
        )
    at_least_one("disentangle", methods=len(config.methods), epochs=config.epochs)
    data_key, seen_key, start_key, train_key, test_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    images, test = images_of(config, data_key)
    train.shuffled(len(images.x), config.batch_size)  # refuses a batch larger than the data
    few = images.x[:2000]
    seen = jax.vmap(data.binarize)(jax.random.split(seen_key, len(few)), few)
    base = replace(vae.MNIST, hidden=config.hidden, activation="relu", latent=config.latent)
    model = image_vae.build(base, seen.shape[1:], np.asarray(seen.mean(axis=0)))
    start = model.init(start_key, seen[0])
    folder = common.open_folder(
        config, name=f"disentangle-{Path(config.dataset).stem}", free={"epochs"}
    )

    found: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    critic: dict[str, float] = {}
    shown = 0
    if config.dataset == "sprites":  # an upright heart in the middle: its rotation can be seen
        wanted = [2, config.scales - 1, 0, config.positions // 2, config.positions // 2]
        shown = int(np.argmax((test.y == wanted).all(axis=1)))
    for method in config.methods:
        # The same start, images and noise for every method: they differ by the loss alone.
        keys = jax.random.clone(train_key), jax.random.clone(test_key)
        params, history = trained(config, method, model, start, keys[0], images.x, folder)
        one = found[method] = measured(config, model, params, keys[1], test)
        curves[method] = history["elbo"]
        if method == "factor_vae":
            names = ("critic_accuracy", "critic/loss")
            critic = {name: float(history[name][-1]) for name in names}
        x = data.binarize(jax.random.clone(seen_key), test.x[shown])
        drawn[f"traversals_{method}"] = drawn_traversals(model, params, x, **one)
    summary = summarised(config, found, critic)
    common.write_json(folder / "summary.json", summary)
    if config.dataset == "sprites":
        drawn["information"] = drawn_information(config, found)
    drawn["curves"] = plot.curves(curves, ylabel="ELBO, nats per training image")
    common.save_figures(folder, drawn)
    common.report(folder, summary, "nats per image, gaps as shares; in the order of the methods")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
