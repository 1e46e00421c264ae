"""EM, the classical view of the bound, and the same picture for a VAE.

    python -m experiments.em [preset] --components K --epochs N --seed S

log p(x) = ELBO(q) + KL(q || posterior). A mixture of Bernoullis: the E step closes the gap, the M
step raises the bound. A VAE: one network gives q for all examples, so a gap stays open, and is
split (Cremer et al., 2018, arXiv:1801.03558) into approximation (the best diagonal Gaussian for
each example still misses the posterior) and amortisation (the network misses that Gaussian).

The mixture's training images are binarised once, the VAE's anew at each step, the test images once
for both. It has no `--seeds`: the gap is measured in training for one model at a time.
Nats per image; expected numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import common, vae
from experiments.common import em_steps, image_vae
from experiments.common.images import split_of, warn_of_colours
from vaejax import data, mixtures, objectives
from vaejax.batch import over_examples
from vaejax.errors import wrong


@dataclass(frozen=True)
class Config(common.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz or .npy FILE
    components: int = 10  # components of the mixture
    floor: float = 1e-3  # probabilities of the mixture stay in [floor, 1 - floor]
    restarts: int = 3  # fits of the mixture, of which the likeliest on the training images counts
    half_steps: int = 16  # E and M steps drawn one by one
    hidden: tuple[int, ...] = (200,)  # units of the layers of the VAE's encoder
    latent: int = 10  # latent dimensions of the VAE
    epochs: int = 200  # passes of the VAE over the training images
    evaluate_every: int = 20  # epochs between measurements of its gap
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam's step size
    images: int = 100  # test images on which the gap is measured
    particles: int = 2000  # importance samples per image for log p(x)
    refine_steps: int = 100  # steps that refine q for each image, at most


PRESETS = {
    "digits": Config(),
    "mnist": Config(
        dataset="mnist",
        components=50,
        restarts=1,
        hidden=(200, 200),
        latent=20,
        epochs=20,
        evaluate_every=2,
        batch_size=128,
    ),
}


SMOKE: dict[str, Any] = {"components": 3, "half_steps": 3, "epochs": 2, "evaluate_every": 1}
SMOKE |= {"images": 3, "batch_size": 16, "particles": 4, "refine_steps": 2, "hidden": (8,)}


def main(config: Config) -> dict[str, Any]:
    """Fit the mixture, train the VAE, measure and draw; returns what summary.json holds."""
    config = common.shrunk(config, **SMOKE)
    images, test = (
        split_of(config, split).x
        for split in (("train[:64]", "test[:32]") if config.smoke else ("train", "test"))
    )
    warn_of_colours("em", images)
    common.check_batch(config, len(images))
    if config.components > len(images):
        expected = f"at most {len(images)}, the images"
        raise wrong("em: --components", config.components, expected, "lower it")
    keys = jax.random.split(jax.random.key(config.seed), 6)
    x, seen = (
        jax.jit(over_examples, static_argnums=0)(data.binarize, key, stored)
        for key, stored in zip(keys[:2], (images, test), strict=True)
    )
    folder = common.open_folder(config, name=f"em-{Path(config.dataset).stem}", free={"epochs"})

    fitted = mixtures.fit_bernoulli(
        x, config.components, key=keys[2], floor=config.floor, restarts=config.restarts
    )
    steps = em_steps.half_steps(x, config, keys[3])
    gaps = gap_over_training(config, folder, images, x, seen[: config.images], keys[4], keys[5])
    summary = {
        "mixture_test_nll_nats": -float(mixtures.e_step(fitted.mixture, seen).log_px.mean()),
        "mixture_train_nll_nats": -float(fitted.history[-1]),
        "mixture_smallest_gain_nats": float(np.diff(fitted.history).min()),
        "mixture_iterations": len(fitted.history) - 1,
        "e_step_largest_gap_nats": max(abs(log_px - bound) for log_px, bound in steps[1::2]),
        **{f"vae_{name}": values[-1] for name, values in gaps.items() if name != "epoch"},
    }
    common.write_json(folder / "gap.json", gaps)
    shown = fitted if images.ndim == 4 else None
    drawn = em_steps.draw(config, steps, gaps, shown, min(config.images, len(seen)))
    note = "nats per binarised test image, unless named train"
    return common.finish(folder, summary, drawn, note)


def gap_over_training(
    config: Config, folder: Path, images: Any, x: Any, seen: Any, init_key: Any, key: Any
) -> dict[str, list[float]]:
    """A VAE's bound and the parts of its gap on the images `seen`, before and during training."""
    options = replace(
        vae.DIGITS, hidden=config.hidden, latent=config.latent, likelihood="bernoulli"
    )
    model = image_vae.build(options, images.shape[1:], np.asarray(x.mean(axis=0)))
    params = model.init(init_key, seen[0])

    measure = partial(
        em_steps.gap_numbers, model, x=seen, particles=config.particles, steps=config.refine_steps
    )
    untrained_key, train_key = jax.random.split(key)
    untrained = measure(params, untrained_key)
    fitted = common.fit(
        config,
        folder,
        objectives.elbo(model),
        optax.adam(config.learning_rate),
        params,
        images,
        key=train_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=data.binarize,
        evaluate=measure,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.evaluate_every,
    )
    known = ~np.isnan(fitted.history["eval/elbo"])
    rows = {
        name: [value, *fitted.history[f"eval/{name}"][known].tolist()]
        for name, value in untrained.items()
        if name != "loss"
    }
    return {"epoch": [0.0, *fitted.history["epoch"][known].tolist()], **rows}


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
