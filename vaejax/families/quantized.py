"""Vector-quantised autoencoders: a code is a map of indices into a learned codebook.

    model = quantize(autoencoder(encoder, decoder), entries=64)  # encoder: a Delta over [..., size]
    params = from_data(model, model.init(key, x[0]), key, x)  # the codebook: encodings of examples
    optimizer = optax.partition(
        {"model": optax.adam(1e-3), "codebook": optax.sgd(1 - 0.99)},  # moving averages, decay 0.99
        {"model": "model", "codebook": "codebook"},
    )
    fitted = train.fit(vq_vae(model), optimizer, params, x, key=key, epochs=10)

    prior = autoregressive.Causal(net, shape=(7, 7), dtype=jnp.int32)  # over the maps of indices
    objectives.maximum_likelihood(prior)  # the second stage, trained on indices(model, params, ...)
    full = with_prior(model, prior)  # generates; -log p(x) <= rate + distortion

The codebook is a parameter like any other, `params["codebook"]` `[entries, size]`; whoever trains
it by something else than `moving_average` gives it another optimizer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vaejax.batch import as_batch, batch_mean, example_at, over_batch, over_data, present, size_of
from vaejax.distributions import Delta, Distribution, distribution
from vaejax.errors import at_least_one, concrete, wrong
from vaejax.evaluate import checked_batch, measure_each
from vaejax.model import Model, deterministic, draw, terms
from vaejax.train import TrainState
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params, Transform


@distribution
class VectorQuantized(Delta):
    """A Delta at the codebook's nearest entries: value[...] = e_k, k = argmin_j |z_e[...] - e_j|^2.

    `value` `[..., size]`: those entries, exactly; its gradient is that of the encoder's output
    (straight through), and none for the codebook; `index` `[...]`: k, int32, the first of equals;
    `features` `[..., size]`: z_e, the encoder's output.
    """

    value: Any
    index: Any
    features: Any
    needs_float32 = True  # entries are compared exactly

    @classmethod
    def nearest(cls, features: Array, codebook: Array) -> "VectorQuantized":
        """z_e `[..., size]` quantised by a codebook `[entries, size]`."""
        # |z - e|^2 less |z|^2, in full precision: devices with faster products would choose others.
        product = jnp.matmul(features, codebook.T, precision=lax.Precision.HIGHEST)
        lengths = jnp.sum(codebook**2, axis=1).reshape((1,) * (features.ndim - 1) + (-1,))
        index = jnp.argmin(lax.stop_gradient(lengths - 2 * product), axis=-1).astype(jnp.int32)
        entry = lax.stop_gradient(codebook)[index]
        return cls(entry + (features - lax.stop_gradient(features)), index, features)

    @property
    def event_shape(self):
        return np.shape(self.value)


@distribution
class Entries(Distribution):
    """A distribution of codebook entries, whose indices follow `indices`: p(e_k) = p(k).

    `indices`: a discrete Distribution over integers `[...]` below `entries`; `codebook`
    `[entries, size]`. The event is `[..., size]`; log p is -inf for what is no entry. An index
    beyond the codebook gives NaN. No gradient reaches the codebook.
    """

    indices: Any
    codebook: Any
    discrete = True

    def sample(self, key):
        return self._at(self.indices.sample(key))

    def log_prob(self, x):
        if np.shape(x) != self.event_shape:
            fix = "map a batch: jax.vmap"
            raise wrong("Entries.log_prob: x", np.shape(x), self.event_shape, fix)
        x, codebook = lax.stop_gradient((jnp.asarray(x), self.codebook))

        # Not the nearest by |e|^2 - 2 x . e, whose digits do not tell close entries apart. One axis
        # of them after the other, or all of [..., entries, size] would be held.
        def agrees(same: Array, axis: tuple[Array, Array]) -> tuple[Array, None]:
            values, entries = axis
            return same & jax.vmap(lambda e: values == e, out_axes=-1)(entries), None

        start = jnp.ones((*x.shape[:-1], len(codebook)), bool)
        same, _ = lax.scan(agrees, start, (jnp.moveaxis(x, -1, 0), codebook.T))
        log_p = self.indices.log_prob(jnp.argmax(same, axis=-1).astype(jnp.int32))
        return jnp.where(jnp.all(jnp.any(same, axis=-1)), log_p, -jnp.inf)

    def _at(self, index: Array) -> Array:
        return lax.stop_gradient(jnp.take(self.codebook, index, axis=0, mode="fill"))

    @property
    def event_shape(self):
        return (*self.indices.event_shape, np.shape(self.codebook)[-1])


def quantize(model: Model, *, entries: int) -> Model:
    """A deterministic autoencoder whose code is replaced by the nearest entries of a codebook.

    q(z|x) is a `VectorQuantized` point. The last axis of the encoder's code is an entry's; the
    axes before it, such as a map's height and width, are quantised each on its own.

    `model`: one whose encoder returns a `Delta` over `[..., size]`, for instance by `heads.Code`;
    `entries`: of the codebook. `params` is `{"model": ..., "codebook": [entries, size]}`, the
    codebook drawn from U(-1/entries, 1/entries): see `from_data` for a better start. There is no
    prior: `with_prior`. Raises ValueError for entries < 2, and for a codebook of another size than
    the code's; TypeError for an encoder that returns a density.
    Van den Oord, Vinyals and Kavukcuoglu, 2017, Neural discrete representation learning,
    arXiv:1711.00937.
    """
    if entries < 2:
        raise wrong("quantize: entries", entries, "2 or more", "one entry can say nothing")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, codebook_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        q = jax.eval_shape(lambda: model.encode(params, x, c))
        size = _check_point(q).event_shape[-1]
        width = 1 / entries
        codebook = jax.random.uniform(codebook_key, (entries, size), minval=-width, maxval=width)
        return {"model": params, "codebook": codebook}

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        features = _check_point(model.encode(params["model"], x, c, key=key)).value
        codebook = params["codebook"]
        if codebook.shape != (entries, features.shape[-1]):
            fix = "pass what this model's own init made; the size is that of the encoder's head"
            expected = (entries, features.shape[-1])
            raise wrong("quantize: params['codebook']", codebook.shape, expected, fix)
        return VectorQuantized.nearest(features, codebook)

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        return model.decode(params["model"], z, c, key=key)

    return Model(jax.jit(init), lambda params, c=(): None, encode, decode)


def vq_vae(
    model: Model,
    *,
    beta: float = 0.25,
    learn: Callable[[Array, Array, Array, Array], Array] | None = None,
    draw: Callable[..., Any] = draw,
) -> Loss:
    """The VQ-VAE's loss, averaged over the batch: distortion, commitment, and the codebook's term.

    `L = -log p(x|z_q) + beta |z_e - sg(e)|^2 + learn`, sg: no gradient. Everything is summed over
    the event: the distortion in nats, |z_e - e|^2 in squared units of the code, so that beta is in
    nats per squared unit. The gradient of the distortion passes straight from z_q to z_e. None of
    the three depends on how many examples the batch holds.

    `model`: from `quantize`; `beta`: weight of the commitment; `learn`: the codebook's term,
    `(codebook, features [batch, n, size], index [batch, n], weight [batch]) -> ()` for examples of
    n codes each: `moving_average` by default, or `codebook_loss`; `draw`: how a Draw is made.
    The metrics are `distortion`, `commitment` (|z_e - e|^2), `codebook` (that term), and
    `perplexity`, of the use of the entries in the batch. Raises TypeError for other models.
    Van den Oord et al., 2017, arXiv:1711.00937.
    """
    learn = moving_average if learn is None else learn

    def example(params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array, Array, Array]:
        d = draw(model, params, key, x, c)
        if not isinstance(d.q, VectorQuantized):
            fix = "make it by quantize(model, entries=...)"
            raise wrong("vq_vae: q(z|x)", type(d.q).__name__, "VectorQuantized", fix, TypeError)
        apart = jnp.sum((d.q.features - lax.stop_gradient(d.q.value)) ** 2)
        return terms.distortion(d), apart, d.q.features, d.q.index

    def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        D, apart, features, index = over_batch(example, params, key, batch)
        D, commitment = batch_mean((D, apart), batch.weight)
        codebook = params["codebook"]
        index = index.reshape(len(index), -1)
        features = lax.stop_gradient(features).reshape(*index.shape, -1)
        weight = jnp.ones(len(index)) if isinstance(batch.weight, tuple) else batch.weight
        term = learn(codebook, features, index, weight)
        used = jnp.zeros(len(codebook)).at[index].add(weight[:, None])
        measured = {"distortion": D, "commitment": commitment, "codebook": term}
        return D + beta * commitment + term, {**measured, "perplexity": perplexity(used)}

    return loss


def moving_average(codebook: Array, features: Array, index: Array, weight: Array) -> Array:
    """A loss by which SGD with rate 1 - gamma makes each entry a moving average of its codes.

    `1/2 sum_k |e_k - sg(m_k)|^2`, m_k the mean of the codes that chose entry k, over the entries
    that any chose: its gradient for e_k is e_k - m_k, so that a step of plain SGD is
    `e_k <- gamma e_k + (1 - gamma) m_k`; the others stay. Each entry moves by its own mean, however
    many codes chose it: the paper averages sums and counts apart, so that a batch with more codes
    of an entry moves it more.

    `codebook` `[entries, size]`, `features` `[batch, n, size]`, `index` `[batch, n]`, `weight`
    `[batch]`; in squared units of the code, `()`. Van den Oord et al., 2017, appendix A.1.
    """
    each = jnp.broadcast_to(weight[:, None], index.shape)
    counted = jnp.where((each > 0)[..., None], each[..., None] * features, 0.0)
    count = jnp.zeros(len(codebook)).at[index].add(each)[:, None]
    total = jnp.zeros_like(codebook).at[index].add(counted)
    mean = total / jnp.where(count > 0, count, 1.0)
    target = lax.stop_gradient(jnp.where(count > 0, mean, codebook))
    return 0.5 * jnp.sum((codebook - target) ** 2)


def codebook_loss(codebook: Array, features: Array, index: Array, weight: Array) -> Array:
    """|sg(z_e) - e|^2, summed over an example's codes: the codebook by gradient, any optimizer.

    `sum_i w_i sum_n |sg(z_in) - e_k(in)|^2 / sum_i w_i`. An entry's gradient grows with the number
    of codes that chose it, which that of `moving_average` does not. Arguments and unit as there.
    Van den Oord et al., 2017, equation 3.
    """
    apart = (lax.stop_gradient(features) - codebook[index]) ** 2
    return batch_mean(jnp.sum(apart, axis=(1, 2)), weight)


def perplexity(used: Array) -> Array:
    """exp(H), H the entropy of the shares in which entries are used: 1 to `entries`, `()`.

    `used` `[entries]`: counts or shares, of `usage` for instance.
    """
    share = used / jnp.sum(used)
    return jnp.exp(
        -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    )


def usage(index: Any, entries: int) -> np.ndarray:
    """The share of the codes `[...]` (see `codes`) that chose each entry: `[entries]`, sum 1.

    Entries of share 0 are dead. Raises ValueError for an index outside of the codebook.
    """
    index = np.asarray(index).ravel()
    if not index.size or index.min() < 0 or index.max() >= entries:
        got = f"{index.size} codes" + (f" in {index.min()}..{index.max()}" if index.size else "")
        fix = "pass what indices(model, ...) returns, and that model's number of entries"
        raise wrong("usage: index", got, f"some, in 0..{entries - 1}", fix)
    return np.bincount(index, minlength=entries) / index.size


def indices(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> Array:
    """The indices of every example's entries, int32 `[n, ...]`: the data of the second stage.

    Arguments as for `evaluate.codes`, which gives the entries themselves.
    """
    batch = checked_batch("indices", key, data, batch_size=batch_size)
    return measure_each(_index, (model,), transform, batch_size, params, key, batch)


def from_data(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    transform: Transform | None = None,
) -> Params:
    """The parameters with a codebook of different encodings of the data, drawn at random.

    Entries that start where codes are get used: from a start at random most of them die.

    `data`, `transform`: as for `codes`; rows of weight 0 are left out. Raises ValueError for a
    codebook larger than the data, that is with more entries than all examples together have codes.
    """
    batch = as_batch(data)._replace(y=())
    rows_key, transform_key, choice_key = jax.random.split(key, 3)
    count = _enough("from_data", model, params, batch, transform, size_of(batch.x))
    rows = _rows(rows_key, batch, count)
    chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch)
    features = _features(model, transform, params, transform_key, chosen)
    return {**params, "codebook": _different(choice_key, features, len(params["codebook"]))}


def revive(
    model: Model,
    data: Any,
    *,
    examples: int = 1024,
    share: float = 0.0,
    transform: Transform | None = None,
) -> Callable[[TrainState], TrainState]:
    """A hook that gives entries that no code chooses a new start at random encodings.

    An entry that at most `share` of the codes of `examples` random examples choose is dead, and
    takes the place of an encoding drawn from them, each another. All else stays, bit for bit; plain
    SGD, the optimizer of a moving average, keeps nothing of the old place.

    `data`, `transform`: as in `train.fit`; rows of weight 0 are left out. Returns `TrainState ->
    TrainState`, pure and a function of the state's key and step, for `fit(hook=...)`: leave it out
    in the last epochs, in which the decoder has to learn what a new entry means. Raises ValueError
    for share outside [0, 1) and, at the first call, for a codebook larger than the codes of all
    examples. Dhariwal et al., 2020, Jukebox, arXiv:2005.00341 (random restarts).
    """
    if concrete(share) and not 0 <= float(share) < 1:
        raise wrong("revive: share", share, "a share in [0, 1)", "0.001: one code in a thousand")
    at_least_one("revive", examples=examples)
    batch = jax.tree.map(jnp.asarray, as_batch(data)._replace(y=()))

    def hook(state: TrainState) -> TrainState:
        count = _enough("revive", model, state.params, batch, transform, examples)
        return _revived(model, transform, count, share, state, batch)

    return hook


def with_prior(model: Model, network: Any) -> Model:
    """The model with a prior over its maps of indices: it generates, and bounds log p(x).

    `p(z) = p(k)` of the entries' indices k, by a network trained on `indices` in a second stage;
    then `-log p(x) <= -log p(k) - log p(x|z)`, k the code of x: `terms.rate` plus
    `terms.distortion`.

    `model`: from `quantize`; `network`: `.init(key) -> params` and `.apply(params)`, a Distribution
    over integers in the shape of the code (its map without the last axis), for instance
    `autoregressive.Causal`; it is called with c where there is one. Its parameters go to
    `params["prior"]`. Raises ValueError at `init` for a prior over another shape, or over other
    numbers of entries; TypeError for one that is a density.
    Van den Oord et al., 2017, arXiv:1711.00937, section 3.3.
    """

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        model_key, prior_key = jax.random.split(key)
        params = model.init(model_key, x, c)
        params = {**params, "prior": jax.jit(network.init)(prior_key, *present(c))}
        _check_prior(prior_of(params, c), jax.eval_shape(lambda: model.encode(params, x, c)))
        return params

    def prior_of(params: Params, c: Any = ()) -> Entries:
        return Entries(network.apply(params["prior"], *present(c)), params["codebook"])

    return model._replace(init=init, prior=prior_of)


@partial(jax.jit, static_argnums=(0, 1))
def _features(model: Model, transform: Any, params: Params, key: Key, batch: Batch) -> Array:
    """The encoder's output for every example: `[codes, size]`, one row per code."""
    quiet = deterministic(model)

    def example(index: Array) -> Array:
        x, c, _ = example_at(key, transform, index, batch.x, batch.c)
        return quiet.encode(params, x, c).features

    return over_data(example, size_of(batch.x), 500).reshape(-1, params["codebook"].shape[1])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _revived(
    model: Model, transform: Any, examples: int, share: Any, state: TrainState, batch: Batch
) -> TrainState:
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REVIVE), state.step)
    rows_key, transform_key, choice_key = jax.random.split(key, 3)
    rows = _rows(rows_key, batch, examples)
    chosen = jax.tree.map(lambda leaf: leaf[rows], batch)
    features = _features(model, transform, state.params, transform_key, chosen)
    codebook = state.params["codebook"]
    index = VectorQuantized.nearest(features, codebook).index
    used = jnp.zeros(len(codebook)).at[index].add(1 / len(features))
    fresh = _different(choice_key, features, len(codebook))
    codebook = jnp.where((used <= share)[:, None], fresh, codebook)
    return state._replace(params={**state.params, "codebook": codebook})


def _rows(key: Key, batch: Batch, count: int) -> Array:
    """As many different rows `[count]`, drawn at random from those that count."""
    size, p = size_of(batch.x), None
    if not isinstance(batch.weight, tuple):
        counts = jnp.asarray(batch.weight) > 0
        p = counts / jnp.sum(counts)
    return jax.random.choice(key, size, (count,), replace=False, p=p)


def _different(key: Key, features: Array, count: int) -> Array:
    """As many rows of `[codes, size]`, drawn at random, equal ones only where no others are left.

    Of equal entries the first alone is ever chosen, and empty places of images have equal codes.
    """
    bits = lax.bitcast_convert_type(features.astype(jnp.float32), jnp.uint32)
    odd = [pow(0x9E3779B1, j, 2**32) for j in range(1, 1 + features.shape[1])]
    mixed = (bits ^ (bits >> 15)) * jnp.asarray(np.array(odd, np.uint32))[None]
    label = jnp.sum(mixed, axis=1, dtype=jnp.uint32)  # equal for equal rows
    order = jnp.argsort(label)
    ranked = label[order]
    first = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
    share = jnp.zeros(len(features)).at[order].set(jnp.where(first, 1.0, 0.0))
    return jax.random.choice(key, features, (count,), replace=False, p=share / jnp.sum(share))


_REVIVE = 0x76717276  # "vqrv": apart from the streams of `train`


def _enough(
    function: str, model: Model, params: Params, batch: Batch, transform: Any, examples: int
) -> int:
    """As many of the examples as count, at most; ValueError if they have too few codes."""
    weight = np.ones(size_of(batch.x)) if isinstance(batch.weight, tuple) else batch.weight
    entries = len(params["codebook"])
    examples = min(examples, int(np.count_nonzero(np.asarray(weight) > 0)))
    one = jax.eval_shape(
        partial(_features, model, transform),
        params,
        jax.random.key(0),
        jax.tree.map(lambda leaf: leaf[:1], batch),
    )
    if examples * len(one) < entries:
        got = f"a codebook of {entries} entries for {examples * len(one)} codes"
        fix = f"give fewer entries, or more examples, of {len(one)} codes each"
        raise wrong(f"{function}: data", got, "no more entries than codes", fix)
    return examples


def _index(model: Model, params: Params, key: Key, x: Any, c: Any) -> Array:
    return deterministic(model).encode(params, x, c).index


def _check_point(q: Any) -> Any:
    if not isinstance(q, Delta) or not q.event_shape:
        got = f"{type(q).__name__} over {q.event_shape}"
        fix = "end the encoder with heads.Code((height, width, size))"
        raise wrong("quantize: the encoder", got, "a Delta over [..., size]", fix, TypeError)
    return q


def _check_prior(p: Entries, q: VectorQuantized) -> None:
    entries, indices = p.codebook.shape[0], p.indices
    fix = f"give a discrete prior over integers 0..{entries - 1} of shape {q.index.shape}"
    if not indices.discrete:
        got = type(indices).__name__
        raise wrong("with_prior: network", got, "probabilities of integers", fix, TypeError)
    if indices.event_shape != q.index.shape:
        raise wrong("with_prior: network", f"shape {indices.event_shape}", q.index.shape, fix)
    # The last entry has a probability, and what comes after it none.
    last, beyond = (
        indices.log_prob(jnp.full(q.index.shape, k, jnp.int32)) for k in (entries - 1, entries)
    )
    if concrete(last) and not (np.isfinite(last) and np.isneginf(beyond)):
        raise wrong("with_prior: network", "another number of classes", entries, fix)


__all__ = [
    "Entries",
    "VectorQuantized",
    "codebook_loss",
    "from_data",
    "indices",
    "moving_average",
    "perplexity",
    "quantize",
    "revive",
    "usage",
    "vq_vae",
    "with_prior",
]
