"""Normalising flows: invertible maps with a known log-determinant, and the densities they make.

    flow = flows.coupling(2, layers=8, hidden=(64,))     # a network: init, apply
    density = flows.Density(flow)                        # p(x) of x = f(z), z ~ N(0, I)
    params = density.init(key)
    px = density.apply(params)                           # a Distribution like any other

A **flow** is a value, a frozen pytree as a Distribution is: `forward(z) -> (x, log|det dx/dz|)` and
`inverse(x) -> (z, log|det dz/dx|)` for one vector, in nats. A **network of flows** makes one from
parameters and, in a posterior, from features h of the example. `planar`, `coupling` and
`inverse_autoregressive` build it; `posteriors` and `priors` put it into a Model.

| flow | density of a given x | draw with its density | expressive |
| --- | --- | --- | --- |
| `Planar` | none | one pass | one bend for each layer |
| `Coupling` | one pass | one pass | half the entries for each layer |
| `InverseAutoregressive` | one pass for each entry | one pass | all entries, in their order |
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from vaejax.distributions import Distribution, Normal, distribution
from vaejax.errors import at_least_one, wrong
from vaejax.networks._layers import MLP, join
from vaejax.networks._network import Network
from vaejax.types import Array, Key, Params, describe_fields


class Flow:
    """An invertible map x = f(z) of one vector; a subclass has the decorator `distribution`."""

    def forward(self, z: Array) -> tuple[Array, Array]:
        """x = f(z).

        Args:
          z: one vector, `[n]`.
        Returns:
          x, `[n]`, and log|det dx/dz|, nats, `()`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, x: Array) -> tuple[Array, Array]:
        """z with f(z) = x.

        Args:
          x: one vector, `[n]`.
        Returns:
          z, `[n]`, and log|det dz/dx|, nats, `()`.
        Raises:
          NotImplementedError: where the flow has no inverse in closed form.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.inverse: there is none in closed form, so no log_prob of a "
            "given point; use sample_and_log_prob, as the bounds do, or take a flow that has one "
            "(flows.coupling, flows.inverse_autoregressive)"
        )


@distribution
class Transformed(Distribution):
    """The law of x = f(z), z ~ base: log p(x) = log p_base(z) - log|det df/dz| at z = f^-1(x).

    `sample_and_log_prob` needs no inverse; where the flow has none, `log_prob` raises
    NotImplementedError. Samples are differentiable where the base's are. Raises TypeError at use
    for a discrete base, which has no volume to change.

    Args:
      base: a density over `[n]`.
      flow: a Flow.
    """

    base: Any
    flow: Any

    def sample(self, key):
        return self.flow.forward(self.base.sample(key))[0]

    def log_prob(self, x):
        _check_density(self.base)
        _check_vector("Transformed.log_prob: x", x, self.event_shape)
        z, log_det = self.flow.inverse(x)
        return self.base.log_prob(z) + log_det

    def sample_and_log_prob(self, key):
        _check_density(self.base)
        z, log_p = self.base.sample_and_log_prob(key)
        x, log_det = self.flow.forward(z)
        return x, log_p - log_det

    @property
    def event_shape(self):
        return self.base.event_shape


@distribution
class Composed(Flow):
    """Flows one after the other, the first first: f = f_T o ... o f_1; log-determinants add up.

    Args:
      flows: the flows, in the order in which they are applied.
    """

    flows: tuple[Any, ...]

    def forward(self, z):
        return _in_turn(z, [flow.forward for flow in self.flows])

    def inverse(self, x):
        return _in_turn(x, [flow.inverse for flow in self.flows[::-1]])


@distribution
class Planar(Flow):
    """A bend along one direction: f(z) = z + u' tanh(w . z + b), |det| = 1 + u' . w tanh'(w . z+b).

    It is invertible because u' . w > -1: u' = u + (m(w . u) - w . u) w / |w|^2, where m(a) =
    softplus(a + k) - .999, with k such that m(0) = 0. Then u' stays finite as w goes to zero, which
    it does not with m(a) = softplus(a) - 1, and the determinant stays above .001. The inverse has
    no closed form and raises NotImplementedError.

    Args:
      u: what is added, before it is corrected to u', `[n]`.
      w: the direction of the bend, `[n]`.
      b: its place, `()`.
    References:
      Rezende and Mohamed, 2015, Variational inference with normalizing flows, arXiv:1505.05770.
    """

    u: Any
    w: Any
    b: Any

    def forward(self, z):
        _check_vector("Planar.forward: z", z, jnp.shape(self.w))
        product = jnp.dot(self.w, self.u)
        # Near 0 the difference of the two numbers would keep no digit, and |w| divides it.
        share = -math.expm1(-0.999)  # the sigmoid of k
        near = jnp.log1p(share * jnp.expm1(jnp.minimum(product, 1.0)))
        far = jax.nn.softplus(product + math.log(math.expm1(0.999))) - 0.999
        allowed = jnp.where(product > 1, far, near)
        square = jnp.dot(self.w, self.w)
        length = jnp.sqrt(jnp.where(square == 0, 1, square))  # no direction: the identity
        u = self.u + (allowed - product) / length * (self.w / length)
        bend = jnp.tanh(jnp.dot(self.w, z) + self.b)
        return z + u * bend, jnp.log1p(allowed * (1 - bend**2))


@distribution
class Coupling(Flow):
    """Half the entries scaled and shifted by what the others say: x_a = z_a, x_b = z_b e^s + t.

    (s, t) are functions of z_a, and log|det| = sum s. s is kept within -+3 by a tanh, because exp
    of what a network says overflows early in training.

    Args:
      net: `net(z_a, *given) -> [2 * size of b]`, any function that is a pytree.
      given: a tuple of what the net takes beside z_a.
      order: a permutation of the n >= 2 positions, whose first half is a.
    References:
      Dinh, Sohl-Dickstein and Bengio, 2017, Density estimation using Real NVP, arXiv:1605.08803.
    """

    net: Any
    given: Any
    order: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def forward(self, z):
        _check_vector("Coupling.forward: z", z, (len(self.order),))
        a, b = _halves(self.order)
        s, t = self._scale_and_shift(z[a])
        return z.at[b].set(z[b] * jnp.exp(s) + t), jnp.sum(s)

    def inverse(self, x):
        _check_vector("Coupling.inverse: x", x, (len(self.order),))
        a, b = _halves(self.order)
        s, t = self._scale_and_shift(x[a])
        return x.at[b].set((x[b] - t) * jnp.exp(-s)), -jnp.sum(s)

    def _scale_and_shift(self, kept: Array) -> tuple[Array, Array]:
        free, shift = jnp.split(self.net(kept, *self.given), 2)
        return 3 * jnp.tanh(free / 3), shift


@distribution
class InverseAutoregressive(Flow):
    """Every entry gated by those before it: x_i = s_i z_i + (1 - s_i) m_i, (m, s) of z_<i.

    s = sigmoid(. + 2) lies near 1 at the start, and log|det| = sum log s. Far below it is kept
    above sigmoid(-18), since a gate of 0 has no inverse. The Jacobian is triangular in the order.
    One pass forward; the inverse goes through the entries one by one, n passes.

    Args:
      net: `net(z, *given) -> [n, 2]`, masked (see `Masked`).
      given: a tuple of what the net takes beside z.
      order: a permutation of the n positions.
    References:
      Kingma et al., 2016, Improving variational inference with inverse autoregressive flow,
        arXiv:1606.04934.
    """

    net: Any
    given: Any
    order: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def forward(self, z):
        _check_vector("InverseAutoregressive.forward: z", z, (len(self.order),))
        m, log_gate, gate = self._gates(z)
        return gate * z + (1 - gate) * m, jnp.sum(log_gate)

    def inverse(self, x):
        _check_vector("InverseAutoregressive.inverse: x", x, (len(self.order),))

        def one(z: Array, i: Array) -> tuple[Array, Array]:
            m, log_gate, gate = self._gates(z)
            return z.at[i].set((x[i] - (1 - gate[i]) * m[i]) / gate[i]), log_gate[i]

        z, log_gates = lax.scan(one, jnp.zeros_like(x), jnp.asarray(self.order))
        return z, -jnp.sum(log_gates)

    def _gates(self, z: Array) -> tuple[Array, Array, Array]:
        m, free = self.net(z, *self.given).T
        free = jnp.logaddexp(free, -20.0)  # free itself, to rounding, down to about -5
        return m, jax.nn.log_sigmoid(free + 2), jax.nn.sigmoid(free + 2)


@describe_fields
class Stack(NamedTuple):
    """A network of flows, one after the other, each with a conditioner of its own.

    `coupling` and `inverse_autoregressive` make it. `init(key, *given) -> params` and
    `apply(params, *given) -> Composed`; given is a vector of features h, or nothing.

    Args:
      family: `Coupling` or `InverseAutoregressive`.
      nets: the conditioners, one Linen module for each flow.
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
    size: int, *, layers: int = 4, hidden: Sequence[int] = (64,), orders: Any = None
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
    if size < 2:
        fix = (
            "a coupling needs an entry to look at and another to move: take inverse_autoregressive"
        )
        raise wrong("coupling: size", size, "2 or more", fix)
    at_least_one("coupling", layers=layers)
    orders = _orders("coupling", size, layers, orders)
    moved = size - size // 2
    nets = tuple(Conditioner(tuple(hidden), 2 * moved) for _ in orders)
    return Stack(Coupling, nets, orders)


def inverse_autoregressive(
    size: int, *, layers: int = 2, hidden: Sequence[int] = (64,), orders: Any = None
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
    at_least_one("inverse_autoregressive", size=size, layers=layers, hidden=len(hidden))
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
    kernel_init: Any = nn.initializers.lecun_normal()

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


def _in_turn(value: Array, steps: list[Any]) -> tuple[Array, Array]:
    total = jnp.zeros((), jnp.result_type(value))
    for step in steps:
        value, log_det = step(value)
        total = total + log_det
    return value, total


def _halves(order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(order[: len(order) // 2]), np.asarray(order[len(order) // 2 :])


def _orders(function: str, size: int, layers: int, orders: Any) -> tuple[tuple[int, ...], ...]:
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


def _check_vector(where: str, x: Any, shape: tuple[int, ...]) -> None:
    if jnp.shape(x) != shape or len(shape) != 1:
        fix = "map a batch: jax.vmap"
        raise wrong(where, f"shape {jnp.shape(x)}", f"one vector of shape {shape}", fix)


def _check_density(base: Any) -> None:
    if base.discrete:
        fix = "give a density such as Normal"
        raise wrong("Transformed: base", type(base).__name__, "a density", fix, TypeError)


__all__ = [
    "Composed",
    "Conditioner",
    "Coupling",
    "Density",
    "Flow",
    "InverseAutoregressive",
    "Masked",
    "MaskedDense",
    "Planar",
    "PlanarNet",
    "Stack",
    "Transformed",
    "autoregressive_masks",
    "coupling",
    "inverse_autoregressive",
    "planar",
]
