"""Posteriors beyond a diagonal Normal: functions that take a Model and return another Model.

The model's own posterior q_0(z|x) becomes the base of a flow: z = f(z_0; h(x)), z_0 ~ q_0. The
flow sees x through the parameters of q_0, h(x) = (loc, scale), so that no network needs to change.
The flow's own parameters are a new entry, `params["posterior"]`. (For a full covariance, end the
encoder with `heads.FullNormal`.)
"""

from typing import Any

import jax

from vaejax.distributions import Distribution
from vaejax.errors import wrong
from vaejax.model import Model, check_model, compiled
from vaejax.networks import flows, functional, join
from vaejax.networks.flows import Transformed
from vaejax.types import Array, Key, Params


def flow_posterior(model: Model, flow: Any) -> Model:
    """The model whose posterior q(z|x) is the law of f(z_0; h(x)), with z_0 ~ q_0(z|x).

    q_0(z|x) is the posterior that the model has, and h(x) are the parameters of it as one vector:
    `log q(z|x) = log q_0(z_0|x) - log|det df/dz_0|`.

    The rate has no closed form: `terms.rate` is log q - log p at the draw. A loss that asks for log
    q of another draw needs a flow with an inverse. There is no mean code.

    Args:
      model: the Model whose posterior is extended; its posterior has to be a density.
      flow: a network of flows over codes, `init(key, h) -> params` and `apply(params, h) -> Flow`,
        as `flows` makes them.
    Returns:
      the Model with the new posterior; the flow's parameters are `params["posterior"]`.
    Raises:
      ValueError: at `init`, where the model has a flow posterior already, or codes of another size.
      TypeError: at `init`, where the posterior is a point.
    References:
      Rezende and Mohamed, 2015, arXiv:1505.05770.
    """
    check_model("flow_posterior", model)
    flow = functional(flow, "flow_posterior: flow")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, flow_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        if "posterior" in params:
            fix = "put the flows of both into one: flows.Composed, or more layers"
            raise wrong("flow_posterior: model", "a posterior with a flow", "one without", fix)
        q = model.encode(params, x, c)
        _check(q, getattr(flow, "size", None))
        return {**params, "posterior": flow.init(flow_key, _features(q))}

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Transformed:
        q = model.encode(params, x, c, key=key)
        return Transformed(q, flow.apply(params["posterior"], _features(q)))

    return model._replace(init=compiled(init), encode=encode)


def planar_posterior(model: Model, latent: int, *, layers: int = 4) -> Model:
    """`flow_posterior` by planar flows, whose parameters are linear in those of q_0.

    Losses that score only their own draws (`elbo`, `iwae`) are fastest: log q of another draw, as
    `stl` or `score_function` ask for it, takes the inverse of every flow, by bisection.

    Args:
      model: the Model whose posterior is extended.
      latent: size of the code.
      layers: number of flows; each bends the cloud of codes once.
    Returns:
      the Model with the new posterior; the flow's parameters are `params["posterior"]`.
    Raises:
      ValueError: where layers is below 1; at `init`, as for `flow_posterior`.
    References:
      Rezende and Mohamed, 2015, Variational inference with normalizing flows, arXiv:1505.05770.
    """
    check_model("planar_posterior", model)
    return flow_posterior(model, flows.planar(latent, layers=layers))


def iaf_posterior(
    model: Model, latent: int, *, layers: int = 2, hidden: tuple[int, ...] = (320,)
) -> Model:
    """`flow_posterior` by inverse autoregressive flows, in forward and backward order in turn.

    Args:
      model: the Model whose posterior is extended.
      latent: size of the code.
      layers: number of flows.
      hidden: widths of the hidden layers of each masked network, which sees the code drawn so far
        and the parameters of q_0.
    Returns:
      the Model with the new posterior; the flow's parameters are `params["posterior"]`.
    Raises:
      ValueError: where layers is below 1; at `init`, as for `flow_posterior`.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import linear, posteriors
      >>> model = linear.linear_gaussian(6, latent=2)
      >>> model = posteriors.iaf_posterior(model, 2, layers=1, hidden=(8,))
      >>> sorted(model.init(jax.random.key(0), jnp.zeros(6)))
      ['W', 'loc', 'log_scale', 'posterior']

    References:
      Kingma et al., 2016, Improving variational inference with inverse autoregressive flow,
      arXiv:1606.04934.
    """
    check_model("iaf_posterior", model)
    return flow_posterior(model, flows.inverse_autoregressive(latent, layers=layers, hidden=hidden))


def _features(q: Distribution) -> Array:
    return join(tuple(jax.tree.leaves(q)))


def _check(q: Distribution, size: int | None) -> None:
    if q.discrete:
        fix = "end the encoder with heads.Normal"
        raise wrong("flow_posterior: q", type(q).__name__, "a density", fix, TypeError)
    if size is not None and q.event_shape != (size,):
        fix = "give the flow the size of the code"
        raise wrong("flow_posterior: flow", f"size {size}", f"codes {q.event_shape}", fix)


__all__ = ["flow_posterior", "iaf_posterior", "planar_posterior"]
