"""VampPrior (Tomczak and Welling, 2018, arXiv:1705.07120) beside a mixture, a flow and N(0, I).

    python -m experiments.priors [preset] --priors standard mixture vamp --components K --seed S

One network is trained once per prior, on the same batches for as many epochs. Expected numbers and
wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments import run, vae
from vaejax import data, diagnostics, evaluate, flows, mixtures, objectives, plot, priors, train
from vaejax.errors import at_least_one
from vaejax.model import Model, generate
from vaejax.types import Params

Prior = Literal["standard", "mixture", "vamp", "flow"]


@dataclass(frozen=True)
class Config(run.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    priors: tuple[Prior, ...] = ("standard", "mixture", "vamp")  # each trains a model of its own
    components: int = 50  # of the mixture, and pseudo-inputs of the VampPrior
    layers: int = 4  # coupling flows of the flow prior
    hidden: tuple[int, ...] = (300, 300)  # relu units of the encoder's layers
    latent: int = 10  # latent dimensions
    epochs: int = 50  # passes over the training images, the step size falling along a cosine
    warmup_epochs: int = 5  # epochs over which the weight of the KL rises from 0
    batch_size: int = 50  # images per step
    learning_rate: float = 1e-3  # Adam's step size at the start
    particles: int = 200  # importance samples per test image for -log p(x)
    checkpoint_every: int = 5  # epochs between checkpoints


DIGITS = Config()
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(
        DIGITS,
        dataset="mnist",
        components=200,
        latent=40,
        epochs=20,
        warmup_epochs=4,
        batch_size=100,
    ),
}
SMALLEST: dict[str, Any] = {
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 16,
    "particles": 4,
    "train_split": "train[:64]",
    "test_split": "test[:32]",
}
COLLAPSED = 2.0  # nats of rate below which a code tells fewer than 8 kinds of image apart


class Trained(NamedTuple):
    """A model after training: its numbers on the test images, those of each `[n]`, the curve."""

    model: Model
    params: Params
    numbers: dict[str, float]
    elbo: Any
    log_px: Any
    curve: Any


def network(config: Any, images: Any, **options: Any) -> Model:
    """The VAE that all variations start from; `options`: of `vae.Config`."""
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    preset = replace(vae.PRESETS["mnist"], hidden=config.hidden, latent=config.latent, **options)
    return vae.build(preset, images.shape[1:], mean)


def trained(name: str, model: Model, config: Any, images: Any, test: Any, folder: Path) -> Trained:
    """One variation trained and measured; the same keys for all, so that differences are paired."""
    init_key, fit_key, elbo_key, test_key = jax.random.split(jax.random.key(config.seed), 4)
    steps = len(images) // config.batch_size
    warmup = optax.linear_schedule(0.0, 1.0, max(config.warmup_epochs * steps, 1))
    fitted = run.fit(
        config,
        folder / name,
        objectives.elbo(model, beta=warmup),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)),
        model.init(init_key, data.scale(init_key, images[0])),
        images,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        checkpoint_every=config.checkpoint_every,
    )
    terms = evaluate.elbo_terms(model, fitted.params, elbo_key, test, transform=data.binarize)
    likelihood = evaluate.log_likelihood(
        model, fitted.params, test_key, test, particles=config.particles, transform=data.binarize
    )
    numbers = {f"test_{key}_nats": float(value.mean()) for key, value in terms.items()}
    numbers |= {
        "test_nll_nats": -float(likelihood.log_px.mean()),
        "test_ess_median": float(np.median(likelihood.ess)),
        "collapsed": bool(numbers["test_rate_nats"] < COLLAPSED),
        "seconds_train": run.seconds(folder / name),
    }
    per_image = terms["elbo"], likelihood.log_px
    return Trained(model, fitted.params, numbers, *per_image, fitted.history["elbo"])


def margin(better: Any, base: Any) -> dict[str, float]:
    """Mean of the paired differences `[n]`, nats per image, and its standard error."""
    difference = np.asarray(better, float) - np.asarray(base, float)
    return {
        "margin_nats": difference.mean(),
        "margin_error_nats": difference.std(ddof=1) / len(difference) ** 0.5,
    }


def main(config: Config) -> dict[str, Any]:
    """Train under every prior, measure each in the same way; returns what summary.json holds."""
    if config.smoke:
        config = replace(config, components=5, hidden=(20,), latent=4, **SMALLEST)
    at_least_one("priors", epochs=config.epochs, components=config.components)
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    base = network(config, images)
    start = jax.vmap(partial(data.scale, jax.random.key(0)))(images[: config.components])
    variations = {
        "standard": lambda: base,
        "mixture": lambda: priors.mixture_prior(base, config.components),
        "vamp": lambda: priors.vamp_prior(base, config.components, start=start),
        "flow": lambda: priors.flow_prior(
            base, flows.coupling(config.latent, layers=config.layers, hidden=(100,))
        ),
    }
    folder = run.open_folder(config, name=f"priors-{Path(config.dataset).stem}")
    sample_key, code_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    summary: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    found: dict[str, Trained] = {}
    drawn: dict[str, Any] = {}
    for name in config.priors:
        found[name] = one = trained(name, variations[name](), config, images, test, folder)
        seen: dict[str, Any] = {"transform": data.binarize, "key": jax.random.clone(code_key)}
        units = diagnostics.active_units(one.model, one.params, data=test, **seen)
        numbers = {**one.numbers, "active_units": units.active}
        if name in ("mixture", "vamp"):
            codes = evaluate.codes(one.model, one.params, data=test, **seen)
            pz = one.model.prior(one.params)
            share = np.asarray(mixtures.e_step(pz, codes).responsibilities, float).mean(axis=0)
            entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)))
            numbers["components_in_use"] = float(np.exp(entropy))
        if name != "standard" and "standard" in found:
            numbers |= margin(one.log_px, found["standard"].log_px)
        summary |= {f"{name}_{key}": value for key, value in numbers.items()}
        samples = jax.jit(jax.vmap(partial(generate, one.model, one.params)))(
            jax.random.split(jax.random.clone(sample_key), 64)
        )
        drawn[f"samples_{name}"] = samples.mean
        if name == "vamp":
            drawn["pseudo_inputs"] = priors.pseudo_inputs(one.params)[:64]
    run.write_json(folder / "summary.json", summary)
    if images.ndim == 4:
        titles = {"pseudo_inputs": "pseudo-inputs u_k of the VampPrior"}
        shown = "{}: samples z ~ p(z), mean of p(x|z)"
        pictures = {
            name: plot.images(x, title=titles.get(name, shown.format(name.split("_")[-1])))
            for name, x in drawn.items()
        }
        pictures["curves"] = plot.curves(
            {name: one.curve for name, one in found.items()},
            ylabel="ELBO in training, nats per image",
        )
        run.save_figures(folder, pictures)
    note = f"nats per test image; -log p(x) with K = {config.particles}; margin: over standard"
    run.report(folder, summary, note)
    return summary


if __name__ == "__main__":
    run.command_line(main, PRESETS, __doc__ or "")
