"""Autoregressive models of images: MADE (Germain et al., 2015, arXiv:1502.03509) and the gated
PixelCNN (van den Oord et al., 2016, arXiv:1606.05328).

    python -m experiments.autoregressive [preset] --dataset NAME|FILE.npz --order columns --seed S

Discretise the pixels, factorise by the chain rule, sample ancestrally, complete what is given.
Expected numbers and wall times: experiments/README.md. All figures in nats per image, and exact.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.scipy.special import entr

from experiments import common
from vaejax import causal, data, evaluate, heads, objectives, plot, train
from vaejax.errors import at_least_one, wrong
from vaejax.networks.autoregressive import Causal


@dataclass(frozen=True)
class Config(common.Options):
    dataset: str = "digits"  # digits, mnist, ..., tfds:NAME, or a .npz or .npy FILE of grey images
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    levels: int = 2  # grey levels: 2 binarises anew at each step, more are rounded down to
    network: Literal["made", "pixelcnn"] = "made"  # dense layers; or convolutions
    order: Literal["raster", "columns", "random"] = "raster"  # of the pixels in the chain rule
    hidden: tuple[int, ...] = (300,)  # made: units of the hidden layers
    features: int = 16  # pixelcnn: channels
    layers: int = 4  # pixelcnn: gated layers
    kernel_size: int = 3  # pixelcnn: of every layer but the first
    first_kernel: int = 5  # pixelcnn: of the first
    epochs: int = 100  # passes over the training images
    batch_size: int = 50  # images per step
    learning_rate: float = 3e-3  # Adam's largest step size, which falls to 0 along a cosine
    evaluate_every: int = 5  # epochs between evaluations on the test split


DIGITS = Config()
MNIST = replace(
    DIGITS, dataset="mnist", hidden=(500,), epochs=50, batch_size=100, learning_rate=2e-3
)
PRESETS = {
    "digits": DIGITS,
    "digits_pixelcnn": replace(DIGITS, network="pixelcnn", epochs=50),
    "digits_levels": replace(DIGITS, levels=17, network="pixelcnn", epochs=25),
    "mnist": MNIST,
    "mnist_pixelcnn": replace(
        MNIST,
        network="pixelcnn",
        first_kernel=11,
        epochs=3,
        batch_size=16,
        learning_rate=3e-3,
        evaluate_every=1,
    ),
}

# Published for dynamically binarised MNIST, nats per test image, in the curves for comparison.
PUBLISHED = {"made": 84.87, "pixelcnn": 81.5}


def build(config: Config, images: Any) -> Causal:
    """The network for such images, in the order that the option names."""
    shape = images.shape[1:]
    places = np.arange(math.prod(shape))
    order = {
        "raster": places,
        "columns": places.reshape(shape[:2]).T.ravel(),
        "random": np.random.default_rng(config.seed).permutation(places),
    }[config.order]
    classes = None if config.levels == 2 else config.levels
    mean = images.mean(axis=0).ravel()[order] / (255 if images.dtype == np.uint8 else 1)
    start = heads.logit_of(mean) if classes is None else nn.initializers.zeros
    net: Any = causal.MADE(shape, config.hidden, classes=classes, bias_init=start)
    if config.network == "pixelcnn":
        sizes = config.features, config.layers, config.kernel_size, config.first_kernel
        net = causal.GatedPixelCNN(shape, *sizes, classes=classes)
    dtype = jnp.float32 if classes is None else jnp.int32
    return Causal(net, shape, dtype, () if config.order == "raster" else tuple(order.tolist()))


def discretise(levels: int, key: Any, x: Any) -> Any:
    """One of so many levels for every pixel: integers, and for two of them random 0. and 1."""
    if levels == 2:
        return data.binarize(key, x)
    return jnp.minimum(data.scale(key, x) * levels, levels - 1).astype(jnp.int32)


def pictures(network: Causal, params: Any, key: Any, x: Any, levels: int) -> dict[str, Any]:
    """Samples; what each pixel was expected to be; completions of the first half of the order."""
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


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            train_split="train[:64]",
            test_split="test[:32]",
            hidden=(20,),
            features=4,
            layers=2,
        )
    at_least_one("autoregressive", epochs=config.epochs, batch_size=config.batch_size)
    if config.levels < 2:
        fix = "2 binarises"
        raise wrong("autoregressive: --levels", config.levels, "2 or more", fix)
    images, test = (data.load(config.dataset, s).x for s in (config.train_split, config.test_split))
    if images.ndim != 4 or images.shape[-1] != 1:
        fix = "give images [n, height, width, 1]"
        raise wrong("autoregressive: --dataset", images.shape, "grey images", fix)
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    steps = len(images) // config.batch_size
    transform = partial(discretise, config.levels)
    keys = jax.random.split(jax.random.key(config.seed), 6)
    network = build(config, images)
    params = jax.jit(network.init)(keys[0])
    folder = common.open_folder(config, name=f"autoregressive-{Path(config.dataset).stem}")

    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, steps), config.epochs * steps
    )
    measure = partial(evaluate.log_prob, network, transform=transform, batch_size=20)
    fitted = common.fit(
        config,
        folder,
        objectives.maximum_likelihood(network),
        optax.adam(rate),
        params,
        images,
        key=keys[1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        evaluate=lambda params, key: {"loss": -measure(params, key, test[:1000]).mean()},
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.evaluate_every,
    )

    log_px = measure(fitted.params, keys[2], test)
    seen = [
        np.asarray(jax.vmap(transform)(jax.random.split(key, len(x)), x))
        for key, x in zip(keys[3:5], (images, test), strict=True)
    ]
    summary = {
        "test_nll_nats": float(-log_px.mean()),
        "test_nll_standard_error": float(log_px.std() / math.sqrt(len(test))),
        "train_nll_nats": -float(fitted.history["log_px"][-1]),
        "independent_pixels_nats": independent(config.levels, *seen),
        "test_images": len(test),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    curves = {"train": -fitted.history["log_px"], "test, first 1000": fitted.history["eval/loss"]}
    lines = {}
    if config.levels == 2:  # no model of binarised images is better than the coins' own entropy
        level = np.asarray(data.scale(jax.random.key(0), test), float).reshape(len(test), -1)
        summary["floor_nats"] = float((entr(level) + entr(1 - level)).sum(axis=1).mean())
        lines["entropy of the binarisation"] = summary["floor_nats"]
    if config.levels == 2 and config.dataset == "mnist":
        lines[f"{config.network}, published"] = PUBLISHED[config.network]
    common.write_json(folder / "summary.json", summary)
    curves |= {f"{name}, {at:.2f}": np.full(len(curves["train"]), at) for name, at in lines.items()}
    drawn = pictures(network, fitted.params, keys[5], seen[1][:8], config.levels)
    title = f"-log p(x), exact ({config.network}, {config.order})"
    drawn["curves"] = plot.curves(curves, ylabel="nats per image", title=title)
    common.save_figures(folder, drawn)
    common.report(folder, summary, "nats per test image, exact; images of discrete pixels")
    return summary


def independent(levels: int, images: Any, test: Any) -> float:
    """-log p(x) of the test images, were each pixel independent with its own frequencies, nats."""
    count, found = (np.stack([(x == k).sum(axis=0) for k in range(levels)]) for x in (images, test))
    p = (count + 1) / (len(images) + levels)
    return float(-(found / len(test) * np.log(p)).sum())


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
