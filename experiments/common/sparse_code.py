"""Sparse codes of images or of any rows: options, model, loss, revival of dead units, measures."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import linen as nn

from vaejax import autoencoders, evaluate, heads, sparsity
from vaejax.errors import wrong
from vaejax.model import Model, autoencoder
from vaejax.types import Key, Loss, Params

__all__ = [
    "Code",
    "adam_for",
    "at_threshold",
    "begin",
    "build",
    "codes",
    "loss_for",
    "measured",
    "reviving",
]

SCALE = 0.5**0.5
"""Of the likelihood: its -log p is the squared error, up to a constant."""


@dataclass(frozen=True)
class Code:
    """What the code and its training are, of images or of any rows."""

    code: Literal["kl", "squared", "l1", "top_k", "batch_top_k"] = "top_k"  # what makes it sparse
    latent: int = 128  # units of the code
    k: int = 6  # active units of top_k, in the mean over the batch of batch_top_k
    rho: float = 0.05  # mean activation that kl and squared pull to
    weight: float = 0.1  # of the penalty: kl, squared, l1
    transposed: bool = True  # start the encoder as the transpose of the decoder (not kl)
    revive: bool = True  # give dead units a new start, during the first two thirds (not kl)
    revive_every: int = 150  # steps that they are given to fire again
    learning_rate: float = 3e-3  # Adam's step size, falling to 0 over the last half
    weight_decay: float = 0.0  # of the kernels, decoupled from the gradient (AdamW)
    batch_size: int = 128  # examples per step


def build(config: Code, shape: tuple[int, ...]) -> Model:
    """One dense layer each way; a dictionary of unit norm unless the code is bounded by itself."""
    if "top_k" in config.code and config.k > config.latent:
        expected = f"at most {config.latent}, the units of --latent"
        raise wrong("--k", config.k, expected, "lower it, or raise --latent")
    head = {
        "kl": heads.Code(config.latent, nn.sigmoid),
        "top_k": heads.TopK(config.latent, config.k),
    }.get(config.code, heads.Code(config.latent, nn.relu))
    model = autoencoder(head, heads.FixedNormal(shape, SCALE))
    return model if config.code == "kl" else sparsity.unit_columns(model)


def loss_for(config: Code, model: Model) -> Loss:
    """The distortion, and what makes the code sparse."""
    if config.code == "batch_top_k":
        return autoencoders.batch_top_k(model, k=config.k)
    if config.code == "top_k":
        return autoencoders.reconstruction(model)
    penalty = {
        "l1": lambda: sparsity.l1,
        "kl": lambda: sparsity.kl(config.rho),
        "squared": lambda: sparsity.squared(config.rho),
    }[config.code]()
    return autoencoders.sparse(model, penalty=penalty, weight=config.weight)


def begin(config: Code, model: Model, key: Key, x: Any) -> Params:
    """Parameters at the start."""
    params = model.init(key, x)
    free = config.code == "kl" or not config.transposed
    return params if free else sparsity.transposed(params)


def adam_for(config: Code, steps: int) -> optax.GradientTransformation:
    """Adam at a constant rate for half of the steps, which then falls to 0 along a line."""
    half = max(steps // 2, 1)
    rate = optax.linear_schedule(config.learning_rate, 0.0, half, steps - half)

    def kernels(params: Params) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim == 2, params)

    return optax.adamw(rate, weight_decay=config.weight_decay, mask=kernels)


def reviving(
    config: Code, model: Model, adam: Any, x: Any, steps: int, *, between: int, transform: Any
) -> Any:
    """A hook: dead units start anew while there is time to learn from it. None if not asked for.

    It is called every `between` of the run's `steps`.
    """
    if config.code == "kl" or not config.revive:
        return None
    keep = partial(sparsity.largest, k=config.k) if config.code == "batch_top_k" else None
    hook = sparsity.revive(
        model, adam, x, examples=max(8192, config.latent), keep=keep, transform=transform
    )

    def due(step: int) -> bool:
        return 3 * step < 2 * steps and step % config.revive_every < between

    return lambda state: hook(state) if due(int(state.step)) else state


def at_threshold(
    config: Code, model: Model, params: Params, key: Key, x: Any, *, transform: Any = None
) -> tuple[Model, dict[str, Any]]:
    """The model as it is used after training, and its threshold, which batch_top_k alone has."""
    if config.code != "batch_top_k":
        return model, {}
    theta = sparsity.threshold(
        model, params, key, x, k=config.k, transform=transform, batch_size=config.batch_size
    )
    return sparsity.thresholded(model, theta), {"threshold": theta}


def codes(model: Model, params: Params, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[n, latent]` and reconstructions `[n, ...]` of examples as the model sees them."""
    key = jax.random.key(0)  # nothing is drawn
    z = evaluate.codes(model, params, key, x)
    r = evaluate.reconstructions(model, params, jax.random.clone(key), x)
    return np.asarray(z), np.asarray(r)


def measured(
    config: Code, z: np.ndarray, x: np.ndarray, r: np.ndarray, *, name: str = "test_squared_error"
) -> dict[str, Any]:
    """How good and how sparse: numbers of these examples, codes and reconstructions."""
    error, means = np.sum((x - r) ** 2) / len(x), z.mean(axis=0)
    summary = {
        name: float(error),
        "share_of_variance_missed": float(error / np.sum((x - x.mean(axis=0)) ** 2) * len(x)),
        "active_units": float((z != 0).sum(axis=1).mean()),
        "dead_units": int((z == 0).all(axis=0).sum()),
        "mean_activation": float(means.mean()),
    }
    if config.code in ("kl", "squared"):
        near = (means >= config.rho / 2) & (means <= 2 * config.rho)
        summary |= {"rho": config.rho, "units_within_factor_2": float(near.mean())}
    return summary
