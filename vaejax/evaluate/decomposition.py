"""The averaged ELBO taken apart by the aggregated posterior q(z) = 1/N sum_n q(z|x_n).

All figures are nats per example and describe the N examples given. The standard error beside a
number is that of the draws, with these examples fixed. Model noise such as dropout is off; `data`
is a Batch or the x of one, stored data if a `transform(key, x)` is given (once per example).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import check_unweighted, example_at, size_of
from vaejax.distributions import MultivariateNormal, Normal, check_comparable, kl
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.evaluate._each import checked_batch, measure, measure_each
from vaejax.model import Draw, Model, deterministic, terms
from vaejax.types import Array, Batch, Estimate, Key, Params, Transform, describe_fields


@describe_fields
class Decomposition(NamedTuple):
    """The averaged ELBO taken apart, nats per example; see `decompose` for the equations.

    Args:
      elbo, distortion, rate: the ELBO, D and R.
      information: I(x; z).
      aggregated_kl: KL(q(z) || p(z)).
      conditional_entropy: E_x H[q(z|x)].
      cross_entropy: H(q(z), p).
      entropy: H[q(z)].
      cap: log N.
      total_correlation: KL(q(z) || prod_j q(z_j)), for a diagonal Normal posterior and prior, else
        None.
      dimension_rate, dimension_information, dimension_kl: E KL(q(z_j|x) || p(z_j)), I(x; z_j) and
        KL(q(z_j) || p(z_j)), lists of `[latent]` estimates under the same condition, else None.
    """

    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    information: Estimate
    aggregated_kl: Estimate
    conditional_entropy: Estimate
    cross_entropy: Estimate
    entropy: Estimate
    cap: float
    total_correlation: Estimate | None
    dimension_rate: list[Estimate] | None
    dimension_information: list[Estimate] | None
    dimension_kl: list[Estimate] | None

    @property
    def capped(self) -> bool:
        """Whether I(x; z) is within log 2 of log N, the most that N examples can show.

        A typical z then owes more than half of q(z) to its own example: for the distribution that
        the examples come from I(x; z) is larger, and KL(q(z) || p) and the total correlation
        smaller.
        """
        return self.information.value > self.cap - np.log(2)

    def __str__(self) -> str:
        near = ": capped, take more examples" if self.capped else ""
        lines = [
            ("ELBO = -(D + R)", self.elbo, ""),
            ("distortion D", self.distortion, ""),
            ("rate R", self.rate, ""),
            ("  = I(x; z)", self.information, f"at most log N = {self.cap:.3f}{near}"),
            ("  + KL(q(z) || p)", self.aggregated_kl, ""),
        ]
        if self.total_correlation is not None and self.dimension_kl is not None:
            along = sum(one.value for one in self.dimension_kl)
            rest = f"beside {along:.3f} of the dimensions' own"
            lines.append(("    with total correlation", self.total_correlation, rest))
        lines += [
            ("  = cross-entropy of q(z), p", self.cross_entropy, ""),
            ("  - conditional entropy of q", self.conditional_entropy, ""),
        ]
        return table(lines)


@measure
def decompose(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    components: int | None = None,
    draws: int = 1000,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Decomposition:
    """The averaged ELBO in two readings, by the aggregated posterior q(z) of the examples.

        ELBO = -D - R,   R = I(x; z) + KL(q(z) || p(z))
                           = H(q(z), p) - E_x H[q(z|x)]
        I(x; z) = E_x KL(q(z|x) || q(z)) = H[q(z)] - E_x H[q(z|x)] <= log N
        KL(q(z) || p(z)) = TC + sum_j KL(q(z_j) || p(z_j)),  TC = KL(q(z) || prod_j q(z_j))

    The second line is cross-entropy minus conditional entropy: raising the conditional entropy of q
    is the same as lowering I(x; z) only while the entropy of q(z) stays fixed. The last line holds
    for a diagonal Normal posterior and prior.

    About `draws` codes z, at least two from each of as many examples (all, if N is small), are
    scored under every q(z|x_n): log q(z) is exact. With `components` = M below N only a random M of
    them are, z's own at weight 1/N and the m others among them at (N-1)/N/m each. q(z) is then
    unbiased, its logarithm too low and I(x; z) too high; neither that bias nor the spread of the
    choice is in the errors. Errors are those of two-stage sampling, at fixed examples; R and the
    entropies have none where the posterior and prior have closed forms. Time grows with
    N draws latent, memory does not.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: N examples `[N, ...]`, two or more; of one condition c if there is any, as q(z) is one
        for each c.
      components: how many posteriors q(z) is summed over, 2 to N; None: all N.
      draws: how many codes are scored, 4 or more.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      A Decomposition, nats per example.
    Raises:
      ValueError: for fewer than two examples or four draws, weights, components outside 2..N,
        several conditions, no prior, and where a number is not finite.
      TypeError: for a point under a density.
    References:
      Hoffman and Johnson, 2016, ELBO surgery (NIPS workshop on advances in approximate Bayesian
      inference); Chen et al., 2018, arXiv:1802.04942 (total correlation).
    """
    batch = checked("decompose", key, data, batch_size=batch_size)
    size = size_of(batch.x)
    at_least_one("decompose", ("components",), draws=draws, components=components)
    if draws < 4:
        raise wrong("decompose: draws", draws, "4 or more", "1000 are usual")
    if components is not None and not 2 <= components <= size:
        raise wrong("decompose: components", components, f"2 to {size}", "leave it out for all")
    _one_condition(batch.c)
    moments_key, draw_key, own_key, subset_key = jax.random.split(key, 4)
    data_key = jax.random.clone(moments_key)  # the same transformed examples, in the same order
    q, pz = check_posterior("decompose", model, transform, params, moments_key, batch)

    arrays = params, data_key, batch
    D, R, H, rates = measure_each(_moments, (model,), transform, batch_size, *arrays)
    for name, found in {"the distortion": D, "the rate": R, "the entropy of q": H}.items():
        finite_values("decompose", name, jnp.mean(found, axis=1), batch.x)
    each = max(2, -(-draws // size))
    own = jax.random.permutation(own_key, size)[: min(size, -(-draws // each))]
    subset = jnp.arange(size)
    if components is not None:
        subset = jax.random.permutation(subset_key, size)[:components]
    sizes, keys = (batch_size, each), (data_key, draw_key)
    log_ratio = _log_ratios(model, transform, sizes, params, keys, (batch.x, batch.c), own, subset)
    finite_values(
        "decompose", "log q(z|x) - log q(z)", jnp.mean(log_ratio[..., 0], axis=1), batch.x
    )

    distortion, rate, conditional = (_estimate(values, size) for values in (D, R, H))
    information = _estimate(log_ratio[..., 0], size)
    factorial = is_factorial(q, pz)
    parts = np.asarray(log_ratio, float)
    by_rate = (
        [Estimate(float(r), 0.0) for r in np.mean(rates, axis=0, dtype=float)] if factorial else []
    )
    by_information = [_estimate(parts[..., j], size) for j in range(1, parts.shape[-1])]
    # log q(z) - sum_j log q(z_j), as q(z|x) is the product of its q(z_j|x).
    correlation = parts[..., 1:].sum(axis=-1) - parts[..., 0]
    return Decomposition(
        elbo=_estimate(-(D + R), size),
        distortion=distortion,
        rate=rate,
        information=information,
        aggregated_kl=_minus(rate, information),
        conditional_entropy=conditional,
        cross_entropy=_estimate(R + H, size),
        entropy=_plus(conditional, information),
        cap=float(np.log(size)),
        total_correlation=_estimate(correlation, size) if factorial else None,
        dimension_rate=by_rate if factorial else None,
        dimension_information=by_information if factorial else None,
        dimension_kl=list(map(_minus, by_rate, by_information)) if factorial else None,
    )


def _moments(
    model: Model, params: Params, key: Key, x: Any, c: Any
) -> tuple[Array, Array, Array, Any]:
    """At two draws of z: D, R, H `[2]`; and KL of each dimension `[latent]`, or ()."""
    model = deterministic(model)
    q, pz = model.encode(params, x, c), model.prior(params, c)

    def one(z_key: Key) -> tuple[Array, Array, Array]:
        z, log_q = q.sample_and_log_prob(z_key)
        d = Draw(x, z, log_q, q, pz, model.decode(params, z, c))
        return terms.distortion(d), terms.rate(d), _entropy(q, log_q)

    D, R, H = jax.vmap(one)(jax.random.split(key))
    each = is_factorial(q, pz)
    rates = jax.vmap(kl)(dimensions_of(q), dimensions_of(pz)) if each else ()
    return D, R, H, rates


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_ratios(
    model: Model,
    transform: Transform | None,
    sizes: tuple[int, int],
    params: Params,
    keys: tuple[Key, Key],
    data: Any,
    own: Array,
    components: Array,
) -> Array:
    """log q(z|x) - log q(z) at draws z ~ q(z|x), `[own, each, 1 + latent]`: jointly, then per z_j.

    `sizes`: the batch size, and how many z each example draws; `keys`: of the data, as in
    `measure_each`, and of the draws; `data`: all x and c; `own [chosen]`: the examples that z is
    drawn for; `components`: those that q(z) is summed over.
    Each is encoded once and scores all draws, so that no posterior has to be stored.
    """
    model = deterministic(model)
    batch_size, each = sizes
    data_key, draw_key = keys
    x, c = data
    size = size_of(x)

    def encoded(index: Array) -> Any:
        one_x, one_c, _ = example_at(data_key, transform, index, x, c)
        return model.encode(params, one_x, one_c)

    def drawn(index: Array) -> tuple[Array, Array]:
        q, z_key = encoded(index), jax.random.fold_in(draw_key, index)
        z = jax.vmap(q.sample)(jax.random.split(z_key, each))
        return z, jax.vmap(partial(_log_probs, q))(z)

    z, log_own = lax.map(drawn, own, batch_size=batch_size)
    z, log_own = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (z, log_own))
    owner = jnp.repeat(own, each)
    # As many posteriors at a time as leave their scores in a processor's cache, and as many draws
    # as XLA sums over them in one pass: with more than 2**14 sums a pair takes it thrice the time.
    width = min(max(2**20 // log_own.size, 8), components.size)
    blocks = -(-log_own.size // 2**14)
    draws = owner.size
    rows = jnp.minimum(jnp.arange(blocks * -(-draws // blocks)), draws - 1).reshape(blocks, -1)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        index, counted = chunk

        def scores(i: Array) -> Array:
            score = jax.vmap(partial(_log_probs, encoded(i)))
            return lax.map(lambda row: score(jax.tree.map(lambda v: v[row], z)), rows)

        def sums(some: tuple[Array, Array]) -> Array:
            log_q, row = some
            other = counted[:, None] & (index[:, None] != owner[row][None])
            return jax.nn.logsumexp(jnp.where(other[..., None], log_q, -jnp.inf), axis=0)

        log_q = jax.vmap(scores, out_axes=1)(index)  # [blocks, width, draws, 1 + latent]
        found = lax.map(sums, (log_q, rows)).reshape(-1, total.shape[-1])[:draws]
        return jnp.logaddexp(total, found), None

    places = jnp.arange(-(-components.size // width) * width)
    index = components[jnp.minimum(places, components.size - 1)]
    chunks = index.reshape(-1, width), (places < components.size).reshape(-1, width)
    total, _ = lax.scan(add, jnp.full_like(log_own, -jnp.inf), chunks)
    # The own term stands for 1 of N examples, and the others drawn for the N - 1 that are left.
    others = components.size - jnp.isin(owner, components)[:, None]
    rest = total + jnp.log1p(-1 / size) - jnp.log(others)
    log_qz = jnp.logaddexp(log_own - jnp.log(float(size)), rest)
    return (log_own - log_qz).reshape(own.size, each, -1)


def _log_probs(q: Any, z: Array) -> Array:
    """log q(z), and of a diagonal Normal also each log q(z_j): `[1 + latent]`, else `[1]`."""
    if not isinstance(q, Normal):
        return q.log_prob(z)[None]
    each = jax.vmap(lambda one, value: one.log_prob(value))(dimensions_of(q), z.ravel())
    return jnp.concatenate([jnp.sum(each)[None], each])


def dimensions_of(q: Normal) -> Normal:
    """A diagonal Normal as one Normal per dimension, to be mapped over: leaves `[latent]`."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, q.event_shape).ravel(), q)


def _entropy(q: Any, log_q: Array) -> Array:
    """H[q] in nats: exact for Gaussians, else -log q at the draw."""
    if not isinstance(q, Normal | MultivariateNormal):
        return -log_q
    own = jnp.broadcast_to(q.loc, q.event_shape)
    # The density at the mean is the normaliser, to which the mean squared residual adds 1/2 each.
    return 0.5 * own.size - q.log_prob(own)


def is_factorial(q: Any, pz: Any) -> bool:
    """Whether posterior and prior are diagonal Normals: each dimension then has its own KL."""
    return isinstance(q, Normal) and isinstance(pz, Normal)


def _estimate(values: Any, size: int) -> Estimate:
    """Mean over `size` examples from `values [chosen, each]`, and its error by two-stage sampling.

    Of the variance between examples only the part counts that the examples left out leave open
    (Cochran, 1977, Sampling techniques, chapter 10).
    """
    values = np.asarray(values, float)
    chosen, each = values.shape
    within = values.var(axis=1, ddof=1).mean() / (chosen * each)
    between = values.mean(axis=1).var(ddof=1) / chosen
    share = chosen / size
    return Estimate(float(values.mean()), float(np.sqrt(share * within + (1 - share) * between)))


def _norm(a: Estimate, b: Estimate) -> float:
    return float(np.hypot(a.error, b.error))


def _plus(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(a.value + b.value, _norm(a, b))


def _minus(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(a.value - b.value, _norm(a, b))


def table(rows: Sequence[tuple[str, Estimate, str]]) -> str:
    """Lines of name, value (standard error), note; value and error in one unit."""
    return "\n".join(
        f"  {name:30s} {one.value:9.3f} ({one.error:.3f}) {note}".rstrip()
        for name, one, note in rows
    )


def checked(function: str, key: Key, data: Any, **counts: int) -> Batch:
    """`checked_batch`; ValueError also for weights, and for fewer than two examples."""
    batch = checked_batch(function, key, data, **counts)
    size = size_of(batch.x)
    check_unweighted(function, batch)
    if size < 2:
        fix = "an average over data needs some"
        raise wrong(f"{function}: data", f"{size} examples", "2 or more", fix)
    return batch


def shapes_of(model: Model, transform: Any, params: Params, key: Key, batch: Batch) -> Any:
    """The posterior of the first example and the prior, as shapes."""

    def both(x: Any, c: Any) -> Any:
        one_x, one_c, _ = example_at(key, transform, jnp.zeros((), int), x, c)
        return model.encode(params, one_x, one_c), model.prior(params, one_c)

    return jax.eval_shape(both, batch.x, batch.c)


def check_posterior(
    function: str, model: Model, transform: Any, params: Params, key: Key, batch: Batch
) -> Any:
    """`shapes_of`; ValueError without a prior, TypeError where log q - log p has no meaning."""
    q, pz = shapes_of(model, transform, params, key, batch)
    if pz is None:
        fix = "give autoencoder(..., prior=...)"
        raise wrong(f"{function}: model", "one without a prior", "a prior p(z)", fix)
    check_comparable(function, q, pz)
    return q, pz


def _one_condition(c: Any) -> None:
    for leaf in jax.tree.leaves(c):
        if not np.all(np.asarray(leaf) == np.asarray(leaf)[:1]):
            fix = "there is one q(z) for each condition: pass its examples alone"
            raise wrong("decompose: data.c", "several conditions", "one for all examples", fix)


__all__ = ["Decomposition", "Estimate", "decompose"]
