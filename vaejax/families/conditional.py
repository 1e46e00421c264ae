"""Conditional models p(x|c): classes as conditions, and images completed from what is known.

Every Model takes a condition c, an array or a pytree of them, wherever it takes x or z, and
`autoencoder(encoder, decoder, prior)` takes a module of c for its prior p(z|c). The functions here
make conditions, and help where the condition holds a part of x:

    batch = Batch(x, c=conditional.one_hot(y, 10))                       # p(x | class)

    hide = conditional.observed(corruption.erased_block(14))             # p(image | what is seen)
    decoder = conditional.Completing(nn.Sequential([networks.MLP((400,)), heads.Bernoulli(shape)]))
    loss = conditional.conditioned(objectives.elbo(model), hide)         # c anew at each step
    several = conditional.complete(model, params, key, x, known, draws=8)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vaejax.arrays import check_unmasked, numbers
from vaejax.batch import over_examples
from vaejax.distributions import Distribution, distribution
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.model import Generated, Model, generate
from vaejax.networks import Network, within
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params

Condition = Callable[[Key, Any], Any]


def one_hot(y: Array | np.ndarray | int, classes: int) -> Array:
    """Labels as conditions: row i is 1 at y_i and 0 elsewhere.

    Under `jit`, where there are no values to look at, the row of a label outside the classes is
    NaN, which training and evaluation report.

    Args:
      y: integers from 0 to `classes - 1`, of any shape `[...]`.
      classes: the number of classes.
    Returns:
      the rows, float `[..., classes]`.
    Raises:
      ValueError: for other labels, naming the first, and for fewer than one class.
      TypeError: where y is not of integers.
    Example:
      >>> import numpy as np
      >>> from vaejax import conditional
      >>> conditional.one_hot(np.array([0, 2]), 3).tolist()
      [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    at_least_one("one_hot", classes=classes)
    check_unmasked("one_hot: y", y)
    y = numbers("one_hot: y", y, "integer labels")
    if not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        fix = "convert them: y.astype(int)"
        raise wrong("one_hot: y", jnp.result_type(y), "integer labels", fix, TypeError)
    if concrete(y):
        labels = np.asarray(y)
        bad = np.argwhere((labels < 0) | (labels >= classes))
        if len(bad):
            at = f" at index {', '.join(map(str, bad[0]))}" if labels.ndim else ""
            got = f"label {labels[tuple(bad[0])]}{at}"
            fix = "count them from 0, and leave out what has no label (-1), or see semisupervised"
            raise wrong("one_hot: y", got, f"0 to {classes - 1}", fix)
    y = jnp.asarray(y)
    inside = (y >= 0) & (y < classes)
    return jnp.where(inside[..., None], jax.nn.one_hot(y, classes), jnp.nan)


def conditioned(loss: Loss, condition: Condition) -> Loss:
    """The same loss with c = condition(key, x) made from each example, anew at each step.

    One draw of the condition serves all of a loss's samples of z. To evaluate, make the conditions
    once: `Batch(x, c=over_examples(condition, key, x))`.

    Args:
      loss: any loss of batches with conditions.
      condition: `condition(key, x)` makes the condition of one example as the loss sees it, for
        instance `observed(...)` or a small version of x.
    Returns:
      a loss of batches without conditions; it raises ValueError for a batch that has them already.
    """

    def with_condition(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        if jax.tree.leaves(batch.c):
            fix = "leave c out of the batch, or take the loss as it is"
            raise wrong("conditioned: batch.c", jax.tree.map(jnp.shape, batch.c), "none", fix)
        condition_key, loss_key = jax.random.split(key)
        c = over_examples(condition, condition_key, batch.x)
        return loss(params, loss_key, batch._replace(c=c), step)

    return with_condition


def observed(erase: Condition) -> Condition:
    """The condition of completion: c = (known x, known), what is seen of x and where it is seen.

    `known_i` is 1 where x_i is given and 0 where it is to be filled in. The first part is
    `known_i x_i`, so that a zero there may mean either.

    Args:
      erase: `erase(key, x)` sets entries to zero and leaves the others alone, drawn without regard
        to x, for instance `corruption.erased_block(side)` or `corruption.masking(nu)`. Anything
        else, such as noise, gives NaN, which training and evaluation report.
    Returns:
      `condition(key, x)` for one array x; both parts have the shape of x.
    """

    def condition(key: Key, x: Array) -> tuple[Array, Array]:
        kept = erase(key, jnp.ones_like(x))
        known = jnp.where((kept == 0) | (kept == 1), kept, jnp.nan)
        return known * x, known

    return condition


@distribution
class Completed(Distribution):
    """p(x_hidden | x_known): known entries keep their values, and the others follow `px`.

    `log p(x) = sum over hidden i of log px_i(x_i)`, -inf where x contradicts what is known.

    Args:
      px: a Distribution of independent entries (Bernoulli, Normal, ...).
      x: the event; its hidden entries are not looked at.
      known: 1 or 0 for each entry, in the shape of x.
    Raises:
      ValueError: when it is used, for other shapes.
      TypeError: for `log_prob` under a px whose entries are not independent.
    """

    px: Any
    x: Any
    known: Any

    def sample(self, key):
        return self._filled(self.px.sample(key))

    def log_prob(self, x):
        shape = self.event_shape
        if jnp.shape(x) != shape:
            fix = "map a batch: jax.vmap"
            raise wrong("Completed.log_prob: x", jnp.shape(x), f"one event of shape {shape}", fix)

        def flat(leaf: Any) -> Array:
            sides = zip(np.shape(leaf)[::-1], shape[::-1], strict=False)
            if np.ndim(leaf) > len(shape) or any(one not in (1, side) for one, side in sides):
                fix = "take one whose parameters have the shape of x: Bernoulli, Normal, ..."
                name = type(self.px).__name__
                raise wrong("Completed: px", name, "independent entries", fix, TypeError)
            return jnp.ravel(jnp.broadcast_to(leaf, shape))

        entries = jax.tree.map(flat, self.px)
        log_p = jax.vmap(lambda p, x: p.log_prob(x))(entries, jnp.ravel(x))
        known = self.known == 1
        log_p = jnp.sum(jnp.where(jnp.ravel(known), 0, log_p))
        log_p = jnp.where(jnp.any(known & (x != self.x)), -jnp.inf, log_p)
        return jnp.where(jnp.any(x != x), jnp.nan, log_p)

    @property
    def mean(self):
        return self._filled(self.px.mean)

    @property
    def event_shape(self):
        shapes = {np.shape(self.x), np.shape(self.known), self.px.event_shape}
        if len(shapes) > 1:
            got = f"px {self.px.event_shape}, x {np.shape(self.x)}, known {np.shape(self.known)}"
            fix = "give the mask an entry for every entry of x, channels included"
            raise wrong("Completed", got, "one shape", fix)
        return shapes.pop()

    @property
    def discrete(self):
        return self.px.discrete

    def _filled(self, drawn):
        return jnp.where(self.known == 1, self.x, drawn).reshape(self.event_shape)


class Completing(Network):
    """A decoder of whole images that leaves to `decoder` only what is hidden.

    It returns a `Completed`, so that log p(x|c) is that of the hidden entries alone. It is called
    with (z, c), or with (c) for a network without latents; c = (known x, known), as `observed`
    makes it.

    Args:
      decoder: the network behind it, called with the same, which returns a Distribution of
        independent entries.
    Raises:
      ValueError: for another condition.
    """

    decoder: Any

    @nn.compact
    def __call__(self, *given: Any) -> Completed:
        c = given[-1]
        if not isinstance(c, tuple) or len(c) != 2:
            got = "no condition" if jax.tree.leaves(c) == [] else jax.tree.map(jnp.shape, c)
            fix = "make it by conditional.observed(...), or let conditional.conditioned do so"
            raise wrong("Completing: c", got, "(known x, known)", fix)
        return Completed(within(self, "decoder", *given), *c)


def complete(
    model: Model,
    params: Params,
    key: Key,
    x: Array | np.ndarray,
    known: Array | np.ndarray,
    *,
    draws: int,
) -> Generated:
    """Several completions of one image: z_k ~ p(z|c), x_k ~ p(x|z_k, c), c = (known x, known).

    Each completion is a whole image that may be true. The average of their `mean` estimates E[x|c],
    which has the smallest squared error but blurs wherever the completions disagree.

    Args:
      model: a Model whose decoder is a `Completing`.
      params: its parameters.
      key: random key for the draws.
      x: the image as the model sees it; its hidden entries are not looked at (NaN may stand there).
      known: 1 or 0 (or a boolean) for each entry.
      draws: how many completions.
    Returns:
      `Generated` with a leading axis `[draws]`.
    Raises:
      ValueError: for a mask of another shape or other values, and where draws is below 1.
    References:
      Sohn, Lee and Yan, 2015, Learning structured output representation using deep conditional
      generative models.
    """
    at_least_one("complete", draws=draws)
    x, mask = jnp.asarray(x), jnp.asarray(known)
    if mask.shape != x.shape:
        fix = "give it an entry for every entry of x, channels included"
        raise wrong("complete: known", mask.shape, f"the shape of x, {x.shape}", fix)
    if concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        got = f"values in [{float(mask.min()):.4g}, {float(mask.max()):.4g}]"
        fix = "1 where x is given, 0 where it is to be filled in: known = probability > 0.5"
        raise wrong("complete: known", got, "0 and 1 alone", fix)
    c = jnp.where(mask == 1, x, 0), mask.astype(x.dtype)
    return jax.vmap(lambda key: generate(model, params, key, c))(jax.random.split(key, draws))


__all__ = ["Completed", "Completing", "complete", "conditioned", "observed", "one_hot"]
