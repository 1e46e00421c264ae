"""Mixed precision: networks in bfloat16; parameters, distributions and densities in float32."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from vaejax.errors import wrong
from vaejax.model import Model, check_model
from vaejax.networks.autoregressive import Autoregressive
from vaejax.types import Key, Params, describe

__all__ = ["mixed_precision"]


def mixed_precision(model: Model, dtype: Any = jnp.bfloat16) -> Model:
    """The model with `encode` and `decode` computed in `dtype`, and everything else in float32.

    Parameters and inputs are cast on entry. The arrays of the Distribution that comes out are
    float32, and so are samples, log-densities, losses and sums over the batch. Parameters stay the
    caller's, in float32, and their gradients arrive in float32. So optimizers, checkpoints and
    `init` are as before, and the same parameters serve the model itself. The prior is left alone.

    It pays where the device multiplies bfloat16 faster (GPU, TPU). **On a CPU it is slower**, which
    is why it is never a default.

    - A network inside the Distribution (the `Partial` of an autoregressive decoder, a flow, a link
      of a `Chain`) also computes in `dtype` and returns float32. Sampling an `Autoregressive`
      distribution step by step stays in float32: its sums of many small terms would stall.
    - bfloat16 has 8 significant bits. It cannot follow a likelihood that resolves more than 1/256
      of its mean (a DiscretizedLogistic of 256 levels, a Normal with a small floor).
    - Functions that wrap the result stay in float32: learned priors and flow posteriors may, as in
      `vamp_prior(mixed_precision(model), 500)`; so may `rematerialize`. Vector quantisation has to,
      since it compares entries exactly: `quantize(mixed_precision(model), entries=512)`.

    Args:
      model: the Model.
      dtype: bfloat16, or float32, which changes nothing. bfloat16 has float32's exponents and needs
        no loss scaling. float16 needs it, and there is none here, so float16 is refused.
    Returns:
      A Model with the same parameters.
    Raises:
      ValueError: for another dtype; and, at `encode`, for a vector-quantised model.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import autoencoder, heads
      >>> from vaejax.train.precision import mixed_precision
      >>> model = mixed_precision(autoencoder(heads.Code(2), heads.FixedNormal((3,), 1.0)))
      >>> params = model.init(jax.random.key(0), jnp.zeros(3))
      >>> print(model.encode(params, jnp.zeros(3)).mean.dtype)
      float32

    References:
      Micikevicius et al., 2018, Mixed precision training, arXiv:1710.03740.
      Kalamkar et al., 2019, on bfloat16, arXiv:1905.12322.
    """
    check_model("mixed_precision", model)
    _check(dtype)

    def run(function: Any, *args: Any, **options: Any) -> Any:
        """`function(*args)` in `dtype`, what it returns in float32."""
        given = jax.tree.leaves((args, options))
        args, options = jax.tree.map(lambda leaf: _cast(leaf, dtype), (args, options))
        # A leaf that a function only hands through, such as a parameter of a network inside a
        # distribution or a known pixel of an image, comes out as it came in and not rounded.
        handed = dict(zip(map(id, jax.tree.leaves((args, options))), given, strict=True))

        def wide(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: _cast(handed.get(id(leaf), leaf), jnp.float32), tree)

        def node(value: Any) -> Any:
            if isinstance(value, Autoregressive):
                value = wide(value)
                return dataclasses.replace(value, conditionals=held(value.conditionals))
            return held(wide(value)) if isinstance(value, Partial) else wide(value)

        return jax.tree.map(node, function(*args, **options), is_leaf=_holds_network)

    def call(network: Any, *args: Any, **options: Any) -> Any:
        return run(_call, network, *args, **options)

    def held(network: Any) -> Partial:
        return Partial(call, network)  # of the one `call`: the same structure every time

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        q = run(model.encode, params, x, c, key=key)
        if getattr(q, "needs_float32", False):
            fix = "quantize(mixed_precision(model), entries=...) keeps the codebook in float32"
            raise wrong("mixed_precision: model", "one made by quantize", "the one inside it", fix)
        return q

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return run(model.decode, params, z, c, key=key)

    return model._replace(encode=encode, decode=decode)


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, **options)


def _holds_network(node: Any) -> bool:
    return isinstance(node, Autoregressive | Partial)


def _cast(leaf: Any, dtype: Any) -> Any:
    """A floating leaf in another type; integers, booleans and keys as they are."""
    floating = jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def _check(dtype: Any) -> None:
    try:
        jnp.dtype(object() if dtype is None else dtype)  # type: ignore[arg-type]
    except TypeError as error:
        got, fix = describe(dtype), "use jnp.bfloat16"
        raise wrong("mixed_precision: dtype", got, "a type of numbers", fix, TypeError) from error
    if jnp.dtype(dtype) == jnp.float16:
        fix = "use jnp.bfloat16: float16 underflows without loss scaling, which is not here"
        raise wrong("mixed_precision: dtype", "float16", "bfloat16 or float32", fix)
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        fix = "use jnp.bfloat16"
        raise wrong("mixed_precision: dtype", jnp.dtype(dtype), "bfloat16 or float32", fix)
