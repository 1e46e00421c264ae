"""Gradient estimators to be compared, and a Gaussian model close to its optimum to do it at."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common import image_vae
from experiments.common.images import mean_of
from vaejax import objectives, train
from vaejax.distributions import Normal
from vaejax.model import Model
from vaejax.types import Key, Params

__all__ = ["elbos", "toy", "trained", "weighted"]


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


def trained(config: Any, network: Any, images: Any, key: Key) -> tuple[Model, Params, Any]:
    """A VAE after some epochs by the ELBO, and the last images as it sees them.

    Args:
      config: of experiments.gradients.
      network: the options of the VAE.
      images: as they are stored.
      key: of the start, the training and the images.
    """
    init_key, fit_key, seen_key = jax.random.split(key, 3)
    transform = image_vae.transform_for(network, images)
    model = image_vae.build(network, images.shape[1:], mean_of(images))
    keys = jax.random.split(seen_key, config.images)
    x = jax.vmap(transform)(keys, images[-config.images :])
    params = model.init(init_key, x[0])
    fitted = train.fit(
        objectives.elbo(model),
        optax.adam(1e-3),
        params,
        images[: -config.images],
        key=fit_key,
        epochs=config.epochs,
        batch_size=64,
        transform=transform,
        progress=False,
    )
    return model, fitted.params, x


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
