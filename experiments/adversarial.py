"""Adversarial autoencoders, VAE-GAN and a plain GAN on images, each with a critic of its own.

    python -m experiments.adversarial [preset] --dataset NAME|FILE.npz --epochs N --seed S

`digits`, `mnist`: an adversarial autoencoder (Makhzani et al., 2015, arXiv:1511.05644) with two
latent dimensions, its prior N(0, I), or with `_mixture` ten Gaussians on a ring; `_vae_gan`: the
critic's features as similarity (Larsen et al., 2016, arXiv:1512.09300); `_gan`: its limit without
an encoder (Goodfellow et al., 2014). An independent classifier says which classes 1000 samples
show. Expected numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from experiments.common import judge
from vaejax import adversarial, data, distributions, evaluate, heads, networks, plot
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder, generate
from vaejax.types import Loss

LEAKY = partial(nn.leaky_relu, negative_slope=0.2)


@dataclass(frozen=True)
class Config(common.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a .npz FILE of images
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    family: Literal["aae", "vae_gan", "gan"] = "aae"  # what plays against the critic
    prior: Literal["normal", "ring"] = "normal"  # N(0, I); or ten Gaussians on a ring in 2-D
    latent: int = 2  # latent dimensions
    hidden: tuple[int, ...] = (256, 256)  # units of the encoder's layers; the decoder mirrors them
    critic: tuple[int, ...] = (256, 256)  # units (aae) or channels (of images) of the critic's
    weight: float = 2.0  # of the adversarial part beside the distortion in nats (aae)
    gamma: float = 1.0  # of the feature distortion beside the adversarial part (vae_gan)
    epochs: int = 100  # passes over the training images
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam's step size for encoder and decoder, falling to 0
    critic_rate: float = 3e-3  # Adam's step size for the critic, falling to 0
    momentum: float = 0.5  # Adam's b1 for every player
    samples: int = 1000  # drawn for the classifier
    evaluate_every: int = 5  # epochs between evaluations on the test split


DIGITS = Config()
DIGITS_GAN = replace(
    DIGITS, family="gan", latent=10, critic=(16, 32), learning_rate=3e-3, momentum=0.0
)
MNIST = replace(DIGITS, dataset="mnist", hidden=(512, 512), weight=5.0, batch_size=128, epochs=20)
MNIST_GAN = replace(
    DIGITS_GAN, dataset="mnist", latent=16, hidden=(512, 256), epochs=12, critic_rate=1e-3
)
PRESETS = {
    "digits": DIGITS,
    "digits_mixture": replace(DIGITS, prior="ring"),
    "digits_vae_gan": replace(DIGITS_GAN, family="vae_gan"),
    "digits_gan": DIGITS_GAN,
    "mnist": MNIST,
    "mnist_mixture": replace(MNIST, prior="ring"),
    "mnist_vae_gan": replace(MNIST_GAN, family="vae_gan", momentum=0.5),
    "mnist_gan": MNIST_GAN,
}


def ring(components: int, *, radius: float = 3.0, scale: float = 0.5) -> distributions.Mixture:
    """Equal Gaussians of standard deviation `scale`, their centres on a circle in the plane."""
    angle = 2 * jnp.pi * jnp.arange(components) / components
    loc = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    parts = distributions.Normal(loc, jnp.full_like(loc, scale))
    return distributions.Mixture(jnp.zeros(components), parts)


def build(config: Config, shape: tuple[int, ...], mean: Any) -> tuple[Model, Any, Loss]:
    """Model, critic and loss for images of `shape`; `mean` is where a Bernoulli's biases start."""
    normal = distributions.Normal(jnp.zeros(config.latent), jnp.ones(config.latent))
    prior = ring(10) if config.prior == "ring" else normal
    aae = config.family == "aae"
    code = heads.Code(config.latent) if aae else heads.Normal(config.latent)
    start = heads.logit_of(mean)
    pixels = heads.Bernoulli(shape, bias_init=start) if aae else heads.Code(shape, nn.sigmoid)
    encoder = nn.Sequential([networks.MLP(config.hidden), code])
    decoder = nn.Sequential([networks.MLP(config.hidden[::-1]), pixels])
    if config.family == "gan":
        model = adversarial.implicit(decoder, prior)
    else:
        model = autoencoder(encoder, decoder, prior)
    if aae:
        critic = adversarial.Critic(networks.MLP(config.critic, LEAKY))
        loss = adversarial.adversarial_autoencoder(model, critic, weight=config.weight)
        return model, critic, loss
    convolutions = networks.ConvEncoder(config.critic, LEAKY)
    features = nn.Sequential([convolutions, networks.MLP((128,), LEAKY), nn.LayerNorm()])
    critic = adversarial.Critic(features)
    if config.family == "gan":
        return model, critic, adversarial.gan(model, critic)
    return model, critic, adversarial.vae_gan(model, critic, gamma=config.gamma)


def adam_for(config: Config, steps: int) -> optax.GradientTransformation:
    """Every player its own Adam, constant for half of the steps and then falling to 0."""
    half = max(steps // 2, 1)

    def adam(rate: float) -> Any:
        return optax.adam(optax.linear_schedule(rate, 0.0, half, steps - half), b1=config.momentum)

    rates = {"encoder": config.learning_rate, "decoder": config.learning_rate}
    rates |= {"critic": config.critic_rate}
    if config.family == "gan":
        del rates["encoder"]
    return optax.partition({n: adam(r) for n, r in rates.items()}, {n: n for n in rates})


def shown(classify: Any, x: np.ndarray, classes: int) -> dict[str, Any]:
    """Which classes samples show: the histogram, how many have 1 % or more, and its entropy."""
    counts = np.bincount(classify(x), minlength=classes)
    share = counts / counts.sum()
    return {
        "classes_shown": int((share >= 0.01).sum()),
        "class_entropy_nats": float(-np.sum(share * np.log(np.maximum(share, 1e-12)))),
        "class_histogram": counts.tolist(),
    }


def beside(z: Any, y: Any, prior: Any) -> Any:
    """The aggregated posterior, codes `[n, 2]` by class, and as many draws of the prior."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    # Half a class of room at both ends, so that each colour is centred on its own tick.
    ends = {} if isinstance(y, tuple) else {"vmin": np.min(y) - 0.5, "vmax": np.max(y) + 0.5}
    coloured = {"c": y, "cmap": "tab10", **ends} if ends else {}
    size = float(np.clip(4000 / len(z), 2, 12))
    points = axes[0].scatter(z[:, 0], z[:, 1], s=size, linewidths=0, **coloured)
    axes[1].scatter(prior[:, 0], prior[:, 1], s=size, linewidths=0, color="tab:grey")
    axes[0].set(title=f"aggregated posterior: codes of {len(z)} test images", ylabel="z2")
    axes[1].set(title=f"prior: {len(prior)} draws")
    for axis in axes:
        axis.set(xlabel="z1", aspect="equal")
    if coloured:
        figure.colorbar(points, ax=axes, label="class", ticks=np.unique(y))
    return figure


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            batch_size=16,
            samples=50,
            hidden=config.hidden[-2:],
            train_split="train[:64]",
            test_split="test[:32]",
        )
    images = data.load(config.dataset, config.train_split).x
    test = data.load(config.dataset, config.test_split)
    at_least_one("adversarial", epochs=config.epochs, samples=config.samples)
    if config.prior == "ring" and config.latent != 2:
        got, fix = f"{config.latent} latent dimensions", "leave --latent at 2"
        raise wrong("adversarial: --prior ring", got, "2, the plane of the ring", fix)
    # A Bernoulli sees binary pixels, a critic of images the grey ones.
    transform = data.binarize if config.family == "aae" else data.scale
    keys = jax.random.split(jax.random.key(config.seed), 7)
    x = transform(keys[0], images[0])
    scaled = images[:2000] / (255 if images.dtype == np.uint8 else 1)
    model, critic, loss = build(config, images.shape[1:], scaled.mean(axis=0))
    params = model.init(keys[1], x)
    judged = generate(model, params, keys[2]).z if config.family == "aae" else x
    params = {**params, "critic": jax.jit(critic.init)(keys[3], judged)}
    steps = config.epochs * (len(images) // config.batch_size)
    folder = common.open_folder(config, name=f"{config.family}-{Path(config.dataset).stem}")

    measure = partial(evaluate.mean_loss, loss, data=test.x, transform=transform)
    fitted = common.fit(
        config,
        folder,
        loss,
        adam_for(config, steps),
        params,
        images,
        key=keys[4],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        evaluate=measure,
        evaluate_every=config.evaluate_every,
        checkpoint_every=max(1, config.epochs // 4),
    )

    draw = jax.jit(jax.vmap(partial(generate, model, fitted.params)))
    samples = draw(jax.random.split(keys[5], config.samples))
    seen = np.clip(samples.mean, 0, 1)
    last = {
        name.removeprefix("eval/"): float(values[-1])
        for name, values in fitted.history.items()
        if name.startswith("eval/")
    }
    summary = {
        f"test_{name.replace('/', '_')}": value for name, value in last.items() if name != "loss"
    }
    summary["critic_has_won"] = last["critic_accuracy"] > 0.95
    if not isinstance(test.y, tuple):
        classify, error = judge(
            config.dataset, train_split=config.train_split, test_split=config.test_split
        )
        summary |= shown(classify, seen, int(np.max(test.y)) + 1) | {"judge_error": error}
    drawn = {"samples": plot.images(seen[:100], columns=10, title="samples, z ~ p(z)")}
    if config.family != "gan":
        codes_key, x_key, prior_key = jax.random.split(keys[6], 3)
        z = evaluate.codes(model, fitted.params, codes_key, test.x, transform=transform)
        log_p = jax.vmap(model.prior(fitted.params).log_prob)
        summary["codes_cross_entropy_nats"] = float(-np.mean(log_p(z)))  # -E log p(z), z ~ q(z)
        summary["prior_entropy_nats"] = float(-np.mean(log_p(samples.z)))
        x = test.x[:10] / (255 if test.x.dtype == np.uint8 else 1)
        seen = evaluate.reconstructions(model, fitted.params, x_key, x)
        drawn["reconstructions"] = plot.reconstructions(x, np.clip(seen, 0, 1))
        if config.latent == 2:
            as_many = jax.random.split(prior_key, len(z))
            wanted = jax.vmap(model.prior(fitted.params).sample)(as_many)
            drawn["codes"] = beside(np.asarray(z), test.y, np.asarray(wanted))
    drawn |= curves(fitted.history)
    summary |= {"epochs": config.epochs, "seconds_train": common.seconds(folder)}
    common.write_json(folder / "summary.json", summary)
    common.save_figures(folder, drawn)
    common.report(folder, summary, note(summary))
    return summary


def curves(history: Any) -> dict[str, Any]:
    """The players' losses, and what the encoder and decoder are to lower beside."""
    game = {"critic": history["critic/loss"], "generator": history["fooling"]}
    drawn = {"players": plot.curves(game, title="the game", ylabel="adversarial loss, nats")}
    names = [name for name in ("distortion", "feature_distortion", "rate") if name in history]
    if names:
        drawn["curves"] = plot.curves({name: history[name] for name in names})
    accuracy = {"train": history["critic_accuracy"], "test": history["eval/critic_accuracy"]}
    ylabel = "share of right answers"
    drawn["critic"] = plot.curves(accuracy, title="the critic (1/2: a coin)", ylabel=ylabel)
    return drawn


def note(summary: dict[str, Any]) -> str:
    """A word on the units, and a warning where a player has lost."""
    text = "nats per test image; accuracy 1/2 is a coin's"
    if summary["critic_has_won"]:
        text += (
            "; WARNING: the critic has won (accuracy above 0.95): the generator learns "
            "little: lower --critic-rate, or make the critic smaller"
        )
    if summary.get("classes_shown", 0) < len(summary.get("class_histogram", [])):
        text += "; WARNING: the samples do not show every class (mode collapse?)"
    return text


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
