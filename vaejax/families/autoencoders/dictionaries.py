"""Dictionaries: decoders of one dense layer with atoms of unit norm, and units that live again.

A dictionary is the kernel of a decoder of one dense layer: unit j's atom is what the decoder adds
to x for each unit of z_j.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from vaejax.batch import as_batch, example_at, over_data, size_of, weights_of
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.model import Model, deterministic
from vaejax.networks import kernels
from vaejax.train import TrainState
from vaejax.types import Array, Batch, Key, Params, Transform


def unit_columns(model: Model) -> Model:
    """The same autoencoder with a dictionary of unit norm: each unit's atom is divided by its norm.

    `decode` computes with `atoms(params)`. So any optimizer works: its steps along the atom change
    nothing, and no projection has to follow the update.

    Args:
      model: an autoencoder whose decoder has one dense layer. With any other, `init` and `decode`
        of the result raise ValueError.
    Returns:
      The Model; its parameters have the structure of those of `model`.
    """

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        return _with_atoms(model.init(key, x, c))

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(_with_atoms(params), z, c, key=key)

    return model._replace(init=init, decode=decode)


def atoms(params: Params) -> Array:
    """The dictionary of an autoencoder, each atom of unit norm.

    Row j is what unit j adds to x; in the papers' notation it is column j of the decoder's matrix.
    A decoder of anything but one dense layer is a ValueError.

    Args:
      params: of an autoencoder.
    Returns:
      The atoms, `[latent, size]`.
    """
    (kernel,) = _dense("atoms", params, "decoder").values()
    # An atom of zeros stays one, with a finite gradient.
    return kernel * lax.rsqrt(jnp.sum(kernel**2, axis=1, keepdims=True) + 1e-24)


def transposed(params: Params) -> Params:
    """The parameters with the transpose of the dictionary for the encoder's kernel: a better start.

    `W = atoms(params)^T`.

    This is done once; the two are free afterwards (`model.tied` holds them together). At the start
    a unit is then active where its own atom is, so that far fewer die.

    Args:
      params: of an autoencoder with an encoder and a decoder of one dense layer each.
    Returns:
      The parameters, of the same structure.
    Raises:
      ValueError: where a part has other layers, or the two have not each other's shapes.
    References:
      Gao et al., 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093.
    """
    (path, kernel) = next(iter(_dense("transposed", params, "encoder").items()))
    dictionary = atoms(params)
    if kernel.shape != dictionary.shape[::-1]:
        raise _not_mirrored("transposed", kernel, dictionary)
    encoder = flatten_dict(params["encoder"]) | {path: dictionary.T}
    return {**params, "encoder": unflatten_dict(encoder)}


def revive(
    model: Model,
    optimizer: optax.GradientTransformation,
    data: Any,
    *,
    examples: int = 4096,
    share: float = 0.0,
    scale: float = 1.0,
    keep: Callable[[Array], Array] | None = None,
    transform: Transform | None = None,
) -> Callable[[TrainState], TrainState]:
    """A hook that gives units which never fire a new start at what is reconstructed badly.

    A unit that is active in at most `share` of `examples` random examples is dead. Each dead unit
    gets an example of its own, drawn with probability proportional to `|x - r(x)|^4`. With the
    residual `u = (x - r(x)) / |x - r(x)|` of that example,

    - its atom becomes u;
    - its column in the encoder becomes u, times `scale`, times the mean norm of the columns that
      are alive (of all columns, if none is);
    - its bias becomes 0;
    - the optimizer's moments of all these become 0.

    New units must not spoil what the others do. On x with a large mean, all residuals have much in
    common: such units would all be alike and fire for every example. So the error over the examples
    is computed again. Where it is more than 1.5 times the error before, the units start from what
    differs between the examples, with `m` the mean of x and `v` the mean of the residuals:
    `u = (x - r(x) - v) / |x - r(x) - v|`, and the bias is `-w m`, w the column in the encoder. The
    columns get half the norm until the error is no more than that.

    Examples of weight 0 are not looked at. In an example whose code or residual is not finite no
    unit counts as active. No unit starts at such an example, nor at one without a residual. The
    hook is compiled and cannot report them; `fit` and `firing` do. Units for which no example is
    left stay as they are.

    The hook is pure: a function of the state's key and step. It raises ValueError for other models,
    for fewer examples that count than units, and for the state of another optimizer.

    Args:
      model: an autoencoder with an encoder and a decoder of one dense layer each.
      optimizer: the one that made the state.
      data: a Batch or the x of one, as in `train.fit`. All of it is put on the device, so give some
        rows of data that is streamed.
      examples: how many are looked at; at most those that count.
      share: a unit active in at most this share of them is dead, in [0, 1).
      scale: the norm of a new column, in mean norms of those alive.
      keep: what the loss does to the codes `[batch, latent]` of a batch before they are decoded,
        `partial(largest, k=k)` for `batch_top_k`; by default nothing.
      transform: of stored data, as in `train.fit`; by default none.
    Returns:
      `TrainState -> TrainState`, for `fit(hook=...)` or between chunks of `make_scan`.
    Raises:
      ValueError: for a share outside [0, 1), a scale that is not positive, and no example.
    References:
      Bricken et al., 2023, Towards monosemanticity, transformer-circuits.pub (neuron resampling;
      they take x for the residual and 0.2 for the scale, which a top-k code would never choose
      again).
    """
    if concrete(share) and not 0 <= float(share) < 1:
        raise wrong("revive: share", share, "a share in [0, 1)", "5 of 100 examples are 0.05")
    if concrete(scale) and not float(scale) > 0:
        raise wrong("revive: scale", scale, "above 0", "1 gives the mean norm of the columns")
    batch = as_batch(data)._replace(y=())
    counted = size_of(batch.x)
    if not isinstance(batch.weight, tuple) and concrete(batch.weight):
        counted = int(np.sum(np.asarray(batch.weight) > 0))
    examples = min(examples, counted)
    at_least_one("revive", examples=examples)
    on_device = jax.tree.map(jnp.asarray, batch)

    def hook(state: TrainState) -> TrainState:
        return _revived(model, optimizer, transform, keep, examples, share, scale, state, on_device)

    return hook


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _revived(
    model: Model,
    optimizer: optax.GradientTransformation,
    transform: Transform | None,
    keep: Callable[[Array], Array] | None,
    examples: int,
    share: float,
    scale: float,
    state: TrainState,
    data: Batch,
) -> TrainState:
    _check_revivable(optimizer, state, examples)
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REVIVE), state.step)
    chosen_key, transform_key, start_key = jax.random.split(key, 3)
    rows = _rows(chosen_key, data, examples)

    def seen(i: Array) -> tuple[Any, Any]:
        return example_at(transform_key, transform, rows[i], data.x, data.c)[:2]

    x, c = over_data(seen, examples, 500)
    coded = partial(_coded, deterministic(model), keep, x=x, c=c)
    active, residual = coded(state.params)
    counted = weights_of(size_of(data.x), data.weight)[rows] > 0
    rate = jnp.sum(active & counted[:, None], axis=0) / jnp.maximum(jnp.sum(counted), 1)
    dead = rate <= share
    noise = jax.random.gumbel(start_key, (examples,), residual.dtype)
    usable = counted & jnp.all(jnp.isfinite(residual), axis=1)
    most = _MOST * _error(residual, usable)

    def start(attempt: Array) -> tuple[Params, Params]:
        """The parameters and which are new, at the given attempt to start the units."""
        mean, mean_residual = (
            jnp.where(attempt > 0, _mean(part, usable), 0)
            for part in (x.reshape(examples, -1), residual)
        )
        given, u = _starts(noise, dead, residual - mean_residual[None], usable)
        norm = scale * 0.5 ** jnp.maximum(attempt - 1, 0)
        return _restarted(state.params, dead, given, u, mean, norm)

    def costs(attempt: Array) -> Array:
        return (_error(coded(start(attempt)[0])[1], usable) > most) & (attempt < _ATTEMPTS)

    params, fresh = start(lax.while_loop(costs, lambda attempt: attempt + 1, jnp.asarray(0)))
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda moment, new: jnp.where(new, 0, moment), state.opt_state, fresh
    )
    return state._replace(params=params, opt_state=opt_state)


_REVIVE = 0x72657669  # "revi": apart from the streams of `train`
_MOST = 1.5  # how many times the error before the error after may be
_ATTEMPTS = 20  # the last of which gives columns of a millionth of the norm


def _check_revivable(
    optimizer: optax.GradientTransformation, state: TrainState, examples: int
) -> None:
    (w,) = _dense("revive", state.params, "encoder").values()
    (v,) = _dense("revive", state.params, "decoder").values()
    if w.shape != v.shape[::-1]:
        raise _not_mirrored("revive", w, v)
    if examples < len(v):
        fix = "give more of a weight above 0, so that no two units start alike"
        raise wrong("revive: examples", examples, f"at least {len(v)}, the units", fix)
    made: Any = jax.tree.structure(jax.eval_shape(optimizer.init, state.params))
    if made != jax.tree.structure(state.opt_state):
        got, fix = "one of another kind", "pass revive the optimizer that fit or make_step has"
        raise wrong("revive: optimizer", got, "the one that made state.opt_state", fix)


def _rows(key: Key, data: Batch, examples: int) -> Array:
    """Different rows of the data, those of weight 0 last: `[examples]`."""
    size = size_of(data.x)
    if isinstance(data.weight, tuple):
        return jax.random.choice(key, size, (examples,), replace=False)
    return lax.top_k(jnp.where(data.weight > 0, jax.random.uniform(key, (size,)), -1), examples)[1]


def _error(residual: Array, usable: Array) -> Array:
    """The squared error of the usable examples; without them it would be NaN."""
    return jnp.sum(jnp.where(usable[:, None], _wide(residual), 0) ** 2)


def _mean(x: Array, usable: Array) -> Array:
    """The mean of the usable examples `[n, size]`, 0 where there is none."""
    total = jnp.sum(jnp.where(usable[:, None], _wide(x), 0), axis=0)
    return total / jnp.maximum(jnp.sum(usable), 1)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _coded(
    model: Model,
    keep: Callable[[Array], Array] | None,
    params: Params,
    *,
    x: Array,
    c: Any,
) -> tuple[Array, Array]:
    """Which units are active in the examples, `[examples, latent]`, and the residuals, flat."""
    examples = len(x)

    def seen(i: Array) -> tuple[Array, Any]:
        return x[i], jax.tree.map(lambda leaf: leaf[i], c)

    z = over_data(lambda i: model.encode(params, *seen(i)).mean, examples, 500)
    flat = z.reshape(examples, -1)
    finite = jnp.all(jnp.isfinite(flat), axis=1, keepdims=True)
    # What is not finite would take the places of others in the batch; NaN is put back below.
    kept = flat if keep is None else keep(jnp.where(finite, flat, 0))
    decoded = jnp.where(finite, kept, jnp.nan).reshape(z.shape)

    def residual(i: Array) -> Array:
        one, condition = seen(i)
        return jnp.ravel(one - model.decode(params, decoded[i], condition).mean)

    return finite & (kept != 0), over_data(residual, examples, 500)


def _starts(noise: Array, dead: Array, residual: Array, counted: Array) -> tuple[Array, Array]:
    """Which units start anew, `[latent]`, and where: residuals of unit norm, `[latent, size]`."""
    log_error = jnp.log(jnp.sum(residual**2, axis=1))
    usable = counted & jnp.isfinite(log_error)
    # The largest of log p + Gumbel noise: draws without replacement, p proportional to error^2.
    _, drawn = lax.top_k(jnp.where(usable, 2 * log_error + noise, -jnp.inf), len(dead))
    own = drawn[jnp.cumsum(dead) - 1]  # in the order drawn, for the dead in theirs
    return dead & usable[own], residual[own] * jnp.exp(-0.5 * log_error[own])[:, None]


def _restarted(
    params: Params, dead: Array, given: Array, u: Array, mean: Array, scale: Any
) -> tuple[Params, Params]:
    """The parameters with atoms, columns and biases of some units new; and which entries are."""
    ((w_path, w),) = _dense("revive", params, "encoder").items()
    ((v_path, _),) = _dense("revive", params, "decoder").items()
    alive = ~dead | jnp.all(dead)
    norm = scale * jnp.sum(jnp.linalg.norm(w, axis=0) * alive) / jnp.sum(alive)
    old = flatten_dict(params)
    new = {
        ("encoder", *w_path): (given[None, :], norm * u.T),
        ("decoder", *v_path): (given[:, None], u),
    }
    bias = ("encoder", *w_path[:-1], "bias")
    if bias in old:
        new[bias] = (given, -norm * jnp.sum(u * mean[None], axis=1))
    fresh = {path: new[path][0] if path in new else False for path in old}
    values = {
        path: jnp.where(at, value.astype(old[path].dtype), old[path])
        for path, (at, value) in new.items()
    }
    return unflatten_dict(old | values), unflatten_dict(fresh)


def _dense(function: str, params: Params, part: str) -> dict[tuple[str, ...], Array]:
    """The path and the kernel of the one dense layer in a part of the parameters."""
    if not (isinstance(params, Mapping) and part in params):
        expected = "those of one autoencoder, {'encoder': ..., 'decoder': ...}"
        fix = "pass params[i] for level i of a stack"
        raise wrong(f"{function}: params", f"a {type(params).__name__}", expected, fix)
    found = kernels(params[part])
    if len(found) != 1 or any(kernel is None for kernel in found.values()):
        shapes = [None if k is None else k.shape for k in found.values()]
        fix = f"use a head alone for the {part}, such as heads.FixedNormal or heads.Code"
        raise wrong(f"{function}: the {part}", f"kernels {shapes}", "one dense layer", fix)
    return found


def _not_mirrored(function: str, encoder: Array, decoder: Array) -> Exception:
    got = f"kernels {encoder.shape} and {decoder.shape}"
    fix = "use an encoder and a decoder of one dense layer each, with no condition"
    return wrong(f"{function}: params", got, "each other's mirror", fix)


def _with_atoms(params: Params) -> Params:
    (path,) = _dense("unit_columns", params, "decoder")
    decoder = flatten_dict(params["decoder"]) | {path: atoms(params)}
    return {**params, "decoder": unflatten_dict(decoder)}


__all__ = ["atoms", "revive", "transposed", "unit_columns"]
