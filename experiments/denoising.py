"""Denoising autoencoder (Vincent et al., 2008): images from masked, noisy, cut or coarse ones.

    python -m experiments.denoising [preset] --dataset NAME|tfds:NAME|FILE.npz --level L --epochs N

Beside it a plain autoencoder of the same size starts from the same parameters and sees the same
batches, clean; on corrupted test images both are measured in PSNR, -10 log10(mean squared error) in
dB, white = 1. `--seeds N` and `--sweep learning_rate=...` train many at once. Expected numbers and
wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import FEW_IMAGES, Row, Trained, Trial, figures
from experiments.common.measures import psnr
from vaejax import autoencoders, corruption, data, evaluate, heads, networks, plot
from vaejax.batch import over_examples
from vaejax.model import autoencoder


@dataclass(frozen=True)
class Config(common.Splits, common.SweepOptions):
    corruption: Literal[
        "masking", "gaussian", "salt_and_pepper", "erased_block", "low_resolution"
    ] = "masking"
    # probability of an entry; standard deviation (white = 1); side of the block or cell in pixels
    level: float = 0.5
    hidden: tuple[int, ...] = (256,)  # units of the encoder's layers, mirrored in the decoder
    code: int = 48  # units of the code; below the image's size, or the plain one learns to copy
    epochs: int = 500  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam's step size, falling to 0 along a cosine
    evaluate_every: int = 25  # epochs between evaluations on the test split
    checkpoint_every: int = 100  # epochs between checkpoints


MNIST = Config(
    "mnist",
    hidden=(1000,),
    code=500,
    epochs=12,
    batch_size=128,
    evaluate_every=2,
    checkpoint_every=5,
)
PRESETS = {
    "digits": Config(),
    "mnist": MNIST,
    "gaussian": replace(MNIST, corruption="gaussian"),
    "inpainting": replace(MNIST, corruption="erased_block", level=10),
    "super_resolution": replace(MNIST, corruption="low_resolution", level=4),
}


def build(config: Config, shape: tuple[int, ...], mean: Any) -> Any:
    """Dense layers, a linear code, and cross-entropy of grey levels, whose best mean is E[x|x~]."""
    layers = partial(networks.MLP, kernel_init=nn.initializers.he_normal())
    likelihood = heads.Bernoulli(shape, bias_init=heads.logit_of(mean))
    return autoencoder(
        nn.Sequential([layers(config.hidden), heads.Code(config.code)]),
        nn.Sequential([layers(config.hidden[::-1]), likelihood]),
    )


def corruption_of(config: Config) -> Any:
    """`corrupt(key, x)`; pixels are counted in whole numbers where the level is one."""
    counted = config.corruption in ("erased_block", "low_resolution") and config.level % 1 == 0
    return getattr(corruption, config.corruption)(int(config.level) if counted else config.level)


def load(config: Config) -> tuple[Any, Any]:
    """The images of both splits, checked, as is whether the corruption fits them."""
    images, test = (part.x for part in common.both_splits(config, "denoising", bounded=True))
    mean = jnp.asarray(common.mean_of(images), jnp.float32)
    jax.eval_shape(corruption_of(config), jax.random.key(0), mean)
    return images, test


def trial(config: Config, images: tuple[Any, Any]) -> Trial:
    """Both autoencoders, in one loss."""
    x, test = images
    init_key, fit_key, _ = common.keys(config, 3)
    mean = common.mean_of(x)
    model = build(config, x.shape[1:], mean)
    denoising = autoencoders.denoising(model, corrupt=corruption_of(config))
    loss = common.together({"denoising": denoising, "plain": autoencoders.reconstruction(model)})

    def init() -> Any:
        start = model.init(init_key, jnp.asarray(mean, jnp.float32))
        return {"plain": start, "denoising": start}

    adam = common.falling_adam(config, len(x))
    return Trial(model, init, loss, adam, x, fit_key, data.scale, test=test)


def measure(config: Config, images: tuple[Any, Any], one: Trained) -> tuple[Row, Any]:
    """PSNR of the corrupted test images and of what either network makes of them."""
    key, unused = common.keys(config, 3)[2], jax.random.key(0)  # nothing more is drawn
    clean = np.asarray(data.scale(key, images[1]))
    seen = over_examples(corruption_of(config), key, clean)

    def rebuilt(name: str, x: Any) -> np.ndarray:
        key = jax.random.clone(unused)
        return np.asarray(evaluate.reconstructions(one.model, one.params[name], key, x))

    rows = {"corrupted": np.asarray(seen)}
    rows |= {name: rebuilt(name, seen) for name in ("plain", "denoising")}
    found: Row = {f"{name}_psnr_db": psnr(clean, row).mean() for name, row in rows.items()}
    for name in ("corrupted", "plain"):
        found[f"gain_over_{name}_db"] = found["denoising_psnr_db"] - found[f"{name}_psnr_db"]
    for name, row in rows.items():  # not moved by images that lose nothing, blank where erased
        found[f"{name}_psnr_of_mean_error_db"] = psnr(clean[None], row[None]).item()
    found["plain_psnr_of_clean_db"] = psnr(clean, rebuilt("plain", clean)).mean()
    numbers = {name: float(value) for name, value in found.items()}
    return {**numbers, "test_images": len(clean)}, (clean, rows, numbers)


def draw(config: Config, images: Any, one: Trained, kept: Any) -> dict[str, Any]:
    """Test images, corrupted and as either network has them; and the losses in training."""
    clean, rows, numbers = kept
    ylabel = "cross-entropy, nats per image"
    drawn = {"curves": figures.train_and_test(one.history, tuple(one.params), ylabel)}
    if common.drawable(images[0]):
        of_rows = [f"{n}, {numbers[f'{n}_psnr_of_mean_error_db']:.1f} dB" for n in rows]
        title = f"{config.corruption} {config.level:g}: PSNR of the mean error of the test images"
        shown = np.concatenate([clean[:10], *(row[:10] for row in rows.values())])
        columns, labels = min(10, len(clean)), ["clean", *of_rows]
        drawn["images"] = plot.images(shown, columns=columns, title=title, labels=labels)
    return drawn


NOTE = "dB: mean over test images of -10 log10(mean squared error)"
SMOKE: Row = {"epochs": 2, "batch_size": 16, "hidden": (32,), "code": 16, "evaluate_every": 1}
LABELS = common.LABELS | {"gain_over_plain_db": "gain over the plain one, dB"}
RECIPE = common.Recipe(
    "denoising", load, trial, measure, draw, NOTE, SMOKE | FEW_IMAGES, ["learning_rate"], LABELS
)
main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
