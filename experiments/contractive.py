"""Contractive autoencoders (Rifai et al., 2011, ICML) beside plain, decayed and denoising ones.

    python -m experiments.contractive [digits|mnist] [--methods ...] [--seeds N]

One sigmoid layer with tied weights and a Bernoulli likelihood of grey levels, trained by each
method from the same parameters on the same batches: how far the code moves with the input (mean
norm and spectrum of df/dx, saturation), what it keeps (reconstruction), and what a linear probe
with few labels finds in it. Expected numbers and wall times: experiments/README.md.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import common
from experiments.common import SOME_IMAGES, measures
from experiments.common.figures import jacobians
from vaejax import anomaly, autoencoders, contraction, data, evaluate, heads, representation, train
from vaejax.data.corruption import gaussian, masking
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder, tied
from vaejax.networks import kernels
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params

Method = Literal["plain", "decayed", "masking", "gaussian", "contractive"]
Rows = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Config(common.Splits):
    methods: tuple[Method, ...] = ("plain", "decayed", "masking", "gaussian", "contractive")
    units: int = 200  # of the sigmoid layer
    decay: float = 1e-3  # decayed: weight of the squared entries of the kernel
    nu: float = 0.3  # masking: probability that a pixel is zero
    noise: float = 0.3  # gaussian: standard deviation of the noise (white = 1)
    weight: float = 1.0  # contractive: weight of |df/dx|_F^2
    epochs: int = 100  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, which falls to 0 along a cosine
    labels: int = 200  # labelled training images of the linear probe, the first ones
    inverse_penalty: float = 1.0  # of the probe
    seeds: int = 3  # runs of every method, with seeds from the one below up
    seed: int = 0  # the first of them
    out: Path | None = None  # folder of the run; by default a new one under runs/
    resume: ClassVar[bool] = False  # minutes long: there is nothing to continue
    smoke: bool = False  # shrink everything to seconds, to see that it runs


MNIST = Config("mnist", "train[:10000]", epochs=20, labels=1000, seeds=5)
PRESETS = {
    "digits": Config(),
    "mnist": replace(MNIST, units=1000, nu=0.5, noise=0.5, weight=3.0),
}


def build(config: Config, mean: np.ndarray) -> Model:
    """The tied autoencoder of one layer; `mean`, in [0, 1], is where the decoder's biases start."""
    code = heads.Code(config.units, nn.sigmoid, kernel_init=nn.initializers.xavier_uniform())
    return tied(autoencoder(code, heads.Bernoulli(mean.shape, bias_init=heads.logit_of(mean))))


def loss_of(config: Config, model: Model, method: Method) -> Loss:
    """What each method minimises."""
    plain = autoencoders.reconstruction(model)
    denoising = partial(autoencoders.denoising, model)
    closed: Any = {"norm": contraction.closed_form, "weight": config.weight}
    return {
        "plain": lambda: plain,
        "decayed": lambda: decayed(plain, config.decay),
        "masking": lambda: denoising(corrupt=masking(config.nu)),
        "gaussian": lambda: denoising(corrupt=gaussian(config.noise)),
        "contractive": lambda: autoencoders.contractive(model, **closed),
    }[method]()


def decayed(loss: Loss, weight: float) -> Loss:
    """The loss and the squared entries of the encoder's kernels, `loss + weight |W|^2`."""

    def total(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        value, metrics = loss(params, key, batch, step)
        squares = sum(jnp.sum(W**2) for W in kernels(params["encoder"]).values())
        return value + weight * squares, metrics

    return total


def measured(config: Config, model: Model, params: Params, seen: Batch, test: Batch) -> Any:
    """Norm of the Jacobian, saturation, reconstruction and the probe's error on the test images."""
    of_test: Any = (model, params, jax.random.key(0), test.x)  # no draw is made
    squares = contraction.squared_norms(*of_test, norm=contraction.closed_form)
    encode = partial(evaluate.codes, model, params, jax.random.key(0))
    codes, test_codes = encode(seen.x[: config.labels]), encode(test.x)
    labelled = codes, seen.y[: config.labels], test_codes, test.y
    accuracy = representation.linear_probe(*labelled, inverse_penalty=config.inverse_penalty)
    return {
        "jacobian_norm": float(np.sqrt(squares).mean()),
        "squared_norm": float(squares.mean()),
        "saturation": contraction.saturation(test_codes),
        "reconstruction_nats": float(anomaly.reconstruction_error(*of_test).mean()),
        "error_percent": 100 * (1 - accuracy),
    }


def main(config: Config) -> dict[str, Any]:
    """Train by every method and seed, measure and draw; returns what summary.json holds."""
    config = common.shrunk(config, epochs=2, labels=100, units=10, **SOME_IMAGES)
    splits = common.both_splits(config, "contractive", labelled=True)
    if config.labels > len(splits[0].x):
        got, fix = config.labels, "lower it"
        raise wrong("contractive: --labels", got, f"at most {len(splits[0].x)}, the images", fix)
    seen, test = (part._replace(x=data.scale(jax.random.key(0), part.x)) for part in splits)
    folder = common.open_folder(config, name=f"contractive-{Path(config.dataset).stem}")
    model = build(config, np.asarray(seen.x.mean(axis=0)))
    steps = config.epochs * (len(seen.x) // config.batch_size)
    adam = common.falling_adam(config, len(seen.x))
    trained: dict[str, Params] = {}
    rows: Rows = {method: [] for method in config.methods}
    for method in config.methods:
        loss = loss_of(config, model, method)
        fit = jax.jit(train.make_train(loss, adam, steps=steps, batch_size=config.batch_size))
        for seed in range(config.seed, config.seed + config.seeds):
            init_key, fit_key = jax.random.split(jax.random.key(seed))
            with warnings.catch_warnings():  # an overcomplete plain one is here to be compared with
                warnings.filterwarnings("ignore", "reconstruction: the code has")
                state, _ = fit(fit_key, model.init(init_key, seen.x[0]), seen.x)
            rows[method].append(measured(config, model, state.params, seen, test))
            trained.setdefault(method, state.params)
            common.write_json(folder / "measurements.json", rows)
            print(f"{method}, seed {seed}:", *(f"{n} {v:.4g}" for n, v in rows[method][-1].items()))
    note = "nats per test image (Bernoulli, grey levels); sd over seeds"
    drawn = jacobians.draw(model, trained, test.x)
    return common.finish(folder, measures.summarise(rows), drawn, note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
