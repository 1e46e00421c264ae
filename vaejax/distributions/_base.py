"""Distributions as frozen pytrees, and the Kullback-Leibler divergence between two of them.

A distribution is a value: its parameters are the leaves of a pytree, so `vmap`, `grad`, `scan` and
`jax.lax.stop_gradient(q)` work on it as on an array. **The event is the whole array** and there are
no batch dimensions; a batch of distributions is what `vmap` returns, and it is sampled or scored
under another `vmap`, where every row has its own key:

    jax.vmap(lambda q, key: q.sample(key))(batch_of_q, jax.random.split(key, n))

`log_prob` sums over the event and is in nats. Outside the support it is -inf, with gradient zero
with respect to the parameters; a NaN in x gives NaN. Nothing is converted or checked when a
distribution is built, because JAX also builds pytrees of shapes, axes and None; shapes are checked
at use, while tracing.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.types import Array, Key, describe_fields

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def distribution(cls: Class) -> Class:
    """Decorator of a class of distributions: a frozen dataclass, registered as a pytree.

    Its fields are the parameters, leaves or trees of them, but for those that are declared with
    `dataclasses.field(metadata={"static": True})`, which are part of the structure. Use it rather
    than `jax.tree_util.register_dataclass`: with some versions of JAX (0.10.2 for one) two classes
    so registered that have as many fields count as one structure, and now and then a compiled
    function runs the program of one on the parameters of the other.
    """
    dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    describe_fields(cls)
    fields: Any = dataclasses.fields(cls)
    static = [f.name for f in fields if f.metadata.get("static", False)]
    leaves = [f.name for f in fields if f.name not in static]

    def flatten(d: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(d, name) for name in leaves], tuple(getattr(d, name) for name in static)

    def flatten_with_keys(d: Any) -> tuple[list[Any], tuple[Any, ...]]:
        values, rest = flatten(d)
        return list(zip(map(jax.tree_util.GetAttrKey, leaves), values, strict=True)), rest

    def unflatten(rest: Any, values: Any) -> Any:
        return cls(**dict(zip([*leaves, *static], [*values, *rest], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class Distribution:
    """What every distribution can do; a subclass has the decorator `distribution`.

    A subclass gives `sample` and `log_prob`; `mean` where there is a closed form; and a property
    `event_shape` where its parameters do not simply broadcast to it. `discrete` says what
    `log_prob` is: the log of a probability (True) or of a density (False, the default); `kl`
    raises for a pair that mixes the two. A network inside a distribution is a field such as
    `jax.tree_util.Partial(net.apply, params)`, with the function created once, outside of `jit`.
    """

    discrete: Any = False
    needs_float32: Any = False

    def sample(self, key: Key) -> Array:
        """Draw one event, of shape `event_shape`, using up the key; for a batch, vmap over keys."""
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def log_prob(self, x: Array) -> Array:
        """Log-probability (or log-density) of one event, summed over it: `()`, in nats.

        -inf outside the support. Raises ValueError where x does not have shape `event_shape`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """Draw one event and give its log-probability too: `(x, log_prob)`, the latter in nats."""
        x = self.sample(key)
        return x, self.log_prob(x)

    @property
    def mean(self) -> Array:
        """The expectation of x, of shape `event_shape` (of probabilities for a Categorical)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no mean in closed form; average samples instead"
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event, which is the shape to which the parameters broadcast."""
        return np.broadcast_shapes(*map(np.shape, jax.tree.leaves(self)))


@distribution
class Normal(Distribution):
    """Independent Gaussians: log p(x) = sum_i -((x_i - loc_i) / scale_i)^2 / 2 - log(scale_i) - c.

    c = log(2 pi) / 2. `loc` and `scale` broadcast to the shape of the event. `scale > 0` is the
    standard deviation, not the variance. Samples are differentiable in both parameters.
    """

    loc: Any
    scale: Any

    def sample(self, key):
        noise = jax.random.normal(key, self.event_shape, _dtype(self))
        return self.loc + self.scale * noise

    def log_prob(self, x):
        x, loc, scale = _flat(self, x, self.loc, self.scale)
        z = (x - loc) / scale
        return jnp.sum(-0.5 * z**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi).item())

    @property
    def mean(self):
        return _broadcast(self, self.loc)


@distribution
class MultivariateNormal(Distribution):
    """A Gaussian with covariance L L^T: x = loc + L e, with e standard normal.

    `loc [n]`, `scale_tril [n, n]` = L, lower triangular with a diagonal free of zeros; what stands
    above the diagonal is ignored. log p(x) = -|L^-1 (x - loc)|^2 / 2 - log|det L| - n c with
    c = log(2 pi) / 2. Samples are differentiable in both parameters.
    """

    loc: Any
    scale_tril: Any

    def sample(self, key):
        noise = jax.random.normal(key, self.event_shape, _dtype(self))
        return self.loc + jnp.tril(self.scale_tril) @ noise

    def log_prob(self, x):
        x = _event(self, x)
        z = _solve(self.scale_tril, x - self.loc)
        return (
            -0.5 * jnp.sum(z**2)
            - _log_abs_det(self.scale_tril)
            - 0.5 * x.size * np.log(2 * np.pi).item()
        )

    @property
    def mean(self):
        return _broadcast(self, self.loc)

    @property
    def event_shape(self):
        return np.broadcast_shapes(np.shape(self.loc), np.shape(self.scale_tril)[-1:])


@distribution
class Laplace(Distribution):
    """Independent double exponentials: log p(x) = sum_i -|x_i - loc_i| / scale_i - log(2 scale_i).

    `loc` and `scale > 0` broadcast to the shape of the event; the variance is 2 scale^2. Samples
    are differentiable in both parameters.
    """

    loc: Any
    scale: Any

    def sample(self, key):
        noise = jax.random.laplace(key, self.event_shape, _dtype(self))
        return self.loc + self.scale * noise

    def log_prob(self, x):
        x = _event(self, x)
        return jnp.sum(-jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale))

    @property
    def mean(self):
        return _broadcast(self, self.loc)


@distribution
class Uniform(Distribution):
    """Independent uniforms on the closed intervals: log p(x) = -sum_i log(high_i - low_i).

    `low < high` broadcast to the shape of the event; -inf where any x_i lies outside its interval.
    Samples are differentiable in both ends.
    """

    low: Any
    high: Any

    def sample(self, key):
        noise = jax.random.uniform(key, self.event_shape, _dtype(self))
        # The noise ends one unit of rounding below 1, so that no sample steps over the upper end.
        return self.low + (self.high - self.low) * noise

    def log_prob(self, x):
        x = _event(self, x)
        outside = (x < self.low) | (x > self.high)
        return _sum_inside(x, outside, -jnp.log(self.high - self.low))

    @property
    def mean(self):
        return _broadcast(self, 0.5 * self.low + 0.5 * self.high)  # low + high may overflow


@distribution
class Bernoulli(Distribution):
    """Independent coins, from logits: log p(x) = sum_i x_i logits_i - log(1 + exp(logits_i)).

    `logits` has the shape of the event; samples are floats 0. and 1., without gradient. `log_prob`
    accepts grey targets, anything in [0, 1]: it is then minus the cross-entropy, which ranks models
    but is not a likelihood (`ContinuousBernoulli` is one for such data). -inf outside [0, 1]. The
    logits are finite: with one of +-inf it is NaN, and +-100 says as much.
    """

    logits: Any
    discrete = True

    def sample(self, key):
        dtype = _dtype(self)
        # At least float32: in half precision the uniform numbers behind the coin are too coarse.
        logits = jnp.asarray(self.logits, jnp.promote_types(dtype, jnp.float32))
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(dtype)

    def log_prob(self, x):
        x, logits = _flat(self, x, self.logits)
        outside = (x < 0) | (x > 1)
        # The inner where keeps the gradient zero (and not inf - inf) where x is outside.
        log_p = jnp.where(outside, 0, x) * logits - _softplus(logits)
        return _sum_inside(x, outside, log_p)

    @property
    def mean(self):
        return jax.nn.sigmoid(_float(self.logits))


@distribution
class ContinuousBernoulli(Distribution):
    """The density on [0, 1] proportional to exp(logits x), for grey images.

    log p(x) = sum_i logits_i x_i - log((exp(logits_i) - 1) / logits_i). `logits` has the shape of
    the event; samples are drawn by inverting the distribution function and are differentiable. The
    mean is not sigmoid(logits). -inf outside [0, 1].
    Loaiza-Ganem & Cunningham (2019), arXiv:1907.06845.
    """

    logits: Any

    def sample(self, key):
        logits, dtype = _float(self.logits), _dtype(self)
        # Away from 0, or a large logit would turn 1 - u = 1 into log(0).
        u = jax.random.uniform(key, logits.shape, dtype, minval=float(jnp.finfo(dtype).eps))
        near = jnp.abs(logits) < 0.01
        # x = log(1 - u + u exp(logits)) / logits, by symmetry with exponents that cannot overflow.
        steep = jnp.where(near, 1.0, jnp.abs(logits))
        falling = -jnp.log1p(jnp.where(logits < 0, u, 1 - u) * jnp.expm1(-steep)) / steep
        far_x = jnp.where(logits < 0, falling, 1 - falling)
        # Near 0 the first cumulants of a coin, since that logarithm generates them.
        small, v = jnp.where(near, logits, 0.0), u * (1 - u)
        near_x = u + small * (v / 2 + small * (v * (1 - 2 * u) / 6))
        return jnp.clip(jnp.where(near, near_x, far_x), 0, 1)

    def log_prob(self, x):
        x = _event(self, x)
        slope, rest = _log_normaliser(_float(self.logits))
        outside = (x < 0) | (x > 1)
        # Not x logits - log_normaliser: the two cancel to few digits when the logit is large.
        return _sum_inside(x, outside, (jnp.where(outside, 0, x) - slope) * self.logits - rest)

    @property
    def mean(self):
        # An exponential family: the mean is the gradient of the log-normaliser.
        rest, pull, slope = jax.vjp(
            lambda logits: _log_normaliser(logits)[::-1], _float(self.logits), has_aux=True
        )
        return slope + pull(jnp.ones_like(rest))[0]


@distribution
class Categorical(Distribution):
    """Independent choices among k classes: log p(x) = sum_i log softmax(logits_i)[x_i].

    `logits [..., k]`; an event is integers in 0..k-1 of shape `[...]`, and int32 when sampled. The
    `mean` is that of the one-hot code: the probabilities `[..., k]`. A logit of -inf rules a class
    out. `log_prob` is -inf outside the classes and raises TypeError for anything but integers.
    """

    logits: Any
    discrete = True

    def sample(self, key):
        return jax.random.categorical(key, _float(self.logits)).astype(jnp.int32)

    def log_prob(self, x):
        x = _event(self, x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(
                f"Categorical.log_prob: expected integer classes, got {x.dtype}; "
                "convert them: x.astype(jnp.int32), or jnp.argmax(x, -1) if x is one-hot"
            )
        outside = (x < 0) | (x >= np.shape(self.logits)[-1])
        log_p = jax.nn.log_softmax(_float(self.logits))
        index = jnp.where(outside, 0, x)[..., None]
        return _sum_inside(x, outside, jnp.take_along_axis(log_p, index, axis=-1)[..., 0])

    @property
    def mean(self):
        return jax.nn.softmax(_float(self.logits))

    @property
    def event_shape(self):
        return np.shape(self.logits)[:-1]


@distribution
class Delta(Distribution):
    """All mass on one value: log p(x) = 0 where x equals `value`, -inf elsewhere.

    `value` has the shape of the event, and `sample` returns it. The log-probability is against
    counting measure, so `kl` of a Delta with a density raises TypeError.
    """

    value: Any
    discrete = True

    def sample(self, key):
        del key  # there is nothing random in it
        return jnp.asarray(self.value)

    def log_prob(self, x):
        x = _event(self, x)
        known = jnp.where(self.value == self.value, x, self.value)  # NaN where either is NaN
        return _sum_inside(known, x != self.value, jnp.zeros((), _dtype(self)))

    @property
    def mean(self):
        return jnp.asarray(self.value)


@distribution
class SparseDelta(Delta):
    """A Delta at a `value` of which at most `active` entries are not zero."""

    active: int = dataclasses.field(metadata={"static": True})


@distribution
class DiscretizedLogistic(Distribution):
    """Independent logistics rounded to the grid k / (levels - 1), k = 0..levels-1, in [0, 1].

    P(x) = sigmoid((x + w/2 - loc) / scale) - sigmoid((x - w/2 - loc) / scale), w = 1 / (levels-1);
    the first and the last level take the tails. `loc` and `scale > 0` broadcast to the shape of the
    event, in the units of x. -inf off the grid (beyond a thousandth of w, for rounding). Samples
    have no gradient. `mean` is exact: w sum_{k>=1} P(x >= k w), at the cost of `levels` sigmoids
    per element. Kingma et al. (2016), arXiv:1606.04934; Salimans et al. (2017), arXiv:1701.05517.
    """

    loc: Any
    scale: Any
    levels: int = dataclasses.field(default=256, metadata={"static": True})
    discrete = True

    def sample(self, key):
        noise = jax.random.logistic(key, self.event_shape, _dtype(self))
        last = self.levels - 1
        return jnp.round(jnp.clip((self.loc + self.scale * noise) * last, 0, last)) / last

    def log_prob(self, x):
        x = _float(_event(self, x))  # first, or stored uint8 would wrap round below
        last = self.levels - 1
        level = jnp.round(x * last)
        # With 16-bit images a float32 cannot hold k / last to a thousandth of a bin.
        rounding = self.levels * float(jnp.finfo(x.dtype).eps)
        off_grid = jnp.abs(x * last - level) > min(max(1e-3, rounding), 0.25)
        outside = off_grid | (level < 0) | (level > last)
        level = jnp.where(outside, 0, level)
        upper = ((level + 0.5) / last - self.loc) / self.scale
        lower = ((level - 0.5) / last - self.loc) / self.scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no difference of two
        # numbers near 0 or 1. A tail is the same with b or a at infinity, so factors drop out.
        inner = jnp.log(-jnp.expm1(-1 / (last * jnp.asarray(self.scale))))
        log_p = (
            jnp.where(level == last, 0, jax.nn.log_sigmoid(upper))
            + jnp.where(level == 0, 0, jax.nn.log_sigmoid(-lower))
            + jnp.where((level == 0) | (level == last), 0, inner)
        )
        return _sum_inside(x, outside, log_p)

    @property
    def mean(self):
        edges = (jnp.arange(1, self.levels, dtype=_dtype(self)) - 0.5) / (self.levels - 1)
        above = jax.vmap(lambda edge: jax.nn.sigmoid((self.loc - edge) / self.scale))(edges)
        return jnp.mean(above, axis=0)


@distribution
class Mixture(Distribution):
    """One of k components, chosen once for the whole event: p(x) = sum_j softmax(logits)_j p_j(x).

    `logits [k]`; `components` is a Distribution with a leading axis k on every leaf, as `vmap`
    makes it. A sample is differentiable in the parameters of its component but not in `logits`
    (`log_prob` is, in both). The choice is one for all elements: it is not a mixture per pixel.
    Raises ValueError at use where the number of components is not k.
    """

    logits: Any
    components: Any

    def sample(self, key):
        _check_components(self)
        key_choice, key_event = jax.random.split(key)
        choice = jax.random.categorical(key_choice, _float(self.logits))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[choice], self.components)
        return chosen.sample(key_event)

    def log_prob(self, x):
        x = _event(self, x)
        log_p = jax.vmap(lambda component: component.log_prob(x))(self.components)
        terms = jax.nn.log_softmax(_float(self.logits)) + log_p
        # Where no component allows x, logsumexp would have the gradient 0 / 0.
        outside = jnp.all(terms == -jnp.inf)
        log_p = jax.nn.logsumexp(jnp.where(outside, 0, terms))
        return jnp.where(outside, -jnp.inf, log_p)

    @property
    def mean(self):
        _check_components(self)
        means = jax.vmap(lambda component: component.mean)(self.components)
        weights = jax.nn.softmax(_float(self.logits))
        return jnp.tensordot(weights, means, axes=1)

    @property
    def event_shape(self):
        _check_components(self)
        # Only shapes are read, so that it works on the result of eval_shape too.
        zero = np.zeros(())
        one = jax.tree.map(lambda a: np.broadcast_to(zero, np.shape(a)[1:]), self.components)
        return one.event_shape

    @property
    def discrete(self):
        return self.components.discrete


@distribution
class Steps(Distribution):
    """A distribution for each step of a sequence, independent: log p(x) = sum_t m_t log p_t(x_t).

    `each` is a Distribution with a leading axis n on every leaf, as `vmap` or `scan` makes it; an
    event has that leading axis too. `mask` `[n]`: the steps that count, `()` for all of them; what
    stands at the others counts for nothing, in no gradient either, as long as it is finite.
    `kl` of two such is the sum of the steps' own.
    """

    each: Any
    mask: Any = ()

    def sample(self, key):
        keys = jax.random.split(key, self.event_shape[0])
        return jax.vmap(lambda one, key: one.sample(key))(self.each, keys)

    def log_prob(self, x):
        x = _event(self, x)
        return self.sum(jax.vmap(lambda one, x: one.log_prob(x))(self.each, x))

    def sum(self, values):
        """The sum of a number for each step, `[n]`, over the steps that count."""
        return jnp.sum(values if isinstance(self.mask, tuple) else jnp.where(self.mask, values, 0))

    @property
    def mean(self):
        return jax.vmap(lambda one: one.mean)(self.each)

    @property
    def event_shape(self):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(self.each)]
        zero = np.zeros(())
        one = jax.tree.map(lambda a: np.broadcast_to(zero, np.shape(a)[1:]), self.each)
        return (*shapes[0][:1], *one.event_shape)

    @property
    def discrete(self):
        return self.each.discrete


def kl(q: Distribution, p: Distribution, *, sample: tuple[Array, Array] | None = None) -> Array:
    """KL(q || p) = E_q[log q(x) - log p(x)]: `()`, in nats, summed over the event.

    Exact for pairs of Gaussians (Normal or MultivariateNormal), Laplace, Bernoulli, Categorical and
    Uniform (inf where q leaves the support of p), and for a Delta against a discrete distribution.
    Otherwise the unbiased estimate log_q - p.log_prob(z) from one draw, `sample = (z, log_q) =
    q.sample_and_log_prob(key)`; `sample` is not looked at where there is a closed form.

    Raises ValueError where the events differ in shape. Raises TypeError where one of the two is
    discrete and the other a density (a Delta against a Normal, say), for which KL is not defined,
    and where there is no closed form and `sample` is None.
    """
    check_comparable("kl", q, p)
    name_q, name_p = type(q).__name__, type(p).__name__
    match q, p:
        case Normal(), Normal():
            # In the units of p: a Gaussian of this scale and shift against the standard one.
            scale, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
            return jnp.sum(0.5 * (scale**2 - 1 + shift**2) - jnp.log(scale))
        case ((MultivariateNormal() | Normal()), (MultivariateNormal() | Normal())):
            scale, shift = _whitened(q, p)
            squares = jnp.sum(scale**2) - shift.size + jnp.sum(shift**2)
            return 0.5 * squares - _log_abs_det(scale)
        case Laplace(), Laplace():
            scale, shift = q.scale / p.scale, jnp.abs(q.loc - p.loc) / q.scale
            return jnp.sum(scale * (jnp.expm1(-shift) + shift) + (scale - 1 - jnp.log(scale)))
        case Bernoulli(), Bernoulli():
            # Each outcome's own log-ratio: the shorter x l - softplus(l) cancels at large logits.
            one = jax.nn.softplus(-p.logits) - jax.nn.softplus(-q.logits)
            zero = jax.nn.softplus(p.logits) - jax.nn.softplus(q.logits)
            return jnp.sum(jax.nn.sigmoid(q.logits) * one + jax.nn.sigmoid(-q.logits) * zero)
        case Categorical(), Categorical():
            if np.shape(q.logits) != np.shape(p.logits):
                raise ValueError(
                    "kl: expected two Categoricals over as many classes, got logits of shape "
                    f"{np.shape(q.logits)} and {np.shape(p.logits)}"
                )
            log_q, log_p = map(jax.nn.log_softmax, (_float(q.logits), _float(p.logits)))
            # 0 log 0 = 0 for classes that q rules out.
            ratio = jnp.where(log_q == -jnp.inf, 0, log_q - log_p)
            return jnp.sum(jnp.exp(log_q) * ratio)
        case Uniform(), Uniform():
            leaves = (q.low < p.low) | (q.high > p.high)
            ratio = jnp.log((p.high - p.low) / (q.high - q.low))
            return jnp.sum(jnp.where(leaves, jnp.inf, ratio))
        case Steps(), Steps():

            def of_step(q: Any, p: Any, z: Any) -> Array:
                return kl(q, p, sample=None if sample is None else (z, q.log_prob(z)))

            return q.sum(jax.vmap(of_step)(q.each, p.each, () if sample is None else sample[0]))
        case Delta(), _:
            return -p.log_prob(q.value)
        case _:
            if sample is None:
                raise TypeError(
                    f"kl: there is no closed form for KL({name_q} || {name_p}); for the one-sample "
                    "estimate pass sample=q.sample_and_log_prob(key)"
                )
            z, log_q = sample
            return log_q - p.log_prob(z)


def check_comparable(function: str, q: Distribution, p: Distribution) -> None:
    """Raise unless log q - log p has a meaning: one event shape (ValueError), one kind (TypeError).

    A probability and a density do not have the same unit, so their logarithms do not subtract.
    """
    name_q, name_p = type(q).__name__, type(p).__name__
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"{function}: expected two distributions over events of one shape, got {name_q} over "
            f"{q.event_shape} and {name_p} over {p.event_shape}; map batches: jax.vmap(kl)(q, p)"
        )
    if q.discrete != p.discrete:
        kinds = "discrete and {} is a density" if q.discrete else "a density and {} is discrete"
        raise TypeError(
            f"{function}: {name_q} is {kinds.format(name_p)}, so KL(q || p) is not defined: a "
            "probability and a density do not have the same unit. A deterministic encoder (Delta) "
            "has no rate under a continuous prior: leave the term out, or let the encoder return "
            "a density such as Normal"
        )


def _dtype(distribution: Distribution) -> Any:
    """The floating dtype of the parameters; the default one where they are Python numbers."""
    return jnp.result_type(*jax.tree.leaves(distribution), 1.0)


def _float(parameter: Any) -> Array:
    """A parameter as a floating array, where integers or Python numbers were given too."""
    return jnp.asarray(parameter, jnp.result_type(parameter, 1.0))


def _broadcast(distribution: Distribution, value: Any) -> Array:
    """A value in the shape of the event and the dtype of the parameters."""
    return jnp.broadcast_to(jnp.asarray(value, _dtype(distribution)), distribution.event_shape)


def _event(distribution: Distribution, x: Any) -> Array:
    """x as an array, after checking that it is exactly one event."""
    expected, got = distribution.event_shape, np.shape(x)
    if got != expected:
        batched = len(got) > len(expected) and got[len(got) - len(expected) :] == expected
        fix = "map it: jax.vmap(q.log_prob)(x)" if batched else "reshape x, or map: jax.vmap(...)"
        raise ValueError(
            f"{type(distribution).__name__}.log_prob: expected one event of shape {expected}, "
            f"got {got}; {fix}"
        )
    return jnp.asarray(x)


def _flat(distribution: Distribution, x: Any, *parameters: Any) -> list[Array]:
    """x, checked to be one event, and the parameters, as vectors; scalars stay scalars.

    On CPU, XLA computes and sums over `[28, 28, 1]` many times slower than over `[784]`.
    """
    shape = distribution.event_shape
    whole = [p if np.ndim(p) == 0 else jnp.broadcast_to(p, shape) for p in parameters]
    return [jnp.ravel(v) if np.ndim(v) else v for v in (_event(distribution, x), *whole)]


def _sum_inside(x: Array, outside: Array, log_p: Array) -> Array:
    """Sum of log_p over the elements: -inf where one is outside, NaN where an x is NaN."""
    # Three sums rather than one of a choice per element: those that depend on x alone are then
    # taken once, however many parameters x is scored under.
    log_p = jnp.sum(jnp.broadcast_to(log_p, x.shape))
    log_p = jnp.where(jnp.any(outside), -jnp.inf, log_p)
    return jnp.where(jnp.any(x != x), jnp.nan, log_p)


@jax.custom_jvp
def _softplus(logits: Any) -> Array:
    """log(1 + exp(l)) = max(l, 0) + log1p(exp(-|l|)), with the gradient sigmoid(l).

    As `jax.nn.softplus` to the last bit or two, but without its branches for infinities, which keep
    compilers from vectorising: on CPU about 4 times faster in a Bernoulli's log_prob, and 6 times
    with its gradient.
    """
    return jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))


_softplus.defjvps(lambda tangent, _, logits: tangent * jax.nn.sigmoid(logits))


def _log_normaliser(logits: Array) -> tuple[Array, Array]:
    """(c, r) with log((exp(l) - 1) / l) = c l + r, where c is 0, 1/2 or 1 and r stays small.

    Near 0 it is c = 1/2 and r = log(sinh(l/2) / (l/2)) by its series, whose first term left out is
    below 1e-14 at 0.5; beyond, r = log((1 - exp(-|l|)) / |l|) loses no digits.
    """
    near = jnp.abs(logits) < 0.5
    steep = jnp.where(near, 1.0, jnp.abs(logits))
    far = jnp.log(-jnp.expm1(-steep) / steep)
    s = jnp.where(near, logits, 0.0) ** 2
    series = s * (1 / 24 + s * (-1 / 2880 + s * (1 / 181440 + s * (-1 / 9676800 + s / 479001600))))
    slope = jnp.where(near, 0.5, jnp.where(logits > 0, 1.0, 0.0))
    return slope.astype(logits.dtype), jnp.where(near, series, far)


def _solve(scale_tril: Any, b: Array) -> Array:
    """L^-1 b for a lower triangular L, of which the part above the diagonal is not read."""
    return jax.scipy.linalg.solve_triangular(scale_tril, b, lower=True)


def _log_abs_det(scale_tril: Any) -> Array:
    """log|det L| of a lower triangular L, read off its diagonal."""
    return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(scale_tril))))


def _whitened(q: Any, p: Any) -> tuple[Array, Array]:
    """Two Gaussians over `[n]` where p is standard: q's factor `[n, n]` and its mean `[n]`."""
    n = q.event_shape
    factor = jnp.diag(jnp.broadcast_to(q.scale, n)) if isinstance(q, Normal) else q.scale_tril
    factor, shift = jnp.tril(factor), jnp.broadcast_to(q.loc - p.loc, n)
    if isinstance(p, Normal):
        scale = jnp.broadcast_to(p.scale, n)
        return factor / scale[:, None], shift / scale
    return _solve(p.scale_tril, factor), _solve(p.scale_tril, shift)


def _check_components(mixture: Mixture) -> None:
    """Raise unless every leaf of the components has the leading axis that the logits promise."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(mixture.components)]
    expected = np.shape(mixture.logits)
    if len(expected) != 1 or any(shape[:1] != expected for shape in shapes):
        raise ValueError(
            "Mixture: expected logits [k] and components with a leading axis k on every leaf, got "
            f"logits of shape {expected} and leaves of shapes {shapes}; build the components with "
            "vmap: components = jax.vmap(Normal)(loc, scale), loc [k, ...], scale [k, ...]"
        )
