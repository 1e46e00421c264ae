"""Disentangled codes of sprites: VAE, beta-VAE, beta-TCVAE and FactorVAE side by side.

    python -m experiments.disentangle [preset] --methods vae beta_tcvae --seed S

Sprites are made on the device (vaejax.sprites): shape, scale, rotation, x and y are known. MIG is
how much more of a factor the best dimension says than the next (Chen et al., 2018,
arXiv:1802.04942; FactorVAE: Kim and Mnih, 2018, arXiv:1802.05983). Training draws sprites from a
grid of factors. Every image of the grid is then measured, so that q(z) and the total correlation
are exact. Other data sets (mnist, digits) have no factors: traversals and total correlation alone.
The gap varies as much between seeds as between methods: compare them over many, `--seeds 10`.
Numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common, vae
from experiments.common import Trained, Trial, factors, image_vae
from vaejax import data, disentangle, networks, objectives, plot
from vaejax.model import Model
from vaejax.types import Loss, Params

Method = Literal["vae", "beta_vae", "beta_tcvae", "factor_vae"]
METHODS: tuple[Method, ...] = ("vae", "beta_vae", "beta_tcvae", "factor_vae")


@dataclass(frozen=True)
class Config(common.SweepOptions):
    methods: tuple[Method, ...] = METHODS  # what is added to the negative ELBO, one model each
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


LARGER: dict[str, Any] = {"size": 32, "scales": 6, "rotations": 8, "positions": 16, "latent": 10}
WIDER: dict[str, Any] = {"hidden": (256, 256), "critic": (256, 256, 256)}
PRESETS = {
    "small": Config(),
    "sprites": Config(examples=24_576, epochs=60, **LARGER, **WIDER),
    "mnist": Config(dataset="mnist", hidden=(400,), latent=10, learning_rate=1e-3, epochs=20),
}


def losses_of(config: Config, model: Model, critic: nn.Module) -> dict[Method, Loss]:
    """The loss of every method."""
    return {
        "vae": objectives.elbo(model),
        "beta_vae": objectives.elbo(model, beta=config.beta),
        "beta_tcvae": disentangle.beta_tcvae(model, beta=config.tc_beta),
        "factor_vae": disentangle.factor_vae(model, critic, gamma=config.gamma),
    }


def build(config: Config, images: factors.Images) -> dict[str, Trial]:
    """One model by each method, from the same start, with the same images and noise."""
    *_, start_key, train_key, _ = common.keys(config, 5)
    base = replace(vae.MNIST, hidden=config.hidden, activation="relu", latent=config.latent)
    model = image_vae.build(base, images.seen.shape[1:], images.mean)
    critic = nn.Sequential([networks.MLP(config.critic, activation=nn.leaky_relu), nn.Dense(1)])
    critic_key, fit_key = jax.random.split(train_key)
    adam, rate = optax.adam(config.learning_rate), config.critic_learning_rate
    adams = {"model": adam, "critic": optax.adam(rate, b1=0.5, b2=0.9)}
    both = optax.partition(adams, {"model": "model", "critic": "critic"})

    def init() -> Params:
        return model.init(jax.random.clone(start_key), images.seen[0])

    def players() -> Params:
        zeros = jnp.zeros(config.latent)
        return {"model": init(), "critic": critic.init(jax.random.clone(critic_key), zeros)}

    return {
        method: Trial(
            model,
            players if method == "factor_vae" else init,
            losses_of(config, model, critic)[method],
            both if method == "factor_vae" else adam,
            images.train.x,
            jax.random.clone(fit_key),
            data.binarize,
            checkpoint_every=max(1, config.epochs // 4),
        )
        for method in config.methods
    }


def measure(config: Config, images: factors.Images, trained: dict[str, Trained]) -> tuple[Any, Any]:
    """MIG, the total correlation and the bound of every method, on all test images."""
    found, critic = {}, {}
    for method, one in trained.items():
        params, own = one.params.get("model", one.params), common.keys(config, 5)[4]
        found[method] = factors.measured(config, one.model, params, own, images.test)
        if method == "factor_vae":
            critic = {n: float(one.history[n][-1]) for n in ("critic_accuracy", "critic/loss")}
    return factors.summarised(config, found, critic), found


def draw(config: Config, images: Any, trained: dict[str, Trained], found: Any) -> dict[str, Any]:
    """Traversals of every method, what dimensions say of factors, and the bound in training."""
    x = data.binarize(common.keys(config, 5)[1], factors.shown(config, images.test))
    curves = {method: one.history["elbo"] for method, one in trained.items()}
    drawn = {"curves": plot.curves(curves, ylabel="ELBO, nats per training image")}
    for method, one in trained.items():
        params = one.params.get("model", one.params)  # without the critic's
        drawn[f"traversals_{method}"] = factors.traversals(one.model, params, x, **found[method])
    if config.dataset == "sprites":
        drawn["information"] = factors.information(config, found)
    return drawn


FEW = {"scales": 2, "rotations": 2, "positions": 3, "examples": 64}
SMALLEST = {"size": 8, "hidden": (16,), "critic": (16,)}
SMOKE: dict[str, Any] = {"epochs": 1, "batch_size": 16, "draws": 100, **FEW, **SMALLEST}
RECIPE = common.Recipe(
    *("disentangle", factors.load, build, measure, draw, "nats per image, gaps as shares", SMOKE),
    swept={"beta", "tc_beta", "gamma"},
    labels=common.LABELS | factors.LABELS,
    free={"epochs"},
)


def main(config: Config) -> dict[str, Any]:
    """Train each method, measure and draw; returns what summary.json holds."""
    return common.main(RECIPE, common.shrunk(config, methods=config.methods[-2:]))


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
