"""Recurrent models: a VRNN (Chung et al., 2015, arXiv:1506.02216) and a sentence VAE (Bowman et
al., 2016, arXiv:1511.06349).

    python -m experiments.recurrent [preset] --epochs N --seed S

`digits` and `mnist` read images row by row with a VRNN. `linear` trains it on noisy linear-Gaussian
sequences of different lengths, whose true likelihood a Kalman filter gives. On average no model's
bound exceeds it. `sentences` is a VAE over the lines of a text (--text FILE, by default the
language reference that comes with Python), trained with word dropout and an annealed KL. Its rate,
and whether the code collapsed, are in the summary. There is no `--seeds`: a run of `sentences`
writes a text. Figures in nats per sequence; numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.common.sentences import sentences
from experiments.common.sequences import Task, linear, rows
from vaejax import evaluate, objectives, plot
from vaejax.errors import wrong
from vaejax.train import Fitted
from vaejax.types import Key, Params


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

SMALLEST = {
    "epochs": 2,
    "features": 8,
    "batch_size": 16,
    "latent": 2,
    "particles": 2,
    "measured": 16,
}
KINDS = {"rows": rows, "linear": linear, "sentences": sentences}


def elbo_of(task: Task, params: Params, key: Key) -> dict[str, float]:
    """The ELBO and its parts on the test sequences; `loss` is what is to fall."""
    found = evaluate.elbo_terms(
        task.model, params, key, task.test, draw=task.draw, transform=task.transform
    )
    means = {name: float(values.mean()) for name, values in found.items()}
    return {"loss": -means["elbo"], **means}


def trained(config: Config, folder: Path, task: Task) -> Fitted:
    """The model, trained by the ELBO."""
    init_key, seen_key, fit_key, *_ = common.keys(config, 6)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), task.train)
    seen = task.transform(seen_key, first) if task.transform else first
    steps = len(jax.tree.leaves(task.train)[0]) // config.batch_size
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_epochs * steps)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    return common.fit(
        config,
        folder,
        objectives.elbo(task.model, beta=warmup if config.warmup_epochs else 1.0, draw=task.draw),
        optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate)),
        task.model.init(init_key, seen),
        task.train,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=task.transform,
        evaluate=partial(elbo_of, task),
    )


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    config = common.shrunk(config, **SMALLEST, warmup_epochs=min(1, config.warmup_epochs))
    if config.text is not None and config.kind != "sentences":
        fix = "take the preset sentences, or leave --text out"
        raise wrong("recurrent: --text", f"--kind {config.kind} beside it", "sentences", fix)
    task = KINDS[config.kind](config)
    common.check_batch(config, len(jax.tree.leaves(task.train)[0]))
    folder = common.open_folder(config, name=f"recurrent-{config.kind}")
    fitted = trained(config, folder, task)

    *_, elbo_key, likelihood_key, finish_key = common.keys(config, 6)
    final = elbo_of(task, fitted.params, elbo_key)
    likelihood = evaluate.log_likelihood(
        task.model,
        fitted.params,
        likelihood_key,
        jax.tree.map(lambda leaf: leaf[: config.measured], task.test),
        particles=config.particles,
        draw=task.draw,
        transform=task.transform,
    )
    more, figures = task.finish(fitted.params, finish_key, folder)
    summary = {
        "test_elbo_nats": final["elbo"],
        "test_distortion_nats": final["distortion"],
        "test_rate_nats": final["rate"],
        "collapsed": final["rate"] < 0.1,
        "test_nll_nats": float(-likelihood.log_px.mean()),
        "test_nll_particles": config.particles,
        "test_ess_median": float(np.median(likelihood.ess)),
        "test_nll_sequences": len(likelihood.log_px),
        "test_sequences": len(jax.tree.leaves(task.test)[0]),
        **more,
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    curves = {name: fitted.history[at] for name, at in (("train", "elbo"), ("test", "eval/elbo"))}
    figures["curves"] = plot.curves(curves, ylabel="ELBO, nats per sequence")
    if "kalman_nll_nats" in more:
        axes = figures["curves"].axes[0]
        axes.axhline(-more["kalman_nll_nats"], color="0.5", ls=":", label="log p(x), Kalman (test)")
        axes.legend(frameon=False)
    return common.finish(folder, summary, figures, "nats per test sequence")


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
