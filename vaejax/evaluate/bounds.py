"""What is known of log p(x): the importance-weighted ladder, and the interval around it.

`ladder` is importance weighting for several K at once, lower bounds; `sandwich` adds annealing from
below and above, in one call that says when it has not converged.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import check_unweighted, size_of
from vaejax.errors import finite_values, is_whole, wrong
from vaejax.evaluate._each import checked_batch, measure, measure_each
from vaejax.evaluate.annealing import Annealed, Simulated, Start, ais, bdmc, reverse_ais
from vaejax.evaluate.annealing._run import MORE, problems_of
from vaejax.model import Draw, Model, deterministic, terms
from vaejax.types import Array, Key, Params, Transform, describe, describe_fields


@describe_fields
class Ladder(NamedTuple):
    """The importance-weighted bound for several K; `str` gives a table with the worst images.

    Args:
      particles: the K, rising, as many as there are rungs.
      log_px: nats, lower bounds in expectation, `[rungs, n]`.
      error: their standard error over draws, nats, `[rungs, n]`.
      ess: the effective sample size of K weights, between 1 and K, `[rungs, n]`.
    """

    particles: tuple[int, ...]
    log_px: np.ndarray
    error: np.ndarray
    ess: np.ndarray

    def worst(self, count: int = 5) -> np.ndarray:
        """Indices of the images with the lowest effective sample size at the largest K."""
        return np.argsort(self.ess[-1], kind="stable")[:count]

    def __str__(self) -> str:
        lines = [
            "importance-weighted lower bound on log p(x), "
            f"{self.log_px.shape[1]} images, nats per image",
            "       K       mean  se images   se draws  ESS median  ESS lowest",
        ]
        for K, log_px, error, ess in zip(*self, strict=True):
            lines.append(
                f"{K:8d} {log_px.mean():10.3f} {_error_of_mean(log_px):10.3f} "
                f"{_pooled(error):10.3f} {np.median(ess):11.1f} {ess.min():11.1f}"
            )
        lines.append(f"lowest ESS at K = {self.particles[-1]}:")
        for i in self.worst():
            line = f"  image {i}: ESS {self.ess[-1, i]:.1f}, log p(x) >= {self.log_px[-1, i]:.2f}"
            if len(self.particles) > 1:
                rise = self.log_px[-1, i] - self.log_px[-2, i]
                line += f", {rise:.2f} above K = {self.particles[-2]}"
            lines.append(line)
        return "\n".join(lines)


@describe_fields
class Interval(NamedTuple):
    """What is known of log p(x); `str` gives a table, with no value where AIS has not converged.

    Args:
      lower: AIS on the images, a lower bound in expectation.
      upper: reverse AIS from the given posterior draws, an upper bound in expectation for the same
        images; None without such draws.
      ladder: importance weighting, lower bounds whether or not AIS has converged.
      simulated: both bounds on data simulated from the model (BDMC); its gap bounds the error of
        AIS *there*, and is no bound for the images.
      temperatures, tolerance: as asked.
      problems: why AIS has not converged; empty where it has.
    """

    lower: Annealed
    upper: Annealed | None
    ladder: Ladder
    simulated: Simulated | None
    temperatures: int
    tolerance: float
    problems: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """Whether none of the checks of `sandwich` failed."""
        return not self.problems

    def __str__(self) -> str:
        K, log_px, ess = self.ladder.particles[-1], self.ladder.log_px[-1], self.ladder.ess[-1]
        lines = [
            f"log p(x) of {len(log_px)} images, nats per image: mean (se over images; over draws)",
            f"  lower bound, AIS: {self._shown(self.lower, '; '.join(self.problems))}",
            f"    {_chains(self.lower, self.temperatures)}",
        ]
        if self.upper is not None:
            shown = self._shown(self.upper, "see above")
            lines.append(f"  upper bound, reverse AIS from the given posterior draws: {shown}")
            lines.append(f"    {_chains(self.upper, self.temperatures)}")
            if self.converged:
                gap = self.upper.log_px - self.lower.log_px
                noise = np.hypot(_pooled(self.lower.error), _pooled(self.upper.error))
                lines.append(f"  interval of the means: {gap.mean():.3f} ({noise:.3f}) wide")
        shown = _value(log_px, self.ladder.error[-1])
        lines.append(f"  lower bound, importance weighting with K = {K}: {shown}")
        lines.append(f"    ESS median {np.median(ess):.1f}, lowest {ess.min():.1f}")
        if self.simulated is not None:
            gap = self.simulated.gap
            lines += [
                f"  BDMC gap on {len(gap)} examples simulated from the model (not a bound for the "
                f"images): {gap.mean():.3f} ({_error_of_mean(gap):.3f}), largest {gap.max():.3f}",
                f"    forward: {_chains(self.simulated.lower, self.temperatures)}",
                f"    reverse: {_chains(self.simulated.upper, self.temperatures)}",
            ]
        if self.converged:
            below = self.lower.log_px - log_px
            lines.append(f"  images where importance weighting with K = {K} is furthest below AIS:")
            lines += [
                f"    image {i}: {below[i]:.2f} nats below {self.lower.log_px[i]:.2f}, importance "
                f"ESS {ess[i]:.1f}, AIS ESS {self.lower.ess[i]:.1f}"
                for i in np.argsort(-below, kind="stable")[:5]
            ]
        return "\n".join(lines)

    def _shown(self, run: Annealed, why: str) -> str:
        return _value(run.log_px, run.error) if self.converged else f"not converged: {why}"


@measure
def sandwich(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    posterior: Any = None,
    particles: tuple[int, ...] = (1, 10, 100, 1000),
    chains: int = 16,
    temperatures: Any = 500,
    start: Start = "prior",
    leapfrog_steps: int = 5,
    step_size: float = 1.0,
    simulations: int | None = None,
    tolerance: float = 0.1,
    transform: Transform | None = None,
    batch_size: int = 20,
) -> Interval:
    """The interval around log p(x), from below and above, with all that says how far to trust it.

    Not converged, in the mean over images and in nats against `tolerance`, is: bounds further
    apart, or crossed; a bias of the log of a mean weight, estimated as (1/ESS - 1/chains) / 2,
    above it; importance weighting above AIS by more, and by more than 3 standard errors; and a mean
    acceptance below 0.1. These can only find what chains or particles have found: a mode that none
    of them ever visits stays unseen, unless by `posterior`.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`.
      posterior: exact draws from p(z|x) of these very images (with a `transform`: drawn under the
        same `key`), `[n, draws, *latent]`. They make the upper bound one for the images. None: the
        upper bound is on examples simulated from the model, and stands in `simulated`.
      particles: the K of the `ladder`.
      chains, temperatures, start, leapfrog_steps, step_size: as in `annealing.ais`.
      simulations: how many examples are simulated, under the conditions of the first images. None:
        as many as there are images, 100 at most, or 0 with `posterior`.
      tolerance: by how much the bounds may miss, nats.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      An Interval.
    Raises:
      ValueError: as the functions named, for weights, and for tolerance <= 0 or simulations < 0.
      TypeError: for discrete latents, which have no gradient.
    References:
      Grosse, Ghahramani and Adams, 2015, arXiv:1511.02543; Wu et al., 2017, arXiv:1611.04273.
    """
    batch = checked_batch("sandwich", key, data)
    check_unweighted("sandwich", batch)
    if not tolerance > 0:
        raise wrong("sandwich: tolerance", tolerance, "nats > 0", "leave it at 0.1")
    if simulations is not None and simulations < 0:
        raise ValueError(f"sandwich: expected simulations >= 0, got {simulations}")
    if simulations is None:
        simulations = min(size_of(batch.x), 100) if posterior is None else 0
    shared: dict[str, Any] = {
        "temperatures": temperatures,
        "start": start,
        "leapfrog_steps": leapfrog_steps,
        "step_size": step_size,
        "batch_size": batch_size,
    }
    # The same key on purpose, so that all see the same images: ladder and AIS then differ in what
    # they draw from it; reverse AIS shares its momenta with AIS, and neither bound minds.
    again = partial(jax.random.clone, key)
    simulated_key = jax.random.fold_in(again(), 2**31)
    lower = ais(model, params, again(), batch, chains=chains, transform=transform, **shared)
    upper = None
    if posterior is not None:
        upper = reverse_ais(model, params, again(), batch, posterior, transform=transform, **shared)
    rungs = ladder(model, params, again(), batch, particles=particles, transform=transform)
    simulated = None
    if simulations:
        rows = np.arange(simulations) % size_of(batch.x)
        c = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch.c)
        simulated = bdmc(
            model, params, simulated_key, examples=simulations, c=c, chains=chains, **shared
        )
    problems = _problems(lower, upper, rungs, simulated, tolerance)
    count = lower.acceptance.shape[1] + 2
    return Interval(lower, upper, rungs, simulated, count, tolerance, problems)


@measure
def ladder(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    particles: tuple[int, ...] = (1, 10, 100, 1000),
    draw: Callable[..., Any] | None = None,
    transform: Transform | None = None,
    batch_size: int = 100,
    chunk: int = 50,
) -> Ladder:
    """The importance-weighted bound on log p(x) for several K, from one pass.

    `L_K = E log 1/K sum_k w_k`, `w_k = p(x|z_k) p(z_k) / q(z_k|x)`: the largest K is the number of
    draws, and each smaller one averages over the disjoint groups of K among them. Where each K
    divides the next the ladder rises for every image, by Jensen's inequality; K = 1 is the ELBO.
    The largest K gives what `evaluate.log_likelihood` gives with the same key. Standard errors over
    draws are those of a mean over groups; for one group sqrt(1/ESS - 1/K), which is too small where
    the ESS is. Memory is that of `batch_size * chunk` decoded examples.

    Args:
      model, params, key, data, draw, transform, batch_size, chunk: as in
        `evaluate.log_likelihood`.
      particles: the K, rising.
    Returns:
      A Ladder.
    Raises:
      ValueError: for K < 1 or K that do not rise, for a model without a prior, and where a number
        is not finite, with the example's index.
    References:
      Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    each = particles if isinstance(particles, Iterable) else [particles]
    if not all(map(is_whole, each)):  # a string's characters are none
        fix = "for instance particles=(1, 10, 100, 1000)"
        raise wrong("ladder: particles", describe(particles), "whole numbers", fix, TypeError)
    particles = tuple(int(K) for K in np.atleast_1d(particles))
    if not particles or min(particles) < 1 or np.any(np.diff(particles) <= 0):
        fix = "for instance particles=(1, 10, 100, 1000)"
        raise wrong("ladder: particles", particles, "one K >= 1 or several, rising", fix)
    batch = checked_batch("ladder", key, data, batch_size=batch_size, chunk=chunk)
    options = model, particles, draw, min(chunk, particles[-1])
    log_px, error, ess = measure_each(_rungs, options, transform, batch_size, params, key, batch)
    for K, values in zip(particles, log_px.T, strict=True):
        finite_values("ladder", f"log p(x) with K = {K}", values, batch.x)
    return Ladder(particles, *(np.asarray(value).T for value in (log_px, error, ess)))


def _rungs(
    model: Model,
    particles: tuple[int, ...],
    draw: Callable[..., Any] | None,
    chunk: int,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array, Array]:
    """The bound, its standard error and the ESS of one example, `[rungs]` each."""
    model = deterministic(model)
    own = draw is None
    q: Any = model.encode(params, x, c) if own else None
    pz = model.prior(params, c) if own else None

    def log_weight(particle: Array) -> Array:
        if draw is not None:
            return terms.log_weight(draw(model, params, jax.random.fold_in(key, particle), x, c))
        z, log_q = q.sample_and_log_prob(jax.random.fold_in(key, particle))
        d = Draw(x, z, log_q, q, pz, model.decode(params, z, c))
        return -terms.distortion(d) - terms.sampled_rate(d)

    log_w = lax.map(log_weight, jnp.arange(particles[-1]), batch_size=chunk)
    log_px, error, ess = zip(*(_rung(log_w, K) for K in particles), strict=True)
    return jnp.stack(log_px), jnp.stack(error), jnp.stack(ess)


def _rung(log_w: Array, K: int) -> tuple[Array, Array, Array]:
    """L_K averaged over the disjoint groups of K weights, its standard error, and the mean ESS."""
    groups = log_w.size // K
    grouped = log_w[: groups * K].reshape(groups, K)
    values = jax.nn.logsumexp(grouped, axis=1) - jnp.log(float(K))
    ess = jax.vmap(terms.effective_sample_size)(grouped)
    if log_w.size == 1:  # a single draw shows no spread
        return values[0], jnp.full_like(values[0], jnp.nan), ess[0]
    if groups == 1:
        return values[0], jnp.sqrt(jnp.maximum(1 / ess[0] - 1 / K, 0)), ess[0]
    return jnp.mean(values), jnp.std(values, ddof=1) / groups**0.5, jnp.mean(ess)


def _problems(
    lower: Annealed,
    upper: Annealed | None,
    rungs: Ladder,
    simulated: Simulated | None,
    tolerance: float,
) -> tuple[str, ...]:
    """What speaks against convergence, in words; see `sandwich`."""
    found, more = [], MORE
    runs = {"AIS": lower}
    if upper is not None:
        runs["reverse AIS"] = upper
        gap = float(np.mean(upper.log_px - lower.log_px))
        if gap > tolerance:
            found.append(f"the bounds are {gap:.3g} nats apart, above {tolerance:g}, {more}")
        if gap < -tolerance:
            found.append(
                f"the upper bound is {-gap:.3g} nats below the lower, so the draws given are not "
                "of the posterior of these images (were key and transform the same?)"
            )
    if simulated is not None:
        runs["AIS on simulated data"] = simulated.lower
        runs["reverse AIS on simulated data"] = simulated.upper
        gap = float(simulated.gap.mean())
        if abs(gap) > tolerance:
            noise = _error_of_mean(simulated.gap)
            found.append(
                f"on simulated data the upper bound is {gap:.3g} ({noise:.2g}) nats above the "
                f"lower, and not within {tolerance:g}, {more}"
            )
    for name, run in runs.items():
        if run.log_weights.shape[1] == 1 and len(runs) == 1:
            found.append(f"a single chain shows no spread, {more}")
        found += problems_of(name, run, tolerance)
    above = float(np.mean(rungs.log_px[-1] - lower.log_px))
    if above > max(tolerance, 3 * _pooled(np.hypot(rungs.error[-1], lower.error))):
        found.append(f"importance weighting is {above:.3g} nats above AIS, {more}")
    return tuple(found)


def _error_of_mean(values: np.ndarray) -> float:
    """Standard error of a mean over examples; NaN for a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _pooled(errors: np.ndarray) -> float:
    """Standard error over draws of a mean whose examples have these, independent ones."""
    return float(np.sqrt(np.sum(np.square(errors)))) / len(errors)


def _value(log_px: np.ndarray, error: np.ndarray) -> str:
    return f"{log_px.mean():.3f} ({_error_of_mean(log_px):.3f}; {_pooled(error):.3f})"


def _chains(run: Annealed, temperatures: int) -> str:
    moved = f"acceptance {run.acceptance.mean():.2f}" if run.acceptance.size else "no moves"
    return (
        f"{run.log_weights.shape[1]} chains, {temperatures} temperatures, {moved}, ESS median "
        f"{np.median(run.ess):.1f}, lowest {run.ess.min():.1f} (image {np.argmin(run.ess)})"
    )


__all__ = ["Interval", "Ladder", "ladder", "sandwich"]
