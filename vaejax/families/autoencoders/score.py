"""The score that a denoising autoencoder has learned, and samples drawn by following it.

The best reconstruction of x~ = x + scale eps is E[x | x~], and it gives the gradient of the
log-density of the noisy data. All functions are of one example; `jax.vmap` maps them over a batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.errors import at_least_one, concrete, wrong
from vaejax.model import Model, reconstruct
from vaejax.types import Array, Key, Params


def score(model: Model, params: Params, x: Array, *, scale: float, c: Any = ()) -> Array:
    """The gradient of log p_scale(x) that a denoising autoencoder estimates.

    `s(x) = (r(x) - x) / scale^2`, r the mean of the reconstruction.

    `p_scale` is the density of the data *smoothed* by the noise of training, p convolved with
    N(0, scale^2 I). For the best possible r, E[x | x~], the equation is an identity at any scale.
    Only as scale -> 0 is s the score of the data's own density. Its zeros are the fixed points of
    r: maxima of p_scale, but minima and saddles too. Where noisy data hardly ever lie, r was not
    trained, and s means nothing.

    Args:
      model: trained by `autoencoders.denoising(model, corrupt=corruption.gaussian(scale))` under a
        likelihood whose best mean is E[x | x~]: Normal (squared error) or Bernoulli.
      params: its parameters.
      x: a point of the smoothed density, of the event's shape.
      scale: the standard deviation of the noise in training, in units of x.
      c: the condition; by default none.
    Returns:
      The score, in the shape of x, nats per unit of x.
    Raises:
      ValueError: unless scale is positive and finite, and for an x of another shape than its
        reconstruction.
    References:
      Alain and Bengio, 2014, What regularized auto-encoders learn from the data-generating
      distribution, arXiv:1211.4246. Vincent, 2011, A connection between score matching and
      denoising autoencoders. The identity: Miyasawa, 1961; Robbins, 1956.
    """
    _positive("score: scale", scale, "give the standard deviation of the noise in training")
    r = reconstruct(model, params, x, c)
    if jnp.shape(r) != jnp.shape(x):
        fix = "give one example; map a batch: jax.vmap(lambda x: score(model, params, x, ...))"
        raise wrong("score: x", f"shape {jnp.shape(x)}", f"{jnp.shape(r)}, as reconstructed", fix)
    return (r - x) / scale**2


def langevin(
    score: Callable[[Array], Array], key: Key, x: Array, *, step_size: float, steps: int
) -> Array:
    """The end of a walk along a score from x: the unadjusted Langevin algorithm.

    `x' = x + step_size / 2 s(x) + sqrt(step_size) eps`, `eps ~ N(0, I)`, `steps` times.

    Its limits:

    - No step is ever rejected, so the distribution it settles in is off by O(step_size). For
      N(mu, v) the variance is v / (1 - step_size / 4v), and from step_size = 4v on the walk
      diverges; v is the smallest variance in any direction.
    - With `score` above it samples the *smoothed* density, not the data's: the last x still carries
      the noise of training. One more x + scale^2 s(x), the reconstruction, gives the mean of the
      data behind it rather than a draw.
    - It hardly ever crosses a region of low density: modes keep the shares of the starting points,
      whatever their weights are.
    - A start far from the noisy data of training follows a field that nothing has trained.

    Args:
      score: `x -> s` at one point, in the shape of x.
      key: of the noise.
      x: the start; whole numbers become floats.
      step_size: in squared units of x; about scale^2 / 10 is a start.
      steps: how many.
    Returns:
      The last x.
    Raises:
      ValueError: for a step_size that is not positive and finite, steps below 1, and a score of
        another shape.
    References:
      Roberts and Tweedie, 1996, Exponential convergence of Langevin distributions and their
      discrete approximations.
    """
    _positive("langevin: step_size", step_size, "about scale^2 / 10 is a start")
    at_least_one("langevin", steps=steps)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    got = jax.eval_shape(score, x).shape
    if got != x.shape:
        raise wrong("langevin: score", f"shape {got}", f"{x.shape}, as x", "map the chains instead")

    def step(x: Array, i: Array) -> tuple[Array, None]:
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        moved = x + step_size / 2 * score(x) + step_size**0.5 * noise
        return moved.astype(x.dtype), None

    return lax.scan(step, x, jnp.arange(steps))[0]


def _positive(where: str, value: float, fix: str) -> None:
    if concrete(value) and not 0 < value < math.inf:
        raise wrong(where, value, "a positive number", fix)


__all__ = ["langevin", "score"]
