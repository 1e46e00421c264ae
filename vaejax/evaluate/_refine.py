"""The best Gaussian for one density: Newton steps on mirrored draws, and what they have left.

`f(z) = -log p(x, z)` is the energy of one example. In the coordinates of a Gaussian q, `z = loc +
root e`, the draws e have mean 0 and covariance I exactly. Their mean of `f` then is exact where f
is quadratic, and so are its slope and its curvature, by Stein's identity, from gradients alone:

    E[f''] = E[f'(z) e^T] root^-1

At the best q the slope is 0 and the curvature, as q sees it, is 1 (Price's theorem; Opper and
Archambeau, 2009). A step goes to where both would be so if f were quadratic.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.types import Array, Key

AT_A_TIME = 16  # pairs of draws in memory, for each example
SETS = 8  # of new draws, by which the result is judged
POLISHING = 30  # steps on new draws each, of which the mean counts
PRIOR_DRAWS = 256  # that show where the prior lies, and its best draw for this x
SETTLED = 1e-4  # nats that a step expects to gain, below which the search is over
NARROWEST, WIDEST = 1e4, 1e-2  # of the curvature that q sees, in one step

Energy = Callable[[Array], Array]


class Gaussian(NamedTuple):
    """N(loc, root root^T); loc `[d]`, root `[d]` for a diagonal one, else lower `[d, d]`."""

    loc: Array
    root: Array


class Best(NamedTuple):
    """What `best_gaussian` found.

    Args:
      q: the best Gaussian of the family.
      left: what a further step would gain, nats, `()`: an estimate without bias, which may fall
        below 0; infinite where the energy is not finite.
      root: of the covariance that the whole curvature at q gives, lower `[d, d]`: the posterior's,
        where that is Gaussian.
    """

    q: Gaussian
    left: Array
    root: Array


class Seen(NamedTuple):
    """What draws of q tell: E f - log det root, the slope `[d]` and the curvature `[d, d]`."""

    value: Array
    slope: Array
    curvature: Array


def best_gaussian(
    energy: Energy,
    start: Gaussian,
    draw_prior: Callable[[Key], Array],
    key: Key,
    *,
    pairs: int,
    steps: Any,
    rate: Any,
) -> Best:
    """argmin_q E_q f - H[q] from several starts, and how far it is from its minimum.

    The starts are the given q, a Gaussian as wide as the prior, and a narrow one at the prior's
    draw with the least energy. The best of the results, polished or not, and the given q is taken,
    as new draws judge them.

    Args:
      energy: f, of a vector `[d]`.
      start: the encoder's q.
      draw_prior: a draw of the prior `[d]`, from a key.
      key: for all draws.
      pairs: draws e with their mirror images -e in a step, d or more.
      steps: of the search, at most.
      rate: the share of a step that is taken, in (0, 1]; 0 leaves q as it is.
    Returns:
      A Best.
    """
    prior_key, search_key, polish_key, judge_key = jax.random.split(key, 4)
    energy, start = _in_one_type(energy, start, draw_prior)
    starts = _starts(energy, start, draw_prior, prior_key)
    e = _draws(search_key, pairs, start.loc)
    found, seen = jax.vmap(lambda q: _searched(energy, q, e, steps, rate))(starts)
    # Ties, as where nothing is finite, and a rate of 0 keep to the first, the encoder's q.
    value = jnp.where(rate > 0, seen.value, jnp.inf).at[0].set(seen.value[0])
    best = jnp.argmin(value)
    q, seen = jax.tree.map(lambda leaf: leaf[best], (found, seen))
    polished = _polished(energy, q, seen, polish_key, pairs, rate)
    return _judged(energy, [start, q, polished], judge_key, pairs)


def _in_one_type(energy: Energy, q: Gaussian, draw_prior: Any) -> tuple[Energy, Gaussian]:
    """The energy and a start in the widest type of both and the prior, which a loop has to keep."""
    seen = jax.eval_shape(lambda: (energy(q.loc), draw_prior(jax.random.key(0))))
    dtype = jnp.result_type(*jax.tree.leaves((q, seen)))
    return lambda z: energy(z).astype(dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), q)


def _starts(energy: Energy, q: Gaussian, draw_prior: Any, key: Key) -> Gaussian:
    """The three starts, `[3]` on every leaf."""
    z = jax.vmap(draw_prior)(jax.random.split(key, PRIOR_DRAWS))
    f = lax.map(energy, z, batch_size=2 * AT_A_TIME)
    deviation = jnp.std(z, axis=0)
    deviation = jnp.where(deviation > 0, deviation, 1.0)
    likeliest = z[jnp.argmin(jnp.where(jnp.isfinite(f), f, jnp.inf))]

    def root(scale: Array) -> Array:
        return scale if q.root.ndim == 1 else jnp.diag(scale)

    wide = Gaussian(jnp.mean(z, axis=0), root(deviation))
    narrow = Gaussian(likeliest, root(0.1 * deviation))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), q, wide, narrow)


def _draws(key: Key, pairs: int, like: Array) -> Array:
    """e `[pairs, d]` whose second moments are exactly I, without the mirror images; like: `[d]`."""
    e = jax.random.normal(key, (pairs, like.size), like.dtype)
    return _times(e, _inverse(_factor(_times(e.T, e) / pairs, 1e-6)).T)


def _look(energy: Energy, q: Gaussian, e: Array) -> Seen:
    """Value, slope and curvature at q; where one is not finite, what makes q narrower."""
    diagonal = q.root.ndim == 1

    def pair(e: Array) -> tuple[Array, Array, Array]:
        away = q.root * e if diagonal else _times(q.root, e)
        (one, up), (other, down) = (
            jax.value_and_grad(energy)(z) for z in (q.loc + away, q.loc - away)
        )
        # The mirror image is as likely, and what is odd in the noise cancels.
        slope, odd = (g * q.root if diagonal else _times(g, q.root) for g in (up + down, up - down))
        return (one + other) / 2, slope / 2, odd / 2

    f, slope, odd = lax.map(pair, e, batch_size=AT_A_TIME)
    curvature = _times(odd.T, e) / len(e)
    widths = q.root if diagonal else jnp.diagonal(q.root)
    value = jnp.mean(f) - jnp.sum(jnp.log(jnp.abs(widths)))
    seen = Seen(value, jnp.mean(slope, axis=0), (curvature + curvature.T) / 2)
    sound = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in seen]))
    lost = Seen(
        jnp.full_like(value, jnp.inf),
        jnp.zeros_like(seen.slope),
        16 * jnp.eye(q.loc.size, dtype=q.loc.dtype),
    )
    return jax.tree.map(lambda there, instead: jnp.where(sound, there, instead), seen, lost)


# Small factors are loops of their own: on CPU, LAPACK's calls inside of loops over many examples
# were seen to wait for each other for ever (jaxlib 0.10.2).
def _factor(matrix: Array, least: Any) -> Array:
    """Lower L, L L^T = matrix; a pivot below `least`, or negative, is made positive."""
    rows = jnp.arange(len(matrix))

    def column(j: Array, L: Array) -> Array:
        rest = matrix[:, j] - jnp.sum(L * L[j][None], axis=1)
        pivot = jnp.sqrt(jnp.maximum(jnp.abs(rest[j]), least))
        return L.at[:, j].set(jnp.where(rows > j, rest / pivot, jnp.where(rows == j, pivot, 0)))

    return lax.fori_loop(0, len(matrix), column, jnp.zeros_like(matrix))


def _inverse(L: Array) -> Array:
    """The inverse of a lower triangular matrix."""

    def row(j: Array, inverse: Array) -> Array:
        known = jnp.sum(L[j][:, None] * inverse, axis=0)
        return inverse.at[j].set((jnp.where(rows == j, 1.0, 0.0) - known) / L[j, j])

    rows = jnp.arange(len(L))
    return lax.fori_loop(0, len(L), row, jnp.zeros_like(L))


def _newton(slope: Array, curvature: Array) -> Array:
    """curvature^-1 slope, where the curvature is made positive, so that it leads down."""
    largest = jnp.max(jnp.abs(jnp.diagonal(curvature)))
    inverse = _inverse(_factor(curvature, 1e-5 * largest + 1e-30))
    return jnp.sum(inverse * jnp.sum(inverse * slope[None], axis=1)[:, None], axis=0)


def _root_of_inverse(curvature: Array, least: Any) -> Array:
    """Lower L with L L^T = curvature^-1, where the curvature is made positive."""
    largest = jnp.max(jnp.abs(jnp.diagonal(curvature)))
    # The upper triangular factor U of U U^T, by turning the matrix round: L = U^-T.
    turned = _factor(curvature[::-1, ::-1], jnp.maximum(1e-5 * largest, least))
    return _inverse(turned)[::-1, ::-1].T


def _moved(q: Gaussian, slope: Array, metric: Array, curvature: Array, share: Any) -> Gaussian:
    """q after the share of a step: the mean by the metric, the precision by the curvature."""
    step = -share * _newton(slope, metric)
    if q.root.ndim == 1:
        precision = jnp.clip(jnp.diagonal(curvature), WIDEST, NARROWEST)
        root = q.root / jnp.sqrt(1 - share + share * precision)
        return Gaussian(q.loc + q.root * step, root)
    precision = (1 - share) * jnp.eye(len(step), dtype=step.dtype) + share * curvature
    root = _times(q.root, _root_of_inverse(precision, WIDEST))
    return Gaussian(q.loc + jnp.sum(q.root * step[None], axis=1), root)


def _times(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision=lax.Precision.HIGHEST)


def _off(q: Gaussian, curvature: Array) -> Array:
    """By how much the curvature is not that of the best q, in the directions that q has."""
    off = curvature - jnp.eye(len(curvature), dtype=curvature.dtype)
    return jnp.diag(jnp.diagonal(off)) if q.root.ndim == 1 else off


def _searched(
    energy: Energy, start: Gaussian, e: Array, steps: Any, rate: Any
) -> tuple[Gaussian, Seen]:
    """The best q for these very draws: a step that would make it worse is tried shorter."""

    def left(state: Any) -> Array:
        q, seen, share, i = state
        gain = 0.5 * seen.slope @ _newton(seen.slope, seen.curvature)
        gain = gain + 0.25 * jnp.sum(_off(q, seen.curvature) ** 2)
        return (i == 0) | (i <= steps) & (gain > SETTLED) & (share > 1e-6)

    def step(state: Any) -> Any:
        q, seen, share, i = state
        new_q = _moved(q, seen.slope, seen.curvature, seen.curvature, share)
        new = _look(energy, new_q, e)
        size = jnp.where(jnp.isfinite(seen.value), jnp.abs(seen.value), 0)
        rounding = 8 * jnp.finfo(size.dtype).eps * size
        better = new.value <= seen.value + rounding
        q, seen = jax.tree.map(
            lambda moved, stays: jnp.where(better, moved, stays), (new_q, new), (q, seen)
        )
        share = jnp.where(better, jnp.minimum(rate, 2 * share), share / 4)
        return q, seen, share, i + 1

    rate = jnp.asarray(rate, start.loc.dtype)
    slope = jnp.zeros_like(start.loc)
    # Before the first step nothing is known but that the start itself is to be looked at.
    unseen = Seen(jnp.full_like(rate, jnp.inf), slope, jnp.eye(slope.size, dtype=slope.dtype))
    state = start, unseen, rate, jnp.zeros((), int)
    q, seen, _, _ = lax.while_loop(left, step, state)
    return q, seen


def _polished(energy: Energy, q: Gaussian, seen: Seen, key: Key, pairs: int, rate: Any) -> Gaussian:
    """q after steps on new draws, of which the i-th takes the share 1 / (i + 1): their mean."""

    def step(q: Gaussian, i: Array) -> tuple[Gaussian, None]:
        new = _look(energy, q, _draws(jax.random.fold_in(key, i), pairs, q.loc))
        return _moved(q, new.slope, seen.curvature, new.curvature, rate / (i + 2)), None

    return lax.scan(step, q, jnp.arange(POLISHING))[0]


def _judged(energy: Energy, candidates: list[Gaussian], key: Key, pairs: int) -> Best:
    """The best of the candidates by new draws, and what they tell of it."""
    like = candidates[0].loc
    sets = jax.vmap(lambda k: _draws(k, pairs, like))(jax.random.split(key, SETS))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates)
    seen = jax.vmap(lambda q: lax.map(partial(_look, energy, q), sets))(stacked)
    best = jnp.argmin(jnp.mean(seen.value, axis=1))
    q, seen = jax.tree.map(lambda leaf: leaf[best], (stacked, seen))
    off = jax.vmap(partial(_off, q))(seen.curvature)
    metric = jnp.mean(seen.curvature, axis=0)
    steps = jax.vmap(lambda slope: _newton(slope, metric))(seen.slope)
    gain = 0.5 * _between(seen.slope, steps) + 0.25 * _between(off, off)
    gain = jnp.where(jnp.all(jnp.isfinite(seen.value)), gain, jnp.inf)
    inverse = _root_of_inverse(metric, 1e-30)
    root = q.root[:, None] * inverse if q.root.ndim == 1 else _times(q.root, inverse)
    return Best(q, gain, root)


def _between(one: Array, other: Array) -> Array:
    """The mean of `one_i other_j` over i != j: of squares, without the share of the noise."""
    sets = len(one)
    both = jnp.sum(jnp.sum(one, axis=0) * jnp.sum(other, axis=0))
    return (both - jnp.sum(one * other)) / (sets * (sets - 1))
