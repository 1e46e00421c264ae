"""log p(x) by annealing: from below, from above, and on data simulated from the model."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import at_least_one, wrong
from vaejax.evaluate._each import checked_batch, measure
from vaejax.evaluate.annealing._run import Annealed, Start, latent_shape, run
from vaejax.model import Model, deterministic, generate
from vaejax.types import Array, Batch, Key, Params, Transform, describe_fields


@describe_fields
class Simulated(NamedTuple):
    """Both bounds on data simulated from the model.

    Args:
      lower, upper: each an Annealed.
    """

    lower: Annealed
    upper: Annealed

    @property
    def gap(self) -> np.ndarray:
        """Upper less lower bound of every simulated example, `[examples]`, nats."""
        return self.upper.log_px - self.lower.log_px


@measure
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

    The step size is found for each example and temperature by pilot chains (a quarter as many),
    which start at `step_size` and move it towards an acceptance of 0.65. The chains that count
    share no random number with them and keep their steps, so that E[w] = p(x) holds exactly. Memory
    is that of `batch_size * chains` decoded examples, and the data as floats.

    Args:
      model, params: a Model with a density as its prior, and its parameters.
      key: for the chains and the `transform`.
      data: a Batch, or the x of one, `[n, ...]`.
      chains: how many chains each example has.
      temperatures: how many b from 0 to 1, along `sigmoidal`; or the b themselves,
        `[temperatures]`.
      start: s, the prior p(z|c) or the amortised posterior q(z|x, c), which must be as wide as the
        posterior.
      leapfrog_steps: in each move.
      step_size: where the pilot chains start, in standard deviations of s.
      transform: what is done to stored data first, drawn once per example; None: nothing.
      batch_size: examples in memory at a time.
    Returns:
      An Annealed.
    Raises:
      ValueError: for chains < 1, temperatures < 2 or that do not rise from 0 to 1, a model without
        a prior, chains that never accept, and a number that is not finite.
      TypeError: for discrete latents, which have no gradient.
    References:
      Neal, 2001, arXiv:physics/9803008; Wu et al., 2017, arXiv:1611.04273.
    """
    batch = checked_batch("ais", key, data, chains=chains)
    sizes = start, chains, leapfrog_steps, transform, batch_size
    return run("ais", model, sizes, params, key, batch, temperatures, step_size, None)


@measure
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
    E[1/w] = 1 / p(x), so its expectation is log p(x) or more. The steps are found by forward pilot
    chains, which know no draw.

    Args:
      model, params, key, data: as in `ais`.
      posterior: draws of p(z|x), exact or the bound is none; with a `transform`, of the image drawn
        under this very `key`, `[n, chains, *latent]`. Draws of one example may be copies of one
        draw.
      temperatures, start, leapfrog_steps, step_size, transform, batch_size: as in `ais`.
    Returns:
      An Annealed, of the upper bound.
    Raises:
      ValueError: as `ais` does, and for draws of wrong shape or that are not finite.
      TypeError: as `ais` does, and for a posterior that is not given by its draws.
    References:
      Grosse, Ghahramani and Adams, 2015, arXiv:1511.02543.
    """
    if hasattr(posterior, "z"):
        fix = "pass its draws, .z"
        got = type(posterior).__name__
        raise wrong("reverse_ais: posterior", got, "draws [n, chains, *latent]", fix, TypeError)
    draws = jnp.asarray(posterior)
    chains = draws.shape[1] if draws.ndim > 1 else 0
    sizes = start, chains, leapfrog_steps, transform, batch_size
    batch = checked_batch("reverse_ais", key, data)
    return run("reverse_ais", model, sizes, params, key, batch, temperatures, step_size, draws)


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

    Args:
      model, params: as in `ais`.
      key: for the data and the chains.
      examples: how many are simulated.
      c: their conditions, `[examples, ...]`, or `()`.
      chains, temperatures, start, leapfrog_steps, step_size, batch_size: as in `ais`.
    Returns:
      A Simulated.
    Raises:
      ValueError: as `ais` does, and for examples < 1.
      TypeError: for discrete latents, which have no gradient.
    References:
      Grosse, Ghahramani and Adams, 2015, arXiv:1511.02543.
    """
    at_least_one("bdmc", examples=examples, chains=chains)
    latent_shape("bdmc", model, params, Batch((), jax.tree.map(jnp.asarray, c)), None, "prior")
    simulate_key, forward_key, reverse_key = jax.random.split(key, 3)
    x, z = _simulate(model, params, jax.random.split(simulate_key, examples), c)
    batch = Batch(x, c)
    sizes = start, chains, leapfrog_steps, None, batch_size
    lower = run("bdmc", model, sizes, params, forward_key, batch, temperatures, step_size, None)
    draws = jnp.repeat(z[:, None], chains, axis=1)
    upper = run("bdmc", model, sizes, params, reverse_key, batch, temperatures, step_size, draws)
    return Simulated(lower, upper)


@partial(jax.jit, static_argnums=(0,))
def _simulate(model: Model, params: Params, keys: Key, c: Any) -> tuple[Array, Array]:
    model = deterministic(model)

    def example(key: Key, one_c: Any) -> tuple[Array, Array]:
        sample = generate(model, params, key, one_c)
        return sample.x, sample.z

    return jax.vmap(example)(keys, c)
