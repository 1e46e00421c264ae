"""How good inference is: the posterior refined for each example, and the gap that it leaves.

log p(x) - ELBO(q) = KL(q(z|x) || p(z|x)) has two parts: what no q of the family could reach, and
what the encoder, having to serve all examples, loses against the best q for this one.
"""

import functools
import math
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import check_unweighted, over_data, size_of
from vaejax.distributions import Distribution, Mixture, MultivariateNormal, Normal
from vaejax.errors import finite_values, wrong
from vaejax.evaluate import _measures as evaluate
from vaejax.evaluate._each import checked_batch, measure, measure_each
from vaejax.evaluate._refine import Gaussian, best_gaussian
from vaejax.model import Model, deterministic
from vaejax.types import Array, Batch, Estimate, Key, Params, Transform, describe_fields

SAMPLES = 16  # draws of a step, see `refine`
TOLERANCE = 0.05  # nats in the mean over the examples, beyond which nothing has converged


class NotConverged(Estimate):
    """Stands for an Estimate that cannot be trusted; it prints as "not converged".

    Args:
      value, error: NaN.
    """

    def __str__(self) -> str:
        return "not converged"


@describe_fields
class InferenceGap(NamedTuple):
    """log p(x) = elbo + amortisation + approximation, for every example and in the mean, nats.

    `str` gives a table, with "not converged" and the reason in place of a number that is not.

    Args:
      log_px: the estimate of log p(x), `[n]`.
      elbo_refined: the bound at the refined q, `[n]`.
      elbo: the bound at the encoder's q, `[n]`.
      ess: the effective sample size behind `log_px`, NaN where it was given, `[n]`.
      approximation: `mean(log_px - elbo_refined)`; NaN, printed as "not converged", where q* or
        log p(x) has not converged.
      amortisation: `mean(elbo_refined - elbo)`; the same where q* has not converged.
      left: what a further step of the refinement is expected to gain, `[n]`; see `refine`.
      problems: why a number has not converged; empty where all have.
    """

    log_px: np.ndarray
    elbo_refined: np.ndarray
    elbo: np.ndarray
    ess: np.ndarray
    approximation: Estimate
    amortisation: Estimate
    left: np.ndarray
    problems: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """Whether both parts of the gap are numbers."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"gap of the bound of {len(self.elbo)} examples, nats per example (se)"]
        for name in ("approximation", "amortisation"):
            lines.append(f"  {name}: {getattr(self, name)}")
        lines += [f"  {problem}" for problem in self.problems]
        if not np.isnan(self.ess).all():
            ess = f"ESS median {np.median(self.ess):.1f}, lowest {self.ess.min():.1f}"
            lines.append(f"  log p(x), importance-weighted: {_mean(self.log_px)}, {ess}")
        lines.append(f"  ELBO: {_mean(self.elbo)}, at the refined q {_mean(self.elbo_refined)}")
        return "\n".join(lines)


@measure
def refine(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    steps: int = 100,
    samples: int = SAMPLES,
    learning_rate: float = 1.0,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Any:
    """The best q of the encoder's family for each example: q* = argmax_q ELBO(x; q).

    Natural-gradient steps for a Normal or a MultivariateNormal: its precision goes to the expected
    curvature of -log p(x, z) under q, its mean by a Newton step of that curvature, which is taken
    from the gradients at mirrored draws of z. They are exact, in one step, where log p(x, z) is
    quadratic in z, however far the encoder is off. First the draws are fixed, and a step that would
    lower the bound is tried shorter. Then 30 steps on new draws are averaged. The search starts at
    the encoder's q, at a Gaussian as wide as the prior, and at the prior's draw that is likeliest
    for x; what is best on new draws is kept, so that q* is as good as the encoder's q at least.
    The parameters of the model stay as they are.

    Warns (UserWarning) where new draws show that further steps would gain more than 0.05 nats in
    the mean over the examples. A maximum that no start leads to stays unseen.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`, as in `evaluate.log_likelihood` with the same key.
      data: a Batch, or the x of one, `[n, ...]`.
      steps: of the search, at most; some ten are usual.
      samples: draws of z in a step, each with its mirror image; at least two for each dimension of
        z are taken.
      learning_rate: the share of a step that is taken, 0 to 1; 0 leaves q as it is.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      The distribution q*, with a leading axis `[n]` on every leaf.
    Raises:
      TypeError: for a q that is neither Normal nor MultivariateNormal.
      ValueError: for counts below 1, a learning_rate outside [0, 1], and where q* is not finite,
        with the example's index.
    References:
      Cremer, Li and Duvenaud, 2018, Inference suboptimality in variational autoencoders,
      arXiv:1801.03558; Opper and Archambeau, 2009, The variational Gaussian approximation
      revisited; Khan et al., 2018, arXiv:1806.04854 (natural gradients).
    """
    options = steps, samples, learning_rate, transform, batch_size
    q, left, _ = _best(model, params, key, data, *options)
    for problem in _unfinished(left):
        warnings.warn(f"refine: not converged: {problem}", stacklevel=3)
    return q


@measure
def inference_gap(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    particles: int = 5000,
    steps: int = 100,
    samples: int = 1000,
    learning_rate: float = 1.0,
    log_px: Any = None,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> InferenceGap:
    """The gap of the bound, split into what the family and what amortisation costs, nats.

    log p(x) - ELBO(q) = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(q)], approximation plus
    amortisation, with q* from `refine`. Both bounds are means over `samples` new draws.

    Where `log_px` is not given, log p(x) is the importance-weighted bound with `particles` draws.
    That is too low in expectation, so the approximation gap is too small by as much. Its proposal
    is an equal mixture of q*, of the Gaussian that the whole curvature at q* gives, of that one
    with its scales times 1 + 1/sqrt(latent), and of q: the best diagonal q is narrower than the
    posterior wherever that is correlated, and alone would give weights without variance (defensive
    importance sampling).

    Not converged, in the mean over the examples and against 0.05 nats, is: a refinement of which
    further steps would gain more; and, by its effective sample size, a bias of the
    importance-weighted bound, (1/ESS - 1/particles) / 2, that is more. The parts of the gap that
    rest on it are then no numbers, and `str` says why.

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
    search = steps, SAMPLES, learning_rate, None, batch_size
    q, left, root = _best(model, params, refine_key, batch, *search)
    refined, given = _given_posterior(model), batch._replace(c=(batch.c, q))
    proposal = _proposal(model, batch_size, params, q, root, batch.x, batch.c)
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
    unfinished, uncertain = _unfinished(left), _uncertain(ess, particles)
    approximation, amortisation = _mean(log_px - elbo_refined), _mean(elbo_refined - elbo)
    if unfinished:
        amortisation = NotConverged(math.nan, math.nan)
    if unfinished or uncertain:
        approximation = NotConverged(math.nan, math.nan)
    problems = unfinished + uncertain
    return InferenceGap(
        log_px, elbo_refined, elbo, ess, approximation, amortisation, left, problems
    )


def _best(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    steps: int,
    samples: int,
    learning_rate: float,
    transform: Transform | None,
    batch_size: int,
) -> tuple[Any, np.ndarray, Array]:
    """q* of every example; what a further step would gain, `[n]`; the root of `Best`."""
    counts = {"steps": steps, "samples": samples, "batch_size": batch_size}
    batch = checked_batch("refine", key, data, **counts)
    if not 0 <= learning_rate <= 1:
        raise wrong("refine: learning_rate", learning_rate, "0 to 1", "leave it at 1.0")
    options, shared = (model, samples), (params, steps, learning_rate)
    q, left, root = measure_each(_refined, options, transform, batch_size, shared, key, batch)
    for leaf in jax.tree.leaves(q):
        finite_values("refine", "q*", jnp.sum(leaf, axis=range(1, jnp.ndim(leaf))), batch.x)
    return q, np.asarray(left, float), root


def _unfinished(left: np.ndarray) -> tuple[str, ...]:
    """What speaks against the convergence of q*, in words."""
    if left.mean() <= TOLERANCE:
        return ()
    worst, above = int(np.argmax(left)), int(np.sum(left > TOLERANCE))
    return (
        f"further steps of the refinement would gain {left.mean():.2g} nats in the mean, "
        f"{left[worst]:.2g} for example {worst} (above {TOLERANCE:g} for {above} of {len(left)}), "
        "give more steps, or more samples of refine",
    )


def _uncertain(ess: np.ndarray, particles: int) -> tuple[str, ...]:
    """What speaks against the estimate of log p(x), in words; nothing where it was given."""
    bias = np.mean(1 / ess - 1 / particles) / 2
    if np.isnan(bias) or (bias <= TOLERANCE and particles > 1):
        return ()
    return (
        f"importance weighting has an ESS of {np.median(ess):.1f} of {particles} in the median, "
        f"{ess.min():.1f} at least (bias about {bias:.2g} nats), give more particles, or log_px",
    )


def _refined(
    model: Model,
    samples: int,
    shared: tuple[Params, Any, Any],
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Any, Array, Array]:
    """q* of one example, what it has left and the root; shared: params, steps, learning_rate."""
    model = deterministic(model)
    params, steps, learning_rate = shared
    pz, q = model.prior(params, c), model.encode(params, x, c)
    start = _flat(q)
    size = start.loc.size

    def energy(z: Array) -> Array:
        z = z.reshape(q.event_shape)
        return -model.decode(params, z, c).log_prob(x) - pz.log_prob(z)

    def draw_prior(key: Key) -> Array:
        return pz.sample(key).ravel()

    found, left, root = best_gaussian(
        energy,
        start,
        draw_prior,
        key,
        pairs=max(samples, 2 * size),
        steps=steps,
        rate=learning_rate,
    )
    return _shaped(q, found), left, root


@partial(jax.jit, static_argnums=(0, 1))
def _proposal(
    model: Model, batch_size: int, params: Any, q: Any, root: Array, x: Any, c: Any
) -> Any:
    """The mixture of q*, the Gaussian of its curvature, a wider one and the encoder's q, `[n]`."""

    def example(index: Array) -> Mixture:
        best, its_root, one_x, one_c = jax.tree.map(lambda leaf: leaf[index], (q, root, x, c))
        encoded = deterministic(model).encode(params, one_x, one_c)
        given, found = _flat(encoded), _flat(best)
        factor = 1 + 1 / math.sqrt(found.loc.size)
        if len(encoded.event_shape) == 1:  # what a MultivariateNormal can be over
            curved = [Gaussian(found.loc, scale * its_root) for scale in (1, factor)]
            parts = [_full(found), *curved, _full(given)]
        else:
            parts = [found, found._replace(root=factor * found.root), given]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        logits = jnp.zeros(len(parts), found.loc.dtype)
        return Mixture(logits, jax.vmap(partial(_shaped, encoded))(stacked))

    return over_data(example, size_of(x), batch_size)


def _full(q: Gaussian) -> Gaussian:
    return q._replace(root=jnp.diag(q.root)) if q.root.ndim == 1 else q


def _flat(q: Distribution) -> Gaussian:
    """q over a vector."""
    match q:
        case Normal():
            loc, scale = (jnp.broadcast_to(leaf, q.event_shape) for leaf in (q.loc, q.scale))
            return Gaussian(loc.ravel(), scale.ravel())
        case MultivariateNormal():
            L, loc = jnp.tril(jnp.asarray(q.scale_tril)), jnp.broadcast_to(q.loc, q.event_shape)
            # The same covariance with a positive diagonal.
            return Gaussian(loc, L * jnp.sign(jnp.diagonal(L))[None])
        case _:
            fix = "refine knows these two families"
            expected = "a Normal or a MultivariateNormal"
            raise wrong("refine: encode", type(q).__name__, expected, fix, TypeError)


def _shaped(like: Distribution, q: Gaussian) -> Any:
    """A Gaussian as a distribution over the event of another."""
    if q.root.ndim == 2:
        return MultivariateNormal(q.loc, q.root)
    return Normal(q.loc.reshape(like.event_shape), q.root.reshape(like.event_shape))


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


__all__ = ["InferenceGap", "NotConverged", "inference_gap", "refine"]
