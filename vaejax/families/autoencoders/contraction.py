"""How much an encoder's code changes with its input: norms, spectrum and directions of df/dx.

f(x) is the mean of q(z|x), flattened, with layer noise off. J = df/dx has a row for each entry of
the code and a column for each entry of x, in units of the code per unit of x. An x of several
arrays is the vector of all of them. All norms are called in one way (`Norm`). Each has a name, and
`autoencoders.contractive` calls its metric after it:

| norm | for | cost, of passes through the encoder |
| --- | --- | --- |
| `closed_form` | one dense layer | 1, plus the kernel's squared columns once per batch |
| `exact` | small codes | the smaller of the sizes of z and x |
| `hutchinson(probes)` | any | 1 + `probes`; an unbiased estimate |
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree

from vaejax.errors import at_least_one, wrong
from vaejax.evaluate import check_counted, check_example, checked_batch, measure, measure_each
from vaejax.model import Model
from vaejax.networks import kernels
from vaejax.types import Array, Key, Params, PerExample, Transform


class Norm(Protocol):
    """What measures df/dx at one example."""

    def __call__(
        self, model: Model, params: Params, key: Key, x: Any, c: Any = (), /, *, shift: Any = None
    ) -> Array:
        """|J(x)|_F^2, `()`, or |J(x) - J(x + shift)|_F^2; key: of what is random in the norm."""


def closed_form(
    model: Model, params: Params, key: Key, x: Any, c: Any = (), *, shift: Any = None
) -> Array:
    """|df/dx|_F^2 for an encoder of one dense layer, f(x) = s(W x + b) with s elementwise.

    `|J(x)|_F^2 = sum_j s'(a_j)^2 |W_j|^2`, `a = W x + b`; with a shift e the norm of a difference,
    `|J(x) - J(x + e)|_F^2 = sum_j (s'(a_j) - s'(a~_j))^2 |W_j|^2`, `a~ = W (x + e) + b`.

    s need not be named: s'(a_j) = dz_j/db_j, one derivative along the bias.

    An encoder with other parameters than one kernel `[size of x, size of z]` and its bias is a
    ValueError while it is traced. The caller has to keep two conditions that the parameters do not
    show: s is elementwise (no softmax, no normalisation), and the layer sees x itself, not scaled
    or clipped.

    Args:
      model, params: an autoencoder and its parameters.
      key: not used.
      x: one example of any shape.
      c: its condition; by default none.
      shift: e in the shape of x; by default the norm is of J(x) alone.
    Returns:
      The squared norm, `()`, in squared units of the code per squared unit of x.
    References:
      Rifai, Vincent, Muller, Glorot and Bengio, 2011, Contractive auto-encoders: explicit
      invariance during feature extraction, ICML.
    """
    kernel, slopes = _one_layer(model, params, x, c)
    slope = slopes(x) if shift is None else slopes(x) - slopes(jax.tree.map(jnp.add, x, shift))
    # Of the parameters alone: under vmap it is computed once for the batch.
    return slope**2 @ jnp.sum(kernel**2, axis=0)


def exact(
    model: Model, params: Params, key: Key, x: Any, c: Any = (), *, shift: Any = None
) -> Array:
    """|df/dx|_F^2 of any encoder from its whole Jacobian, `sum_ij J_ij^2`.

    The Jacobian is made row by row or column by column, whichever are fewer. It is held in memory:
    under `vmap`, batch times size of z times size of x numbers.

    Args:
      model, params: an autoencoder and its parameters.
      key: not used.
      x: one example of any shape.
      c: its condition; by default none.
      shift: e in the shape of x, for `|J(x) - J(x + e)|_F^2`; by default the norm of J(x) alone.
    Returns:
      The squared norm, `()`, in squared units of the code per squared unit of x.
    """
    f, flat, _ = _encoder(model, params, x, c)
    return jnp.sum(_jacobian(_shifted(f, shift), flat) ** 2)


def hutchinson(probes: int = 1) -> Norm:
    """A norm that estimates |df/dx|_F^2 of any encoder without bias, from random projections.

    `1/P sum_p |v_p^T J|^2`, with P = `probes` vectors v_p of independent signs, since
    E[v v^T] = I; its variance is `2/P (|J J^T|_F^2 - sum_i |J_i|^4)`, 0 where the rows J_i of J are
    orthogonal. With a shift e, of J(x) - J(x + e) in place of J.

    Fewer than one probe is a ValueError. JAX finds a compiled program again by the function that it
    was compiled for: make the norm once and keep it.

    Args:
      probes: random projections per example.
    Returns:
      A Norm called `hutchinson`, which uses its key.
    References:
      Hutchinson, 1989, A stochastic estimator of the trace of the influence matrix.
    """
    at_least_one("hutchinson", probes=probes)

    def norm(
        model: Model, params: Params, key: Key, x: Any, c: Any = (), *, shift: Any = None
    ) -> Array:
        f, flat, _ = _encoder(model, params, x, c)
        z, pull = jax.vjp(_shifted(f, shift), flat)
        signs = jax.random.rademacher(key, (probes, z.size), z.dtype)
        return jnp.sum(jax.vmap(pull)(signs)[0] ** 2) / probes

    norm.__name__ = "hutchinson"
    return norm


@measure
def squared_norms(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    norm: Norm = exact,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> PerExample:
    """|df/dx|_F^2 of every example: its mean, or that of its root, is the average norm.

    Args:
      model, params: an autoencoder and its parameters.
      key: of the transform and the norm.
      data: a Batch, or the x of one, `[n, ...]`. The norms of rows of weight 0 may be anything.
      norm: `closed_form`, `exact` or `hutchinson(probes)`, of which the root is biased.
      transform: of stored data, drawn once per example; by default none.
      batch_size: examples that are held in memory at a time.
    Returns:
      The squared norms, `[n]`, in squared units of the code per squared unit of x.
    Raises:
      ValueError: where a norm of a row that counts, or the code that it is of, is not finite, with
        the example's index.
    """
    batch = checked_batch("squared_norms", key, data, batch_size=batch_size)
    options = norm, model
    found = measure_each(_squared_norm, options, transform, batch_size, params, key, batch)
    return check_counted("squared_norms", "|df/dx|_F^2", found, batch.x, batch.weight)


def singular_values(model: Model, params: Params, x: Any, c: Any = ()) -> Array:
    """The singular values of J = df/dx at one example, from the largest to the smallest.

    Their squares add up to |J|_F^2. A contractive code has few large ones: it changes along the
    directions in which the data vary and hardly along others.

    Args:
      model, params: an autoencoder and its parameters.
      x: one example of any shape.
      c: its condition; by default none.
    Returns:
      The singular values, `[min(size of z, size of x)]`, in units of the code per unit of x.
    Raises:
      ValueError: where x is no event of p(x|z).
    References:
      Rifai, Vincent, Muller, Glorot and Bengio, 2011, ICML.
    """
    _check_one("singular_values", model, params, x, c)
    f, flat, _ = _encoder(model, params, x, c)
    return jnp.linalg.svd(_jacobian(f, flat), compute_uv=False)


def tangents(model: Model, params: Params, x: Any, c: Any = (), *, count: int) -> Any:
    """The directions of x in which the code changes most.

    They are the leading right singular vectors of J = df/dx, which a contractive autoencoder makes
    the tangents of the data's manifold at x. They are orthogonal, of norm 1, in the order of
    `singular_values`; their signs are arbitrary.

    Args:
      model, params: an autoencoder and its parameters.
      x: one example of any shape.
      c: its condition; by default none.
      count: how many directions, 1 to min(size of z, size of x).
    Returns:
      The directions, `[count, *shape of x]`.
    Raises:
      ValueError: for another count, and where x is no event of p(x|z).
    References:
      Rifai, Dauphin, Vincent, Bengio and Muller, 2011, The manifold tangent classifier, NIPS.
    """
    _check_one("tangents", model, params, x, c)
    f, flat, unravel = _encoder(model, params, x, c)
    J = _jacobian(f, flat)
    if not 1 <= count <= min(J.shape):
        fix = "lower it: there are no more directions"
        raise wrong("tangents: count", count, f"1 to {min(J.shape)}", fix)
    return jax.vmap(unravel)(jnp.linalg.svd(J, full_matrices=False)[2][:count])


def saturation(z: Any, *, margin: float = 0.05) -> float:
    """The share of a sigmoid code's units that are saturated: within `margin` of 0 or of 1.

    Args:
      z: codes in [0, 1], `[n, latent]`.
      margin: inside (0, 1/2).
    Returns:
      The mean over units and examples, in [0, 1].
    Raises:
      ValueError: for codes elsewhere or not finite, and for another margin.
    References:
      Rifai, Vincent, Muller, Glorot and Bengio, 2011, ICML (with 0.05).
    """
    z = np.asarray(z)
    if not 0 < margin < 0.5:
        raise wrong("saturation: margin", margin, "inside (0, 0.5)", "the usual one is 0.05")
    if not z.size or not (np.min(z) >= 0 and np.max(z) <= 1):
        got = f"values in [{np.min(z):.4g}, {np.max(z):.4g}]" if z.size else "none"
        fix = "give codes of heads.Code(size, nn.sigmoid)"
        raise wrong("saturation: z", got, "codes in [0, 1]", fix)
    return float(np.mean((z < margin) | (z > 1 - margin)))


def _squared_norm(norm: Norm, model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    """|df/dx|_F^2 of one example; NaN where the code is not finite."""
    found = norm(model, params, key, x, c)
    f, flat, _ = _encoder(model, params, x, c)
    # relu'(NaN) is 0: a derivative may look sound where the code is not.
    return jnp.where(jnp.all(jnp.isfinite(f(flat))), found, jnp.nan)


def _check_one(function: str, model: Model, params: Params, x: Any, c: Any) -> None:
    fix = f"map a batch: jax.vmap(lambda x: {function}(...))(x)"
    check_example(f"{function}: x", model, params, None, x, c, fix)


def _encoder(
    model: Model, params: Params, x: Any, c: Any
) -> tuple[Callable[[Array], Array], Array, Callable[[Array], Any]]:
    """f of x as a vector, that vector, and how it becomes an x again."""
    flat, unravel = ravel_pytree(x)
    return lambda v: jnp.ravel(model.encode(params, unravel(v), c).mean), flat, unravel


def _shifted(f: Callable[[Array], Array], shift: Any) -> Callable[[Array], Array]:
    """f, or the function whose Jacobian at x is J(x) - J(x + shift)."""
    if shift is None:
        return f
    e, _ = ravel_pytree(shift)
    return lambda v: f(v) - f(v + e)


def _jacobian(f: Callable[[Array], Array], flat: Array) -> Array:
    """df/dx as a matrix `[size of f, size of x]`, by the side that takes fewer passes."""
    size = jax.eval_shape(f, flat).size
    if size <= flat.size:
        return jax.jacrev(f)(flat)
    return jax.jacfwd(f)(flat)


def _one_layer(
    model: Model, params: Params, x: Any, c: Any
) -> tuple[Array, Callable[[Any], Array]]:
    """The kernel of the only layer, and s'(a) as a function of x."""
    encoder = params.get("encoder", {}) if isinstance(params, Mapping) else {}
    weights, paths = flatten_dict(encoder), list(kernels(encoder))
    f, flat, _ = _encoder(model, params, x, c)
    expected = (flat.size, jax.eval_shape(f, flat).size)
    path = paths[0] if paths else ()
    bias = (*path[:-1], "bias")
    if set(weights) != {path, bias} or weights[path].shape != expected:
        shapes = {"/".join(path): jnp.shape(leaf) for path, leaf in weights.items()}
        got = shapes or f"a {type(params).__name__} without an encoder"
        fix = "use contraction.exact or contraction.hutchinson(probes)"
        one = f"an encoder of one dense layer, kernel {expected} and bias ({expected[1]},)"
        raise wrong("closed_form: params['encoder']", got, one, fix)

    def slopes(x: Any) -> Array:
        # Along the bias alone, so that no product with the kernel is differentiated.
        def f(b: Array) -> Array:
            encoder = unflatten_dict({**weights, bias: b})
            return jnp.ravel(model.encode({**params, "encoder": encoder}, x, c).mean)

        return jax.jvp(f, (weights[bias],), (jnp.ones_like(weights[bias]),))[1]

    return weights[path], slopes


__all__ = [
    "Norm",
    "closed_form",
    "exact",
    "hutchinson",
    "saturation",
    "singular_values",
    "squared_norms",
    "tangents",
]
