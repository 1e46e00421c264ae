"""VampPrior (Tomczak and Welling, 2018, arXiv:1705.07120) beside a mixture, a flow and N(0, I).

    python -m experiments.priors [preset] --priors standard mixture vamp --components K --seed S

One network is trained once per prior, on the same batches for as many epochs. With `--seeds N` and
`--sweep learning_rate=...` each prior trains all runs at once. Expected numbers and wall times:
experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from experiments import common
from experiments.common import Trained, Trial, figures, image_vae, variations
from vaejax import data, diagnostics, evaluate, flows, mixtures, plot, priors
from vaejax.model import Model
from vaejax.types import Batch, Key

Prior = Literal["standard", "mixture", "vamp", "flow"]


@dataclass(frozen=True)
class Config(variations.Training):
    priors: tuple[Prior, ...] = ("standard", "mixture", "vamp")  # each trains a model of its own
    components: int = 50  # of the mixture, and pseudo-inputs of the VampPrior
    layers: int = 4  # coupling flows of the flow prior
    latent: int = 10  # latent dimensions


DIGITS = Config()
PRESETS = {"digits": DIGITS, "mnist": replace(DIGITS, components=200, **variations.MNIST)}


def load(config: Config) -> tuple[Batch, Batch, dict[str, Model]]:
    """The images of both splits, and one network under every prior.

    The models are made here, since the VampPrior looks at the images that it starts from.
    """
    images, test = common.both_splits(config, "priors", binarised=True)
    base = variations.network(config, images.x)
    start = jax.vmap(partial(data.scale, jax.random.key(0)))(images.x[: config.components])
    make = {
        "standard": lambda: base,
        "mixture": lambda: priors.mixture_prior(base, config.components),
        "vamp": lambda: priors.vamp_prior(base, config.components, start=start),
        "flow": lambda: priors.flow_prior(
            base, flows.coupling(config.latent, layers=config.layers, hidden=(100,))
        ),
    }
    return images, test, {name: make[name]() for name in config.priors}


def build(config: Config, loaded: tuple[Batch, Batch, dict[str, Model]]) -> dict[str, Trial]:
    """One network under every prior, to be trained with the same keys."""
    *images, models = loaded
    return {name: variations.trial(config, images, model) for name, model in models.items()}


def measure(config: Config, images: Any, trained: dict[str, Trained]) -> Any:
    """The usual numbers, the units and components in use, and the gain over N(0, I)."""
    x = images[1].x
    numbers: dict[str, Any] = {"particles": config.particles, "epochs": config.epochs}
    found: dict[str, variations.Measured] = {}
    for name, one in trained.items():
        found[name] = variations.measured(config, one, x)
        key = keys_of(config)[1]
        units = diagnostics.active_units(one.model, one.params, key, x, transform=data.binarize)
        own = {**found[name].numbers, "active_units": units.active}
        if name in ("mixture", "vamp"):
            again = jax.random.clone(key)
            codes = evaluate.codes(one.model, one.params, again, x, transform=data.binarize)
            own["components_in_use"] = in_use(one.model.prior(one.params), codes)
        if name != "standard" and "standard" in found:
            own |= variations.margin(found[name].log_px, found["standard"].log_px)
        numbers |= {f"{name}_{number}": value for number, value in own.items()}
    return numbers, None


def in_use(pz: Any, codes: Any) -> float:
    """The components that codes come from, weighed: exp of the entropy of their shares."""
    share = np.asarray(mixtures.e_step(pz, codes).responsibilities, float).mean(axis=0)
    return float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-30)))))


def keys_of(config: Config) -> Key:
    """Keys of the samples and of the codes, the same for every prior."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))


def draw(config: Config, images: Any, trained: dict[str, Trained], _: None) -> dict[str, Any]:
    """Samples under every prior, the VampPrior's pseudo-inputs, and the ELBO in training."""
    if images[0].x.ndim != 4:
        return {}
    drawn = figures.samples(trained, keys_of(config)[0])
    if "vamp" in trained:
        inputs = priors.pseudo_inputs(trained["vamp"].params)[:64]
        title = "pseudo-inputs u_k of the VampPrior"
        drawn["pseudo_inputs"] = plot.images(inputs, title=title)
    curves = {name: one.history["elbo"] for name, one in trained.items()}
    return drawn | {"curves": plot.curves(curves, ylabel="ELBO in training, nats per image")}


def note(config: Config, _: dict[str, Any]) -> str:
    """What the numbers are."""
    return f"nats per test image; -log p(x) with K = {config.particles}; margin: over standard"


RECIPE = common.Recipe(
    "priors",
    load,
    build,
    measure,
    draw,
    note,
    smoke={**variations.SMALLEST, "components": 5, "latent": 4},
    swept={"learning_rate"},
    curve="elbo",
    labels=image_vae.LABELS | {"margin_nats": "gain in log p(x) over N(0, I), nats per test image"},
)


main = partial(common.main, RECIPE)
"""Train under every prior, measure each in the same way; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
