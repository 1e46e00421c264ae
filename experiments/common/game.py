"""Players of an adversarial game on images: networks, optimizers, what they show, pictures."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common.image_vae import standard_normal
from experiments.common.judge import judge
from experiments.common.recipe import Trained
from vaejax import adversarial, distributions, evaluate, heads, networks, plot
from vaejax.model import Model, autoencoder
from vaejax.types import Batch, Key, Loss

__all__ = [
    "adam_for",
    "beside",
    "curves",
    "game_of",
    "judged",
    "last",
    "note",
    "pictures",
    "ring",
    "shown",
    "swept",
]

LEAKY = partial(nn.leaky_relu, negative_slope=0.2)


def ring(components: int, *, radius: float = 3.0, scale: float = 0.5) -> distributions.Mixture:
    """Equal Gaussians of standard deviation `scale`, their centres on a circle in the plane."""
    angle = 2 * jnp.pi * jnp.arange(components) / components
    loc = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    parts = distributions.Normal(loc, jnp.full_like(loc, scale))
    return distributions.Mixture(jnp.zeros(components), parts)


def game_of(config: Any, shape: tuple[int, ...], mean: Any) -> tuple[Model, Any, Loss]:
    """Model, critic and loss.

    Args:
      config: of experiments.adversarial.
      shape: of an image.
      mean: the mean image in [0, 1], where a Bernoulli's biases start.
    """
    prior = ring(10) if config.prior == "ring" else standard_normal(config.latent)
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


def adam_for(config: Any, steps: int) -> optax.GradientTransformation:
    """An Adam for every player, constant for half of the `steps` and then falling to 0."""
    half = max(steps // 2, 1)

    def adam(rate: float) -> Any:
        return optax.adam(optax.linear_schedule(rate, 0.0, half, steps - half), b1=config.momentum)

    rates = {"encoder": config.learning_rate, "decoder": config.learning_rate}
    rates |= {"critic": config.critic_rate}
    if config.family == "gan":
        del rates["encoder"]
    return optax.partition({n: adam(r) for n, r in rates.items()}, {n: n for n in rates})


def swept(config: Any) -> list[str]:
    """What `--sweep` of experiments.adversarial takes: of the weights the one that is in use."""
    weight = {"aae": ["weight"], "vae_gan": ["gamma"]}.get(config.family, [])
    return ["learning_rate", "critic_rate", *weight]


def shown(classify: Any, x: np.ndarray, classes: int) -> dict[str, Any]:
    """Which of `classes` classes samples show, as `classify(x)` says.

    Returns:
      How many classes have 1 % of the samples or more, the histogram, and its entropy in nats.
    """
    counts = np.bincount(classify(x), minlength=classes)
    share = counts / counts.sum()
    return {
        "classes_shown": int((share >= 0.01).sum()),
        "class_entropy_nats": float(-np.sum(share * np.log(np.maximum(share, 1e-12)))),
        "class_histogram": counts.tolist(),
    }


def judged(config: Any, x: np.ndarray, classes: int) -> dict[str, Any]:
    """What `shown` says by a classifier trained on the data of `config`, and its own error."""
    classify, error = judge(
        config.dataset, train_split=config.train_split, test_split=config.test_split
    )
    return shown(classify, x, classes) | {"judge_error": error}


def beside(z: Any, y: Any, prior: Any) -> Any:
    """Codes z `[n, 2]`, coloured by class y `[n]` or `()`, beside draws of the prior."""
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


def last(history: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The game's numbers on the test images at the end, and whether the critic has won."""
    numbers: dict[str, Any] = {
        name.replace("eval/", "test_", 1).replace("/", "_"): float(values[-1])
        for name, values in history.items()
        if name.startswith("eval/") and name != "eval/loss"
    }
    return numbers | {"critic_has_won": numbers["test_critic_accuracy"] > 0.95}


def pictures(one: Trained, keys: Key, test: Batch, z: Any) -> dict[str, Any]:
    """Reconstructions, and codes of two dimensions beside the prior.

    Args:
      one: a trained model with an encoder.
      keys: two, `[2]`: of the reconstructions and of the prior's draws.
      test: stored images and their labels.
      z: their codes, `[n, latent]`.
    """
    x = test.x[:10] / (255 if test.x.dtype == np.uint8 else 1)
    rebuilt = evaluate.reconstructions(one.model, one.params, keys[0], x)
    drawn = {"reconstructions": plot.reconstructions(x, np.clip(rebuilt, 0, 1))}
    if z.shape[1] == 2:
        draws = jax.random.split(keys[1], len(z))
        wanted = jax.vmap(one.model.prior(one.params).sample)(draws)
        drawn["codes"] = beside(np.asarray(z), test.y, np.asarray(wanted))
    return drawn


def curves(history: Any) -> dict[str, Any]:
    """Figures of the players' losses, of what the decoder lowers beside them, and of the critic."""
    game = {"critic": history["critic/loss"], "generator": history["fooling"]}
    drawn = {"players": plot.curves(game, title="the game", ylabel="adversarial loss, nats")}
    names = [name for name in ("distortion", "feature_distortion", "rate") if name in history]
    if names:
        drawn["curves"] = plot.curves({name: history[name] for name in names})
    accuracy = {"train": history["critic_accuracy"], "test": history["eval/critic_accuracy"]}
    ylabel = "share of right answers"
    drawn["critic"] = plot.curves(accuracy, title="the critic (1/2: a coin)", ylabel=ylabel)
    return drawn


def note(config: Any, summary: dict[str, Any]) -> str:
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
