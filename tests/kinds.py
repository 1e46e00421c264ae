"""One tiny model of every kind, and every loss, for tables of what takes what: all by shapes."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vaejax import (
    Batch,
    adversarial,
    autoencoder,
    autoencoders,
    autoregressive,
    contraction,
    corruption,
    disentangle,
    flows,
    heads,
    hierarchical,
    objectives,
    posteriors,
    priors,
    quantized,
    recurrent,
    semisupervised,
    sparsity,
)
from vaejax.distributions import Bernoulli, Categorical, Mixture, Normal
from vaejax.model import Model

X, LATENT = (4,), 2
PRIOR = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))


class Kind(NamedTuple):
    """A model, its example, and the draw that losses need where the model has one of its own."""

    model: Model
    x: Any = jax.ShapeDtypeStruct(X, jnp.float32)
    draw: Any = None


class MixtureHead(nn.Module):
    """q(z|x), a mixture of two Normals."""

    @nn.compact
    def __call__(self, x: Any, *c: Any) -> Mixture:
        h = nn.Dense(2 + 2 * LATENT)(jnp.ravel(x))
        return Mixture(h[:2], Normal(h[2:].reshape(2, LATENT), jnp.ones((2, LATENT))))


class OneHot(nn.Module):
    """A decoder of a class."""

    @nn.compact
    def __call__(self, z: Any, *c: Any) -> Bernoulli:
        return heads.Bernoulli(X)(jax.nn.one_hot(z, 3))


class Gaussian(nn.Module):
    """A causal network: the mean of an entry is that of those before it."""

    @nn.compact
    def __call__(self, u: Any, *given: Any) -> Normal:
        before = jnp.concatenate([jnp.zeros(1), u[:-1]])
        return Normal(self.param("a", nn.initializers.ones, ()) * before, jnp.ones_like(u))


class Joined(nn.Module):
    """A head over all that it is called with."""

    head: Any

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(inputs)]
        return self.head(jnp.concatenate(leaves))


def plain(code: Any = None, prior: Any = PRIOR, decoder: Any = None) -> Model:
    encoder = heads.Normal(LATENT) if code is None else code
    return autoencoder(
        Joined(encoder), Joined(heads.Bernoulli(X)) if decoder is None else decoder, prior
    )


def two_layers(first: Any, second: Any, prior: Any) -> Model:
    return hierarchical.layers(
        plain(first, None), encoders=[Joined(second)], decoders=[Joined(first)], prior=prior
    )


def vrnn(head: Any) -> Kind:
    step = autoencoder(Joined(head), Joined(heads.Normal(3)), Joined(head))
    made = recurrent.vrnn(step, recurrent.Cell(2), features=2)
    return Kind(made.model, jax.ShapeDtypeStruct((3, 3), jnp.float32), made.draw)


def with_codes() -> Model:
    code = heads.Code((2, LATENT))
    prior = autoregressive.Causal(Indices(), (2,), jnp.int32)
    return quantized.with_prior(quantized.quantize(plain(code, None), entries=4), prior)


class Indices(nn.Module):
    """A causal network over indices that sees none of them."""

    @nn.compact
    def __call__(self, u: Any, *given: Any) -> Categorical:
        return Categorical(self.param("logits", nn.initializers.zeros, (2, 4)))


KINDS: dict[str, Callable[[], Kind]] = {
    "diagonal": lambda: Kind(plain()),
    "full covariance": lambda: Kind(plain(heads.FullNormal(LATENT))),
    "planar": lambda: Kind(posteriors.planar_posterior(plain(), LATENT, layers=1)),
    "IAF": lambda: Kind(posteriors.iaf_posterior(plain(), LATENT, layers=1, hidden=(3,))),
    "two layers": lambda: Kind(two_layers(heads.Normal(LATENT), heads.Normal(LATENT), PRIOR)),
    "VRNN": lambda: vrnn(heads.Normal(LATENT)),
    "VampPrior": lambda: Kind(priors.vamp_prior(plain(), 2)),
    "flow prior": lambda: Kind(
        priors.flow_prior(plain(), flows.coupling(LATENT, layers=1, hidden=(3,)))
    ),
    "autoregressive prior": lambda: Kind(plain(prior=autoregressive.Causal(Gaussian(), (LATENT,)))),
    "mixture posterior": lambda: Kind(plain(MixtureHead())),
    "Bernoulli code": lambda: Kind(plain(heads.Bernoulli(LATENT), Bernoulli(jnp.zeros(LATENT)))),
    "one of three": lambda: Kind(
        plain(heads.Categorical((), 3), Categorical(jnp.zeros(3)), OneHot())
    ),
    "two Bernoulli layers": lambda: Kind(
        two_layers(heads.Bernoulli(LATENT), heads.Bernoulli(LATENT), Bernoulli(jnp.zeros(LATENT)))
    ),
    "VRNN of Bernoullis": lambda: vrnn(heads.Bernoulli(LATENT)),
    "quantised": lambda: Kind(with_codes()),
    "deterministic": lambda: Kind(plain(heads.Code(LATENT), None)),
}
kind = cache(lambda name: KINDS[name]())
ALIKE = (  # each is taken as another one is, where only some are looked at
    "full covariance",
    "IAF",
    "flow prior",
    "autoregressive prior",
    "one of three",
    "two Bernoulli layers",
    "VRNN of Bernoullis",
)
DIFFERENT = [name for name in KINDS if name not in ALIKE]


class Judge(nn.Module):
    """Features of anything."""

    @nn.compact
    def __call__(self, x: Any, *c: Any) -> Any:
        return nn.Dense(2)(jnp.ravel(x).astype(float))


CRITIC = adversarial.Critic(Judge())
CLASSIFIER = heads.Categorical((), 3)


def objective(build: Any, **options: Any) -> Callable[[Kind], Any]:
    """A loss of the model alone; with its draw where it has one."""
    return lambda k: build(k.model, **options, **({} if k.draw is None else {"draw": k.draw}))


def m2(k: Kind) -> Any:
    joint = semisupervised.Joint(k.model, CLASSIFIER, Categorical(jnp.zeros(3)))
    return semisupervised.m2(joint, alpha=1.0, **({} if k.draw is None else {"draw": k.draw}))


LOSSES: dict[str, Callable[[Kind], Any]] = {
    "elbo": objective(objectives.elbo),
    "iwae": objective(objectives.iwae, particles=2),
    "miwae": objective(objectives.miwae, outer=2, inner=2),
    "piwae": objective(objectives.piwae, outer=2, inner=2),
    "ciwae": objective(objectives.ciwae, particles=2, beta=0.5),
    "renyi": objective(objectives.renyi, particles=2, alpha=0.5),
    "stl": objective(objectives.stl),
    "dreg": objective(objectives.dreg, particles=2),
    "score_function": objective(objectives.score_function, samples=2),
    "vimco": objective(objectives.vimco, particles=2),
    "reweighted_wake_sleep": lambda k: objectives.reweighted_wake_sleep(
        k.model, particles=2, **({} if k.draw is None else {"draw": k.draw, "sleep": 0.0})
    ),
    "beta_tcvae": objective(disentangle.beta_tcvae, beta=2.0),
    "factor_vae": objective(
        lambda model, **o: disentangle.factor_vae(model, nn.Dense(1), gamma=1.0, **o)
    ),
    "m2": m2,
    "adversarial_autoencoder": objective(
        lambda model, **o: adversarial.adversarial_autoencoder(model, CRITIC, **o)
    ),
    "vae_gan": objective(lambda model, **o: adversarial.vae_gan(model, CRITIC, **o)),
    "vq_vae": objective(quantized.vq_vae),
    "reconstruction": objective(autoencoders.reconstruction),
    "sparse": objective(autoencoders.sparse, penalty=sparsity.l1, weight=0.1),
    "contractive": objective(autoencoders.contractive, norm=contraction.exact, weight=0.1),
    "denoising": objective(autoencoders.denoising, corrupt=corruption.masking(0.5)),
    "batch_top_k": lambda k: autoencoders.batch_top_k(k.model, k=1),
}


@cache
def shapes(name: str, conditional: bool) -> tuple[Any, Any]:
    """The parameters and a code of a kind, and under a class the same of one that sees it."""

    def made(key: Any) -> tuple[Any, Any]:
        k, x = kind(name), jnp.zeros(kind(name).x.shape)
        c = jnp.eye(3)[0] if conditional else ()
        params = k.model.init(key, x, c)
        if k.draw is not None:
            return params, k.draw(k.model, params, jax.random.key(1), x, c).z
        return params, k.model.encode(params, x, c).sample(jax.random.key(1))

    return jax.eval_shape(made, jax.random.key(0))


def traced(name: str, loss: str) -> Any:
    """The gradient of the loss for the model, its shapes alone: nothing is compiled or run."""
    k, (params, z) = kind(name), shapes(name, loss == "m2")

    def gradient(params: Any, key: Any, x: Any) -> Any:
        own_key, loss_key = jax.random.split(key)
        batch = Batch(x, y=jnp.zeros(len(x), int))
        if loss == "m2":
            params = {"model": params, "classifier": CLASSIFIER.init(own_key, x[0])}
        if loss == "factor_vae":
            code = jnp.zeros(z.size)
            params = {"model": params, "critic": nn.Dense(1).init(own_key, code)}
        if loss in ("adversarial_autoencoder", "vae_gan"):
            seen = x[0] if loss == "vae_gan" else jnp.zeros(z.shape, z.dtype)
            params = {**params, "critic": CRITIC.init(own_key, seen)}
        return jax.grad(LOSSES[loss](k), has_aux=True)(params, loss_key, batch, 0)[0]

    x = jax.ShapeDtypeStruct((3, *k.x.shape), k.x.dtype)
    return jax.eval_shape(gradient, params, jax.random.key(0), x)
