"""One small member of every family: what trains it, and what it makes of one example."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from tests.whole import modules
from vaejax import (
    Batch,
    Model,
    adversarial,
    autoencoder,
    autoencoders,
    autoregressive,
    causal,
    conditional,
    contraction,
    corruption,
    disentangle,
    flows,
    generate,
    heads,
    hierarchical,
    networks,
    objectives,
    posteriors,
    priors,
    quantized,
    reconstruct,
    recurrent,
    semisupervised,
    sparsity,
    stacked,
    tied,
)
from vaejax.distributions import Categorical, Mixture, Normal

SHAPE, LATENT, EXAMPLES = (4, 4, 1), 3, 32
KEY = jax.random.key(0)
PRIOR = Normal(jnp.zeros(LATENT), jnp.ones(LATENT))


def images() -> jax.Array:
    """Bright rows and columns with some noise: three numbers say most of what an image holds."""
    position_key, which_key, noise_key = jax.random.split(KEY, 3)
    line = jax.nn.one_hot(jax.random.randint(position_key, (EXAMPLES,), 0, 4), 4)
    row = jnp.broadcast_to(line[:, :, None], (EXAMPLES, 4, 4))
    vertical = jax.random.bernoulli(which_key, 0.5, (EXAMPLES, 1, 1))
    x = jnp.where(vertical, row, row.transpose(0, 2, 1))
    return (0.8 * x + 0.2 * jax.random.uniform(noise_key, x.shape))[..., None]


X = images()
BINARY = (X > 0.5).astype(jnp.float32)
LABELS = jnp.argmax(jnp.sum(X, axis=(1, 3))[:, :3], axis=1)


def mlp(
    code: Any = None, likelihood: Any = None, prior: Any = None, hidden: tuple[int, ...] = (16,)
) -> Model:
    code, likelihood = code or heads.Code(LATENT), likelihood or heads.FixedNormal(SHAPE, 0.5)
    return autoencoder(
        nn.Sequential([networks.MLP(hidden), code]),
        nn.Sequential([networks.MLP(hidden[::-1]), likelihood]),
        prior,
    )


def linear(code: Any) -> Model:
    return autoencoder(code, heads.FixedNormal(SHAPE, 0.5))


def convolutional() -> Model:
    return autoencoder(
        nn.Sequential([networks.ConvEncoder((4, 4)), heads.Code(LATENT)]),
        nn.Sequential([networks.ConvDecoder(SHAPE, (4, 4)), heads.FixedNormal(SHAPE, 0.5)]),
    )


def wide(activation: Any) -> Model:
    return linear(heads.Code(24, activation))


def two_levels() -> Model:
    top = autoencoder(heads.Code(LATENT), heads.FixedNormal((8,), 0.5))
    return stacked.stack([linear(heads.Code(8, nn.relu)), top])


def sparse(penalty: Any, weight: float) -> Callable[[Model], Any]:
    return partial(autoencoders.sparse, penalty=penalty, weight=weight)


def contractive(norm: Any) -> Callable[[Model], Any]:
    return partial(autoencoders.contractive, norm=norm, weight=0.01)


def vae(posterior: Any = None, likelihood: Any = None) -> Callable[[], Model]:
    return partial(mlp, posterior or heads.Normal(LATENT), likelihood, PRIOR)


RECONSTRUCTION = autoencoders.reconstruction
ZOO = {
    "linear": (partial(linear, heads.Code(LATENT)), RECONSTRUCTION),
    "tied": (lambda: tied(mlp()), RECONSTRUCTION),
    "deep": (partial(mlp, hidden=(16, 8)), RECONSTRUCTION),
    "bernoulli": (partial(mlp, likelihood=heads.Bernoulli(SHAPE)), RECONSTRUCTION),
    "convolutional": (convolutional, RECONSTRUCTION),
    "top_k": (partial(linear, heads.TopK(24, 3)), RECONSTRUCTION),
    "denoising": (mlp, partial(autoencoders.denoising, corrupt=corruption.masking(0.3))),
    "l1": (lambda: sparsity.unit_columns(wide(nn.relu)), sparse(sparsity.l1, 0.1)),
    "kl": (partial(wide, nn.sigmoid), sparse(sparsity.kl(0.1), 0.1)),
    "squared": (partial(wide, nn.relu), sparse(sparsity.squared(0.2), 0.1)),
    "batch_top_k": (partial(wide, nn.relu), partial(autoencoders.batch_top_k, k=4)),
    "contractive": (partial(wide, nn.sigmoid), contractive(contraction.closed_form)),
    "contractive_deep": (mlp, contractive(contraction.exact)),
    "contractive_estimated": (mlp, contractive(contraction.hutchinson(2))),
    "higher_order_contractive": (
        partial(wide, nn.sigmoid),
        partial(
            autoencoders.higher_order_contractive,
            norm=contraction.closed_form,
            weight=0.01,
            curvature=0.01,
            scale=0.1,
        ),
    ),
    "stacked": (two_levels, RECONSTRUCTION),
    "denoising_vae": (
        vae(),
        partial(objectives.elbo, draw=autoencoders.corrupted(corruption.gaussian(0.1))),
    ),
    "vae": (vae(), objectives.elbo),
    "full_covariance": (vae(heads.FullNormal(LATENT)), objectives.elbo),
    "bernoulli_vae": (vae(likelihood=heads.Bernoulli(SHAPE)), objectives.elbo),
    "iwae": (vae(), partial(objectives.iwae, particles=3)),
    "dreg": (vae(), partial(objectives.dreg, particles=3)),
    "miwae": (vae(), partial(objectives.miwae, outer=2, inner=2)),
}


class Member(NamedTuple):
    """What the suite needs of a family.

    `init(key) -> params`; `loss` and the `batch` that it is given; `outputs(params, x)`: what it
    makes of one example without noise; `sample(params, key)`: an event, or None without a prior.
    """

    init: Callable[[Any], Any]
    loss: Any
    outputs: Callable[[Any, Any], Any]
    sample: Callable[[Any, Any], Any] | None
    batch: Batch = Batch(X)
    optimizer: Any = optax.adam(1e-2)
    model: Any = None
    falls: str = "loss"


def with_model(model: Model, objective: Callable[[Model], Any]) -> Member:
    """A model of images and the objective that trains it."""
    has_prior = jax.eval_shape(lambda k: model.prior(model.init(k, X[0])), KEY) is not None
    return Member(
        lambda key: model.init(key, X[0]),
        objective(model),
        partial(reconstruct, model),
        (lambda params, key: generate(model, params, key).x) if has_prior else None,
        model=model,
    )


MEMBERS: dict[str, Callable[[], Member]] = {
    name: partial(lambda build, objective: with_model(build(), objective), *entry)
    for name, entry in ZOO.items()
}


def players(*names: str) -> optax.GradientTransformation:
    """Every player by an Adam of its own."""
    return optax.partition(
        {name: optax.adam(1e-2) for name in names}, {name: name for name in names}
    )


def density(network: Any, x: Any = None) -> Member:
    """A network without latent variables: its one number is log p(x), its sample is exact."""
    return Member(
        network.init,
        objectives.maximum_likelihood(network),
        lambda params, x: network.apply(params).log_prob(x),
        lambda params, key: network.apply(params).sample(key),
        Batch(BINARY if x is None else x),
    )


def conditional_vae() -> Member:
    """A learned p(z|c), and images to complete: c is what is seen of x, anew at each step."""
    decoder = nn.Sequential([networks.MLP((16,)), heads.Bernoulli(SHAPE)])
    model = autoencoder(
        nn.Sequential([networks.MLP((16,)), heads.Normal(LATENT)]),
        conditional.Completing(decoder),
        nn.Sequential([networks.MLP((16,)), heads.Normal(LATENT)]),
    )
    half = jnp.zeros(SHAPE).at[:2].set(1.0)
    return Member(
        lambda key: model.init(key, X[0], (X[0], half)),
        conditional.conditioned(
            objectives.elbo(model), conditional.observed(corruption.erased_block(2))
        ),
        lambda params, x: reconstruct(model, params, x, (half * x, half)),
        lambda params, key: generate(model, params, key, (half * X[0], half)).x,
        Batch(BINARY),
    )


def class_conditional() -> Member:
    model = vae(likelihood=heads.Bernoulli(SHAPE))()
    three = jax.nn.one_hot(2, 3)
    return Member(
        lambda key: model.init(key, X[0], three),
        objectives.elbo(model),
        lambda params, x: reconstruct(model, params, x, three),
        lambda params, key: generate(model, params, key, three).x,
        Batch(BINARY, c=conditional.one_hot(LABELS, 3)),
    )


def few_labels() -> Member:
    model = vae(likelihood=heads.Bernoulli(SHAPE))()
    classifier = nn.Sequential([networks.MLP((16,)), heads.Categorical((), 3)])
    joint = semisupervised.Joint(model, classifier, Categorical(jnp.zeros(3)))
    c = jax.nn.one_hot(1, 3)
    return Member(
        lambda key: joint.init(key, X[0]),
        semisupervised.m2(joint, alpha=1.0),
        lambda params, x: joint.classifier.apply(params["classifier"], x).mean,
        lambda params, key: generate(model, params["model"], key, c).x,
        Batch(BINARY, y=jnp.where(jnp.arange(EXAMPLES) < 8, LABELS, -1)),
    )


def factor_vae() -> Member:
    model = vae()()
    critic = nn.Sequential([networks.MLP((16,)), nn.Dense(1)])

    def init(key: Any) -> Any:
        one, other = jax.random.split(key)
        return {"model": model.init(one, X[0]), "critic": critic.init(other, jnp.zeros(LATENT))}

    return Member(
        init,
        disentangle.factor_vae(model, critic, gamma=2.0),
        lambda params, x: reconstruct(model, params["model"], x),
        lambda params, key: generate(model, params["model"], key).x,
        Batch(X),
        players("model", "critic"),
    )


def game(
    objective: Any, model: Model, judges: Any, names: tuple[str, ...], falls: str = "loss"
) -> Member:
    """Two or three players: the sum of their losses need not fall, what one of them wants does."""
    critic = adversarial.Critic(networks.MLP((16,)))
    whole = objective(model, critic)

    def init(key: Any) -> Any:
        one, other = jax.random.split(key)
        return {**model.init(one, X[0]), "critic": critic.init(other, judges)}

    def outputs(params: Any, x: Any) -> Any:
        return (
            reconstruct(model, params, x)
            if "encoder" in names
            else critic.apply(params["critic"], x)[1]
        )

    return Member(
        init,
        whole,
        outputs,
        lambda params, key: generate(model, params, key).mean,
        Batch(X),
        players(*names),
        falls=falls,
    )


def gan() -> Member:
    generator = nn.Sequential([networks.MLP((16,)), heads.Code(SHAPE, nn.sigmoid)])
    return game(
        adversarial.gan,
        adversarial.implicit(generator, PRIOR),
        X[0],
        ("decoder", "critic"),
        falls="critic/loss",
    )


def quantised() -> Member:
    model = quantized.quantize(mlp(heads.Code((2, 2, 3))), entries=6)
    return with_model(model, quantized.vq_vae)._replace(
        optimizer=optax.partition(
            {"model": optax.adam(1e-2), "codebook": optax.sgd(0.1)},
            {"model": "model", "codebook": "codebook"},
        )
    )


def two_layers() -> Model:
    def net(head: Any) -> Any:
        return nn.Sequential([networks.MLP((8,)), head])

    return hierarchical.layers(
        autoencoder(net(heads.Normal(LATENT)), net(heads.FixedNormal(SHAPE, 0.5))),
        encoders=[net(heads.Normal(2))],
        decoders=[net(heads.Normal(LATENT))],
        prior=Normal(jnp.zeros(2), jnp.ones(2)),
    )


def drawn(model: Model, objective: Any) -> Member:
    """A model whose posterior has no mean: it reconstructs at a draw."""
    key = jax.random.key(5)
    return with_model(model, objective)._replace(
        outputs=lambda params, x: reconstruct(model, params, x, key=jax.random.clone(key))
    )


def recurrent_vae(cell: Any = recurrent.Cell(8)) -> Member:  # noqa: B008
    """Rows of an image as steps, two of them masked at the ends of some sequences."""
    step = autoencoder(
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
        nn.Sequential([networks.MLP((8,)), heads.FixedNormal((4,), 0.5)]),
        nn.Sequential([networks.MLP((8,)), heads.Normal(2)]),
    )
    vrnn = recurrent.vrnn(step, cell, features=8)
    key = jax.random.key(5)
    mask = jnp.arange(4)[None] < jnp.where(jnp.arange(EXAMPLES) % 2, 4, 2)[:, None]
    return Member(
        lambda key: vrnn.model.init(key, X[0, ..., 0]),
        objectives.elbo(vrnn.model, draw=vrnn.draw),
        lambda params, x: vrnn.draw(vrnn.model, params, jax.random.clone(key), x).px.mean,
        lambda params, key: vrnn.generate(params, key, steps=4).x,
        Batch((X[..., 0], mask)),
    )


def with_features(features: Any, noise: str) -> Member:
    """A VAE whose encoder and decoder are of NNX or Equinox, under heads of the library."""

    def net(inputs: int, outputs: int) -> Any:
        if noise == "rngs":
            return lambda rngs: features(inputs, outputs, rngs)
        return lambda key: features(inputs, outputs, key)

    encoder = networks.sequential(net(16, 8), heads.Normal(LATENT))
    decoder = networks.sequential(net(LATENT, 8), heads.Bernoulli(SHAPE))
    return with_model(autoencoder(encoder, decoder, PRIOR), objectives.elbo)


def with_convolution(features: Any) -> Member:
    decoder = nn.Sequential([networks.MLP((16,)), heads.Bernoulli(SHAPE)])
    encoder = networks.sequential(features, heads.Normal(LATENT))
    return with_model(autoencoder(encoder, decoder, PRIOR), objectives.elbo)


def sentences() -> Member:
    """Rows of pixels as words of two letters, behind which a third one ends them."""
    x = jnp.concatenate([BINARY.reshape(EXAMPLES, 16)[:, :5], jnp.full((EXAMPLES, 1), 2.0)], 1)
    language = recurrent.Language(3, 8, end=2, word_dropout=0.3)
    model = autoencoder(
        nn.Sequential([recurrent.TextEncoder(3, 8, end=2), heads.Normal(LATENT)]),
        autoregressive.Causal(language, (6,), jnp.int32),
        PRIOR,
    )
    x = x.astype(jnp.int32)
    return Member(
        lambda key: model.init(key, x[0]),
        objectives.elbo(model),
        lambda params, x: model.decode(params, model.encode(params, x).mean).log_prob(x),
        lambda params, key: generate(model, params, key).x,
        Batch(x),
    )


def text() -> Any:
    return autoregressive.Causal(recurrent.Language(2, 8), (16,), jnp.int32)


def backwards(net: Any) -> Any:
    return autoregressive.Causal(net, SHAPE, order=tuple(range(15, -1, -1)))


aae = partial(adversarial.adversarial_autoencoder, weight=0.1)
RING = Mixture(jnp.zeros(4), Normal(3 * jnp.eye(4)[:, :LATENT], jnp.full((4, LATENT), 0.5)))
THREE = ("encoder", "decoder", "critic")
MEMBERS |= {
    "class_conditional": class_conditional,
    "completion": conditional_vae,
    "semi_supervised": few_labels,
    "beta_tcvae": lambda: with_model(vae()(), partial(disentangle.beta_tcvae, beta=4.0)),
    "factor_vae": factor_vae,
    "adversarial_autoencoder": lambda: game(
        aae, mlp(prior=PRIOR), jnp.zeros(LATENT), THREE, falls="distortion"
    ),
    "adversarial_autoencoder_mixture": lambda: game(
        aae, mlp(prior=RING), jnp.zeros(LATENT), THREE, falls="distortion"
    ),
    "vae_gan": lambda: game(
        partial(adversarial.vae_gan, gamma=1.0),
        mlp(heads.Normal(LATENT), heads.Code(SHAPE, nn.sigmoid), PRIOR),
        X[0],
        THREE,
        falls="critic/loss",
    ),
    "gan": gan,
    "mixture_prior": lambda: with_model(priors.mixture_prior(vae()(), 3), objectives.elbo),
    "vamp_prior": lambda: with_model(priors.vamp_prior(vae()(), 3), objectives.elbo),
    "flow_prior": lambda: with_model(
        priors.flow_prior(vae()(), flows.coupling(LATENT, layers=2, hidden=(8,))), objectives.elbo
    ),
    "planar_posterior": lambda: drawn(
        posteriors.planar_posterior(vae()(), LATENT, layers=2), objectives.elbo
    ),
    "iaf_posterior": lambda: drawn(
        posteriors.iaf_posterior(vae()(), LATENT, hidden=(8,)), objectives.elbo
    ),
    "coupling_density": lambda: density(
        flows.Density(flows.coupling(4, layers=2, hidden=(8,))), X[:, 0, :, 0]
    ),
    "two_layers": lambda: drawn(two_layers(), objectives.elbo),
    "two_layers_iwae": lambda: drawn(two_layers(), partial(objectives.iwae, particles=2)),
    "made": lambda: density(backwards(causal.MADE(SHAPE, (16, 16)))),
    "gated_pixelcnn": lambda: density(
        autoregressive.Causal(causal.GatedPixelCNN(SHAPE, features=4, layers=2), SHAPE)
    ),
    "language": lambda: density(text(), BINARY.reshape(EXAMPLES, 16).astype(jnp.int32)),
    "vrnn": recurrent_vae,
    "sentence_vae": sentences,
    "nnx_vae": lambda: with_features(modules.NNXFeatures, "rngs"),
    "nnx_convolution": lambda: with_convolution(modules.NNXConvolution),
    "nnx_vrnn": lambda: recurrent_vae(lambda rngs: modules.NNXCell(6, 8, rngs)),
    "nnx_causal": lambda: density(autoregressive.Causal(modules.NNXCausal, SHAPE)),
    "equinox_vae": lambda: with_features(modules.EquinoxFeatures, "key"),
    "equinox_convolution": lambda: with_convolution(modules.EquinoxConvolution),
    "equinox_vrnn": lambda: recurrent_vae(lambda key: modules.EquinoxCell(6, 8, key)),
    "equinox_causal": lambda: density(autoregressive.Causal(modules.EquinoxCausal, SHAPE)),
    "vector_quantised": quantised,
}
