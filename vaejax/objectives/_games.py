"""Games: several players in one scalar, each with parameters and a loss of its own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.errors import wrong
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def players(losses: Mapping[str, Loss]) -> Loss:
    """The sum of several players' losses, each of which moves that player's parameters alone.

    `L(params) = sum_i L_i(params_i, stop(params_j), j != i)`: the gradient for params_i is that of
    L_i, whatever the others do with params_i. All losses are given the same key, so that they see
    the same draws. What two of them compute alike is computed once.

    Args:
      losses: a loss for each player, by name. `params` is a dict with the same names on its first
        level, and each loss takes it whole.
    Returns:
      A Loss, the sum. Its metrics are every player's metrics, and each player's loss as
      `NAME/loss`. A metric that several players have is called `NAME/metric`. It raises ValueError
      where the names in `params` are others.
    References:
      Goodfellow et al., 2014, Generative adversarial nets, arXiv:1406.2661.
    """

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        if not isinstance(params, Mapping) or set(params) != set(losses):
            got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
            fix = "params = {name: that player's parameters}"
            raise wrong("players: params", got, sorted(losses), fix)
        found = {}
        for name, own in losses.items():
            held = {
                other: part if other == name else jax.lax.stop_gradient(part)
                for other, part in params.items()
            }
            found[name] = own(held, jax.random.clone(key), batch, step)
        counts = [metric for _, metrics in found.values() for metric in metrics]
        named: Metrics = {}
        for name, (value, metrics) in found.items():
            named[f"{name}/loss"] = value
            for metric, number in metrics.items():
                named[metric if counts.count(metric) == 1 else f"{name}/{metric}"] = number
        return jnp.sum(jnp.stack([value for value, _ in found.values()])), named

    return loss
