"""What one pass of a model draws: inference of a code, generation, and what lies between."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vaejax.distributions import Distribution, distribution
from vaejax.errors import at_least, check_key
from vaejax.model._model import Model, check_model
from vaejax.types import Array, Key, Params, describe_fields


@describe_fields
class Draw(NamedTuple):
    """What one pass of inference produced, for one example.

    A Draw stays inside the function of one example (see `over_batch`).

    Args:
      x: the example.
      z: the code, drawn from q.
      log_q: log q(z|x), nats, `()`.
      q: the posterior, a Distribution over z.
      pz: the prior, a Distribution over z.
      px: the likelihood, a Distribution over x.
    """

    x: Any
    z: Any
    log_q: Array
    q: Any
    pz: Any
    px: Any


@describe_fields
class Generated(NamedTuple):
    """One ancestral sample: z ~ p(z), then x ~ p(x|z).

    Args:
      z: the code.
      x: the sample.
      mean: E[x|z], in the shape of x; `()` where p(x|z) has no mean in closed form.
    """

    z: Any
    x: Any
    mean: Any


def draw(
    model: Model,
    params: Params,
    key: Key,
    x: Any,
    c: Any = (),
    *,
    given: Any = None,
    z: Any = None,
) -> Draw:
    """One pass of inference: q = q(z|x, c), z ~ q, then p(x|z, c) and p(z|c).

    The code is reparameterised where q's sample is. For an example see `autoencoder`.

    Args:
      model: the Model.
      params: its parameters.
      key: for z, and for dropout in encode and decode.
      x: one example.
      c: its condition; absent by default.
      given: what the encoder sees instead of x, for instance the corrupted input of a denoising
        model; by default x itself. The Draw's `x` stays the clean target.
      z: the code, where it is known: it is then not drawn, but scored.
    Returns:
      A Draw.
    """
    check_model("draw", model, "model, params, key, x")
    check_key("draw", key)
    encode_key, z_key, decode_key = jax.random.split(key, 3)
    q = model.encode(params, x if given is None else given, c, key=encode_key)
    z, log_q = q.sample_and_log_prob(z_key) if z is None else (z, q.log_prob(z))
    px = model.decode(params, z, c, key=decode_key)
    return Draw(x, z, log_q, q, model.prior(params, c), px)


@distribution
class _Placed(Distribution):
    """q, with another way of drawing from it.

    Args:
      q: the Distribution.
      place: `place(q, key) -> z`, a function of the top level of a module.
    """

    q: Any
    place: Callable[..., Any] = dataclasses.field(metadata={"static": True})

    def sample(self, key):
        return self.place(self.q, key)

    def log_prob(self, x):
        return self.q.log_prob(x)

    @property
    def mean(self):
        return self.q.mean

    @property
    def event_shape(self):
        return self.q.event_shape

    @property
    def discrete(self):
        return self.q.discrete

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"draw: got one that reads {name} of q(z|x), expected one that draws by q.sample or "
            "q.sample_and_log_prob; score_function, vimco, reweighted_wake_sleep, codes and "
            "reconstructions replace how q draws"
        )


def placed(model: Model, place: Callable[..., Any]) -> Model:
    """The model whose posteriors draw in another way: for a `draw` of any kind, step by step.

    Args:
      model: the Model.
      place: `fixed` or `at_mean`, or any function `(q, key) -> z`.
    Returns:
      The Model.
    """

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return _Placed(model.encode(params, x, c, key=key), place)

    return model._replace(encode=encode)


def fixed(q: Distribution, key: Key) -> Any:
    """A draw without a gradient, as score functions take it; for `placed`.

    Args:
      q: a Distribution.
      key: for the draw.
    Returns:
      z ~ q, held fixed.
    """
    return jax.lax.stop_gradient(q.sample(key))


def at_mean(q: Distribution, key: Key) -> Any:
    """The mean, as if it were drawn; for `placed`.

    Args:
      q: a Distribution.
      key: it is not used.
    Returns:
      E[z].
    """
    return q.mean


def reconstruct(
    model: Model, params: Params, x: Any, c: Any = (), *, key: Key | None = None
) -> Any:
    """E[x|z, c] at the posterior's mean, or at a draw z ~ q.

    Args:
      model: the Model.
      params: its parameters.
      x: one example.
      c: its condition; absent by default.
      key: for the draw; without it z is the posterior's mean.
    Returns:
      The reconstruction, in the shape of x.
    """
    check_model("reconstruct", model, "model, params, x")
    q = model.encode(params, x, c)
    return model.decode(params, q.mean if key is None else q.sample(key), c).mean


def generate(model: Model, params: Params, key: Key, c: Any = ()) -> Generated:
    """One ancestral sample from the model: z ~ p(z|c), then x ~ p(x|z, c), and E[x|z, c].

    For an example see `autoencoder`; for many samples map it over keys by `jax.vmap`.

    Args:
      model: the Model.
      params: its parameters.
      key: one PRNG key.
      c: the condition; absent by default.
    Returns:
      A Generated.
    Raises:
      ValueError: for a deterministic autoencoder, which has no prior to sample from.
      TypeError: where key is no key.
    """
    check_model("generate", model, "model, params, key")
    check_key("generate", key)
    z_key, x_key = jax.random.split(key)
    pz = model.prior(params, c)
    if pz is None:
        raise ValueError(
            "generate: a deterministic autoencoder has no prior; give autoencoder(..., prior=...)"
        )
    z = pz.sample(z_key)
    px = model.decode(params, z, c)
    try:
        mean = px.mean
    except NotImplementedError:
        mean = ()
    return Generated(z, px.sample(x_key), mean)


def interpolate(
    model: Model, params: Params, start: Any, end: Any, c: Any = (), *, steps: int = 7
) -> Any:
    """Decoded means along the straight line between two examples' mean codes.

    Args:
      model: the Model.
      params: its parameters.
      start, end: two examples.
      c: the condition of both; absent by default.
      steps: how many points, both ends among them.
    Returns:
      The means, `[steps, ...]`.
    Raises:
      ValueError: where steps is below 2.
    """
    check_model("interpolate", model, "model, params, start, end")
    at_least(2, "interpolate", steps=steps)
    first, last = (model.encode(params, x, c).mean for x in (start, end))
    weights = jnp.linspace(0.0, 1.0, steps, dtype=first.dtype)
    return jax.vmap(lambda w: model.decode(params, (1 - w) * first + w * last, c).mean)(weights)
