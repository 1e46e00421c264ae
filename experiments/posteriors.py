"""Posteriors q(z|x): diagonal, full covariance, planar flows (arXiv:1505.05770), IAF (1606.04934).

    python -m experiments.posteriors [preset] --posteriors diagonal iaf --planar-layers T --seed S

One network is trained once per posterior, on the same batches for as many epochs. With two latent
dimensions (`digits`) the clouds are drawn over the exact posterior p(z|x). Expected numbers and
wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run
from experiments.priors import SMALLEST, Trained, margin, network, trained
from vaejax import data, plot, posteriors, train
from vaejax.errors import at_least_one
from vaejax.model import Model, generate
from vaejax.types import Key, Params

Posterior = Literal["diagonal", "full_covariance", "planar", "iaf"]


@dataclass(frozen=True)
class Config(run.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    posteriors: tuple[Posterior, ...] = ("diagonal", "planar", "iaf")  # each trains its own model
    planar_layers: int = 8  # planar flows
    iaf_layers: int = 2  # inverse autoregressive flows
    iaf_hidden: tuple[int, ...] = (320,)  # units of each masked network
    hidden: tuple[int, ...] = (300, 300)  # relu units of the encoder's layers
    latent: int = 2  # latent dimensions
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
        DIGITS, dataset="mnist", latent=40, epochs=20, warmup_epochs=4, batch_size=100
    ),
}


def active_units(model: Model, params: Params, key: Key, x: Any, *, draws: int = 64) -> int:
    """Units with Var_x(E[z_u|x]) > 0.01, where the mean code E[z|x] has no closed form.

    The variance is estimated by the covariance over x `[n, ...]` of the averages of two halves of
    the draws, in which the posterior's own spread drops out.
    """

    def halves(one: Any, key: Key) -> Any:
        z = jax.vmap(model.encode(params, one).sample)(jax.random.split(key, draws))
        return z.reshape(2, draws // 2, -1).mean(axis=1)

    found = jax.jit(jax.vmap(halves))(jnp.asarray(x), jax.random.split(key, len(x)))
    means = np.asarray(found, float)
    a, b = (means - means.mean(axis=0)).transpose(1, 0, 2)
    return int(np.sum((a * b).mean(axis=0) > 1e-2))


def clouds(models: dict[str, tuple[Model, Params]], key: Key, x: Any) -> Any:
    """Draws of q(z|x) over the density p(z|x), for each model (rows) and image (columns)."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2.1 * len(x), 2.2 * len(models)), layout="constrained")
    axes = drawn.subplots(len(models), len(x), squeeze=False)
    side = jnp.linspace(-4.0, 4.0, 161)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    for row, (name, (model, params)) in zip(axes, models.items(), strict=True):

        def joint(z: Any, one: Any, model: Model = model, params: Params = params) -> Any:
            return model.decode(params, z).log_prob(one) + model.prior(params).log_prob(z)

        def cloud(one: Any, key: Key, model: Model = model, params: Params = params) -> Any:
            return jax.vmap(model.encode(params, one).sample)(jax.random.split(key, 400))

        density = jax.jit(jax.vmap(jax.vmap(joint, (0, None)), (None, 0)))(grid, x)
        z = jax.jit(jax.vmap(cloud))(x, jax.random.split(jax.random.clone(key), len(x)))
        density = np.asarray(jax.nn.softmax(density, axis=1)).reshape(-1, 161, 161)
        for i, axis in enumerate(row):
            axis.contourf(side, side, density[i] / density[i].max(), levels=6, cmap="Greys")
            axis.scatter(z[i, :, 0], z[i, :, 1], s=2, color="tab:red", alpha=0.4, linewidths=0)
            centre, wide = np.median(z[i], axis=0), 1.3 * max(np.ptp(z[i], axis=0).max() / 2, 0.2)
            axis.set(xlim=centre[0] + [-wide, wide], ylim=centre[1] + np.array([-wide, wide]))
            axis.set_aspect("equal")
            axis.tick_params(labelsize=6)
            axis.set_xlabel("z1" if row is axes[-1] else "", fontsize=8)
        row[0].set_ylabel(f"{name}\nz2", fontsize=9)
    drawn.suptitle("draws of q(z|x) (red) over p(z|x) (grey) of the same model; test images")
    return drawn


def main(config: Config) -> dict[str, Any]:
    """Train with every posterior, measure each in the same way; returns what summary.json holds."""
    if config.smoke:
        config = replace(config, hidden=(20,), iaf_hidden=(8,), planar_layers=2, **SMALLEST)
    at_least_one("posteriors", epochs=config.epochs)
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split).x
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    base = network(config, images)
    correlated = network(config, images, posterior="full_covariance")
    variations = {
        "diagonal": base,
        "full_covariance": correlated,
        "planar": posteriors.planar_posterior(base, config.latent, layers=config.planar_layers),
        "iaf": posteriors.iaf_posterior(
            base, config.latent, layers=config.iaf_layers, hidden=config.iaf_hidden
        ),
    }
    folder = run.open_folder(config, name=f"posteriors-{Path(config.dataset).stem}")
    own_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    seen_key, units_key, sample_key, cloud_key = jax.random.split(own_key, 4)
    seen = jax.vmap(data.binarize)(jax.random.split(seen_key, len(test)), test)[:2000]
    summary: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    found: dict[str, Trained] = {}
    drawn = {}
    for name in config.posteriors:
        found[name] = one = trained(name, variations[name], config, images, test, folder)
        units = active_units(one.model, one.params, jax.random.clone(units_key), seen)
        numbers = {**one.numbers, "active_units": units}
        if name != "diagonal" and "diagonal" in found:
            numbers |= margin(one.elbo, found["diagonal"].elbo)
        summary |= {f"{name}_{key}": value for key, value in numbers.items()}
        samples = jax.jit(jax.vmap(partial(generate, one.model, one.params)))(
            jax.random.split(jax.random.clone(sample_key), 64)
        )
        drawn[f"samples_{name}"] = samples.mean
    run.write_json(folder / "summary.json", summary)
    shown = "{}: samples z ~ p(z), mean of p(x|z)"
    pictures = {
        name: plot.images(x, title=shown.format(name.removeprefix("samples_")))
        for name, x in drawn.items()
        if images.ndim == 4
    }
    pictures["curves"] = plot.curves(
        {name: one.curve for name, one in found.items()},
        ylabel="ELBO in training, nats per image",
    )
    if config.latent == 2:
        models = {name: (one.model, one.params) for name, one in found.items()}
        pictures["clouds"] = clouds(models, cloud_key, seen[:6])
    run.save_figures(folder, pictures)
    note = f"nats per test image; -log p(x) with K = {config.particles}; margin: ELBO over diagonal"
    run.report(folder, summary, note)
    return summary


if __name__ == "__main__":
    run.command_line(main, PRESETS, __doc__ or "")
