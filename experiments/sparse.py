"""Sparse autoencoders: a code of few active units, and the dictionary that it chooses from.

    python -m experiments.sparse [digits|mnist|dictionary] [--code kl|squared|l1|top_k|batch_top_k]

`digits` and `mnist` learn filters of images, `mnist` with sigmoid codes held to a mean activation.
`dictionary` makes data from a known one (random unit-norm atoms, 3 active of each example) and
counts the atoms that are found. A matrix of activations in a file: experiments.activations.
Expected numbers: experiments/README.md.
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
from vaejax import autoencoders, data, evaluate, heads, networks, plot, sparsity
from vaejax.model import Model, autoencoder
from vaejax.types import Key, Loss, Params

SCALE = 0.5**0.5  # of the likelihood: its -log p is the squared error, up to a constant


@dataclass(frozen=True)
class Code:
    """What the code and its training are, of images or of any rows."""

    code: Literal["kl", "squared", "l1", "top_k", "batch_top_k"] = "top_k"  # what makes it sparse
    latent: int = 128  # units of the code
    k: int = 6  # active units of top_k, in the mean over the batch of batch_top_k
    rho: float = 0.05  # mean activation that kl and squared pull to
    weight: float = 0.1  # of the penalty: kl, squared, l1
    transposed: bool = True  # start the encoder as the transpose of the decoder (not kl)
    revive: bool = True  # give dead units a new start, during the first two thirds (not kl)
    revive_every: int = 150  # steps that they are given to fire again
    learning_rate: float = 3e-3  # Adam's step size, falling to 0 over the last half
    weight_decay: float = 0.0  # of the kernels, decoupled from the gradient (AdamW)
    batch_size: int = 128  # examples per step


@dataclass(frozen=True)
class Config(Code, common.Options):
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


def build(config: Code, shape: tuple[int, ...]) -> Model:
    """One dense layer each way; a dictionary of unit norm unless the code is bounded by itself."""
    head = {
        "kl": heads.Code(config.latent, nn.sigmoid),
        "top_k": heads.TopK(config.latent, config.k),
    }.get(config.code, heads.Code(config.latent, nn.relu))
    model = autoencoder(head, heads.FixedNormal(shape, SCALE))
    return model if config.code == "kl" else sparsity.unit_columns(model)


def loss_for(config: Code, model: Model) -> Loss:
    """The distortion, and what makes the code sparse."""
    if config.code == "batch_top_k":
        return autoencoders.batch_top_k(model, k=config.k)
    if config.code == "top_k":
        return autoencoders.reconstruction(model)
    penalty = {
        "l1": lambda: sparsity.l1,
        "kl": lambda: sparsity.kl(config.rho),
        "squared": lambda: sparsity.squared(config.rho),
    }[config.code]()
    return autoencoders.sparse(model, penalty=penalty, weight=config.weight)


def begin(config: Code, model: Model, key: Key, x: Any) -> Params:
    """Parameters at the start."""
    params = model.init(key, x)
    free = config.code == "kl" or not config.transposed
    return params if free else sparsity.transposed(params)


def adam_for(config: Code, steps: int) -> optax.GradientTransformation:
    """Adam at a constant rate for half of the steps, which then falls to 0 along a line."""
    half = max(steps // 2, 1)
    rate = optax.linear_schedule(config.learning_rate, 0.0, half, steps - half)

    def kernels(params: Params) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim == 2, params)

    return optax.adamw(rate, weight_decay=config.weight_decay, mask=kernels)


def reviving(
    config: Code, model: Model, adam: Any, x: Any, steps: int, *, between: int, transform: Any
) -> Any:
    """A hook: dead units start anew while there is time to learn from it. None if not asked for.

    It is called every `between` of the run's `steps`.
    """
    if config.code == "kl" or not config.revive:
        return None
    keep = partial(sparsity.largest, k=config.k) if config.code == "batch_top_k" else None
    hook = sparsity.revive(
        model, adam, x, examples=max(8192, config.latent), keep=keep, transform=transform
    )

    def due(step: int) -> bool:
        return 3 * step < 2 * steps and step % config.revive_every < between

    return lambda state: hook(state) if due(int(state.step)) else state


def make_dictionary(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm atoms `[atoms, size]`, and examples: `active` of them times Uniform[0.5, 1.5]."""
    rng = np.random.default_rng(config.seed)
    atoms = rng.normal(size=(config.atoms, config.size))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    x = np.zeros((config.examples, config.size), np.float32)
    for part in np.array_split(x, max(1, config.examples // 10_000)):
        chosen = rng.random((len(part), config.atoms)).argsort(axis=1)[:, : config.active]
        coefficients = rng.uniform(0.5, 1.5, chosen.shape)
        part += np.einsum("nk,nkd->nd", coefficients, atoms[chosen])
    return atoms, x


def recovery(atoms: np.ndarray, params: Params) -> dict[str, float]:
    """How many true atoms have a learned one at cosine above 0.9, and how the others fail."""
    cosine = np.asarray(sparsity.atoms(params)) @ atoms.T  # [latent, atoms]
    found = cosine.max(axis=0) > 0.9
    claimed = np.bincount(cosine.argmax(axis=1)[cosine.max(axis=1) > 0.9], minlength=len(found))
    return {
        "recovered": float(found.mean()),
        "mean_cosine": float(cosine.max(axis=0).mean()),
        "units_on_no_atom": int((cosine.max(axis=1) <= 0.9).sum()),
        "units_doubled": int(np.maximum(claimed - 1, 0).sum()),
    }


def codes(model: Model, params: Params, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[n, latent]` and reconstructions `[n, ...]` of examples as the model sees them."""
    key = jax.random.key(0)  # nothing is drawn
    z = evaluate.codes(model, params, key, x)
    r = evaluate.reconstructions(model, params, jax.random.clone(key), x)
    return np.asarray(z), np.asarray(r)


def measured(
    config: Code, z: np.ndarray, x: np.ndarray, r: np.ndarray, *, name: str = "test_squared_error"
) -> dict[str, Any]:
    """How good and how sparse: numbers of these examples, codes and reconstructions."""
    error, means = np.sum((x - r) ** 2) / len(x), z.mean(axis=0)
    summary = {
        name: float(error),
        "share_of_variance_missed": float(error / np.sum((x - x.mean(axis=0)) ** 2) * len(x)),
        "active_units": float((z != 0).sum(axis=1).mean()),
        "dead_units": int((z == 0).all(axis=0).sum()),
        "mean_activation": float(means.mean()),
    }
    if config.code in ("kl", "squared"):
        near = (means >= config.rho / 2) & (means <= 2 * config.rho)
        summary |= {"rho": config.rho, "units_within_factor_2": float(near.mean())}
    return summary


def drawn_units(config: Code, z: np.ndarray) -> Any:
    """A histogram of the units by their mean activation, or by how often they are active."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    by_mean = config.code in ("kl", "squared")
    axis = figure.add_subplot(
        xlabel="mean activation over the examples"
        if by_mean
        else "share of the examples in which the unit is active",
        ylabel="units",
        title=f"{config.latent} units",
    )
    values = z.mean(axis=0) if by_mean else (z != 0).mean(axis=0)
    axis.hist(values, bins=40, color="tab:blue")
    if by_mean:
        axis.axvline(config.rho, color="black", label=f"target rho = {config.rho:g}")
        axis.axvline(config.rho / 2, color="grey", linestyle=":", label="rho / 2 and 2 rho")
        axis.axvline(config.rho * 2, color="grey", linestyle=":")
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def drawn_filters(vectors: np.ndarray, z: np.ndarray, shape: Any, title: str) -> Any:
    """The 100 most active units' vectors `[latent, size]` as images; grey is 0, each to its own."""
    most = np.argsort(-np.abs(z).sum(axis=0))[:100]
    return plot.filters(vectors[most].reshape(-1, *shape), title=title)


def main(config: Config) -> dict[str, Any]:
    """Train, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(config, epochs=2, examples=2000, batch_size=50)
    atoms = None
    if config.dataset == "dictionary":
        atoms, x = make_dictionary(config)
        x, test = np.split(x, [len(x) * 9 // 10])
    else:
        x, test = (data.load(config.dataset, split).x for split in ("train", "test"))
        x, test = (a[: 500 if config.smoke else None] for a in (x, test))
    transform = data.scale if x.dtype == np.uint8 else None
    seen = np.asarray(test / np.float32(255) if transform else test)
    init_key, fit_key, theta_key = jax.random.split(jax.random.key(config.seed), 3)
    model = build(config, x.shape[1:])
    params = begin(config, model, init_key, jnp.asarray(seen[0]))
    between = len(x) // config.batch_size
    steps = config.epochs * between
    loss, adam = loss_for(config, model), adam_for(config, steps)
    folder = common.open_folder(config, name=f"sparse-{Path(config.dataset).stem}")

    hook = reviving(config, model, adam, x, steps, between=between, transform=transform)

    def evaluated(params: Params, key: Key) -> dict[str, Any]:
        found = evaluate.mean_loss(loss, params, key, test, transform=transform)
        return found if atoms is None else found | recovery(atoms, params)

    fitted = common.fit(
        config,
        folder,
        loss,
        adam,
        params,
        x,
        key=fit_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        transform=transform,
        hook=hook,
        evaluate=evaluated,
        evaluate_every=max(1, config.epochs // 40),
        checkpoint_every=max(1, config.epochs // 4),
    )

    final, summary = fitted.params, dict[str, Any]()
    if config.code == "batch_top_k":
        theta = sparsity.threshold(
            model,
            final,
            theta_key,
            x,
            k=config.k,
            transform=transform,
            batch_size=config.batch_size,
        )
        model, summary = sparsity.thresholded(model, theta), {"threshold": theta}
    z, r = codes(model, final, seen)
    summary |= measured(config, z, seen, r)
    summary |= {} if atoms is None else recovery(atoms, final)
    summary |= {"epochs": config.epochs, "seconds_train": common.seconds(folder)}
    common.write_json(folder / "summary.json", summary)

    constant = x[0].size * np.log(np.pi) / 2  # of -log p with this scale, beside the squared error
    error = {
        name: fitted.history[key] - constant
        for name, key in (("train", "distortion"), ("test", "eval/distortion"))
    }
    drawn = {
        "curves": plot.curves(error, ylabel="squared error per example"),
        "units": drawn_units(config, z),
    }
    if atoms is not None:
        names = {"recovered": "share of atoms recovered", "mean_cosine": "mean cosine to the best"}
        shown = {label: fitted.history[f"eval/{name}"] for name, label in names.items()}
        drawn["recovered"] = plot.curves(
            shown, ylabel="share, cosine", title="atoms at cosine > 0.9"
        )
    if x.ndim == 4 and x.shape[-1] == 1:
        drawn["reconstructions"] = plot.reconstructions(seen[:10], np.clip(r[:10], 0, 1))
        filters = np.asarray(next(iter(networks.kernels(final["encoder"]).values()))).T
        drawn["filters"] = drawn_filters(filters, z, x.shape[1:], "what units look for (encoder)")
        dictionary = np.asarray(sparsity.atoms(final))
        drawn["atoms"] = drawn_filters(dictionary, z, x.shape[1:], "what units add (decoder)")
    common.save_figures(folder, drawn)
    common.report(folder, summary, "squared errors per example, of pixels in [0, 1] for images")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
