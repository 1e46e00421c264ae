"""Variational autoencoder (Kingma and Welling, 2014, arXiv:1312.6114) on images of any size.

    python -m experiments.vae [preset] --dataset NAME|tfds:NAME|FILE.npz --epochs N --seed S
    python -m experiments.vae [preset] --seeds 8 --sweep beta=1,2,4,8

The second trains all 32 in one program, beta, learning_rate, adam_epsilon and scale being what can
be swept (scale for fixed_normal), each as a run of its own would.
Expected numbers and wall times: experiments/README.md. All figures in nats per image.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import figures, run, sweep
from vaejax import data, distributions, evaluate, heads, networks, objectives, plot, train
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder
from vaejax.train.population import mean_loss
from vaejax.train.precision import mixed_precision

XAVIER = nn.initializers.xavier_uniform()


@dataclass(frozen=True)
class Config(sweep.Options):
    # digits, mnist, fashion_mnist, binarized_mnist, tfds:NAME, or a .npz or .npy FILE of images
    dataset: str = "digits"
    train_split: str = "train"  # images to train on, for instance train or train[:50000]
    test_split: str = "test"  # images to report on
    network: Literal["mlp", "conv"] = "mlp"  # dense layers; or convolutions, for images of any size
    hidden: tuple[int, ...] = (300,)  # units (mlp) or channels (conv) of the encoder's layers
    activation: Literal["relu", "tanh"] = "relu"  # nonlinearity of the hidden layers
    latent: int = 10  # latent dimensions
    # p(x|z): bernoulli binarises anew at each step, the normals see dequantised pixels in [0, 1]
    likelihood: Literal[
        "bernoulli", "fixed_normal", "shared_normal", "normal", "discretized_logistic"
    ] = "fixed_normal"
    scale: float = 0.2  # standard deviation of fixed_normal, floor of that of normal (white = 1)
    posterior: Literal["diagonal", "full_covariance"] = "diagonal"  # covariance of q(z|x)
    beta: float = 1.0  # weight of the KL; 1 is the bound
    warmup_epochs: int = 0  # epochs over which that weight rises from 0
    epochs: int = 500  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size
    adam_epsilon: float = 1e-8  # Adam's epsilon
    decay_epochs: int = 500  # epochs over which the step size falls to 0 along a cosine; 0: never
    particles: int = 200  # importance samples per image for -log p(x)
    evaluate_every: int = 10  # epochs between evaluations on the test split
    checkpoint_every: int = 50  # epochs between checkpoints
    # of the networks in training: bfloat16 pays on GPUs and TPUs alone; what is reported is float32
    precision: Literal["float32", "bfloat16"] = "float32"


DIGITS = Config()
MNIST = replace(
    DIGITS,
    dataset="mnist",
    likelihood="bernoulli",
    hidden=(400,),
    latent=20,
    batch_size=128,
    epochs=20,
    learning_rate=1e-3,
    decay_epochs=0,
    evaluate_every=1,
    checkpoint_every=1,
)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "burda": replace(
        MNIST,
        hidden=(200, 200),
        activation="tanh",
        latent=50,
        batch_size=20,
        epochs=80,
        decay_epochs=80,
        adam_epsilon=1e-4,
        evaluate_every=5,
    ),
    "manifold": replace(MNIST, hidden=(500, 500), latent=2, epochs=50, decay_epochs=50),
    "conv": replace(MNIST, network="conv", hidden=(32, 64), latent=32, particles=20),
    "gaussian": replace(MNIST, likelihood="normal", scale=0.1),
    "full_covariance": replace(MNIST, posterior="full_covariance"),
}


def build(config: Config, shape: tuple[int, ...], mean: Any) -> Model:
    """The model for data of `shape`; `mean`, in [0, 1], is where the decoder's biases start."""
    activation: Any = getattr(nn, config.activation)
    encoder: nn.Module
    decoder: nn.Module
    if config.network == "mlp":
        layers = partial(networks.MLP, activation=activation, kernel_init=XAVIER)
        encoder, decoder, start = layers(config.hidden), layers(config.hidden[::-1]), mean
    else:
        encoder = networks.ConvEncoder(config.hidden, activation)
        decoder = networks.ConvDecoder(shape, (*config.hidden[::-1], 16), activation)
        start = mean.mean(axis=(0, 1))  # one bias per channel, shared by all pixels
    posterior = {"diagonal": heads.Normal, "full_covariance": heads.FullNormal}[config.posterior]
    likelihood = {
        "bernoulli": lambda: heads.Bernoulli(shape, bias_init=heads.logit_of(start)),
        "fixed_normal": lambda: heads.FixedNormal(shape, config.scale),
        "shared_normal": lambda: heads.SharedNormal(shape),
        "normal": lambda: heads.Normal(shape, floor=config.scale),
        "discretized_logistic": lambda: heads.DiscretizedLogistic(shape),
    }[config.likelihood]()
    return autoencoder(
        nn.Sequential([encoder, posterior(config.latent)]),
        nn.Sequential([decoder, likelihood]),
        distributions.Normal(jnp.zeros(config.latent), jnp.ones(config.latent)),
    )


def transform_for(config: Config, x: Any) -> Any:
    """Stored pixels to what the likelihood sees: binarised, on the grid, or dequantised."""
    if config.likelihood == "bernoulli":
        return data.binarize
    smooth = config.likelihood != "discretized_logistic" and x.dtype == np.uint8
    return data.dequantize if smooth else data.scale


def check_images(config: Config, x: Any) -> None:
    """Refuse, before any work, what would train on nonsense."""
    if config.network == "conv" and x.ndim != 4:
        fix = "leave --network at mlp"
        raise wrong("vae: --network conv", f"vectors {x.shape}", "images", fix)
    bounded = x.ndim == 4 or config.likelihood == "bernoulli"
    if x.dtype != np.uint8 and bounded and not 0 <= x.min() <= x.max() <= 1:
        got = f"floats in [{x.min():.4g}, {x.max():.4g}]"
        raise wrong("vae: --dataset", got, "[0, 1]", "store uint8, or divide by the largest value")


def seen_by(transform: Any, key: Any, images: Any) -> Any:
    """The first images as the model sees them, from which it starts."""
    few = images[:2000]
    return jax.vmap(transform)(jax.random.split(key, len(few)), few)


def objective(config: Config, model: Model, steps: int) -> tuple[Any, Any]:
    """Loss and optimizer; `steps`: of an epoch. Numbers may be arrays that JAX traces."""
    if config.precision == "bfloat16":
        model = mixed_precision(model)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.decay_epochs * steps or 1)
    adam = optax.adam(
        rate if config.decay_epochs else config.learning_rate, eps=config.adam_epsilon
    )
    warmup = optax.linear_schedule(0.0, config.beta, config.warmup_epochs * steps)
    return objectives.elbo(model, beta=warmup if config.warmup_epochs else config.beta), adam


def measured(
    config: Config, model: Model, params: Any, keys: Any, x: Any, transform: Any
) -> dict[str, float]:
    """What is said of a trained model, in nats per image of `x`, and the effective sample size."""
    parts = evaluate.elbo_terms(model, params, keys[0], x, transform=transform)
    likelihood = evaluate.log_likelihood(
        model, params, keys[1], x, particles=config.particles, transform=transform
    )
    found = {
        "test_elbo_nats": parts["elbo"].mean(),
        "test_nll_nats": -likelihood.log_px.mean(),
        "test_ess_median": np.median(likelihood.ess),
        "test_distortion_nats": parts["distortion"].mean(),
        "test_rate_nats": parts["rate"].mean(),
    }
    return {name: float(value) for name, value in found.items()}


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            particles=4,
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split)
    counts = {"epochs": config.epochs, "particles": config.particles}
    at_least_one("vae", **counts, batch_size=config.batch_size)
    train.shuffled(len(images), config.batch_size)  # refuses a batch larger than the data
    check_images(config, images)
    if config.several:
        return many(config, images, test)
    transform = transform_for(config, images)
    keys = jax.random.split(jax.random.key(config.seed), 7)
    as_seen = seen_by(transform, keys[0], images)
    model = build(config, images.shape[1:], np.asarray(as_seen.mean(axis=0)))
    params = model.init(keys[1], as_seen[0])
    folder = run.open_folder(config, name=f"vae-{Path(config.dataset).stem}", free={"epochs"})

    loss, adam = objective(config, model, len(images) // config.batch_size)
    fitted = run.fit(
        config,
        folder,
        loss,
        adam,
        params,
        images,
        key=keys[2],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        evaluate=partial(evaluate.mean_loss, loss, data=test.x, transform=transform),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )

    print("trained; now log p(x) of the test images and the figures")
    summary = {
        **measured(config, model, fitted.params, keys[3:5], test.x, transform),
        "test_nll_particles": config.particles,
        "test_images": len(test.x),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": run.seconds(folder),
    }
    run.write_json(folder / "summary.json", summary)
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        seen = jax.vmap(transform)(jax.random.split(keys[5], len(test.x)), test.x)
        drawn = figures.vae(model, fitted.params, keys[6], seen, test.y)
        curves = {"train": fitted.history["elbo"], "test": fitted.history["eval/elbo"]}
        drawn["curves"] = plot.curves(curves, ylabel="ELBO, nats per image")
        run.save_figures(folder, drawn)
    run.report(folder, summary, note(config))
    return summary


def note(config: Config) -> str:
    """What the numbers are."""
    density = "a density of pixels in [0, 1], whose nats may have either sign"
    kind = density if "normal" in config.likelihood else "a probability"
    return f"nats per test image; p(x|z) is {kind}"


LABELS = {
    "beta": "beta, weight of the KL",
    "learning_rate": "step size of Adam",
    "adam_epsilon": "epsilon of Adam",
    "scale": "scale of p(x|z) (white = 1)",
    "elbo": "ELBO, nats per image",
    "test_elbo_nats": "ELBO, nats per test image",
    "test_nll_nats": "-log p(x), nats per test image",
    "test_distortion_nats": "distortion, nats per test image",
    "test_rate_nats": "rate, nats per test image",
}


def many(config: Config, images: Any, test: Any) -> dict[str, Any]:
    """`main` for every setting and seed of a sweep at once; returns what summary.json holds."""
    names = ["beta", "learning_rate", "adam_epsilon"]
    names += ["scale"] * (config.likelihood == "fixed_normal")
    hyper = sweep.grid(config, names)
    shape, steps = images.shape[1:], len(images) // config.batch_size
    transform = transform_for(config, images)

    def member(hyper: dict[str, Any]) -> Config:
        return replace(config, **{name: hyper[name] for name in hyper if name != "seed"})

    def built(hyper: dict[str, Any]) -> Model:
        # The mean is where the biases start, of which `init` takes care.
        return build(member(hyper), shape, np.full(shape, 0.5))

    def make(hyper: dict[str, Any]) -> tuple[Any, Any]:
        return objective(member(hyper), built(hyper), steps)

    @cache  # what can be swept does not change the start
    def started(seed: int) -> Any:
        seen_key, init_key = jax.random.split(jax.random.key(seed), 7)[:2]
        as_seen = seen_by(transform, seen_key, images)
        model = build(config, shape, np.asarray(as_seen.mean(axis=0)))
        return model.init(init_key, as_seen[0])

    def init(hyper: dict[str, Any]) -> tuple[Any, Any]:
        return started(hyper["seed"]), jax.random.split(jax.random.key(hyper["seed"]), 7)[2]

    models: dict[Any, Model] = {}  # one for each scale: a new one would be compiled anew

    def measure(hyper: dict[str, Any], params: Any) -> dict[str, float]:
        model = models.setdefault(hyper.get("scale"), built(hyper))
        keys = jax.random.split(jax.random.key(hyper["seed"]), 7)[3:5]
        found = measured(config, model, params, keys, test.x, transform)
        return {name: value for name, value in found.items() if name.endswith("_nats")}

    folder = run.open_folder(config, name=f"vae-sweep-{Path(config.dataset).stem}", free={"epochs"})
    found = sweep.fit(
        config,
        folder,
        make,
        init,
        hyper,
        images,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        evaluate=mean_loss(make, test.x, transform=transform),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )
    facts = {"test_nll_particles": config.particles, "test_images": len(test.x)}
    return sweep.report(
        config,
        folder,
        hyper,
        found,
        sweep.measured(hyper, found, measure),
        curve="elbo",
        labels=LABELS,
        facts=facts,
        note=note(config),
    )


if __name__ == "__main__":
    run.command_line(main, PRESETS, __doc__ or "")
