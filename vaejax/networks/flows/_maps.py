"""Flows as values: invertible maps of one vector, and the distributions that they make."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.distributions import Distribution, distribution
from vaejax.errors import wrong
from vaejax.types import Array


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
          NotImplementedError: where the flow has no inverse.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.inverse: there is none, so no log_prob of a given point; use "
            "sample_and_log_prob, as the bounds do, or take a flow that has one (flows.coupling)"
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
    it does not with m(a) = softplus(a) - 1, and the determinant stays above .001. The inverse is
    found by bisection, along w alone, to about the precision of the numbers.

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
        u, allowed = self._corrected()
        bend = jnp.tanh(jnp.dot(self.w, z) + self.b)
        return z + u * bend, jnp.log1p(allowed * (1 - bend**2))

    def inverse(self, x):
        _check_vector("Planar.inverse: x", x, jnp.shape(self.w))
        u, allowed = self._corrected()
        bend = jnp.tanh(_unbent(allowed, jnp.dot(self.w, x) + self.b))
        return x - u * bend, -jnp.log1p(allowed * (1 - bend**2))

    def _corrected(self) -> tuple[Array, Array]:
        """u', and its product with w."""
        product = jnp.dot(self.w, self.u)
        # Near 0 the difference of the two numbers would keep no digit, and |w| divides it.
        share = -math.expm1(-0.999)  # the sigmoid of k
        near = jnp.log1p(share * jnp.expm1(jnp.minimum(product, 1.0)))
        far = jax.nn.softplus(product + math.log(math.expm1(0.999))) - 0.999
        allowed = jnp.where(product > 1, far, near)
        square = jnp.dot(self.w, self.w)
        length = jnp.sqrt(jnp.where(square == 0, 1, square))  # no direction: the identity
        return self.u + (allowed - product) / length * (self.w / length), allowed


@jax.custom_jvp
def _unbent(k: Array, y: Array) -> Array:
    """The one s with s + k tanh(s) = y, for k > -1, by bisection."""

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        below = middle + k * jnp.tanh(middle) < y
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    digits = jnp.finfo(jnp.result_type(k, y)).nmant
    low, high = lax.fori_loop(0, digits + 8, halved, (y - jnp.abs(k), y + jnp.abs(k)))
    return 0.5 * (low + high)


@_unbent.defjvp
def _unbent_tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (k, _), (k_moved, y_moved) = primals, tangents
    s = _unbent(*primals)
    bend = jnp.tanh(s)
    return s, (y_moved - bend * k_moved) / (1 + k * (1 - bend**2))


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


def _in_turn(value: Array, steps: list[Any]) -> tuple[Array, Array]:
    total = jnp.zeros((), jnp.result_type(value))
    for step in steps:
        value, log_det = step(value)
        total = total + log_det
    return value, total


def _halves(order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(order[: len(order) // 2]), np.asarray(order[len(order) // 2 :])


def _check_vector(where: str, x: Any, shape: tuple[int, ...]) -> None:
    if jnp.shape(x) != shape or len(shape) != 1:
        fix = "map a batch: jax.vmap"
        raise wrong(where, f"shape {jnp.shape(x)}", f"one vector of shape {shape}", fix)


def _check_density(base: Any) -> None:
    if base.discrete:
        fix = "give a density such as Normal"
        raise wrong("Transformed: base", type(base).__name__, "a density", fix, TypeError)
