"""Sentences of experiments.recurrent: lines of a text, and a VAE of them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.common import characters
from experiments.common.folder import write_text
from experiments.common.image_vae import standard_normal
from experiments.common.sequences import Task
from vaejax import diagnostics, heads, plot, recurrent, text
from vaejax.errors import wrong
from vaejax.model import autoencoder, draw
from vaejax.networks.autoregressive import Causal
from vaejax.types import Key, Params

__all__ = ["sentences"]


def sentences(config: Any) -> Task:
    """Lines of a text, and an ordinary VAE with a recurrent encoder and decoder.

    `config`: of experiments.recurrent. After the training samples.txt shows samples, and lines
    between two test lines.
    """
    whole = characters.read(config.text)
    lines = [line.strip() for line in whole.splitlines()]
    lines = [one for one in lines if config.shortest <= len(one) <= config.longest]
    lines = lines[:96] if config.smoke else lines
    if len(lines) < 20:
        got = f"{len(lines)} lines of {config.shortest} to {config.longest} characters"
        fix = "give a longer --text, or change --shortest or --longest"
        raise wrong("recurrent: --text", got, "20 such lines or more", fix)
    vocabulary = text.vocabulary("".join(lines))
    x, split = text.lines(lines, vocabulary, config.longest + 1), len(lines) * 9 // 10
    end = len(vocabulary)
    decoder = recurrent.Language(end + 1, config.features, end, config.word_dropout)
    encoder = recurrent.TextEncoder(end + 1, config.features, end)
    model = autoencoder(
        nn.Sequential([encoder, heads.Normal(config.latent)]),
        Causal(decoder, (config.longest + 1,), jnp.int32),
        standard_normal(config.latent),
    )

    def finish(params: Params, key: Key, folder: Path) -> Any:
        sample_key, path_key = jax.random.split(key)
        decode = jax.jit(jax.vmap(lambda key, z: model.decode(params, z).sample(key)))
        z = jax.vmap(model.prior(params).sample)(jax.random.split(sample_key, 8))
        ends = [model.encode(params, jnp.asarray(x[split + i])).mean for i in (0, 1)]
        path = jnp.stack([(1 - w) * ends[0] + w * ends[1] for w in np.linspace(0, 1, 7)])
        # The same random numbers all along the path: only the code changes.
        same = jnp.stack([jax.random.clone(path_key)] * len(path))
        written = {
            "samples from the prior": decode(jax.random.split(jax.random.fold_in(key, 1), 8), z),
            "from one test line to another": [x[split], *decode(same, path), x[split + 1]],
        }
        said = "".join(
            f"--- {title}\n" + "".join(f"{text.decode(row, vocabulary)}\n" for row in block)
            for title, block in written.items()
        )
        write_text(folder / "samples.txt", said)
        print(said)
        used = diagnostics.rate_per_dimension(model, params, jax.random.key(0), x[split:])
        symbols = np.mean([len(one) + 1 for one in lines[split:]])
        more = {"symbols_per_line": float(symbols), "used_dimensions": int((used > 0.1).sum())}
        return more, {"rates": plot.rates({"test lines": used})}

    return Task(model, draw, x[:split], x[split:], None, finish)
