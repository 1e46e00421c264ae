"""Autoregressive distributions: p(x) = prod_i p(x_i | x_<i), by one causal network.

    network = autoregressive.Causal(net, shape=(28, 28, 1))    # net(x) -> Distribution, causal
    params = network.init(key)
    px = network.apply(params)                                 # a Distribution like any other
    px.log_prob(x), px.sample(key), px.complete(key, x, known=392)

A network without a latent variable is a model of its own. `objectives.maximum_likelihood(network)`
trains it, and `evaluate.log_prob` scores it. The same object serves as the decoder of an
`autoencoder` (`net(x, z)`) or as its learned prior.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.distributions import Distribution, distribution
from vaejax.errors import check_key, check_parameters, concrete, sizes, wrong
from vaejax.networks._door import entering
from vaejax.networks._network import check_module, of_this_network
from vaejax.types import Array, Key, Params, describe_fields


@distribution
class Autoregressive(Distribution):
    """The chain rule: log p(x) = sum_i log p(x_o(i) | x_o(1), ..., x_o(i-1)), in nats.

    `log_prob` takes one pass of the network; `sample` takes n passes, or n steps. There is no
    gradient through a sample.

    An ensemble over orders averages the probabilities of whole events: it is a `Mixture` of these.
    The average of their logits, entry by entry, is no distribution, since it sees what it predicts.

    Args:
      conditionals: `conditionals(u)` gives every conditional at once, a Distribution of independent
        entries. u are the event's entries in the order o, u_i = x_o(i), put back into its shape.
        The conditional of u_i depends on u_<i alone, so that a network that is causal in raster
        order serves every order.
      order: o as flat positions, `[n]`; by default, `()`, the raster order.
      step: `step(carry, previous, i) -> (carry, Distribution over ())`, the same conditionals one
        by one, from u_{i-1} (zero at i = 0), for sampling without doing all again for every entry;
        `()` where the network has none.
      carry: what `step` starts with.
      shape: of the event.
      dtype: of the event.
    References:
      Larochelle and Murray, 2011, The neural autoregressive distribution estimator.
    """

    conditionals: Any
    order: Any = ()
    step: Any = ()
    carry: Any = ()
    shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    dtype: Any = dataclasses.field(default=jnp.float32, metadata={"static": True})

    def log_prob(self, x):
        self._check_shape("log_prob", x)
        u = self._in_order(jnp.asarray(x))
        return self.conditionals(u).log_prob(u)

    def sample(self, key):
        return self.complete(key, jnp.zeros(self.shape, self.dtype), known=0)

    def complete(self, key: Key, x: Array, *, known: int | Array) -> Array:
        """Draw from p(x_rest | x_known), where the first `known` entries *in the order* are given.

        It is exact, because what is given comes first: for other parts take another order.

        Args:
          key: one PRNG key.
          x: an event, of which the entries that are not given are not looked at.
          known: how many entries are given, 0 to n, a number or a traced integer.
        Returns:
          An event.
        Raises:
          ValueError: for another shape, or a number outside 0 to n; or, where there are values to
            look at, for given entries that have probability 0.
        """
        self._check_shape("complete", x)
        size = math.prod(self.shape)
        if concrete(known) and not 0 <= known <= size:
            fix = "count the entries that are given"
            raise wrong("Autoregressive.complete: known", known, f"0 to {size}", fix)
        one = self._by_network if isinstance(self.step, tuple) else self._by_step

        def draw(state: Any, i: Array) -> Any:
            carry, u = state
            # Not keys split beforehand: as inputs of a scan under vmap, the checker of keys that
            # are used twice takes each of them for used.
            carry, drawn = one(carry, u, i, jax.random.fold_in(key, i))
            value = jnp.where(i < known, u[i], drawn.astype(self.dtype))
            return (carry, u.at[i].set(value)), None

        places = jnp.arange(size)
        # What comes after is hidden even from a network that is not causal.
        u = jnp.ravel(self._in_order(jnp.asarray(x, self.dtype)))
        start = lax.stop_gradient((self.carry, jnp.where(places < known, u, 0)))
        (_, u), _ = lax.scan(draw, start, places)
        full = u if isinstance(self.order, tuple) else jnp.zeros_like(u).at[self.order].set(u)
        full = lax.stop_gradient(full.reshape(self.shape))
        if concrete(full) and concrete(known) and known > 0:
            self._check_given(np.ravel(self._in_order(jnp.asarray(x)))[:known], full)
        return full

    def _by_network(self, carry: Any, u: Array, i: Array, key: Key) -> Any:
        drawn = self.conditionals(u.reshape(self.shape)).sample(key)
        return carry, jnp.ravel(drawn)[i]

    def _by_step(self, carry: Any, u: Array, i: Array, key: Key) -> Any:
        previous = jnp.where(i > 0, u[i - 1], 0).astype(self.dtype)
        carry, p = self.step(carry, previous, i)
        return carry, p.sample(key)

    def _in_order(self, x: Array) -> Array:
        if isinstance(self.order, tuple):
            return x
        return jnp.ravel(x)[self.order].reshape(self.shape)

    def _check_given(self, given: np.ndarray, full: Array) -> None:
        """Refuse given entries that no sample could have: no symbols, or of probability 0."""
        whole = not jnp.issubdtype(self.dtype, jnp.integer) or np.array_equal(given, given // 1)
        if not whole or np.isneginf(self.log_prob(full)):
            got = f"{len(given)} entries in [{given.min():.4g}, {given.max():.4g}]"
            fix = "give entries as the network's samples have them"
            raise wrong("Autoregressive.complete: x", got, "a probability above 0", fix)

    def _check_shape(self, function: str, x: Any) -> None:
        if jnp.shape(x) != self.shape:
            fix = "map a batch: jax.vmap"
            raise wrong(f"Autoregressive.{function}: x", jnp.shape(x), self.shape, fix)

    @property
    def event_shape(self):
        return self.shape

    @property
    def discrete(self):
        x = jax.ShapeDtypeStruct(self.shape, self.dtype)
        return jax.eval_shape(lambda f, x: f(x), self.conditionals, x).discrete


@describe_fields
@entering("Causal", "net")
class Causal(NamedTuple):
    """A causal network of any kind, as a network that returns an `Autoregressive` distribution.

    `init(key, *given) -> params` and `apply(params, *given, rngs=None) -> Autoregressive`, so that
    it serves as a density of its own (`objectives.maximum_likelihood`), and as the decoder or the
    prior of an `autoencoder`. Given is a code z, a condition c, both, or nothing. Both raise
    ValueError for an order that is no permutation, and TypeError for an order or a shape that is no
    tuple.

    Args:
      net: `net(u, *given) -> Distribution` of independent entries, causal in raster order, where u
        is x with its entries in the order. Where it can go one by one, it has the methods
        `net.start(*given) -> carry` and `net.step(carry, previous, i, *given) -> (carry,
        Distribution over ())`.
      shape: of an event.
      dtype: of an event.
      order: a permutation of the event's flat positions; by default, `()`, the raster order.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import autoregressive, causal
      >>> network = autoregressive.Causal(causal.MADE((2, 2), (3,)), shape=(2, 2))
      >>> px = network.apply(network.init(jax.random.key(0)))
      >>> px.log_prob(jnp.ones((2, 2))).shape
      ()
    """

    net: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    order: tuple[int, ...] = ()

    def init(self, key: Key, *given: Any) -> Params:
        """New parameters of the network.

        Args:
          key: one PRNG key.
          *given: what the network takes beside x.
        Returns:
          The parameters.
        """
        self._check_order()
        check_key("init", key)
        return self.net.init(key, jnp.zeros(self.shape, self.dtype), *given)

    def apply(self, params: Params, *given: Any, rngs: Any = None) -> Autoregressive:
        """The distribution under these parameters.

        Args:
          params: of the network.
          *given: what the network takes beside x.
          rngs: the layer noise of training; by default none.
        Returns:
          The distribution.
        """
        self._check_order()
        check_parameters("Causal: params", params)
        order = jnp.asarray(self.order) if self.order else ()
        conditionals = jax.tree_util.Partial(self._conditionals, params, given, rngs or {})
        step: Any = ()
        carry: Any = ()
        if hasattr(self.net, "step"):
            step = jax.tree_util.Partial(self._step, params, given)
            with of_this_network("Causal: params"):
                carry = self.net.apply(params, *given, method="start")
        return Autoregressive(conditionals, order, step, carry, self.shape, self.dtype)

    def _conditionals(self, params: Params, given: Any, rngs: Any, x: Array) -> Any:
        with of_this_network("Causal: params"):
            return self.net.apply(params, x, *given, rngs=rngs)

    def _step(self, params: Params, given: Any, carry: Any, previous: Array, i: Array) -> Any:
        return self.net.apply(params, carry, previous, i, *given, method="step")

    def _check_order(self) -> None:
        for name, value in (("shape", self.shape), ("order", self.order)):
            if not isinstance(value, tuple):
                fix = f"give tuple({name}), or of an array tuple({name}.tolist())"
                raise wrong(f"Causal: {name}", type(value).__name__, "a tuple", fix, TypeError)
        check_module("Causal: net", self.net)
        size = math.prod(sizes("Causal: shape", self.shape, empty=True))
        if self.order and sorted(self.order) != list(range(size)):
            got = f"{len(self.order)} positions, {len(set(self.order))} of them different"
            expected = f"each of 0 to {size - 1} once, the flat positions of {self.shape}"
            fix = "make one by tuple(numpy.random.default_rng(0).permutation(size).tolist())"
            raise wrong("Causal: order", got, expected, fix)


__all__ = [
    "Autoregressive",
    "Causal",
]
