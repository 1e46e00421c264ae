"""Recurrent models: a VRNN (Chung et al., 2015, arXiv:1506.02216) and a sentence VAE (Bowman et
al., 2016, arXiv:1511.06349).

    python -m experiments.recurrent [preset] --epochs N --seed S

Presets: `digits` and `mnist` read images row by row with a VRNN; `linear` trains it on noisy
linear-Gaussian sequences of different lengths, whose true likelihood a Kalman filter knows and no
model's bound exceeds on average; `sentences` is a VAE over the lines of a text (--text FILE, by
default the language reference that comes with Python), trained with word dropout and an annealed
KL: its rate, and whether the code collapsed, are in the summary. Figures in nats per sequence;
numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from experiments.common import characters as of_text
from vaejax import data, diagnostics, evaluate, heads, networks, objectives, plot, recurrent
from vaejax import model as models
from vaejax import text as texts
from vaejax.distributions import Normal, kl
from vaejax.errors import at_least_one
from vaejax.networks.autoregressive import Causal


@dataclass(frozen=True)
class Config(common.Options):
    kind: Literal["rows", "linear", "sentences"] = "rows"  # what the sequences are
    dataset: str = "digits"  # of rows: digits, mnist, fashion_mnist, or a .npz or .npy FILE
    text: Path | None = None  # of sentences: a text file; by default Python's language reference
    shortest: int = 20  # characters of the shortest line that counts as a sentence
    longest: int = 60  # and of the longest
    features: int = 64  # units of the recurrent networks
    latent: int = 8  # latent dimensions, of each step in a VRNN
    epochs: int = 60  # passes over the training sequences
    batch_size: int = 64  # sequences per step
    learning_rate: float = 3e-3  # Adam's step size, which falls to 0 along a cosine
    warmup_epochs: int = 0  # epochs over which the weight of the KL rises from 0 to 1
    word_dropout: float = 0.0  # share of the decoder's input characters that are hidden
    particles: int = 50  # importance samples per sequence for -log p(x)
    measured: int = 1000  # test sequences for -log p(x), at most


PRESETS = {
    "digits": Config(),
    "mnist": Config(dataset="mnist", features=128, latent=16, epochs=5, batch_size=128),
    "linear": Config("linear", features=32, latent=2, epochs=15),
    "sentences": Config(
        "sentences", features=128, latent=16, epochs=10, warmup_epochs=5, word_dropout=0.5
    ),
}

MIX = np.array([[1.0, 0.5], [-0.7, 1.0], [0.3, -1.0]])  # of the linear-Gaussian sequences
TURN = 0.9 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
NOISE, BLUR = 0.5, 0.4


class Task(NamedTuple):
    """What is trained on what, and what else there is to say of it."""

    model: models.Model
    draw: Any
    train: Any
    test: Any
    transform: Any
    finish: Any  # (params, key) -> (more numbers, figures)


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            epochs=2,
            warmup_epochs=min(1, config.warmup_epochs),
            features=8,
            batch_size=16,
            latent=2,
            particles=2,
            measured=16,
        )
    at_least_one("recurrent", epochs=config.epochs, latent=config.latent)
    keys = jax.random.split(jax.random.key(config.seed), 6)
    task = {"rows": rows, "linear": linear, "sentences": sentences}[config.kind](config)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), task.train)
    params = task.model.init(keys[0], task.transform(keys[1], first) if task.transform else first)
    folder = common.open_folder(config, name=f"recurrent-{config.kind}")

    size = len(jax.tree.leaves(task.train)[0])
    steps = size // config.batch_size
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_epochs * steps)
    loss = objectives.elbo(task.model, beta=warmup if config.warmup_epochs else 1.0, draw=task.draw)
    measure = {"draw": task.draw, "transform": task.transform}

    def measured(params: Any, key: Any) -> dict[str, float]:
        found = evaluate.elbo_terms(task.model, params, key, task.test, **measure)
        return {"loss": -float(found["elbo"].mean())} | {
            n: float(v.mean()) for n, v in found.items()
        }

    rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    fitted = common.fit(
        config,
        folder,
        loss,
        optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate)),
        params,
        task.train,
        key=keys[2],
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=task.transform,
        evaluate=measured,
    )

    final = measured(fitted.params, keys[3])
    few = jax.tree.map(lambda leaf: leaf[: config.measured], task.test)
    likelihood = evaluate.log_likelihood(
        task.model, fitted.params, keys[4], few, particles=config.particles, **measure
    )
    more, figures = task.finish(fitted.params, keys[5], folder)
    summary = {
        "test_elbo_nats": final["elbo"],
        "test_distortion_nats": final["distortion"],
        "test_rate_nats": final["rate"],
        "collapsed": final["rate"] < 0.1,
        "test_nll_nats": float(-likelihood.log_px.mean()),
        "test_nll_particles": config.particles,
        "test_nll_sequences": len(likelihood.log_px),
        "test_sequences": len(jax.tree.leaves(task.test)[0]),
        **more,
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    common.write_json(folder / "summary.json", summary)
    curves = {name: fitted.history[at] for name, at in (("train", "elbo"), ("test", "eval/elbo"))}
    figures["curves"] = plot.curves(curves, ylabel="ELBO, nats per sequence")
    if "kalman_nll_nats" in more:
        axes = figures["curves"].axes[0]
        axes.axhline(-more["kalman_nll_nats"], color="0.5", ls=":", label="log p(x), Kalman (test)")
        axes.legend(frameon=False)
    common.save_figures(folder, figures)
    common.report(folder, summary, "nats per test sequence")
    return summary


def rows(config: Config) -> Task:
    """Binarised images, read from top to bottom by a VRNN."""
    train, test = (
        data.load(config.dataset, f"{split}[:64]" if config.smoke else split).x[..., 0]
        for split in ("train", "test")
    )
    vrnn = _vrnn(config, heads.Bernoulli(train.shape[2]))
    height = train.shape[1]

    def finish(params: Any, key: Any, folder: Path) -> Any:
        make_key, see_key, complete_key, rate_key = jax.random.split(key, 4)
        make = jax.jit(jax.vmap(partial(vrnn.generate, params, steps=height)))
        made = make(jax.random.split(make_key, 64))
        few = jnp.asarray(test[:256])
        seen = jax.jit(jax.vmap(data.binarize))(jax.random.split(see_key, len(few)), few)
        complete = jax.vmap(
            lambda key, x: vrnn.generate(params, key, steps=height, x=x, known=height // 2)
        )
        wanted = jnp.repeat(seen[:8], 6, axis=0)
        drawn = jax.jit(complete)(jax.random.split(complete_key, len(wanted)), wanted).x
        grid = jnp.concatenate([seen[:8, None], drawn.reshape(8, 6, *seen.shape[1:])], axis=1)
        figures = {
            "samples": plot.images(made.mean, title="samples: mean of each row's p(x|z, h)"),
            "completions": plot.images(
                grid.reshape(-1, *seen.shape[1:]),
                columns=7,
                title="test image (first), and draws of its lower half given the upper",
            ),
            "rates": _rates(vrnn, params, rate_key, seen),
        }
        return {}, figures

    return Task(vrnn.model, vrnn.draw, train, test, data.binarize, finish)


def linear(config: Config) -> Task:
    """Noisy turns of a point, 5 to 20 steps of them, and what a Kalman filter says of them."""
    rng = np.random.default_rng(config.seed)
    made = [_turns(rng, length) for length in rng.integers(5, 21, 96 if config.smoke else 4000)]
    values, mask = recurrent.padded(made)
    x, split = (values.astype(np.float32), mask), len(made) * 3 // 4
    vrnn = _vrnn(config, heads.Normal(len(MIX)))

    def finish(params: Any, key: Any, folder: Path) -> Any:
        make_key, rate_key = jax.random.split(key)
        make = jax.jit(jax.vmap(partial(vrnn.generate, params, steps=20)))
        drawn = make(jax.random.split(make_key, 4)).x
        figures = {"rates": _rates(vrnn, params, rate_key, test)}
        for name, shown in (("data", values[mask.all(axis=1)]), ("samples", drawn)):
            lines = {f"sequence {i + 1}": one[:, 0] for i, one in enumerate(shown[:4])}
            figures[name] = plot.curves(lines, xlabel="step", ylabel="first coordinate", title=name)
        return {"kalman_nll_nats": float(-np.mean([kalman(one) for one in made[split:]]))}, figures

    train, test = (tuple(leaf[part] for leaf in x) for part in (slice(split), slice(split, None)))
    return Task(vrnn.model, vrnn.draw, train, test, None, finish)


def sentences(config: Config) -> Task:
    """Lines of a text as an ordinary VAE with a recurrent encoder and decoder."""
    whole = of_text.read(config.text)
    lines = [line.strip() for line in whole.splitlines()]
    lines = [one for one in lines if config.shortest <= len(one) <= config.longest]
    lines = lines[:96] if config.smoke else lines
    characters = texts.vocabulary("".join(lines))
    x, split = texts.lines(lines, characters, config.longest + 1), len(lines) * 9 // 10
    end = len(characters)
    decoder = recurrent.Language(end + 1, config.features, end, config.word_dropout)
    encoder = recurrent.TextEncoder(end + 1, config.features, end)
    model = models.autoencoder(
        nn.Sequential([encoder, heads.Normal(config.latent)]),
        Causal(decoder, (config.longest + 1,), jnp.int32),
        Normal(jnp.zeros(config.latent), jnp.ones(config.latent)),
    )

    def finish(params: Any, key: Any, folder: Path) -> Any:
        sample_key, path_key = jax.random.split(key)
        decode = jax.jit(jax.vmap(lambda key, z: model.decode(params, z).sample(key)))
        z = jax.vmap(model.prior(params).sample)(jax.random.split(sample_key, 8))
        ends = [model.encode(params, jnp.asarray(x[split + i])).mean for i in (0, 1)]
        path = jnp.stack([(1 - w) * ends[0] + w * ends[1] for w in np.linspace(0, 1, 7)])
        # The same random numbers all along the path: what changes is the code's doing.
        same = jnp.stack([jax.random.clone(path_key)] * len(path))
        written = {
            "samples from the prior": decode(jax.random.split(jax.random.fold_in(key, 1), 8), z),
            "from one test line to another": [x[split], *decode(same, path), x[split + 1]],
        }
        said = "".join(
            f"--- {title}\n" + "".join(f"{texts.decode(row, characters)}\n" for row in block)
            for title, block in written.items()
        )
        common.write_text(folder / "samples.txt", said)
        print(said)
        used = diagnostics.rate_per_dimension(model, params, x[split:])
        symbols = np.mean([len(one) + 1 for one in lines[split:]])
        more = {"symbols_per_line": float(symbols), "used_dimensions": int((used > 0.1).sum())}
        return more, {"rates": plot.rates({"test lines": used})}

    return Task(model, models.draw, x[:split], x[split:], None, finish)


def _vrnn(config: Config, likelihood: Any) -> recurrent.Recurrent:
    """Networks of one hidden layer for a step's posterior, likelihood and prior."""

    def network(head: Any) -> Any:
        return nn.Sequential([networks.MLP((2 * config.features,)), head])

    step = models.autoencoder(
        network(heads.Normal(config.latent)),
        network(likelihood),
        network(heads.Normal(config.latent)),
    )
    return recurrent.vrnn(step, recurrent.Cell(config.features), features=config.features)


def _rates(vrnn: recurrent.Recurrent, params: Any, key: Any, x: Any) -> Any:
    """The mean KL of each step over the sequences that have it, drawn."""

    def one(key: Any, x: Any) -> Any:
        d = vrnn.draw(vrnn.model, params, key, x)
        rate = jax.vmap(kl)(d.q.each, d.pz.each)
        counts = jnp.ones(len(rate)) if isinstance(d.q.mask, tuple) else d.q.mask
        return jnp.where(counts, rate, 0.0), counts

    size = len(jax.tree.leaves(x)[0])
    rate, counts = jax.jit(jax.vmap(one))(jax.random.split(key, size), x)
    ylabel, title = "KL of the step, nats", "what each step's code carries"
    mean = rate.sum(axis=0) / counts.sum(axis=0)
    return plot.curves({"rate": mean}, xlabel="step", ylabel=ylabel, title=title)


def _turns(rng: np.random.Generator, length: int) -> np.ndarray:
    """`z_t = TURN z_{t-1} + NOISE e`, `x_t = MIX z_t + BLUR e`, from z_0 = 0."""
    z, x = np.zeros(2), []
    for _ in range(length):
        z = TURN @ z + NOISE * rng.normal(size=2)
        x.append(MIX @ z + BLUR * rng.normal(size=len(MIX)))
    return np.stack(x)


def kalman(x: np.ndarray) -> float:
    """log p(x) of such a sequence by the Kalman filter, nats."""
    mean, V, total = np.zeros(2), np.zeros((2, 2)), 0.0
    for one in x:
        mean, V = TURN @ mean, TURN @ V @ TURN.T + NOISE**2 * np.eye(2)
        S, off = MIX @ V @ MIX.T + BLUR**2 * np.eye(len(MIX)), one - MIX @ mean
        total -= 0.5 * (off @ np.linalg.solve(S, off) + np.linalg.slogdet(2 * np.pi * S)[1])
        gain = V @ MIX.T @ np.linalg.inv(S)
        mean, V = mean + gain @ off, V - gain @ MIX @ V
    return float(total)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
