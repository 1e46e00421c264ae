"""A codebook of images: the networks of experiments.vq, and pictures of its use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax import causal, data, heads, networks, plot, quantized
from vaejax.model import Model, autoencoder, generate, reconstruct
from vaejax.networks.autoregressive import Causal
from vaejax.train import TrainState
from vaejax.types import Array, Key, Params

__all__ = ["Decoder", "Encoder", "networks_of", "pictures", "reviving"]


class Encoder(nn.Module):
    """Strided convolutions: an image to a map of features, halved by each layer, rounding up."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.features:
            x = nn.relu(networks.Conv(width, stride=2)(x))
        return x


class Decoder(nn.Module):
    """The way back, from a map of codes to one of the image's height and width, by sub-pixels."""

    shape: tuple[int, ...]
    features: Sequence[int]

    @nn.compact
    def __call__(self, z: Array) -> Array:
        sizes = [self.shape[:2]]
        for _ in self.features[1:]:
            sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
        h = nn.relu(networks.Conv(self.features[-1])(z))
        for (height, width), channels in zip(sizes[::-1], (*self.features[-2::-1], 8), strict=True):
            h = networks.depth_to_space(networks.Conv(4 * channels)(h))
            h = nn.relu(h[:height, :width])
        return h


def networks_of(config: Any, shape: tuple[int, ...], mean: Any) -> tuple[Model, Causal]:
    """The autoencoder for images, and the network of the prior over its codes.

    Args:
      config: of experiments.vq.
      shape: of an image.
      mean: the mean image in [0, 1], where the decoder's biases start.
    """
    places = tuple(-(-n // 2 ** len(config.features)) for n in shape[:2])
    pixels = heads.Bernoulli(shape, bias_init=heads.logit_of(mean.mean(axis=(0, 1))))
    plain = autoencoder(
        nn.Sequential([Encoder(config.features), heads.Code((*places, config.size))]),
        nn.Sequential([Decoder(shape, config.features), pixels]),
    )
    net = causal.GatedPixelCNN(
        places, config.prior_features, config.prior_layers, first_kernel=5, classes=config.entries
    )
    prior = Causal(net, places, jnp.int32)
    return quantized.quantize(plain, entries=config.entries), prior


def reviving(config: Any, model: Model, x: Any) -> Callable[[TrainState], TrainState] | None:
    """A hook that revives dead entries in the first two thirds of the epochs, or None."""
    if not config.revive:
        return None
    hook = quantized.revive(model, x, transform=data.binarize)
    last = 2 * config.epochs * (len(x) // config.batch_size) // 3
    return lambda state: hook(state) if int(state.step) <= last else state


def pictures(
    model: Model, params: Params, key: Key, test: Any, used: np.ndarray, history: Any
) -> dict[str, Any]:
    """Reconstructions, samples through the prior, how often each entry is used, perplexity.

    Args:
      model, params: the trained autoencoder with its prior.
      key: of the samples, and of the images as the model sees them.
      test: stored test images; no pictures are made of those that are neither grey nor coloured.
      used: share of the codes that each entry has, `[entries]`.
      history: of the first stage.
    """
    from matplotlib.figure import Figure

    sample_key, seen_key = jax.random.split(key)
    seen = jax.vmap(data.binarize)(jax.random.split(seen_key, 10), test[:10])
    rebuilt = jax.jit(jax.vmap(partial(reconstruct, model, params)))(seen)
    many = jax.jit(jax.vmap(partial(generate, model, params)))
    samples = many(jax.random.split(sample_key, 64)).mean
    usage = Figure(figsize=(6.0, 3.4), layout="constrained")
    labels = {"xlabel": "entry, by its use", "ylabel": "share of the codes"}
    axis = usage.add_subplot(title="use of the codebook on test images", **labels)
    axis.bar(np.arange(1, len(used) + 1), np.sort(used)[::-1], label="entries")
    axis.axhline(1 / len(used), color="grey", linestyle="--", label="all alike")
    axis.legend(frameon=False)
    curve = {"of a batch": history["perplexity"]}
    drawn = {
        "usage": usage,
        "perplexity": plot.curves(
            curve, ylabel="entries", title="perplexity of the codebook's use"
        ),
    }
    if test.shape[-1] in (1, 3):
        title = "codes drawn from the prior, mean of p(x|z)"
        drawn["reconstructions"] = plot.reconstructions(seen, rebuilt)
        drawn["samples"] = plot.images(samples, title=title)
    return drawn
