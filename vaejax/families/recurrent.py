"""Recurrent networks and models: a GRU, a language model, a text encoder, the VRNN.

    network = autoregressive.Causal(recurrent.Language(65, 256), shape=(128,), dtype=jnp.int32)
    loss = objectives.maximum_likelihood(network)              # next-character prediction
    longer = network._replace(shape=(1000,))                   # parameters know no length
    longer.apply(params).complete(key, prefix, known=n)        # continues a text

    vrnn = recurrent.vrnn(autoencoder(encoder, decoder, prior), recurrent.Cell(64), features=64)
    params = vrnn.model.init(key, x)                           # x [steps, ...], one sequence
    loss = objectives.elbo(vrnn.model, draw=vrnn.draw)

Parameters serve sequences of any length. Every function takes one sequence; `vmap` batches it, and
makes one matrix product of a step's matrix-vector products.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from vaejax.batch import present
from vaejax.distributions import Categorical, Steps
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.model import Draw, Generated, Model
from vaejax.networks import Network, has_condition, join
from vaejax.types import Array, Key, Params


class GRU(Network):
    """A gated recurrent unit over inputs that are already projected, `u_t = W x_t + b`.

    `r = sigmoid(u_r + h W_r)`, `s = sigmoid(u_s + h W_s)`, `n = tanh(u_n + r (h W_n + b_n))`,
    `h' = (1 - s) n + s h`.

    `features`: of h. Takes u `[steps, 3 features]` (r, s, n side by side), so that the projection
    of all steps is one matrix product; the state h `[features]` to start from; and a mask `[steps]`
    of the steps that count, or None: h passes by the others. Returns h after every step, `[steps,
    features]`. `step(h, u)` is one of them. Cho et al., 2014, arXiv:1406.1078; r outside of the
    product: as in cuDNN.
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
        return _gated(self.kernel, self.bias, h, u)


class Language(Network):
    """A GRU that predicts each symbol of a sequence from those before it: for `Causal`.

    `p(x) = prod_t Categorical(x_t; W h_t + b)`, `h_t = GRU(h_{t-1}, x_{t-1})`, where x_0 is a
    symbol of its own, and a code z or a condition c sets h_0 and is an input of every step.

    `vocabulary`: number of symbols; `features`: of h; `end`: a symbol that ends a sequence, or
    None: behind it nothing but itself can stand, with probability 1, so that sequences of every
    length up to the array's have their exact probability, and the fill counts for nothing.
    `word_dropout`: probability that an input symbol (never a target) is replaced by "unknown" while
    a dropout key is given, so that a decoder cannot do without its code.

    Takes x, integers `[n]`, and given codes or conditions of any shapes; returns a Categorical over
    `[n]`. `start` and `step` are its cached form. Raises TypeError for x that are no integers,
    ValueError for an empty sequence. Word dropout: Bowman et al., 2016, Generating sentences from a
    continuous space, arXiv:1511.06349.
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
        """The state before the first symbol, and what the given codes add to every input."""
        if not has_condition(self, "first", given):
            dtype = self.gru.kernel.dtype
            return jnp.zeros(self.features, dtype), jnp.zeros(3 * self.features, dtype)
        code = join(given)
        return nn.tanh(self.first(code)), self.always(code)

    def step(self, carry: Any, previous: Array, i: Array, *given: Any) -> tuple[Any, Categorical]:
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

    `vocabulary`, `features` and `end` as in `Language`: symbols behind the first `end` are not
    read. Takes x, integers `[n]`, and a condition; returns `[features]`, NaN where a symbol that is
    read is not in the vocabulary. Raises as `Language` does.
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

    `features`: of h. Takes h `[features]`, x_t and z_t of any shapes; returns `[features]`.
    """

    features: int

    @nn.compact
    def __call__(self, h: Array, x: Any, z: Any) -> Array:
        return GRU(self.features).step(h, nn.Dense(3 * self.features)(join(x, z)))


class Recurrent(NamedTuple):
    """A latent-variable model of sequences, with its own way of inference and generation.

    `model`: a Model whose `init(key, x, c=())` takes a sequence and whose other functions are those
    of one step; `draw`: for the losses and measures that take one; `generate(params, key, c=(), *,
    steps, x=(), known=0) -> Generated`: a sequence from the model, or the continuation of the
    first `known` steps of x, whose z are drawn from q; a masked step of x is drawn, not known.
    """

    model: Model
    draw: Callable[..., Draw]
    generate: Callable[..., Generated]


def vrnn(model: Model, cell: Any, *, features: int) -> Recurrent:
    """A variational recurrent network: a conditional VAE at every step, whose c is the past.

    `p(x, z) = prod_t p(z_t|h_{t-1}) p(x_t|z_t, h_{t-1})`, `q(z|x) = prod_t q(z_t|x_t, h_{t-1})`,
    `h_t = f(h_{t-1}, x_t, z_t)`, so that the ELBO is `E_q sum_t [log p(x_t|z_t, h_{t-1}) -
    KL(q(z_t|x_t, h_{t-1}) || p(z_t|h_{t-1}))]`.

    - `model`: one step, for instance `autoencoder(encoder, decoder, prior)` of the modules
      `encoder(x_t, h)`, `decoder(z_t, h)` and `prior(h)`, a learned prior; one that is a
      Distribution sees no past;
    - `cell`: f, with `.init(key, h, x_t, z_t) -> params` and `.apply(params, h, x_t, z_t)`, for
      instance `Cell(features)`; `features`: of h, which starts at zero.

    Where the sequence has a condition c, the step's is the pair (h, c). An example x is an array
    `[steps, ...]`, or a pair of it and a mask `[steps]` (see `padded`): a masked step is left out
    of the sequence, whatever it holds, NaN too, and adds zero to every term and gradient.

    The Draw is `x`, `z` `[steps, latent]`, and q, pz and px of all steps given the drawn path: D, R
    (closed-form KLs, summed) and log-weights mean what they always do, so that every loss and
    measure with a `draw` works; `stl` is unbiased, but cuts the way from z_<t to q_t too, so that
    it keeps some noise at the exact posterior. With `draw(..., given=)` q sees other steps than x.
    Nats per sequence. Raises ValueError for an empty sequence, TypeError where the step's functions
    are used for a sequence. Chung et al., 2015, arXiv:1506.02216 (whose features of x and z are the
    networks' own first layers here).
    """
    at_least_one("vrnn", features=features)

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, cell_key, z_key = jax.random.split(key, 3)
        values, _ = _sequence(x)
        h = jnp.zeros(features)
        first = jax.tree.map(lambda leaf: leaf[0], values)
        params = model.init(model_key, first, _past(h, c))
        z = jax.eval_shape(lambda: model.encode(params, first, _past(h, c)).sample(z_key))
        z = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), z)
        return {**params, "cell": cell.init(cell_key, h, first, z)}

    def draw(
        model: Model, params: Params, key: Key, x: Any, c: Any = (), *, given: Any = None
    ) -> Draw:
        values, mask = _sequence(x)
        # Of given too, what x's mask leaves out may be NaN, and must not reach the gradient.
        seen = values if given is None else _sequence((_sequence(given)[0], mask))[0]
        size = len(jax.tree.leaves(values)[0])

        def step(h: Array, at: Any) -> Any:
            i, x, seen, counted = at
            encode_key, z_key, decode_key = jax.random.split(jax.random.fold_in(key, i), 3)
            q = model.encode(params, seen, _past(h, c), key=encode_key)
            z, log_q = q.sample_and_log_prob(z_key)
            px = model.decode(params, z, _past(h, c), key=decode_key)
            pz = model.prior(params, _past(h, c))
            if pz is None:
                fix = "give autoencoder(..., prior=...), a module that is called with h"
                raise wrong("vrnn: model", "a step without a prior", "one with a prior", fix)
            new = cell.apply(params["cell"], h, x, z)
            h, z, log_q = jax.tree.map(
                partial(jnp.where, counted),
                (new, z, log_q),
                (h, jax.tree.map(jnp.zeros_like, z), 0.0),
            )
            return h, (z, log_q, q, pz, px)

        counts = jnp.ones(size, bool) if isinstance(mask, tuple) else mask
        over = jnp.arange(size), values, seen, counts
        _, (z, log_q, *rest) = lax.scan(step, jnp.zeros(features), over)
        return Draw(values, z, jnp.sum(log_q), *(Steps(each, mask) for each in rest))

    def generate(
        params: Params, key: Key, c: Any = (), *, steps: int, x: Any = (), known: Any = 0
    ) -> Generated:
        at_least_one("generate", steps=steps)
        values, mask = _sequence(x) if present(x) else (None, ())
        if concrete(known) and not 0 <= known <= (0 if values is None else min(len(values), steps)):
            fix = "give x, of at least as many steps, and steps for the rest too"
            raise wrong("generate: known", known, "0, or up to the steps of x", fix)

        def step(h: Array, i: Array) -> Any:
            z_key, q_key, x_key = jax.random.split(jax.random.fold_in(key, i), 3)
            z, seen_here = model.prior(params, _past(h, c)).sample(z_key), i < known
            if values is not None:
                at = jnp.minimum(i, len(values) - 1)
                seen = values[at]
                if not isinstance(mask, tuple):
                    seen_here = seen_here & mask[at]
                q = model.encode(params, seen, _past(h, c))
                z = jnp.where(seen_here, q.sample(q_key), z)
            px = model.decode(params, z, _past(h, c))
            drawn = px.sample(x_key)
            if values is not None:
                drawn = jnp.where(seen_here, seen.astype(drawn.dtype), drawn)
            try:
                mean: Any = px.mean
            except NotImplementedError:
                mean = ()
            return cell.apply(params["cell"], h, drawn, z), Generated(z, drawn, mean)

        return lax.scan(step, jnp.zeros(features), jnp.arange(steps))[1]

    return Recurrent(_of_one_step(model)._replace(init=jax.jit(init)), draw, generate)


def padded(sequences: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of different lengths side by side: their values and the mask of what counts.

    `sequences`: arrays `[steps_i, ...]`. Returns values `[n, longest, ...]`, zero behind the ends,
    and mask `[n, longest]`, a pair that is the x of a Batch for a `vrnn`. Raises ValueError for no
    sequence, for an empty one, naming it, and for steps of different shapes.
    """
    arrays = [np.asarray(one) for one in sequences]
    at_least_one("padded", sequences=len(arrays))
    for i, one in enumerate(arrays):
        if one.ndim == 0 or len(one) == 0 or one.shape[1:] != arrays[0].shape[1:]:
            expected = f"[1 or more, {', '.join(map(str, arrays[0].shape[1:]))}]"
            fix = "leave out what is empty; give every step the same shape"
            raise wrong(f"padded: sequence {i}", f"shape {one.shape}", expected, fix)
    longest = max(map(len, arrays))
    values = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, one in zip(values, arrays, strict=True):
        row[: len(one)] = one
    return values, np.arange(longest)[None] < np.array([[len(one)] for one in arrays])


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


def _sequence(x: Any) -> tuple[Array, Any]:
    """The values of a sequence, what is masked replaced by a step that counts; its mask or `()`."""
    values, mask = x if isinstance(x, tuple) else (x, ())
    shape, size = jnp.shape(values), jnp.shape(values)[:1]
    fix = "leave empty sequences out; pad by recurrent.padded; map a batch: jax.vmap(...)"
    if not shape or shape[0] == 0:
        raise wrong("vrnn: x", f"shape {shape}", "one sequence of 1 step or more", fix)
    if isinstance(mask, tuple):
        return values, ()
    if jnp.shape(mask) != size:
        raise wrong("vrnn: the mask of x", f"shape {jnp.shape(mask)}", f"{size}, one per step", fix)
    if concrete(mask) and not np.any(mask):
        raise wrong("vrnn: the mask of x", "no step that counts", "1 or more", fix)
    mask = jnp.asarray(mask).astype(bool)
    instead = jnp.where(jnp.any(mask), values[jnp.argmax(mask)], 0)
    fill = jax.vmap(lambda counted, one: jnp.where(counted, one, instead))
    return fill(mask, values), mask


def _past(h: Array, c: Any) -> Any:
    """What a step is conditioned on."""
    return (h, *present(c)) if present(c) else h


def _of_one_step(model: Model) -> Model:
    """The same functions, which refuse to work without a past."""

    def checked(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            c = args[at] if len(args) > at else options.get("c", ())
            if not present(c):
                fix = "pass draw=vrnn.draw to the loss or measure, and generate by vrnn.generate"
                name = "vrnn: a step's function"
                raise wrong(name, "no past (c is absent)", "c = h, or (h, c)", fix, TypeError)
            return function(*args, **options)

        return step

    return model._replace(
        prior=checked(model.prior, 1),
        encode=checked(model.encode, 2),
        decode=checked(model.decode, 2),
    )


__all__ = ["GRU", "Cell", "Language", "Recurrent", "TextEncoder", "padded", "vrnn"]
