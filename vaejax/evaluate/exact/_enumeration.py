"""log p(x) for discrete latents: the sum over all their values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import size_of
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.evaluate._each import checked_batch, measure
from vaejax.evaluate.exact._batches import Program, log_px_given, measure_batches, prior_of
from vaejax.model import Model, deterministic
from vaejax.types import Array, Key, Params, Transform, describe_fields


@describe_fields
class Enumeration(NamedTuple):
    """log p(x) by a sum over all values of a discrete latent.

    Args:
      log_px: log p(x), nats, `[n]`.
      posterior: p(z_v|x), `[n, v]`.
      prior_mass: sum_v p(z_v), `[n]`. It is 1 where no value is left out; below 1, `log_px` is a
        lower bound.
    """

    log_px: Any
    posterior: Any
    prior_mass: Any


@measure
def enumerate_latents(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    values: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
    chunk: int = 2000,
) -> Enumeration:
    """log p(x) and the posterior of every example, for a discrete latent, by a sum over all z.

    `log p(x) = log sum_v p(x|z_v) p(z_v)`.

    Args:
      model, params: a Model with a discrete prior, and its parameters.
      key: for the `transform` alone.
      data: a Batch, or the x of one, `[n, ...]`.
      values: all values of the latent, each once, `[v, ...]`; see `binary_codes`.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: for how many examples a value is decoded once; with conditions c, for one.
      chunk: how many values are decoded at a time.
    Returns:
      An Enumeration, nats.
    Raises:
      TypeError: where the prior is a density.
      ValueError: for values of another shape than z; where the prior mass of the values is above 1,
        since one is then given twice; and where log p(x) is not finite, with the example's index.
    """
    name = "enumerate_latents"
    batch = checked_batch(name, key, data, batch_size=batch_size, chunk=chunk)
    pz = prior_of(name, model, params, batch.c)
    if not pz.discrete:
        fix = "use quadrature, which multiplies by the volume of a cell"
        raise wrong(f"{name}: prior", type(pz).__name__, "a discrete one", fix, TypeError)
    values = jax.tree.map(jnp.asarray, values)
    at_least_one(name, values=size_of(values))
    shapes = jax.tree.map(lambda leaf: leaf.shape[1:], values)
    event = jax.tree.map(jnp.shape, jax.eval_shape(pz.sample, jax.random.key(0)))
    if shapes != event:
        fix = "give values of this model's latent, such as binary_codes(units)"
        raise wrong(f"{name}: values", f"values of shape {shapes}", f"{event}, as of p(z)", fix)
    options, shared = (model, min(chunk, size_of(values))), (params, values)
    program = Program(_enumerated, options, transform, batch_size)
    result = measure_batches(program, shared, key, batch)
    finite_values(name, "log p(x)", result.log_px, batch.x)
    mass = float(result.prior_mass.max())
    if mass > 1 + 1e-3:
        raise wrong(f"{name}: values", f"a prior mass of {mass:.6g}", "at most 1", "give each once")
    return jax.tree.map(np.asarray, result)


def binary_codes(n: int, dtype: Any = float) -> Array:
    """All codes of n binary units, counting up, the last unit fastest.

    Args:
      n: how many units, 1 to 24.
      dtype: of the zeros and ones.
    Returns:
      Zeros and ones, `[2^n, n]`.
    Raises:
      ValueError: for n outside 1..24.
    Example:
      >>> from vaejax.evaluate.exact import binary_codes
      >>> binary_codes(2, int).tolist()
      [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if not 1 <= n <= 24:
        fix = "estimate log p(x) instead of enumerating"
        raise wrong("binary_codes: n", n, "1 to 24 units", fix)
    return (jnp.arange(2**n)[:, None] >> jnp.arange(n)[::-1][None] & 1).astype(dtype)


def _enumerated(
    model: Model, chunk: int, shared: tuple[Params, Any], keys: Key, x: Any, c: Any
) -> Enumeration:
    """The Enumeration of a batch; shared: params, values."""
    model = deterministic(model)
    params, values = shared
    count = size_of(values)
    pz = model.prior(params, c)

    def some(indices: Array) -> tuple[Array, Array]:
        z = jax.tree.map(lambda leaf: leaf[indices], values)
        log_pz = jax.vmap(pz.log_prob)(z)
        return log_pz, log_pz[:, None] + log_px_given(model, params, z, x, c)

    chunks = -(-count // chunk)
    indices = jnp.minimum(jnp.arange(chunks * chunk), count - 1).reshape(chunks, chunk)
    log_pz, joint = lax.map(some, indices)
    joint = joint.reshape(-1, size_of(x))[:count]
    log_px = jax.nn.logsumexp(joint, axis=0)
    mass = jnp.sum(jnp.exp(log_pz.reshape(-1)[:count]))
    posterior = jnp.exp(joint - log_px[None]).T
    return Enumeration(log_px, posterior, jnp.full(size_of(x), mass))
