"""Posteriors beyond a diagonal Normal, as functions from Model to Model.

The model's own posterior q_0(z|x) becomes the base of a flow: z = f(z_0; h(x)), z_0 ~ q_0. What the
flow knows of x are q_0's parameters, h(x) = (loc, scale), so that no network needs to be opened.
The flow's own parameters are a new entry, params["posterior"]. (Full covariance is a head of the
encoder: `heads.FullNormal`.)
"""

from typing import Any

import jax

from vaejax.distributions import Distribution
from vaejax.errors import wrong
from vaejax.model import Model
from vaejax.networks import flows, join
from vaejax.networks.flows import Transformed
from vaejax.types import Array, Key, Params


def flow_posterior(model: Model, flow: Any) -> Model:
    """The model with q(z|x) = the law of f(z_0; h(x)), z_0 ~ q_0(z|x), its own posterior.

    `log q(z|x) = log q_0(z_0|x) - log|det df/dz_0|`; h(x) are the parameters of q_0(z|x) as one
    vector. `flow`: a network of flows over codes, `init(key, h) -> params` and
    `apply(params, h) -> Flow`, as `flows` makes them. `params["posterior"]` is new. The rate has no
    closed form: `terms.rate` is log q - log p at the draw; losses that ask for log q of another
    draw need a flow with an inverse. There is no mean code either.

    Raises ValueError where the model has such an entry already, or codes of another size; TypeError
    for a point posterior. Rezende and Mohamed, 2015, arXiv:1505.05770.
    """

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

    return model._replace(init=jax.jit(init), encode=encode)


def planar_posterior(model: Model, latent: int, *, layers: int = 4) -> Model:
    """`flow_posterior` by planar flows, whose parameters are linear in q_0's.

    `latent`: size of the code; `layers`: flows, each of which bends the cloud once. For bounds that
    score only their own draws (`elbo`, `iwae`, `log_likelihood`): there is no inverse.
    Rezende and Mohamed, 2015, Variational inference with normalizing flows, arXiv:1505.05770.
    """
    return flow_posterior(model, flows.planar(latent, layers=layers))


def iaf_posterior(
    model: Model, latent: int, *, layers: int = 2, hidden: tuple[int, ...] = (320,)
) -> Model:
    """`flow_posterior` by inverse autoregressive flows, in forward and backward order in turn.

    `latent`: size of the code; `layers`: flows; `hidden`: units of each masked network, which sees
    the code drawn so far and q_0's parameters.
    Kingma et al., 2016, Improving variational inference with inverse autoregressive flow,
    arXiv:1606.04934.
    """
    return flow_posterior(model, flows.inverse_autoregressive(latent, layers=layers, hidden=hidden))


def _features(q: Distribution) -> Array:
    return join(jax.tree.leaves(q))


def _check(q: Any, size: int | None) -> None:
    if q.discrete:
        fix = "end the encoder with heads.Normal"
        raise wrong("flow_posterior: q", type(q).__name__, "a density", fix, TypeError)
    if size is not None and q.event_shape != (size,):
        fix = "give the flow the size of the code"
        raise wrong("flow_posterior: flow", f"size {size}", f"codes {q.event_shape}", fix)


__all__ = ["flow_posterior", "iaf_posterior", "planar_posterior"]
