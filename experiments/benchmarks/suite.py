"""The comparison's workloads: their sizes, variants, bars and data, and the arithmetic per unit.

Nothing here imports JAX or PyTorch, so that a worker holds only what its variant needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """The sizes of one workload. A burst is what is timed at once: `steps` steps of a variant."""

    about: str
    unit: str = "images"
    network: Literal["mlp", "transposed", "subpixel"] = "mlp"
    side: int = 28  # height and width of the images
    hidden: tuple[int, ...] = (400,)  # units, or channels of the encoder's convolutions
    activation: Literal["relu", "tanh"] = "relu"
    pixels: Literal["grey", "binary"] = "binary"  # levels / 255 as they are, or drawn anew
    latent: int = 20
    particles: int = 1  # draws of z per image
    images: int = 60_000  # of the data set
    batch: int = 128  # images per step; in W4 images at a time
    chunk: int = 50  # in W4 particles at a time
    steps: int = 100
    slow_steps: int = 1  # of the variants that are orders slower
    members: int = 64  # models that `vaejax_population` trains at once


class Burst(NamedTuple):
    """A variant that is ready to run.

    run: does `work` units of work, waits for them and returns the last loss.
    work: how many units one call does.
    facts: what to report beside the rate, `compile_seconds` among them if something was compiled.
    """

    run: Callable[[], float]
    work: int
    facts: dict[str, Any]


IWAE = Sizes(
    "IWAE, k = 50, 784-200-200-50, batch 20, Adam",
    hidden=(200, 200),
    latent=50,
    activation="tanh",
    particles=50,
    batch=20,
    steps=40,
)
CONV = Sizes(
    "convolutional VAE: 32 and 64 channels of stride 2, latent 32, batch 128, Adam",
    network="transposed",
    hidden=(32, 64),
    latent=32,
    steps=20,
)
WORKLOADS = {
    "W1": Sizes("MLP VAE 784-400-20-400-784, grey levels, batch 128, Adam", pixels="grey"),
    "W1-binary": Sizes("W1 with each image binarised anew at every step"),
    "W2": IWAE,
    "W2-100": replace(IWAE, about="W2 at batch 100", batch=100, steps=10),
    "W3": CONV,
    "W3-preset": replace(
        CONV,
        about="W3 with the decoder of experiments.vae's conv preset",
        network="subpixel",
        steps=8,
    ),
    "W4": Sizes(
        "log p(x) by importance sampling, K = 1000, 100 images, W1's network",
        unit="samples",
        images=100,
        particles=1000,
        batch=20,
        steps=1,
    ),
    "W5": Sizes(
        "contractive penalty of a sigmoid layer 784-400 with its gradient, batch 128",
        images=128,
        steps=50,
    ),
}

# The first variant is the numerator of the ratios. What stands before "_" names the module that has
# the variant: in_NAME.py.
TRAINING = ("vaejax", "torch_eager", "torch_loader", "torch_tuned", "torch_compile", "flax_step")
ON_ACCELERATORS = ("torch_cuda_graphs", "torch_bfloat16", "vaejax_bfloat16")
VARIANTS = {
    "W1": (
        *TRAINING,
        "pythae",
        "vaejax_nnx",
        "vaejax_equinox",
        *ON_ACCELERATORS,
        "vaejax_population",
    ),
    "W1-binary": (*TRAINING, "pythae", *ON_ACCELERATORS, "vaejax_population"),
    "W2": (*TRAINING, "pythae", *ON_ACCELERATORS),
    "W2-100": (*TRAINING, "pythae", *ON_ACCELERATORS),
    "W3": (*TRAINING, *ON_ACCELERATORS),
    "W3-preset": ("vaejax", "torch_eager", "torch_tuned", "torch_compile", *ON_ACCELERATORS),
    "W4": ("vaejax", "torch_eager", "torch_tuned", "torch_images", "pythae"),
    "W5": ("vaejax", "vaejax_jacfwd", "vaejax_jacrev", "torch_closed", "torch_jacrev"),
}
GPU_ALONE = ("torch_cuda_graphs",)  # cannot run without one
ACCELERATOR_ONLY = (*ON_ACCELERATORS, "vaejax_population")  # without one only in a dry run

# On two CPU cores vaejax's rate is to be at least so many times that of the variant.
BARS = {
    ("W1", "torch_eager"): 2.3,
    ("W1", "torch_loader"): 4.0,
    ("W1", "pythae"): 3.0,
    ("W2", "torch_eager"): 1.15,
    ("W2", "pythae"): 2.0,
    ("W3", "torch_eager"): 0.95,
    ("W4", "torch_tuned"): 1.4,  # from logits; from the example's probabilities it is slower
    ("W4", "pythae"): 4.0,
}
MEMORY_BAR = 1.5  # vaejax's peak of anonymous memory, in PyTorch's, at most
EPOCH_BARS = {"cold": 1.0, "warm": 0.75}  # seconds of a whole process, in PyTorch's, at most

INSTALL = {
    "equinox": 'pip install -e ".[equinox]"',
    "torch": 'pip install "torch>=2"',
    "pythae": "pip install pythae",
}


def shrunk(name: str) -> Sizes:
    """A workload shrunk to seconds that still runs every line, for the dry run."""
    whole = WORKLOADS[name]
    hidden = (3, 4) if whole.network != "mlp" else (8,) * len(whole.hidden)
    return replace(
        whole,
        side=8,
        hidden=hidden,
        latent=3,
        particles=min(whole.particles, 4),
        images=min(whole.images, 40),
        batch=min(whole.batch, 5),
        chunk=2,
        steps=2,
        members=2,
    )


def on_platform(name: str, accelerator: bool) -> Sizes:
    """The workload. On an accelerator, where a step takes microseconds, bursts are longer.

    More particles are computed at a time there, too.
    """
    whole = WORKLOADS[name]
    if not accelerator:
        return whole
    return replace(
        whole,
        steps=20 * whole.steps,
        slow_steps=20,
        chunk=1000,
        batch=100 if name == "W4" else whole.batch,
    )


def levels(sizes: Sizes, seed: int = 0) -> np.ndarray:
    """Grey images `[images, side, side, 1]`, uint8, from a seed: ten smooth factors, mostly black.

    The images have structure, so that there is something to learn. Without it the gradients would
    vanish, which is another workload.
    """
    rng = np.random.default_rng(seed)
    grey = np.empty((sizes.images, sizes.side, sizes.side, 1), np.uint8)
    factors = rng.normal(size=(10, sizes.side**2)).astype(np.float32)
    for start in range(0, sizes.images, 1000):  # little at a time: memory is measured too
        part = grey[start : start + 1000]
        code = rng.normal(size=(len(part), 10)).astype(np.float32)
        part[:] = np.clip(code @ factors * 80 - 100, 0, 255).reshape(part.shape)
    return grey


def flops(sizes: Sizes, *, training: bool = True) -> float:
    """Floating point operations of the matrix products and convolutions, per unit of work.

    A forward pass takes two for each use of a weight. A training step takes three times that, less
    the gradient by the pixels.
    """
    pixels, latent = sizes.side**2, sizes.latent
    first, coded, decoded = 0, 0, 0
    if sizes.network == "mlp":
        widths = [pixels, *sizes.hidden]
        layers = [a * b for a, b in pairwise(widths)]
        first, inner = layers[0], sum(layers[1:])
        coded = first + inner + 2 * sizes.hidden[-1] * latent
        decoded = latent * sizes.hidden[-1] + inner + first
    else:
        one, two = sizes.hidden
        half, quarter = (sizes.side // 2) ** 2, (sizes.side // 4) ** 2
        first, dense = half * 9 * one, quarter * two * latent
        coded = first + quarter * 9 * one * two + 2 * dense
        if sizes.network == "transposed":  # each pixel of the smaller map meets each weight once
            decoded = dense + quarter * 9 * two * one + half * 9 * one
        else:
            decoded = dense + quarter * 9 * two * 4 * one + half * 9 * one * 64 + pixels * 16
    if not training:
        return 2.0 * decoded
    return 2.0 * (3 * coded - first + 3 * sizes.particles * decoded)


def summary(rounds: Any) -> dict[str, Any]:
    """Median, quartiles, and every round."""
    lower, median, upper = (float(q) for q in np.quantile(rounds, [0.25, 0.5, 0.75]))
    return {
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "rounds": [float(value) for value in rounds],
    }
