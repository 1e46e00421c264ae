"""The linear-Gaussian model (probabilistic PCA): log p(x), posterior and optimum in closed form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.arrays import numbers
from vaejax.batch import as_batch
from vaejax.data.sources import in_arrays
from vaejax.distributions import MultivariateNormal, Normal
from vaejax.errors import at_least_one, check_number, wrong
from vaejax.model import Model
from vaejax.types import Array, Key, Params


def linear_gaussian(size: int, latent: int, *, scale: float = 1.0) -> Model:
    """The linear-Gaussian model, probabilistic PCA, with its exact posterior as q.

    `z ~ N(0, I)`, `x|z ~ N(W z + loc, s^2 I)`, and
    `q(z|x) = p(z|x) = N(M^-1 W^T (x - loc), s^2 M^-1)`, `M = W^T W + s^2 I`.

    So every draw of the one-sample bound `log p(x|z) + log p(z) - log q(z|x)` equals log p(x).

    The parameters are `{"W": [size, latent], "loc": [size], "log_scale": ()}`. `init` draws the
    entries of W from N(0, 1 / latent), with loc = 0 and s = `scale`. All three are learned. The
    likelihood is made of them, and the posterior follows the likelihood. For a q of its own use
    `model._replace(encode=...)`.

    Args:
      size: of x, a vector.
      latent: of z.
      scale: s at the start, in units of x.
    Returns:
      The Model.
    Raises:
      ValueError: for a size, a latent or a scale that is not positive.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax.families.linear import linear_gaussian, linear_gaussian_log_px
      >>> model = linear_gaussian(3, 2)
      >>> params = model.init(jax.random.key(0), jnp.zeros(3))
      >>> jax.tree.map(jnp.shape, params)
      {'W': (3, 2), 'loc': (3,), 'log_scale': ()}
      >>> jax.jit(linear_gaussian_log_px)(params, jnp.ones((5, 3))).shape
      (5,)

    References:
      Tipping and Bishop, 1999, Probabilistic principal component analysis.
    """
    at_least_one("linear_gaussian", size=size, latent=latent)
    check_number("linear_gaussian: scale", scale, above=0)

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        W = jax.random.normal(key, (size, latent)) / np.sqrt(latent).item()
        return {"W": W, "loc": jnp.zeros(size), "log_scale": jnp.log(jnp.asarray(scale, float))}

    def prior(params: Params, c: Any = ()) -> Normal:
        return Normal(jnp.zeros(latent), jnp.ones(latent))

    def encode(
        params: Params, x: Any, c: Any = (), *, key: Key | None = None
    ) -> MultivariateNormal:
        root, project = _posterior_of(params)
        return MultivariateNormal(project(x - params["loc"]), root)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Normal:
        return Normal(params["W"] @ z + params["loc"], jnp.exp(params["log_scale"]))

    return Model(init, prior, encode, decode)


def linear_gaussian_log_px(params: Params, data: Any) -> Array:
    """Exact log p(x) of every example under `linear_gaussian`, in its low-rank form.

        log p(x) = log N(x; loc, W W^T + s^2 I)
                 = -1/2 [d log 2 pi + (d - q) log s^2 + log det M + |r - W m|^2 / s^2 + |m|^2]

    with r = x - loc, m = M^-1 W^T r the posterior's mean and M = W^T W + s^2 I. So the cost is
    linear in d and nothing cancels.

    Args:
      params: of `linear_gaussian`.
      data: a Batch, or the x of one, `[n, d]`, as the likelihood sees it.
    Returns:
      log p(x), nats, `[n]`; it is differentiable.
    Raises:
      ValueError: for data of another shape.
    """
    W, loc, log_scale = params["W"], params["loc"], params["log_scale"]
    x = jnp.asarray(as_batch(in_arrays("linear_gaussian_log_px", data)).x)
    d = len(W)
    if x.ndim != 2 or x.shape[1] != d:
        fix = "flatten images: x.reshape(len(x), -1)"
        raise wrong("linear_gaussian_log_px: data", x.shape, f"(n, {d})", fix)
    root, project = _posterior_of(params)

    def one(x: Array) -> Array:
        r = x - loc
        m = project(r)
        squares = jnp.sum(((r - W @ m) / jnp.exp(log_scale)) ** 2) + jnp.sum(m**2)
        # The covariance of the posterior is s^2 M^-1, so log det M = 2 q log s - 2 log det root.
        log_det = 2 * d * log_scale - 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
        return -0.5 * (d * np.log(2 * np.pi).item() + log_det + squares)

    return jax.vmap(one)(x)


def ppca(x: Any, latent: int) -> Params:
    """Parameters of `linear_gaussian` with the largest likelihood of the data, in closed form.

    `W = U (L - s^2 I)^(1/2)`, with L the `latent` largest eigenvalues of the data's covariance
    (divided by n), U their eigenvectors, `s^2` the mean of the others and loc the mean.

    There the mean of log p(x) is `-1/2 [d log 2 pi + sum_{i<=q} log L_i + (d - q) log s^2 + d]`.
    Computed in double precision, on the smaller of the covariance and the Gram matrix.

    Args:
      x: `[n, d]`, in the units that the model is to see.
      latent: 1 to min(n, d) - 1.
    Returns:
      The parameters, of the structure that `linear_gaussian` has.
    Raises:
      ValueError: for data of another shape or not finite, and where s^2 would be 0: latent >= d, or
        data that fewer directions explain entirely.
    References:
      Tipping and Bishop, 1999, Probabilistic principal component analysis.
    """
    from scipy import linalg

    x = np.asarray(numbers("ppca: x", x), np.float64)
    at_least_one("ppca", latent=latent)
    if x.ndim != 2 or not np.isfinite(x).all():
        got = x.shape if x.ndim != 2 else "numbers that are not finite"
        fix = "flatten images: x.reshape(len(x), -1), and take out NaN"
        raise wrong("ppca: x", got, "finite (n, d)", fix)
    n, d = x.shape
    if not 1 <= latent < min(n, d):
        fix = "take fewer dimensions" if latent >= 1 else "take 1"
        raise wrong("ppca: latent", latent, f"1 to {min(n, d) - 1} for data {x.shape}", fix)
    loc = x.mean(axis=0)
    x = x - loc
    small = (x.T @ x if d <= n else x @ x.T) / n
    top = [len(small) - latent, len(small) - 1]
    L, U = linalg.eigh(small, subset_by_index=top)
    rest = np.trace(small) - L.sum()
    if L[0] <= 0 or rest <= 1e-10 * np.trace(small):
        got = f"{latent}, which leaves no variance unexplained"
        raise wrong("ppca: latent", got, "some left for the noise", "take fewer dimensions")
    if d > n:
        U = x.T @ U / np.sqrt(n * L)
    s2 = rest / (d - latent)
    W = U[:, ::-1] * np.sqrt(np.maximum(L[::-1] - s2, 0))
    params = {"W": W, "loc": loc, "log_scale": 0.5 * np.log(s2)}
    return jax.tree.map(lambda v: jnp.asarray(v, float), params)


def _posterior_of(params: Params) -> tuple[Array, Callable[[Array], Array]]:
    """The lower root of s^2 M^-1, and x - loc -> M^-1 W^T (x - loc), of the linear model."""
    W, scale = params["W"], jnp.exp(params["log_scale"])
    M = W.T @ W + scale**2 * jnp.eye(W.shape[1])
    # With the order of the latents turned round, the inverse of the Cholesky factor of M comes out
    # as the lower factor of M^-1, so that no inverse has to be factored again.
    inverse = jax.scipy.linalg.solve_triangular(
        jnp.linalg.cholesky(jnp.flip(M)), jnp.eye(W.shape[1]), lower=True
    )
    root = jnp.flip(inverse.T)
    return scale * root, lambda r: root @ (root.T @ (W.T @ r))


__all__ = ["linear_gaussian", "linear_gaussian_log_px", "ppca"]
