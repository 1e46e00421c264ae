"""Linen modules from features to a Distribution: the last layer of an encoder or a decoder.

Likelihoods p(x|z) and posteriors q(z|x) are the same thing here: `Normal(20)` behind an encoder is
the usual diagonal posterior, and `Normal((28, 28, 1))` behind a decoder predicts a mean and a
standard deviation for every pixel.

Features that are a map over the event's height and width (from `networks.ConvDecoder`) get one
linear map shared by all pixels, a 1x1 convolution; any other features a dense layer.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from flax import linen as nn
  >>> from vaejax import heads, networks
  >>> encoder = nn.Sequential([networks.MLP((8,)), heads.Normal(2)])
  >>> x = jnp.zeros((4, 4, 1))
  >>> params = encoder.init(jax.random.key(0), x)
  >>> encoder.apply(params, x)
  Normal(loc=f32[2], scale=f32[2])
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax import distributions
from vaejax.arrays import numbers
from vaejax.errors import at_least, at_least_one, check_number, sizes, wrong
from vaejax.networks._network import Network
from vaejax.types import Array, Initializer, describe

Shape = int | Sequence[int]


class Code(Network):
    """A point: the code of a deterministic autoencoder, z = s(W h + b), as a `Delta`.

    Args:
      shape: of the code.
      activation: s, elementwise; the identity by default. `nn.sigmoid` and `nn.relu` make the codes
        of sparse and contractive autoencoders. One without a derivative, such as `jnp.sign`, raises
        TypeError when it is differentiated.
      kernel_init: initialiser of W.
    """

    shape: Shape
    activation: Callable[[Array], Array] = jax.nn.identity
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.Delta:
        return distributions.Delta(_activated(self.activation, _linear(self, "code", h)))


class TopK(Network):
    """A sparse point: z = the k largest entries of W h + b where they stand, zero elsewhere.

    Exactly k entries are kept (the first ones of equals), whatever their sign: a `SparseDelta` of
    `[size]`. The gradient is that of the kept entries. Raises ValueError unless 1 <= k <= size.

    Args:
      size: of the code.
      k: how many entries are kept.
      kernel_init: initialiser of W.
    References:
      Makhzani and Frey, 2014, k-sparse autoencoders, arXiv:1312.5663.
    """

    size: int
    k: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.SparseDelta:
        at_least_one("heads.TopK", size=self.size)
        at_least(0, "heads.TopK", k=self.k)
        if not 1 <= self.k <= self.size:
            fix = "lower k or widen the code"
            raise wrong("heads.TopK: k", self.k, f"1 to {self.size}, the code's size", fix)
        code = nn.Dense(self.size, kernel_init=self.kernel_init, name="code")(
            _features(self, h).ravel()
        )
        _, kept = jax.lax.top_k(code, self.k)
        value = jnp.zeros_like(code).at[kept].set(code[kept])
        return distributions.SparseDelta(value, self.k)


class _Scaled(Network):
    """What the Normals share: the options of their standard deviations."""

    shape: Shape
    floor: float = 1e-4
    scale_init: float = 1.0
    kernel_init: Initializer = nn.initializers.lecun_normal()


class Normal(_Scaled):
    """Diagonal Normal with mean and standard deviation both predicted from the features.

    `loc = W_1 h + b_1`, `scale = floor + softplus(W_2 h + b_2)`.

    As a likelihood the floor matters. On a pixel that is constant over the data, a free standard
    deviation goes to zero and the density to infinity. Then these pixels dominate the bound.

    Args:
      shape: of the event.
      floor: the smallest standard deviation, in units of the event.
      scale_init: the standard deviation at the start, where the features are zero.
      kernel_init: initialiser of W_1 and W_2.
    """

    @nn.compact
    def __call__(self, h: Array) -> distributions.Normal:
        loc = _linear(self, "loc", h)
        free = _linear(self, "scale", h, bias_init=_scale_start(self))
        return distributions.Normal(loc, self.floor + nn.softplus(free))


class FullNormal(Network):
    """Normal with full covariance: z = mu(x) + B(x) eps, B lower triangular, Sigma = B B^T.

    The diagonal of B is `floor + softplus(.)`, so that B is invertible; below it the entries are
    free. The head has size (size + 3) / 2 outputs.

    Args:
      size: of the event, `[size]`.
      floor: the smallest entry of the diagonal, in units of the event.
      scale_init: the diagonal at the start, where the features are zero.
      kernel_init: initialiser of the weights of mu and of the diagonal.
    """

    size: int
    floor: float = 1e-4
    scale_init: float = 1.0
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.MultivariateNormal:
        at_least_one("heads.FullNormal", size=self.size)
        h = _features(self, h).ravel()
        dense = partial(nn.Dense, kernel_init=self.kernel_init)
        loc = dense(self.size, name="loc")(h)
        diagonal = dense(self.size, bias_init=_scale_start(self), name="diagonal")(h)
        diagonal = self.floor + nn.softplus(diagonal)
        scale_tril = jnp.diag(diagonal)
        if self.size > 1:
            # Nearly diagonal at the start: strong correlations at random would be noise to undo.
            near_zero = nn.initializers.normal(1e-3)
            below = nn.Dense(self.size * (self.size - 1) // 2, kernel_init=near_zero, name="below")(
                h
            )
            scale_tril = scale_tril.at[np.tril_indices(self.size, -1)].set(below)
        return distributions.MultivariateNormal(loc, scale_tril)


class Bernoulli(Network):
    """Independent Bernoulli variables from logits l = W h + b.

    Args:
      shape: of the event.
      kernel_init: initialiser of W.
      bias_init: initialiser of b; zero by default. For images, `logit_of(mean_image)` starts every
        pixel at its mean over the data, which saves the first epochs.
    References:
      Burda et al., 2016, arXiv:1509.00519, start at the mean image.
    """

    shape: Shape
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, h: Array) -> distributions.Bernoulli:
        return distributions.Bernoulli(_linear(self, "logits", h, bias_init=self.bias_init))


class ContinuousBernoulli(Network):
    """Independent continuous Bernoulli variables on [0, 1] from logits l = W h + b.

    It is a likelihood for grey values, which a Bernoulli's cross-entropy is not.

    Args:
      shape: of the event.
      kernel_init: initialiser of W.
    References:
      Loaiza-Ganem and Cunningham, 2019, arXiv:1907.06845.
    """

    shape: Shape
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.ContinuousBernoulli:
        return distributions.ContinuousBernoulli(_linear(self, "logits", h))


class FixedNormal(Network):
    """Normal with a predicted mean and one fixed standard deviation.

    Its -log p is `||x - loc||^2 / (2 scale^2)` plus a constant. Squared error is this likelihood
    with `scale = sqrt(1/2)`, and the scale is the weight between reconstruction and KL. Raises
    ValueError for a scale that is not above 0.

    Args:
      shape: of the event.
      scale: the standard deviation, in units of the event.
      kernel_init: initialiser of the weights of the mean.
    """

    shape: Shape
    scale: float
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.Normal:
        check_number("heads.FixedNormal: scale", self.scale, above=0)
        loc = _linear(self, "loc", h)
        return distributions.Normal(loc, jnp.asarray(self.scale, loc.dtype))


class SharedNormal(_Scaled):
    """Normal with a predicted mean and one learned standard deviation for all entries.

    `scale = floor + softplus(s)` with one parameter s: the weight between reconstruction and KL is
    learned by maximum likelihood.

    Args:
      shape: of the event.
      floor: the smallest standard deviation, in units of the event.
      scale_init: the standard deviation at the start.
      kernel_init: initialiser of the weights of the mean.
    References:
      Rybkin et al., 2021, sigma-VAE, arXiv:2006.13202.
    """

    @nn.compact
    def __call__(self, h: Array) -> distributions.Normal:
        loc = _linear(self, "loc", h)
        free = self.param("scale", _scale_start(self), ())
        return distributions.Normal(loc, self.floor + nn.softplus(free))


class DiscretizedLogistic(Network):
    """Logistic density integrated over the bins of 8-bit images: a likelihood of stored pixels.

    x lies on the grid k / (levels - 1) in [0, 1] (`data.scale`). `loc = 1/2 + W_1 h + b_1` and
    `scale = floor + softplus(W_2 h + b_2)`, in the same units.

    Args:
      shape: of the event.
      levels: points of the grid; 256 by default, for 8-bit images.
      floor: the smallest scale.
      scale_init: the scale at the start, where the features are zero.
      kernel_init: initialiser of W_1 and W_2.
    References:
      Kingma et al., 2016, arXiv:1606.04934; Salimans et al., 2017, arXiv:1701.05517.
    """

    shape: Shape
    levels: int = 256
    floor: float = 1e-3
    scale_init: float = 0.1
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.DiscretizedLogistic:
        loc = 0.5 + _linear(self, "loc", h)
        scale = self.floor + nn.softplus(_linear(self, "scale", h, bias_init=_scale_start(self)))
        at_least(2, "heads.DiscretizedLogistic", levels=self.levels)
        return distributions.DiscretizedLogistic(loc, scale, self.levels)


class Categorical(Network):
    """Independent categorical variables from logits l = W h + b.

    The event is an array of integers; the logits are `[*shape, classes]`.

    Args:
      shape: of the event.
      classes: how many values an entry can take.
      kernel_init: initialiser of W.
    """

    shape: Shape
    classes: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> distributions.Categorical:
        at_least_one("heads.Categorical", classes=self.classes)
        shape = (*_shape(self, self.shape), self.classes)
        return distributions.Categorical(_linear(self, "logits", h, shape=shape))


def logit_of(mean: Any, *, margin: float = 1e-3) -> Initializer:
    """A bias initialiser that starts Bernoulli logits at log(m / (1 - m)) of the data's mean m.

    The initialiser raises ValueError for a bias of another size than the mean.

    Args:
      mean: m, an array of the event's size, in [0, 1].
      margin: m is kept this far from 0 and 1.
    Returns:
      The initialiser, for instance for `heads.Bernoulli(shape, bias_init=...)`.
    """
    clipped = np.clip(np.asarray(mean, np.float64).ravel(), margin, 1 - margin)
    logits = np.log(clipped) - np.log1p(-clipped)

    def initialise(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        if logits.size != math.prod(shape):
            raise ValueError(
                f"logit_of: expected a mean of {math.prod(shape)} values, got {logits.size}; "
                "give the mean image, for instance x.mean(axis=0) / 255"
            )
        return jnp.asarray(logits.reshape(shape), dtype)

    return initialise


def _linear(
    head: Any,
    name: str,
    h: Array,
    *,
    shape: Sequence[int] | None = None,
    bias_init: Initializer = nn.initializers.zeros,
) -> Array:
    """W h + b in `shape`, the event's by default: per pixel where h is a map over it, or dense."""
    shape = _shape(head, head.shape) if shape is None else tuple(shape)
    h = _features(head, h)
    is_map = jnp.ndim(h) == 3 and len(shape) >= 2 and h.shape[:2] == shape[:2]
    size = math.prod(shape[2:]) if is_map else math.prod(shape)
    layer = nn.Dense(
        size, kernel_init=head.kernel_init, bias_init=bias_init, name=name, parent=head
    )
    return layer(h if is_map else h.ravel()).reshape(shape)


@distributions.distribution
class _Activated(distributions.Distribution):
    """The code as a sample of what it is computed from, to ask for its derivative."""

    features: Any
    activation: Any = dataclasses.field(metadata={"static": True})

    def sample(self, key: Any) -> Array:
        return self.activation(self.features)


def _activated(activation: Callable[[Array], Array], features: Array) -> Array:
    """s(features), whose derivative is refused where s has none, and nothing before it learns."""
    code = activation(features)
    if not _Activated(features, activation).without_derivative():
        return code
    name = getattr(activation, "__name__", type(activation).__name__)
    fix = (
        "pass it straight through: lambda h: h + jax.lax.stop_gradient(jnp.sign(h) - h); an "
        "encoder that is not to learn: jax.lax.stop_gradient of its parameters"
    )
    expected = "one with a derivative, or the encoder does not learn"
    refusal = wrong("heads.Code: activation", name, expected, fix, TypeError)
    return distributions.refusing(code, features, refusal)


def _shape(head: Any, shape: Shape) -> tuple[int, ...]:
    return sizes(f"heads.{type(head).__name__}: shape", shape, empty=True)


def _features(head: Any, h: Any) -> Any:
    """The features, an array: a head comes last, and not behind another one."""
    if isinstance(h, distributions.Distribution):
        where = f"heads.{type(head).__name__}"
        raise wrong(
            where, describe(h), "features, an array", "end a network with one head", TypeError
        )
    h = numbers(f"heads.{type(head).__name__}: h", h, "features, an array")
    if not jnp.size(h):
        where, fix = f"heads.{type(head).__name__}: h", "look for a width or a size of 0"
        raise wrong(where, f"shape {jnp.shape(h)}", "features, one or more", fix)
    return h


def _scale_start(head: Any) -> Initializer:
    """The bias s at which `floor + softplus(s)` is `scale_init`."""
    where = f"heads.{type(head).__name__}"
    check_number(f"{where}: floor", head.floor)
    check_number(f"{where}: scale_init", head.scale_init)
    if not 0 <= head.floor < head.scale_init:
        raise ValueError(
            f"heads.{type(head).__name__}: expected 0 <= floor < scale_init, got "
            f"floor={head.floor}, scale_init={head.scale_init}"
        )
    above = head.scale_init - head.floor
    return nn.initializers.constant(above + math.log(-math.expm1(-above)))


__all__ = [
    "Bernoulli",
    "Categorical",
    "Code",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FixedNormal",
    "FullNormal",
    "Normal",
    "SharedNormal",
    "TopK",
    "logit_of",
]
