"""Distributions that are made of others: mixtures, and sequences of independent steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.distributions._base import Distribution, as_float, distribution, one_event


@distribution
class Mixture(Distribution):
    """One of k components, chosen once for the whole event: p(x) = sum_j softmax(logits)_j p_j(x).

    The choice is one for all elements: it is not a mixture per pixel. A sample is differentiable in
    the parameters of its component but not in `logits`; `log_prob` is differentiable in both.
    Raises ValueError at use where the number of components is not k.

    Args:
      logits: of the components, `[k]`.
      components: a Distribution with a leading axis k on every leaf, as `vmap` makes it.
    """

    logits: Any
    components: Any

    def sample(self, key):
        _check_components(self)
        key_choice, key_event = jax.random.split(key)
        choice = jax.random.categorical(key_choice, as_float(self.logits))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[choice], self.components)
        return chosen.sample(key_event)

    def log_prob(self, x):
        x = one_event(self, x)
        log_p = jax.vmap(lambda component: component.log_prob(x))(self.components)
        terms = jax.nn.log_softmax(as_float(self.logits)) + log_p
        # Where no component allows x, logsumexp would have the gradient 0 / 0.
        outside = jnp.all(terms == -jnp.inf)
        log_p = jax.nn.logsumexp(jnp.where(outside, 0, terms))
        return jnp.where(outside, -jnp.inf, log_p)

    @property
    def mean(self):
        _check_components(self)
        means = jax.vmap(lambda component: component.mean)(self.components)
        weights = jax.nn.softmax(as_float(self.logits))
        return jnp.tensordot(weights, means, axes=1)

    @property
    def event_shape(self):
        _check_components(self)
        return _without_axis(self.components).event_shape

    @property
    def discrete(self):
        return self.components.discrete


@distribution
class Steps(Distribution):
    """A distribution for each step of a sequence, independent: log p(x) = sum_t m_t log p_t(x_t).

    An event has a leading axis n of steps. `kl` of two such is the sum of the steps' own.

    Args:
      each: a Distribution with a leading axis n on every leaf, as `vmap` or `scan` makes it.
      mask: the steps that count, `[n]`; by default, `()`, all of them. Values at the other steps
        count for nothing, in no gradient either, as long as they are finite.
    """

    each: Any
    mask: Any = ()

    def sample(self, key):
        keys = jax.random.split(key, self.event_shape[0])
        return jax.vmap(lambda one, key: one.sample(key))(self.each, keys)

    def log_prob(self, x):
        x = one_event(self, x)
        return self.sum(jax.vmap(lambda one, x: one.log_prob(x))(self.each, x))

    def sum(self, values):
        """The sum over the steps that count.

        Args:
          values: one number for each step, `[n]`.
        Returns:
          Their sum, `()`.
        """
        return jnp.sum(values if isinstance(self.mask, tuple) else jnp.where(self.mask, values, 0))

    @property
    def mean(self):
        return jax.vmap(lambda one: one.mean)(self.each)

    @property
    def event_shape(self):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(self.each)]
        return (*shapes[0][:1], *_without_axis(self.each).event_shape)

    @property
    def discrete(self):
        return self.each.discrete


def _without_axis(each: Any) -> Any:
    """Zeros in the shapes of one of the distributions that lie along a leading axis.

    Only shapes are read, so that it works on the result of eval_shape too.
    """
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros(()), np.shape(leaf)[1:]), each)


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
