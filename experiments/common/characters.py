"""Characters of a text: where it is read, n-grams, and what a network says of every character."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.common.limits import check_batch
from vaejax import plot, text
from vaejax.errors import wrong
from vaejax.networks.autoregressive import Causal
from vaejax.types import Array, Key, Params

__all__ = ["check_length", "continued", "log_probs", "pictures", "read", "witten_bell"]


def read(path: Path | None) -> str:
    """The text of a file, or the documentation of Python's syntax, which every Python brings."""
    if path is not None:
        return text.read(path)
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def check_length(config: Any, codes: np.ndarray, split: int) -> None:
    """Raise unless a text is long enough to train on what is before `split` and validate behind it.

    `config`: of experiments.charmodel.
    """
    check_batch(config, len(text.windows(codes[:split], config.window)))
    if len(codes) - split < config.context:
        got = f"{len(codes) - split} characters to validate on"
        fix = "give a longer --text, or lower --context"
        raise wrong("charmodel: --text", got, f"{config.context} or more, --context", fix)


def witten_bell(codes: np.ndarray, split: int, vocabulary: int, order: int) -> list[np.ndarray]:
    """log p of `codes[split:]` by n-grams of orders 0 to `order`, which are counted before it.

    `p_k(x|u) = (count(u x) + t(u) p_{k-1}(x|u')) / (count(u) + t(u))`. Here t(u) is the number of
    different characters seen after u, and u' is u without its first character. p_{-1} is uniform.

    Args:
      codes: characters as whole numbers, `[all]`.
      split: where the text begins that is predicted.
      vocabulary: how many characters there are.
      order: the highest order: how many characters before each one are seen.
    Returns:
      nats, `[n]` for each order.
    References:
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


def log_probs(net: Causal, params: Params, codes: Any, *, context: int) -> Array:
    """log p of characters given those before: `[windows, 2 context]`, nats.

    The windows overlap by half: in the second halves every character counts once, with `context`
    characters or more before it.
    """
    x = text.windows(np.asarray(codes), 2 * context, stride=context)
    return _log_probs(net._replace(shape=(2 * context,)), params, x)


@partial(jax.jit, static_argnums=0)
def continued(net: Causal, params: Params, keys: Key, x: Array, known: Any) -> Array:
    """Texts that continue the first `known` characters of x, one for each key, `[keys, all]`."""
    return jax.vmap(lambda key: net.apply(params).complete(key, x, known=known))(keys)


def pictures(
    history: Any, window: int, grams: list[np.ndarray], by_place: np.ndarray
) -> dict[str, Any]:
    """Figures of the training beside the n-grams, and of what more characters before are worth.

    Args:
      history: of the training.
      window: characters of a training example.
      grams: log p of each character by n-grams of orders 0, 1, ..., nats.
      by_place: -log p of the GRU at each place of a sequence, nats, `[places]`.
    """
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
def _log_probs(net: Causal, params: Params, x: Array) -> Array:
    def one(x: Array) -> Array:
        log_p = jax.nn.log_softmax(net.apply(params).conditionals(x).logits)
        return jnp.take_along_axis(log_p, x[:, None], axis=1)[:, 0]

    return lax.map(one, jnp.asarray(x), batch_size=64)
