"""Character model: a GRU that predicts a text's next character, beside n-grams.

    python -m experiments.charmodel [preset] --text FILE --prompt "ROMEO:" --epochs N --seed S

Trains on windows of the first 90 % of a text file (by default the language reference that comes
with Python) and reports nats per character of the last 10 %, where every character is predicted
from at least `context` characters before it; beside it the interpolated Witten-Bell n-grams of
orders 0 to 5, counted on the same 90 %. A prompt is continued by exact sampling, in samples.txt.
Numbers and wall times: experiments/README.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import common
from vaejax import objectives, plot, recurrent, text
from vaejax.errors import at_least_one
from vaejax.networks.autoregressive import Causal


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


def read(path: Path | None) -> str:
    """The text of a file, or the documentation of Python's syntax, which every Python brings."""
    if path is not None:
        return path.expanduser().read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def log_probs(net: Causal, params: Any, codes: Any, *, context: int) -> jax.Array:
    """log p of characters given those before: `[windows, 2 context]`, nats.

    The windows overlap by half: in the second halves every character counts once, with `context`
    characters or more before it.
    """
    x = text.windows(np.asarray(codes), 2 * context, stride=context)
    return _log_probs(net._replace(shape=(2 * context,)), params, x)


def validation(net: Causal, codes: Any, context: int, params: Any, key: Any) -> dict[str, float]:
    """Nats per character with at least `context` characters before each."""
    log_p = np.asarray(log_probs(net, params, codes, context=context))
    return {"loss": -float(log_p[:, context:].mean())}


def witten_bell(codes: np.ndarray, split: int, vocabulary: int, order: int) -> list[np.ndarray]:
    """log p of codes[split:] by n-grams of orders 0 to `order` counted before it, nats, `[n]` each.

    `p_k(x|u) = (count(u x) + t(u) p_{k-1}(x|u')) / (count(u) + t(u))`, t(u) the number of different
    characters seen after u, u' without its first character; p_{-1} is uniform.
    Witten and Bell, 1991, The zero-frequency problem, IEEE Transactions on Information Theory 37.
    """
    p, found = np.full(len(codes) - split, 1 / vocabulary), []
    context = np.zeros(len(codes), np.int64)
    for k in range(order + 1):
        if k:  # one character more, k places back
            context[k:] += codes[:-k].astype(np.int64) * vocabulary ** (k - 1)
        pair = context * vocabulary + codes
        pairs, count = np.unique(pair[k:split], return_counts=True)
        contexts, first = np.unique(pairs // vocabulary, return_index=True)
        total, kinds = np.add.reduceat(count, first), np.diff(first, append=len(pairs))
        of_pair = _looked_up(pairs, count, pair[split:])
        of_context = (_looked_up(contexts, n, context[split:]) for n in (total, kinds))
        seen, t = of_context
        p = np.where(seen > 0, (of_pair + t * p) / np.maximum(seen + t, 1), p)
        found.append(np.log(p))
    return found


def main(config: Config) -> dict[str, Any]:
    """Train, measure and continue; returns what summary.json holds."""
    whole = read(config.text)
    if config.smoke:
        whole = whole[:6000]
        config = replace(config, features=8, window=16, epochs=2, context=16, length=20, order=2)
    at_least_one("charmodel", epochs=config.epochs, context=config.context, length=config.length)
    characters = text.vocabulary(whole)
    codes = text.encode(whole, characters)
    split = len(codes) * 9 // 10
    windows = text.windows(codes[:split], config.window)
    prompt = whole[split : split + 80] if config.prompt is None else config.prompt
    known = text.encode(prompt, characters)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    language = recurrent.Language(len(characters), config.features)
    net = Causal(language, (config.window,), jnp.int32)
    params = jax.jit(net.init)(keys[0])
    folder = common.open_folder(config, name="charmodel")

    steps = config.epochs * (len(windows) // config.batch_size)
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    # The characters just before the split are the context of the first behind it.
    measure = partial(validation, net, codes[max(split - config.context, 0) :], config.context)
    fitted = common.fit(
        config,
        folder,
        objectives.maximum_likelihood(net),
        optax.chain(optax.clip_by_global_norm(config.window), optax.adam(rate)),
        params,
        windows,
        key=keys[1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluate=measure,
    )

    grams = witten_bell(codes, split, len(characters), config.order)
    nats = fitted.history["eval/loss"][-1]
    summary = {
        "validation_nats_per_character": float(nats),
        "validation_bits_per_character": float(nats / np.log(2)),
        "ngram_nats_per_character": {str(k): float(-g.mean()) for k, g in enumerate(grams)},
        "ngram_nats_first_40000": {str(k): float(-g[:40000].mean()) for k, g in enumerate(grams)},
        "context": config.context,
        "characters": len(codes),
        "vocabulary": len(characters),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "epochs": len(fitted.history["epoch"]),
        "seconds_train": common.seconds(folder),
    }
    common.write_json(folder / "summary.json", summary)
    longer = net._replace(shape=(len(known) + config.length,))
    x = jnp.zeros(longer.shape, jnp.int32).at[: len(known)].set(known)
    draws = _continued(longer, fitted.params, jax.random.split(keys[2], 3), x, len(known))
    shown = [text.decode(draw, characters)[len(known) :] for draw in np.asarray(draws)]
    written = "".join(f"--- continuation {i + 1}\n{prompt}|{one}\n" for i, one in enumerate(shown))
    common.write_text(folder / "samples.txt", written)
    print(written)
    log_p = np.asarray(log_probs(net, fitted.params, codes[split:], context=config.context))
    common.save_figures(folder, _figures(fitted.history, config.window, grams, -log_p.mean(axis=0)))
    common.report(
        folder, summary, "nats per character of the validation text; samples.txt beside it"
    )
    return summary


def _figures(history: Any, window: int, grams: list[np.ndarray], by_place: np.ndarray) -> Any:
    """Training beside the n-grams; and what the memory of more characters is worth."""
    curves = plot.curves(
        {"train": history["loss"] / window, "validation": history["eval/loss"]},
        ylabel="nats per character",
    )
    # Means over places that lie close on a logarithmic axis.
    last = np.unique(np.geomspace(1, len(by_place), 25).astype(int))
    context = plot.curves(
        {"GRU": [part.mean() for part in np.split(by_place, last[:-1])]},
        steps=last,
        xlabel="place in the sequence (characters before, plus one)",
        ylabel="nats per character (validation)",
        title="what more characters before are worth",
    )
    context.axes[0].set_xscale("log")
    context.axes[0].axvline(window, color="0.8", label="length of training windows")
    for axes in (curves.axes[0], context.axes[0]):
        for k, gram in enumerate(grams[1:], 1):
            axes.axhline(-gram.mean(), color=f"C{k + 1}", ls=":", label=f"n-gram of order {k}")
        axes.legend(fontsize=7)
    return {"curves": curves, "context": context}


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of sorted keys, 0 for what is not among them."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


@partial(jax.jit, static_argnums=0)
def _log_probs(net: Causal, params: Any, x: Any) -> jax.Array:
    def one(x: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(net.apply(params).conditionals(x).logits)
        return jnp.take_along_axis(log_p, x[:, None], axis=1)[:, 0]

    return lax.map(one, jnp.asarray(x), batch_size=64)


@partial(jax.jit, static_argnums=0)
def _continued(net: Causal, params: Any, keys: Any, x: Any, known: Any) -> jax.Array:
    return jax.vmap(lambda key: net.apply(params).complete(key, x, known=known))(keys)


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
