"""What a trained model's code carries: active units, collapse, rate and distortion, calibration.

All figures are nats per example unless said otherwise. Model noise such as dropout is off; `data`
is a Batch or the x of one, stored data if a `transform(key, x)` is given (once per example). A
function takes a key in front of the data if it draws anything itself. The averaged ELBO is taken
apart in `vaejax.decomposition`, whose `decompose` is here too.
"""

from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import example_at, over_data, size_of
from vaejax.distributions import MultivariateNormal, Normal, kl
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.evaluate._measures import codes, elbo_terms, log_likelihood
from vaejax.evaluate.decomposition import (
    Decomposition,
    check_posterior,
    checked,
    decompose,
    dimensions_of,
    is_factorial,
    shapes_of,
    table,
)
from vaejax.model import Draw, Model, deterministic, draw, terms
from vaejax.types import Array, Batch, Estimate, Key, Params, Transform


class ActiveUnits(NamedTuple):
    """What `active_units` returns.

    `variance` `[latent]`: A_u, in squared units of z; `error` `[latent]`: its standard error as an
    estimate for the population that the examples are drawn from; `threshold`: what A_u must exceed.
    """

    variance: np.ndarray
    error: np.ndarray
    threshold: float

    @property
    def active(self) -> int:
        """How many units are active."""
        return int(np.sum(self.variance > self.threshold))

    @property
    def interval(self) -> tuple[int, int]:
        """How many are active by 1.96 standard errors, and how many are not inactive by as much."""
        margin = 1.96 * self.error
        low, high = (self.variance + sign * margin > self.threshold for sign in (-1, 1))
        return int(np.sum(low)), int(np.sum(high))


class Report(NamedTuple):
    """What `inference_report` returns; printing it gives the verdicts in words.

    `verdicts`: all that hold, ("healthy",) where none of the others does; `reasons`: one sentence
    for each verdict considered; the numbers behind them: `decomposition`, `units`, `used` (units
    whose KL exceeds the threshold), `implied_beta`, `gap` (of the importance-weighted bound over
    the ELBO, nats) and `train_gap`, None without training examples; `particles`: K of both.
    """

    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]
    decomposition: Decomposition
    units: ActiveUnits
    used: int
    implied_beta: Estimate
    gap: Estimate
    train_gap: Estimate | None
    particles: int

    def __str__(self) -> str:
        low, high = self.units.interval
        gone = "collapsed" in self.verdicts
        size = len(self.units.variance)
        above = f"A_u > {self.units.threshold:g}: {self.units.active} of {size} units"
        rows = [(f"gap to the bound at K = {self.particles}", self.gap, "")]
        if self.train_gap is not None:
            rows.append(("  on training examples", self.train_gap, ""))
        if not gone:
            rows.append(("implied beta (no unit)", self.implied_beta, ""))
        return "\n".join(
            [
                f"{' and '.join(self.verdicts)}",
                *(f"- {reason}" for reason in self.reasons),
                "nats per example (standard error over draws; of gap and beta over examples):",
                str(self.decomposition),
                table(rows),
                f"  {above} ({low} to {high} within errors); by KL: {self.used}",
            ]
        )


class RateDistortion(NamedTuple):
    """Points of a rate-distortion curve: `rate`, `distortion` `[points]`, nats per example.

    `rate_error`, `distortion_error` `[points]`: standard errors over the examples.
    """

    rate: np.ndarray
    distortion: np.ndarray
    rate_error: np.ndarray
    distortion_error: np.ndarray


class Calibration(NamedTuple):
    """What `calibration` returns.

    `levels` and `coverage` `[levels]`: nominal and observed shares of x inside central intervals;
    `error` `[levels]`: standard error of the coverage over examples; `mean_square`: of the
    standardised residuals, 1 for a calibrated decoder, more for one that is too sure of itself.
    """

    levels: np.ndarray
    coverage: np.ndarray
    error: np.ndarray
    mean_square: Estimate

    def __str__(self) -> str:
        rows = zip(self.levels, self.coverage, self.error, strict=True)
        lines = [f"{level:6.1%} interval holds {got:.1%} ({se:.1%})" for level, got, se in rows]
        return "\n".join([*lines, f"mean squared z-score {self.mean_square}, expected 1"])


def active_units(
    model: Model,
    params: Params,
    data: Any,
    *,
    transform: Transform | None = None,
    key: Key | None = None,
    threshold: float = 1e-2,
    batch_size: int = 500,
) -> ActiveUnits:
    """The units whose mean code moves with the data: A_u = Var_x(E_q[u|x]) > threshold.

    `data`: N examples `[N, ...]`; `key`: only for a `transform`. Returns A_u per unit, its standard
    error and the count `active`. That says that a unit reacts, not by how much: beside
    it read `rate_per_dimension`. A code that is a point has active units too.

    Raises ValueError for fewer than two examples, a transform without a key, and where a mean is
    not finite; TypeError where the posterior has no mean in closed form.
    Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519.
    """
    batch = checked("active_units", data, batch_size)
    key = _key_for("active_units", transform, key)
    q, _ = shapes_of(model, transform, params, key, batch)
    try:
        jax.eval_shape(lambda one: one.mean, q)
    except NotImplementedError as error:
        fix = "average samples of it for every example and take their variance"
        name = type(q).__name__
        raise wrong("active_units: posterior", name, "one with a mean", fix, TypeError) from error
    found = codes(model, params, key, batch, transform=transform, batch_size=batch_size)
    shift = np.asarray(found, float).reshape(len(found), -1)
    finite_values("active_units", "a mean code", shift.sum(axis=1), batch.x)  # weights or not
    squares = (shift - shift.mean(axis=0)) ** 2
    return ActiveUnits(squares.mean(axis=0), _spread(squares), threshold)


def rate_per_dimension(
    model: Model,
    params: Params,
    data: Any,
    *,
    transform: Transform | None = None,
    key: Key | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """R_j = E_x KL(q(z_j|x) || p(z_j)): the rate of each latent dimension, `[latent]`, nats.

    In closed form, for a diagonal Normal posterior and prior; the sum over j is the rate. `data`:
    N examples `[N, ...]`; `key`: only for a `transform`.

    Raises ValueError for fewer than two examples, no prior, a transform without a key, and a rate
    that is not finite; TypeError for any other pair, whose rate is no sum over dimensions.
    """
    batch = checked("rate_per_dimension", data, batch_size)
    key = _key_for("rate_per_dimension", transform, key)
    q, pz = check_posterior("rate_per_dimension", model, transform, params, key, batch)
    if not is_factorial(q, pz):
        got = f"{type(q).__name__} and {type(pz).__name__}"
        fix = "decompose gives the rate as a whole"
        expected = "two diagonal Normals"
        where = "rate_per_dimension: posterior and prior"
        raise wrong(where, got, expected, fix, TypeError)
    rates = _rates(model, transform, batch_size, params, key, batch.x, batch.c)
    finite_values("rate_per_dimension", "the rate", jnp.sum(rates, axis=1), batch.x)
    return np.asarray(rates, float).mean(axis=0)


def implied_beta(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    samples: int = 4,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Estimate:
    """The beta for which the width of q(z|x) is right: nats of D bought by the last nat of R.

        implied beta = -(dD/ds) / (dR/ds) at s = 1,  q_s(z|x) = N(mu(x), s^2 Sigma(x))

    A posterior that minimises D + beta R is stationary in the common factor s of its standard
    deviations, so that this is beta whatever the training called it; 1 for a maximum of the ELBO.
    It is above 1 where the rate is held too low, and undetermined (nan, or an error as large as the
    value) where q has collapsed onto the prior and neither D nor R depends on s.

    `data`: N examples `[N, ...]`; `samples`: draws of z per example. Returns the value, without
    unit, and its standard error over examples and draws. Raises ValueError for fewer than two
    examples, samples < 1, no prior, and a derivative that is not finite; TypeError unless the
    posterior is Normal or MultivariateNormal. Compare the constrained slope of the rate-distortion
    curve in Alemi et al., 2018, arXiv:1711.00464.
    """
    batch = checked("implied_beta", data, batch_size)
    at_least_one("implied_beta", samples=samples)
    q, _ = check_posterior("implied_beta", model, transform, params, key, batch)
    if not isinstance(q, Normal | MultivariateNormal):
        name, expected = type(q).__name__, "Normal or MultivariateNormal"
        fix = "the widths of no other are known here"
        raise wrong("implied_beta: posterior", name, expected, fix, TypeError)
    arrays = params, key, batch.x, batch.c
    dD, dR = _slopes(model, transform, batch_size, samples, *arrays)
    dD = np.asarray(finite_values("implied_beta", "dD/ds", dD, batch.x), float)
    dR = np.asarray(finite_values("implied_beta", "dR/ds", dR, batch.x), float)
    if dR.mean() == 0:
        return Estimate(np.nan, np.nan)
    beta = -dD.mean() / dR.mean()
    return Estimate(float(beta), float(_spread(dD + beta * dR) / abs(dR.mean())))


def inference_report(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    train: Any = None,
    transform: Transform | None = None,
    particles: int = 100,
    examples: int = 500,
    draws: int = 1000,
    collapsed: float = 2.0,
    lag: float = 0.5,
    prices: tuple[float, float] = (0.5, 2.0),
    active: float = 1e-2,
    used: float = 0.1,
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

    `data`: N held-out examples `[N, ...]`; `train`: training examples, whose gap is shown beside;
    `examples`: how many of each the gap and the implied beta are measured on, the first; `draws`:
    see `decompose`; `active`: threshold of A_u; `used`: KL in nats from which a unit counts as
    used. Returns a Report, which prints as text; nats per example.
    Raises as `decompose`, `implied_beta` and `log_likelihood` do, and ValueError for counts < 1;
    TypeError unless the posterior and the prior are diagonal Normals.
    He et al., 2019, arXiv:1901.05534 (lagging encoders); Lucas et al., 2019, arXiv:1911.02469
    (collapse).
    """
    at_least_one("inference_report", particles=particles, examples=examples)
    parts_key, slope_key, gap_key, train_key, data_key, rate_key = jax.random.split(key, 6)
    batch = checked("inference_report", data, 1)
    parts = decompose(model, params, parts_key, batch, draws=draws, transform=transform)
    units = active_units(model, params, batch, transform=transform, key=data_key, threshold=active)
    rates = rate_per_dimension(model, params, batch, transform=transform, key=rate_key)
    few = _first(batch, examples)
    beta = implied_beta(model, params, slope_key, few, transform=transform)
    gap = _gap(model, params, gap_key, few, particles, transform)
    train_gap = None
    if train is not None:
        seen = _first(checked("inference_report", train, 1), examples)
        train_gap = _gap(model, params, train_key, seen, particles, transform)

    R = parts.rate.value
    gone = collapsed > R
    allowed = lag * max(R, collapsed)
    dear = not gone and beta.interval[0] > prices[1]
    cheap = not gone and beta.interval[1] < prices[0]
    behind = not dear and gap.interval[0] > allowed
    also = "" if train_gap is None else f"; on training examples {train_gap}"
    limit = f"up to {allowed:.3f} is allowed"
    if dear:
        limit = "not judged: an over-regularised q(z|x) is too wide anyway"
    priced = f"the implied beta is {beta}"
    if gone:
        priced = "not judged: a code with so low a rate implies no beta"
    found = {
        "collapsed": (
            gone,
            f"the rate is {R:.3f} nats, and below {collapsed:g} a code "
            f"counts as empty; "
            f"I(x; z) is {parts.information} nats",
        ),
        "encoder lags": (
            behind,
            f"the bound at K = {particles} is {gap} nats above the ELBO{also}; {limit}",
        ),
        "over-regularised": (dear, f"{priced}; up to {prices[1]:g} is allowed"),
        "under-regularised": (cheap, f"{priced}; from {prices[0]:g} is allowed"),
    }
    held = tuple(name for name, (holds, _) in found.items() if holds) or ("healthy",)
    reasons = tuple(
        f"{name}: {'yes' if holds else 'no'}; {why}" for name, (holds, why) in found.items()
    )
    count = int(np.sum(rates > used))
    return Report(held, reasons, parts, units, count, beta, gap, train_gap, particles)


def rate_distortion(
    model: Model,
    population: Sequence[Params],
    key: Key,
    data: Any,
    *,
    samples: int = 1,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> RateDistortion:
    """Where each of several trained parameters stands in the plane of rate and distortion.

    `D = E_x E_q[-log p(x|z)]`, `R = E_x KL(q(z|x) || p(z))`; trained on D + beta R, the curve has
    slope -beta, and points of one ELBO lie on a line of slope -1. Data of entropy H allow no point
    below D + R = H.

    `population`: parameters of the one model, for instance of several betas; `data`: N examples
    `[N, ...]`, seen under the same draws by all; `samples`: draws of z per example. Returns arrays
    `[points]`, nats per example, with standard errors over the examples.
    Raises ValueError for an empty population, fewer than two examples, and as `elbo_terms` does.
    Alemi et al., 2018, Fixing a broken ELBO, arXiv:1711.00464.
    """
    batch = checked("rate_distortion", data, batch_size)
    at_least_one("rate_distortion", population=len(population))
    options = {"samples": samples, "transform": transform, "batch_size": batch_size}
    found = [
        elbo_terms(model, params, jax.random.clone(key), batch, **options)  # type: ignore[arg-type]
        for params in population
    ]
    rate, distortion = (
        np.array([one[name] for one in found], float) for name in ("rate", "distortion")
    )
    errors = (_spread(values.T) for values in (rate, distortion))
    return RateDistortion(rate.mean(axis=1), distortion.mean(axis=1), *errors)


def calibration(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    samples: int = 1,
    transform: Transform | None = None,
    batch_size: int = 100,
) -> Calibration:
    """Whether the decoder's standard deviations are right: coverage of its central intervals.

        r = (x - loc(z)) / scale(z),  z ~ q(z|x);   coverage(level) = share of |r| < quantile

    Under data from the model itself and the exact posterior every r is standard normal, whatever
    the model. With an approximate posterior a lack of coverage may be the encoder's fault too.

    `data`: N examples `[N, ...]`; `levels`: nominal coverages in (0, 1); `samples`: draws of z per
    example. Returns a Calibration: shares over all elements of all x, standard errors over
    examples. Raises ValueError for fewer than two examples, samples < 1, levels outside (0, 1),
    and residuals that are not finite; TypeError unless p(x|z) is Normal.
    Kuleshov, Fenner and Ermon, 2018, arXiv:1807.00263.
    """
    batch = checked("calibration", data, batch_size)
    at_least_one("calibration", samples=samples)
    nominal = np.asarray(levels, float)
    if nominal.ndim != 1 or not nominal.size or not ((nominal > 0) & (nominal < 1)).all():
        raise wrong("calibration: levels", levels, "numbers in (0, 1)", "for instance (0.5, 0.9)")
    x, c, rest = jax.eval_shape(
        partial(example_at, key, transform, jnp.zeros((), int)), batch.x, batch.c
    )
    seen = jax.eval_shape(partial(draw, model), params, rest, x, c).px
    if not isinstance(seen, Normal):
        name, fix = type(seen).__name__, "only a Normal decoder predicts a variance"
        raise wrong("calibration: likelihood", name, "Normal", fix, TypeError)
    if x.shape != seen.event_shape:
        expected, fix = f"{seen.event_shape}, as p(x|z)", "give x the decoder's shape"
        raise wrong("calibration: data", f"examples {x.shape}", expected, fix)
    bounds = jnp.asarray([NormalDist().inv_cdf((1 + level) / 2) for level in nominal])
    arrays = params, key, batch.x, batch.c, bounds
    inside, square = _residuals(model, transform, batch_size, samples, *arrays)
    square = np.asarray(finite_values("calibration", "a residual", square, batch.x), float)
    inside = np.asarray(inside, float)
    squares = Estimate(float(square.mean()), float(_spread(square)))
    # A share seen in all or in none of N examples is still uncertain by about 1/N.
    error = np.hypot(_spread(inside), 1 / len(inside))
    return Calibration(nominal, inside.mean(axis=0), error, squares)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _rates(
    model: Model, transform: Any, batch_size: int, params: Any, key: Key, x: Any, c: Any
) -> Array:
    """KL(q(z_j|x) || p(z_j)) of every example and dimension, `[N, latent]`, nats."""
    model = deterministic(model)

    def example(index: Array) -> Array:
        one_x, one_c, _ = example_at(key, transform, index, x, c)
        q, pz = model.encode(params, one_x, one_c), model.prior(params, one_c)
        return jax.vmap(kl)(dimensions_of(q), dimensions_of(pz))

    return over_data(example, size_of(x), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _slopes(
    model: Model,
    transform: Any,
    batch_size: int,
    samples: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Array, Array]:
    """dD/ds and dR/ds at s = 1 for posteriors s times as wide, `[N]` each, nats."""
    model = deterministic(model)

    def example(index: Array) -> tuple[Array, Array]:
        one_x, one_c, rest = example_at(key, transform, index, x, c)
        q, pz = model.encode(params, one_x, one_c), model.prior(params, one_c)

        def terms_at(s: Array, z_key: Key) -> tuple[Array, Array]:
            wide = _widened(q, s)
            z, log_q = wide.sample_and_log_prob(z_key)
            d = Draw(one_x, z, log_q, wide, pz, model.decode(params, z, one_c))
            return terms.distortion(d), terms.rate(d)

        def slope(z_key: Key) -> tuple[Array, Array]:
            one = jnp.ones(())
            return jax.jvp(lambda s: terms_at(s, z_key), (one,), (one,))[1]

        return jax.tree.map(jnp.mean, jax.vmap(slope)(jax.random.split(rest, samples)))

    return over_data(example, size_of(x), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _residuals(
    model: Model,
    transform: Any,
    batch_size: int,
    samples: int,
    params: Any,
    key: Key,
    x: Any,
    c: Any,
    bounds: Array,
) -> tuple[Array, Array]:
    """Share of |r| below each bound `[N, bounds]`, and the mean of r^2 `[N]`."""
    model = deterministic(model)

    def example(index: Array) -> tuple[Array, Array]:
        one_x, one_c, rest = example_at(key, transform, index, x, c)

        def one(z_key: Key) -> tuple[Array, Array]:
            px = draw(model, params, z_key, one_x, one_c).px
            r = jnp.abs((one_x - px.loc) / px.scale)
            return jax.vmap(lambda bound: jnp.mean(r < bound))(bounds), jnp.mean(r**2)

        found = jax.vmap(one)(jax.random.split(rest, samples))
        return jax.tree.map(lambda values: jnp.mean(values, axis=0), found)

    return over_data(example, size_of(x), batch_size)


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
    return Estimate(float(gap.mean()), float(_spread(gap)))


def _widened(q: Any, s: Array) -> Any:
    """A Gaussian with its standard deviations s times as large."""
    if isinstance(q, Normal):
        return Normal(q.loc, q.scale * s)
    return MultivariateNormal(q.loc, q.scale_tril * s)


def _spread(values: np.ndarray) -> Any:
    """Standard error of the mean over the leading axis."""
    return np.asarray(values, float).std(axis=0, ddof=1) / np.sqrt(len(values))


def _first(batch: Batch, count: int) -> Batch:
    return jax.tree.map(lambda leaf: leaf[:count], batch)


def _key_for(function: str, transform: Any, key: Key | None) -> Key:
    if key is None and transform is not None:
        raise wrong(f"{function}: key", None, "a key beside a transform", "key=jax.random.key(0)")
    return jax.random.key(0) if key is None else key


__all__ = [
    "ActiveUnits",
    "Calibration",
    "Decomposition",
    "Estimate",
    "RateDistortion",
    "Report",
    "active_units",
    "calibration",
    "decompose",
    "implied_beta",
    "inference_report",
    "rate_distortion",
    "rate_per_dimension",
]
