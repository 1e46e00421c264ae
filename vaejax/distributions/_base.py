"""What every distribution is: a frozen pytree whose event is the whole array.

A distribution is a value. Its parameters are the leaves of a pytree, so `vmap`, `grad`, `scan` and
`jax.lax.stop_gradient(q)` work on it as on an array. **The event is the whole array** and there are
no batch dimensions. A batch of distributions is what `vmap` returns; it is sampled and scored under
another `vmap`, where every row has its own key:

    jax.vmap(lambda q, key: q.sample(key))(batch_of_q, jax.random.split(key, n))

`log_prob` sums over the event and is in nats. Outside the support it is -inf, with gradient zero
with respect to the parameters; a NaN in x gives NaN. Nothing is converted or checked when a
distribution is built, because JAX also builds pytrees of shapes, axes and None. Shapes are checked
at use, while tracing.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from vaejax.distributions import _pathwise
from vaejax.types import Array, Key, describe_fields

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def distribution(cls: Class) -> Class:
    """Decorator of a class of distributions: a frozen dataclass, registered as a pytree.

    Its fields are the parameters: the leaves of the pytree, or trees of them. A field declared with
    `dataclasses.field(metadata={"static": True})` is part of the structure instead.

    Use it rather than `jax.tree_util.register_dataclass`. With some versions of JAX (0.10.2 for
    one) two classes so registered that have as many fields count as one structure, and now and then
    a compiled function runs the program of one on the parameters of the other.

    Args:
      cls: the class, with annotated fields.
    Returns:
      The same class.
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

    A subclass defines `sample` and `log_prob`. It defines `mean` where there is a closed form, and
    the property `event_shape` where its parameters do not simply broadcast to it.

    `discrete` says what `log_prob` is: the log of a probability (True), or of a density (False, the
    default). `kl` raises for a pair that mixes the two. `needs_float32` says that its numbers may
    not be cast to a smaller type. A network inside a distribution is a field such as
    `jax.tree_util.Partial(net.apply, params)`, whose function is created once, outside of `jit`.
    """

    discrete: Any = False
    needs_float32: Any = False

    def sample(self, key: Key) -> Array:
        """Draw one event, which uses up the key; for a batch, vmap over keys.

        Args:
          key: one PRNG key.
        Returns:
          The event, of shape `event_shape`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def log_prob(self, x: Array) -> Array:
        """The log-probability (or log-density) of one event, summed over it.

        Args:
          x: one event, of shape `event_shape`.
        Returns:
          log p(x), nats, `()`; -inf outside the support.
        Raises:
          ValueError: where x does not have shape `event_shape`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """Draw one event and give its log-probability too.

        Args:
          key: one PRNG key.
        Returns:
          The event, of shape `event_shape`, and its log-probability, nats, `()`.
        """
        x = self.sample(key)
        return x, self.log_prob(x)

    @property
    def mean(self) -> Array:
        """The expectation of x, of shape `event_shape` (of probabilities for a Categorical)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no mean in closed form; average samples instead"
        )

    def without_derivative(self) -> dict[str, Any]:
        """The parameters that a sample depends on, but by none of its derivatives.

        None of a Normal, the `logits` of a Mixture, all of a Bernoulli. It is found by tracing
        `sample`, so that a subclass has nothing to declare. One whose sample has the right gradient
        by means that tracing does not see returns {}.

        Returns:
          Leaves of the distribution by name.
        """
        return _pathwise.without_derivative(self)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event, which is the shape to which the parameters broadcast."""
        return np.broadcast_shapes(*map(np.shape, jax.tree.leaves(self)))
