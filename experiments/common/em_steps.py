"""EM for a mixture of Bernoullis, half-step by half-step, and its figures beside a VAE's gap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax import inference, mixtures, plot
from vaejax.distributions import Bernoulli, Mixture
from vaejax.model import Model
from vaejax.types import Key, Params

__all__ = ["draw", "gap_numbers", "half_steps"]


def half_steps(x: Any, config: Any, key: Any) -> list[tuple[float, float]]:
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


def gap_numbers(
    model: Model, params: Params, key: Key, *, x: Any, particles: int, steps: int
) -> dict[str, float]:
    """A VAE's bound and the parts of its gap, means over `x`, nats: `inference.inference_gap`.

    Where `converged` is 0, do not trust the two parts: `refinement_left` and `ess_median` say why.
    """
    gap = inference.inference_gap(model, params, key, x, particles=particles, steps=steps)
    parts = {
        "amortisation": gap.elbo_refined - gap.elbo,
        "approximation": gap.log_px - gap.elbo_refined,
    }
    errors = {f"{name}_error": np.std(v, ddof=1) / len(v) ** 0.5 for name, v in parts.items()}
    found = {
        "loss": -gap.elbo.mean(),
        "elbo": gap.elbo.mean(),
        "log_px": gap.log_px.mean(),
        "ess_median": np.median(gap.ess),
        **{name: values.mean() for name, values in parts.items()},
        **errors,
        "refinement_left": gap.left.mean(),
        "converged": gap.converged,
    }
    return {name: float(value) for name, value in found.items()}


def draw(config: Any, steps: Any, gaps: dict[str, Any], fitted: Any, images: int) -> Any:
    """The bound over half-steps, the gap that the E step closes, and a VAE's gap in training.

    Args:
      config: of the recipe.
      steps: from `half_steps`.
      gaps: the VAE's bound and the parts of its gap, by name, after some epochs each.
      fitted: the mixture, or None where its components are no images.
      images: how many the gap was measured on.
    """
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
            title=f"VAE on {images} test images"
            + ("" if all(gaps["converged"]) else " (not converged at some of the epochs)"),
        ),
    }
    drawn["em_gap"].axes[0].set_yscale("log")
    if fitted is not None:
        means = jax.nn.sigmoid(fitted.mixture.components.logits)
        heaviest = np.argsort(-np.asarray(fitted.mixture.logits))
        drawn["components"] = plot.images(means[heaviest], title="component means, heaviest first")
    return drawn
