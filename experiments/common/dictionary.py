"""Examples that a known dictionary makes, and how many of its atoms were found."""

from typing import Any

import numpy as np

from vaejax import sparsity
from vaejax.types import Params

__all__ = ["make_dictionary", "recovery"]


def make_dictionary(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm atoms `[atoms, size]`, and examples: `active` of them times Uniform[0.5, 1.5]."""
    rng = np.random.default_rng(config.seed)
    atoms = rng.normal(size=(config.atoms, config.size))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    x = np.zeros((config.examples, config.size), np.float32)
    for part in np.array_split(x, max(1, config.examples // 10_000)):
        chosen = rng.random((len(part), config.atoms)).argsort(axis=1)[:, : config.active]
        coefficients = rng.uniform(0.5, 1.5, chosen.shape)
        part += np.einsum("nk,nkd->nd", coefficients, atoms[chosen])
    return atoms, x


def recovery(atoms: np.ndarray, params: Params) -> dict[str, float]:
    """How many true atoms have a learned one at cosine above 0.9, and how the others fail."""
    cosine = np.asarray(sparsity.atoms(params)) @ atoms.T  # [latent, atoms]
    found = cosine.max(axis=0) > 0.9
    claimed = np.bincount(cosine.argmax(axis=1)[cosine.max(axis=1) > 0.9], minlength=len(found))
    return {
        "recovered": float(found.mean()),
        "mean_cosine": float(cosine.max(axis=0).mean()),
        "units_on_no_atom": int((cosine.max(axis=1) <= 0.9).sum()),
        "units_doubled": int(np.maximum(claimed - 1, 0).sum()),
    }
