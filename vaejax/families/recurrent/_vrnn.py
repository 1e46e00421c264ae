"""The variational recurrent network: a model, its way of inference, and its generation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.arrays import numbers
from vaejax.batch import present
from vaejax.distributions import Steps
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.model import Draw, Generated, Model, check_model, compiled
from vaejax.networks import functional
from vaejax.types import Array, Key, Params, describe


class Recurrent(NamedTuple):
    """A latent-variable model of sequences, with its own way of inference and generation.

    Args:
      model: a Model whose `init(key, x, c=())` takes a sequence, and whose other functions are
        those of one step.
      draw: for the losses and measures that take one.
      generate: `generate(params, key, c=(), *, steps, x=(), known=0) -> Generated`, a sequence from
        the model, or the continuation of the first `known` steps of x, whose z are drawn from q. A
        masked step of x counts as not known: it is drawn.
    """

    model: Model
    draw: Callable[..., Draw]
    generate: Callable[..., Generated]


def vrnn(model: Model, cell: Any, *, features: int) -> Recurrent:
    """A variational recurrent network: a conditional VAE at every step, whose c is the past.

    `p(x, z) = prod_t p(z_t|h_{t-1}) p(x_t|z_t, h_{t-1})`, `q(z|x) = prod_t q(z_t|x_t, h_{t-1})`,
    `h_t = f(h_{t-1}, x_t, z_t)`, so that the ELBO, in nats per sequence, is
    `E_q sum_t [log p(x_t|z_t, h_{t-1}) - KL(q(z_t|x_t, h_{t-1}) || p(z_t|h_{t-1}))]`.

    Where the sequence has a condition c, that of a step is the pair (h, c). An example x is an
    array `[steps, ...]`, or a pair of it and a mask `[steps]` (see `padded`). A masked step is left
    out of the sequence, whatever it holds, NaN too, and adds zero to every term and gradient.

    The Draw holds `x`, `z` `[steps, latent]`, and q, pz and px of all steps, given the drawn path.
    D, R (closed-form KLs, summed) and log-weights have their usual meaning, so that every loss and
    measure that takes a `draw` works. `stl` is unbiased, but it also cuts the way from z_<t to q_t,
    so that some noise remains at the exact posterior. With `draw(..., given=)`, q sees other steps
    than x; with `draw(..., z=)`, the path `[steps, latent]` is scored and not drawn. What a mask
    leaves out may be NaN in the data of `train.fit` too. `reweighted_wake_sleep` has wake alone,
    and losses and norms that ask the encoder itself for one code of x (`contractive`,
    `batch_top_k`) have none here.

    Args:
      model: one step, for instance `autoencoder(encoder, decoder, prior)` of the modules
        `encoder(x_t, h)`, `decoder(z_t, h)` and `prior(h)`, a learned prior. A prior that is a
        Distribution does not see the past.
      cell: f, any object with `.init(key, h, x_t, z_t) -> params` and `.apply(params, h, x_t,
        z_t)`, for instance `Cell(features)`.
      features: size of h, which starts at zero.
    Returns:
      the model with its `draw` and `generate`. They raise ValueError for an empty sequence, and its
      step's functions raise TypeError where they are used for a sequence.
    Raises:
      ValueError: where features is below 1.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from vaejax import autoencoder, heads, networks, recurrent
      >>> def net(head):
      ...     return nn.Sequential([networks.MLP((4,)), head])
      >>> step = autoencoder(net(heads.Normal(2)), net(heads.Normal(3)), net(heads.Normal(2)))
      >>> made = recurrent.vrnn(step, recurrent.Cell(4), features=4)
      >>> x = jnp.zeros((5, 3))  # one sequence of five steps
      >>> params = made.model.init(jax.random.key(0), x)
      >>> jax.eval_shape(lambda: made.draw(made.model, params, jax.random.key(1), x)).z.shape
      (5, 2)

    References:
      Chung et al., 2015, arXiv:1506.02216 (whose features of x and z are the first layers of the
      networks here).
    """
    check_model("vrnn", model)
    cell = functional(cell, "vrnn: cell")
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
        model: Model,
        params: Params,
        key: Key,
        x: Any,
        c: Any = (),
        *,
        given: Any = None,
        z: Any = None,
    ) -> Draw:
        return _drawn(model, cell, features, params, key, (x, given, z), c)

    def generate(
        params: Params, key: Key, c: Any = (), *, steps: int, x: Any = (), known: Any = 0
    ) -> Generated:
        at_least_one("generate", steps=steps)
        values, mask = _sequence(x) if present(x) else (None, ())
        values = None if values is None else jnp.asarray(values)
        if concrete(known) and not 0 <= known <= (0 if values is None else min(len(values), steps)):
            fix = "give x, of at least as many steps, and steps for the rest too"
            raise wrong("generate: known", known, "0, or up to the steps of x", fix)
        step = _generating(model, cell, params, key, c, values, mask, known)
        return lax.scan(step, jnp.zeros(features), jnp.arange(steps))[1]

    return Recurrent(_of_one_step(model)._replace(init=compiled(init)), draw, generate)


def padded(sequences: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of different lengths side by side: their values and the mask of what counts.

    Args:
      sequences: arrays `[steps_i, ...]`.
    Returns:
      values `[n, longest, ...]`, zero behind the ends, and the mask `[n, longest]`. The pair is the
      x of a Batch for a `vrnn`.
    Raises:
      ValueError: for no sequence, for an empty one, naming it, and for steps of different shapes.
    """
    if not isinstance(sequences, list | tuple | np.ndarray | jax.Array):
        fix = "pass a list, an array [steps_i, ...] for each"
        raise wrong("padded: sequences", describe(sequences), "several sequences", fix, TypeError)
    arrays = [np.asarray(numbers(f"padded: sequence {i}", x)) for i, x in enumerate(sequences)]
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


def _drawn(
    model: Model, cell: Any, features: int, params: Params, key: Key, over: Any, c: Any
) -> Draw:
    """One pass of inference over a sequence x, with what q sees and z, where they are given."""
    x, given, path = over
    values, mask = _sequence(x)
    # Of given too, what x's mask leaves out may be NaN, and must not reach the gradient.
    seen = values if given is None else _sequence((_sequence(given)[0], mask))[0]
    size = len(jax.tree.leaves(values)[0])

    def step(h: Array, at: Any) -> Any:
        i, x, seen, counted, known = at
        encode_key, z_key, decode_key = jax.random.split(jax.random.fold_in(key, i), 3)
        q = model.encode(params, seen, _past(h, c), key=encode_key)
        z, log_q = q.sample_and_log_prob(z_key) if path is None else (known, q.log_prob(known))
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
    each = jnp.arange(size), values, seen, counts, path
    _, (z, log_q, *rest) = lax.scan(step, jnp.zeros(features), each)
    return Draw(values, z, jnp.sum(log_q), *(Steps(one, mask) for one in rest))


def _generating(
    model: Model,
    cell: Any,
    params: Params,
    key: Key,
    c: Any,
    values: Array | None,
    mask: Any,
    known: Any,
) -> Callable[[Array, Array], tuple[Array, Generated]]:
    """The step of generation, whose z and x are those of `values` where these are known."""

    def step(h: Array, i: Array) -> tuple[Array, Generated]:
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

    return step


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
    values, mask = jnp.asarray(values), jnp.asarray(mask).astype(bool)
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
                fix = (
                    "pass draw=vrnn.draw to the loss or measure (one without a draw does not take "
                    "sequences), and generate by vrnn.generate"
                )
                name = "vrnn: a step's function"
                raise wrong(name, "no past (c is absent)", "c = h, or (h, c)", fix, TypeError)
            return function(*args, **options)

        return step

    return model._replace(
        prior=checked(model.prior, 1),
        encode=checked(model.encode, 2),
        decode=checked(model.decode, 2),
    )
