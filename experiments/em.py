"""EM, the classical view of the bound, and the same picture for a VAE.

    python -m experiments.em [preset] --components K --epochs N --seed S

log p(x) = ELBO(q) + KL(q || posterior). A mixture of Bernoullis: the E step closes the gap, the M
step raises the bound. A VAE: one network gives q for all examples, so a gap stays open, and is
split (Cremer et al., 2018, arXiv:1801.03558) into approximation (the best diagonal Gaussian for
each example still misses the posterior) and amortisation (the network misses that Gaussian).

The mixture's training images are binarised once, the VAE's anew at each step, the test images once
for both. Nats per image; expected numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, vae
from experiments.common import image_vae
from vaejax import data, inference, mixtures, objectives, plot
from vaejax.batch import over_examples
from vaejax.distributions import Bernoulli, Mixture
from vaejax.errors import at_least_one


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
    refine_steps: int = 300  # gradient steps that refine q for each image


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


def main(config: Config) -> dict[str, Any]:
    """Fit the mixture, train the VAE, measure and draw; returns what summary.json holds."""
    cut = ("", "")
    if config.smoke:
        config = replace(
            config,
            components=3,
            half_steps=3,
            epochs=2,
            evaluate_every=1,
            images=3,
            batch_size=16,
            particles=4,
            refine_steps=2,
            hidden=(8,),
        )
        cut = ("[:64]", "[:32]")
    images, test = (
        data.load(config.dataset, name + end).x
        for name, end in zip(("train", "test"), cut, strict=True)
    )
    at_least_one("em", images=config.images, half_steps=config.half_steps)
    keys = jax.random.split(jax.random.key(config.seed), 6)
    x, seen = (
        jax.jit(over_examples, static_argnums=0)(data.binarize, key, stored)
        for key, stored in zip(keys[:2], (images, test), strict=True)
    )
    folder = common.open_folder(config, name=f"em-{Path(config.dataset).stem}", free={"epochs"})

    fitted = mixtures.fit_bernoulli(
        x, config.components, key=keys[2], floor=config.floor, restarts=config.restarts
    )
    steps = half_steps(x, config, keys[3])
    gaps = gap_over_training(config, folder, images, x, seen[: config.images], keys[4], keys[5])
    summary = {
        "mixture_test_nll_nats": -float(mixtures.e_step(fitted.mixture, seen).log_px.mean()),
        "mixture_train_nll_nats": -float(fitted.history[-1]),
        "mixture_smallest_gain_nats": float(np.diff(fitted.history).min()),
        "mixture_iterations": len(fitted.history) - 1,
        "e_step_largest_gap_nats": max(abs(log_px - bound) for log_px, bound in steps[1::2]),
        **{f"vae_{name}": values[-1] for name, values in gaps.items() if name != "epoch"},
    }
    common.write_json(folder / "summary.json", summary)
    common.write_json(folder / "gap.json", gaps)

    log_px, bound = np.array(steps).T
    names = ["start", *["E" if i % 2 else "M" for i in range(1, len(bound))]]
    drawn = {
        "em": plot.bound(
            {"ELBO": bound, "KL(q || posterior)": log_px - bound},
            places=names,
            xlabel="step",
            title=f"EM for {config.components} components",
        ),
        "em_gap": plot.curves(
            {"KL(q || posterior)": (log_px - bound)[::2]},
            steps=np.arange(len(bound[::2])),
            xlabel="M steps so far",
            ylabel="nats per image",
            title="the gap that the next E step closes",
        ),
        "vae": plot.bound(
            {"ELBO": gaps["elbo"]}
            | {name: np.maximum(gaps[name], 0) for name in ("amortisation", "approximation")},
            places=[f"{e:g}" for e in gaps["epoch"]],
            title=f"VAE on {min(config.images, len(seen))} test images",
        ),
    }
    drawn["em_gap"].axes[0].set_yscale("log")
    if images.ndim == 4:
        means = jax.nn.sigmoid(fitted.mixture.components.logits)
        heaviest = np.argsort(-np.asarray(fitted.mixture.logits))
        drawn["components"] = plot.images(means[heaviest], title="component means, heaviest first")
    common.save_figures(folder, drawn)
    common.report(folder, summary, "nats per binarised test image, unless named train")
    return summary


def half_steps(x: Any, config: Config, key: Any) -> list[tuple[float, float]]:
    """Mean log p(x) and bound after each half-step; at the start q is uniform for all examples."""
    k = config.components
    p = 0.25 + 0.5 * x[jax.random.choice(key, len(x), (k,), replace=False)]  # an image, softened
    mixture = Mixture(jnp.zeros(k), Bernoulli(jnp.log(p) - jnp.log1p(-p)))
    q, rows = jnp.full((len(x), k), 1 / k), []
    for i in range(config.half_steps + 1):
        if i % 2:
            q = mixtures.e_step(mixture, x).responsibilities
        elif i:
            mixture = mixtures.m_step(mixture, x, q, floor=config.floor)
        log_px, bound = mixtures.e_step(mixture, x).log_px, mixtures.elbo(mixture, q, x)
        rows.append((float(log_px.mean()), float(bound.mean())))
    return rows


def gap_over_training(
    config: Config, folder: Path, images: Any, x: Any, seen: Any, init_key: Any, key: Any
) -> dict[str, list[float]]:
    """A VAE's bound and the parts of its gap on the images `seen`, before and during training."""
    options = replace(
        vae.DIGITS, hidden=config.hidden, latent=config.latent, likelihood="bernoulli"
    )
    model = image_vae.build(options, images.shape[1:], np.asarray(x.mean(axis=0)))
    params = model.init(init_key, seen[0])

    def measure(params: Any, key: Any) -> dict[str, float]:
        gap = inference.inference_gap(
            model, params, key, seen, particles=config.particles, steps=config.refine_steps
        )
        found = {
            "loss": -gap.elbo.mean(),
            "elbo": gap.elbo.mean(),
            "log_px": gap.log_px.mean(),
            "ess_median": np.median(gap.ess),
            "amortisation": gap.amortisation.value,
            "approximation": gap.approximation.value,
            "amortisation_error": gap.amortisation.error,
            "approximation_error": gap.approximation.error,
        }
        return {name: float(value) for name, value in found.items()}

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
    common.command_line(main, PRESETS, __doc__ or "")
