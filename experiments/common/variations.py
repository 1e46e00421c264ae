"""One VAE of binarised images, trained in several ways with the same keys: paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.common import measures
from experiments.common.image_vae import Network, build
from experiments.common.images import FEW_IMAGES, Splits, mean_of
from experiments.common.options import SweepOptions
from experiments.common.recipe import Trained, Trial
from experiments.common.training import falling_adam
from vaejax import data, evaluate, objectives
from vaejax.model import Model
from vaejax.types import Batch, Init, Key, Loss, Params

__all__ = [
    "COLLAPSED",
    "MNIST",
    "SMALLEST",
    "Measured",
    "Training",
    "bounds",
    "by_objective",
    "keys_of_objectives",
    "margin",
    "measured",
    "network",
    "trial",
]

COLLAPSED = 2.0
"""Nats of rate below which a code tells fewer than 8 kinds of image apart."""

SMALLEST: dict[str, Any] = {
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 16,
    "particles": 4,
    "hidden": (20,),
    **FEW_IMAGES,
}
"""What `--smoke` makes of recipes that vary the prior or the posterior."""

MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "latent": 40,
    "epochs": 20,
    "warmup_epochs": 4,
    "batch_size": 100,
}
"""Their preset of that name."""


@dataclass(frozen=True)
class Training(Splits, SweepOptions):
    """Their options that have nothing to do with the prior or the posterior."""

    hidden: tuple[int, ...] = (300, 300)  # relu units of the encoder's layers
    latent: int = 2  # latent dimensions
    epochs: int = 50  # passes over the training images, the step size falling along a cosine
    warmup_epochs: int = 5  # epochs over which the weight of the KL rises from 0
    batch_size: int = 50  # images per step
    learning_rate: float = 1e-3  # Adam's step size at the start
    particles: int = 200  # importance samples per test image for -log p(x)
    checkpoint_every: int = 5  # epochs between checkpoints


class Measured(NamedTuple):
    """A variation's numbers on the test images, and those of each image `[n]`, nats."""

    numbers: dict[str, Any]
    elbo: np.ndarray
    log_px: np.ndarray


def network(config: Any, images: Any, **options: Any) -> Model:
    """The VAE that all variations start from; `options`: of `image_vae.Network`."""
    own = {"hidden": config.hidden, "latent": config.latent, "likelihood": "bernoulli"}
    return build(Network(**own, **options), images.shape[1:], mean_of(images))


def trial(config: Any, images: Sequence[Batch], model: Model) -> Trial:
    """One variation, to be trained by the ELBO; all of them get the same keys."""
    x = images[0].x
    init_key, fit_key, *_ = jax.random.split(jax.random.key(config.seed), 4)
    steps = len(x) // config.batch_size
    warmup = optax.linear_schedule(0.0, 1.0, max(config.warmup_epochs * steps, 1))
    return Trial(
        model,
        lambda: model.init(init_key, data.scale(jax.random.clone(init_key), x[0])),
        objectives.elbo(model, beta=warmup),
        falling_adam(config, len(x)),
        x,
        fit_key,
        data.binarize,
    )


def measured(config: Any, one: Trained, x: Any) -> Measured:
    """The ELBO, its parts and -log p(x) of binarised test images; the same keys for all."""
    *_, elbo_key, test_key = jax.random.split(jax.random.key(config.seed), 4)
    terms = evaluate.elbo_terms(one.model, one.params, elbo_key, x, transform=data.binarize)
    likelihood = evaluate.log_likelihood(
        one.model, one.params, test_key, x, particles=config.particles, transform=data.binarize
    )
    numbers = {f"test_{key}_nats": float(value.mean()) for key, value in terms.items()}
    numbers |= {
        "test_nll_nats": -float(likelihood.log_px.mean()),
        "test_ess_median": float(np.median(likelihood.ess)),
        "collapsed": bool(numbers["test_rate_nats"] < COLLAPSED),
        "seconds_train": one.seconds,
    }
    numbers |= measures.bits(numbers["test_nll_nats"], x)
    return Measured(numbers, terms["elbo"], likelihood.log_px)


def margin(better: Any, base: Any) -> dict[str, float]:
    """Mean of the paired differences `[n]`, nats per image, and its standard error."""
    found = evaluate.compare(better, base)
    return {"margin_nats": found.difference, "margin_error_nats": found.se}


def by_objective(
    config: Any,
    images: tuple[Batch, Batch],
    model: Model,
    init: Init,
    losses: Mapping[str, Loss],
    optimizer: optax.GradientTransformation,
) -> dict[str, Trial]:
    """One model of binarised images, to be trained by each of `config.objectives`.

    All get the same parameters at the start and the same keys, `keys_of_objectives`: their
    differences are paired.

    Args:
      config: with `objectives`, `particles`, `evaluate_every`, `seed`.
      images: both splits; the test images are judged by the importance-weighted bound.
      model, init: the model, and its `init`, jitted or not.
      losses: by name.
      optimizer: of every objective.
    """
    x, test = (part.x for part in images)
    init_key, fit_key, *_ = keys_of_objectives(config)

    @cache
    def start() -> Params:
        return init(init_key, data.scale(jax.random.clone(init_key), x[0]))

    return {
        name: Trial(
            model,
            start,
            losses[name],
            optimizer,
            x,
            jax.random.clone(fit_key),
            data.binarize,
            test=test,
            yardstick=objectives.iwae(model, particles=config.particles),
            checkpoint_every=config.evaluate_every,
        )
        for name in config.objectives
    }


def keys_of_objectives(config: Any) -> Key:
    """Keys of the start, the training, the numbers and the samples; the same for each objective."""
    return jax.random.split(jax.random.key(config.seed), 4)


def bounds(config: Any, one: Trained, x: Any) -> dict[str, float]:
    """The bound and the ELBO after the last epoch, and -log p(x) of binarised images.

    Args:
      config: with `seed` and `test_particles`, the importance samples per image.
      one: a trained Model, whose history has the bound with K draws on the test images.
      x: test images.
    Returns:
      Means over the images, nats; the median of the effective sample size; seconds of training.
    """
    found = evaluate.log_likelihood(
        one.model,
        one.params,
        keys_of_objectives(config)[2],
        x,
        particles=config.test_particles,
        transform=data.binarize,
    )
    nats = -float(found.log_px.mean())
    return {
        "test_nll_nats": nats,
        **measures.bits(nats, x),
        "test_ess_median": float(np.median(found.ess)),
        "test_bound_nats": float(one.history["eval/bound"][-1]),
        "test_elbo_nats": float(one.history["eval/elbo"][-1]),
        "seconds_train": one.seconds,
    }
