"""Maximum likelihood: the loss of a network whose log p(x) is known."""

from typing import Any, Protocol

from vaejax.batch import batch_mean, over_batch, present
from vaejax.networks import functional
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


class Density(Protocol):
    """A network that returns the Distribution of one example."""

    def apply(self, params: Params, /, *c: Any, rngs: Any = None) -> Any:
        """p(x|c); `rngs` holds a key for dropout."""


def maximum_likelihood(network: Density) -> Loss:
    """-log p(x|c) of a network without latent variables, averaged over the batch, nats per example.

    Args:
      network: any object with `.init(key, *c) -> params` and `.apply(params, *c, rngs=None)`, the
        Distribution of one example: a module that returns one (a flow, a mixture), or
        `autoregressive.Causal`. `networks.functional` gives an NNX or Equinox module its `init`.
    Returns:
      A Loss. Its metric is `log_px`.
    Raises:
      TypeError: for what has no `apply`.
    """

    network = functional(network, "maximum_likelihood: network", ("apply",))

    def example(params: Params, key: Key, x: Any, c: Any) -> Array:
        return network.apply(params, *present(c), rngs={"dropout": key}).log_prob(x)

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        log_px = batch_mean(over_batch(example, params, key, batch), batch.weight)
        return -log_px, {"log_px": log_px}

    return loss
