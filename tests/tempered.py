"""A tempered linear-Gaussian model, whose best posterior is known for every beta."""

import jax.numpy as jnp
import numpy as np

from vaejax.distributions import Normal
from vaejax.model import Model

# z ~ N(0, I), x|z ~ N(W z, s^2 I) with orthogonal columns, the last one zero. The posterior
# q proportional to p(z) p(x|z)^(1/beta) is the minimiser of D + beta R over all q; it is
# moved by `shift`.
SIGMA = 0.7


def tempered_model():
    def prior(params, c=()):
        return Normal(jnp.zeros(3), jnp.ones(3))

    def encode(params, x, c=(), *, key=None):
        W, noise = params["W"], params["beta"] * SIGMA**2
        variance = 1 / (1 + jnp.sum(W**2, axis=0) / noise)
        return Normal(variance * (W.T @ x) / noise + params["shift"], jnp.sqrt(variance))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["W"] @ z, params["ratio"] * SIGMA)

    return Model(lambda key, x, c=(): None, prior, encode, decode)


TEMPERED = tempered_model()
W = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))[0] * np.array([3.0, 2.0, 0.0])


def tempered_params(beta, shift=0.0, ratio=1.0, size=1.0):
    """`ratio`: of the decoder's predicted standard deviation to the true one; `size`: of W."""
    values = {"W": size * W, "beta": beta, "shift": shift, "ratio": ratio}
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def tempered_data(n, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) @ (size * W).T + SIGMA * rng.normal(size=(n, 5))).astype(
        np.float32
    )


def tempered_point(beta, x, size=1.0):
    """Exact distortion and rate of the tempered posterior, nats per example; `size`: of W."""
    scaled = size * W
    variance = 1 / (1 + np.sum(scaled**2, axis=0) / (beta * SIGMA**2))
    mean = x.astype(float) @ scaled * variance / (beta * SIGMA**2)
    error = np.sum((x - mean @ scaled.T) ** 2, axis=1)
    error = error + np.sum(variance * np.sum(scaled**2, axis=0))
    D = 0.5 * error / SIGMA**2 + 2.5 * np.log(2 * np.pi * SIGMA**2)
    R = 0.5 * np.sum(mean**2 + variance - 1 - np.log(variance), axis=1)
    return D.mean(), R.mean()
