"""Two layers of latent variables (Burda et al., 2016, arXiv:1509.00519), by the ELBO and by IWAE.

    python -m experiments.hierarchical [preset] --particles K --objectives elbo iwae --seed S

h1 has 100 units behind 200-200, h2 has 50 behind 100-100, tanh throughout: q(h1|x) q(h2|h1), and
p(h2) p(h1|h2) p(x|h1). One network is trained once per objective, from the same parameters, on the
same batches. A top layer that says nothing, as the ELBO may leave it, is reported as collapsed.
Expected numbers and wall times: experiments/README.md. All figures in nats per image.
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

from experiments import run
from vaejax import data, evaluate, heads, hierarchical, networks, objectives, plot, train
from vaejax.distributions import Normal
from vaejax.model import Model, autoencoder, generate

Objective = Literal["elbo", "iwae"]


@dataclass(frozen=True)
class Config(run.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    objectives: tuple[Objective, ...] = ("elbo", "iwae")  # each trains a model of its own
    particles: int = 5  # K: draws of z per image and step, for either objective
    hidden: tuple[int, int] = (200, 100)  # tanh units of the two hidden layers below and above h1
    latent: tuple[int, int] = (100, 50)  # units of h1 and h2
    epochs: int = 100  # passes over the training images, the step size falling along a cosine
    batch_size: int = 20  # images per step
    learning_rate: float = 1e-3  # Adam's step size at the start
    test_particles: int = 200  # importance samples per test image for -log p(x)
    evaluate_every: int = 5  # epochs between evaluations of the bound on the test split


DIGITS = Config()
PRESETS = {
    "digits": DIGITS,
    "mnist": replace(DIGITS, dataset="mnist", epochs=20, batch_size=50),
}


def build(config: Config, shape: tuple[int, ...], mean: Any) -> Model:
    """The model for images of `shape`; `mean`, in [0, 1], is where the pixels' biases start."""

    def network(width: int, head: nn.Module) -> nn.Module:
        xavier = nn.initializers.xavier_uniform()
        return nn.Sequential([networks.MLP((width, width), nn.tanh, kernel_init=xavier), head])

    (below, above), (h1, h2) = config.hidden, config.latent
    pixels = heads.Bernoulli(shape, bias_init=heads.logit_of(mean))
    return hierarchical.layers(
        autoencoder(network(below, heads.Normal(h1)), network(below, pixels)),
        encoders=[network(above, heads.Normal(h2))],
        decoders=[network(above, heads.Normal(h1))],
        prior=Normal(jnp.zeros(h2), jnp.ones(h2)),
    )


def main(config: Config) -> dict[str, Any]:
    """Train by either objective, measure both in the same way; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=1,
            batch_size=16,
            particles=2,
            test_particles=4,
            hidden=(16, 8),
            latent=(6, 3),
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    init_key, fit_key, test_key, sample_key = jax.random.split(jax.random.key(config.seed), 4)
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    mean = images.mean(axis=0) / (255 if images.dtype == np.uint8 else 1)
    model = build(config, images.shape[1:], mean)
    params = jax.jit(model.init)(init_key, data.scale(init_key, images[0]))
    yardstick = objectives.iwae(model, particles=config.particles)
    losses = {"elbo": objectives.elbo(model, samples=config.particles), "iwae": yardstick}
    cosine = optax.cosine_decay_schedule(
        config.learning_rate, config.epochs * (len(images) // config.batch_size)
    )
    folder = run.open_folder(config, name=f"hierarchical-{Path(config.dataset).stem}")

    summary: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    curves: dict[str, Any] = {}
    variances: dict[str, np.ndarray] = {}
    drawn: dict[str, Any] = {}
    many = jax.jit(jax.vmap(partial(generate, model), (None, 0)))
    for name in config.objectives:
        # Both objectives get the same keys on purpose: their differences are paired.
        fitted = run.fit(
            config,
            folder / name,
            losses[name],
            optax.adam(cosine, eps=1e-4),
            params,
            images,
            key=jax.random.clone(fit_key),
            epochs=config.epochs,
            batch_size=config.batch_size,
            transform=data.binarize,
            evaluate=partial(evaluate.mean_loss, yardstick, data=test, transform=data.binarize),
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.evaluate_every,
        )
        likelihood = evaluate.log_likelihood(
            model,
            fitted.params,
            jax.random.clone(test_key),
            test,
            particles=config.test_particles,
            transform=data.binarize,
        )
        units = hierarchical.active_units(
            model, fitted.params, jax.random.clone(test_key), test, transform=data.binarize
        )
        summary |= {
            f"{name}_test_nll_nats": -float(likelihood.log_px.mean()),
            f"{name}_test_nll_particles": config.test_particles,
            f"{name}_test_ess_median": float(np.median(likelihood.ess)),
            f"{name}_test_bound_nats": float(fitted.history["eval/bound"][-1]),
            f"{name}_test_elbo_nats": float(fitted.history["eval/elbo"][-1]),
            f"{name}_active_units": [layer.active for layer in units],
            f"{name}_collapsed_layers": [i for i, u in enumerate(units, 1) if not u.active],
            f"{name}_seconds_train": run.seconds(folder / name),
        }
        curves[name] = fitted.history["eval/bound"]
        variances |= {f"{name}, h{i}": layer.variance for i, layer in enumerate(units, 1)}
        sample_keys = jax.random.split(jax.random.clone(sample_key), 64)
        means = many(fitted.params, sample_keys).mean
        if images.ndim == 4 and images.shape[-1] in (1, 3):
            title = f"trained by {name}: mean of p(x|h1)"
            drawn[f"samples_{name}"] = plot.images(means, title=title)
    title = f"test bound with K = {config.particles}"
    drawn["bounds"] = plot.curves(curves, ylabel="nats per test image", title=title)
    drawn["active_units"] = units_figure(variances)
    run.save_figures(folder, drawn)
    run.write_json(folder / "summary.json", summary)
    run.report(folder, summary, "nats per test image, binarised anew at every look")
    return summary


def units_figure(variances: dict[str, np.ndarray]) -> Any:
    """A_u of every unit, largest first, for every layer and objective; at least 1e-5."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    labels = {"xlabel": "unit, by its activity", "ylabel": "A_u = Var_x(E_q[u|x])"}
    axis = figure.add_subplot(yscale="log", title="activity of each latent unit", **labels)
    for name, values in variances.items():
        shown = np.maximum(np.sort(values)[::-1], 1e-5)
        axis.plot(np.arange(1, len(shown) + 1), shown, marker=".", label=name)
    axis.axhline(1e-2, color="grey", linestyle="--", linewidth=1, label="active: above 0.01")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run.command_line(main, PRESETS, __doc__ or "")
