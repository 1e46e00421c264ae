"""Linen modules that turn one example into features, or a code into features: no batch axis inside.

Every network takes one example and, where the model is conditioned, a condition `c` beside it. The
head behind a network says what the features mean: `nn.Sequential([MLP((400,)), heads.Normal(20)])`.
Dropout is active where the caller passes a key to `encode` or `decode`, and only there.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import lax

from vaejax.arrays import examples, numbers
from vaejax.errors import at_least_one, check_number, sizes, wrong
from vaejax.networks._network import Network
from vaejax.types import Array, Initializer


class MLP(Network):
    """Fully connected layers on the flattened example, with an activation after each.

    `h_0 = (x, c)` flattened and joined, `h_i = activation(W_i h_{i-1} + b_i)`. Takes x of any shape
    and c of any shape; returns `[features[-1]]`.

    Args:
      features: widths, one per layer.
      activation: elementwise; ReLU by default.
      dropout: the probability that a unit is left out (while a key is given); 0 by default.
      kernel_init: initialiser of the weights.
    """

    features: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, c: Any = ()) -> Array:
        features = sizes("MLP: features", self.features, empty=True)
        check_number("MLP: dropout", self.dropout)
        h = join(x, c)
        for width in features:
            h = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(h))
            h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        return h


class ConvEncoder(Network):
    """Strided 3x3 convolutions on one image of any height, width and channel count.

    Each layer halves the image, rounding up: 28x20 -> 14x10 -> 7x5, 33x17 -> 17x9 -> 9x5. Takes x
    `[height, width, channels]` or `[height, width]`, and c of any shape, which joins the flattened
    features; returns `[h * w * features[-1] + size of c]`. Raises ValueError for anything that is
    not one image.

    Args:
      features: channels, one per layer.
      activation: elementwise, after each layer; ReLU by default.
    """

    features: Sequence[int] = (32, 64)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, c: Any = ()) -> Array:
        features = sizes("ConvEncoder: features", self.features)
        x = numbers("ConvEncoder: x", x, "one image [height, width, channels]")
        h = x[..., None] if jnp.ndim(x) == 2 else x
        if jnp.ndim(h) != 3:
            raise ValueError(
                "ConvEncoder: expected one image of shape [height, width, channels], got "
                f"{jnp.shape(x)}; a batch of images is mapped: jax.vmap(...)"
            )
        for width in features:
            h = self.activation(Conv(width, stride=2)(h))
        return join(h, c)


class ConvDecoder(Network):
    """Sub-pixel convolutions from a code to a feature map of any height and width.

    A dense layer makes the coarsest map. Each further entry of `features` doubles it (a 3x3
    convolution to four times the channels, whose quadruples become 2x2 pixels) and cuts it to the
    size that a `ConvEncoder` with as many layers had there, so that odd sizes fit exactly. Takes z
    of any shape, and c beside it; returns `[height, width, features[-1]]`.

    Args:
      shape: of the image, `[height, width, ...]`.
      features: channels from the coarsest map to the full-size one.
      activation: elementwise, after each layer; ReLU by default.
    References:
      Shi et al., 2016, Real-time single image and video super-resolution using an efficient
        sub-pixel convolutional neural network, arXiv:1609.05158.
    """

    shape: Sequence[int]
    features: Sequence[int] = (64, 32, 16)
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, z: Array, c: Any = ()) -> Array:
        features = sizes("ConvDecoder: features", self.features)
        shape = sizes("ConvDecoder: shape", self.shape)
        if len(shape) < 2:
            raise wrong("ConvDecoder: shape", shape, "[height, width, ...]", "such as (28, 28, 1)")
        maps = [shape[:2]]
        for _ in features[1:]:
            maps.insert(0, (-(-maps[0][0] // 2), -(-maps[0][1] // 2)))
        h = nn.Dense(maps[0][0] * maps[0][1] * features[0])(join(z, c))
        h = self.activation(h.reshape(*maps[0], features[0]))
        for (height, width), channels in zip(maps[1:], features[1:], strict=True):
            h = depth_to_space(Conv(4 * channels)(h))[:height, :width]
            h = self.activation(h)
        return h


class Conv(Network):
    """One convolution layer with "same" padding on one image, with a bias and without activation.

    `y[i, j] = b + sum_{k, l} x[stride i + k - p, stride j + l - p] K[k, l]`, where x is zero
    outside and the padding p centres the windows. Takes `[height, width, channels]`, returns
    `[ceil(height / stride), ceil(width / stride), features]`.

    Args:
      features: channels of the output.
      kernel_size: side of the window, in pixels.
      stride: pixels from one window to the next.
      kernel_init: initialiser of the weights.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        counts = {name: getattr(self, name) for name in ("features", "kernel_size", "stride")}
        at_least_one("Conv", **counts)
        x = numbers("Conv: x", x, "one image [height, width, channels]")
        if jnp.ndim(x) != 3:
            fix = "a batch is mapped: jax.vmap(...); a grey image needs an axis: x[..., None]"
            raise wrong("Conv: x", f"shape {jnp.shape(x)}", "[height, width, channels]", fix)
        side = self.kernel_size
        shape = (side, side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        return conv(x, kernel, stride=self.stride) + bias[None, None]


def conv(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """Convolution of one image with "same" padding, by the means that suits the device.

    That is a matrix product on CPU, where it is faster than the native convolution in training:
    forward, and in both gradients. Elsewhere it is the native convolution. Both give the same
    numbers up to float order.

    Args:
      x: one image, `[height, width, channels]`.
      kernel: `[side, side, channels, features]`.
      stride: pixels from one window to the next.
    Returns:
      The map, `[ceil(height / stride), ceil(width / stride), features]`.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(conv_as_product, stride=stride),
        default=partial(conv_native, stride=stride),
    )


def conv_native(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """The device's own convolution of one image with "same" padding.

    Args:
      x, kernel, stride: as for `conv`.
    Returns:
      The map, as `conv` returns it.
    """
    return lax.conv_general_dilated(
        x[None], kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def conv_as_product(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """The same convolution as strided slices side by side times a matrix.

    Args:
      x, kernel, stride: as for `conv`.
    Returns:
      The map, as `conv` returns it.
    """
    side, _, _, features = kernel.shape
    # One axis after the other: 2 * side slices, where both at once would take side^2 of them, each
    # a padded array of its own in the gradient.
    columns = _windows(_windows(x, 1, side, stride), 0, side, stride)
    return columns @ kernel.reshape(-1, features)


def depth_to_space(x: Array) -> Array:
    """Quadruples of channels become 2x2 pixels.

    Args:
      x: a map, `[h, w, 4 f]`.
    Returns:
      A map of twice the height and width, `[2 h, 2 w, f]`.
    """
    height, width, channels = x.shape
    blocks = x.reshape(height, width, 2, 2, channels // 4).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(2 * height, 2 * width, channels // 4)


def kernels(params: Any) -> dict[tuple[str, ...], Any]:
    """The matrices of the dense layers in a tree of Linen parameters, by path, sorted by name.

    A matrix is an entry called "kernel" that is of rank 2, `[inputs, outputs]`, or None (see
    `model.tied`). With `params["encoder"]` of one layer, the columns are the filters. Numbers in
    names sort by value, so that in `nn.Sequential` and in `MLP` the first layer comes first. A
    module of your own may have `Code_0` before `Dense_0`, whatever their order.

    Args:
      params: a tree of Linen parameters.
    Returns:
      Path to matrix.
    """
    found = {p: k for p, k in flatten_dict(params).items() if p[-1] == "kernel"}
    ordered = sorted(found, key=lambda path: [_natural(name) for name in path])
    return {path: found[path] for path in ordered if found[path] is None or found[path].ndim == 2}


def join(x: Any, c: Any = ()) -> Array:
    """The leaves of one example and its condition, flattened and side by side.

    Args:
      x: an example, an array or a tree of them.
      c: its condition; absent by default.
    Returns:
      One vector, `[total size]`.
    Raises:
      ValueError: for a class number as the condition.
    """
    check_no_class_number(c)
    x = examples("network: x", x, "one example")
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves((x, c))])


def check_no_class_number(c: Any) -> None:
    """Raise ValueError for a condition that is one whole number, which a layer takes for a size.

    Args:
      c: the condition, or `()`.
    """
    for leaf in jax.tree.leaves(c):
        if jnp.size(leaf) == 1 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            got = f"the class number {jnp.result_type(leaf)} {list(jnp.shape(leaf))}"
            expected = "numbers whose size means something, in which class 2 is not twice class 1"
            fix = (
                "make one-hot rows: Batch(x, c=conditional.one_hot(y, classes)); where it is a "
                "count or a size: c.astype(np.float32)"
            )
            raise wrong("condition c", got, expected, fix)


def has_condition(module: nn.Module, layer: str, c: Any) -> bool:
    """Whether there is a condition, checked against the one that the module's parameters are for.

    Without its layer, a network that was made for a condition would silently be another network.

    Args:
      module: the network that calls it.
      layer: the name of its layer that takes the condition.
      c: the condition, or `()`.
    Returns:
      True where there is one.
    Raises:
      ValueError: where the parameters are for no condition, for another one, or need one; and for a
        class number as the condition.
    """
    check_no_class_number(c)
    where, given = f"{type(module).__name__.strip('_')}: c", bool(jax.tree.leaves(c))
    own = None if module.is_initializing() else module.get_variable("params", layer)
    if given and own is None and not module.is_initializing():
        fix = "leave it out, or make the parameters by an init with it"
        raise wrong(where, f"shapes {jax.tree.map(jnp.shape, c)}", "none, as at init", fix)
    if given and own is not None and join(c).size != len(own["kernel"]):
        fix = "map a batch: jax.vmap; another size needs parameters of its own"
        expected = f"{len(own['kernel'])} numbers, as at init"
        raise wrong(where, f"shapes {jax.tree.map(jnp.shape, c)}", expected, fix)
    if own is not None and not given:
        fix = "pass one, Batch(x, c=...), or make the parameters by an init without it"
        raise wrong(where, "none", "the condition or code its parameters are for", fix)
    return given


def _natural(name: str) -> list[Any]:
    """Sorts layers_10 behind layers_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _windows(x: Array, axis: int, side: int, stride: int) -> Array:
    """Every window of `side` entries along an axis, as channels: `[..., side * channels]`.

    "Same" padding: the axis becomes ceil(size / stride) long. The entry in the window is the
    slower index of the new channels.
    """
    size = x.shape[axis]
    windows = -(-size // stride)
    total = max((windows - 1) * stride + side - size, 0)
    padding = [(0, 0)] * x.ndim
    padding[axis] = total // 2, total - total // 2
    padded = jnp.pad(x, padding)
    last = stride * (windows - 1) + 1
    slices = [lax.slice_in_dim(padded, i, i + last, stride, axis) for i in range(side)]
    return jnp.concatenate(slices, axis=-1)
