"""What a few features are worth: codes decoded, other kinds of images, Gaussian inputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.common import measures
from experiments.common.measures import squared_error
from experiments.common.recipe import Trained
from vaejax import autoencoders, data, evaluate, heads, networks, train
from vaejax.errors import wrong
from vaejax.model import autoencoder

__all__ = [
    "check_others",
    "elsewhere",
    "gaussians",
    "judged",
    "levels",
    "network",
    "rebuilt",
    "samples",
]


def network(shape: Any, hidden: int, head: Any, scale: float = 0.5**0.5, prior: Any = None) -> Any:
    """At scale sqrt(1/2), -log p(x|z) is the squared error and a constant."""
    decoder = nn.Sequential([networks.MLP((hidden,)), heads.FixedNormal(shape, scale)])
    return autoencoder(nn.Sequential([networks.MLP((hidden,)), head]), decoder, prior)


def levels(x: Any) -> np.ndarray:
    """Stored grey levels as numbers from 0 to 1."""
    return np.asarray(x, np.float32) / 255


def rebuilt(model: Any, params: Any, x: Any) -> np.ndarray:
    """The reconstruction of every example."""
    return np.asarray(evaluate.reconstructions(model, params, jax.random.key(0), x))


def samples(model: Any, params: Any, codes: np.ndarray, key: Any, n: int) -> np.ndarray:
    """E[x|z] at n codes from the prior, or, without one, from the Gaussian fitted to the codes."""
    prior = model.prior(params)
    if prior is not None:
        z = jax.vmap(prior.sample)(jax.random.split(key, n))
    else:  # of their mean and covariance, which is singular where units are dead
        mixing = jax.random.normal(key, (n, len(codes))) / np.sqrt(len(codes))
        z = codes.mean(axis=0)[None] + mixing @ (codes - codes.mean(axis=0, keepdims=True))
    return np.asarray(jax.jit(jax.vmap(lambda z: model.decode(params, z).mean))(z))


def judged(one: Trained, images: Any, most: int, key: Any) -> tuple[dict[str, float], Any]:
    """What features are worth: errors, probes, sparsity, samples; and pictures of ten images.

    Args:
      one: a trained autoencoder or VAE.
      images: training images and labels, test images and labels, test images with masked pixels.
      most: training images that probes and neighbours see, at most.
      key: of the samples.
    """
    x, y, test_x, test_y, masked = images
    seen, labels, count = x[:most], y[:most], min(1000, len(test_x))
    codes, test_codes = (
        np.asarray(evaluate.codes(one.model, one.params, jax.random.key(0), v))
        for v in (seen, test_x)
    )
    r = rebuilt(one.model, one.params, test_x)
    drawn = samples(one.model, one.params, codes, key, count)
    probe, neighbours = measures.probed(codes, labels, test_codes, test_y)
    near, of_test = (measures.to_nearest(a, seen) for a in (drawn, test_x[:count]))
    numbers = {
        "squared_error": squared_error(test_x, r),
        "squared_error_if_masked": squared_error(test_x, rebuilt(one.model, one.params, masked)),
        "probe_accuracy": probe,
        "neighbours_accuracy": neighbours,
        **measures.few_entries(test_codes),
        "sample_distance": near / of_test,
    }
    return numbers, (r[:10], drawn[:20])


def gaussians(config: Any, key: Any) -> dict[str, float]:
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


def check_others(config: Any, shape: tuple[int, ...]) -> None:
    """Raise unless the other data sets of `config` can be read and hold images of that shape."""
    for name in config.others:
        for split in (config.train_split, config.test_split):
            x = data.load(name, split).x
            if x.shape[1:] != shape or x.dtype != np.uint8:
                got, fix = f"{name}: {x.dtype} x {x.shape}", "leave it out"
                raise wrong("structure: --others", got, f"uint8 levels {shape}", fix)


def elsewhere(
    config: Any, model: Any, params: Any, x: np.ndarray, test_x: np.ndarray
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
