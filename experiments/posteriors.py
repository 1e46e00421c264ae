"""Posteriors q(z|x): diagonal, full covariance, planar flows (arXiv:1505.05770), IAF (1606.04934).

    python -m experiments.posteriors [preset] --posteriors diagonal iaf --planar-layers T --seed S

One network is trained once per posterior, on the same batches for as many epochs. With two latent
dimensions (`digits`) the clouds are drawn over the exact posterior p(z|x). With `--seeds N` and
`--sweep learning_rate=...` each posterior trains all runs at once. Expected numbers and wall times:
experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.common import Trained, Trial, figures, image_vae, variations
from vaejax import data, plot, posteriors
from vaejax.model import Model
from vaejax.types import Batch, Key, Params

Posterior = Literal["diagonal", "full_covariance", "planar", "iaf"]


@dataclass(frozen=True)
class Config(variations.Training):
    posteriors: tuple[Posterior, ...] = ("diagonal", "planar", "iaf")  # each trains its own model
    planar_layers: int = 8  # planar flows
    iaf_layers: int = 2  # inverse autoregressive flows
    iaf_hidden: tuple[int, ...] = (320,)  # units of each masked network


DIGITS = Config()
PRESETS = {"digits": DIGITS, "mnist": replace(DIGITS, **variations.MNIST)}


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


def build(config: Config, images: tuple[Batch, Batch]) -> dict[str, Trial]:
    """One network with every posterior."""
    base = variations.network(config, images[0].x)
    correlated = variations.network(config, images[0].x, posterior="full_covariance")
    models = {
        "diagonal": base,
        "full_covariance": correlated,
        "planar": posteriors.planar_posterior(base, config.latent, layers=config.planar_layers),
        "iaf": posteriors.iaf_posterior(
            base, config.latent, layers=config.iaf_layers, hidden=config.iaf_hidden
        ),
    }
    return {name: variations.trial(config, images, models[name]) for name in config.posteriors}


def measure(config: Config, images: tuple[Batch, Batch], trained: dict[str, Trained]) -> Any:
    """The usual numbers, the units in use, and the gain in the ELBO over the diagonal."""
    x = images[1].x
    seen_key, units_key, *_ = keys_of(config)
    seen = jax.vmap(data.binarize)(jax.random.split(seen_key, len(x)), x)[:2000]
    numbers: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    found: dict[str, variations.Measured] = {}
    for name, one in trained.items():
        found[name] = variations.measured(config, one, x)
        units = active_units(one.model, one.params, jax.random.clone(units_key), seen)
        own = {**found[name].numbers, "active_units": units}
        if name != "diagonal" and "diagonal" in found:
            own |= variations.margin(found[name].elbo, found["diagonal"].elbo)
        numbers |= {f"{name}_{number}": value for number, value in own.items()}
    return numbers, seen[:6]


def keys_of(config: Config) -> Key:
    """Keys of the images, the units, the samples and the clouds, the same for every posterior."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 4)


def draw(config: Config, images: Any, trained: dict[str, Trained], seen: Any) -> dict[str, Any]:
    """Samples of every model, the ELBO in training, and clouds of q(z|x) over p(z|x)."""
    curves = {name: one.history["elbo"] for name, one in trained.items()}
    drawn = {"curves": plot.curves(curves, ylabel="ELBO in training, nats per image")}
    if images[0].x.ndim == 4:
        drawn |= figures.samples(trained, keys_of(config)[2])
    if config.latent == 2:
        models = {name: (one.model, one.params) for name, one in trained.items()}
        drawn["clouds"] = figures.clouds(models, keys_of(config)[3], seen)
    return drawn


def note(config: Config, _: dict[str, Any]) -> str:
    """What the numbers are."""
    k = config.particles
    return f"nats per test image; -log p(x) with K = {k}; margin: ELBO over diagonal"


load = partial(common.both_splits, recipe="posteriors", binarised=True)
SMOKE = {**variations.SMALLEST, "iaf_hidden": (8,), "planar_layers": 2}
LABELS = image_vae.LABELS | {"margin_nats": "gain over diagonal, nats per test image"}
RECIPE = common.Recipe(
    "posteriors", load, build, measure, draw, note, SMOKE, {"learning_rate"}, LABELS, curve="elbo"
)
main = partial(common.main, RECIPE)
"""Train with every posterior, measure each in the same way; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
