"""Variational autoencoder (Kingma and Welling, 2014, arXiv:1312.6114) on images of any size.

    python -m experiments.vae [preset] --dataset NAME|tfds:NAME|FILE.npz --epochs N --seed S
    python -m experiments.vae [preset] --seeds 8 --sweep beta=1,2,4,8

The second trains all 32 in one program, each as a run of its own would. `--sweep` takes beta,
learning_rate, adam_epsilon, and, for fixed_normal, scale.
Expected numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import optax

from experiments import common
from experiments.common import Trained, Trial, image_vae
from experiments.common.image_vae import Images
from vaejax import objectives
from vaejax.model import Model
from vaejax.train.precision import mixed_precision
from vaejax.types import Key, Loss


@dataclass(frozen=True)
class Config(image_vae.Network, common.SweepOptions):
    # digits, mnist, fashion_mnist, binarized_mnist, tfds:NAME, or a .npz or .npy FILE of images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on
    beta: float = 1.0  # weight of the KL; 1 is the bound
    warmup_epochs: int = 0  # epochs over which that weight rises from 0
    cycles: int = 1  # how often it rises so, staying up for as many epochs each time
    free_nats: float = 0.0  # nats that each latent dimension may cost for nothing (free bits)
    epochs: int = 500  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size
    adam_epsilon: float = 1e-8  # Adam's epsilon
    decay_epochs: int = 500  # epochs over which the step size falls to 0 along a cosine; 0: never
    particles: int = 200  # importance samples per image for -log p(x)
    evaluate_every: int = 10  # epochs between evaluations on the test split
    checkpoint_every: int = 50  # epochs between checkpoints
    # of the networks in training: bfloat16 pays on GPUs and TPUs alone; what is reported is float32
    precision: Literal["float32", "bfloat16"] = "float32"


DENSITY = Config()
# The scans count 0 to 16: a probability of their 17 levels.
DIGITS = Config(likelihood="discretized_logistic", hidden=(100,), epochs=300, decay_epochs=300)
MNIST = Config(
    dataset="mnist",
    likelihood="bernoulli",
    hidden=(400,),
    latent=20,
    batch_size=128,
    epochs=20,
    learning_rate=1e-3,
    decay_epochs=0,
    evaluate_every=1,
    checkpoint_every=1,
)
BURDA = replace(MNIST, hidden=(200, 200), activation="tanh", latent=50, batch_size=20, epochs=80)
PRESETS = {
    "digits": DIGITS,
    "digits_density": DENSITY,
    "mnist": MNIST,
    "burda": replace(BURDA, decay_epochs=80, adam_epsilon=1e-4, evaluate_every=5),
    "manifold": replace(MNIST, hidden=(500, 500), latent=2, epochs=50, decay_epochs=50),
    "conv": replace(MNIST, network="conv", hidden=(32, 64), latent=32, particles=20),
    "gaussian": replace(MNIST, likelihood="normal", scale=0.1),
    "full_covariance": replace(MNIST, posterior="full_covariance"),
}


def keys_of(config: Config) -> Key:
    """Keys of the first images, the start, the training, two numbers, and the figures (two)."""
    return jax.random.split(jax.random.key(config.seed), 7)


def load(config: Config) -> Images:
    """The images, checked."""
    image_vae.check_weighing(config)
    return image_vae.load(config, "vae", keys_of(config)[0])


def objective(config: Config, model: Model, steps: int) -> tuple[Loss, Any]:
    """Loss and optimizer; `steps`: of an epoch. Numbers may be arrays that JAX traces."""
    if config.precision == "bfloat16":
        model = mixed_precision(model)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.decay_epochs * steps or 1)
    adam = optax.adam(
        rate if config.decay_epochs else config.learning_rate, eps=config.adam_epsilon
    )
    return image_vae.weighed(config, model, steps), adam


def trial(config: Config, images: Images) -> Trial:
    """The VAE, ready to be trained."""
    x, keys = images.train.x, keys_of(config)
    model = image_vae.build(replace(config, levels=images.levels), x.shape[1:], images.mean)
    start = partial(model.init, keys[1], images.first)
    loss, adam = objective(config, model, len(x) // config.batch_size)
    # What is compared on the test images is the bound, whatever weight the KL has in training.
    bound = objectives.elbo(model)
    how = {"transform": images.transform, "test": images.test.x, "yardstick": bound}
    return Trial(model, start, loss, adam, x, keys[2], **how)


def measure(config: Config, images: Images, vae: Trained) -> tuple[dict[str, Any], None]:
    """The bound, its parts and -log p(x) of the test images."""
    keys, x = keys_of(config)[3:5], images.test.x
    numbers = image_vae.measured(vae, keys, x, config.particles, images.transform)
    return numbers | image_vae.in_bits(config, images, numbers["test_nll_nats"]), None


def draw(config: Config, images: Images, vae: Trained, _: None) -> dict[str, Any]:
    """What the VAE makes of images, and the bound in training."""
    return image_vae.pictures(vae, keys_of(config)[5:], images)


def swept(config: Config) -> list[str]:
    """What `--sweep` takes."""
    names = ["beta", "learning_rate", "adam_epsilon"]
    return [*names, "scale"] if config.likelihood == "fixed_normal" else names


RECIPE = common.Recipe(
    "vae",
    load,
    trial,
    measure,
    draw,
    image_vae.note,
    smoke={"epochs": 2, "batch_size": 16, "particles": 4, **common.FEW_IMAGES},
    free={"epochs"},
    swept=swept,
    remade={"scale"},
    curve="elbo",
    labels=image_vae.LABELS,
    then=image_vae.then,
)

main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
