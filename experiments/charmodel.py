"""Character model: a GRU that predicts a text's next character, beside n-grams.

    python -m experiments.charmodel [preset] --text FILE --prompt "ROMEO:" --epochs N --seed S

Trains on windows of the first 90 % of a text file (by default the language reference that comes
with Python) and reports nats per character of the last 10 %. There every character is predicted
from at least `context` characters before it. Beside it stand the interpolated Witten-Bell n-grams
of orders 0 to 5, counted on the same 90 %. A prompt is continued by exact sampling, in samples.txt.
There is no `--seeds`: each run writes a text. Numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.common import characters
from vaejax import objectives, recurrent, text
from vaejax.networks.autoregressive import Causal
from vaejax.train import Fitted
from vaejax.types import Key, Params


@dataclass(frozen=True)
class Config(common.Options):
    text: Path | None = None  # a text file; by default the language reference in pydoc_data
    features: int = 128  # units of the GRU
    window: int = 128  # characters of a training example
    batch_size: int = 32  # windows per step
    epochs: int = 8  # passes over the training text
    learning_rate: float = 4e-3  # Adam's step size, which falls to 0 along a cosine
    context: int = 256  # characters before each one that is counted in validation, at least
    order: int = 5  # highest order of the n-grams: how many characters before they see
    prompt: str | None = None  # what to continue; by default how the validation text begins
    length: int = 400  # characters of a continuation


PRESETS = {
    "python": Config(),
    "shakespeare": Config(features=384, learning_rate=3e-3),  # meant for --text tinyshakespeare
}


SMOKE = {"features": 8, "window": 16, "epochs": 2, "context": 16, "length": 20, "order": 2}


class Text(NamedTuple):
    """A text as whole numbers, of which those before `split` are trained on; and the prompt."""

    codes: np.ndarray
    split: int
    vocabulary: Any
    prompt: str


def load(config: Config) -> Text:
    """The text, and the prompt, of whose characters all have to occur in the text."""
    whole = characters.read(config.text)
    whole = whole[:6000] if config.smoke else whole
    vocabulary = text.vocabulary(whole)
    codes = text.encode(whole, vocabulary)
    split = len(codes) * 9 // 10
    characters.check_length(config, codes, split)
    prompt = whole[split : split + 80] if config.prompt is None else config.prompt
    text.encode(prompt, vocabulary)  # refuses characters that the text has not
    return Text(codes, split, vocabulary, prompt)


def validation(net: Causal, codes: Any, context: int, params: Params, key: Key) -> dict[str, float]:
    """Nats per character with at least `context` characters before each."""
    log_p = np.asarray(characters.log_probs(net, params, codes, context=context))
    return {"loss": -float(log_p[:, context:].mean())}


def trained(config: Config, folder: Path, net: Causal, said: Text) -> Fitted:
    """The GRU, trained on windows of the text."""
    init_key, fit_key, _ = common.keys(config, 3)
    windows = text.windows(said.codes[: said.split], config.window)
    steps = config.epochs * (len(windows) // config.batch_size)
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    # The characters just before the split are the context of the first behind it.
    seen = said.codes[max(said.split - config.context, 0) :]
    return common.fit(
        config,
        folder,
        objectives.maximum_likelihood(net),
        optax.chain(optax.clip_by_global_norm(config.window), optax.adam(rate)),
        jax.jit(net.init)(init_key),
        windows,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluate=partial(validation, net, seen, config.context),
    )


def continuations(config: Config, net: Causal, params: Params, said: Text) -> str:
    """Three continuations of the prompt, as they stand in samples.txt."""
    known = text.encode(said.prompt, said.vocabulary)
    longer = net._replace(shape=(len(known) + config.length,))
    x = jnp.zeros(longer.shape, jnp.int32).at[: len(known)].set(known)
    keys = jax.random.split(common.keys(config, 3)[2], 3)
    draws = np.asarray(characters.continued(longer, params, keys, x, len(known)))
    shown = [text.decode(draw, said.vocabulary)[len(known) :] for draw in draws]
    titled = [f"--- continuation {i + 1}\n{said.prompt}|{one}\n" for i, one in enumerate(shown)]
    return "".join(titled)


def main(config: Config) -> dict[str, Any]:
    """Train, measure and continue; returns what summary.json holds."""
    config = common.shrunk(config, **SMOKE)
    said = load(config)
    codes, split, count = said.codes, said.split, len(said.vocabulary)
    net = Causal(recurrent.Language(count, config.features), (config.window,), jnp.int32)
    folder = common.open_folder(config, name="charmodel")
    fitted = trained(config, folder, net, said)
    grams = characters.witten_bell(codes, split, count, config.order)
    nats = fitted.history["eval/loss"][-1]
    summary = {
        "validation_nats_per_character": float(nats),
        "validation_bits_per_character": float(nats / np.log(2)),
        "ngram_nats_per_character": {str(k): float(-g.mean()) for k, g in enumerate(grams)},
        "ngram_nats_first_40000": {str(k): float(-g[:40000].mean()) for k, g in enumerate(grams)},
        "context": config.context,
        "characters": len(codes),
        "vocabulary": count,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(fitted.params)),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    written = continuations(config, net, fitted.params, said)
    common.write_text(folder / "samples.txt", written)
    print(written)
    log_p = characters.log_probs(net, fitted.params, codes[split:], context=config.context)
    by_place = -np.asarray(log_p).mean(axis=0)
    drawn = characters.pictures(fitted.history, config.window, grams, by_place)
    note = "nats per character of the validation text; samples.txt beside it"
    return common.finish(folder, summary, drawn, note)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
