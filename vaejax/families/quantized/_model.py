"""The codes: points at entries of a codebook, the model that has them, and a prior over them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import present
from vaejax.distributions import Delta, Distribution, distribution
from vaejax.errors import concrete, wrong
from vaejax.model import Model, compiled
from vaejax.networks import functional
from vaejax.types import Array, Key, Params, describe


@distribution
class VectorQuantized(Delta):
    """A Delta at the nearest entries of the codebook: value[...] = e_k, k = argmin_j |z_e[...] -
    e_j|^2.

    Args:
      value: these entries, exactly, `[..., size]`. Its gradient is that of the encoder's output
        (straight through); the codebook gets none.
      index: k, int32 `[...]`, the first of equals.
      features: z_e, the encoder's output, `[..., size]`.
    """

    value: Any
    index: Any
    features: Any
    needs_float32 = True  # entries are compared exactly

    @classmethod
    def nearest(cls, features: Array, codebook: Array) -> "VectorQuantized":
        """The quantised z_e.

        Args:
          features: z_e, `[..., size]`.
          codebook: the entries, `[entries, size]`.
        Returns:
          a point at the nearest entries.
        """
        # |z - e|^2 less |z|^2, in full precision: devices with faster products would choose others.
        product = jnp.matmul(features, codebook.T, precision=lax.Precision.HIGHEST)
        lengths = jnp.sum(codebook**2, axis=1).reshape((1,) * (features.ndim - 1) + (-1,))
        index = jnp.argmin(lax.stop_gradient(lengths - 2 * product), axis=-1).astype(jnp.int32)
        entry = lax.stop_gradient(codebook)[index]
        return cls(entry + (features - lax.stop_gradient(features)), index, features)

    @property
    def event_shape(self):
        return np.shape(self.value)


@distribution
class Entries(Distribution):
    """A distribution of codebook entries, whose indices follow `indices`: p(e_k) = p(k).

    The event is `[..., size]`; log p is -inf for a value that is no entry. An index beyond the
    codebook gives NaN. No gradient reaches the codebook.

    Args:
      indices: a discrete Distribution over integers `[...]` from 0 to `entries - 1`.
      codebook: the entries, `[entries, size]`.
    """

    indices: Any
    codebook: Any
    discrete = True

    def sample(self, key):
        return self._at(self.indices.sample(key))

    def log_prob(self, x):
        if np.shape(x) != self.event_shape:
            fix = "map a batch: jax.vmap"
            raise wrong("Entries.log_prob: x", np.shape(x), self.event_shape, fix)
        x, codebook = lax.stop_gradient((jnp.asarray(x), self.codebook))

        # Not the nearest by |e|^2 - 2 x . e, whose digits do not tell close entries apart. One axis
        # of them after the other, or all of [..., entries, size] would be held.
        def agrees(same: Array, axis: tuple[Array, Array]) -> tuple[Array, None]:
            values, entries = axis
            return same & jax.vmap(lambda e: values == e, out_axes=-1)(entries), None

        start = jnp.ones((*x.shape[:-1], len(codebook)), bool)
        same, _ = lax.scan(agrees, start, (jnp.moveaxis(x, -1, 0), codebook.T))
        log_p = self.indices.log_prob(jnp.argmax(same, axis=-1).astype(jnp.int32))
        return jnp.where(jnp.all(jnp.any(same, axis=-1)), log_p, -jnp.inf)

    def _at(self, index: Array) -> Array:
        return lax.stop_gradient(jnp.take(self.codebook, index, axis=0, mode="fill"))

    @property
    def event_shape(self):
        return (*self.indices.event_shape, np.shape(self.codebook)[-1])


def quantize(model: Model, *, entries: int) -> Model:
    """A deterministic autoencoder whose code is replaced by the nearest entries of a codebook.

    q(z|x) is a `VectorQuantized` point. The last axis of the encoder's code is that of an entry.
    The axes before it, such as the height and width of a map, are places that are quantised each on
    its own. There is no prior: see `with_prior`.

    `params` is `{"model": ..., "codebook": [entries, size]}`. The codebook is drawn from
    U(-1/entries, 1/entries); `from_data` gives a better start.

    Args:
      model: one whose encoder returns a `Delta` over `[..., size]`, for instance by `heads.Code`.
      entries: number of entries in the codebook.
    Returns:
      the Model with quantised codes.
    Raises:
      ValueError: where entries is below 2; at use, for a codebook of another size than the code's.
      TypeError: at `init`, for an encoder that returns a density.
    References:
      Van den Oord, Vinyals and Kavukcuoglu, 2017, Neural discrete representation learning,
      arXiv:1711.00937.
    """
    if entries < 2:
        raise wrong("quantize: entries", entries, "2 or more", "one entry can say nothing")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, codebook_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        q = jax.eval_shape(lambda: model.encode(params, x, c))
        size = _check_point(q).event_shape[-1]
        width = 1 / entries
        codebook = jax.random.uniform(codebook_key, (entries, size), minval=-width, maxval=width)
        return {"model": params, "codebook": codebook}

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        if not isinstance(params, dict) or not {"model", "codebook"} <= set(params):
            fix = "pass what this model's own init made, or fit returned for it"
            raise wrong("encode: params", describe(params), "'model' and 'codebook'", fix)
        features = _check_point(model.encode(params["model"], x, c, key=key)).value
        codebook = params["codebook"]
        if codebook.shape != (entries, features.shape[-1]):
            fix = "pass what this model's own init made; the size is that of the encoder's head"
            expected = (entries, features.shape[-1])
            raise wrong("quantize: params['codebook']", codebook.shape, expected, fix)
        return VectorQuantized.nearest(features, codebook)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(params["model"], z, c, key=key)

    return Model(compiled(init), lambda params, c=(): None, encode, decode)


def with_prior(model: Model, network: Any) -> Model:
    """The model with a prior over its maps of indices: it generates, and bounds log p(x).

    `p(z) = p(k)` of the indices k of the entries, by a network that is trained on `indices` in a
    second stage. Then `-log p(x) <= -log p(k) - log p(x|z)`, with k the code of x: `terms.rate`
    plus `terms.distortion`.

    Args:
      model: from `quantize`.
      network: any object with `.init(key) -> params` and `.apply(params)`, a Distribution over
        integers in the shape of the code (its map without the last axis), for instance
        `autoregressive.Causal`. It is called with c where there is one.
    Returns:
      the Model with this prior, whose parameters are `params["prior"]`.
    Raises:
      ValueError: at `init`, for a prior over another shape, or over another number of entries.
      TypeError: at `init`, for a prior that is a density.
    References:
      Van den Oord et al., 2017, arXiv:1711.00937, section 3.3.
    """

    network = functional(network, "with_prior: network")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, prior_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        params = {**params, "prior": jax.jit(network.init)(prior_key, *present(c))}
        _check_prior(prior_of(params, c), jax.eval_shape(lambda: model.encode(params, x, c)))
        return params

    def prior_of(params: Params, c: Any = ()) -> Entries:
        return Entries(network.apply(params["prior"], *present(c)), params["codebook"])

    return model._replace(init=init, prior=prior_of)


def check_quantized(function: str, q: Any) -> VectorQuantized:
    """q(z|x) of a model from `quantize`, as it is; TypeError for any other."""
    if isinstance(q, VectorQuantized):
        return q
    fix = "make the model by quantize(model, entries=...)"
    raise wrong(f"{function}: q(z|x)", type(q).__name__, "VectorQuantized", fix, TypeError)


def _check_point(q: Any) -> Any:
    if not isinstance(q, Delta) or not q.event_shape:
        got = f"{type(q).__name__} over {q.event_shape}"
        fix = "end the encoder with heads.Code((height, width, size))"
        raise wrong("quantize: the encoder", got, "a Delta over [..., size]", fix, TypeError)
    return q


def _check_prior(p: Entries, q: VectorQuantized) -> None:
    entries, indices = p.codebook.shape[0], p.indices
    fix = f"give a discrete prior over integers 0..{entries - 1} of shape {q.index.shape}"
    if not indices.discrete:
        got = type(indices).__name__
        raise wrong("with_prior: network", got, "probabilities of integers", fix, TypeError)
    if indices.event_shape != q.index.shape:
        raise wrong("with_prior: network", f"shape {indices.event_shape}", q.index.shape, fix)
    # The last entry has a probability, and what comes after it none.
    last, beyond = (
        indices.log_prob(jnp.full(q.index.shape, k, jnp.int32)) for k in (entries - 1, entries)
    )
    if concrete(last) and not (np.isfinite(last) and np.isneginf(beyond)):
        raise wrong("with_prior: network", "another number of classes", entries, fix)
