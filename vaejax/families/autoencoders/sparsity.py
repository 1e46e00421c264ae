"""Sparsity: penalties on the codes of a batch, dictionaries of unit norm, units that never fire.

Penalties, `penalty(z [batch, latent], weight=()) -> ()`, for `autoencoders.sparse`:

| penalty | Omega(z) |
| --- | --- |
| `l1` | mean over the batch of `sum_j abs(z_j)` |
| `kl(rho)` | `sum_j KL(Bernoulli(rho) || Bernoulli(mean of z_j))`, codes in (0, 1) |
| `squared(rho)` | `sum_j (mean of z_j - rho)^2` |

The means are of each unit over the batch, so the last two say nothing about one example alone.
Codes of exactly k active units are `heads.TopK`; `autoencoders.batch_top_k` has k in the mean.

A dictionary is the kernel of a decoder of one dense layer: unit j's atom is what the decoder adds
to x for each unit of z_j.
"""

import numbers
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from vaejax.batch import as_batch, batch_mean, example_at, over_data, size_of
from vaejax.distributions import Delta
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.evaluate import check_counted, checked_batch
from vaejax.model import Model, deterministic
from vaejax.networks import kernels
from vaejax.train import TrainState
from vaejax.types import Array, Batch, Key, Params, Transform

Penalty = Callable[..., Array]


def l1(z: Array, weight: Any = ()) -> Array:
    """The mean over the batch of `||z||_1 = sum_j |z_j|`, in the units of z, `()`.

    Under `lambda = weight` of `autoencoders.sparse` it is the prior of the code read as a density:
    for n independent Laplace units `-log p(z) = lambda ||z||_1 - n log(lambda / 2)` nats, the last
    part constant in z, so that D + lambda ||z||_1 is -log p(x, z) at the code, up to that.
    The decoder's atoms need a fixed norm (`unit_columns`): else small codes and large atoms satisfy
    the penalty, and nothing is sparse.
    `z`: codes `[batch, latent]`; `weight`: of the examples, `[batch]` or `()`.
    Olshausen and Field, 1996, Nature 381.
    """
    return batch_mean(jnp.sum(jnp.abs(z), axis=1), weight)


def kl(rho: float) -> Penalty:
    """The penalty that pulls the mean activation of sigmoid codes to rho, in nats.

    `Omega = sum_j rho log(rho / m_j) + (1 - rho) log((1 - rho) / (1 - m_j))`, m_j the mean of unit
    j over the batch: KL(Bernoulli(rho) || Bernoulli(m_j)).

    m_j is squeezed into [eps, 1 - eps] by `eps + (1 - 2 eps) m_j`, eps of the float type (1.2e-7):
    a unit that is dead or stuck has a large finite gradient, and the one that mends it, where a
    clipped mean would have none. Means and divergence of bfloat16 codes are computed in float32;
    what rounding takes below zero counts as zero. A mean outside [0, 1], which ReLU codes have,
    gives NaN: use `squared` for them.
    Raises ValueError for rho outside (0, 1); a rho that is traced, as under vmap, is not checked.
    Ng, 2011, Sparse autoencoder, CS294A lecture notes.
    """
    _check_rho("kl", rho)

    def penalty(z: Array, weight: Any = ()) -> Array:
        m = _unit_means(z, weight)
        eps = float(jnp.finfo(m.dtype).eps)
        m = eps + (1 - 2 * eps) * m
        divergence = rho * jnp.log(rho / m) + (1 - rho) * jnp.log((1 - rho) / (1 - m))
        below = lax.stop_gradient(jnp.minimum(divergence, 0))  # rounding; the gradient is right
        return jnp.sum(divergence - below)

    return penalty


def squared(rho: float) -> Penalty:
    """The penalty `Omega = sum_j (m_j - rho)^2`, m_j the mean of unit j over the batch: any codes.

    In the units of z squared. ReLU codes have it in place of `kl`, since their means may pass 1;
    rho is asked to be inside (0, 1) for them too: their scale is free, the decoder's undoes it.
    Raises ValueError for rho outside (0, 1); a rho that is traced, as under vmap, is not checked.
    """
    _check_rho("squared", rho)

    def penalty(z: Array, weight: Any = ()) -> Array:
        return jnp.sum((_unit_means(z, weight) - rho) ** 2)

    return penalty


def largest(z: Array, k: int, weight: Any = ()) -> Array:
    """The codes with the `k batch` largest entries of the whole batch kept, the others zero.

    `z`: `[batch, latent]`; of examples with a weight of 0 nothing is kept, and they do not count as
    part of the batch. Of equal entries the first ones are kept. Returns `[batch, latent]`.
    Raises TypeError for a k that is not whole, and ValueError unless 1 <= k <= latent.
    """
    batch, latent = z.shape
    if not isinstance(k, numbers.Integral):
        raise wrong("batch_top_k: k", repr(k), "a whole number", "pass an int", TypeError)
    if not 1 <= k <= latent:
        raise wrong("batch_top_k: k", k, f"1 to {latent}, the code's size", "lower k")
    counted = _weights(batch, weight) > 0
    flat = jnp.where(counted[:, None], z, -jnp.inf).ravel()
    _, kept = lax.top_k(flat, batch * k)
    inside = jnp.arange(batch * k) < k * jnp.sum(counted)
    mask = jnp.zeros(flat.shape, bool).at[kept].set(inside)
    return jnp.where(mask.reshape(z.shape), z, 0)


def smallest_active(z: Array) -> Array:
    """The smallest entry of z that is above zero, `()`; infinity where none is."""
    return jnp.min(jnp.where(z > 0, z, jnp.inf))


def threshold(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    k: int,
    batch_size: int = 500,
    transform: Transform | None = None,
) -> float:
    """The activation above which a model trained with `batch_top_k` keeps a unit at inference.

    `theta = mean over batches of min{z_ij kept, z_ij > 0}`: with it each example is coded alone,
    k of its units active in the mean over the data, see `thresholded`.

    `data`: a Batch or the x of one, `[n, ...]`, in a random order; batches of `batch_size` as in
    training, what is left over unused. Examples of weight 0 are no part of their batch, and batches
    of them alone do not count. `transform`: as in `evaluate.elbo_terms`. Returns theta > 0, in the
    units of z. Raises ValueError for k outside the code's size, where nothing is active, where no
    example has a weight, and where a code is not finite, with the example's index.
    Bussmann, Leask and Nanda, 2024, arXiv:2412.06410.
    """
    batch = as_batch(data)
    batch_size = min(batch_size, size_of(batch.x))
    at_least_one("threshold", batch_size=batch_size)
    smallest, totals = _smallest(model, transform, batch_size, k, params, key, batch)
    weight = np.asarray(_weights(size_of(batch.x), batch.weight))[: len(totals)]
    _check_some("threshold", weight)
    check_counted("threshold", _TOTAL, totals, batch.x, weight)
    theta = float(np.mean(smallest[(weight > 0).reshape(-1, batch_size).any(axis=1)]))
    if not np.isfinite(theta):
        fix = "train it with batch_top_k first, or end the encoder with heads.Code(n, nn.relu)"
        raise wrong("threshold: the codes", "a batch with none above zero", "active units", fix)
    return theta


def thresholded(model: Model, theta: float) -> Model:
    """The model whose code keeps the entries above theta: z_j where z_j > theta, else 0.

    `theta`: a number or one per unit `[latent]`, for instance from `threshold`. Examples are coded
    each by itself. Bussmann, Leask and Nanda, 2024, arXiv:2412.06410.
    """

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Delta:
        z = model.encode(params, x, c, key=key).mean
        return Delta(jnp.where(z > theta, z, 0))

    return model._replace(encode=encode)


def unit_columns(model: Model) -> Model:
    """The same autoencoder with a dictionary of unit norm: each unit's atom is divided by its norm.

    `decode` computes with `atoms(params)`, so that any optimizer works, its steps along the atom
    change nothing, and no projection has to follow the update. For decoders of one dense layer.
    Raises ValueError at `init` and `decode` for any other.
    """

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        return _with_atoms(model.init(key, x, c))

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(_with_atoms(params), z, c, key=key)

    return model._replace(init=init, decode=decode)


def atoms(params: Params) -> Array:
    """The dictionary, each atom of unit norm: `[latent, size]`, from an autoencoder's parameters.

    Row j is what unit j adds to x, the column j of the decoder's matrix in the papers' notation.
    Raises ValueError unless the decoder has one dense layer.
    """
    (kernel,) = _dense("atoms", params, "decoder").values()
    # An atom of zeros stays one, with a finite gradient.
    return kernel * lax.rsqrt(jnp.sum(kernel**2, axis=1, keepdims=True) + 1e-24)


def transposed(params: Params) -> Params:
    """The parameters with the transpose of the dictionary for the encoder's kernel: a better start.

    `W = atoms(params)^T`, once; the two are free afterwards (`model.tied` holds them together). A
    unit is then active where its own atom is, so that far fewer die. For encoders and decoders of
    one dense layer each; raises ValueError for others.
    Gao et al., 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093.
    """
    (path, kernel) = next(iter(_dense("transposed", params, "encoder").items()))
    dictionary = atoms(params)
    if kernel.shape != dictionary.shape[::-1]:
        raise _not_mirrored("transposed", kernel, dictionary)
    encoder = flatten_dict(params["encoder"]) | {path: dictionary.T}
    return {**params, "encoder": unflatten_dict(encoder)}


def firing(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """The share of examples in which each unit is active, z_j != 0: `[latent]`, between 0 and 1.

    A unit with a share of 0 is dead. `data`: a Batch (whose weights count) or the x of one,
    `[n, ...]`; `transform`: as in `evaluate.elbo_terms`; `key` serves it alone. Memory is that of
    `batch_size` examples beside the data. Raises ValueError where a code is not finite, with the
    example's index, unless its weight is 0; and where no example has a weight.
    """
    batch = checked_batch("firing", key, data, batch_size=batch_size)
    weight = np.asarray(_weights(size_of(batch.x), batch.weight))
    _check_some("firing", weight)
    share, totals = _firing(model, transform, batch_size, params, key, batch)
    check_counted("firing", _TOTAL, totals, batch.x, weight)
    return np.asarray(share)


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

    A unit active in at most `share` of `examples` random examples is dead. Each gets an example of
    its own, drawn with probability proportional to `|x - r(x)|^4`, and with residual
    `u = (x - r(x)) / |x - r(x)|`: its atom becomes u, its encoder's column `scale` times the mean
    norm of the columns alive (of all, if none is) times u, its bias 0, and the optimizer's moments
    of all these 0.

    Examples of weight 0 are not looked at. In one whose code or residual is not finite no unit
    counts as active, and no unit starts at it, nor at one without a residual: the hook is compiled
    and cannot report them, `fit` and `firing` do. Units for which none is left stay as they are.

    `model`: an encoder and a decoder of one dense layer each; `optimizer`: the one that made the
    state; `keep`: what the loss does to the codes `[batch, latent]` of a batch before they are
    decoded, `partial(largest, k=k)` for `batch_top_k`; `data`, `transform`: as in `train.fit`, and
    of data that is streamed some rows, since all are put on the device. Returns `TrainState ->
    TrainState`, pure and a function of the state's key and step, for `fit(hook=...)` or between
    chunks of `make_scan`. Raises ValueError for other models, for fewer examples that count than
    units, for share outside [0, 1) or scale <= 0, and for the state of another optimizer.
    Bricken et al., 2023, Towards monosemanticity, transformer-circuits.pub (neuron resampling; they
    take x for the residual and 0.2 for the scale, which a top-k code would never choose again).
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
    optimizer: Any,
    transform: Any,
    keep: Any,
    examples: int,
    share: Any,
    scale: Any,
    state: TrainState,
    data: Batch,
) -> TrainState:
    _check_revivable(optimizer, state, examples)
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REVIVE), state.step)
    chosen_key, transform_key, start_key = jax.random.split(key, 3)
    rows = _rows(chosen_key, data, examples)

    def seen(i: Array) -> tuple[Any, Any]:
        return example_at(transform_key, transform, rows[i], data.x, data.c)[:2]

    active, residual = _coded(deterministic(model), keep, state.params, seen, examples)
    counted = _weights(size_of(data.x), data.weight)[rows] > 0
    rate = jnp.sum(active & counted[:, None], axis=0) / jnp.maximum(jnp.sum(counted), 1)
    dead = rate <= share
    given, u = _starts(start_key, dead, residual, counted)
    params, fresh = _restarted(state.params, dead, given, u, scale)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda moment, new: jnp.where(new, 0, moment), state.opt_state, fresh
    )
    return state._replace(params=params, opt_state=opt_state)


_REVIVE = 0x72657669  # "revi": apart from the streams of `train`


def _check_revivable(optimizer: Any, state: TrainState, examples: int) -> None:
    (w,), (v,) = (_dense("revive", state.params, p).values() for p in ("encoder", "decoder"))
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


def _coded(
    model: Model, keep: Any, params: Params, seen: Callable[[Array], tuple[Any, Any]], examples: int
) -> tuple[Array, Array]:
    """Which units are active in the examples, `[examples, latent]`, and the residuals, flat."""
    z = over_data(lambda i: model.encode(params, *seen(i)).mean, examples, 500)
    flat = z.reshape(examples, -1)
    finite = jnp.all(jnp.isfinite(flat), axis=1, keepdims=True)
    # What is not finite would take the places of others in the batch; NaN is put back below.
    kept = flat if keep is None else keep(jnp.where(finite, flat, 0))
    decoded = jnp.where(finite, kept, jnp.nan).reshape(z.shape)

    def residual(i: Array) -> Array:
        x, c = seen(i)
        return jnp.ravel(x - model.decode(params, decoded[i], c).mean)

    return finite & (kept != 0), over_data(residual, examples, 500)


def _starts(key: Key, dead: Array, residual: Array, counted: Array) -> tuple[Array, Array]:
    """Which units start anew, `[latent]`, and where: residuals of unit norm, `[latent, size]`."""
    log_error = jnp.log(jnp.sum(residual**2, axis=1))
    usable = counted & jnp.isfinite(log_error)
    # The largest of log p + Gumbel noise: draws without replacement, p proportional to error^2.
    noise = jax.random.gumbel(key, log_error.shape)
    _, drawn = lax.top_k(jnp.where(usable, 2 * log_error + noise, -jnp.inf), len(dead))
    own = drawn[jnp.cumsum(dead) - 1]  # in the order drawn, for the dead in theirs
    return dead & usable[own], residual[own] * jnp.exp(-0.5 * log_error[own])[:, None]


def _restarted(
    params: Params, dead: Array, given: Array, u: Array, scale: Any
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
        new[bias] = (given, jnp.zeros_like(old[bias]))
    fresh = {path: new[path][0] if path in new else False for path in old}
    values = {path: jnp.where(at, value, old[path]) for path, (at, value) in new.items()}
    return unflatten_dict(old | values), unflatten_dict(fresh)


_TOTAL = "the sum of the code"


@partial(jax.jit, static_argnums=(0, 1, 2))
def _firing(
    model: Model, transform: Any, batch_size: int, params: Params, key: Key, batch: Batch
) -> tuple[Array, Array]:
    """The share of each unit, `[latent]`, and the sum of each example's code, `[n]`."""
    code, size = _code(model, transform, params, key, batch), size_of(batch.x)
    width = min(batch_size, size)
    weight = _weights(size, batch.weight)

    def chunk(start: Array) -> tuple[Array, Array]:
        at = start + jnp.arange(width)
        inside = jnp.where(at < size, weight[jnp.minimum(at, size - 1)], 0)
        z = jax.vmap(code)(jnp.minimum(at, size - 1))
        return inside @ (z != 0), jnp.sum(z, axis=1)

    def add(total: Array, start: Array) -> tuple[Array, Array]:
        fired, sums = chunk(start)
        return total + fired, sums

    starts = jnp.arange(0, size, width)
    fired = jax.eval_shape(chunk, starts[0])[0]
    total, sums = lax.scan(add, jnp.zeros(fired.shape, fired.dtype), starts)
    return total / jnp.sum(weight), sums.ravel()[:size]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _smallest(
    model: Model, transform: Any, batch_size: int, k: int, params: Params, key: Key, batch: Batch
) -> tuple[Array, Array]:
    """The smallest activation kept in each batch, and the sum of each of their examples' codes."""
    code, batches = _code(model, transform, params, key, batch), size_of(batch.x) // batch_size
    weight = _weights(size_of(batch.x), batch.weight)

    def one(start: Array) -> tuple[Array, Array]:
        at = start + jnp.arange(batch_size)
        z = jax.vmap(code)(at)
        return smallest_active(largest(z, k, weight[at])), jnp.sum(z, axis=1)

    smallest, sums = lax.map(one, batch_size * jnp.arange(batches))
    return smallest, sums.ravel()


def _code(
    model: Model, transform: Any, params: Params, key: Key, batch: Batch
) -> Callable[[Array], Array]:
    """The code of the example at an index, flat, layer noise off."""
    quiet = deterministic(model)

    def code(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return jnp.ravel(quiet.encode(params, x, c).mean)

    return code


def _weights(size: int, weight: Any) -> Array:
    return jnp.ones(size) if isinstance(weight, tuple) else jnp.asarray(weight)


def _check_some(function: str, weight: np.ndarray) -> None:
    if not np.any(weight > 0):
        fix = "give at least one example a weight"
        raise wrong(f"{function}: data.weight", "no weight above 0", "a positive sum", fix)


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


def _unit_means(z: Array, weight: Any) -> Array:
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return jax.vmap(lambda unit: batch_mean(unit, weight), in_axes=1)(z)


def _check_rho(function: str, rho: float) -> None:
    if concrete(rho) and not 0 < float(rho) < 1:
        fix = "0.05 makes a unit active in a twentieth of the examples"
        raise wrong(f"{function}: rho", rho, "a mean activation inside (0, 1)", fix)


__all__ = [
    "atoms",
    "firing",
    "kl",
    "l1",
    "largest",
    "revive",
    "smallest_active",
    "squared",
    "threshold",
    "thresholded",
    "transposed",
    "unit_columns",
]
