"""Gradient estimators to be compared, and a Gaussian model close to its optimum to do it at."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vaejax import objectives
from vaejax.distributions import Normal
from vaejax.model import Model
from vaejax.types import Key, Params

__all__ = ["elbos", "toy", "weighted"]


def toy(key: Key, dimension: int, images: int) -> tuple[Model, Params, Any]:
    """z ~ N(m, I), x|z ~ N(z, I), q = N(A x + b, 2/3 I), close to its optimum (Rainforth et al.).

    Returns the model, its parameters, and x `[images, dimension]` drawn from it.
    """
    m_key, z_key, A_key, b_key, mu_key = jax.random.split(key, 5)
    m = jax.random.normal(m_key, (dimension,))
    x = m[None] + 2**0.5 * jax.random.normal(z_key, (images, dimension))
    near = partial(jax.random.normal, dtype=float)
    params = {
        "encoder": {
            "A": 0.5 * jnp.eye(dimension) + 0.01 * near(A_key, (dimension, dimension)),
            "b": 0.5 * m + 0.01 * near(b_key, (dimension,)),
        },
        "prior": m + 0.01 * near(mu_key, (dimension,)),
    }
    wide = jnp.full(dimension, (2 / 3) ** 0.5)
    return (
        Model(
            lambda key, x, c=(): params,
            lambda params, c=(): Normal(params["prior"], jnp.ones(dimension)),
            lambda params, x, c=(), *, key=None: Normal(
                params["encoder"]["A"] @ x + params["encoder"]["b"], wide
            ),
            lambda params, z, c=(), *, key=None: Normal(z, jnp.ones(dimension)),
        ),
        params,
        x,
    )


def weighted(model: Model, particles: int) -> dict[str, Any]:
    """The importance-weighted estimators, the one that serves as reference first."""
    build: dict[str, Any] = {
        "dreg": objectives.dreg,
        "iwae": objectives.iwae,
        "stl": objectives.stl,
    }
    return {name: make(model, particles=particles) for name, make in build.items()}


def elbos(model: Model, samples: int) -> dict[str, Any]:
    """Estimators of the gradient of the same ELBO."""
    score = partial(objectives.score_function, model, samples=samples)
    found = {
        "pathwise": objectives.elbo(model, samples=samples),
        "score function": score(baseline=jnp.zeros_like),
    }
    return found | ({"score function, leave-one-out": score()} if samples > 1 else {})
