"""Denoising autoencoder (Vincent et al., 2008): images from masked, noisy, cut or coarse ones.

    python -m experiments.denoising [preset] --dataset NAME|tfds:NAME|FILE.npz --level L --epochs N

Beside it a plain autoencoder of the same size starts from the same parameters and sees the same
batches, clean; on corrupted test images both are measured in PSNR, -10 log10(mean squared error) in
dB, white = 1. Expected numbers and wall times: experiments/README.md.
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

from experiments import common
from vaejax import autoencoders, corruption, data, evaluate, heads, networks, plot, train
from vaejax.batch import over_examples
from vaejax.errors import at_least_one, wrong
from vaejax.model import autoencoder

EXACT = 60.0  # dB: what an image counts that is better than this, for instance one left as it was


@dataclass(frozen=True)
class Config(common.Options):
    # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE of images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on
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


DIGITS = Config()
MNIST = replace(
    DIGITS,
    dataset="mnist",
    hidden=(1000,),
    code=500,
    epochs=12,
    batch_size=128,
    evaluate_every=2,
    checkpoint_every=5,
)
PRESETS = {
    "digits": DIGITS,
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


def together(losses: dict[str, Any]) -> Any:
    """Several networks trained in one scalar, each as if alone, Adam being elementwise."""

    def loss(params: Any, key: Any, batch: Any, step: Any) -> Any:
        keys = dict(zip(losses, jax.random.split(key, len(losses)), strict=True))
        values = {n: one(params[n], keys[n], batch, step)[0] for n, one in losses.items()}
        return jnp.asarray(sum(values.values())), values

    return loss


def psnr(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`-10 log10(mean squared error)` of each image, `[n]`, in dB, at most `EXACT`."""
    error = np.mean((other - clean).reshape(len(clean), -1) ** 2, axis=1, dtype=np.float64)
    return -10 * np.log10(np.maximum(error, 10 ** (-EXACT / 10)))


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            hidden=(32,),
            code=16,
            evaluate_every=1,
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    at_least_one("denoising", epochs=config.epochs, batch_size=config.batch_size)
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    if images.dtype != np.uint8 and not 0 <= images.min() <= images.max() <= 1:
        got = f"floats in [{images.min():.4g}, {images.max():.4g}]"
        raise wrong("denoising: --dataset", got, "[0, 1]", "store uint8, or scale them")
    corrupt = corruption_of(config)
    init_key, fit_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    jax.eval_shape(corrupt, init_key, jnp.asarray(mean, jnp.float32))  # refuses what does not fit
    model = build(config, images.shape[1:], mean)
    start = model.init(init_key, jnp.asarray(mean, jnp.float32))
    folder = common.open_folder(config, name=f"denoising-{Path(config.dataset).stem}")

    steps = len(images) // config.batch_size
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps))
    plain, denoising = autoencoders.reconstruction, autoencoders.denoising
    loss = together({"denoising": denoising(model, corrupt=corrupt), "plain": plain(model)})
    fitted = common.fit(
        config,
        folder,
        loss,
        adam,
        {"plain": start, "denoising": start},
        images,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.scale,
        evaluate=partial(evaluate.mean_loss, loss, data=test, transform=data.scale),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )

    clean = np.asarray(data.scale(test_key, test))
    seen = over_examples(corrupt, test_key, clean)
    unused = jax.random.key(0)  # nothing more is drawn
    rows = {"corrupted": np.asarray(seen)}
    for name in ("plain", "denoising"):
        again = jax.random.clone(unused)
        rows[name] = np.asarray(evaluate.reconstructions(model, fitted.params[name], again, seen))
    found = {f"{name}_psnr_db": psnr(clean, row).mean() for name, row in rows.items()}
    # Not moved by images that lose nothing, such as those erased where they are blank.
    pooled = {
        f"{name}_psnr_of_mean_error_db": psnr(clean[None], row[None]).item()
        for name, row in rows.items()
    }
    of_clean = np.asarray(evaluate.reconstructions(model, fitted.params["plain"], unused, clean))
    gain = {
        f"gain_over_{name}_db": found["denoising_psnr_db"] - found[f"{name}_psnr_db"]
        for name in ("corrupted", "plain")
    }
    summary = {k: float(v) for k, v in {**found, **gain, **pooled}.items()} | {
        "plain_psnr_of_clean_db": float(psnr(clean, of_clean).mean()),
        "test_images": len(test),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    common.write_json(folder / "summary.json", summary)
    curves = {
        f"{name}, {part}": fitted.history[prefix + name]
        for name in fitted.params
        for part, prefix in (("train", ""), ("test", "eval/"))
    }
    drawn = {"curves": plot.curves(curves, ylabel="cross-entropy, nats per image")}
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        labels = ["clean"] + [f"{n}, {pooled[f'{n}_psnr_of_mean_error_db']:.1f} dB" for n in rows]
        title = f"{config.corruption} {config.level:g}: PSNR of the mean error of the test images"
        shown = np.concatenate([clean[:10], *(row[:10] for row in rows.values())])
        columns = min(10, len(clean))
        drawn["images"] = plot.images(shown, columns=columns, title=title, labels=labels)
    common.save_figures(folder, drawn)
    common.report(folder, summary, "dB: mean over test images of -10 log10(mean squared error)")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
