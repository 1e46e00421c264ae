"""Annealed importance sampling: log p(x) from below, and from above with exact posterior draws.

`ais` anneals Hamiltonian chains from a start distribution to the posterior, a lower bound;
`reverse_ais` anneals exact posterior draws the other way, an upper bound; `bdmc` does both on data
simulated from the model, where an exact draw is at hand. `bounds.sandwich` puts them together.

With the same `key` and `transform` these functions, `bounds` and `evaluate` see the same drawn
examples (the same binarisation, say). An example's randomness depends on the key and its index
alone, so that `batch_size` changes nothing but speed and memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, example_at, over_data, size_of
from vaejax.errors import at_least_one, finite_values, wrong
from vaejax.model import Model, deterministic, generate
from vaejax.types import Array, Batch, Key, Params, Transform

Start = Literal["prior", "posterior"]

TARGET = 0.65  # acceptance that the pilot chains' step size is moved towards
GAIN = 0.5  # how fast: log step += GAIN (acceptance - TARGET) at each temperature
OWN = 2**32 - 1  # folded into the key of an example
NEVER = 1e-3  # mean probability of acceptance below which nothing has moved


class Annealed(NamedTuple):
    """Annealed importance sampling of every example, and how far it can be trusted.

    `log_px` `[n]`: nats, a lower bound in expectation from `ais`, an upper one from `reverse_ais`;
    `error` `[n]`: its standard error over chains, nats, sqrt(1/ESS - 1/chains); `ess` `[n]`:
    effective sample size over the chains (of w forwards, of 1/w in reverse); `log_weights`
    `[n, chains]`: log w of each chain, nats; `acceptance` `[n, moves]`: mean probability of
    acceptance over the chains; `step_size` `[n, moves]`, in standard deviations of the start; both
    along rising temperatures, moves = temperatures - 2.
    """

    log_px: np.ndarray
    error: np.ndarray
    ess: np.ndarray
    log_weights: np.ndarray
    acceptance: np.ndarray
    step_size: np.ndarray


class Simulated(NamedTuple):
    """Both bounds on data simulated from the model: `lower` and `upper`, each Annealed."""

    lower: Annealed
    upper: Annealed

    @property
    def gap(self) -> np.ndarray:
        """Upper less lower bound of every simulated example, `[examples]`, nats."""
        return self.upper.log_px - self.lower.log_px


def ais(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    chains: int = 16,
    temperatures: Any = 500,
    start: Start = "prior",
    leapfrog_steps: int = 5,
    step_size: float = 1.0,
    transform: Transform | None = None,
    batch_size: int = 20,
) -> Annealed:
    """log p(x) of every example by annealed importance sampling: a lower bound in expectation.

    `log w = sum_t (b_t - b_{t-1}) [log p(x, z_{t-1}) - log s(z_{t-1})]`, `z_0 ~ s`, and z_t from
    z_{t-1} by a Hamiltonian move that leaves `s^(1-b_t) p(x, z)^b_t` as it is; `log_px` is
    `log 1/chains sum w`, where E[w] = p(x). With two temperatures this is importance sampling.

    `data`: a Batch, or the x of one, `[n, ...]`; `start`: s, the prior p(z|c) or the amortised
    posterior q(z|x, c), which must be as wide as the posterior; `temperatures`: how many b from 0
    to 1, along `sigmoidal`, or the b themselves, `[temperatures]`; `leapfrog_steps` in each move.
    The step size is found for each example and temperature by pilot chains (a quarter as many),
    which start at `step_size` (standard deviations of s) and move it towards an acceptance of 0.65.
    The chains that count share no random number with them and keep their steps, so that E[w] = p(x)
    holds exactly. Memory is that of `batch_size * chains` decoded examples, and the data as floats.

    Returns Annealed. Raises ValueError for chains < 1, temperatures < 2 or that do not rise from 0
    to 1, a model without a prior, chains that never accept, and a number that is not finite;
    TypeError for discrete latents, which have no gradient.
    Neal, 2001, arXiv:physics/9803008; Wu et al., 2017, arXiv:1611.04273.
    """
    batch = as_batch(data)
    at_least_one("ais", chains=chains)
    sizes = start, chains, leapfrog_steps, transform, batch_size
    return _run("ais", model, sizes, params, key, batch, temperatures, step_size, None)


def reverse_ais(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    posterior: Any,
    *,
    temperatures: Any = 500,
    start: Start = "prior",
    leapfrog_steps: int = 5,
    step_size: float = 1.0,
    transform: Transform | None = None,
    batch_size: int = 20,
) -> Annealed:
    """log p(x) from exact posterior draws, annealed back to the start: an upper bound.

    `-log 1/chains sum 1/w`, with the w of `ais` along a path from z ~ p(z|x) down to b = 0:
    E[1/w] = 1 / p(x), so its expectation is log p(x) or more.

    `posterior` `[n, chains, *latent]`: draws of p(z|x), exact or the bound is none; with a
    `transform`, of the image drawn under this very `key`. Draws of one example may be copies of one
    draw. All else as in `ais`, the steps found by forward pilot chains, which know no draw.
    Returns Annealed, of the upper bound. Raises as `ais`, and ValueError for draws of wrong shape.
    Grosse, Ghahramani and Adams, 2015, arXiv:1511.02543.
    """
    if hasattr(posterior, "z"):
        fix = "pass its draws, .z"
        got = type(posterior).__name__
        raise wrong("reverse_ais: posterior", got, "draws [n, chains, *latent]", fix, TypeError)
    draws = jnp.asarray(posterior)
    chains = draws.shape[1] if draws.ndim > 1 else 0
    sizes = start, chains, leapfrog_steps, transform, batch_size
    batch = as_batch(data)
    return _run("reverse_ais", model, sizes, params, key, batch, temperatures, step_size, draws)


def bdmc(
    model: Model,
    params: Params,
    key: Key,
    *,
    examples: int = 100,
    c: Any = (),
    chains: int = 16,
    temperatures: Any = 500,
    start: Start = "prior",
    leapfrog_steps: int = 5,
    step_size: float = 1.0,
    batch_size: int = 20,
) -> Simulated:
    """Both bounds on data simulated from the model: bidirectional Monte Carlo.

    `z ~ p(z|c)`, `x ~ p(x|z, c)` makes z an exact draw from p(z|x, c): `ais` bounds log p(x) from
    below, `reverse_ais` with all chains from this z from above. The mean gap bounds the error of
    either in expectation, on such data; on real images AIS may be worse.

    `c`: conditions `[examples, ...]`, or `()`; all else as in `ais`. Returns Simulated. Raises as
    `ais`, and ValueError for examples < 1.
    Grosse, Ghahramani and Adams, 2015, arXiv:1511.02543.
    """
    at_least_one("bdmc", examples=examples, chains=chains)
    _latent_shape("bdmc", model, params, Batch((), jax.tree.map(jnp.asarray, c)), None, "prior")
    simulate_key, forward_key, reverse_key = jax.random.split(key, 3)
    x, z = _simulate(model, params, jax.random.split(simulate_key, examples), c)
    batch = Batch(x, c)
    sizes = start, chains, leapfrog_steps, None, batch_size
    lower = _run("bdmc", model, sizes, params, forward_key, batch, temperatures, step_size, None)
    draws = jnp.repeat(z[:, None], chains, axis=1)
    upper = _run("bdmc", model, sizes, params, reverse_key, batch, temperatures, step_size, draws)
    return Simulated(lower, upper)


def sigmoidal(temperatures: int, *, steepness: float = 4.0) -> np.ndarray:
    """Inverse temperatures from 0 to 1, dense at both ends: `[temperatures]`.

    `b_t` is `sigmoid(steepness (2 t / T - 1))`, t = 0..T, stretched to begin at 0 and end at 1.
    Raises ValueError for temperatures < 2.
    Wu et al., 2017, arXiv:1611.04273.
    """
    return _betas("sigmoidal", temperatures, steepness)


def leapfrog(
    log_f: Callable[[Array], Array], z: Array, momentum: Array, *, step: Any, count: int
) -> tuple[Array, Array, Array]:
    """Hamilton's equations for the energy `|momentum|^2 / 2 - log f(z)`: `count` leapfrog steps.

    Each is half a kick, `momentum += step/2 grad log f(z)`, a drift, `z += step momentum`, and half
    a kick. All are shears, so volume is kept, log|det J| = 0; and the same with the momentum
    reversed leads back.

    `step`: a number, or one for each element of z. Returns the new z and momentum, and
    log f(new z) - log f(z), nats, `()`.
    Neal, 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    """
    begin, gradient = jax.value_and_grad(log_f)(z)

    def one(_: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        z, momentum, _, gradient = state
        momentum = momentum + 0.5 * step * gradient
        z = z + step * momentum
        end, gradient = jax.value_and_grad(log_f)(z)
        return z, momentum + 0.5 * step * gradient, end, gradient

    z, momentum, end, _ = lax.fori_loop(0, count, one, (z, momentum, begin, gradient))
    return z, momentum, end - begin


def hmc(
    log_f: Callable[[Array], Array], key: Key, z: Array, *, step: Any, count: int, scale: Any = 1.0
) -> tuple[Array, Array]:
    """One Hamiltonian Monte Carlo move of one chain, which leaves the density f as it is.

    `log_f(z)`: log f up to a constant, nats; `step`: the largest step size, in units of `scale`, a
    number or an array of the shape of z; half of it to all of it is used, at random; `count`:
    leapfrog steps. A proposal whose energy is not a number is refused.
    Returns the new z and the probability of acceptance, `()`.
    Neal, 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    """
    momentum_key, step_key, accept_key = jax.random.split(key, 3)
    momentum = jax.random.normal(momentum_key, z.shape, z.dtype)
    # Trajectories that all have one length may turn in circles and end where they began.
    unit = (step * jax.random.uniform(step_key, minval=0.5, maxval=1.0) * scale).astype(z.dtype)
    new, reached, gained = leapfrog(log_f, z, momentum, step=unit, count=count)
    log_ratio = gained + 0.5 * (jnp.sum(momentum**2) - jnp.sum(reached**2))
    accepted = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    return jnp.where(jax.random.uniform(accept_key) < accepted, new, z), accepted


def _run(
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
    n = size_of(batch.x)
    at_least_one(function, leapfrog_steps=leapfrog_steps, batch_size=batch_size, examples=n)
    if not 0 < step_size < np.inf:
        raise wrong(f"{function}: step_size", step_size, "a number > 0", "leave it at 1.0")
    betas = _betas(function, temperatures)
    latent = _latent_shape(function, model, params, batch, transform, start)
    if posterior is not None:
        _check_draws(function, posterior, n, latent)

    pilots = max(1, chains // 4)
    begun = _begin(model, start, pilots, chains, transform, params, key, batch.x, batch.c)
    x, pilot_keys, keys, scale, pilot, z = begun
    walk = partial(_walks, model, start, leapfrog_steps, batch_size, params, scale, x, batch.c)
    steps = jnp.full((n, len(betas) - 2), step_size)
    steps = walk(pilot_keys, pilot, betas, steps, GAIN)[2][:, :-1]
    if posterior is None:
        sums, acceptance, _ = walk(keys, z, betas, steps, 0.0)
    else:
        sums, acceptance, _ = walk(keys, posterior, betas[::-1], steps[:, ::-1], 0.0)
    # log w going up, and -log w coming down, where the differences of b are negative.
    signed, accepted, moved_by = (np.asarray(v) for v in (sums, acceptance[:, :-1], steps))
    log_mean, ess = _log_mean_exp(signed)
    finite_values(function, "log p(x)", log_mean, batch.x)
    _check_moves(function, chains, accepted, moved_by)
    error = np.sqrt(np.maximum(1 / ess - 1 / chains, 0)) if chains > 1 else np.full(n, np.nan)
    if posterior is None:
        return Annealed(log_mean, error, ess, signed, accepted, moved_by)
    return Annealed(-log_mean, error, ess, -signed, accepted[:, ::-1], moved_by)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _begin(
    model: Model,
    start: Start,
    pilots: int,
    chains: int,
    transform: Any,
    params: Params,
    key: Key,
    x: Any,
    c: Any,
) -> tuple[Any, Key, Key, Array, Array, Array]:
    """The examples as the model sees them, keys, the start's scale, and draws from it."""
    model = deterministic(model)

    def example(index: Array) -> tuple[Any, Key, Key, Array, Array, Array]:
        one_x, one_c, rest = example_at(key, transform, index, x, c)
        s = _start_of(model, start, params, one_x, one_c)
        # A number that no particle and no draw has: nothing here is known to what they made.
        scale_key, pilot_key, start_key, *keys = jax.random.split(jax.random.fold_in(rest, OWN), 5)

        def draws(key: Key, count: int) -> Array:
            return jax.vmap(s.sample)(jax.random.split(key, count))

        scale = jnp.std(draws(scale_key, 256), axis=0)
        return one_x, *keys, scale, draws(pilot_key, pilots), draws(start_key, chains)

    return over_data(example, size_of(x), 500)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _walks(
    model: Model,
    start: Start,
    leapfrog_steps: int,
    batch_size: int,
    params: Params,
    scale: Array,
    x: Any,
    c: Any,
    keys: Key,
    z: Array,
    betas: Array,
    steps: Array,
    gain: Array,
) -> tuple[Array, Array, Array]:
    """Take chains z `[n, chains, *latent]` along the temperatures, in either direction.

    Returns `sum_t (b_t - b_{t-1}) (log p(x, z) - log s(z))` at z_{t-1}, `[n, chains]`; and the
    acceptance and the step size of every move, `[n, moves + 1]` with a column of padding, since a
    loop over examples returns nothing empty. With `gain` 0 the steps stay as given.
    """
    model = deterministic(model)

    def example(index: Array) -> tuple[Array, Array, Array]:
        one = jax.tree.map(lambda leaf: leaf[index], (x, c, scale, z, steps))
        one_x, one_c, one_scale, first, one_steps = one
        s = _start_of(model, start, params, one_x, one_c)
        pz = model.prior(params, one_c)

        def log_ratio(z: Array) -> Array:
            return log_joint(z) - s.log_prob(z)

        def log_joint(z: Array) -> Array:
            return model.decode(params, z, one_c).log_prob(one_x) + pz.log_prob(z)

        def move(state: Any, now: Any) -> tuple[Any, tuple[Array, Array]]:
            z, total, correction = state
            t, before, b, step = now
            step = step * jnp.exp(correction)

            def chain(chain_key: Key, z: Array) -> tuple[Array, Array]:
                bridge = lambda z: (1 - b) * s.log_prob(z) + b * log_joint(z)  # noqa: E731
                return hmc(bridge, chain_key, z, step=step, count=leapfrog_steps, scale=one_scale)

            total = total + (b - before) * jax.vmap(log_ratio)(z)
            move_keys = jax.random.split(jax.random.fold_in(keys[index], t), len(z))
            z, accepted = jax.vmap(chain)(move_keys, z)
            acceptance = jnp.mean(accepted)
            correction = correction + gain * (acceptance - TARGET)
            return (z, total, correction), (acceptance, step)

        zero = jnp.zeros_like(betas, shape=())
        state = first, jnp.zeros_like(jax.vmap(log_ratio)(first)), zero
        moves = jnp.arange(betas.size - 2), betas[:-2], betas[1:-1], one_steps
        (last, total, _), seen = lax.scan(move, state, moves)
        total = total + (betas[-1] - betas[-2]) * jax.vmap(log_ratio)(last)
        acceptance, moved_by = jax.tree.map(lambda v: jnp.append(v, jnp.nan), seen)
        return total, acceptance, moved_by

    return over_data(example, size_of(x), batch_size)


@partial(jax.jit, static_argnums=(0,))
def _simulate(model: Model, params: Params, keys: Key, c: Any) -> tuple[Array, Array]:
    model = deterministic(model)

    def example(key: Key, one_c: Any) -> tuple[Array, Array]:
        sample = generate(model, params, key, one_c)
        return sample.x, sample.z

    return jax.vmap(example)(keys, c)


def _start_of(model: Model, start: Start, params: Params, x: Any, c: Any) -> Any:
    return model.prior(params, c) if start == "prior" else model.encode(params, x, c)


def _betas(function: str, temperatures: Any, steepness: float = 4.0) -> np.ndarray:
    """The inverse temperatures, from their number or as given, checked."""
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


def _latent_shape(
    function: str, model: Model, params: Params, batch: Batch, transform: Any, start: Start
) -> tuple[int, ...]:
    """The shape of z, after checking that start and prior are densities over it."""
    if start not in ("prior", "posterior"):
        raise wrong(f"{function}: start", repr(start), "'prior' or 'posterior'", "name one of them")

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


__all__ = [
    "Annealed",
    "Simulated",
    "ais",
    "bdmc",
    "hmc",
    "leapfrog",
    "reverse_ais",
    "sigmoidal",
]
