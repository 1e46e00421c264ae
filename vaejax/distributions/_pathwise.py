"""Gradients through a sample: by which parameters there are none, and values that need them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters.partial_eval import dce_jaxpr

from vaejax.errors import wrong


def without_derivative(distribution: Any) -> dict[str, Any]:
    """The parameters that a sample depends on, but by none of its derivatives.

    `sample` is traced, not run: such a parameter is an input of it that moves the sample, while its
    tangent moves no tangent, as behind a comparison, a rounding, or an integer. A parameter that
    reaches the sample by a derivative too, and only partly by a choice, is not found.

    Args:
      distribution: with any leaves, traced ones too.
    Returns:
      Leaves of the distribution by name, such as `{"logits": ...}`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(distribution)
    kinds = tuple((np.shape(leaf), _dtype(leaf)) for _, leaf in leaves)
    structure = jax.tree.structure(distribution)
    try:
        lost = _lost(structure, kinds)
    except TypeError:  # a static field that is not hashable: traced anew each time
        lost = _lost.__wrapped__(structure, kinds)
    return {jax.tree_util.keystr(leaves[i][0]).lstrip("."): leaves[i][1] for i in lost}


def pathwise(q: Any, z: Any, value: Any) -> Any:
    """A value that is a function of z ~ q, whose gradient is refused where it would lack a part.

    `grad E_q[f(z)]` is `E[grad f(z)]` only where z has a derivative by all parameters of q that
    move it. A mixture's logits and the parameters of a discrete q move z by jumps: the mean of the
    gradients through the draws is then another number than the gradient of the mean. Nothing is
    refused without a gradient, nor where such parameters are constants or held by
    `jax.lax.stop_gradient`, nor where a discrete q is drawn from by a z that has a derivative (a
    relaxation, or straight through).

    Args:
      q: the Distribution that z is from; anything else is not looked at.
      z: the draw.
      value: an array, or a tree of them.
    Returns:
      The value. Its derivative raises TypeError where it lacks a part.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax.distributions import Bernoulli, pathwise
      >>> def squared(logits):
      ...     q = Bernoulli(logits)
      ...     z = q.sample(jax.random.key(0))
      ...     return pathwise(q, z, jnp.sum(z**2))
      >>> print(squared(jnp.full(3, 20.0)))
      3.0
      >>> jax.grad(squared)(jnp.full(3, 20.0))
      Traceback (most recent call last):
      ...
      TypeError: q(z|x): got Bernoulli, whose sample has no derivative by logits, ...
    """
    found = getattr(q, "without_derivative", None)
    lost = {} if found is None else found()
    if not lost:
        return value

    def refused(z_moved: Any, lost_moved: Any) -> Exception | None:
        names = [name for name, tangent in lost_moved.items() if _moves(tangent)]
        relaxed = q.discrete and any(map(_moves, jax.tree.leaves(z_moved)))
        return _refusal(type(q).__name__, names) if names and not relaxed else None

    return _watched(value, refused, z, lost)


def refusing(value: Any, parameters: Any, refusal: Exception) -> Any:
    """A value that is differentiated by none of some parameters: that raises.

    Args:
      value: an array, or a tree of them.
      parameters: a tree of arrays.
      refusal: what is raised.
    Returns:
      The value.
    """

    def refused(moved: Any) -> Exception | None:
        return refusal if any(map(_moves, jax.tree.leaves(moved))) else None

    return _watched(value, refused, parameters)


def _watched(value: Any, refused: Callable[..., Exception | None], *others: Any) -> Any:
    """A value, whose derivative asks `refused` with the tangents of the others first."""

    @jax.custom_jvp
    def known(value: Any, *others: Any) -> Any:
        return value

    def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
        error = refused(*tangents[1:])
        if error is not None:
            raise error
        return primals[0], jax.tree.map(_tangent, primals[0], tangents[0])

    known.defjvp(derivative, symbolic_zeros=True)
    return known(value, *others)


def _refusal(name: str, parameters: list[str]) -> Exception:
    fields = list(dict.fromkeys(one.split("[<")[0] for one in parameters))  # not inside a Partial
    shown = ", ".join(fields[:3]) + (", ..." if len(fields) > 3 else "")
    return wrong(
        "q(z|x)",
        f"{name}, whose sample has no derivative by {shown}",
        "one by all that is learned",
        "train it by objectives.score_function, vimco or reweighted_wake_sleep, or relax the "
        "choice; hold what is not learned by jax.lax.stop_gradient; a loss of your own that has "
        "this gradient by other means holds q: d._replace(q=jax.lax.stop_gradient(d.q))",
        TypeError,
    )


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _tangent(primal: Any, tangent: Any) -> Any:
    return tangent if _moves(tangent) else jnp.zeros_like(primal)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


@lru_cache(maxsize=512)
def _lost(structure: Any, kinds: tuple[tuple[tuple[int, ...], Any], ...]) -> tuple[int, ...]:
    """Which leaves of a distribution of this structure have no derivative, by their index."""
    moving = [i for i, (_, dtype) in enumerate(kinds) if jnp.issubdtype(dtype, jnp.inexact)]
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]

    def drawn(leaves: list[Any], directions: list[Any], key: Any) -> tuple[Any, Any, Any]:
        def sample(*moved: Any) -> tuple[list[Any], list[Any]]:
            put = dict(zip(moving, moved, strict=True))
            whole = [put.get(i, leaf) for i, leaf in enumerate(leaves)]
            z = jax.tree.leaves(jax.tree.unflatten(structure, whole).sample(key))
            smooth = [leaf for leaf in z if jnp.issubdtype(_dtype(leaf), jnp.inexact)]
            return smooth, [leaf for leaf in z if not jnp.issubdtype(_dtype(leaf), jnp.inexact)]

        return jax.jvp(sample, [leaves[i] for i in moving], directions, has_aux=True)

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        traced, outputs = jax.make_jaxpr(drawn, return_shape=True)(
            shapes, [shapes[i] for i in moving], key
        )
    except Exception:  # it cannot be sampled: what z is drawn from is not this
        return ()
    smooth, _, jumping = (len(part) for part in outputs)
    by_value = [True] * smooth + [False] * smooth + [True] * jumping
    by_derivative = [False] * smooth + [True] * smooth + [False] * jumping
    values = dce_jaxpr(traced.jaxpr, by_value)[1][: len(shapes)]
    tangents = dce_jaxpr(traced.jaxpr, by_derivative)[1][len(shapes) :]
    return tuple(i for n, i in enumerate(moving) if values[i] and not tangents[n])
