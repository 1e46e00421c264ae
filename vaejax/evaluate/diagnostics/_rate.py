"""How a code trades rate for distortion: the beta that it implies, and the curve."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions import MultivariateNormal, Normal
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.evaluate._each import measure, measure_each
from vaejax.evaluate._measures import elbo_terms
from vaejax.evaluate.decomposition import check_posterior, checked
from vaejax.evaluate.diagnostics._units import standard_error
from vaejax.model import Draw, Model, deterministic, terms
from vaejax.types import Array, Estimate, Key, Params, Transform, describe_fields


@describe_fields
class RateDistortion(NamedTuple):
    """Points of a rate-distortion curve, nats per example.

    Args:
      rate, distortion: of each point, `[points]`.
      rate_error, distortion_error: their standard errors over the examples, `[points]`.
    """

    rate: np.ndarray
    distortion: np.ndarray
    rate_error: np.ndarray
    distortion_error: np.ndarray


@measure
def implied_beta(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    samples: int = 4,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Estimate:
    """The beta for which the width of q(z|x) is right: nats of D bought by the last nat of R.

        implied beta = -(dD/ds) / (dR/ds) at s = 1,  q_s(z|x) = N(mu(x), s^2 Sigma(x))

    A posterior that minimises D + beta R is stationary in the common factor s of its standard
    deviations, so that this is beta whatever the training called it; 1 for a maximum of the ELBO.
    It is above 1 where the rate is held too low. It is undetermined (nan, or an error as large as
    the value) where q has collapsed onto the prior and neither D nor R depends on s.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: two examples or more, `[n, ...]`.
      samples: draws of z per example.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The value, without unit, and its standard error over examples and draws.
    Raises:
      ValueError: for fewer than two examples, weights, samples < 1, no prior, and a derivative that
        is not finite.
      TypeError: unless the posterior is Normal or MultivariateNormal.
    References:
      Alemi et al., 2018, arXiv:1711.00464: compare the constrained slope of the rate-distortion
      curve.
    """
    batch = checked("implied_beta", key, data, batch_size=batch_size, samples=samples)
    q, _ = check_posterior("implied_beta", model, transform, params, key, batch)
    if not isinstance(q, Normal | MultivariateNormal):
        name, expected = type(q).__name__, "Normal or MultivariateNormal"
        fix = "the widths of no other are known here"
        raise wrong("implied_beta: posterior", name, expected, fix, TypeError)
    options = model, samples
    dD, dR = measure_each(_slopes, options, transform, batch_size, params, key, batch)
    dD = np.asarray(finite_values("implied_beta", "dD/ds", dD, batch.x), float)
    dR = np.asarray(finite_values("implied_beta", "dR/ds", dR, batch.x), float)
    if dR.mean() == 0:
        return Estimate(np.nan, np.nan)
    beta = -dD.mean() / dR.mean()
    return Estimate(float(beta), float(standard_error(dD + beta * dR) / abs(dR.mean())))


@measure
def rate_distortion(
    model: Model,
    population: Sequence[Params],
    key: Key,
    data: Any,
    *,
    samples: int = 1,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> RateDistortion:
    """Where each of several trained parameters stands in the plane of rate and distortion.

    `D = E_x E_q[-log p(x|z)]`, `R = E_x KL(q(z|x) || p(z))`; trained on D + beta R, the curve has
    slope -beta, and points of one ELBO lie on a line of slope -1. Data of entropy H allow no point
    below D + R = H.

    Args:
      model: a Model with a prior.
      population: parameters of the one model, for instance of several betas.
      key: for the draws and the `transform`.
      data: two examples or more, `[n, ...]`, seen under the same draws by all.
      samples: draws of z per example.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      Arrays `[points]`, nats per example, with standard errors over the examples.
    Raises:
      ValueError: for an empty population, fewer than two examples, weights, and as `elbo_terms`
        does.
    References:
      Alemi et al., 2018, Fixing a broken ELBO, arXiv:1711.00464.
    """
    batch = checked("rate_distortion", key, data, batch_size=batch_size)
    at_least_one("rate_distortion", population=len(population))
    options: dict[str, Any] = {"transform": transform, "batch_size": batch_size}
    found = [
        elbo_terms(model, params, jax.random.clone(key), batch, samples=samples, **options)
        for params in population
    ]
    rate, distortion = (
        np.array([one[name] for one in found], float) for name in ("rate", "distortion")
    )
    errors = (standard_error(values.T) for values in (rate, distortion))
    return RateDistortion(rate.mean(axis=1), distortion.mean(axis=1), *errors)


def _slopes(
    model: Model, samples: int, params: Params, key: Key, x: Any, c: Any
) -> tuple[Array, Array]:
    """dD/ds and dR/ds at s = 1 for a posterior s times as wide, nats."""
    model = deterministic(model)
    q, pz = model.encode(params, x, c), model.prior(params, c)

    def terms_at(s: Array, z_key: Key) -> tuple[Array, Array]:
        wide = _widened(q, s)
        z, log_q = wide.sample_and_log_prob(z_key)
        d = Draw(x, z, log_q, wide, pz, model.decode(params, z, c))
        return terms.distortion(d), terms.rate(d)

    def slope(z_key: Key) -> tuple[Array, Array]:
        one = jnp.ones(())
        return jax.jvp(lambda s: terms_at(s, z_key), (one,), (one,))[1]

    return jax.tree.map(jnp.mean, jax.vmap(slope)(jax.random.split(key, samples)))


def _widened(q: Any, s: Array) -> Any:
    """A Gaussian with its standard deviations s times as large."""
    if isinstance(q, Normal):
        return Normal(q.loc, q.scale * s)
    return MultivariateNormal(q.loc, q.scale_tril * s)
