"""Networks of flows: what makes a flow, or a density, from parameters and features."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.distributions import Normal
from vaejax.errors import at_least_one, sizes, wrong
from vaejax.networks._door import entering
from vaejax.networks._layers import MLP, join
from vaejax.networks._network import Network
from vaejax.networks.flows._maps import (
    Composed,
    Coupling,
    InverseAutoregressive,
    Planar,
    Transformed,
)
from vaejax.types import Array, Initializer, Key, Params, describe_fields

Orders = Sequence[Sequence[int]]  # of each flow, a permutation of the positions


@describe_fields
@entering("Stack", "nets")
class Stack(NamedTuple):
    """A network of flows, one after the other, each with a conditioner of its own.

    `coupling` and `inverse_autoregressive` make it. `init(key, *given) -> params` and
    `apply(params, *given) -> Composed`; given is a vector of features h, or nothing.

    Args:
      family: `Coupling` or `InverseAutoregressive`.
      nets: the conditioners, a tuple of one network for each flow.
      orders: a permutation of the positions for each flow.
    """

    family: Any
    nets: tuple[Any, ...]
    orders: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return len(self.orders[0])

    def init(self, key: Key, *given: Any) -> Params:
        """New parameters of the conditioners.

        Args:
          key: one PRNG key.
          *given: features h, or nothing.
        Returns:
          The parameters, by flow.
        """
        seen = self.size // 2 if self.family is Coupling else self.size
        return {
            f"flow_{i}": net.init(jax.random.fold_in(key, i), jnp.zeros(seen), *given)
            for i, net in enumerate(self.nets)
        }

    def apply(self, params: Params, *given: Any, rngs: Any = None) -> Composed:
        """The flow under these parameters, for these features.

        Args:
          params: of the conditioners.
          *given: features h, or nothing.
          rngs: not looked at; there is no layer noise in a conditioner.
        Returns:
          The flow.
        """
        del rngs  # there is no layer noise in a conditioner
        # Partial keeps the parameters as leaves; the function in it is stored with the module, so
        # that it is the same object, hence the same structure, at every call.
        return Composed(
            tuple(
                self.family(jax.tree_util.Partial(net.apply, params[f"flow_{i}"]), given, order)
                for i, (net, order) in enumerate(zip(self.nets, self.orders, strict=True))
            )
        )


def coupling(
    size: int, *, layers: int = 4, hidden: Sequence[int] = (64,), orders: Orders | None = None
) -> Stack:
    """A network of affine coupling flows, which is the identity before it is trained.

    Args:
      size: of the vector, 2 or more.
      layers: how many flows.
      hidden: widths of the tanh layers of each conditioner.
      orders: a permutation of the positions for each flow, whose first half stays; by default the
        halves take turns.
    Returns:
      The network.
    Raises:
      ValueError: for size < 2, layers < 1, or orders that are no permutations.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import flows
      >>> network = flows.coupling(2, layers=1, hidden=(3,))
      >>> x, log_det = network.apply(network.init(jax.random.key(0))).forward(jnp.ones(2))
      >>> print(x, log_det)
      [1. 1.] 0.0
    """
    at_least_one("coupling", size=size, layers=layers)
    hidden = sizes("coupling: hidden", hidden, empty=True)
    if size < 2:
        fix = (
            "a coupling needs an entry to look at and another to move: take inverse_autoregressive"
        )
        raise wrong("coupling: size", size, "2 or more", fix)
    orders = _orders("coupling", size, layers, orders)
    moved = size - size // 2
    nets = tuple(Conditioner(tuple(hidden), 2 * moved) for _ in orders)
    return Stack(Coupling, nets, orders)


def inverse_autoregressive(
    size: int, *, layers: int = 2, hidden: Sequence[int] = (64,), orders: Orders | None = None
) -> Stack:
    """A network of inverse autoregressive flows, a gate of 0.88 each before it is trained.

    Raises ValueError for a count below 1, no hidden layer, by which the features enter, or orders
    that are no permutations.

    Args:
      size: of the vector.
      layers: how many flows.
      hidden: widths of the ELU layers of each masked conditioner, one or more.
      orders: a permutation of the positions for each flow; by default forward and backward in turn.
    Returns:
      The network.
    """
    at_least_one("inverse_autoregressive", size=size, layers=layers)
    hidden = sizes("inverse_autoregressive: hidden", hidden)
    orders = _orders("inverse_autoregressive", size, layers, orders)
    nets = tuple(Masked(tuple(hidden), 2, order) for order in orders)
    return Stack(InverseAutoregressive, nets, orders)


def planar(size: int, *, layers: int = 4) -> "PlanarNet":
    """A network of planar flows: their u, w and b are linear in the features h, or free parameters.

    Raises ValueError for a count below 1.

    Args:
      size: of the vector.
      layers: how many flows.
    Returns:
      The network.
    """
    at_least_one("planar", size=size, layers=layers)
    return PlanarNet(size, layers)


class PlanarNet(Network):
    """What `planar` makes: `init(key, *given) -> params`, `apply(params, *given) -> Composed`.

    Args:
      size: of the vector.
      layers: how many flows.
    """

    size: int
    layers: int

    @nn.compact
    def __call__(self, *given: Any) -> Composed:
        shape = self.layers, 2 * self.size + 1
        free = self.param("start", nn.initializers.normal(0.1), shape)
        if given:
            near_zero = nn.initializers.normal(1e-3)
            by_h = nn.Dense(math.prod(shape), use_bias=False, kernel_init=near_zero)
            free = free + by_h(join(given)).reshape(shape)
        n = self.size
        return Composed(tuple(Planar(u=row[:n], w=row[n : 2 * n], b=row[-1]) for row in free))


@describe_fields
class Density(NamedTuple):
    """The network of a density: x = f(z), z ~ N(0, I), as a `Transformed` distribution.

    `init(key, *given) -> params` and `apply(params, *given, rngs=None) -> Transformed`. It serves
    as a model of its own (`objectives.maximum_likelihood`) or as the prior of an `autoencoder`.

    Args:
      flow: a network of flows with a `size`.
    """

    flow: Any

    def init(self, key: Key, *given: Any) -> Params:
        """The flow's parameters."""
        return self.flow.init(key, *given)

    def apply(self, params: Params, *given: Any, rngs: Any = None) -> Transformed:
        """The density under these parameters."""
        del rngs
        n = self.flow.size
        return Transformed(Normal(jnp.zeros(n), jnp.ones(n)), self.flow.apply(params, *given))


class Conditioner(Network):
    """A perceptron of tanh layers whose output is zero before it is trained: `[outputs]`.

    Args:
      hidden: widths of the tanh layers.
      outputs: length of what it returns.
    """

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, z: Array, *given: Any) -> Array:
        h = MLP(self.hidden, nn.tanh)(z, given)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(h)


class Masked(Network):
    """A masked perceptron: row o(i) of the output depends on z_o(1), ..., z_o(i-1), and on h.

    Takes z `[n]` and features h of any shape, or none; returns `[n, outputs]`, near zero before it
    is trained.

    Args:
      hidden: widths of the ELU layers.
      outputs: m for each entry.
      order: o, a permutation of the n positions.
    References:
      Germain et al., 2015, MADE: masked autoencoder for distribution estimation, arXiv:1502.03509.
    """

    hidden: tuple[int, ...]
    outputs: int
    order: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array, *given: Any) -> Array:
        n = len(self.order)
        h, masks = z, autoregressive_masks(self.order, self.hidden)
        for i, (width, mask) in enumerate(zip(self.hidden, masks[:-1], strict=True)):
            h = MaskedDense(width)(h, mask)
            if given and i == 0:  # what every entry may depend on needs no mask
                h = h + nn.Dense(width, use_bias=False)(join(given))
            h = nn.elu(h)
        small = nn.initializers.variance_scaling(1e-2, "fan_in", "truncated_normal")
        out = MaskedDense(n * self.outputs, small)(h, np.repeat(masks[-1], self.outputs, axis=1))
        return out.reshape(n, self.outputs)


class MaskedDense(Network):
    """A dense layer (W * mask) x + b, with a mask `[inputs, features]` of zeros and ones.

    Args:
      features: how many outputs.
      kernel_init: initialiser of W.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, mask: np.ndarray) -> Array:
        kernel = self.param("kernel", self.kernel_init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ (kernel * jnp.asarray(mask, kernel.dtype)) + bias


def autoregressive_masks(order: Sequence[int], hidden: Sequence[int]) -> list[np.ndarray]:
    """Masks of layers by which entry o(i) depends on those before it alone.

    Entry o(i) has the rank i = 1..n. Hidden units have degrees 0 to n - 1 in turn; in a layer of
    fewer than n units they are spread over that range, or no unit would see the later entries. A
    unit sees the inputs of rank <= its degree and the units of degree <= its own; entry o(i) sees
    the units of degree < i. Units of degree 0 see no entry, and carry features to the first.

    Args:
      order: o, a permutation of the n positions.
      hidden: widths of the layers.
    Returns:
      One mask `[inputs, outputs]` for each layer; the last has one output for each entry.
    """
    n = len(order)
    rank = np.empty(n, int)
    rank[np.asarray(order)] = np.arange(1, n + 1)

    def spread(width: int) -> np.ndarray:
        return np.arange(width) % n if width >= n else np.linspace(0, n - 1, width).round()

    degrees = [rank, *(spread(width) for width in hidden)]
    masks = [a[:, None] <= b[None] for a, b in pairwise(degrees)]
    masks.append(degrees[-1][:, None] < rank[None])
    return [mask.astype(np.float32) for mask in masks]


def _orders(
    function: str, size: int, layers: int, orders: Sequence[Sequence[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """One permutation for each layer: as given, or forward and backward in turn."""
    if orders is None:
        forward = tuple(range(size))
        return tuple(forward[:: (-1) ** i] for i in range(layers))
    orders = tuple(tuple(int(i) for i in order) for order in orders)
    if len(orders) != layers or any(sorted(order) != list(range(size)) for order in orders):
        expected = f"{layers} permutations of 0 to {size - 1}, one for each layer"
        fix = "make one by tuple(numpy.random.default_rng(0).permutation(size).tolist())"
        raise wrong(f"{function}: orders", orders, expected, fix)
    return orders
