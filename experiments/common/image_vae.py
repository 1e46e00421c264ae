"""The VAE of images that several recipes train: its options, its networks, what it sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import figures, measures
from experiments.common.images import (
    both_splits,
    check_unit_interval,
    drawable,
    levels_of,
    warn_of_colours,
)
from experiments.common.recipe import Trained
from vaejax import data, evaluate, heads, networks, objectives, plot
from vaejax.distributions import Normal
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder, terms
from vaejax.types import Batch, Key, Loss, Transform

__all__ = [
    "LABELS",
    "XAVIER",
    "Images",
    "Network",
    "build",
    "check_images",
    "check_weighing",
    "counted",
    "in_bits",
    "load",
    "measured",
    "note",
    "pictures",
    "seen_as",
    "seen_by",
    "standard_normal",
    "then",
    "transform_for",
    "weighed",
]

XAVIER = nn.initializers.xavier_uniform()


@dataclass(frozen=True)
class Network:
    """The networks and distributions of a VAE of images."""

    network: Literal["mlp", "conv"] = "mlp"  # dense layers; or convolutions, for images of any size
    hidden: tuple[int, ...] = (300,)  # units (mlp) or channels (conv) of the encoder's layers
    activation: Literal["relu", "tanh"] = "relu"  # nonlinearity of the hidden layers
    latent: int = 10  # latent dimensions
    # p(x|z): bernoulli binarises anew at each step, the normals see dequantised pixels in [0, 1]
    likelihood: Literal[
        "bernoulli", "fixed_normal", "shared_normal", "normal", "discretized_logistic"
    ] = "fixed_normal"
    scale: float = 0.2  # standard deviation of fixed_normal, floor of that of normal (white = 1)
    levels: int | None = None  # of discretized_logistic, 2 to 256; by default as the images have
    posterior: Literal["diagonal", "full_covariance"] = "diagonal"  # covariance of q(z|x)


class Images(NamedTuple):
    """Images as they are stored, and as a model sees them.

    Args:
      train, test: Batches of stored images.
      transform: stored images to what the likelihood sees.
      first: one image as the model sees it, from which its parameters get their shapes.
      mean: the mean image as the model sees it, where the decoder's biases start.
      levels: of a discretized_logistic; None for any other likelihood.
    """

    train: Batch
    test: Batch
    transform: Transform
    first: Any
    mean: np.ndarray
    levels: int | None = None


def load(config: Any, recipe: str, key: Key, network: Any = None) -> Images:
    """Both splits that `config` names, checked, as a VAE of images sees them.

    Args:
      config: with the options that `both_splits` reads.
      recipe: its name, for error messages.
      key: of the first images as the model sees them.
      network: the options of the networks; by default the config's own.
    Raises:
      ValueError: for images that would train on nonsense.
    """
    return seen_as(network or config, *both_splits(config, recipe), key)


def seen_as(network: Any, images: Batch, test: Batch, key: Key) -> Images:
    """Images of both splits, checked, as such a network sees them; `key`: of the first ones."""
    check_images(network, images.x)
    levels = None
    if network.likelihood == "discretized_logistic":
        levels = network.levels or counted(images.x, test.x)
        network = replace(network, levels=levels)
    transform = transform_for(network, images.x)
    seen = seen_by(transform, key, images.x)
    return Images(images, test, transform, seen[0], np.asarray(seen.mean(axis=0)), levels)


def counted(*images: Any) -> int:
    """The levels of these images; ValueError where they have none."""
    levels = levels_of(*images)
    if levels is None:
        fix = "add --likelihood fixed_normal, or --levels 256 to round them"
        expected = "images of up to 256 even levels"
        got = "floats of no such levels"
        raise wrong("vae: --likelihood discretized_logistic", got, expected, fix)
    return levels


def seen_by(transform: Transform, key: Key, images: Any) -> Any:
    """The first images as the model sees them, from which it starts."""
    return _seen(transform, key, images[:2000])


@partial(jax.jit, static_argnums=0)
def _seen(transform: Transform, key: Key, x: Any) -> Any:
    return jax.vmap(transform)(jax.random.split(key, len(x)), x)


def build(config: Any, shape: tuple[int, ...], mean: Any) -> Model:
    """The model for data of `shape`; `mean`, in [0, 1], is where the decoder's biases start."""
    activation: Any = getattr(nn, config.activation)
    encoder: nn.Module
    decoder: nn.Module
    if config.network == "mlp":
        layers = partial(networks.MLP, activation=activation, kernel_init=XAVIER)
        encoder, decoder, start = layers(config.hidden), layers(config.hidden[::-1]), mean
    else:
        encoder = networks.ConvEncoder(config.hidden, activation)
        decoder = networks.ConvDecoder(shape, (*config.hidden[::-1], 16), activation)
        start = mean.mean(axis=(0, 1))  # one bias per channel, shared by all pixels
    posterior = {"diagonal": heads.Normal, "full_covariance": heads.FullNormal}[config.posterior]
    likelihood = {
        "bernoulli": lambda: heads.Bernoulli(shape, bias_init=heads.logit_of(start)),
        "fixed_normal": lambda: heads.FixedNormal(shape, config.scale),
        "shared_normal": lambda: heads.SharedNormal(shape),
        "normal": lambda: heads.Normal(shape, floor=config.scale),
        "discretized_logistic": lambda: heads.DiscretizedLogistic(shape, config.levels or 256),
    }[config.likelihood]()
    return autoencoder(
        nn.Sequential([encoder, posterior(config.latent)]),
        nn.Sequential([decoder, likelihood]),
        standard_normal(config.latent),
    )


def check_weighing(config: Any) -> None:
    """Raise ValueError for options of the rate that would do nothing."""
    if config.cycles > 1 and not config.warmup_epochs:
        fix = "add --warmup-epochs 10"
        raise wrong("--cycles", config.cycles, "--warmup-epochs beside it", fix)
    if config.free_nats and config.posterior != "diagonal":
        fix = "leave --free-nats out"
        raise wrong("--free-nats", config.free_nats, "--posterior diagonal beside it", fix)


def weighed(config: Any, model: Model, steps: int) -> Loss:
    """The negative ELBO, its rate weighed as the options say; `steps`: of an epoch."""
    beta, rising = config.beta, config.warmup_epochs * steps
    if config.cycles > 1:
        length = 2 * rising * config.cycles
        beta = objectives.cyclical(beta, steps=length, cycles=config.cycles)
    elif rising:
        beta = optax.linear_schedule(0.0, beta, rising)
    if not config.free_nats:
        return objectives.elbo(model, beta=beta)
    rate, free = terms.rate_per_dimension, config.free_nats
    return objectives.elbo(model, beta=beta, rate=rate, free_nats=free)


def standard_normal(latent: int) -> Normal:
    """The prior N(0, I) of so many latent dimensions."""
    return Normal(jnp.zeros(latent), jnp.ones(latent))


def transform_for(config: Any, x: Any) -> Transform:
    """Stored pixels to what the likelihood sees: binarised, on the grid, or dequantised."""
    if config.likelihood == "bernoulli":
        return data.binarize
    if config.likelihood == "discretized_logistic":
        levels = config.levels or 256
        return data.scale if levels == 256 and x.dtype == np.uint8 else _quantized(levels)
    return data.dequantize if x.dtype == np.uint8 else data.scale


@cache
def _quantized(levels: int) -> Transform:
    """The same object for the same levels: what is compiled for it serves again."""
    return partial(data.quantize, levels=levels)


def check_images(config: Any, x: Any) -> None:
    """Refuse, before any work, what would train on nonsense."""
    if config.network == "conv" and x.ndim != 4:
        fix = "leave --network at mlp"
        raise wrong("vae: --network conv", f"vectors {x.shape}", "images", fix)
    if config.levels is not None and not 2 <= config.levels <= 256:
        raise wrong("--levels", config.levels, "2 to 256", "leave it out to count them")
    binary = config.likelihood == "bernoulli"
    if x.ndim == 4 or binary:
        check_unit_interval("vae", x)
    if binary:
        warn_of_colours("vae", x, "add --likelihood discretized_logistic, or fixed_normal")


LABELS = {
    "beta": "beta, weight of the KL",
    "learning_rate": "step size of Adam",
    "adam_epsilon": "epsilon of Adam",
    "scale": "scale of p(x|z) (white = 1)",
    "elbo": "ELBO, nats per image",
    "test_elbo_nats": "ELBO, nats per test image",
    "test_nll_nats": "-log p(x), nats per test image",
    "bound": "bound with K draws, nats per image",
    "test_bound_nats": "bound with K draws, nats per test image",
    "test_distortion_nats": "distortion, nats per test image",
    "test_rate_nats": "rate, nats per test image",
}
"""What axes say of a VAE's options, of the ELBO in training, and of the numbers of `measured`."""


def measured(
    vae: Trained, keys: Key, x: Any, particles: int, transform: Transform | None = None
) -> dict[str, Any]:
    """The ELBO and its parts, -log p(x) by so many importance samples, their effective number.

    Args:
      vae: a trained Model.
      keys: two, `[2]`.
      x: test examples, or a Batch of them.
      particles: importance samples per example.
      transform: stored examples to what the model sees.
    Returns:
      Means over the examples, nats; the median of the effective sample size; what was measured on.
    """
    parts = evaluate.elbo_terms(vae.model, vae.params, keys[0], x, transform=transform)
    likelihood = evaluate.log_likelihood(
        vae.model, vae.params, keys[1], x, particles=particles, transform=transform
    )
    return {
        "test_elbo_nats": float(parts["elbo"].mean()),
        "test_nll_nats": float(-likelihood.log_px.mean()),
        "test_nll_particles": particles,
        "test_ess_median": float(np.median(likelihood.ess)),
        "test_distortion_nats": float(parts["distortion"].mean()),
        "test_rate_nats": float(parts["rate"].mean()),
        "test_images": len(likelihood.log_px),
    }


def pictures(vae: Trained, keys: Key, images: Images) -> dict[str, Any]:
    """The usual figures, and the ELBO in training; none of images that cannot be drawn.

    Args:
      vae: a trained Model whose history has the ELBO of both splits.
      keys: two, `[2]`: of the test images as the model sees them, and of the samples.
      images: of the recipe.
    """
    x = images.test.x
    if not drawable(x):
        return {}
    seen = _seen(images.transform, keys[0], x)
    of = {"ELBO": "elbo", "distortion D": "distortion", "rate R": "rate"}
    curves = {
        title: {"train": vae.history[name], "test": vae.history[f"eval/{name}"]}
        for title, name in of.items()
    }
    return {
        **figures.vae(vae.model, vae.params, keys[1], seen, images.test.y),
        "curves": plot.curves(curves, ylabel="nats per image"),
    }


def in_bits(config: Any, images: Images, nats: float) -> dict[str, float]:
    """-log p(x) in bits per dimension, where p is a probability, and the levels it counts."""
    if "normal" in config.likelihood:
        return {}
    return {**measures.bits(nats, images.test.x), "levels": images.levels or 2}


def note(config: Any, numbers: Mapping[str, Any]) -> str:
    """What the numbers of `measured` are."""
    if "normal" in config.likelihood:
        kind = "a density of pixels in [0, 1], whose nats may have either sign"
        return f"nats per test image; p(x|z) is {kind}"
    kind = f"a probability of pixels of {numbers['levels']} levels, so ELBO <= log p(x) <= 0"
    return f"nats per test image; p(x|z) is {kind}"


def then(config: Any, folder: Path) -> str:
    """What to do after a run of `experiments.vae`."""
    look = f"look at {folder / 'figures' / 'samples.png'}, then try"
    if find_spec("experiments.explorer"):
        return f"{look} python -m experiments.explorer {folder}"
    more = "--latent 2" if config.latent != 2 else "--latent 10"
    return f"{look} python -m experiments.vae {more}; --help lists what can be changed"
