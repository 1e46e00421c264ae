"""Models whose log p(x) is known exactly, built by hand from pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vaejax.distributions import MultivariateNormal, Normal
from vaejax.model import Model


def linear_gaussian(seed: int = 0, *, d: int = 5, latent: int = 2, scale: float = 0.5):
    """`z ~ N(0, I)`, `x|z ~ N(W z + mu, scale^2 I)` with its exact posterior: (model, params).

    Posterior: `N(M^-1 W^T (x - mu), scale^2 M^-1)`, `M = W^T W + scale^2 I`
    (Tipping and Bishop, 1999).
    """
    rng = np.random.default_rng(seed)
    params = {
        "W": jnp.asarray(rng.normal(size=(d, latent))),
        "mu": jnp.asarray(rng.normal(size=d)),
    }

    def prior(params, c=()):
        return Normal(jnp.zeros(latent), jnp.ones(latent))

    def encode(params, x, c=(), *, key=None):
        W = params["W"]
        inverse = jnp.linalg.inv(W.T @ W + scale**2 * jnp.eye(latent))
        loc = inverse @ W.T @ (x - params["mu"])
        return MultivariateNormal(loc, scale * jnp.linalg.cholesky(inverse))

    def decode(params, z, c=(), *, key=None):
        return Normal(params["W"] @ z + params["mu"], jnp.asarray(scale))

    return Model(lambda key, x, c=(): params, prior, encode, decode), params


def linear_gaussian_log_px(params, x, *, scale: float = 0.5):
    """Exact `log N(x; mu, W W^T + scale^2 I)` per row, nats, `[n]`."""
    W, mu = np.asarray(params["W"], float), np.asarray(params["mu"], float)
    return stats.multivariate_normal(mu, W @ W.T + scale**2 * np.eye(len(mu))).logpdf(np.asarray(x))


def poor_posterior(model: Model) -> Model:
    """The same model with a posterior that is shifted, twice as wide and diagonal."""

    def encode(params, x, c=(), *, key=None):
        q = model.encode(params, x, c)
        scale = 2.0 * jnp.sqrt(jnp.diag(q.scale_tril @ q.scale_tril.T))
        return Normal(q.loc + 0.3, scale)

    return model._replace(encode=encode)


def shifted_by_condition(model: Model) -> Model:
    """The same model of x - c, for conditions c of the shape of x, whose likelihood is Normal."""

    def encode(params, x, c=(), *, key=None):
        return model.encode(params, x - c)

    def decode(params, z, c=(), *, key=None):
        px = model.decode(params, z)
        return Normal(px.loc + c, px.scale)

    return model._replace(encode=encode, decode=decode)


def log_weights(model: Model, params, key, x, particles: int) -> np.ndarray:
    """log p(x, z) - log q(z|x) of each row's own draws, as `evaluate` draws them: `[n, particles]`.

    One by one, apart from any batch or chunk, in double precision once drawn.
    """

    @jax.jit
    def one(i, k, x):
        _, particles_key = jax.random.split(jax.random.fold_in(key, i))
        q = model.encode(params, x)
        z = q.sample(jax.random.fold_in(particles_key, k))
        log_px = model.decode(params, z).log_prob(x)
        return log_px + model.prior(params).log_prob(z) - q.log_prob(z)

    return np.array([[one(i, k, row) for k in range(particles)] for i, row in enumerate(x)], float)


def ppca_log_likelihood(x: np.ndarray, latent: int) -> float:
    """Mean log-likelihood of the fitted probabilistic PCA, nats per example.

    `-1/2 [d log 2 pi + sum_{i<=q} log lambda_i + (d - q) log s2 + d]`, `s2` the mean of the
    discarded eigenvalues of the covariance (Tipping and Bishop, 1999).
    """
    d = x.shape[1]
    lam = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    s2 = lam[latent:].mean()
    log_det = np.log(lam[:latent]).sum() + (d - latent) * np.log(s2)
    return -0.5 * (d * np.log(2 * np.pi) + log_det + d)
