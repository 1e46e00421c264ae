"""M2 (Kingma et al., 2014, arXiv:1406.5298): a classifier from 10 labels per class and many images.

    python -m experiments.semisupervised [preset] --labels_per_class N --alpha A --epochs N --seed S

The class is enumerated wherever it is unknown. Beside it the same classifier, trained on the same
labelled images alone, from which M2's then starts. Labels other than those drawn serve only to
count errors on the test split.
Expected numbers and wall times: experiments/README.md. All bounds in nats per binarised image.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common, vae
from experiments.common import image_vae
from vaejax import data, evaluate, heads, networks, plot, semisupervised, stacked, train
from vaejax.batch import over_examples
from vaejax.distributions import Categorical, Normal
from vaejax.errors import at_least_one, wrong
from vaejax.model import autoencoder, generate
from vaejax.types import Batch


@dataclass(frozen=True)
class Config(common.Options):
    # digits, mnist, fashion_mnist, tfds:NAME, or a .npz FILE of labelled grey images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train[:50000]
    test_split: str = "test"  # images to report on, for instance train[50000:] to choose options
    labels_per_class: int = 10  # labelled images of each class, drawn by the seed
    labelled: int = 10  # labelled images in each batch
    batch_size: int = 100  # images per step, labelled ones included
    alpha: float = 10.0  # weight of -log q(y|x) beside the bound of a labelled image
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
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(
        DIGITS,
        dataset="mnist",
        likelihood="bernoulli",
        prior="fixed",
        hidden=(256,),
        epochs=20,
        batch_size=200,
        labelled=20,
        evaluate_every=1,
        checkpoint_every=5,
    ),
}


class Joined(nn.Module):
    """Dense layers of x, or z, and a class, which joins as a vector of its own behind the first.

    The first layer's work on x then serves every class. With weights of 1 and not of the size that
    its one input in many would get, the class is not drowned at the start by what z can say itself.
    """

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any, c: Any) -> Any:
        first, *rest = self.hidden
        own = nn.Dense(first, use_bias=False, kernel_init=nn.initializers.normal(1.0))(c)
        return networks.MLP(rest)(nn.relu(nn.Dense(first)(jnp.ravel(x)) + own))


def build(config: Config, shape: tuple[int, ...], mean: Any, classes: int) -> semisupervised.Joint:
    """p(y) p(z) p(x|z, y) with q(z|x, y), and q(y|x)."""
    likelihood = {
        "bernoulli": lambda: heads.Bernoulli(shape, bias_init=heads.logit_of(mean)),
        "fixed_normal": lambda: heads.FixedNormal(shape, config.scale),
    }[config.likelihood]()
    standard = Normal(jnp.zeros(config.latent), jnp.ones(config.latent))
    model = autoencoder(
        nn.Sequential([Joined(config.hidden), heads.Normal(config.latent)]),
        nn.Sequential([Joined(config.hidden), likelihood]),
        standard if config.prior == "fixed" else heads.Normal(config.latent),
    )
    features = networks.MLP(config.hidden, dropout=config.dropout)
    classifier = nn.Sequential([features, heads.Categorical((), classes)])
    return semisupervised.Joint(model, classifier, Categorical(jnp.zeros(classes)))


def partly_labelled(y: Any, per_class: int, seed: int) -> np.ndarray:
    """The labels of as many examples of each class, chosen at random, and -1 for all others."""
    rng = np.random.default_rng(seed)
    known = np.full_like(y, -1)
    for label in np.unique(y):
        places = np.flatnonzero(y == label)
        if len(places) < per_class:
            got, fix = f"{len(places)} images of class {label}", "lower --labels_per_class"
            raise wrong("semisupervised: --dataset", got, f"{per_class} or more", fix)
        known[rng.choice(places, per_class, replace=False)] = label
    return known


def pictures(joint: semisupervised.Joint, params: Any, key: Any, x: Any) -> dict[str, Any]:
    """Samples of every class from the same codes; codes of images decoded under every class."""
    model, own = joint.model, params["model"]
    classes = range(len(joint.classes))
    under_all = jax.jit(
        jax.vmap(lambda z: jax.vmap(lambda c: model.decode(own, z, c).mean)(joint.classes))
    )
    sample = jax.vmap(lambda key, c: generate(model, own, key, c).mean, (0, None))
    keys = jax.random.split(key, 10)  # the same noise for every class
    samples = np.asarray(jax.jit(jax.vmap(sample, (None, 0)))(keys, joint.classes))

    def code(x: Any) -> Any:
        y = jnp.argmax(joint.classifier.apply(params["classifier"], x).logits)
        return model.encode(own, x, joint.classes[y]).mean

    analogies = np.asarray(under_all(jax.jit(jax.vmap(code))(x)))
    rows = np.concatenate([np.asarray(x)[:, None], analogies], axis=1)
    drawn = {
        "samples": plot.images(
            samples.reshape(-1, *samples.shape[2:]),
            columns=10,
            labels=[f"class {i}" for i in classes],
            title="samples: mean of p(x|z, y), a column of the same noise",
        ),
        "analogies": plot.traversals(rows, labels=[f"image {i + 1}" for i in range(len(rows))]),
    }
    axis = drawn["analogies"].axes[0]
    axis.set_xticks(axis.get_xticks(), ["x", *map(str, classes)])
    axis.set(
        title="the code z of a test image, decoded under every class",
        ylabel="",
        xlabel="class y of p(x|z, y)",
    )
    return drawn


def main(config: Config) -> dict[str, Any]:
    """Train both, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=20,
            labelled=5,
            labels_per_class=2,
            hidden=(16,),
            latent=3,
            alone_steps=4,
            particles=2,
            likelihood_images=8,
            evaluate_every=2,
            train_split="train[:200]",
            test_split="test[:32]",
        )
    stored, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    counts = {"epochs": config.epochs, "alone_steps": config.alone_steps}
    at_least_one("semisupervised", **counts, labels_per_class=config.labels_per_class)
    if isinstance(stored.y, tuple):
        raise wrong("semisupervised: --dataset", "no labels", "labelled images", "choose mnist")
    images = Batch(stored.x, y=partly_labelled(stored.y, config.labels_per_class, config.seed))
    indices = semisupervised.labelled_ratio(images.y, config.batch_size, labelled=config.labelled)
    keys = jax.random.split(jax.random.key(config.seed), 8)
    transform = image_vae.transform_for(vae.Config(likelihood=config.likelihood), stored.x)
    seen = over_examples(transform, keys[0], test.x)
    mean = stored.x.mean(axis=0) / (255 if stored.x.dtype == np.uint8 else 1)
    joint = build(config, stored.x.shape[1:], mean, int(stored.y.max()) + 1)
    params = joint.init(keys[1], seen[0])
    folder = common.open_folder(config, name=f"semisupervised-{Path(config.dataset).stem}")

    classifier = semisupervised.discriminative(joint.classifier)
    known = jax.tree.map(lambda leaf: jnp.asarray(leaf[images.y != -1]), images)
    alone = train.make_train(
        stacked.classification(classifier),
        optax.adam(config.learning_rate),
        steps=config.alone_steps,
        batch_size=min(len(known.y), config.batch_size),
        transform=transform,
    )
    by_labels = jax.jit(alone)(keys[2], params["classifier"], known)[0].params
    # From chance, the bound of a model that knows no class yet would teach its classifier nonsense.
    params = {**params, "classifier": by_labels}

    def errors(params: Any, key: Any) -> dict[str, float]:
        rate = stacked.error_rate(classifier, params["classifier"], key, Batch(seen, y=test.y))
        return {"error": rate}

    steps = config.epochs * (len(stored.x) // config.batch_size)
    falling = optax.linear_schedule(config.softness, 1.0, steps // 2)
    loss = semisupervised.m2(joint, alpha=config.alpha, beta=falling)
    fitted = common.fit(
        config,
        folder,
        loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        params,
        images,
        key=keys[3],
        epochs=config.epochs,
        batch_size=config.batch_size,
        indices=indices,
        transform=transform,
        evaluate=errors,
        monitor="error",
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )

    some = seen[: config.likelihood_images]
    unlabelled = Batch(some, y=jnp.full(len(some), -1))
    quiet = semisupervised.m2(semisupervised.deterministic(joint), alpha=config.alpha)
    bound = evaluate.mean_loss(quiet, fitted.params, keys[4], unlabelled, batch_size=100)
    found = semisupervised.log_likelihood(
        joint, fitted.params, keys[5], some, particles=config.particles
    )
    by_bayes = found.log_pxy.argmax(axis=1) == test.y[: len(some)]
    guesses = jax.vmap(lambda x: joint.classifier.apply(fitted.params["classifier"], x).logits)(
        seen
    )
    alone_error = errors({"classifier": by_labels}, keys[6])["error"]
    summary = {
        "test_accuracy": 1 - float(fitted.history["eval/error"][-1]),
        "test_accuracy_labels_alone": 1 - alone_error,
        "labelled_images": len(known.y),
        "test_images": len(seen),
        "test_elbo_nats": bound["elbo"],
        "test_nll_nats": -float(found.log_px.mean()),
        "test_nll_particles": config.particles,
        "test_nll_images": len(some),
        "test_accuracy_by_bayes": float(np.mean(by_bayes)),  # argmax of p(y|x), on those images
        "classes_predicted": len(np.unique(np.argmax(guesses, axis=1))),  # fewer than all: collapse
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    summary["gain_points"] = 100 * (summary["test_accuracy"] + alone_error - 1)
    common.write_json(folder / "summary.json", summary)
    drawn = pictures(joint, fitted.params, keys[7], seen[:10])
    curves = {
        "test error of q(y|x)": fitted.history["eval/error"],
        "error on the labelled images": fitted.history["error"] / fitted.history["labelled"],
    }
    drawn["curves"] = plot.curves(curves, ylabel="share of images")
    common.save_figures(folder, drawn)
    common.report(folder, summary, "accuracies: shares in [0, 1]; nats per test image")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
