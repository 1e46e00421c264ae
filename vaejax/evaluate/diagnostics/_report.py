"""Whether inference works: verdicts in words, with the numbers behind them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from vaejax.distributions import MultivariateNormal, Normal
from vaejax.errors import at_least_one
from vaejax.evaluate._each import measure
from vaejax.evaluate._measures import elbo_terms, log_likelihood
from vaejax.evaluate.decomposition import (
    Decomposition,
    checked,
    decompose,
    is_factorial,
    shapes_of,
    table,
)
from vaejax.evaluate.diagnostics._rate import implied_beta
from vaejax.evaluate.diagnostics._units import (
    ActiveUnits,
    active_units,
    has_mean,
    rate_per_dimension,
    standard_error,
)
from vaejax.model import Model
from vaejax.types import Batch, Estimate, Key, Params, Transform, describe_fields


@describe_fields
class Report(NamedTuple):
    """What `inference_report` returns; printing it gives the verdicts in words.

    Args:
      verdicts: all that hold, ("healthy",) where none of the others does.
      reasons: one sentence for each verdict considered.
      decomposition: see `decompose`.
      units: see `active_units`; None where the posterior has no mean in closed form.
      used: how many units have a KL above the threshold; None where the rate is no sum over
        units, because posterior and prior are not both diagonal Normals.
      implied_beta: see `implied_beta`; NaN where the posterior is no Gaussian.
      gap: of the importance-weighted bound over the ELBO, nats.
      train_gap: the same of the training examples, None without any.
      particles: K of both gaps.
    """

    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]
    decomposition: Decomposition
    units: ActiveUnits | None
    used: int | None
    implied_beta: Estimate
    gap: Estimate
    train_gap: Estimate | None
    particles: int

    def __str__(self) -> str:
        gone = "collapsed" in self.verdicts
        rows = [(f"gap to the bound at K = {self.particles}", self.gap, "")]
        if self.train_gap is not None:
            rows.append(("  on training examples", self.train_gap, ""))
        if not gone and not np.isnan(self.implied_beta.value):
            rows.append(("implied beta (no unit)", self.implied_beta, ""))
        lines = [
            f"{' and '.join(self.verdicts)}",
            *(f"- {reason}" for reason in self.reasons),
            "nats per example (standard error over draws; of gap and beta over examples):",
            str(self.decomposition),
            table(rows),
        ]
        if self.units is not None:
            low, high = self.units.interval
            size = len(self.units.variance)
            above = f"A_u > {self.units.threshold:g}: {self.units.active} of {size} units"
            by_rate = "" if self.used is None else f"; by KL: {self.used}"
            lines.append(f"  {above} ({low} to {high} within errors){by_rate}")
        return "\n".join(lines)


@measure
def inference_report(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    train: Any = None,
    particles: int = 100,
    examples: int = 500,
    draws: int = 1000,
    collapsed: float = 2.0,
    lag: float = 0.5,
    prices: tuple[float, float] = (0.5, 2.0),
    active: float = 1e-2,
    used: float = 0.1,
    transform: Transform | None = None,
) -> Report:
    """Whether inference works, in plain words, with the numbers behind each verdict.

    - "collapsed": the rate, mean KL(q(z|x) || p(z)), is below `collapsed` nats: the code tells
      fewer than exp(rate) kinds of example apart, 7 at the 2 nats of the default. Active units do
      not enter: some stay above their threshold in a code that carries nothing.
    - "encoder lags": the bound with K = `particles` exceeds the ELBO by more than `lag` times the
      rate, or times `collapsed` if that is larger (by 1.96 standard errors): what q(z|x) misses of
      the posterior is of the order of what it says. Encoder and family of q are not told apart;
      an over-regularised q(z|x) is too wide by design, and its gap is no fault of the encoder.
    - "over-regularised": not collapsed, and `implied_beta` is above the second of `prices` by 1.96
      standard errors: a further nat of rate would save more than that many nats of distortion.
    - "under-regularised": the same below the first: rate is spent that does not pay.
    - "healthy": none of these. Units that are off are no fault where the others carry the rate.

    Prices are judged for Normal and MultivariateNormal posteriors, whose widths are known.

    Args:
      model, params: a Model with a prior, and its parameters.
      key: for the draws and the `transform`.
      data: held-out examples, `[n, ...]`.
      train: training examples, whose gap is shown beside; None: none.
      particles: K of the importance-weighted bound.
      examples: how many of `data` and of `train` the gap and the implied beta are measured on, the
        first.
      draws: see `decompose`.
      collapsed: the rate below which a code counts as empty, nats.
      lag: the share of the rate that the gap may have.
      prices: the lowest and the highest implied beta that are no fault.
      active: threshold of A_u.
      used: KL from which a unit counts as used, nats.
      transform: what is done to stored data first, drawn once per example; None: nothing.
    Returns:
      A Report, which prints as text; nats per example.
    Raises:
      ValueError: as `decompose`, `implied_beta` and `log_likelihood` do, and for counts below 1.
      TypeError: for a point under a density.
    References:
      He et al., 2019, arXiv:1901.05534 (lagging encoders); Lucas et al., 2019, arXiv:1911.02469
      (collapse).
    """
    at_least_one("inference_report", particles=particles, examples=examples)
    batch = checked("inference_report", key, data)
    parts_key, slope_key, gap_key, train_key, data_key, rate_key = jax.random.split(key, 6)
    parts = decompose(model, params, parts_key, batch, draws=draws, transform=transform)
    q, pz = shapes_of(model, transform, params, key, batch)
    units, count = None, None
    if has_mean(q):
        units = active_units(model, params, data_key, batch, transform=transform, threshold=active)
    if is_factorial(q, pz):
        rates = rate_per_dimension(model, params, rate_key, batch, transform=transform)
        count = int(np.sum(rates > used))
    few = _first(batch, examples)
    beta = Estimate(np.nan, np.nan)
    if isinstance(q, Normal | MultivariateNormal):
        beta = implied_beta(model, params, slope_key, few, transform=transform)
    gap = _gap(model, params, gap_key, few, particles, transform)
    train_gap = None
    if train is not None:
        seen = _first(checked("inference_report", train_key, train), examples)
        train_gap = _gap(model, params, train_key, seen, particles, transform)

    bounds = _Bounds(collapsed, lag, prices)
    found = _verdicts(parts, beta, gap, train_gap, particles, bounds)
    held = tuple(name for name, (holds, _) in found.items() if holds) or ("healthy",)
    reasons = tuple(
        f"{name}: {'yes' if holds else 'no'}; {why}" for name, (holds, why) in found.items()
    )
    return Report(held, reasons, parts, units, count, beta, gap, train_gap, particles)


class _Bounds(NamedTuple):
    """What `inference_report` judges by; see there."""

    collapsed: float
    lag: float
    prices: tuple[float, float]


def _verdicts(
    parts: Decomposition,
    beta: Estimate,
    gap: Estimate,
    train_gap: Estimate | None,
    particles: int,
    bounds: _Bounds,
) -> dict[str, tuple[bool, str]]:
    """Every verdict: whether it holds, and why."""
    collapsed, lag, (cheapest, dearest) = bounds
    R = parts.rate.value
    gone = collapsed > R
    allowed = lag * max(R, collapsed)
    dear = not gone and beta.interval[0] > dearest
    cheap = not gone and beta.interval[1] < cheapest
    behind = not dear and gap.interval[0] > allowed
    also = "" if train_gap is None else f"; on training examples {train_gap}"
    limit = f"up to {allowed:.3f} is allowed"
    if dear:
        limit = "not judged: an over-regularised q(z|x) is too wide anyway"
    priced = f"the implied beta is {beta}"
    if np.isnan(beta.value):
        priced = (
            "not judged: this q(z|x) implies no beta (its widths are not known, or without effect)"
        )
    if gone:
        priced = "not judged: a code with so low a rate implies no beta"
    empty = (
        f"the rate is {R:.3f} nats, and below {collapsed:g} a code counts as empty; "
        f"I(x; z) is {parts.information} nats"
    )
    lags = f"the bound at K = {particles} is {gap} nats above the ELBO{also}; {limit}"
    return {
        "collapsed": (gone, empty),
        "encoder lags": (behind, lags),
        "over-regularised": (dear, f"{priced}; up to {dearest:g} is allowed"),
        "under-regularised": (cheap, f"{priced}; from {cheapest:g} is allowed"),
    }


def _gap(
    model: Model, params: Params, key: Key, batch: Batch, particles: int, transform: Any
) -> Estimate:
    """Mean of L_K - ELBO, and its standard error over the examples."""
    bound_key = jax.random.clone(key)  # the same transformed examples for both
    bound = log_likelihood(
        model, params, key, batch, particles=particles, transform=transform
    ).log_px
    options: dict[str, Any] = {"samples": 10, "transform": transform, "batch_size": 100}
    gap = np.asarray(bound - elbo_terms(model, params, bound_key, batch, **options)["elbo"], float)
    return Estimate(float(gap.mean()), float(standard_error(gap)))


def _first(batch: Batch, count: int) -> Batch:
    return jax.tree.map(lambda leaf: leaf[:count], batch)
