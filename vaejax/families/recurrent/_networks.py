"""The networks of sequences: a GRU, a language model, a text encoder, a cell for the VRNN."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from vaejax.distributions import Categorical
from vaejax.errors import wrong
from vaejax.networks import Network, has_condition, join
from vaejax.types import Array, Key


class GRU(Network):
    """A gated recurrent unit over inputs that are already projected, `u_t = W x_t + b`.

    `r = sigmoid(u_r + h W_r)`, `s = sigmoid(u_s + h W_s)`, `n = tanh(u_n + r (h W_n + b_n))`,
    `h' = (1 - s) n + s h`. The gate r stands outside of the product, as in cuDNN.

    It is called with `(u, h, mask)`: the inputs u `[steps, 3 features]` (r, s, n side by side), so
    that the projection of all steps is one matrix product; the state h `[features]` to start from;
    and a mask `[steps]` of the steps that count, or None for all. A step that does not count leaves
    h as it is. It returns h after every step, `[steps, features]`. `step(h, u)` is one step.

    Args:
      features: size of h.
    References:
      Cho et al., 2014, arXiv:1406.1078.
    """

    features: int

    def setup(self) -> None:
        shape = self.features, 3 * self.features
        self.kernel = self.param("kernel", _orthogonal_gates, shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, u: Array, h: Array, mask: Array | None = None) -> Array:
        step = partial(_gated, self.kernel, self.bias)
        counts = jnp.ones(len(u), bool) if mask is None else mask

        def body(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            u, counted = at
            h = step(h, u) if mask is None else jnp.where(counted, step(h, u), h)
            return h, h

        return lax.scan(body, h, (u, counts))[1]

    def step(self, h: Array, u: Array) -> Array:
        """One step.

        Args:
          h: the state, `[features]`.
          u: the projected input, `[3 features]`.
        Returns:
          the next state, `[features]`.
        """
        return _gated(self.kernel, self.bias, h, u)


class Language(Network):
    """A GRU that predicts each symbol of a sequence from those before it: for `Causal`.

    `p(x) = prod_t Categorical(x_t; W h_t + b)`, `h_t = GRU(h_{t-1}, x_{t-1})`, where x_0 is a
    symbol of its own. A code z or a condition c sets h_0 and is an input of every step.

    It is called with x, integers `[n]`, and with codes or conditions of any shapes; it returns a
    Categorical over `[n]`. `start` and `step` are its cached form.

    Args:
      vocabulary: number of symbols.
      features: size of h.
      end: the symbol that ends a sequence, or None. Behind it nothing but itself can stand, with
        probability 1. So sequences of every length up to the array's have their exact probability,
        and the fill adds nothing.
      word_dropout: probability that an input symbol (never a target) is replaced by "unknown" while
        a dropout key is given, so that a decoder cannot do without its code.
    Raises:
      TypeError: for an x that is not of integers.
      ValueError: for an empty sequence.
    References:
      Bowman et al., 2016, Generating sentences from a continuous space, arXiv:1511.06349 (word
      dropout).
    """

    vocabulary: int
    features: int = 256
    end: int | None = None
    word_dropout: float = 0.0

    def setup(self) -> None:
        self.inputs = nn.Dense(3 * self.features)
        self.gru = GRU(self.features)
        self.first = nn.Dense(self.features)
        self.always = nn.Dense(3 * self.features, use_bias=False)
        self.logits = nn.Dense(self.vocabulary)

    def __call__(self, x: Array, *given: Any) -> Categorical:
        _check_symbols("Language", x)
        before = jnp.concatenate([jnp.array([self.vocabulary]), x[:-1].astype(jnp.int32)])
        seen = before
        if self.has_rng("dropout") and self.word_dropout > 0:
            dropped = jax.random.bernoulli(self.make_rng("dropout"), self.word_dropout, x.shape)
            seen = jnp.where(dropped.at[0].set(False), self.vocabulary + 1, before)
        h, shift = self.start(*given)
        h = self.gru(self._projected(seen) + shift[None], h)
        return Categorical(self._ended(before, self.logits(h)))

    def start(self, *given: Any) -> tuple[Array, Array]:
        """The state before the first symbol, and what the given codes add to every input.

        Args:
          given: codes or conditions of any shapes, or nothing.
        Returns:
          h `[features]` and the addition `[3 features]`.
        """
        if not has_condition(self, "first", given):
            dtype = self.gru.kernel.dtype
            return jnp.zeros(self.features, dtype), jnp.zeros(3 * self.features, dtype)
        code = join(given)
        return nn.tanh(self.first(code)), self.always(code)

    def step(self, carry: Any, previous: Array, i: Array, *given: Any) -> tuple[Any, Categorical]:
        """One symbol more: the cached form of the whole pass.

        Args:
          carry: what `start` or the step before returned.
          previous: the symbol before; it is not read at i = 0.
          i: position of the symbol that is predicted.
          given: not read here, since `start` has read it.
        Returns:
          the next carry, and the Categorical of symbol i.
        """
        h, shift = carry
        before = jnp.where(i == 0, self.vocabulary, previous)
        h = self.gru.step(h, self._projected(before) + shift)
        return (h, shift), Categorical(self._ended(before, self.logits(h)))

    def _projected(self, symbols: Array) -> Array:
        # A product with one-hot rows: the gradient of a look-up is a slow scatter on CPU.
        return self.inputs(jax.nn.one_hot(symbols, self.vocabulary + 2, dtype=bool))

    def _ended(self, before: Array, logits: Array) -> Array:
        if self.end is None:
            return logits
        only_end = jnp.where(jnp.arange(self.vocabulary) == self.end, 0.0, -jnp.inf)
        only_end = jnp.broadcast_to(only_end, logits.shape)
        return jnp.where((before == self.end)[..., None], only_end, logits)


class TextEncoder(Network):
    """A GRU that reads a sequence of symbols up to its end: its last state, for a head.

    It is called with x, integers `[n]`, and a condition; it returns `[features]`, which is NaN
    where a symbol that is read is not in the vocabulary.

    Args:
      vocabulary: number of symbols.
      features: size of the state.
      end: the symbol that ends a sequence, or None; symbols behind the first one are not read.
    Raises:
      TypeError: for an x that is not of integers.
      ValueError: for an empty sequence.
    References:
      Bowman et al., 2016, arXiv:1511.06349.
    """

    vocabulary: int
    features: int = 256
    end: int | None = None

    @nn.compact
    def __call__(self, x: Array, c: Any = ()) -> Array:
        _check_symbols("TextEncoder", x)
        u = nn.Dense(3 * self.features)(jax.nn.one_hot(x, self.vocabulary, dtype=bool))
        if has_condition(self, "Dense_1", c):
            u += nn.Dense(3 * self.features, use_bias=False)(join(c))[None]
        read = None if self.end is None else jnp.cumsum(x == self.end) <= (x == self.end)
        h = GRU(self.features)(u, jnp.zeros(self.features, u.dtype), read)[-1]
        outside = (x < 0) | (x >= self.vocabulary)
        return jnp.where(jnp.any(outside if read is None else outside & read), jnp.nan, h)


class Cell(Network):
    """One step of a GRU, `h_t = GRU(h_{t-1}, (x_t, z_t))`: the recurrence of a `vrnn`.

    It is called with h `[features]`, and x_t and z_t of any shapes; it returns `[features]`.

    Args:
      features: size of h.
    """

    features: int

    @nn.compact
    def __call__(self, h: Array, x: Any, z: Any) -> Array:
        return GRU(self.features).step(h, nn.Dense(3 * self.features)(join(x, z)))


def _gated(kernel: Array, bias: Array, h: Array, u: Array) -> Array:
    """One step of a GRU: h `[features]`, u `[3 features]`."""
    r_u, s_u, n_u = jnp.split(u, 3)
    r_h, s_h, n_h = jnp.split(h @ kernel, 3)
    r, s = nn.sigmoid(r_u + r_h), nn.sigmoid(s_u + s_h)
    n = jnp.tanh(n_u + r * (n_h + bias))
    return n + s * (h - n)


def _orthogonal_gates(key: Key, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """Three orthogonal matrices side by side, so that no gate starts by shrinking the state."""
    size = shape[0]
    orthogonal = nn.initializers.orthogonal()
    return jnp.hstack([orthogonal(k, (size, size), dtype) for k in jax.random.split(key, 3)])


def _check_symbols(name: str, x: Array) -> None:
    if jnp.ndim(x) != 1 or len(x) == 0:
        fix = "leave out what is empty; map a batch: jax.vmap(...)"
        raise wrong(f"{name}: x", f"shape {jnp.shape(x)}", "one sequence [1 or more]", fix)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        fix = "encode the text (text.encode), and give Causal dtype=jnp.int32"
        raise wrong(f"{name}: x", x.dtype, "integer symbols", fix, TypeError)
