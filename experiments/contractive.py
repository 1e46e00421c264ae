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
import optax
from flax import linen as nn

from experiments import common
from vaejax import (
    anomaly,
    autoencoders,
    contraction,
    data,
    evaluate,
    heads,
    plot,
    representation,
    train,
)
from vaejax.data.corruption import gaussian, masking
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder, tied
from vaejax.networks import kernels
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params

Method = Literal["plain", "decayed", "masking", "gaussian", "contractive"]
Rows = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a labelled .npz FILE
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
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


PRESETS = {
    "digits": Config(),
    "mnist": Config(
        "mnist",
        "train[:10000]",
        units=1000,
        nu=0.5,
        noise=0.5,
        weight=3.0,
        epochs=20,
        labels=1000,
        seeds=5,
    ),
}


def build(config: Config, mean: np.ndarray) -> Model:
    """The tied autoencoder of one layer; `mean`, in [0, 1], is where the decoder's biases start."""
    code = heads.Code(config.units, nn.sigmoid, kernel_init=nn.initializers.xavier_uniform())
    return tied(autoencoder(code, heads.Bernoulli(mean.shape, bias_init=heads.logit_of(mean))))


def loss_of(config: Config, model: Model, method: Method) -> Loss:
    """What each method minimises."""
    plain = autoencoders.reconstruction(model)
    match method:
        case "decayed":
            return decayed(plain, config.decay)
        case "masking":
            return autoencoders.denoising(model, corrupt=masking(config.nu))
        case "gaussian":
            return autoencoders.denoising(model, corrupt=gaussian(config.noise))
        case "contractive":
            norm = contraction.closed_form
            return autoencoders.contractive(model, norm=norm, weight=config.weight)
    return plain


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


def summarise(rows: Rows) -> dict[str, Any]:
    """Mean and deviation over seeds of every measure, and contractive against plain."""
    table = {m: {n: np.array([row[n] for row in rows[m]]) for n in rows[m][0]} for m in rows}
    summary: dict[str, Any] = {}
    for method, measures in table.items():
        for name, values in measures.items():
            summary[f"{method}_{name}"] = float(values.mean())
            if len(values) > 1:
                summary[f"{method}_{name}_sd"] = float(values.std(ddof=1))
    if "plain" in table and "contractive" in table:
        plain, ours = table["plain"], table["contractive"]
        for name in ("jacobian_norm", "reconstruction_nats"):
            summary[f"plain_over_contractive_{name}"] = float(np.mean(plain[name] / ours[name]))
        for rival in sorted(set(table) - {"plain", "contractive"}):
            error = table[rival]["error_percent"]
            holds = (ours["error_percent"] <= error) & (error < plain["error_percent"])
            summary[f"seeds_in_order_{rival}"] = f"{holds.sum()} of {len(holds)}"
    return summary


def draw(model: Model, trained: dict[str, Params], x: Any) -> dict[str, Any]:
    """Spectra over 20 images, tangent directions at five, and the filters of the largest norms."""
    spectrum = jax.jit(jax.vmap(partial(contraction.singular_values, model), (None, 0)))
    tangents = jax.jit(jax.vmap(partial(contraction.tangents, model, count=7), (None, 0)))
    curves = plot.curves(
        {method: spectrum(params, x[:20]).mean(axis=0) for method, params in trained.items()},
        xlabel="index",
        ylabel="singular value of df/dx (white = 1)",
        title="mean spectrum over 20 test images",
    )
    curves.axes[0].set_yscale("log")
    shown, filters = [], []
    for params in trained.values():
        shown.append(np.concatenate([x[:5, None], tangents(params, x[:5])], axis=1))
        (W,) = (np.asarray(kernel).T for kernel in kernels(params["encoder"]).values())
        filters.append(W[np.argsort(-np.sum(W**2, axis=1))[:12]].reshape(-1, *x.shape[1:]))
    title = "test images, and the directions in which their codes change most"
    drawn = {
        f"tangents_{method}": plot.filters(
            rows.reshape(-1, *x.shape[1:]), columns=8, title=f"{method}: {title}"
        )
        for method, rows in zip(trained, shown, strict=True)
    }
    title, names = "filters of the largest norms", list(trained)
    rows = np.concatenate(filters)
    drawn["filters"] = plot.filters(rows, columns=len(filters[0]), labels=names, title=title)
    return {"spectrum": curves, **drawn}


def main(config: Config) -> dict[str, Any]:
    """Train by every method and seed, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            train_split="train[:200]",
            test_split="test[:50]",
            labels=100,
            units=10,
        )
    at_least_one("contractive", seeds=config.seeds, epochs=config.epochs, labels=config.labels)
    splits = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    scaled = partial(data.scale, jax.random.key(0))
    seen, test = (split._replace(x=scaled(split.x)) for split in splits)
    if isinstance(seen.y, tuple):
        raise wrong("contractive: --dataset", "no labels", "labels y", "give a .npz with x and y")
    folder = common.open_folder(config, name=f"contractive-{Path(config.dataset).stem}")
    model = build(config, np.asarray(seen.x.mean(axis=0)))
    steps = config.epochs * (len(seen.x) // config.batch_size)
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps or 1))
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
    summary = summarise(rows)
    common.write_json(folder / "summary.json", summary)
    common.save_figures(folder, draw(model, trained, test.x))
    common.report(folder, summary, "nats per test image (Bernoulli, grey levels); sd over seeds")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
