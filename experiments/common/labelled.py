"""Few labelled images among many: the known labels, a network that a class joins, pictures."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import conditions
from experiments.common.image_vae import standard_normal, transform_for
from experiments.common.images import both_splits, mean_of
from experiments.common.training import keys
from vaejax import heads, networks, semisupervised, stacked, train
from vaejax.batch import over_examples
from vaejax.distributions import Categorical
from vaejax.errors import wrong
from vaejax.model import autoencoder, generate
from vaejax.types import Array, Batch, Key, Params, Transform

__all__ = [
    "Images",
    "Joined",
    "classes_predicted",
    "errors",
    "joint_of",
    "load",
    "partly_labelled",
    "pictures",
]


class Joined(nn.Module):
    """Dense layers of x, or of z, which a class joins as a vector of its own after the first layer.

    The first layer's work on x then serves every class. The weights of the class start at size 1.
    With the size that one input in many gets, what z says would drown the class at the start.
    """

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        first, *rest = self.hidden
        own = nn.Dense(first, use_bias=False, kernel_init=nn.initializers.normal(1.0))(c)
        return networks.MLP(rest)(nn.relu(nn.Dense(first)(jnp.ravel(x)) + own))


def joint_of(config: Any, shape: tuple[int, ...], mean: Any, classes: int) -> semisupervised.Joint:
    """p(y) p(z) p(x|z, y) with q(z|x, y), and q(y|x).

    Args:
      config: of experiments.semisupervised.
      shape: of an image.
      mean: the mean image in [0, 1], where the biases of binary pixels start.
      classes: how many there are.
    """
    likelihood = {
        "bernoulli": lambda: heads.Bernoulli(shape, bias_init=heads.logit_of(mean)),
        "fixed_normal": lambda: heads.FixedNormal(shape, config.scale),
    }[config.likelihood]()
    fixed = config.prior == "fixed"
    prior = standard_normal(config.latent) if fixed else heads.Normal(config.latent)
    model = autoencoder(
        nn.Sequential([Joined(config.hidden), heads.Normal(config.latent)]),
        nn.Sequential([Joined(config.hidden), likelihood]),
        prior,
    )
    features = networks.MLP(config.hidden, dropout=config.dropout)
    classifier = nn.Sequential([features, heads.Categorical((), classes)])
    return semisupervised.Joint(model, classifier, Categorical(jnp.zeros(classes)))


class Images(NamedTuple):
    """Images of which few are labelled, and the start of M2, whose classifier knows those few.

    Args:
      train: stored images; y is -1 where the label is not known.
      test: test images as the model sees them, with their labels.
      joint: the networks.
      start: parameters, with the classifier trained on the labels alone.
      transform: stored images to what the model sees.
    """

    train: Batch
    test: Batch
    joint: semisupervised.Joint
    start: Params
    transform: Transform


def partly_labelled(y: Any, per_class: int, seed: int) -> np.ndarray:
    """The labels of `per_class` examples of each class, chosen at random, and -1 for all others."""
    rng = np.random.default_rng(seed)
    known = np.full_like(y, -1)
    for label in np.unique(y):
        places = np.flatnonzero(y == label)
        if len(places) < per_class:
            got, fix = f"{len(places)} images of class {label}", "lower --labels_per_class"
            raise wrong("semisupervised: --dataset", got, f"{per_class} or more", fix)
        known[rng.choice(places, per_class, replace=False)] = label
    return known


def load(config: Any) -> Images:
    """Images and labels, the networks, and the classifier that is trained on the labels alone.

    `config`: of experiments.semisupervised.
    """
    stored, test = both_splits(
        config,
        "semisupervised",
        labelled=True,
        binarised=config.likelihood == "bernoulli",
    )
    images = Batch(stored.x, y=partly_labelled(stored.y, config.labels_per_class, config.seed))
    semisupervised.labelled_ratio(images.y, config.batch_size, labelled=config.labelled)  # checks
    data_key, init_key, alone_key, *_ = keys(config, 8)
    transform = transform_for(config, stored.x)
    seen = over_examples(transform, data_key, test.x)
    joint = joint_of(config, stored.x.shape[1:], mean_of(stored.x), int(stored.y.max()) + 1)
    params = joint.init(init_key, seen[0])
    known = jax.tree.map(lambda leaf: jnp.asarray(leaf[images.y != -1]), images)
    alone = train.make_train(
        stacked.classification(semisupervised.discriminative(joint.classifier)),
        optax.adam(config.learning_rate),
        steps=config.alone_steps,
        batch_size=min(len(known.y), config.batch_size),
        transform=transform,
    )
    by_labels = jax.jit(alone)(alone_key, params["classifier"], known)[0].params
    # From chance, the bound of a model that knows no class yet would teach its classifier nonsense.
    start = {**params, "classifier": by_labels}
    return Images(images, Batch(seen, y=test.y), joint, start, transform)


def errors(images: Images, params: Params, key: Key) -> dict[str, float]:
    """The share of test images whose class q(y|x) gets wrong."""
    classifier = semisupervised.discriminative(images.joint.classifier)
    return {"error": stacked.error_rate(classifier, params["classifier"], key, images.test)}


def classes_predicted(joint: semisupervised.Joint, params: Params, x: Any) -> int:
    """How many classes q(y|x) names for images `[n, ...]`; fewer than all is a collapse."""
    logits = jax.vmap(lambda x: joint.classifier.apply(params["classifier"], x).logits)(x)
    return len(np.unique(np.argmax(logits, axis=1)))


def pictures(joint: semisupervised.Joint, params: Params, key: Key, x: Any) -> dict[str, Any]:
    """Samples of every class from the same codes; codes of images decoded under every class.

    Args:
      joint, params: the trained networks.
      key: of the samples.
      x: images `[n, ...]` as the model sees them.
    """
    model, own = joint.model, params["model"]
    under_all = jax.jit(
        jax.vmap(lambda z: jax.vmap(lambda c: model.decode(own, z, c).mean)(joint.classes))
    )
    sample = jax.vmap(lambda key, c: generate(model, own, key, c).mean, (0, None))
    keys = jax.random.split(key, 10)  # the same noise for every class
    samples = np.asarray(jax.jit(jax.vmap(sample, (None, 0)))(keys, joint.classes))

    def code(x: Array) -> Array:
        y = jnp.argmax(joint.classifier.apply(params["classifier"], x).logits)
        return model.encode(own, x, joint.classes[y]).mean

    analogies = np.asarray(under_all(jax.jit(jax.vmap(code))(x)))
    title = "samples: mean of p(x|z, y), a column of the same noise"
    return {
        "samples": conditions.class_rows(samples, title),
        "analogies": conditions.under_every_class(np.asarray(x), analogies),
    }
