"""Fine-tuning what was pretrained: as a classifier with few labels, and as an autoencoder."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.figures.starts import STARTS
from vaejax import autoencoders, corruption, data, evaluate, stacked, train
from vaejax.model import Model
from vaejax.types import Params

__all__ = ["compared", "deep_autoencoder", "fine_tuned"]


def fine_tuned(config: Any, classify: Model, start: Params, labelled: Any, valid: Any) -> Any:
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


def deep_autoencoder(config: Any, kept: dict[str, Any], images: Any, test: Any) -> dict:
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


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Test errors of both starts over the seeds, and how often pretraining won."""
    errors = {name: np.array([row[f"{name}_test_error"] for row in rows]) for name in STARTS}
    gain = errors["scratch"] - errors["pretrained"]
    found: dict[str, Any] = {"seeds_won": int((gain > 0).sum())}
    for name, values in {**errors, "gain": gain}.items():
        found[f"{name}_test_error_mean"] = float(values.mean())
        found[f"{name}_test_error_sd"] = float(values.std(ddof=min(1, len(values) - 1)))
    return found
