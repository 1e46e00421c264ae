"""Images of discrete pixels: how they are made, what simple models reach, and pictures."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.scipy.special import entr

from experiments.common.images import mean_of
from vaejax import causal, data, heads, plot
from vaejax.networks.autoregressive import Causal
from vaejax.types import Array, Key, Params

__all__ = [
    "course",
    "discretise",
    "entropy_of_binarisation",
    "independent",
    "network_for",
    "pictures",
    "seen",
]


# Published for dynamically binarised MNIST, nats per test image, in the curves for comparison.
PUBLISHED = {"made": 84.87, "pixelcnn": 81.5}


def network_for(config: Any, images: Any) -> Causal:
    """MADE or a gated PixelCNN for such images.

    Args:
      config: of experiments.autoregressive: `network`, its sizes, `levels`, and the `order` of the
        pixels.
      images: stored grey images `[n, height, width, 1]`.
    """
    shape = images.shape[1:]
    places = np.arange(math.prod(shape))
    order = {
        "raster": places,
        "columns": places.reshape(shape[:2]).T.ravel(),
        "random": np.random.default_rng(config.seed).permutation(places),
    }[config.order]
    classes = None if config.levels == 2 else config.levels
    mean = mean_of(images).ravel()[order]
    start = heads.logit_of(mean) if classes is None else nn.initializers.zeros
    net: Any = causal.MADE(shape, config.hidden, classes=classes, bias_init=start)
    if config.network == "pixelcnn":
        sizes = config.features, config.layers, config.kernel_size, config.first_kernel
        net = causal.GatedPixelCNN(shape, *sizes, classes=classes)
    dtype = jnp.float32 if classes is None else jnp.int32
    return Causal(net, shape, dtype, () if config.order == "raster" else tuple(order.tolist()))


def discretise(levels: int, key: Key, x: Any) -> Array:
    """Stored pixels to one of `levels` levels: whole numbers from 0, rounded down.

    With two levels a pixel is binarised at random, to 0. or 1.
    """
    if levels == 2:
        return data.binarize(key, x)
    return jnp.minimum(data.scale(key, x) * levels, levels - 1).astype(jnp.int32)


def seen(levels: int, key: Key, x: Any) -> np.ndarray:
    """Stored images `[n, ...]` as the model sees them; each is made discrete with its own key."""
    return np.asarray(jax.vmap(partial(discretise, levels))(jax.random.split(key, len(x)), x))


def independent(levels: int, images: Any, test: Any) -> float:
    """-log p(x) of test images if all pixels were independent, nats per image.

    Each pixel has the frequencies that it has in `images`, with one of each level added.
    """
    count, found = (np.stack([(x == k).sum(axis=0) for k in range(levels)]) for x in (images, test))
    p = (count + 1) / (len(images) + levels)
    return float(-(found / len(test) * np.log(p)).sum())


def entropy_of_binarisation(images: Any) -> float:
    """The entropy of randomly binarised images, nats per image. No -log p(x) can be lower.

    `images`: stored images, whose grey levels are the probabilities of white.
    """
    level = np.asarray(data.scale(jax.random.key(0), images), float).reshape(len(images), -1)
    return float((entr(level) + entr(1 - level)).sum(axis=1).mean())


def pictures(network: Causal, params: Params, key: Key, x: Any, levels: int) -> dict[str, Any]:
    """Figures of samples, of expected pixels, and of completed images.

    Args:
      network, params: a trained network.
      key: of the samples and completions.
      x: images of discrete pixels, `[n, height, width, 1]`.
      levels: how many grey levels a pixel can have.
    Returns:
      "samples"; "expected", the mean of each pixel given those before it; "completions", where the
      first half of the order is given.
    """
    size, draws = math.prod(network.shape), 24
    order = np.asarray(network.order or range(size))
    px = network.apply(params)
    sample_key, complete_key = jax.random.split(key)

    @jax.jit
    def expected(x: Any) -> Any:
        mean = px.conditionals(x.ravel()[order].reshape(x.shape)).mean
        mean = mean if levels == 2 else mean @ jnp.arange(1.0 * levels)
        return jnp.zeros(size).at[order].set(mean.ravel()).reshape(x.shape)

    def complete(x: Any, keys: Any) -> Any:
        return jax.vmap(lambda key: px.complete(key, x, known=size // 2))(keys)

    def grey(x: Any) -> Any:
        return np.asarray(x, np.float32) / (levels - 1)

    samples = grey(jax.jit(jax.vmap(px.sample))(jax.random.split(sample_key, 64)))
    keys = jax.random.split(complete_key, (len(x), draws))
    drawn = grey(jax.jit(jax.vmap(complete))(x, keys))
    hidden = np.isin(np.arange(size), order[size // 2 :]).reshape(network.shape)
    columns = [np.where(hidden, 0.5, grey(x)), *drawn.transpose(1, 0, 2, 3, 4)[:6]]
    shown = np.stack([*columns, drawn.mean(axis=1), grey(x)], axis=1)
    return {
        "samples": plot.images(samples, title="ancestral samples"),
        "expected": plot.images(
            np.concatenate([grey(x), grey(jax.vmap(expected)(x))]),
            columns=len(x),
            labels=["image", "expected"],
            title="pixels, and what was expected from those before",
        ),
        "completions": plot.images(
            shown.reshape(-1, *network.shape),
            columns=shown.shape[1],
            title=f"given half | six of {draws} answers | their average | image",
        ),
    }


def course(config: Any, history: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """-log p(x) over the epochs, beside the entropy and what was published, where there are such.

    Args:
      config: of experiments.autoregressive.
      history: of the training.
      numbers: with "floor_nats" for binarised images.
    """
    curves = {"train": -history["log_px"], "test, first 1000": history["eval/loss"]}
    lines = {}
    if config.levels == 2:
        lines["entropy of the binarisation"] = numbers["floor_nats"]
        if config.dataset == "mnist":
            lines[f"{config.network}, published"] = PUBLISHED[config.network]
    curves |= {f"{name}, {at:.2f}": np.full(len(curves["train"]), at) for name, at in lines.items()}
    title = f"-log p(x), exact ({config.network}, {config.order})"
    return plot.curves(curves, ylabel="nats per image", title=title)
