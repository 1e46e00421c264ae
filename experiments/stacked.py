"""Stacked autoencoders: greedy pretraining without labels, against the same network from scratch.

    python -m experiments.stacked [digits|mnist] [--level denoising|plain|contractive] --seeds 5

Three levels are trained one on the codes of the other on all training images, without labels, then
fine-tuned as a classifier with few labels. The same network starts from scratch with the same
labels, steps and choices: the learning rate and the epoch with the lowest validation error. Each
seed draws its labels, as many of each class, for both. Vincent et al., 2010, JMLR 11. Expected
numbers: experiments/README.md.
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
    autoencoders,
    contraction,
    corruption,
    data,
    evaluate,
    heads,
    networks,
    plot,
    stacked,
    train,
)
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder
from vaejax.types import Batch, Params


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"  # labelled images: digits, mnist, fashion_mnist, ...
    train_split: str = "train"  # images to pretrain on, of which few keep their labels
    test_split: str = "test"  # images to report on
    hidden: tuple[int, ...] = (200, 200, 200)  # units of each level's code, ReLU
    level: Literal["denoising", "plain", "contractive"] = "denoising"  # how each level is trained
    noise: float = 0.3  # denoising: probability that an entry of a level's x becomes zero
    weight: float = 0.1  # contractive: of the squared norm of the Jacobian
    epochs: int = 40  # passes over the training images for each level
    batch_size: int = 64  # images per step of pretraining
    learning_rate: float = 1e-3  # Adam's step size of pretraining, falling to 0 along a cosine
    labels: int = 100  # labelled training images, as many of each class
    valid: int = 300  # last training images, whose labels only choose the epoch and the rate
    fine_tuning_epochs: int = 60  # passes over the labelled images, for each start and rate
    fine_tuning_batch: int = 20  # labelled images per step
    fine_tuning_rates: tuple[float, ...] = (1e-3, 3e-3)  # Adam's step sizes to choose from
    seeds: int = 5  # repetitions: labels, initialisation and training
    seed: int = 0  # of the first repetition
    out: Path | None = None  # folder of the run; by default a new one under runs/
    resume: bool = False  # not for this experiment: a run is one piece
    smoke: bool = False  # shrink everything to seconds, to see that it runs


PRESETS = {
    "digits": Config(),
    "mnist": Config(
        "mnist",
        hidden=(500, 500, 500),
        epochs=8,
        batch_size=128,
        noise=0.5,
        labels=1000,
        valid=3000,
        fine_tuning_epochs=30,
        fine_tuning_batch=50,
    ),
}
HE = nn.initializers.he_normal()
STARTS = ("scratch", "pretrained")


def build(config: Config, shape: tuple[int, ...]) -> list[Model]:
    """One ReLU layer up and one layer down for each level: cross-entropy below, then squares."""
    shapes = [shape, *((width,) for width in config.hidden)]
    codes = [heads.Code(width, nn.relu, kernel_init=HE) for width in config.hidden]
    above = [heads.FixedNormal(below, 0.5**0.5) for below in shapes[1:-1]]
    decoders = [heads.Bernoulli(shape), *above]
    return [autoencoder(*pair) for pair in zip(codes, decoders, strict=True)]


def loss_of(config: Config) -> Any:
    """The loss of a level, as a function of its Model."""
    return {
        "plain": autoencoders.reconstruction,
        "denoising": partial(autoencoders.denoising, corrupt=corruption.masking(config.noise)),
        "contractive": partial(
            autoencoders.contractive, norm=contraction.closed_form, weight=config.weight
        ),
    }[config.level]


def drawn_labels(images: Batch, config: Config) -> Batch:
    """A balanced random set of labelled images; those kept for validation are not among them."""
    rng = np.random.default_rng(config.seed)
    y = images.y[: len(images.y) - config.valid]
    each = config.labels // len(np.unique(y))
    by_class = [rng.permutation(np.flatnonzero(y == label))[:each] for label in np.unique(y)]
    if each < 1 or min(map(len, by_class)) < each:
        got = f"{config.labels} of {len(by_class)} classes"
        expected = "1 or more of each, and no more than there are outside validation"
        raise wrong("stacked: --labels", got, expected, "change --labels or --valid")
    chosen = np.concatenate(by_class)
    return Batch(images.x[chosen], y=images.y[chosen])


def fine_tuned(config: Config, classify: Model, start: Params, labelled: Any, valid: Any) -> Any:
    """The fit with the lowest validation error over the learning rates, and that error."""
    loss = stacked.classification(classify)
    found = []
    for rate in config.fine_tuning_rates:
        fitted = train.fit(
            loss,
            optax.adam(rate),
            start,
            labelled,
            key=jax.random.key(config.seed),
            epochs=config.fine_tuning_epochs,
            batch_size=config.fine_tuning_batch,
            transform=data.scale,
            monitor="error",
            evaluate=partial(evaluate.mean_loss, loss, data=valid, transform=data.scale),
            evaluate_every=max(1, config.fine_tuning_epochs // 10),
            progress=False,
        )
        found.append((np.nanmin(fitted.history["eval/error"]), rate, fitted))
    return min(found, key=lambda one: one[0])


def repetition(config: Config, images: Batch, valid: Batch, test: Batch) -> tuple[dict, dict]:
    """One seed: numbers of both starts, and what the figures are drawn from."""
    labelled = drawn_labels(images, config)
    levels = build(config, images.x.shape[1:])
    classify = stacked.classifier(stacked.stack(levels), int(images.y.max()) + 1)
    pretrain_key, init_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    steps = config.epochs * (len(images.x) // config.batch_size)
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
    pretrained = stacked.pretrain(
        levels,
        pretrain_key,
        images.x,
        loss=loss_of(config),
        optimizer=adam,
        steps=steps,
        batch_size=config.batch_size,
        transform=data.scale,
    )
    scratch = classify.init(init_key, jnp.asarray(images.x[0], jnp.float32))
    row: dict[str, Any] = {"seed": config.seed}
    histories = {}
    for name, start in zip(STARTS, (scratch, scratch | {"model": pretrained.params}), strict=True):
        error, rate, fitted = fine_tuned(config, classify, start, labelled, valid)
        row[f"{name}_test_error"] = stacked.error_rate(
            classify, fitted.best.params, jax.random.clone(test_key), test, transform=data.scale
        )
        row |= {f"{name}_valid_error": float(error), f"{name}_rate": rate}
        histories[name] = fitted.history
    return row, {"levels": levels, "pretrained": pretrained, "fine_tuning": histories}


def deep_autoencoder(config: Config, kept: dict[str, Any], images: Any, test: Any) -> dict:
    """The stack's squared error on test images before and after it is fine-tuned to reconstruct."""
    deep, params = stacked.stack(kept["levels"]), kept["pretrained"].params
    steps = max(1, config.epochs // 3) * (len(images) // config.batch_size)
    fine_tune = train.make_train(
        autoencoders.denoising(deep, corrupt=corruption.masking(0.0)),  # a wide code, on purpose
        optax.adam(optax.cosine_decay_schedule(config.learning_rate / 3, steps)),
        steps=steps,
        batch_size=config.batch_size,
        transform=data.scale,
    )
    state, _ = jax.jit(fine_tune)(jax.random.key(config.seed), params, jnp.asarray(images))
    error = partial(evaluate.squared_error, deep, data=test, transform=data.scale)
    key = jax.random.key(config.seed)
    return {
        "pretrained_squared_error": float(error(params, key).mean()),
        "fine_tuned_squared_error": float(error(state.params, jax.random.clone(key)).mean()),
    }


def figures(config: Config, rows: list[dict[str, Any]], kept: dict[str, Any]) -> dict[str, Any]:
    """Errors by seed, filters of the first level, curves of pretraining and of fine-tuning."""
    errors = {name: [100 * row[f"{name}_test_error"] for row in rows] for name in STARTS}
    history = kept["pretrained"].history
    every = len(history[0]["loss"]) // config.epochs
    levels = {
        f"level {i + 1}": np.asarray(h["loss"]).reshape(config.epochs, every).mean(axis=1)
        for i, h in enumerate(history)
    }
    fine = {name: 100 * h["eval/error"] for name, h in kept["fine_tuning"].items()}
    seeds = [row["seed"] for row in rows]
    by_seed = plot.curves(
        errors,
        steps=seeds,
        title=f"test error with {config.labels} labels (dashed: mean)",
        xlabel="seed (of the labels and all else)",
        ylabel="test error, %",
    )
    (axis,) = by_seed.axes
    axis.set_xticks(seeds)
    for line, name, marker in zip(tuple(axis.lines), STARTS, "ox", strict=True):
        line.set(linestyle="", marker=marker, markersize=8)  # points: seeds have no order
        axis.axhline(float(np.mean(errors[name])), color=line.get_color(), linestyle="--")
    axis.legend(frameon=False)
    drawn = {
        "errors": by_seed,
        "pretraining": plot.curves(levels, title=f"pretraining, {config.level}, seed {seeds[0]}"),
        "fine_tuning": plot.curves(
            fine,
            title=f"fine-tuning with {config.labels} labels, seed {seeds[0]}",
            ylabel="validation error, %",
        ),
    }
    kernel = next(iter(networks.kernels(kept["pretrained"].params[0]["encoder"]).values()))
    shape = data.load(config.dataset, "test[:1]").x.shape[1:]
    filters = np.asarray(kernel).T.reshape(-1, *shape)[:64]
    title = f"filters of the first level, {config.level}"
    return drawn | {"filters": plot.filters(filters, title=title)}


def main(config: Config) -> dict[str, Any]:
    """Pretrain, fine-tune both starts for each seed, compare and draw; what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            fine_tuning_epochs=2,
            labels=20,
            valid=50,
            seeds=2,
            hidden=config.hidden[:2],
            train_split="train[:200]",
            test_split="test[:50]",
            fine_tuning_rates=(1e-3,),
        )
    counts = {"epochs": config.epochs, "labels": config.labels, "valid": config.valid}
    at_least_one("stacked", **counts, seeds=config.seeds, hidden=len(config.hidden))
    images, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    if isinstance(images.y, tuple):
        raise wrong("stacked: --dataset", "no labels", "labels y", "give a .npz with x and y")
    valid = jax.tree.map(lambda leaf: leaf[len(images.x) - config.valid :], images)
    folder = common.open_folder(config, name=f"stacked-{Path(config.dataset).stem}")
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}  # of the first seed, for the figures
    for seed in range(config.seed, config.seed + config.seeds):
        row, drawn_from = repetition(replace(config, seed=seed), images, valid, test)
        print(row, flush=True)
        rows.append(row)
        kept = kept or drawn_from
        common.write_json(folder / "seeds.json", rows)
    errors = {name: np.array([row[f"{name}_test_error"] for row in rows]) for name in STARTS}
    gain = errors["scratch"] - errors["pretrained"]
    summary: dict[str, Any] = {"labels": config.labels, "seeds": config.seeds}
    for name, values in {**errors, "gain": gain}.items():
        summary[f"{name}_test_error_mean"] = float(values.mean())
        summary[f"{name}_test_error_sd"] = float(values.std(ddof=min(1, len(values) - 1)))
    summary["seeds_won"] = int((gain > 0).sum())
    summary |= deep_autoencoder(config, kept, images.x, test.x)
    common.write_json(folder / "summary.json", summary)
    common.save_figures(folder, figures(config, rows, kept))
    common.report(
        folder, summary, "errors: shares of test images; sd over seeds; squared error per image"
    )
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
