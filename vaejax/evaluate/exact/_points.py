"""Sums over points of latent space: where they lie, what each counts, the loop over them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import size_of
from vaejax.distributions import Normal
from vaejax.errors import check_number, wrong
from vaejax.evaluate.exact._batches import log_px_given
from vaejax.model import Model, deterministic
from vaejax.types import Array, Key, Params, describe_fields

MOST_POINTS = 10**8  # of a rule: beyond, decoding takes hours

MOST_CHANGED = 0.1  # nats, by half as many nodes per dimension; what is left is far less
MOST_ON_EDGE = 1e-2  # of the posterior, per unit of z

Rule = tuple[Array, Array]  # the nodes of one dimension, and the log of what each counts


@describe_fields
class Quadrature(NamedTuple):
    """log p(x) by a sum over points z_i of latent space, and what tells whether to trust it.

    `str` gives its mean, with "not converged" and the reason in place of a number that is not.

    Args:
      log_px: log p(x), nats, `[n]`.
      coarse: the same with half as many nodes per dimension, `[n]`: `log_px - coarse` is what the
        last halving of the spacing changed.
      edge: the posterior mass of the outermost points, `[n]`; large where the grid is too narrow.
      points: the effective number of points under the posterior, `1 / sum_i p(z_i|x)^2`, `[n]`;
        near 1 where the spacing is too wide to see the posterior.
      mean: E[z|x], `[n, latent]`.
      deviation: the standard deviation of each z given x, `[n, latent]`.
      spacing: of the grid, NaN where there is none.
    """

    log_px: Any
    coarse: Any
    edge: Any
    points: Any
    mean: Any
    deviation: Any
    spacing: Any = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why `log_px` is not the integral for some example; empty where nothing tells so."""
        found = []
        edge = self.edge / (self.spacing if np.all(np.isfinite(self.spacing)) else 1.0)
        changed = np.abs(self.log_px - self.coarse)
        few = 1.2 ** self.mean.shape[1]  # a spacing of about three deviations
        for bad, why in (
            (self.points < few, "a single point holds the posterior, give a smaller spacing"),
            (~(changed < MOST_CHANGED), "half the nodes give another number, give more of them"),
            (edge > MOST_ON_EDGE, "some of the posterior lies on the edge, give a larger width"),
        ):
            if np.any(bad):
                first = int(np.argmax(bad))
                found.append(f"{why} (example {first}, {int(np.sum(bad))} such of {len(edge)})")
        return tuple(found)

    @property
    def converged(self) -> bool:
        """Whether nothing tells that `log_px` is not the integral, for any example."""
        return not self.problems

    def __str__(self) -> str:
        n = len(self.log_px)
        problems = "; ".join(self.problems)
        error = np.std(self.log_px, ddof=1) / np.sqrt(n) if n > 1 else np.nan
        value = f"{np.mean(self.log_px):.3f} ({error:.3f})"
        changed = np.max(np.abs(self.log_px - self.coarse))
        return (
            f"log p(x) of {n} examples by quadrature, nats per example: mean (se over examples)\n"
            f"  {f'not converged: {problems}' if problems else value}\n"
            f"  half the nodes change it by {changed:.2g} at most; effective points "
            f"{np.min(self.points):.1f} at least; on the edge {np.max(self.edge):.2g} at most"
        )


def integrated(
    model: Model, place: Any, latent: int, chunk: int, shared: Any, keys: Key, x: Any, given: Any
) -> Quadrature:
    """The Quadrature of a batch; shared: params, the rule; given: c, the box."""
    model = deterministic(model)
    (params, rule), (c, box) = shared, given
    fold = partial(fold_points, model, place, latent, chunk, params, x, c, box, rule)
    return summed(fold, size_of(x), len(rule[0]), latent)


def fold_points(
    model: Model,
    place: Callable[..., tuple[Array, Array]],
    latent: int,
    chunk: int,
    params: Params,
    x: Any,
    c: Any,
    box: Any,
    rule: Rule,
    add: Callable[..., Any],
    start: Any,
) -> Any:
    """`carry = add(carry, z, index, log_joint)` over the product rule, `chunk` points at a time.

    `z [chunk, latent]`, `index [chunk, latent]` of their nodes, `log_joint [chunk, n]`: the log of
    each point's share of p(x), -inf past the last point. `place`: one of the three below.
    """
    nodes, log_w = rule
    count = len(nodes) ** latent
    chunk = min(chunk, count)
    pz = model.prior(params, c)

    def step(i: Array, carry: Any) -> Any:
        flat = i * chunk + jnp.arange(chunk)
        index = jnp.stack(jnp.unravel_index(jnp.minimum(flat, count - 1), (len(nodes),) * latent))
        z, weight = jax.vmap(partial(place, pz, box))(nodes[index.T], log_w[index.T])
        weight = jnp.where(flat < count, weight, -jnp.inf)
        return add(carry, z, index.T, weight[:, None] + log_px_given(model, params, z, x, c))

    return lax.fori_loop(0, -(-count // chunk), step, start)


def on_the_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of what it counts in sum_i exp(log_weight_i) p(x|z_i): p(z) and its cell."""
    return node, jnp.sum(log_w) + pz.log_prob(node)


def on_its_own_grid(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """The same on a grid in [-1, 1]^d that is moved to the example's box (centre, half-widths)."""
    centre, half = box
    z = centre + half * node
    return z, jnp.sum(log_w + jnp.log(half)) + pz.log_prob(z)


def under_the_prior(pz: Any, box: Any, node: Array, log_w: Array) -> tuple[Array, Array]:
    """z and the log of its weight, of a node for the standard normal moved to the prior."""
    if isinstance(pz, Normal):
        return pz.loc + pz.scale * node, jnp.sum(log_w)
    return pz.loc + jnp.tril(pz.scale_tril) @ node, jnp.sum(log_w)


def summed(fold: Any, n: int, nodes: int, latent: int) -> Quadrature:
    """The Quadrature of n images by one `fold`, with that number of nodes per dimension."""

    def add(carry: Any, z: Array, index: Array, log_joint: Array) -> Any:
        top, sums, squares = carry
        new = jnp.maximum(top, jnp.max(log_joint, axis=0))
        # While every share so far is zero the maximum is -inf: count from 0 instead.
        shift = jnp.where(jnp.isneginf(new), 0.0, new)
        w, old = jnp.exp(log_joint - shift[None]), jnp.exp(top - shift)
        edge = jnp.any((index == 0) | (index == nodes - 1), axis=1)
        even = jnp.all(index % 2 == 0, axis=1) * 2.0**latent  # the grid of twice the spacing
        parts = jnp.column_stack([jnp.ones_like(even), even, edge, z, z**2])
        added = jnp.matmul(w.T, parts, precision=lax.Precision.HIGHEST)
        return new, sums * old[:, None] + added, squares * old**2 + jnp.sum(w**2, axis=0)

    start = jnp.full(n, -jnp.inf), jnp.zeros((n, 3 + 2 * latent)), jnp.zeros(n)
    top, sums, squares = fold(add, start)
    total, even, edge = sums[:, 0], sums[:, 1], sums[:, 2]
    mean, square = jnp.split(sums[:, 3:] / total[:, None], 2, axis=1)
    return Quadrature(
        log_px=top + jnp.log(total),
        coarse=top + jnp.log(even),
        edge=edge / total,
        points=total**2 / squares,
        mean=mean,
        deviation=jnp.sqrt(jnp.maximum(square - mean**2, 0)),
    )


def grid_rule(function: str, spacing: float, width: float, latent: int) -> Rule:
    """Nodes of one dimension, symmetric around 0, and the log of the length each stands for."""
    check_number(f"{function}: spacing", spacing)
    check_number(f"{function}: width", width)
    if not 0 < spacing <= width < np.inf:
        got = f"spacing={spacing}, width={width}"
        raise wrong(f"{function}: grid", got, "0 < spacing <= width", "width is a half-width")
    number = round(2 * width / spacing)
    if number**latent > MOST_POINTS:
        enough = 2 * width / most_nodes(latent)
        fix = f"take spacing={np.ceil(enough * 1e4) / 1e4:g} or narrow the width"
        got = f"{number}^{latent} = {number**latent:.1e} points"
        raise wrong(f"{function}: spacing", got, f"at most {MOST_POINTS:.0e}", fix)
    nodes = (np.arange(number) - (number - 1) / 2) * spacing
    return jnp.asarray(nodes, float), jnp.full(number, np.log(spacing), float)


def hermite_rule(points: int) -> tuple[Array, Array]:
    """Nodes and log-weights of one dimension under N(0, 1)."""
    from scipy import special

    nodes, weights = special.roots_hermitenorm(points)
    with np.errstate(divide="ignore"):  # the outermost of many weights are 0 in double precision
        log_w = np.log(weights) - 0.5 * np.log(2 * np.pi)
    return jnp.asarray(nodes, float), jnp.asarray(log_w, float)


def most_nodes(latent: int) -> int:
    """How many nodes per dimension a rule may have."""
    return int(MOST_POINTS ** (1 / latent) + 1e-9)
