"""Why structure must be forced: by dimension, sparsity, noise or a prior, side by side.

    python -m experiments.structure [digits|mnist] [--epochs N] [--seed S]

One network (x - hidden - code - hidden - x) with more codes than pixels and squared error alone
(`free`, the control); with few codes; with an L1 norm on ReLU codes; with masked inputs; with few
codes and a prior (a VAE). Then a few codes on independent and on correlated Gaussians, and those of
`dimension` on images of other kinds. Expected numbers: experiments/README.md.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from vaejax import (
    autoencoders,
    corruption,
    data,
    distributions,
    evaluate,
    heads,
    networks,
    objectives,
    plot,
    sparsity,
    train,
)
from vaejax.batch import over_examples
from vaejax.errors import wrong
from vaejax.evaluate.representation import linear_probe, nearest_neighbours
from vaejax.model import autoencoder


@dataclass(frozen=True)
class Config(common.Options):
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME: labelled images
    others: tuple[str, ...] = ()  # data sets of the same shape, to reconstruct with these features
    train_split: str = "train"  # images to train on
    test_split: str = "test"  # images to report on
    hidden: int = 200  # units of the layer on either side of the code
    small: int = 8  # units of the code that is to be small, and of the VAE's
    large: int = 128  # units of the other codes, more than pixels
    l1: float = 0.05  # weight of the code's L1 norm beside the squared error
    masked: float = 0.3  # probability with which the denoiser sees 0 for a pixel
    scale: float = 0.2  # standard deviation of the VAE's p(x|z)
    epochs: int = 200  # passes over the training images, for each of the five
    batch_size: int = 64  # images per step
    learning_rate: float = 2e-3  # Adam's step size, falling along a cosine
    judged: int = 5000  # training images that probes, neighbours and components see, at most
    gaussian_steps: int = 3000  # updates on Gaussian inputs, 256 fresh ones each


PRESETS = {
    "digits": Config(),
    "mnist": Config(
        "mnist",
        ("fashion_mnist",),
        hidden=400,
        small=16,
        large=800,
        l1=0.1,
        scale=0.3,
        epochs=8,
        batch_size=128,
    ),
}


def network(shape: Any, hidden: int, head: Any, scale: float = 0.5**0.5, prior: Any = None) -> Any:
    """At scale sqrt(1/2), -log p(x|z) is the squared error and a constant."""
    decoder = nn.Sequential([networks.MLP((hidden,)), heads.FixedNormal(shape, scale)])
    return autoencoder(nn.Sequential([networks.MLP((hidden,)), head]), decoder, prior)


def ways(config: Config, shape: tuple[int, ...]) -> dict[str, tuple[Any, Any]]:
    """The control and the four ways: model and loss of each."""

    codes = heads.Code(config.large), heads.Code(config.small), heads.Code(config.large, nn.relu)
    free, few, rectified = (network(shape, config.hidden, code) for code in codes)
    prior = distributions.Normal(jnp.zeros(config.small), jnp.ones(config.small))
    vae = network(shape, config.hidden, heads.Normal(config.small), config.scale, prior)
    return {
        "free": (free, autoencoders.reconstruction(free)),
        "dimension": (few, autoencoders.reconstruction(few)),
        "sparsity": (
            rectified,
            autoencoders.sparse(rectified, penalty=sparsity.l1, weight=config.l1),
        ),
        "noise": (free, autoencoders.denoising(free, corrupt=corruption.masking(config.masked))),
        "prior": (vae, objectives.elbo(vae)),
    }


def levels(x: Any) -> np.ndarray:
    """Stored grey levels as numbers from 0 to 1."""
    return np.asarray(x, np.float32) / 255


def rebuilt(model: Any, params: Any, x: Any) -> np.ndarray:
    """The reconstruction of every example."""
    return np.asarray(evaluate.reconstructions(model, params, jax.random.key(0), x))


def squared_error(x: Any, r: Any) -> float:
    """|x - r|^2, summed over an example and averaged over examples."""
    return float(np.mean(np.sum(np.square(x - r).reshape(len(x), -1), axis=1)))


def few_entries(z: np.ndarray) -> dict[str, float]:
    """Share of entries below 1 % of the root mean square of all, and Hoyer's measure (2004).

    (sqrt n - |z|_1 / |z|_2) / (sqrt n - 1): 0 for n equal entries, 1 for one or none; mean over z.
    """
    root = np.sqrt(z.shape[1])
    ratio = np.maximum(np.abs(z).sum(axis=1) / (np.linalg.norm(z, axis=1) + 1e-12), 1)
    near = np.abs(z) < 0.01 * np.sqrt(np.mean(z**2))
    return {"near_zero": float(near.mean()), "hoyer": float(np.mean((root - ratio) / (root - 1)))}


def samples(model: Any, params: Any, codes: np.ndarray, key: Any, n: int) -> np.ndarray:
    """E[x|z] at n codes from the prior, or, without one, from the Gaussian fitted to the codes."""
    prior = model.prior(params)
    if prior is not None:
        z = jax.vmap(prior.sample)(jax.random.split(key, n))
    else:  # of their mean and covariance, which is singular where units are dead
        mixing = jax.random.normal(key, (n, len(codes))) / np.sqrt(len(codes))
        z = codes.mean(axis=0)[None] + mixing @ (codes - codes.mean(axis=0, keepdims=True))
    return np.asarray(jax.jit(jax.vmap(lambda z: model.decode(params, z).mean))(z))


def to_nearest(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance to the nearest of b, averaged over a."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=1).fit(b.reshape(len(b), -1))
    return float(np.mean(found.kneighbors(a.reshape(len(a), -1))[0] ** 2))


def gaussians(config: Config, key: Any) -> dict[str, float]:
    """Share of the variance that 4 codes explain of 16 independent and of 16 correlated inputs."""
    d, q, found = 16, 4, {}
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (d, d)))[0]
    linear = autoencoder(heads.Code(q), heads.FixedNormal(d, 0.5**0.5))
    deep = network((d,), 64, heads.Code(q))
    rate = optax.cosine_decay_schedule(3e-3, config.gaussian_steps)
    for name, variances in (("independent", jnp.ones(d)), ("correlated", 0.5 ** jnp.arange(d))):
        mixing = rotation * jnp.sqrt(variances)[None]
        fresh = partial(lambda mixing, key, x: mixing @ jax.random.normal(key, x.shape), mixing)
        x = jax.vmap(fresh)(jax.random.split(jax.random.clone(key), 20000), jnp.zeros((20000, d)))
        for kind, model in (("linear", linear), ("deep", deep)):
            start = model.init(jax.random.key(1), x[0])
            loss = autoencoders.reconstruction(model)
            fit = train.make_train(
                loss, optax.adam(rate), steps=config.gaussian_steps, batch_size=256, transform=fresh
            )
            params = jax.jit(fit)(jax.random.key(2), start, x[:256])[0].params
            r = rebuilt(model, params, x)
            found[f"explained_{name}_{kind}"] = 1 - squared_error(x, r) / squared_error(x, 0)
        found[f"explained_{name}_pca"] = float(variances[:q].sum() / variances.sum())
    return found


def elsewhere(
    config: Config, model: Any, params: Any, x: np.ndarray, test_x: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """Squared error on images of other kinds, over that of a PCA fitted there; pictures of them."""
    from sklearn.decomposition import PCA

    order = np.random.default_rng(config.seed).permutation(x[0].size)
    kinds = {
        "itself": (x, test_x),
        "rotated": tuple(np.rot90(v, axes=(1, 2)) for v in (x, test_x)),
        "inverted": (1 - x, 1 - test_x),
        "shuffled": tuple(v.reshape(len(v), -1)[:, order].reshape(v.shape) for v in (x, test_x)),
    }
    for name in config.others:
        splits = config.train_split, config.test_split
        kinds[name] = tuple(levels(data.load(name, split).x) for split in splits)
    found, rows = {}, []
    for name, (there, test_there) in kinds.items():
        flat = test_there.reshape(len(test_there), -1)
        pca = PCA(config.small, random_state=0).fit(there[: config.judged].reshape(-1, len(order)))
        r = rebuilt(model, params, test_there)
        best = squared_error(flat, pca.inverse_transform(pca.transform(flat)))
        found[name] = squared_error(test_there, r) / best
        rows += [test_there[:10], r[:10]]
    return found, np.concatenate(rows)


def main(config: Config) -> dict[str, Any]:
    """Train all, judge and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            hidden=20,
            epochs=2,
            batch_size=16,
            gaussian_steps=20,
            train_split="train[:200]",
            test_split="test[:50]",
        )
    stored, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    if stored.x.dtype != np.uint8 or stored.x.ndim != 4 or isinstance(stored.y, tuple):
        got, fix = f"{stored.x.dtype} x {stored.x.shape}", "choose digits, mnist or fashion_mnist"
        raise wrong("structure: --dataset", got, "labelled images of uint8 levels", fix)
    folder = common.open_folder(config, name=f"structure-{Path(config.dataset).stem}")
    x, test_x = levels(stored.x), levels(test.x)
    seen, labels = x[: config.judged], stored.y[: config.judged]
    keys = jax.random.split(jax.random.key(config.seed), 4)
    init_key, fit_key, sample_key, gaussian_key = keys
    masked = np.asarray(
        over_examples(corruption.masking(config.masked), jax.random.key(0), jnp.asarray(test_x))
    )
    rate = optax.cosine_decay_schedule(
        config.learning_rate, config.epochs * (len(x) // config.batch_size)
    )
    summary: dict[str, Any] = {}
    pictures = {}
    for name, (model, loss) in ways(config, x.shape[1:]).items():
        start = model.init(jax.random.clone(init_key), x[0])
        with warnings.catch_warnings():  # that the control may learn the identity is the point
            warnings.filterwarnings("ignore", "reconstruction: the code has")
            params = common.fit(
                config,
                folder / name,
                loss,
                optax.adam(rate),
                start,
                x,
                key=jax.random.clone(fit_key),
                epochs=config.epochs,
                batch_size=config.batch_size,
                checkpoint_every=config.epochs,
            ).params
        encode = partial(evaluate.codes, model, params, jax.random.key(0))
        codes, test_codes = (np.asarray(encode(v)) for v in (seen, test_x))
        r = rebuilt(model, params, test_x)
        drawn = samples(model, params, codes, jax.random.clone(sample_key), min(1000, len(test_x)))
        summary[name] = {
            "squared_error": squared_error(test_x, r),
            "squared_error_if_masked": squared_error(test_x, rebuilt(model, params, masked)),
            "probe_accuracy": linear_probe(codes, labels, test_codes, test.y),
            "neighbours_accuracy": nearest_neighbours(codes, labels, test_codes, test.y),
            **few_entries(test_codes),
            "sample_distance": to_nearest(drawn, seen) / to_nearest(test_x[: len(drawn)], seen),
        }
        pictures[name] = r[:10], drawn[:20]
        if name == "dimension":
            summary["elsewhere_over_pca"], there = elsewhere(config, model, params, x, test_x)
    summary |= gaussians(config, gaussian_key)
    common.write_json(folder / "summary.json", summary)
    errors = [f"{name}: {summary[name]['squared_error']:.3g}" for name in pictures]
    far = [f"{name}: {summary[name]['sample_distance']:.3g}" for name in pictures]
    ratios = summary["elsewhere_over_pca"].items()
    note = "test images, and their reconstructions with the squared error per image"
    reconstructions = np.concatenate([test_x[:10], *(r for r, _ in pictures.values())])
    decoded = np.concatenate([drawn for _, drawn in pictures.values()])
    figures = {
        "reconstructions": plot.images(
            reconstructions, columns=10, labels=["x", *errors], title=note
        ),
        "samples": plot.images(
            decoded,
            columns=10,
            labels=[label for name in far for label in (name, "")],
            title="decoded z of a Gaussian fitted to the codes, or of the prior\n"
            "(squared distance to the nearest training image; of test images: 1)",
        ),
        "elsewhere": plot.images(
            there,
            columns=10,
            labels=[label for k, v in ratios for label in (k, f"{v:.3g}")],
            title="images of other kinds, reconstructed with the same few codes\n"
            "(squared error over that of a PCA fitted to the kind)",
        ),
    }
    common.save_figures(folder, figures)
    note = "squared error: per image, white = 1; accuracies and explained variances: shares"
    common.report(folder, summary, note)
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
