"""M2 (Kingma et al., 2014, arXiv:1406.5298): a classifier from 10 labels per class and many images.

    python -m experiments.semisupervised [preset] --labels_per_class N --alpha A --epochs N --seed S

The class is enumerated wherever it is unknown. Beside M2 the same classifier is trained on the same
labelled images alone, and M2's classifier starts from it. Labels other than those drawn serve only
to count errors on the test split. There is no `--seeds`, since each seed draws other labels.
Expected numbers and wall times: experiments/README.md. All bounds in nats per binarised image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.common import Trained, Trial, labelled
from vaejax import evaluate, plot, semisupervised
from vaejax.types import Batch


@dataclass(frozen=True)
class Config(common.Splits, common.Options):
    labels_per_class: int = 10  # labelled images of each class, drawn by the seed
    labelled: int = 10  # labelled images in each batch
    batch_size: int = 100  # images per step, labelled ones included
    alpha: float = 1.0  # weight of -log q(y|x), a mean over the labelled images of a batch
    # p(x|z, y): bernoulli binarises anew at each step, fixed_normal sees dequantised pixels
    likelihood: Literal["bernoulli", "fixed_normal"] = "fixed_normal"
    scale: float = 0.2  # standard deviation of fixed_normal (white = 1)
    # weight of KL(q(y|x) || p(y)) at first, falling to 1 by half the epochs: above 1 no class of an
    # image is settled before the model has learnt what the classes look like
    softness: float = 1.0
    hidden: tuple[int, ...] = (200,)  # units of each network's layers
    prior: Literal["fixed", "learned"] = "learned"  # N(0, I), or a Normal p(z|y) for each class
    dropout: float = 0.5  # share of the classifier's units left out in training
    latent: int = 4  # latent dimensions; with many, z says the class itself
    epochs: int = 150  # passes over the training images
    learning_rate: float = 2e-3  # Adam's step size, falling to 0 along a cosine
    alone_steps: int = 300  # steps of the classifier that is trained on the labels alone
    particles: int = 50  # importance samples per image and class for -log p(x)
    likelihood_images: int = 1000  # test images for -log p(x)
    evaluate_every: int = 10  # epochs between counts of the errors on the test split
    checkpoint_every: int = 50  # epochs between checkpoints


DIGITS = Config()
MNIST = replace(DIGITS, dataset="mnist", likelihood="bernoulli", prior="fixed", hidden=(256,))
MORE: dict[str, Any] = {"epochs": 20, "evaluate_every": 1, "checkpoint_every": 5}
PRESETS = {"digits": DIGITS, "mnist": replace(MNIST, batch_size=200, labelled=20, **MORE)}


def build(config: Config, images: labelled.Images) -> Trial:
    """M2, ready to be trained from the classifier that knows the labels."""
    half = config.epochs * (len(images.train.x) // config.batch_size) // 2
    falling = optax.linear_schedule(config.softness, 1.0, half)
    indices = semisupervised.labelled_ratio(
        images.train.y, config.batch_size, labelled=config.labelled
    )
    return Trial(
        images.joint,
        lambda: images.start,
        semisupervised.m2(images.joint, alpha=config.alpha, beta=falling),
        common.falling_adam(config, len(images.train.x)),
        images.train,
        common.keys(config, 8)[3],
        images.transform,
        evaluate=partial(labelled.errors, images),
        more={"indices": indices, "monitor": "error"},
    )


def measure(config: Config, images: labelled.Images, m2: Trained) -> tuple[dict[str, Any], None]:
    """Accuracy of M2, of the labels alone and of Bayes' rule; the bound and -log p(x)."""
    keys, some = common.keys(config, 8), images.test.x[: config.likelihood_images]
    unlabelled = Batch(some, y=jnp.full(len(some), -1))
    quiet = semisupervised.m2(semisupervised.deterministic(m2.model), alpha=config.alpha)
    bound = evaluate.mean_loss(quiet, m2.params, keys[4], unlabelled, batch_size=100)
    found = semisupervised.log_likelihood(
        m2.model, m2.params, keys[5], some, particles=config.particles
    )
    by_bayes = found.log_pxy.argmax(axis=1) == images.test.y[: len(some)]
    alone = labelled.errors(images, images.start, keys[6])["error"]
    numbers = {
        "test_accuracy": 1 - float(m2.history["eval/error"][-1]),
        "test_accuracy_labels_alone": 1 - alone,
        "labelled_images": int(np.sum(images.train.y != -1)),
        "test_images": len(images.test.x),
        "test_elbo_nats": bound["elbo"],
        "test_nll_nats": -float(found.log_px.mean()),
        "test_nll_particles": config.particles,
        "test_nll_images": len(some),
        "test_accuracy_by_bayes": float(np.mean(by_bayes)),  # argmax of p(y|x), on those images
        "classes_predicted": labelled.classes_predicted(m2.model, m2.params, images.test.x),
    }
    numbers["gain_points"] = 100 * (numbers["test_accuracy"] + alone - 1)
    return numbers, None


def draw(config: Config, images: labelled.Images, m2: Trained, _: None) -> dict[str, Any]:
    """Samples and analogies, and the errors in training."""
    curves = {
        "test error of q(y|x)": m2.history["eval/error"],
        "error on the labelled images": m2.history["error"],
    }
    key, some = common.keys(config, 8)[7], images.test.x[:10]
    drawn = labelled.pictures(m2.model, m2.params, key, some)
    return {**drawn, "curves": plot.curves(curves, ylabel="share of images")}


SMALLEST = {"hidden": (16,), "latent": 3, "alone_steps": 4, "particles": 2, "likelihood_images": 8}
FEW = {"train_split": "train[:200]", "test_split": "test[:32]", "labels_per_class": 2}
RECIPE = common.Recipe(
    "semisupervised",
    labelled.load,
    build,
    measure,
    draw,
    "accuracies: shares in [0, 1]; nats per test image",
    smoke={"epochs": 2, "batch_size": 20, "labelled": 5, "evaluate_every": 2, **SMALLEST, **FEW},
)


main = partial(common.main, RECIPE)
"""Train both, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
