"""What a VAE's codes know: probes and neighbours, the latent plane, directions of the stroke.

    python -m experiments.representation [digits|mnist|burda] [--trained DIR] [--strength A]

A linear probe and k nearest neighbours on posterior means, against pixels and as many principal
components; and the directions thin-to-thick and left-to-right-leaning (difference of mean codes of
the training images with the largest and the smallest measure of their class), added to the codes of
test images and decoded. Expected numbers: experiments/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from experiments import common, vae
from experiments.common import image_vae
from vaejax import checkpoint, data, objectives, plot, representation
from vaejax.errors import wrong
from vaejax.model import Model
from vaejax.types import Key, Params

MEASURES = {"thickness": representation.thickness, "slant": representation.slant}
UNITS = {"thickness": "pixels", "slant": "degrees"}


@dataclass(frozen=True)
class Config(common.Options):
    preset: str = "digits"  # of experiments.vae: network, likelihood, batch size, Adam
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


def trained(config: Config, folder: Path, images: Any, key: Key) -> tuple[Model, Params]:
    """The preset's model, trained here or read from a run of experiments.vae."""
    if config.preset not in vae.PRESETS:
        expected, fix = str(list(vae.PRESETS)), "name one of them"
        raise wrong("representation: --preset", repr(config.preset), expected, fix)
    preset = vae.PRESETS[config.preset]
    transform = image_vae.transform_for(preset, images)
    seen_key, init_key, fit_key = jax.random.split(key, 3)
    some = images[:2000]
    seen = jax.vmap(transform)(jax.random.split(seen_key, len(some)), some)
    model = image_vae.build(preset, images.shape[1:], np.asarray(seen.mean(axis=0)))
    params = model.init(init_key, seen[0])
    if config.trained is not None:
        return model, checkpoint.load(config.trained / "checkpoints", like=params)
    steps = config.epochs * (len(images) // preset.batch_size)
    falling = optax.cosine_decay_schedule(preset.learning_rate, steps or 1)
    adam = optax.adam(falling, eps=preset.adam_epsilon)
    fitted = common.fit(
        config,
        folder,
        objectives.elbo(model),
        adam,
        params,
        images,
        key=fit_key,
        epochs=config.epochs,
        batch_size=preset.batch_size,
        transform=transform,
        checkpoint_every=10,
    )
    return model, fitted.params


def accuracies(config: Config, sets: dict[str, Any], y: Any, test_y: Any) -> dict[str, float]:
    """Probe and nearest-neighbour accuracy on the test images, for every representation."""
    found = {}
    for name, (x, test_x) in sets.items():
        labelled = x, y, test_x, test_y
        found[f"probe_accuracy_{name}"] = representation.linear_probe(*labelled)
        found[f"knn_accuracy_{name}"] = representation.nearest_neighbours(
            *labelled, neighbours=config.neighbours
        )
    return found


def extremes_within_classes(values: Any, y: Any, share: float) -> representation.Extremes:
    """As `extremes`, for each class by itself: or thick and thin would mean eights and ones."""
    masks = np.zeros((2, len(y)), bool)
    for label in np.unique(y):
        masks[:, y == label] = representation.extremes(values[y == label], share=share)
    return representation.Extremes(*masks)


def along(
    decode: Callable[[Any], Any], codes: Any, step: Any, multiples: Any, measure: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decoded images `[n, steps, ...]` along a direction, and how their measure rises with it."""
    decoded = np.stack([decode(jnp.asarray(codes + a * step, jnp.float32)) for a in multiples], 1)
    flat = np.maximum(decoded.reshape(-1, *decoded.shape[2:]), 0)  # a Normal's mean may be below 0
    values = measure(flat).reshape(decoded.shape[:2])
    order = [stats.spearmanr(multiples, row).statistic for row in values]
    rising = np.all(np.diff(values, axis=1) > 0, axis=1)
    return decoded, {
        "mean_along": [float(v) for v in values.mean(axis=0)],
        "rank_correlation": float(np.mean(order)),
        "share_rising_at_every_step": float(np.mean(rising)),
    }


def main(config: Config) -> dict[str, Any]:
    """Train or read, probe, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(config, epochs=2, train_split="train[:200]", test_split="test[:50]")
    stored, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    if stored.x.ndim != 4 or stored.x.shape[-1] != 1 or isinstance(stored.y, tuple):
        got, fix = f"x {stored.x.shape}", "choose digits, mnist or fashion_mnist"
        raise wrong("representation: --dataset", got, "labelled grey images", fix)
    folder = common.open_folder(config, name=f"representation-{Path(config.dataset).stem}")
    model, params = trained(config, folder, stored.x, jax.random.key(config.seed))

    # Grey levels for all: the expectation of what a Bernoulli model saw, and what pixels give.
    x, test_x = (np.asarray(data.scale(jax.random.key(0), s.x)) for s in (stored, test))
    encode = jax.jit(jax.vmap(lambda one: model.encode(params, one).mean))
    decode = jax.jit(jax.vmap(lambda z: model.decode(params, z).mean))
    codes, test_codes = (
        np.concatenate([encode(part[i : i + 1000]) for i in range(0, len(part), 1000)])
        for part in (x, test_x)
    )
    pca = representation.principal_components(x, test_x, size=codes.shape[1])
    sets = {"codes": (codes, test_codes), "pixels": (x, test_x), "pca": pca}
    summary: dict[str, Any] = {"latent": codes.shape[1], "test_images": len(test_x)}
    summary |= accuracies(config, sets, stored.y, test.y)

    drawn = {"latent": plot.latent(test_codes[:5000], test.y[:5000])}
    multiples = np.linspace(-config.strength, config.strength, config.steps)
    for name, measure in MEASURES.items():
        top, bottom = extremes_within_classes(measure(x), stored.y, config.share)
        step = representation.direction(codes[top], codes[bottom])
        decoded, numbers = along(decode, test_codes[:1000], step, multiples, measure)
        summary |= {f"{name}_{key}": value for key, value in numbers.items()}
        shown = plot.traversals(decoded[:8], labels=[f"test image {i + 1}" for i in range(8)])
        shown.axes[0].set(
            title=f"decoded along the direction of {name}",
            ylabel="",
            xlabel="multiple of the direction (mean code of the top less of the bottom group)",
        )
        ticks = shown.axes[0].get_xticks()
        shown.axes[0].set_xticks(ticks, [f"{a:+.2g}" for a in multiples][: len(ticks)])
        drawn[name] = shown
        curve = {"mean of the test images": numbers["mean_along"]}
        drawn[f"{name}_measured"] = plot.curves(
            curve,
            steps=multiples,
            title=f"{name} measured along its direction",
            xlabel="multiple of the direction",
            ylabel=f"{name}, {UNITS[name]}",
        )
    common.write_json(folder / "summary.json", summary)
    common.save_figures(folder, drawn)
    common.report(
        folder, summary, "accuracies: shares in [0, 1]; thickness: pixels; slant: degrees"
    )
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
