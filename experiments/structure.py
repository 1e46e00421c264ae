"""Why structure must be forced: by dimension, sparsity, noise or a prior, side by side.

    python -m experiments.structure [digits|mnist] [--epochs N] [--seed S]

One network (x - hidden - code - hidden - x) with more codes than pixels and squared error alone
(`free`, the control); with few codes; with an L1 norm on ReLU codes; with masked inputs; with few
codes and a prior (a VAE). Then a few codes on independent and on correlated Gaussians, and those of
`dimension` on images of other kinds. `--seeds N` and `--sweep NAME=...` (learning_rate, l1) train
many at once, without the Gaussians. Expected numbers: experiments/README.md.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import Row, Trained, Trial, features, image_vae
from experiments.common.figures import structure as figures
from vaejax import autoencoders, corruption, heads, objectives, sparsity
from vaejax.batch import over_examples
from vaejax.errors import wrong


@dataclass(frozen=True)
class Config(common.SweepOptions):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME: labelled images
    others: tuple[str, ...] = ()  # data sets of the same shape, to reconstruct with these features
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    hidden: int = 200  # units of the layer on either side of the code
    small: int = 8  # units of the code that is to be small, and of the VAE's
    large: int = 128  # units of the other codes, more than pixels
    l1: float = 0.05  # weight of the code's L1 norm beside the squared error
    masked: float = 0.3  # probability with which the denoiser sees 0 for a pixel
    scale: float = 0.2  # standard deviation of the VAE's p(x|z)
    epochs: int = 200  # passes over the training images, for each of the five
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, falling along a cosine
    judged: int = 5000  # training images that probes, neighbours and components see, at most
    gaussian_steps: int = 3000  # updates on Gaussian inputs, 256 fresh ones each


MNIST = Config("mnist", ("fashion_mnist",), epochs=8, batch_size=128)
PRESETS = {
    "digits": Config(),
    "mnist": replace(MNIST, hidden=400, small=16, large=800, l1=0.1, scale=0.3),
}


def ways(config: Config, shape: tuple[int, ...]) -> dict[str, tuple[Any, Any]]:
    """The control and the four ways: model and loss of each."""

    codes = heads.Code(config.large), heads.Code(config.small), heads.Code(config.large, nn.relu)
    free, few, rectified = (features.network(shape, config.hidden, code) for code in codes)
    prior = image_vae.standard_normal(config.small)
    vae = features.network(shape, config.hidden, heads.Normal(config.small), config.scale, prior)
    return {
        "free": (free, autoencoders.reconstruction(free)),
        "dimension": (few, autoencoders.reconstruction(few)),
        "sparsity": (
            rectified,
            autoencoders.sparse(rectified, penalty=sparsity.l1, weight=config.l1),
        ),
        "noise": (free, autoencoders.denoising(free, corrupt=corruption.masking(config.masked))),
        "prior": (vae, objectives.elbo(vae)),
    }


def load(config: Config) -> tuple[np.ndarray, ...]:
    """Images in [0, 1] and labels of both splits, and the test images with masked pixels."""
    stored, test = common.both_splits(config, "structure")
    if stored.x.dtype != np.uint8 or stored.x.ndim != 4 or isinstance(stored.y, tuple):
        got, fix = f"{stored.x.dtype} x {stored.x.shape}", "choose digits, mnist or fashion_mnist"
        raise wrong("structure: --dataset", got, "labelled images of uint8 levels", fix)
    features.check_others(config, stored.x.shape[1:])
    x, test_x = features.levels(stored.x), features.levels(test.x)
    masking = corruption.masking(config.masked)
    masked = np.asarray(over_examples(masking, jax.random.key(0), jnp.asarray(test_x)))
    return x, stored.y, test_x, test.y, masked


def trials(config: Config, images: tuple[np.ndarray, ...]) -> dict[str, Trial]:
    """All five, with the same keys."""
    init_key, fit_key, *_ = common.keys(config, 4)
    return {
        name: Trial(
            model,
            partial(model.init, jax.random.clone(init_key), images[0][0]),
            loss,
            common.falling_adam(config, len(images[0])),
            images[0],
            jax.random.clone(fit_key),
            checkpoint_every=config.epochs,
        )
        for name, (model, loss) in ways(config, images[0].shape[1:]).items()
    }


def measure(config: Config, images: Any, trained: dict[str, Trained]) -> tuple[Row, Any]:
    """What each way is worth; the few codes elsewhere; and Gaussian inputs, of one run alone."""
    sample_key, gaussian_key = common.keys(config, 4)[2:]
    found = {
        name: features.judged(one, images, config.judged, jax.random.clone(sample_key))
        for name, one in trained.items()
    }
    numbers: Row = {name: own for name, (own, _) in found.items()}
    few = trained["dimension"]
    elsewhere, there = features.elsewhere(config, few.model, few.params, images[0], images[2])
    numbers["elsewhere_over_pca"] = elsewhere
    if not config.several:
        numbers |= features.gaussians(config, gaussian_key)
    pictures = {name: drawn for name, (_, drawn) in found.items()}
    return numbers, (numbers, images[2], pictures, there)


NOTE = "squared error: per image, white = 1; accuracies and explained variances: shares"
SMOKE: Any = {"hidden": 20, "epochs": 2, "batch_size": 16, "gaussian_steps": 20}
SMOKE |= common.SOME_IMAGES
LABELS = common.LABELS | {"l1": "weight of the code's L1 norm", "squared_error": "squared error"}
RECIPE = common.Recipe(
    *("structure", load, trials, measure, lambda *rest: figures.draw(*rest[-1]), NOTE, SMOKE),
    swept={"learning_rate", "l1"},
    labels=LABELS,
)


def main(config: Config) -> dict[str, Any]:
    """Train all, judge and draw; returns what summary.json holds."""
    with warnings.catch_warnings():  # that the control may learn the identity is the point
        warnings.filterwarnings("ignore", "reconstruction: the code has")
        return common.main(RECIPE, config)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
