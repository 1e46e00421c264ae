"""Conditional VAE p(x|c) (Sohn, Lee and Yan, 2015): images of a class, or filled in where hidden.

    python -m experiments.cvae [preset] --condition class|block --prior fixed|learned

Classes: samples of every class, judged by a classifier trained apart. Blocks: c is the image with
a square hidden at a place drawn anew, and its mask; several draws for one input, and their average.
A network p(x|c) without latents is trained beside it. All figures in nats per image (of the hidden
pixels alone, for blocks). Expected numbers and wall times: experiments/README.md.
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
from vaejax import (
    conditional,
    corruption,
    data,
    distributions,
    evaluate,
    heads,
    networks,
    objectives,
    plot,
    train,
)
from vaejax.batch import over_examples
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder, generate
from vaejax.types import Batch


@dataclass(frozen=True)
class Config(common.Options):
    # digits, mnist, fashion_mnist, tfds:NAME, or a .npz FILE of labelled grey images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on
    condition: Literal["class", "block"] = "class"  # c: the class, or what a hidden block leaves
    block: int = 5  # side of the hidden block, pixels
    prior: Literal["fixed", "learned"] = "fixed"  # N(0, I), or p(z|c) by a network
    hidden: tuple[int, ...] = (200,)  # units of the encoder's, decoder's and prior's layers
    latent: int = 8  # latent dimensions
    beta: float = 1.0  # weight of the KL in training; 1 is the bound, which is what is reported
    epochs: int = 200  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, falling to 0 along a cosine
    particles: int = 100  # importance samples per image for -log p(x|c)
    samples: int = 1000  # images to be recognised, as many of each class
    evaluate_every: int = 20  # epochs between evaluations on the test split
    checkpoint_every: int = 50  # epochs between checkpoints


DIGITS = Config()
MNIST = replace(
    DIGITS,
    dataset="mnist",
    block=16,
    hidden=(400,),
    latent=5,
    batch_size=128,
    epochs=20,
    learning_rate=1e-3,
    evaluate_every=5,
    checkpoint_every=5,
)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "digits_learned": replace(DIGITS, prior="learned"),
    "mnist_learned": replace(MNIST, prior="learned", beta=2.0),
    "digits_completion": replace(DIGITS, condition="block", prior="learned"),
    "mnist_completion": replace(MNIST, condition="block", prior="learned", latent=20, epochs=10),
}


def build(config: Config, shape: tuple[int, ...], mean: Any) -> tuple[Model, nn.Module]:
    """The model, and a network p(x|c) of the same decoder without latents."""
    layers = partial(networks.MLP, config.hidden)
    bernoulli = heads.Bernoulli(shape, bias_init=heads.logit_of(mean))
    decoder: nn.Module = nn.Sequential([layers(), bernoulli])
    if config.condition == "block":
        decoder = conditional.Completing(decoder)
    gaussian = heads.Normal(config.latent)
    standard = distributions.Normal(jnp.zeros(config.latent), jnp.ones(config.latent))
    prior = standard if config.prior == "fixed" else nn.Sequential([layers(), gaussian])
    return autoencoder(nn.Sequential([layers(), gaussian]), decoder, prior), decoder


def class_figures(
    config: Config, model: Model, params: Any, key: Any, classes: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """The share of samples that are recognised as their class, and a row of them for each."""
    check, error = common.judge(
        config.dataset, train_split=config.train_split, test_split=config.test_split
    )
    y = np.repeat(np.arange(classes), max(1, config.samples // classes))
    c = conditional.one_hot(y, classes)
    sample = jax.jit(jax.vmap(lambda key, c: generate(model, params, key, c).mean))
    means = np.asarray(sample(jax.random.split(key, len(y)), c))
    shown = means.reshape(classes, -1, *means.shape[1:])[:, :10]
    title = "samples of each class: z ~ p(z|c), mean of p(x|z, c)"
    figure = plot.images(
        shown.reshape(-1, *means.shape[1:]),
        columns=shown.shape[1],
        title=title,
        labels=[f"class {i}" for i in range(classes)],
    )
    numbers = {"samples_recognised": float(np.mean(check(means) == y)), "judge_error": error}
    return numbers, {"samples": figure}


def block_figures(
    model: Model, params: Any, key: Any, batch: Batch, draws: int = 6
) -> dict[str, Any]:
    """Rows of an image, what is seen of it, several completions, and the average of 100."""
    rows = []
    fill = jax.jit(partial(conditional.complete, model, draws=100))
    for i, one in enumerate(np.asarray(batch.x[:8])):
        seen, known = (np.asarray(part[i]) for part in batch.c)
        means = np.asarray(fill(params, jax.random.fold_in(key, i), one, known).mean)
        rows.append([one, np.where(known == 1, seen, 0.5), *means[:draws], means.mean(axis=0)])
    figure = plot.traversals(np.asarray(rows), labels=[f"image {i + 1}" for i in range(len(rows))])
    axis = figure.axes[0]
    names = ["x", "seen", *(f"draw {i + 1}" for i in range(draws)), "average"]
    axis.set_xticks(axis.get_xticks(), names)
    axis.set(title="completions: mean of p(x|z, c), z ~ p(z|c)", xlabel="", ylabel="test image")
    return {"completions": figure}


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            hidden=(16,),
            particles=4,
            samples=20,
            evaluate_every=2,
            checkpoint_every=2,
            train_split="train[:128]",
            test_split="test[:32]",
        )
    stored, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    at_least_one("cvae", epochs=config.epochs, particles=config.particles, samples=config.samples)
    train.shuffled(len(stored.x), config.batch_size)  # refuses a batch larger than the data
    if isinstance(stored.y, tuple) and config.condition == "class":
        raise wrong("cvae: --dataset", "no labels", "labelled images", "take --condition block")
    keys = jax.random.split(jax.random.key(config.seed), 8)
    hide = conditional.observed(corruption.erased_block(config.block))
    x = over_examples(data.binarize, keys[0], test.x)
    if config.condition == "class":
        classes = int(stored.y.max()) + 1
        images = Batch(stored.x, c=conditional.one_hot(stored.y, classes))
        batch = Batch(x, c=conditional.one_hot(test.y, classes))
    else:
        images, batch = Batch(stored.x), Batch(x, c=over_examples(hide, keys[1], x))
    mean = stored.x.mean(axis=0) / (255 if stored.x.dtype == np.uint8 else 1)
    model, plain = build(config, stored.x.shape[1:], mean)
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    params = {
        "model": model.init(keys[2], first.x, first.c),
        "plain": jax.jit(plain.init)(keys[3], first.c),
    }
    folder = common.open_folder(config, name=f"cvae-{config.condition}-{Path(config.dataset).stem}")

    elbo, likelihood = (
        objectives.elbo(model, beta=config.beta),
        objectives.maximum_likelihood(plain),
    )
    both = objectives.players(
        {  # each trained as if alone: Adam goes entry by entry
            "model": lambda params, *rest: elbo(params["model"], *rest),
            "plain": lambda params, *rest: likelihood(params["plain"], *rest),
        }
    )
    steps = config.epochs * (len(stored.x) // config.batch_size)
    fitted = common.fit(
        config,
        folder,
        both if config.condition == "class" else conditional.conditioned(both, hide),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        params,
        images,
        key=keys[4],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        evaluate=partial(evaluate.mean_loss, both, data=batch),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )

    trained = fitted.params["model"]
    parts = evaluate.elbo_terms(model, trained, keys[5], batch)
    importance = evaluate.log_likelihood(model, trained, keys[6], batch, particles=config.particles)
    summary = {
        "test_elbo_nats": float(parts["elbo"].mean()),
        "test_nll_nats": float(-importance.log_px.mean()),
        "test_nll_particles": config.particles,
        "test_ess_median": float(np.median(importance.ess)),
        "test_distortion_nats": float(parts["distortion"].mean()),
        "test_rate_nats": float(parts["rate"].mean()),
        "test_nll_without_latents_nats": -float(fitted.history["eval/log_px"][-1]),
    }
    if config.condition == "class":
        found, drawn = class_figures(config, model, trained, keys[7], classes)
        summary |= found
    else:
        summary["hidden_pixels"] = float(np.mean(np.sum(1 - batch.c[1], axis=(1, 2, 3))))
        drawn = block_figures(model, trained, keys[7], batch)
    summary |= {
        "posterior_collapsed": summary["test_rate_nats"] < 0.1,
        "test_images": len(test.x),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    common.write_json(folder / "summary.json", summary)
    curves = {"train": fitted.history["elbo"], "test": fitted.history["eval/elbo"]}
    drawn["curves"] = plot.curves(curves, ylabel="ELBO, nats per image")
    common.save_figures(folder, drawn)
    common.report(folder, summary, "nats per test image, a bound or estimate of -log p(x|c)")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
