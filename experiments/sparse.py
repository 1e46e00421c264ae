"""Sparse autoencoders: a code of few active units, and the dictionary that it chooses from.

    python -m experiments.sparse [digits|mnist|dictionary] [--code kl|squared|l1|top_k|batch_top_k]

`digits` and `mnist` learn filters of images, `mnist` with sigmoid codes held to a mean activation.
`dictionary` makes data from a known one (random unit-norm atoms, 3 active of each example) and
counts the atoms that are found. It has no `--seeds`: dead units start anew between two steps, which
runs side by side cannot. A matrix of activations in a file: experiments.activations.
Expected numbers: experiments/README.md.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.common import Row, Trained, Trial, sparse_code
from experiments.common.dictionary import make_dictionary, recovery
from experiments.common.figures import sparse as figures
from vaejax import data, evaluate, networks, plot, sparsity
from vaejax.types import Key, Params


@dataclass(frozen=True)
class Config(sparse_code.Code, common.Options):
    # digits, mnist, fashion_mnist, a file of images or vectors; dictionary: made here
    dataset: str = "digits"
    epochs: int = 200  # passes over the data
    atoms: int = 256  # of the dictionary that is to be found
    size: int = 64  # dimensions that its atoms have
    active: int = 3  # atoms in each example
    examples: int = 100_000  # made from it


PRESETS = {
    "digits": Config(latent=100, learning_rate=1e-3, weight_decay=0.3),
    "mnist": Config(
        "kl", 196, weight=10.0, weight_decay=0.2, batch_size=256, dataset="mnist", epochs=40
    ),
    "dictionary": Config("top_k", 256, k=3, batch_size=512, dataset="dictionary", epochs=40),
}


class Examples(NamedTuple):
    """What the code is learned on and measured on, and the atoms that it is made from, if known.

    `seen`: the test examples as the model sees them.
    """

    x: Any
    test: Any
    transform: Any
    seen: np.ndarray
    atoms: np.ndarray | None = None


def load(config: Config) -> Examples:
    """Images or vectors, or examples of a dictionary that is made here."""
    if config.dataset == "dictionary":
        atoms, x = make_dictionary(config)
        x, test = np.split(x, [len(x) * 9 // 10])
        return Examples(x, test, None, test, atoms)
    x, test = (data.load(config.dataset, split).x for split in ("train", "test"))
    x, test = (a[: 500 if config.smoke else None] for a in (x, test))
    if x.dtype != np.uint8:
        return Examples(x, test, None, np.asarray(test))
    return Examples(x, test, data.scale, np.asarray(test / np.float32(255)))


def trial(config: Config, examples: Examples) -> Trial:
    """The sparse autoencoder, ready to be trained."""
    x, test, transform, seen, atoms = examples
    init_key, fit_key, _ = common.keys(config, 3)
    model = sparse_code.build(config, x.shape[1:])
    between = len(x) // config.batch_size
    common.check_batch(config, len(x))
    steps = config.epochs * between
    loss, adam = sparse_code.loss_for(config, model), sparse_code.adam_for(config, steps)
    hook = sparse_code.reviving(config, model, adam, x, steps, between=between, transform=transform)

    def evaluated(params: Params, key: Key) -> dict[str, Any]:
        found = evaluate.mean_loss(loss, params, key, test, transform=transform)
        return found if atoms is None else found | recovery(atoms, params)

    return Trial(
        model,
        partial(sparse_code.begin, config, model, init_key, jnp.asarray(seen[0])),
        loss,
        adam,
        x,
        fit_key,
        transform,
        evaluate=evaluated,
        evaluate_every=max(1, config.epochs // 40),
        checkpoint_every=max(1, config.epochs // 4),
        more={"hook": hook},
    )


def measure(config: Config, examples: Examples, one: Trained) -> tuple[Row, Any]:
    """How good and how sparse the code is, and which atoms it found."""
    model, key = one.model, common.keys(config, 3)[2]
    model, numbers = sparse_code.at_threshold(
        config, model, one.params, key, examples.x, transform=examples.transform
    )
    z, r = sparse_code.codes(model, one.params, examples.seen)
    numbers |= sparse_code.measured(config, z, examples.seen, r)
    if examples.atoms is not None:
        numbers |= recovery(examples.atoms, one.params)
    return numbers, (z, r)


def draw(config: Config, examples: Examples, one: Trained, kept: Any) -> dict[str, Any]:
    """The error in training, the units, the atoms found; of images also what units look for."""
    (z, r), x, seen, history = kept, examples.x, examples.seen, one.history
    constant = x[0].size * np.log(np.pi) / 2  # of -log p with this scale, beside the squared error
    names = {"train": "distortion", "test": "eval/distortion"}
    error = {name: history[metric] - constant for name, metric in names.items()}
    drawn = {
        "curves": plot.curves(error, ylabel="squared error per example"),
        "units": figures.units(config, z),
    }
    if examples.atoms is not None:
        names = {"share of atoms recovered": "recovered", "mean cosine to the best": "mean_cosine"}
        shown = {label: history[f"eval/{name}"] for label, name in names.items()}
        title = "atoms at cosine > 0.9"
        drawn["recovered"] = plot.curves(shown, ylabel="share, cosine", title=title)
    if x.ndim == 4 and x.shape[-1] == 1:
        drawn["reconstructions"] = plot.reconstructions(seen[:10], np.clip(r[:10], 0, 1))
        filters = np.asarray(next(iter(networks.kernels(one.params["encoder"]).values()))).T
        drawn["filters"] = figures.filters(filters, z, x.shape[1:], "what units look for (encoder)")
        atoms = np.asarray(sparsity.atoms(one.params))
        drawn["atoms"] = figures.filters(atoms, z, x.shape[1:], "what units add (decoder)")
    return drawn


NOTE = "squared errors per example, of pixels in [0, 1] for images"
SMOKE = {"epochs": 2, "examples": 2000, "batch_size": 50}
RECIPE = common.Recipe("sparse", load, trial, measure, draw, NOTE, SMOKE)
main = partial(common.main, RECIPE)
"""Train, measure and draw; returns what summary.json holds."""


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
