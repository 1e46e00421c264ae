"""Chains of every example along the temperatures, in either direction, and their sums."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import numbers
from vaejax.batch import example_at, over_data, size_of
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.evaluate._each import measure_each
from vaejax.evaluate._progress import in_parts, is_shown, progress
from vaejax.evaluate.annealing._moves import hmc
from vaejax.model import Model, check_model, deterministic
from vaejax.types import Array, Batch, Key, Params, describe_fields

Start = Literal["prior", "posterior"]

MORE = "give more temperatures or chains"

TARGET = 0.65  # acceptance that the pilot chains' step size is moved towards
GAIN = 0.5  # how fast: log step += GAIN (acceptance - TARGET) at each temperature
OWN = 2**32 - 1  # folded into the key of an example
NEVER = 1e-3  # mean probability of acceptance below which nothing has moved


@describe_fields
class Annealed(NamedTuple):
    """Annealed importance sampling of every example, and how far it can be trusted.

    `str` gives the mean, with "not converged" and the reason in place of a number that is not.

    Args:
      log_px: nats, a lower bound in expectation from `ais`, an upper one from `reverse_ais`, `[n]`.
      error: its standard error over chains, nats, sqrt(1/ESS - 1/chains), `[n]`.
      ess: the effective sample size over the chains (of w forwards, of 1/w in reverse), `[n]`.
      log_weights: log w of each chain, nats, `[n, chains]`.
      acceptance: the mean probability of acceptance over the chains, along rising temperatures,
        `[n, moves]`, moves = temperatures - 2.
      step_size: in standard deviations of the start, along rising temperatures, `[n, moves]`.
    """

    log_px: np.ndarray
    error: np.ndarray
    ess: np.ndarray
    log_weights: np.ndarray
    acceptance: np.ndarray
    step_size: np.ndarray

    def __str__(self) -> str:
        chains = self.log_weights.shape[1]
        problems = [] if chains > 1 else [f"a single chain shows no spread, {MORE}"]
        problems += problems_of("annealing", self, 0.1)
        error = np.sqrt(np.sum(self.error**2)) / len(self.error)
        value = f"{np.mean(self.log_px):.3f} ({error:.3f})"
        if problems:
            value = f"not converged: {'; '.join(problems)}"
        moved = f"acceptance {self.acceptance.mean():.2f}" if self.acceptance.size else "no moves"
        return (
            f"bound on log p(x) of {len(self.log_px)} examples by annealing, nats per example "
            f"(se over draws)\n  {value}\n  {chains} chains, {moved}, ESS median "
            f"{np.median(self.ess):.1f}, lowest {self.ess.min():.1f} "
            f"(example {np.argmin(self.ess)})"
        )


def problems_of(name: str, run: Annealed, tolerance: float) -> list[str]:
    """What speaks against the convergence of one run, in words; see `bounds.sandwich`."""
    found = []
    bias = float(np.mean(run.error**2) / 2)
    # The estimate ends at 1/2, at an ESS of 1: well below that it means something.
    if bias > min(tolerance, 0.1):
        found.append(
            f"{name} has an ESS of {np.median(run.ess):.1f} of {run.log_weights.shape[1]} in "
            f"the median, {run.ess.min():.1f} at least (bias about {bias:.2g} nats), {MORE}"
        )
    if run.acceptance.size and run.acceptance.mean() < 0.1:
        acceptance = run.acceptance.mean()
        found.append(f"{name} accepts {acceptance:.2g} of its moves, give a smaller step_size")
    return found


def sigmoidal(temperatures: int, *, steepness: float = 4.0) -> np.ndarray:
    """Inverse temperatures from 0 to 1, dense at both ends.

    `b_t` is `sigmoid(steepness (2 t / T - 1))`, t = 0..T, stretched to begin at 0 and end at 1.

    Args:
      temperatures: how many.
      steepness: how dense the ends are.
    Returns:
      b, `[temperatures]`.
    Raises:
      ValueError: for temperatures < 2.
    References:
      Wu et al., 2017, arXiv:1611.04273.
    """
    return _betas("sigmoidal", temperatures, steepness)


def run(
    function: str,
    model: Model,
    sizes: tuple[Any, ...],
    params: Params,
    key: Key,
    batch: Batch,
    temperatures: Any,
    step_size: float,
    posterior: Array | None,
) -> Annealed:
    """Check, find the steps, anneal every example, sum up; without `posterior` forwards."""
    start, chains, leapfrog_steps, transform, batch_size = sizes
    at_least_one(function, leapfrog_steps=leapfrog_steps, batch_size=batch_size)
    n = size_of(batch.x)
    if not 0 < step_size < np.inf:
        raise wrong(f"{function}: step_size", step_size, "a number > 0", "leave it at 1.0")
    betas = _betas(function, temperatures)
    latent = latent_shape(function, model, params, batch, transform, start)
    if posterior is not None:
        _check_draws(function, posterior, n, latent)

    pilots = max(1, chains // 4)
    options = model, start, pilots, chains
    with progress(False):  # it is soon done, and its keys are no numbers
        begun = measure_each(_begin, options, transform, 500, params, key, batch)
    x, pilot_keys, keys, scale, pilot, z = begun
    walk = partial(_walked, model, start, leapfrog_steps, batch_size)
    seen = x, batch.c, scale
    steps = jnp.full((n, len(betas) - 2), step_size)
    shared = params, betas, GAIN
    steps = walk(shared, (*seen, pilot_keys, pilot, steps), "pilot chains")[2][:, :-1]
    if posterior is None:
        sums, acceptance, _ = walk((params, betas, 0.0), (*seen, keys, z, steps), "chains")
    else:
        shared = params, betas[::-1], 0.0
        own = *seen, keys, posterior, steps[:, ::-1]
        sums, acceptance, _ = walk(shared, own, "chains")
    # log w going up, and -log w coming down, where the differences of b are negative.
    signed, accepted, moved_by = (np.asarray(v) for v in (sums, acceptance[:, :-1], steps))
    log_mean, ess = _log_mean_exp(signed)
    finite_values(function, "log p(x)", log_mean, batch.x)
    _check_moves(function, chains, accepted, moved_by)
    error = np.sqrt(np.maximum(1 / ess - 1 / chains, 0)) if chains > 1 else np.full(n, np.nan)
    if posterior is None:
        return Annealed(log_mean, error, ess, signed, accepted, moved_by)
    return Annealed(-log_mean, error, ess, -signed, accepted[:, ::-1], moved_by)


def _begin(
    model: Model,
    start: Start,
    pilots: int,
    chains: int,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Any, Key, Key, Array, Array, Array]:
    """The example as the model sees it, keys, the start's scale, and draws from it."""
    s = _start_of(deterministic(model), start, params, x, c)
    # A number that no particle and no draw has: nothing here is known to what they made.
    scale_key, pilot_key, start_key, *keys = jax.random.split(jax.random.fold_in(key, OWN), 5)

    def draws(key: Key, count: int) -> Array:
        return jax.vmap(s.sample)(jax.random.split(key, count))

    scale = jnp.std(draws(scale_key, 256), axis=0)
    return x, *keys, scale, draws(pilot_key, pilots), draws(start_key, chains)


def _walked(
    model: Model,
    start: Start,
    leapfrog_steps: int,
    batch_size: int,
    shared: Any,
    own: Any,
    name: str,
) -> Any:
    """`_walks`, with a bar of this name where bars are shown."""
    if not is_shown():
        return _walks(model, start, leapfrog_steps, batch_size, shared, own)
    own = jax.device_put(own)  # once

    def part(first: Any, count: int, width: int) -> Any:
        return _walks_of(model, start, leapfrog_steps, count, width, shared, own, first)

    return in_parts(name, part, size_of(own), batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _walks(
    model: Model, start: Start, leapfrog_steps: int, batch_size: int, shared: Any, own: Any
) -> tuple[Array, Array, Array]:
    """Take the chains of every example along the temperatures, in either direction.

    `shared`: params, betas and gain; `own`: x, c, scale, keys `[n]`, chains z
    `[n, chains, *latent]` and steps `[n, moves]`.

    Returns `sum_t (b_t - b_{t-1}) (log p(x, z) - log s(z))` at z_{t-1}, `[n, chains]`; and the
    acceptance and the step size of every move, `[n, moves + 1]` with a column of padding, since a
    loop over examples returns nothing empty. With `gain` 0 the steps stay as given.
    """
    model, n = deterministic(model), size_of(own)
    return over_data(lambda i: _at(i, model, start, leapfrog_steps, shared, own), n, batch_size)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _walks_of(
    model: Model,
    start: Start,
    leapfrog_steps: int,
    count: int,
    width: int,
    shared: Any,
    own: Any,
    first: Any,
) -> tuple[Array, Array, Array]:
    """`_walks` of `count` examples from `first` on, `width` at a time."""
    model, last = deterministic(model), size_of(own) - 1

    def example(i: Array) -> tuple[Array, Array, Array]:
        return _at(jnp.minimum(first + i, last), model, start, leapfrog_steps, shared, own)

    return over_data(example, count, width)


def _at(
    index: Array, model: Model, start: Start, leapfrog_steps: int, shared: Any, own: Any
) -> tuple[Array, Array, Array]:
    """`_walk` of the example at an index."""
    one = jax.tree.map(lambda leaf: leaf[index], own)
    return _walk(model, start, leapfrog_steps, shared, *one)


def _walk(
    model: Model,
    start: Start,
    leapfrog_steps: int,
    shared: Any,
    x: Any,
    c: Any,
    scale: Array,
    key: Key,
    z: Array,
    steps: Array,
) -> tuple[Array, Array, Array]:
    """The chains of one example; see `_walks`."""
    params, betas, gain = shared
    s = _start_of(model, start, params, x, c)
    pz = model.prior(params, c)

    def log_ratio(z: Array) -> Array:
        return log_joint(z) - s.log_prob(z)

    def log_joint(z: Array) -> Array:
        return model.decode(params, z, c).log_prob(x) + pz.log_prob(z)

    def move(state: Any, now: Any) -> tuple[Any, tuple[Array, Array]]:
        z, total, correction = state
        t, before, b, step = now
        step = step * jnp.exp(correction)

        def bridge(z: Array) -> Array:
            return (1 - b) * s.log_prob(z) + b * log_joint(z)

        def chain(chain_key: Key, z: Array) -> tuple[Array, Array]:
            return hmc(bridge, chain_key, z, step=step, count=leapfrog_steps, scale=scale)

        total = total + ((b - before) * jax.vmap(log_ratio)(z)).astype(total.dtype)
        move_keys = jax.random.split(jax.random.fold_in(key, t), len(z))
        moved, accepted = jax.vmap(chain)(move_keys, z)
        z = moved.astype(z.dtype)  # with JAX's x64 the temperatures are of another type
        acceptance = jnp.mean(accepted)
        correction = (correction + gain * (acceptance - TARGET)).astype(correction.dtype)
        return (z, total, correction), (acceptance, step)

    zero = jnp.zeros_like(betas, shape=())
    state = z, jnp.zeros_like(jax.vmap(log_ratio)(z)), zero
    moves = jnp.arange(betas.size - 2), betas[:-2], betas[1:-1], steps
    (last, total, _), seen = lax.scan(move, state, moves)
    total = total + (betas[-1] - betas[-2]) * jax.vmap(log_ratio)(last)
    acceptance, moved_by = jax.tree.map(lambda v: jnp.append(v, jnp.nan), seen)
    return total, acceptance, moved_by


def _start_of(model: Model, start: Start, params: Params, x: Any, c: Any) -> Any:
    return model.prior(params, c) if start == "prior" else model.encode(params, x, c)


def _betas(function: str, temperatures: Any, steepness: float = 4.0) -> np.ndarray:
    """The inverse temperatures, from their number or as given, checked."""
    temperatures = numbers(f"{function}: temperatures", temperatures, "a number, or all of them")
    if np.ndim(temperatures) == 0:
        if temperatures < 2:
            fix = "2 is importance sampling from the start; several hundred are usual"
            raise wrong(f"{function}: temperatures", temperatures, "2 or more", fix)
        b = 1 / (1 + np.exp(-steepness * np.linspace(-1, 1, int(temperatures))))
        b = (b - b[0]) / (b[-1] - b[0])
        return np.clip(b, 0.0, 1.0)
    b = np.asarray(temperatures, float)
    if b.ndim != 1 or len(b) < 2 or b[0] != 0 or b[-1] != 1 or not np.all(np.diff(b) > 0):
        got = f"an array of shape {b.shape}" + (f", {b.min()} to {b.max()}" if b.size else "")
        expected = "two or more numbers that rise from 0 to 1"
        raise wrong(f"{function}: temperatures", got, expected, "try annealing.sigmoidal(500)")
    return b


def latent_shape(
    function: str, model: Model, params: Params, batch: Batch, transform: Any, start: Start
) -> tuple[int, ...]:
    """The shape of z, after checking that start and prior are densities over it."""
    if start not in ("prior", "posterior"):
        raise wrong(f"{function}: start", repr(start), "'prior' or 'posterior'", "name one of them")

    check_model(function, model)

    def distributions(key: Key) -> tuple[Any, Any]:
        arrays = jax.tree.map(jnp.asarray, (batch.x, batch.c))
        x, c, _ = example_at(key, transform, jnp.array(0), *arrays)
        return model.prior(params, c), _start_of(model, start, params, x, c)

    pz, s = jax.eval_shape(distributions, jax.random.key(0))
    if pz is None:
        raise ValueError(
            f"{function}: a deterministic autoencoder has no p(x); give autoencoder(..., prior=...)"
        )
    for name, found in {"prior": pz, start: s}.items():
        if found.discrete:
            raise TypeError(
                f"{function}: the {name} {type(found).__name__} is discrete, expected a density: "
                "Hamiltonian moves need the gradient of log p(x, z) in z; sum over the values of a "
                "discrete latent, or use bounds.ladder"
            )
    if pz.event_shape != s.event_shape:
        got, expected = f"a {start} over {s.event_shape}", f"one over {pz.event_shape}"
        raise wrong(f"{function}: start", got, expected, "encoder and prior must share z")
    return pz.event_shape


def _check_draws(function: str, posterior: Array, n: int, latent: tuple[int, ...]) -> None:
    shape = posterior.shape
    draws = shape[1] if len(shape) > 1 else 0
    if shape != (n, draws, *latent) or draws < 1:
        expected = f"[n, chains, *latent] with n = {n} and latent {latent}"
        fix = "give draws of p(z|x) for every image; one for each: posterior[:, None]"
        raise wrong(f"{function}: posterior", shape, expected, fix)
    bad = np.flatnonzero(~np.isfinite(np.asarray(posterior)).reshape(n, -1).all(axis=1))
    if len(bad):
        got = f"draws that are not finite for example {bad[0]} ({len(bad)} such of {n})"
        raise wrong(f"{function}: posterior", got, "finite draws", "check what made them")


def _check_moves(function: str, chains: int, acceptance: np.ndarray, steps: np.ndarray) -> None:
    """Raise where chains stand still, unless the proposals are too few to tell."""
    late = acceptance[:, acceptance.shape[1] // 2 :]
    if chains * late.shape[1] < 10:
        return
    late = late.mean(axis=1)
    bad = np.flatnonzero(~(late > NEVER))
    if len(bad):
        raise ValueError(
            f"{function}: chains never accept in the second half of the temperatures for example "
            f"{bad[0]} ({len(bad)} such of {len(late)}), where the step size is "
            f"{steps[bad[0], -1]:.3g} standard deviations of the start; give a smaller step_size, "
            "or more temperatures for it to adapt, and check that the gradient of log p(x|z) in z "
            "is finite"
        )


def _log_mean_exp(log_w: np.ndarray) -> tuple[Any, np.ndarray]:
    """log mean w and the effective sample size along the last axis, in double precision."""
    log_w = log_w.astype(np.float64)
    top = log_w.max(axis=1, keepdims=True)
    w = np.exp(log_w - np.where(np.isfinite(top), top, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return top[:, 0] + np.log(w.mean(axis=1)), w.sum(axis=1) ** 2 / (w**2).sum(axis=1)
