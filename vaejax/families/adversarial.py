"""Adversarial learning: several players in one scalar, each with its own parameters and loss.

A critic tells real from fake by a logit l: log D(x) = log sigmoid(l). It is a module that is called
with what it judges, and with the condition c where there is one, and returns `(features, logit)`.
`Critic` makes one of any network. `params` hold every player on the first level, beside the model's
own parts, so that `model.encode`, `generate` and all of `evaluate` read them as they are:

    params = {**model.init(model_key, x), "critic": critic.init(critic_key, x)}  # AAE: a z
    loss = vae_gan(model, critic, gamma=1.0)
    adam = {"encoder": optax.adam(1e-3), "decoder": optax.adam(1e-3), "critic": optax.adam(1e-4)}
    optimizer = optax.partition(adam, {name: name for name in adam})

| loss | players | the critic tells apart |
| --- | --- | --- |
| `adversarial_autoencoder` | encoder, decoder, critic | draws of the prior, and codes |
| `vae_gan` | encoder, decoder, critic | examples, and reconstructions and samples |
| `gan` | decoder (the generator), critic | examples, and samples |

The flow of a flow posterior, `params["posterior"]`, is a player with the encoder's loss.

Each loss has the metrics `NAME/loss` of every player; `fooling`, the adversarial part of the
generator's loss; and `critic_accuracy`, the share of right answers, where real and fake count
alike. An accuracy of 1/2 is that of a coin. At 1 the critic has won, and a saturating generator
learns nothing more.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from vaejax.batch import batch_mean, over_batch, present
from vaejax.distributions import Distribution, Normal, pathwise
from vaejax.errors import wrong
from vaejax.model import Draw, Model, autoencoder, compiled, draw, terms
from vaejax.networks import Network, functional, within
from vaejax.objectives import Schedule, players, schedule
from vaejax.types import Array, Batch, Key, Loss, Metrics, Params


def logistic(real: Array, fake: Array) -> Array:
    """The critic's loss -log D(real) - log(1 - D(fake)) of two logits, nats, elementwise.

    `softplus(-real) + softplus(fake)`: 2 log 2 where it cannot tell, 0 where it has won.

    Args:
      real: logits of real things, of any shape.
      fake: logits of fakes, of the same shape.
    Returns:
      the loss of each pair, nats.
    References:
      Goodfellow et al., 2014, arXiv:1406.2661.
    """
    return nn.softplus(-real) + nn.softplus(fake)


def non_saturating(fake: Array) -> Array:
    """The generator's loss -log D(fake) of the logit of a fake, nats, elementwise.

    It has the same fixed point as `saturating`, and its gradient does not vanish where the critic
    is sure.

    Args:
      fake: logits of fakes, of any shape.
    Returns:
      the loss of each, nats.
    References:
      Goodfellow et al., 2014, arXiv:1406.2661.
    """
    return nn.softplus(-fake)


def saturating(fake: Array) -> Array:
    """The generator's loss log(1 - D(fake)) of the minimax game, nats, elementwise.

    It is exactly minus the critic's loss on the fake. So is its gradient, which vanishes where the
    critic is sure.

    Args:
      fake: logits of fakes, of any shape.
    Returns:
      the loss of each, nats.
    References:
      Goodfellow et al., 2014, arXiv:1406.2661.
    """
    return -nn.softplus(fake)


class Critic(Network):
    """A critic of any network: `(features, logit)`, features h = net(x, ...), logit w^T h + b.

    It is called with one thing to judge, and with its condition if there is one. h is flattened,
    `[features]`; the logit is `()`.

    Args:
      net: the network, called with the same.
    """

    net: Any

    @nn.compact
    def __call__(self, x: Any, *c: Any) -> tuple[Array, Array]:
        h = jnp.ravel(within(self, "net", x, *c))
        return h, nn.Dense(1, name="logit")(h)[0]


def implicit(generator: Any, prior: Distribution) -> Model:
    """A Model without an encoder: z ~ p(z), x = g(z), as a GAN has it.

    `params` is `{"decoder": ...}`. `encode` raises TypeError.

    Args:
      generator: a network called with z, or with (z, c), that returns a Distribution whose mean is
        x, for instance one that ends in `heads.Code(shape, nn.sigmoid)`.
      prior: p(z).
    Returns:
      the Model.
    Raises:
      TypeError: where prior is not a Distribution.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from vaejax import Batch, adversarial, heads
      >>> from vaejax.distributions import Normal
      >>> model = adversarial.implicit(heads.Code(6), Normal(jnp.zeros(2), jnp.ones(2)))
      >>> critic = adversarial.Critic(nn.Dense(4))
      >>> x, keys = jnp.zeros((3, 6)), jax.random.split(jax.random.key(0), 3)
      >>> params = {**model.init(keys[0], x[0]), "critic": critic.init(keys[1], x[0])}
      >>> _, metrics = jax.eval_shape(adversarial.gan(model, critic), params, keys[2], Batch(x), 0)
      >>> sorted(metrics)
      ['critic/loss', 'critic_accuracy', 'decoder/loss', 'fooling']

    References:
      Mohamed and Lakshminarayanan, 2016, arXiv:1610.03483.
    """
    if not isinstance(prior, Distribution):
        fix = "give distributions.Normal(jnp.zeros(n), jnp.ones(n))"
        raise wrong("implicit: prior", prior, "a Distribution over z", fix, TypeError)

    generator = functional(generator, "implicit: generator")

    def init(key: Key, x: Any, c: Any = ()) -> Params:
        z = jax.eval_shape(lambda: prior.sample(jax.random.key(0)))
        return {"decoder": generator.init(key, jnp.zeros(z.shape, z.dtype), *present(c))}

    def encode(params: Params, x: Any, c: Any = (), *, key: Key | None = None) -> Any:
        fix = "take vae_gan or adversarial_autoencoder for codes"
        raise wrong("encode", "a model made by implicit", "one with an encoder", fix, TypeError)

    # The encoder is none: what would be its `init` and `encode` are replaced.
    model = autoencoder(generator, generator, prior)
    return model._replace(init=compiled(init), encode=encode)


def adversarial_autoencoder(
    model: Model,
    critic: Any,
    *,
    weight: Schedule = 1.0,
    fooling: Callable[[Array], Array] = non_saturating,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """A reconstruction whose codes a critic cannot tell from draws of the prior: AAE.

    encoder: `E[D + weight (-log C(z))]`, decoder: `E[D]`,
    critic: `E[-log C(z_p) - log(1 - C(z))]`; z ~ q(z|x), z_p ~ p(z), D = -log p(x|z).

    So the aggregated posterior q(z) = E[q(z|x)] becomes p(z). This needs no density of either: q
    may be deterministic (`heads.Code`), and p may be any Distribution that can be sampled, such as
    a Mixture.

    Args:
      model: an autoencoder with a prior that has no parameters.
      critic: it judges z, so that its parameters are `critic.init(key, z)`.
      weight: of the adversarial part, a number or a schedule of the step.
      fooling: the encoder's loss on the logits of its codes.
      draw: how a Draw is made.
    Returns:
      the loss; beside the metrics that all of them have, `distortion`, nats per example. It raises
      ValueError for a model without a prior, and TypeError for a critic that returns something
      else.
    References:
      Makhzani, Shlens, Jaitly, Goodfellow and Frey, 2015, arXiv:1511.05644.
    """

    critic = functional(critic, "adversarial_autoencoder: critic", ("apply",))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        draw_key, prior_key, critic_key = jax.random.split(key, 3)
        d = draw(model, params, draw_key, x, c)
        z = _prior("adversarial_autoencoder", d.pz).sample(prior_key)
        _, real = _judged(critic, params, critic_key, z, c)
        _, fake = _judged(critic, params, critic_key, d.z, c)
        return {"distortion": terms.distortion(d), "real": real, "fake": fake}

    def encoder(e: Metrics, step: Any) -> Array:
        return e["distortion"] + schedule(weight, step) * fooling(e["fake"])

    def metrics(e: Metrics) -> Metrics:
        right = _right(e["real"], e["fake"])
        return {"distortion": e["distortion"], "fooling": fooling(e["fake"]), **right}

    losses = {
        "encoder": encoder,
        "decoder": lambda e, _: e["distortion"],
        "critic": lambda e, _: logistic(e["real"], e["fake"]),
    }
    return _game(example, losses, metrics)


def vae_gan(
    model: Model,
    critic: Any,
    *,
    gamma: Schedule = 1.0,
    fooling: Callable[[Array], Array] = non_saturating,
    draw: Callable[..., Draw] = draw,
) -> Loss:
    """A VAE whose likelihood is a Gaussian in the critic's features, with the critic of a GAN.

    encoder: `E[R + D_h]`, decoder: `E[gamma D_h - log C(x~) - log C(x_p)]`,
    critic: `E[-log C(x) - log(1 - C(x~)) - log(1 - C(x_p))]`; D_h = -log N(h(x); h(x~), I) for the
    critic's features h, z ~ q(z|x), x~ and x_p the decoder's means at z and at z_p ~ p(z).

    Errors of a pixel or two, which blur the images of a VAE, weigh as much as h says. Only the mean
    of the decoder's p(x|z) is used: `heads.Code(shape, nn.sigmoid)` serves.

    Args:
      model: a VAE with a prior that has no parameters.
      critic: it judges x. Features of about unit size (a LayerNorm at the end) keep D_h from being
        scaled at will.
      gamma: weight of D_h for the decoder, a number or a schedule of the step.
      fooling: the decoder's loss on the logits of the fakes.
      draw: how a Draw is made.
    Returns:
      the loss; beside the metrics that all of them have, `feature_distortion` (D_h) and `rate`,
      nats per example. It raises as `adversarial_autoencoder` does.
    References:
      Larsen, Sonderby, Larochelle and Winther, 2016, arXiv:1512.09300.
    """

    critic = functional(critic, "vae_gan: critic", ("apply",))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        draw_key, prior_key, decode_key, critic_key = jax.random.split(key, 4)
        d = draw(model, params, draw_key, x, c)
        z = _prior("vae_gan", d.pz).sample(prior_key)
        h, real = _judged(critic, params, critic_key, x, c)
        x_seen = pathwise(d.q, d.z, _like("vae_gan", d.px.mean, x))
        x_drawn = model.decode(params, z, c, key=decode_key).mean
        h_seen, seen = _judged(critic, params, critic_key, x_seen, c)
        _, drawn = _judged(critic, params, critic_key, x_drawn, c)
        D = -Normal(h_seen, jnp.ones_like(h_seen)).log_prob(h)
        return {"D": D, "rate": terms.rate(d), "real": real, "seen": seen, "drawn": drawn}

    def fooled(e: Metrics) -> Array:
        return fooling(e["seen"]) + fooling(e["drawn"])

    def metrics(e: Metrics) -> Metrics:
        right = _right(e["real"], e["seen"], e["drawn"])
        return {"feature_distortion": e["D"], "rate": e["rate"], "fooling": fooled(e), **right}

    losses = {
        "encoder": lambda e, _: e["rate"] + e["D"],
        "decoder": lambda e, step: schedule(gamma, step) * e["D"] + fooled(e),
        "critic": lambda e, _: logistic(e["real"], e["seen"]) + nn.softplus(e["drawn"]),
    }
    return _game(example, losses, metrics)


def gan(model: Model, critic: Any, *, fooling: Callable[[Array], Array] = non_saturating) -> Loss:
    """A generative adversarial network: `vae_gan` without its encoder and reconstructions.

    decoder: `E[-log C(x_p)]`, critic: `E[-log C(x) - log(1 - C(x_p))]`; x_p the decoder's mean at
    z_p ~ p(z).

    Args:
      model: `implicit(generator, prior)`.
      critic: it judges x.
      fooling: the generator's loss on the logits of the fakes; `saturating` gives the minimax game.
    Returns:
      the loss, with the metrics that all of them have. It raises as `adversarial_autoencoder` does.
    References:
      Goodfellow et al., 2014, arXiv:1406.2661.
    """

    critic = functional(critic, "gan: critic", ("apply",))

    def example(params: Params, key: Key, x: Any, c: Any) -> Metrics:
        prior_key, decode_key, critic_key = jax.random.split(key, 3)
        z = _prior("gan", model.prior(params, c)).sample(prior_key)
        x_drawn = _like("gan", model.decode(params, z, c, key=decode_key).mean, x)
        _, real = _judged(critic, params, critic_key, x, c)
        _, fake = _judged(critic, params, critic_key, x_drawn, c)
        return {"real": real, "fake": fake}

    def metrics(e: Metrics) -> Metrics:
        return {"fooling": fooling(e["fake"]), **_right(e["real"], e["fake"])}

    losses = {
        "decoder": lambda e, _: fooling(e["fake"]),
        "critic": lambda e, _: logistic(e["real"], e["fake"]),
    }
    return _game(example, losses, metrics)


def _game(
    example: Callable[..., Metrics],
    losses: Mapping[str, Callable[[Metrics, Any], Array]],
    metrics: Callable[[Metrics], Metrics],
) -> Loss:
    """Players whose losses are arithmetic on what one example gives, averaged over the batch."""

    def of(name: str) -> Loss:
        def loss(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
            e = over_batch(example, params, key, batch)
            named = metrics(e) if name == "critic" else {}
            return batch_mean((losses[name](e, step), named), batch.weight)

        return loss

    game = {name: of(name) for name in losses}

    def checked(params: Params, key: Key, batch: Batch, step: Any) -> tuple[Array, Metrics]:
        own = dict(game)
        if isinstance(params, Mapping) and "posterior" in params and "encoder" in own:
            own["posterior"] = own["encoder"]  # the flow of a flow posterior: a part of q(z|x)
        if isinstance(params, Mapping) and set(own) < set(params):
            got = f"{sorted(set(params) - set(own))}, of no player"
            fix = "a learned prior is not supported: give a Distribution, a Normal or a Mixture"
            raise wrong("players: params", got, f"{sorted(own)} alone", fix)
        return players(own)(params, key, batch, step)

    return checked


def _judged(critic: Any, params: Params, key: Key, x: Any, c: Any) -> tuple[Array, Array]:
    """The critic's features and logit of one thing, under the same dropout for real and fake."""
    rngs = {"dropout": jax.random.clone(key)}
    try:
        found = critic.apply(params["critic"], x, *present(c), rngs=rngs)
    except ScopeParamShapeError as error:
        fix = "make its parameters by critic.init(key, z) where it judges codes, else by an x"
        got = f"an input of shape {jnp.shape(x)}"
        raise wrong("critic", got, "one as at its init", fix) from error
    if not isinstance(found, tuple) or len(found) != 2 or jnp.shape(found[1]) != ():
        got = jax.tree.map(jnp.shape, found)
        fix = "wrap the network: adversarial.Critic(net)"
        raise wrong("critic", f"shapes {got}", "(features, logit), the logit ()", fix, TypeError)
    return found


def _right(real: Array, *fakes: Array) -> Metrics:
    """The share of right answers, where real and fake count alike."""
    seen_through = jnp.mean(jnp.stack([fake <= 0 for fake in fakes]), axis=0)
    return {"critic_accuracy": 0.5 * ((real > 0) + seen_through)}


def _like(function: str, made: Any, x: Any) -> Any:
    """What the decoder made, in the shape of x: a critic that flattens would not notice another."""
    got, expected = (jax.tree.map(jnp.shape, v) for v in (made, x))
    if got != expected:
        fix = "give the decoder's head the shape of one example"
        raise wrong(f"{function}: the decoder's mean", got, f"{expected}, that of x", fix)
    return made


def _prior(function: str, pz: Any) -> Any:
    if pz is None:
        fix = "give autoencoder(..., prior=...)"
        raise wrong(f"{function}: model", "one without a prior", "a prior to draw from", fix)
    return pz


__all__ = [
    "Critic",
    "adversarial_autoencoder",
    "gan",
    "implicit",
    "logistic",
    "non_saturating",
    "players",
    "saturating",
    "vae_gan",
]
