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
import optax
from flax import linen as nn

from experiments import common
from experiments.common.figures import starts
from experiments.common.figures.starts import STARTS
from experiments.common.fine_tuning import compared, deep_autoencoder, fine_tuned
from experiments.common.images import drawn_labels
from vaejax import autoencoders, contraction, corruption, data, heads, stacked
from vaejax.errors import at_least_one
from vaejax.model import Model, autoencoder
from vaejax.types import Batch


@dataclass(frozen=True)
class Config(common.Splits):
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


MNIST = Config("mnist", labels=1000, valid=3000, fine_tuning_epochs=30, fine_tuning_batch=50)
PRESETS = {
    "digits": Config(),
    "mnist": replace(MNIST, hidden=(500, 500, 500), noise=0.5, epochs=8, batch_size=128),
}


def build(config: Config, shape: tuple[int, ...]) -> list[Model]:
    """One ReLU layer up and one layer down for each level: cross-entropy below, then squares."""
    shapes = [shape, *((width,) for width in config.hidden)]
    codes = [
        heads.Code(width, nn.relu, kernel_init=nn.initializers.he_normal())
        for width in config.hidden
    ]
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


def repetition(config: Config, images: Batch, valid: Batch, test: Batch) -> tuple[dict, dict]:
    """One seed: numbers of both starts, and what the figures are drawn from."""
    labelled = drawn_labels(images, config.labels, config.valid, config.seed)
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


SMOKE: Any = {"epochs": 2, "fine_tuning_epochs": 2, "labels": 20, "valid": 50, "seeds": 2}
SMOKE |= {"fine_tuning_rates": (1e-3,), "fine_tuning_batch": 20, **common.SOME_IMAGES}


def main(config: Config) -> dict[str, Any]:
    """Pretrain, fine-tune both starts for each seed, compare and draw; what summary.json holds."""
    config = common.shrunk(config, **SMOKE, hidden=config.hidden[:2])
    at_least_one("stacked", hidden=len(config.hidden))
    images, test = common.both_splits(config, "stacked", labelled=True)
    valid = jax.tree.map(lambda leaf: leaf[len(images.x) - config.valid :], images)
    common.check_batch(config, len(images.x))
    drawn_labels(images, config.labels, config.valid, config.seed)  # checks
    folder = common.open_folder(config, name=f"stacked-{Path(config.dataset).stem}")
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}  # of the first seed, for the figures
    for seed in range(config.seed, config.seed + config.seeds):
        row, drawn_from = repetition(replace(config, seed=seed), images, valid, test)
        print(row, flush=True)
        rows.append(row)
        kept = kept or drawn_from
        common.write_json(folder / "seeds.json", rows)
    summary = {"labels": config.labels, "seeds": config.seeds, **compared(rows)}
    summary |= deep_autoencoder(config, kept, images.x, test.x)
    note = "errors: shares of test images; sd over seeds; squared error per image"
    return common.finish(folder, summary, starts.draw(config, rows, kept), note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
