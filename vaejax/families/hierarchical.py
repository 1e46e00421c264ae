"""Several layers of latent variables: p(h_L) p(h_{L-1}|h_L) ... p(h_1|h_2) p(x|h_1).

    model = layers(
        autoencoder(x_to_h1, h1_to_x),  # q(h1|x) and p(x|h1)
        encoders=[h1_to_h2],  # q(h2|h1)
        decoders=[h2_to_h1],  # p(h1|h2)
        prior=Normal(jnp.zeros(50), jnp.ones(50)),  # p(h2)
    )

Posterior and prior are each a `Chain`, which is a distribution of z = (h_1, ..., h_L) like any
other. So every loss and every estimate of log p(x) takes the model as it is.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.batch import check_unweighted, present, size_of
from vaejax.distributions import Distribution, distribution
from vaejax.errors import finite_values, wrong
from vaejax.evaluate import checked_batch, measure, measure_each
from vaejax.evaluate.diagnostics import ActiveUnits
from vaejax.model import Model, compiled, deterministic
from vaejax.networks import functional
from vaejax.types import Array, Key, Params, Transform


@distribution
class Chain(Distribution):
    """A Markov chain of links: log p(h_1, ..., h_n) = log p(h_1) + sum_i log p(h_i|h_{i-1}), nats.

    The event is one vector: all variables, flattened, side by side. Samples are differentiable
    where those of the links are. There is no mean in closed form: `link_means` estimates it.

    Args:
      first: p(h_1), a Distribution.
      links: one callable for each further variable, `h_{i-1} -> p(h_i|h_{i-1})`, a Distribution.
        For a network it is `jax.tree_util.Partial(net.apply, params)`, with the function created
        once.
      backwards: whether the event holds the last variable first, `(h_n, ..., h_1)`. A prior that
        runs from the top down then has the same event as the posterior that runs from the bottom
        up.
    Raises:
      ValueError: for an event of another length.
      TypeError: where densities and probabilities are mixed, since their logarithms do not add.
    """

    first: Any
    links: Any = ()
    backwards: bool = dataclasses.field(default=False, metadata={"static": True})

    def sample(self, key):
        return self._joined([h for _, h, _ in self._walk(key)])

    def log_prob(self, x):
        log_p, link_of = [], (lambda _: self.first, *self.links)
        given: Any = ()
        for link, h in zip(link_of, self.split(x), strict=True):
            log_p.append(link(given).log_prob(h))
            given = h
        return jnp.sum(jnp.stack(log_p))

    def sample_and_log_prob(self, key):
        walked = self._walk(key)
        return self._joined([h for _, h, _ in walked]), jnp.sum(jnp.stack([p for *_, p in walked]))

    def split(self, x: Any) -> list[Array]:
        """The variables of an event, each in its own shape.

        Args:
          x: one event, `[sum of the sizes]`.
        Returns:
          the variables, in the order of the chain.
        Raises:
          ValueError: for an event of another length.
        """
        shapes = [p.event_shape for p in self._abstract()]
        shapes = shapes[::-1] if self.backwards else shapes
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if np.shape(x) != (ends[-1],):
            fix = "join the flattened variables into one vector; map a batch: jax.vmap"
            raise wrong("Chain: event", f"shape {np.shape(x)}", f"({ends[-1]},)", fix)
        parts = jnp.split(jnp.asarray(x), ends[:-1])
        values = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return values[::-1] if self.backwards else values

    def link_means(self, key: Key) -> Array:
        """E[h_i|h_{i-1}] of every variable, given draws of those before it.

        It is an unbiased estimate of the mean. Its noise is only that of the draws before: none
        where a variable does not depend on them.

        Args:
          key: random key for the draws.
        Returns:
          the means as one event, `[sum of the sizes]`.
        """
        return self._joined([p.mean for p, *_ in self._walk(key)])

    def without_derivative(self):
        def lost(chain: Chain) -> dict[str, Any]:
            """Those of every variable's own distribution, which may depend on those before it."""
            each = [p.without_derivative() for p, *_ in chain._walk(jax.random.key(0))]
            return {
                f"h_{i}.{name}": leaf for i, p in enumerate(each, 1) for name, leaf in p.items()
            }

        return lost(self) if jax.eval_shape(lost, self) else {}

    @property
    def event_shape(self):
        return (sum(math.prod(p.event_shape) for p in self._abstract()),)

    @property
    def discrete(self):
        return all(p.discrete for p in self._abstract())

    def _walk(self, key: Key) -> list[tuple[Any, Array, Array]]:
        """The chain from its first link on: each distribution, a draw of it and its log p."""
        p, walked = self.first, []
        for link, one in zip((*self.links, None), _split(key, 1 + len(self.links)), strict=True):
            h, log_p = p.sample_and_log_prob(one)
            walked.append((p, h, log_p))
            p = p if link is None else link(h)
        return walked

    def _joined(self, values: list[Array]) -> Array:
        flat = [jnp.ravel(h) for h in values]
        return jnp.concatenate(flat[::-1] if self.backwards else flat)

    def _abstract(self) -> list[Any]:
        """The distributions along the chain, shapes alone: nothing is computed."""
        # As an argument, for leaves that are shapes themselves.
        found = jax.eval_shape(lambda chain: [p for p, *_ in chain._walk(jax.random.key(0))], self)
        if len({bool(p.discrete) for p in found}) > 1:
            got = " and ".join(type(p).__name__ for p in found)
            fix = "end the networks of all layers with heads of one kind, such as heads.Normal"
            raise wrong("Chain: links", got, "all densities or all discrete", fix, TypeError)
        return found


def layers(
    bottom: Model,
    *,
    encoders: Sequence[Any],
    decoders: Sequence[Any],
    prior: Any,
) -> Model:
    """A hierarchy of L layers above the model of the lowest: a Model over z = (h_1, ..., h_L).

    `p(x, z) = p(h_L) prod_l p(h_l|h_{l+1}) p(x|h_1)`, `q(z|x) = q(h_1|x) prod_l q(h_{l+1}|h_l)`; z
    is one vector, h_1 first. The rate is that of a draw, log q(z|x) - log p(z), a sum over the
    links.

    Every network also gets c where there is one. `params` is `{"bottom": ..., "encoders": [...],
    "decoders": [...]}`, with "prior" beside them where the prior is a network.

    Args:
      bottom: q(h_1|x) and p(x|h_1), for instance `autoencoder(x_to_h1, h1_to_x)`; its prior is
        unused.
      encoders: networks from h_l to q(h_{l+1}|h_l), from l = 1 upwards.
      decoders: networks from h_{l+1} to p(h_l|h_{l+1}), as many, also from l = 1 upwards.
      prior: p(h_L), a Distribution, or a network that is called with nothing but c.
    Returns:
      the Model; its `encode` and `prior` return a `Chain`.
    Raises:
      ValueError: for other numbers of networks; at `init`, where the posterior and the prior of a
        layer differ in shape.
      TypeError: at `init`, where they differ in kind, or a network returns no Distribution.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vaejax import autoencoder, heads, hierarchical
      >>> from vaejax.distributions import Normal
      >>> model = hierarchical.layers(
      ...     autoencoder(heads.Normal(3), heads.Bernoulli(6)),
      ...     encoders=[heads.Normal(2)],
      ...     decoders=[heads.Normal(3)],
      ...     prior=Normal(jnp.zeros(2), jnp.ones(2)),
      ... )
      >>> params = model.init(jax.random.key(0), jnp.zeros(6))
      >>> model.encode(params, jnp.zeros(6)).event_shape
      (5,)

    References:
      Burda, Grosse and Salakhutdinov, 2016, arXiv:1509.00519, section 5 (two layers).
    """
    if not encoders or len(encoders) != len(decoders):
        got = f"{len(encoders)} encoders and {len(decoders)} decoders"
        fix = "give q(h_{l+1}|h_l) and p(h_l|h_{l+1}) for every l; for one layer take bottom itself"
        raise wrong("layers", got, "as many of both, at least one", fix)
    encoders = [functional(network, "layers: encoders") for network in encoders]
    decoders = [functional(network, "layers: decoders") for network in decoders]
    if not isinstance(prior, Distribution):
        prior = functional(prior, "layers: prior")
    up, down = [_Link(network) for network in encoders], [_Link(network) for network in decoders]

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        return _init(bottom, encoders, decoders, prior, key, x, c)

    def prior_of(params: Params, c: Any = ()) -> Chain:
        links = zip(down[::-1], params["decoders"][::-1], strict=True)
        top = _top(prior, params, c)
        return Chain(top, tuple(link.given(p, c) for link, p in links), backwards=True)

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Chain:
        keys: list[Key | None] = [None] * (1 + len(up))
        if key is not None:
            keys = [*_split(key, 1 + len(up))]
        first = bottom.encode(params["bottom"], x, c, key=keys[0])
        links = zip(up, params["encoders"], keys[1:], strict=True)
        return Chain(first, tuple(link.given(p, c, one) for link, p, one in links))

    def decode(params: Params, z: Any, c: Any = (), *, key: Key | None = None) -> Any:
        lowest = prior_of(params, c).split(z)[-1]
        return bottom.decode(params["bottom"], lowest, c, key=key)

    return Model(compiled(init), prior_of, encode, decode)


@measure
def active_units(
    model: Model,
    params: Params,
    key: Key,
    data: Any,
    *,
    draws: int = 10,
    threshold: float = 1e-2,
    transform: Transform | None = None,
    batch_size: int = 500,
) -> list[ActiveUnits]:
    """The active units of every layer, h_1 first: A_u = Var_x(E_q[u|x]) > threshold.

    This is `diagnostics.active_units` for a posterior that is a `Chain`. Its means have no closed
    form, so each is estimated twice, by `Chain.link_means` of as many independent `draws`. A_u is
    the covariance of the two estimates over the examples, which is unbiased. The variance of one
    estimate would count the noise of the draws as activity. A layer without active units has
    collapsed. Below the top no N(0, I) fixes the scale of a unit, so there the threshold holds for
    units as training has scaled them.

    Args:
      model, params: a Model of several layers, and its parameters.
      key: of the draws and the transform.
      data: a Batch, or the x of one, two examples or more, `[n, ...]`.
      draws: how many draws each of the two estimates of a mean averages.
      threshold: what A_u must exceed.
      transform: of stored data, drawn once per example; by default none.
      batch_size: examples that are held in memory at a time.
    Returns:
      For each layer A_u of its units, the standard errors, and the count `active`.
    Raises:
      ValueError: for fewer than two examples, for weights, and where a mean is not finite.
      TypeError: for a posterior that is no Chain, or has a link without a mean in closed form.
    """
    batch = checked_batch("active_units", key, data, draws=draws, batch_size=batch_size)
    check_unweighted("active_units", batch)
    size = size_of(batch.x)
    if size < 2:
        raise wrong("active_units: data", f"{size} example", "two or more", "give more of them")
    found = measure_each(_means, (model, draws), transform, batch_size, params, key, batch)
    result = []
    for first, second in found:
        first, second = np.asarray(first, float), np.asarray(second, float)
        finite_values("active_units", "a mean", first.sum(axis=1) + second.sum(axis=1), batch.x)
        shared = (first - first.mean(axis=0)) * (second - second.mean(axis=0))
        error = shared.std(axis=0, ddof=1) / np.sqrt(size)
        result.append(ActiveUnits(shared.mean(axis=0), error, threshold))
    return result


def _means(
    model: Model, draws: int, params: Params, key: Key, x: Any, c: Any
) -> list[tuple[Array, Array]]:
    """Two estimates of E_q[h_l|x] of one example: `[units]`, for each layer."""
    q = deterministic(model).encode(params, x, c)
    if not isinstance(q, Chain):
        fix = "take diagnostics.active_units, for posteriors with a mean"
        raise wrong("active_units: posterior", type(q).__name__, "a Chain", fix, TypeError)
    try:
        drawn = jax.vmap(q.link_means)(jax.random.split(key, 2 * draws))
    except NotImplementedError as error:
        fix = "average samples of it for every example"
        raise wrong("active_units: a link", error, "one with a mean", fix, TypeError) from error
    pair = [q.split(half.mean(axis=0)) for half in (drawn[:draws], drawn[draws:])]
    return [(jnp.ravel(a), jnp.ravel(b)) for a, b in zip(*pair, strict=True)]


def _init(
    bottom: Model,
    encoders: Sequence[Any],
    decoders: Sequence[Any],
    prior: Any,
    key: Key,
    x: Any,
    c: Any,
) -> Params:
    """The parameters of `layers`, from zeros in the shape of each layer's variables."""
    bottom_key, up_key, down_key, prior_key, sample_key = jax.random.split(key, 5)
    params: Params = {"bottom": bottom.init(bottom_key, x, c)}
    q = [jax.eval_shape(lambda: bottom.encode(params["bottom"], x, c))]
    h = [_zeros(q[0], sample_key)]
    params["encoders"] = []
    for network, one in zip(encoders, _split(up_key, len(encoders)), strict=True):
        params["encoders"].append(network.init(one, h[-1], *present(c)))
        q.append(_shape_of(network, params["encoders"][-1], h[-1], c))
        h.append(_zeros(q[-1], sample_key))
    params["decoders"], p = [], []
    down_keys = _split(down_key, len(decoders))
    for network, above, one in zip(decoders, h[1:], down_keys, strict=True):
        params["decoders"].append(network.init(one, above, *present(c)))
        p.append(_shape_of(network, params["decoders"][-1], above, c))
    if not isinstance(prior, Distribution):
        params["prior"] = prior.init(prior_key, *present(c))
    p.append(_top(prior, params, c))
    for i, (of_q, of_p) in enumerate(zip(q, p, strict=True), 1):
        _check_layer(i, of_q, of_p)
    return params


def _top(prior: Any, params: Params, c: Any) -> Any:
    """p(h_L)."""
    if isinstance(prior, Distribution):
        return prior
    return prior.apply(params["prior"], *present(c))


class _Link(NamedTuple):
    """A network as the link of a chain. It is made once, so that compiled programs recognise it."""

    network: Any

    def given(self, params: Params, c: Any, key: Key | None = None) -> Any:
        """`h -> Distribution`, a pytree."""
        return jax.tree_util.Partial(self._apply, params, present(c), key)

    def _apply(self, params: Params, c: Any, key: Key | None, h: Array) -> Any:
        # A link is asked more than once, for a sample and for its density: one noise for both.
        rngs = {} if key is None else {"rngs": {"dropout": jax.random.clone(key)}}
        return self.network.apply(params, h, *c, **rngs)


def _check_layer(i: int, q: Any, p: Any) -> None:
    name_q, name_p = type(q).__name__, type(p).__name__
    if q.event_shape != p.event_shape:
        got = f"a posterior over {q.event_shape} and a prior over {p.event_shape}"
        raise wrong(f"layers: h_{i}", got, "one shape", "give both networks' heads the same one")
    if q.discrete != p.discrete:
        got, fix = f"posterior {name_q} and prior {name_p}", "give both networks heads of one kind"
        raise wrong(f"layers: h_{i}", got, "two densities or two probabilities", fix, TypeError)


def _shape_of(network: Any, params: Params, h: Array, c: Any) -> Any:
    p = jax.eval_shape(lambda: network.apply(params, h, *present(c)))
    if not isinstance(p, Distribution):
        fix = "end it with a head, for instance networks.sequential(network, heads.Normal(10))"
        raise wrong("layers: a network", type(p).__name__, "a Distribution", fix, TypeError)
    return p


def _zeros(p: Any, key: Key) -> Array:
    h = jax.eval_shape(lambda p: p.sample(jax.random.clone(key)), p)
    return jnp.zeros(h.shape, h.dtype)


def _split(key: Key, count: int) -> list[Key]:
    return list(jax.random.split(key, count))


__all__ = ["Chain", "active_units", "layers"]
