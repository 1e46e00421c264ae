"""Causal networks for `autoregressive.Causal`: entry i of what they return sees x_<i alone.

    network = autoregressive.Causal(causal.MADE((28, 28, 1)), shape=(28, 28, 1))
    network = autoregressive.Causal(causal.GatedPixelCNN((7, 7), classes=64), (7, 7), jnp.int32)

Both take binary entries, 0. and 1. (`classes=None`, a Bernoulli for each entry), or integers
(`classes=K`, a Categorical), and beside x a condition c of any shape. Both can `step`, so that a
sample costs about as much as one pass. Entries come in raster order. For any other order give it to
`Causal`, which shows the network the entries in that order.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from vaejax.distributions import Bernoulli, Categorical
from vaejax.errors import at_least_one, sizes, wrong
from vaejax.networks._layers import has_condition, join
from vaejax.networks._network import Network
from vaejax.types import Array, Initializer


class MADE(Network):
    """A masked autoencoder: dense layers, cut so that output i hears of the inputs before it alone.

    Inputs have the degrees 1 to n, outputs 0 to n - 1, and hidden units evenly from 1 to n - 1. A
    weight is kept where the degree it comes from is at most the one it goes to: `h = activation((W
    . M_W) x + b)`, `logits = (V . M_V) h + (A . M_A) x + d`.

    A condition c enters the first hidden layer and the logits. Raises ValueError for another shape
    and counts below 1, and TypeError for floats where classes are expected.

    Args:
      shape: of the event, any.
      hidden: widths, one per layer.
      direct: whether there is A, which joins outputs to inputs directly. Where a layer is narrower
        than n - 1, some inputs reach the next output by it alone.
      activation: elementwise; ReLU by default.
      classes: None for entries 0. and 1., or K for integers 0 to K - 1.
      bias_init: initialiser of d, `[n * (classes or 1)]` in the order, such as
        `heads.logit_of(mean)`, since pixels that are never white take long to learn that.
    References:
      Germain et al., 2015, MADE: masked autoencoder for distribution estimation, arXiv:1502.03509;
        sampled by updating the first layer alone, as in Larochelle and Murray, 2011, NADE.
    """

    shape: tuple[int, ...]
    hidden: Sequence[int] = (500,)
    direct: bool = True
    activation: Callable[[Array], Array] = nn.relu
    classes: int | None = None
    bias_init: Initializer = nn.initializers.zeros

    def setup(self) -> None:
        hidden = sizes("MADE: hidden", self.hidden)
        at_least_one("MADE", ("classes",), classes=self.classes)
        size, k = math.prod(sizes("MADE: shape", self.shape)), self.classes or 1
        spread = [np.linspace(1, max(size - 1, 1), width).round() for width in hidden]
        first = np.repeat(np.arange(1, size + 1), k)
        self.degrees = first, *spread, first - 1
        draw, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        pairs = list(zip(self.degrees[:-1], self.degrees[1:], strict=True))
        self.kernels = [
            self.param(f"kernel_{n}", draw, (len(a), len(b))) for n, (a, b) in enumerate(pairs)
        ]
        inits = [zeros] * len(hidden) + [self.bias_init]
        self.biases = [
            self.param(f"bias_{n}", init, (len(b),))
            for n, (init, (_, b)) in enumerate(zip(inits, pairs, strict=True))
        ]
        if self.direct:
            self.across = self.param("direct", draw, (size * k, size * k))
        self.hidden_given = nn.Dense(hidden[0], use_bias=False)
        self.logits_given = nn.Dense(size * k, use_bias=False)

    def __call__(self, x: Array, c: Any = ()) -> Bernoulli | Categorical:
        """The distribution of every entry given those before it, for one example of `shape`."""
        _check("MADE", x, self.shape, self.classes)
        inputs, first, *_, outputs = self.degrees
        u, (h, logits) = self._seen(x), self.start(c)
        h = h + u @ _masked(self.kernels[0], inputs, first)
        if self.direct:
            logits = logits + u @ _masked(self.across, inputs, outputs)
        logits = logits + self._deep(h) @ _masked(self.kernels[-1], self.degrees[-2], outputs)
        return _distribution(logits, self.shape, self.classes)

    def start(self, c: Any = ()) -> tuple[Array, Array]:
        """What `step` remembers: the first layer before its activation, and what goes to logits."""
        h, logits = self.biases[0], self.biases[-1]
        if has_condition(self, "hidden_given", c):
            h, logits = h + self.hidden_given(join(c)), logits + self.logits_given(join(c))
        return h, logits

    def step(self, carry: Any, previous: Array, i: Array, c: Any = ()) -> Any:
        """`(carry, distribution of entry i)`, from entry i - 1; the same as in a whole pass."""
        (h, logits), k, outputs = carry, self.classes or 1, self.degrees[-1]
        # Entry i - 1 has the degree i; before the first there is none.
        u, degree = jnp.where(i > 0, self._seen(previous), 0), jnp.full(k, i)
        rows = lax.dynamic_slice_in_dim(self.kernels[0], (i - 1) * k, k)
        h = h + u @ _masked(rows, degree, self.degrees[1])
        if self.direct:
            rows = lax.dynamic_slice_in_dim(self.across, (i - 1) * k, k)
            logits = logits + u @ _masked(rows, degree, outputs)
        columns = lax.dynamic_slice_in_dim(self.kernels[-1], i * k, k, axis=1)
        now = self._deep(h) @ _masked(columns, self.degrees[-2], degree)
        now = now + lax.dynamic_slice_in_dim(logits, i * k, k)
        return (h, logits), _distribution(now, (), self.classes)

    def _seen(self, x: Array) -> Array:
        if self.classes is None:
            return jnp.ravel(x)
        return jnp.ravel(jax.nn.one_hot(x, self.classes, dtype=self.kernels[0].dtype))

    def _deep(self, h: Array) -> Array:
        """The last hidden layer, from the first before its activation."""
        h = self.activation(h)
        for n, kernel in enumerate(self.kernels[1:-1], 1):
            kernel = _masked(kernel, self.degrees[n], self.degrees[n + 1])
            h = self.activation(h @ kernel + self.biases[n])
        return h


class GatedPixelCNN(Network):
    """Causal convolutions in two stacks, so that a pixel sees all those before it in its reach.

    `y = tanh(W_f * u + V_f c) . sigmoid(W_g * u + V_g c)` in every layer. In the vertical stack, u
    are its features in the rows above. In the horizontal stack, u are its features to the left and
    the vertical stack's; there y, through a 1x1 convolution, is added to what came in. The
    convolutions' kernels are cut to what they may see, not masked. The first layer's biases are
    each place's own (a map s of the paper's, learned), since a small network's reach does not tell
    where in the image it is.

    Raises ValueError for another shape, even kernels and counts below 1, and TypeError for floats
    where classes are expected.

    Args:
      shape: `[h, w]` or `[h, w, 1]`.
      features: channels.
      layers: how many.
      kernel_size: odd; each layer sees `kernel_size // 2` pixels to each side.
      first_kernel: odd; that of the first layer, which sees the image itself and is cheap.
      classes: None for pixels 0. and 1., or K for integers 0 to K - 1.
    References:
      van den Oord et al., 2016, Conditional image generation with PixelCNN decoders,
        arXiv:1606.05328.
    """

    shape: tuple[int, ...]
    features: int = 32
    layers: int = 6
    kernel_size: int = 3
    first_kernel: int = 7
    classes: int | None = None

    def setup(self) -> None:
        counts = {"features": self.features, "layers": self.layers, "classes": self.classes}
        at_least_one("GatedPixelCNN", ("classes",), **counts)
        sizes("GatedPixelCNN: shape", self.shape)
        if len(self.shape) not in (2, 3) or self.shape[2:] not in ((), (1,)):
            fix = "model the channels as classes, or as columns of their own"
            raise wrong("GatedPixelCNN: shape", self.shape, "[h, w] or [h, w, 1]", fix)
        for name in ("kernel_size", "first_kernel"):
            at_least_one("GatedPixelCNN", **{name: getattr(self, name)})
            if getattr(self, name) % 2 != 1:
                fix = "an even kernel has no middle"
                raise wrong(f"GatedPixelCNN: {name}", getattr(self, name), "an odd number", fix)
        sides = [self.first_kernel] + [self.kernel_size] * (self.layers - 1)
        self.blocks = [_Gated(self.features, side) for side in sides]
        size, zeros = (*self.shape[:2], 2 * self.features), nn.initializers.zeros
        self.place = self.param("place", zeros, size, jnp.float32)
        if self.classes is not None:
            self.embed = nn.Embed(self.classes, self.features)
        self.hidden, self.logits = nn.Dense(self.features), nn.Dense(self.classes or 1)

    def __call__(self, x: Array, c: Any = ()) -> Bernoulli | Categorical:
        """The distribution of every pixel given those before it, for one image `shape`."""
        _check("GatedPixelCNN", x, self.shape, self.classes)
        u = self._seen(x.reshape(self.shape[:2]))
        # The image itself enters one row down and one column right: strictly before the pixel.
        v, h = jnp.pad(u, _ABOVE)[:-1], jnp.pad(u, _LEFT)[:, :-1]
        place: Any = self.place
        for block in self.blocks:
            reach = block.side // 2
            padded = jnp.pad(v, ((reach, 0), (reach, reach), (0, 0)))
            (between, v), place = block.vertical(padded, c, place), 0.0
            h = block.horizontal(jnp.pad(h, ((0, 0), (reach, 0), (0, 0))), between, c)
        return _distribution(self._logits(h), self.shape, self.classes)

    def start(self, c: Any = ()) -> Any:
        """What `step` remembers: a few rows of each vertical layer, a few pixels of each other."""
        width, channels = self.shape[1], 1 if self.classes is None else self.features
        zeros = partial(jnp.zeros, dtype=self.place.dtype)
        row, rows, pixels, between = zeros((1, width, channels)), [], [], []
        for block in self.blocks:
            reach = block.side // 2
            rows.append(zeros((reach + 1, width + 2 * reach, channels)))
            pixels.append(zeros((1, reach + 1, channels)))
            between.append(zeros((1, width, 2 * self.features)))
            channels = self.features
        return row, rows, pixels, between

    def step(self, carry: Any, previous: Array, i: Array, c: Any = ()) -> Any:
        """`(carry, distribution of pixel i)`, from pixel i - 1; the same as in a whole pass."""
        row, rows, pixels, between = carry
        column, seen = i % self.shape[1], self._seen(previous)[None, None].astype(row.dtype)
        seen = jnp.where(i > 0, seen, 0)
        row = lax.dynamic_update_slice(row, seen, (0, (i - 1) % self.shape[1], 0))

        def next_row(rows: Any) -> Any:
            found, between = [], []
            v = jnp.where(i > 0, row, 0)
            place: Any = lax.dynamic_slice_in_dim(self.place, i // self.shape[1], 1)
            for block, before in zip(self.blocks, rows, strict=True):
                reach = block.side // 2
                found.append(jnp.concatenate([before[1:], jnp.pad(v, _sides(reach))]))
                (b, v), place = block.vertical(found[-1], c, place), 0.0
                between.append(b)
            return found, between

        # Under `vmap` too it stays a branch, since the number of the pixel is one for all.
        rows, between = lax.cond(column == 0, next_row, lambda rows: (rows, between), rows)
        found, h = [], jnp.where(column == 0, 0, seen)
        for block, before, b in zip(self.blocks, pixels, between, strict=True):
            before = jnp.where(column == 0, 0, before)
            found.append(jnp.concatenate([before[:, 1:], h], axis=1))
            h = block.horizontal(found[-1], lax.dynamic_slice_in_dim(b, column, 1, 1), c)
        carry = row, rows, found, between
        return carry, _distribution(self._logits(h), (), self.classes)

    def _seen(self, x: Array) -> Array:
        """Pixels `[...]` as features `[..., channels]`; zero is left for what is outside."""
        return 2 * x[..., None] - 1 if self.classes is None else self.embed(x)

    def _logits(self, h: Array) -> Array:
        return self.logits(nn.relu(self.hidden(nn.relu(h))))


class _Gated(Network):
    """One layer of both stacks, on maps that are padded already (or windows of them)."""

    features: int
    side: int

    def setup(self) -> None:
        reach, wide = self.side // 2, 2 * self.features
        self.down = _ValidConv(wide, (reach + 1, self.side))
        self.right = _ValidConv(wide, (1, reach + 1))
        self.down_to_right, self.out = nn.Dense(wide), nn.Dense(self.features)
        self.down_given = nn.Dense(wide, use_bias=False)
        self.right_given = nn.Dense(wide, use_bias=False)

    def vertical(self, v: Array, c: Any, place: Any) -> tuple[Array, Array]:
        """Features before the gate, for the horizontal stack, and behind it."""
        v = self.down(v) + place
        if has_condition(self, "down_given", c):
            v = v + self.down_given(join(c))[None, None]
        return v, _gate(v)

    def horizontal(self, h: Array, between: Array, c: Any) -> Array:
        u = self.right(h) + self.down_to_right(between)
        if has_condition(self, "right_given", c):
            u = u + self.right_given(join(c))[None, None]
        u = self.out(_gate(u))
        # Pixels that are no features yet there is no adding to.
        return u + h[:, self.side // 2 :] if h.shape[-1] == self.features else u


class _ValidConv(Network):
    """A convolution without padding: `[h + a - 1, w + b - 1, channels]` to `[h, w, features]`."""

    features: int
    window: tuple[int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        # As networks.conv does it: on CPU the product is faster.
        y = lax.platform_dependent(x, kernel, cpu=_as_product, default=_native)
        return y + bias[None, None]


def _as_product(x: Array, kernel: Array) -> Array:
    for axis in (1, 0):
        side = kernel.shape[axis]
        size = x.shape[axis] - side + 1
        slices = [lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(side)]
        x = jnp.concatenate(slices, axis=-1) if side > 1 else x
    return x @ kernel.reshape(-1, kernel.shape[-1])


def _native(x: Array, kernel: Array) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None], kernel, (1, 1), "VALID", dimension_numbers=numbers)[0]


def _masked(kernel: Array, before: Any, after: Any) -> Array:
    """A kernel without the weights that lead from a higher degree to a lower one."""
    return jnp.where(jnp.asarray(before)[:, None] <= jnp.asarray(after)[None, :], kernel, 0)


def _gate(u: Array) -> Array:
    content, gate = jnp.split(u, 2, axis=-1)
    return jnp.tanh(content) * nn.sigmoid(gate)


_ABOVE, _LEFT = ((1, 0), (0, 0), (0, 0)), ((0, 0), (1, 0), (0, 0))


def _sides(reach: int) -> Any:
    return (0, 0), (reach, reach), (0, 0)


def _distribution(
    logits: Array, shape: tuple[int, ...], classes: int | None
) -> Bernoulli | Categorical:
    """Logits with as many entries as `shape` has, for each class, as its distribution."""
    if classes is None:
        return Bernoulli(logits.reshape(shape))
    return Categorical(logits.reshape(*shape, classes))


def _check(where: str, x: Array, shape: tuple[int, ...], classes: int | None) -> None:
    if jnp.shape(x) != tuple(shape):
        fix = "give Causal and the network one shape, and map a batch: jax.vmap"
        raise wrong(f"{where}: x", jnp.shape(x), tuple(shape), fix)
    if classes is not None and not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        fix = "give Causal dtype=jnp.int32, or leave classes at None for pixels 0. and 1."
        raise wrong(f"{where}: x", jnp.result_type(x), "integer classes", fix, TypeError)


__all__ = [
    "MADE",
    "GatedPixelCNN",
]
