"""What a VAE's codes know: probes and neighbours, the latent plane, directions of the stroke.

    python -m experiments.representation [digits|mnist|burda] [--trained DIR] [--strength A]

A linear probe and k nearest neighbours on posterior means, against pixels and as many principal
components; and the directions thin-to-thick and left-to-right-leaning (difference of mean codes of
the training images with the largest and the smallest measure of their class), added to the codes of
test images and decoded. `--seeds N` trains many at once. Expected numbers: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import common, vae
from experiments.common import Row, Trained, Trial, directions, image_vae, measures
from vaejax import objectives, plot, representation
from vaejax.errors import wrong

MEASURES = {"thickness": representation.thickness, "slant": representation.slant}
UNITS = {"thickness": "pixels", "slant": "degrees"}


@dataclass(frozen=True)
class Config(common.SweepOptions):
    preset: str = "digits_density"  # of experiments.vae: network, likelihood, batch size, Adam
    dataset: str = "digits"  # as for experiments.vae; grey images
    train_split: str = "train"  # images to train and to fit probes and directions on
    test_split: str = "test"  # images to report on
    epochs: int = 100  # passes over the training images
    trained: Path | None = None  # folder of a run of experiments.vae with that preset, to read
    neighbours: int = 5  # k of the nearest neighbours
    share: float = 0.1  # of a class's training images in each of the two groups of a direction
    strength: float = 1.0  # largest multiple of a direction that is added to a code
    steps: int = 7  # multiples from -strength to strength


PRESETS = {
    "digits": Config(),
    "mnist": Config("mnist", "mnist", epochs=20),
    "burda": Config("burda", "mnist", epochs=80),
}


def load(config: Config) -> tuple[image_vae.Images, np.ndarray, np.ndarray]:
    """The images, checked, and both splits in grey levels.

    Grey levels for all: the expectation of what a Bernoulli model saw, and what pixels give.
    """
    if config.preset not in vae.PRESETS:
        expected, fix = str(list(vae.PRESETS)), "name one of them"
        raise wrong("representation: --preset", repr(config.preset), expected, fix)
    images, test = common.both_splits(config, "representation")
    if images.x.ndim != 4 or images.x.shape[-1] != 1 or isinstance(images.y, tuple):
        got, fix = f"x {images.x.shape}", "choose digits, mnist or fashion_mnist"
        raise wrong("representation: --dataset", got, "labelled grey images", fix)
    seen = image_vae.seen_as(vae.PRESETS[config.preset], images, test, common.keys(config, 3)[0])
    return seen, common.scaled(images), common.scaled(test)


def trial(config: Config, loaded: Any) -> Trial:
    """The preset's model, to be trained here or read from a run of experiments.vae."""
    images, preset = loaded[0], vae.PRESETS[config.preset]
    _, init_key, fit_key = common.keys(config, 3)
    x = images.train.x
    model = image_vae.build(replace(preset, levels=images.levels), x.shape[1:], images.mean)
    steps = config.epochs * (len(x) // preset.batch_size)
    falling = optax.cosine_decay_schedule(preset.learning_rate, steps or 1)
    return Trial(
        model,
        partial(model.init, init_key, images.first),
        objectives.elbo(model),
        optax.adam(falling, eps=preset.adam_epsilon),
        x,
        fit_key,
        images.transform,
        batch_size=preset.batch_size,
        checkpoint_every=10,
        ready=common.stored("--trained", config.trained and config.trained / "checkpoints"),
    )


def measure(config: Config, loaded: Any, one: Trained) -> tuple[Row, Any]:
    """Probes and neighbours, and what changes along the directions of the stroke."""
    images, x, test_x = loaded
    y, test_y = images.train.y, images.test.y
    encode = jax.jit(jax.vmap(lambda x: one.model.encode(one.params, x).mean))
    decode = jax.jit(jax.vmap(lambda z: one.model.decode(one.params, z).mean))
    codes, test_codes = (
        np.concatenate([encode(part[i : i + 1000]) for i in range(0, len(part), 1000)])
        for part in (x, test_x)
    )
    pca = representation.principal_components(x, test_x, size=codes.shape[1])
    numbers: Row = {"latent": codes.shape[1], "test_images": len(test_x)}
    sets = {"codes": (codes, test_codes), "pixels": (x, test_x), "pca": pca}
    for name, (part, test_part) in sets.items():
        found = measures.probed(part, y, test_part, test_y, neighbours=config.neighbours)
        numbers[f"probe_accuracy_{name}"], numbers[f"knn_accuracy_{name}"] = found
    multiples = np.linspace(-config.strength, config.strength, config.steps)
    decoded = {}
    for name, of in MEASURES.items():
        top, bottom = directions.extremes_within_classes(of(x), y, config.share)
        step = representation.direction(codes[top], codes[bottom])
        decoded[name], own = directions.along(decode, test_codes[:1000], step, multiples, of)
        numbers |= {f"{name}_{key}": value for key, value in own.items()}
    return numbers, (numbers, test_codes, multiples, decoded)


def draw(config: Config, loaded: Any, one: Trained, kept: Any) -> dict[str, Any]:
    """The latent plane, and images along the directions."""
    numbers, test_codes, multiples, decoded = kept
    drawn = {"latent": plot.latent(test_codes[:5000], loaded[0].test.y[:5000])}
    for name, unit in UNITS.items():
        values = numbers[f"{name}_mean_along"]
        drawn |= directions.draw(name, unit, decoded[name], multiples, values)
    return drawn


NOTE = "accuracies: shares in [0, 1]; thickness: pixels; slant: degrees"
SMOKE = {"epochs": 2, **common.SOME_IMAGES}
LABELS = {"elbo": "ELBO, nats per image", "probe_accuracy_codes": "accuracy of a linear probe"}
RECIPE = common.Recipe(
    "representation", load, trial, measure, draw, NOTE, SMOKE, labels=LABELS, curve="elbo"
)
main = partial(common.main, RECIPE)
"""Train or read, probe, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
