"""How good inference is: the posterior refined for each example, and the gap that it leaves.

log p(x) - ELBO(q) = KL(q(z|x) || p(z|x)) has two parts: what no q of the family could reach, and
what the encoder, having to serve all examples, loses against the best q for this one.
"""

import functools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vaejax.batch import check_unweighted, over_data, size_of
from vaejax.distributions import Distribution, Mixture, MultivariateNormal, Normal
from vaejax.errors import finite_values, wrong
from vaejax.evaluate import _measures as evaluate
from vaejax.evaluate._each import checked_batch, measure_each
from vaejax.model import Draw, Model, deterministic, terms
from vaejax.types import Array, Batch, Estimate, Key, Params, Transform


class InferenceGap(NamedTuple):
    """log p(x) = elbo + amortisation + approximation, for every example and in the mean, nats.

    Args:
      log_px: the estimate of log p(x), `[n]`.
      elbo_refined: the bound at the refined q, `[n]`.
      elbo: the bound at the encoder's q, `[n]`.
      ess: the effective sample size behind `log_px`, NaN where it was given, `[n]`.
      approximation: `mean(log_px - elbo_refined)`.
      amortisation: `mean(elbo_refined - elbo)`.
    """

    log_px: np.ndarray
    elbo_refined: np.ndarray
    elbo: np.ndarray
    ess: np.ndarray
    approximation: Estimate
    amortisation: Estimate


def refine(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    steps: int = 500,
    samples: int = 5,
    learning_rate: float = 0.05,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Any:
    """The best q of the encoder's family for each example: q* = argmax_q ELBO(x; q).

    Gradient ascent from q(z|x), by Adam with `learning_rate` falling to 0 along a cosine over
    `steps`, on loc and log scale of a Normal, or on loc, the entries below the diagonal and the log
    of the diagonal of scale_tril of a MultivariateNormal. Each step draws `samples` new z and takes
    their mirror images about loc too; the rate is in closed form where there is one. The parameters
    of the model stay as they are.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`, as in `evaluate.log_likelihood` with the same key.
      data: a Batch, or the x of one, `[n, ...]`.
      steps: of Adam.
      samples: draws of z in a step.
      learning_rate: at the first step, 0 or more.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The distribution q*, with a leading axis `[n]` on every leaf.
    Raises:
      TypeError: for a q that is neither Normal nor MultivariateNormal.
      ValueError: for counts below 1, and where q* is not finite, with the example's index.
    References:
      Cremer, Li and Duvenaud, 2018, Inference suboptimality in variational autoencoders,
      arXiv:1801.03558; Kim et al., 2018, Semi-amortized variational autoencoders, arXiv:1802.02550.
    """
    counts = {"steps": steps, "samples": samples, "batch_size": batch_size}
    batch = checked_batch("refine", key, data, **counts)
    if not learning_rate >= 0:
        raise wrong("refine: learning_rate", learning_rate, "0 or more", "0.05 is a start")
    options, shared = (model, steps, samples), (params, learning_rate)
    q = measure_each(_refined, options, transform, batch_size, shared, key, batch)
    for leaf in jax.tree.leaves(q):
        finite_values("refine", "q*", jnp.sum(leaf, axis=range(1, jnp.ndim(leaf))), batch.x)
    return q


def inference_gap(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    particles: int = 5000,
    steps: int = 500,
    samples: int = 100,
    learning_rate: float = 0.05,
    log_px: Any = None,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> InferenceGap:
    """The gap of the bound, split into what the family and what amortisation costs, nats.

    log p(x) - ELBO(q) = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(q)], approximation plus
    amortisation, with q* from `refine`. Both bounds are means over `samples` new draws.

    Where `log_px` is not given, log p(x) is the importance-weighted bound with `particles` draws.
    That is too low in expectation, so the approximation gap is too small by as much: look at `ess`.
    Its proposal is an equal mixture of q*, of q* with its scales times 1 + 1/sqrt(latent), and of
    q: the best q is narrower than the posterior wherever that is correlated, and alone would give
    weights without variance (defensive importance sampling).

    Args:
      model, params, key, data: as in `refine`.
      particles: K of the estimate of log p(x).
      steps, learning_rate: as in `refine`.
      samples: draws of z in each bound.
      log_px: log p(x) where it is known better, by quadrature or annealed importance sampling on
        the same x, nats, `[n]`; then without a transform. None: it is estimated.
      transform, batch_size: as in `refine`.
    Returns:
      An InferenceGap.
    Raises:
      ValueError: as `refine` does, for weights, which its means do not know, and where log_px does
        not have one number for each example.
      TypeError: as `refine` does.
    References:
      Cremer, Li and Duvenaud, 2018, arXiv:1801.03558; Hesterberg, 1995, Weighted average importance
      sampling and defensive mixture distributions.
    """
    counts = {"particles": particles, "samples": samples, "steps": steps}
    batch = checked_batch("inference_gap", key, data, **counts, batch_size=batch_size)
    check_unweighted("inference_gap", batch)
    n = size_of(batch.x)
    if log_px is not None and (np.shape(log_px) != (n,) or transform is not None):
        got = f"shape {np.shape(log_px)}{'' if transform is None else ' with a transform'}"
        fix = "transform the data first, so that log_px is that of the x that is measured here"
        raise wrong("inference_gap: log_px", got, f"[{n}] of untransformed data", fix)
    if log_px is not None:
        log_px = finite_values("inference_gap", "log_px", log_px, batch.x)
    seen_key, refine_key, elbo_key, weight_key = jax.random.split(key, 4)
    if transform is not None:
        x = measure_each(_seen, (), transform, batch_size, (), seen_key, Batch(batch.x))
        batch = batch._replace(x=x)
    options: dict[str, Any] = {"batch_size": batch_size}
    q = refine(
        model, params, refine_key, batch, steps=steps, learning_rate=learning_rate, **options
    )
    refined, given = _given_posterior(model), batch._replace(c=(batch.c, q))
    proposal = _proposal(model, batch_size, params, q, batch.x, batch.c)
    # The same noise for both bounds: their difference is that of the posteriors.
    elbo_refined, elbo = (
        evaluate.elbo_terms(m, params, k, b, samples=samples, **options)["elbo"]
        for m, k, b in [(refined, elbo_key, given), (model, jax.random.clone(elbo_key), batch)]
    )
    if log_px is None:
        log_px, ess = evaluate.log_likelihood(
            refined,
            params,
            weight_key,
            batch._replace(c=(batch.c, proposal)),
            particles=particles,
            **options,
        )
    else:
        log_px, ess = np.asarray(log_px), np.full(n, np.nan)
    gaps = _mean(log_px - elbo_refined), _mean(elbo_refined - elbo)
    return InferenceGap(log_px, elbo_refined, elbo, ess, *gaps)


def _refined(
    model: Model,
    steps: int,
    samples: int,
    shared: tuple[Params, Any],
    key: Key,
    x: Any,
    c: Any,
) -> Any:
    """The q* of one example; shared: params, learning_rate."""
    model = deterministic(model)
    params, learning_rate = shared
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, steps))
    pz, start = model.prior(params, c), model.encode(params, x, c)

    def negative_elbo(free: Any, sample_key: Key) -> Array:
        q = _constrained(free)
        z, log_q = q.sample_and_log_prob(sample_key)

        def at(z: Array) -> Array:
            d = Draw(x, z, log_q, q, pz, model.decode(params, z, c))
            return terms.distortion(d) + terms.rate(d)

        # The mirror image of a draw is as likely, and what is odd in the noise cancels: the
        # gradient in loc has no noise at all where log p(x, z) is quadratic in z.
        return 0.5 * (at(z) + at(2 * q.loc - z))

    def loss(free: Any, step_key: Key) -> Array:
        keys = jax.random.split(step_key, samples)
        return jnp.mean(jax.vmap(negative_elbo, (None, 0))(free, keys))

    def step(carry: Any, i: Array) -> tuple[Any, None]:
        free, state = carry
        gradient = jax.grad(loss)(free, jax.random.fold_in(key, i))
        updates, state = optimizer.update(gradient, state)
        updates = jax.tree.map(lambda u: learning_rate * u, updates)
        return (optax.apply_updates(free, updates), state), None

    free = _unconstrained(start)
    (free, _), _ = lax.scan(step, (free, optimizer.init(free)), jnp.arange(steps))
    return _constrained(free)


@partial(jax.jit, static_argnums=(0, 1))
def _proposal(model: Model, batch_size: int, params: Any, q: Any, x: Any, c: Any) -> Any:
    """The mixture of q*, a wider q* and the encoder's q, for every example."""

    def example(index: Array) -> Mixture:
        best, one_x, one_c = jax.tree.map(lambda leaf: leaf[index], (q, x, c))
        free = _unconstrained(best)
        wide = _scaled(free, 1 + 1 / math.sqrt(free.loc.size))
        encoded = _unconstrained(deterministic(model).encode(params, one_x, one_c))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), free, wide, encoded)
        return Mixture(jnp.zeros(3, free.loc.dtype), jax.vmap(_constrained)(stacked))

    return over_data(example, size_of(x), batch_size)


class _Free(NamedTuple):
    """A Gaussian in coordinates without bounds; `below` is () for a diagonal one."""

    loc: Any
    log_scale: Any
    below: Any


def _unconstrained(q: Distribution) -> _Free:
    match q:
        case Normal():
            loc, scale = (jnp.broadcast_to(leaf, q.event_shape) for leaf in (q.loc, q.scale))
            return _Free(loc, jnp.log(scale), ())
        case MultivariateNormal():
            L, loc = jnp.asarray(q.scale_tril), jnp.broadcast_to(q.loc, q.event_shape)
            # The same covariance with a positive diagonal.
            L = L * jnp.sign(jnp.diagonal(L))[None]
            return _Free(loc, jnp.log(jnp.diagonal(L)), jnp.tril(L, -1))
        case _:
            fix = "refine knows these two families"
            expected = "a Normal or a MultivariateNormal"
            raise wrong("refine: encode", type(q).__name__, expected, fix, TypeError)


def _scaled(free: _Free, factor: float) -> _Free:
    """The same Gaussian, `factor` times as wide in every direction."""
    log_scale = free.log_scale + math.log(factor)
    return _Free(free.loc, log_scale, jax.tree.map(lambda below: factor * below, free.below))


def _constrained(free: _Free) -> Any:
    scale = jnp.exp(free.log_scale)
    if isinstance(free.below, tuple):
        return Normal(free.loc, scale)
    return MultivariateNormal(free.loc, jnp.tril(free.below, -1) + jnp.diag(scale))


# One object per model: the functions of evaluate compile once for each.
@functools.lru_cache(maxsize=16)
def _given_posterior(model: Model) -> Model:
    """The model whose condition is (c, q): its posterior is handed over instead of encoded."""

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return c[1]

    def prior(params: Params, c: Any = ()) -> Any:
        return model.prior(params, c[0])

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(params, z, c[0], key=key)

    return Model(model.init, prior, encode, decode)


def _seen(params: Params, key: Key, x: Any, c: Any) -> Any:
    """The example as the model sees it."""
    return x


def _mean(values: np.ndarray) -> Estimate:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), float(error))


__all__ = ["InferenceGap", "inference_gap", "refine"]
