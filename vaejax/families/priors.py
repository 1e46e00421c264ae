"""Learned priors p(z): functions that take a Model and return one with another prior.

The parameters of a learned prior are `params["prior"]`. A prior is computed from parameters alone
(the VampPrior of a conditional model also from c), so that under the `vmap` over examples it is
computed once for the whole batch. The rate has no closed form under these priors: `terms.rate` is
log q - log p at the draw. A network that returns a Distribution, for instance `flows.Density`, can
also be the `prior` of `autoencoder`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.distributions import Mixture, Normal
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, check_model, compiled
from vaejax.networks.flows import Density, Stack, Transformed
from vaejax.types import Array, Key, Params, Prior, describe


def mixture_prior(model: Model, components: int) -> Model:
    """The model with a learned mixture of diagonal Normals as its prior.

    `p(z) = sum_k pi_k N(z; mu_k, sigma_k^2)`, with pi, mu `[K, latent]` and sigma learned. The
    means start at draws from N(0, I) and the standard deviations at 1, so that the components
    differ.

    Args:
      model: the Model whose prior is replaced.
      components: K, the number of Normals.
    Returns:
      the Model with the new prior, whose parameters are `params["prior"]`.
    Raises:
      ValueError: where components is below 1.
    """
    check_model("mixture_prior", model)
    at_least_one("mixture_prior", components=components)

    def start(key: Key, z: Any) -> Params:
        return {
            "logits": jnp.zeros(components),
            "loc": jax.random.normal(key, (components, *z.shape)),
            # softplus(s) = 1
            "scale": jnp.full((components, *z.shape), jnp.log(jnp.e - 1)),
        }

    def prior(params: Params, c: Any = ()) -> Mixture:
        own = params["prior"]
        return Mixture(own["logits"], Normal(own["loc"], nn.softplus(own["scale"])))

    return _with_prior(model, start, prior)


def vamp_prior(
    model: Model,
    components: int,
    *,
    start: Array | np.ndarray | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Model:
    """The model with the posteriors of K learned pseudo-inputs as its prior: VampPrior.

    `p(z) = 1/K sum_k q(z|u_k)`. Among all mixtures of posteriors, the bound is highest for the
    aggregated posterior 1/N sum_n q(z|x_n). The K learned inputs stand for the N examples.

    The pseudo-inputs stay inside the bounds: `u = low + (high - low) sigmoid(v)`, with v in
    `params["prior"]["v"]`; `pseudo_inputs` computes them. Where there is a condition, all of them
    are encoded with it: `p(z|c) = 1/K sum_k q(z|u_k, c)`.

    For a flow posterior, put the flow over the prior: `iaf_posterior(vamp_prior(model, K), ...)`.
    The prior is then the mixture of the encoder's distributions before the flow, q_0(z|u_k).

    Args:
      model: the Model whose prior is replaced.
      components: K, the number of pseudo-inputs.
      start: where the pseudo-inputs begin, K examples as the model sees them, `[K, ...]`; by
        default noise over the range.
      bounds: the lowest and the highest value of the data.
    Returns:
      the Model with the new prior, whose parameters are `params["prior"]`.
    Raises:
      ValueError: where components is below 1, or start has another length, another shape, or values
        outside the bounds.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import autoencoder, heads, priors
      >>> from vaejax.distributions import Normal
      >>> normal = Normal(jnp.zeros(2), jnp.ones(2))
      >>> model = autoencoder(heads.Normal(2), heads.Bernoulli(6), normal)
      >>> model = priors.vamp_prior(model, 5)
      >>> params = model.init(jax.random.key(0), jnp.zeros(6))
      >>> priors.pseudo_inputs(params).shape
      (5, 6)

    References:
      Tomczak and Welling, 2018, VAE with a VampPrior, arXiv:1705.07120.
    """
    check_model("vamp_prior", model)
    at_least_one("vamp_prior", components=components)
    low, high = bounds
    if not low < high:
        raise wrong("vamp_prior: bounds", bounds, "low < high", "give the data's range")
    if start is not None:
        start = jnp.asarray(start)
        _check_start(start, components, bounds)

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, noise_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        shape = (components, *jnp.shape(x))
        if start is not None and start.shape != shape:
            fix = "give examples as the model sees them: transform them first"
            raise wrong("vamp_prior: start", f"shape {start.shape}", shape, fix)
        if start is None:
            share = jax.random.uniform(noise_key, shape)
        else:
            share = (start - low) / (high - low)
        share = jnp.clip(share, 0.02, 0.98)  # near the ends a sigmoid hardly moves
        return {**params, "prior": {"v": jnp.log(share) - jnp.log1p(-share)}}

    def prior(params: Params, c: Any = ()) -> Mixture:
        u = pseudo_inputs(params, bounds=bounds)
        q = jax.vmap(lambda one: model.encode(params, one, c))(u)
        return Mixture(jnp.zeros(components), q)

    return model._replace(init=compiled(init), prior=prior)


def pseudo_inputs(params: Params, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Array:
    """The K inputs whose posteriors are the components of a `vamp_prior`.

    Args:
      params: parameters of the model that `vamp_prior` made.
      bounds: the same as were given to `vamp_prior`.
    Returns:
      the inputs, `[K, ...]`, within the bounds.
    """
    low, high = bounds
    return low + (high - low) * jax.nn.sigmoid(params["prior"]["v"])


def flow_prior(model: Model, flow: Stack) -> Model:
    """The model with a flow of the standard Normal as its prior: z = f(e), e ~ N(0, I).

    `log p(z) = log N(f^-1(z); 0, I) - log|det df/de|`.

    Args:
      model: the Model whose prior is replaced.
      flow: a network of flows that has an inverse. One whose inverse takes a single pass is best,
        for instance `flows.coupling(latent)`.
    Returns:
      the Model with the new prior, whose parameters are `params["prior"]`.
    Raises:
      ValueError: at `init`, where the codes have another size than the flow.
    References:
      Chen et al., 2017, Variational lossy autoencoder, arXiv:1611.02731.
    """
    check_model("flow_prior", model)
    if not isinstance(flow, Stack):
        fix = "for instance flows.coupling(latent)"
        raise wrong("flow_prior: flow", describe(flow), "a network of flows", fix, TypeError)
    network = Density(flow)

    def start(key: Key, z: Any) -> Params:
        if z.shape != (flow.size,):
            fix = "give the flow the size of the code"
            raise wrong("flow_prior: flow", f"size {flow.size}", f"codes {z.shape}", fix)
        return network.init(key)

    def prior(params: Params, c: Any = ()) -> Transformed:
        return network.apply(params["prior"])

    return _with_prior(model, start, prior)


def _with_prior(model: Model, start: Callable[[Key, Any], Params], prior: Prior) -> Model:
    """The model with another prior: `start(key, z)` makes its parameters for codes like z."""

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, prior_key, z_key = jax.random.split(key, 3)
        params = model.init(model_key, x, c)
        z = jax.eval_shape(lambda: model.encode(params, x, c).sample(z_key))
        return {**params, "prior": start(prior_key, z)}

    return model._replace(init=compiled(init), prior=prior)


def _check_start(start: Array, components: int, bounds: tuple[float, float]) -> None:
    if start.ndim == 0 or len(start) != components:
        got = f"shape {start.shape}"
        fix = f"give one for each component: x[:{components}]"
        raise wrong("vamp_prior: start", got, f"{components} examples", fix)
    low, high = bounds
    least, most = float(start.min()), float(start.max())
    if not low <= least <= most <= high:
        got = f"values in [{least:.4g}, {most:.4g}]"
        fix = "transform stored data first (data.binarize, data.scale), or widen bounds"
        raise wrong("vamp_prior: start", got, f"[{low:g}, {high:g}]", fix)


__all__ = ["flow_prior", "mixture_prior", "pseudo_inputs", "vamp_prior"]
