"""One-class anomaly detection (protocol of Ruff et al., 2018, Deep one-class classification, ICML).

    python -m experiments.anomaly [preset] --dataset NAME|tfds:NAME|FILE.npz --steps N --seed S

For every class: models trained on its images alone score the whole test set, and AUROC says how
well each score tells that class from the rest. The score of the claim (`--score`) and the settings
were chosen before any test image was scored: on five classes of the training split of MNIST (2, 3,
4, 5, 8) and of Fashion-MNIST (0, 2, 4, 6, 7), trained on the first 5000 images of the class and
scored on the next 400 of all ten. `--train-split "train[:50000]" --test-split "train[50000:]"`
makes such a comparison. Expected numbers and wall times: experiments/README.md.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import common
from experiments.common import image_vae
from vaejax import anomaly, data, heads, networks, objectives, plot, train
from vaejax.distributions import Normal
from vaejax.errors import at_least_one, wrong
from vaejax.model import Model, autoencoder, draw


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"  # digits, mnist, fashion_mnist, tfds:NAME, or a FILE with labels
    train_split: str = "train"  # images to train on, one class at a time
    test_split: str = "test"  # images to score
    classes: tuple[int, ...] = ()  # classes to train on; by default each in turn
    # the score of the claim, chosen on held-out training images; every score is recorded
    score: Literal[
        "pca",
        "pca_blurred",
        "linear_ae",
        "dae_reconstruction",
        "vae_reconstruction",
        "vae_distortion",
        "vae_negative_elbo",
        "vae_negative_log_px",
        "vae_typicality",
        "vae_likelihood_ratio",
    ] = "vae_distortion"
    blur: float = 0.0  # standard deviation, in pixels, of the blur before the dae and the vae
    components: int = 32  # of PCA, and the code of the linear autoencoder
    hidden: tuple[int, ...] = (256,)  # units of the encoder's layers (dae, vae)
    latent: int = 32  # latent dimensions of the vae
    code: int = 64  # code of the denoising autoencoder
    noise: float = 0.3  # standard deviation of its corruption (white = 1)
    scale: float = 0.1  # standard deviation of the vae's p(x|z)
    steps: int = 1000  # steps of training, for each model and class
    batch_size: int = 100  # images per step
    learning_rate: float = 1e-3  # Adam's step size, falling to 0 along a cosine
    linear_rate: float = 5e-3  # the same for the linear autoencoder, which bears a larger one
    samples: int = 10  # draws of z per image for the bound
    particles: int = 20  # importance samples per image for -log p(x)
    seed: int = 0  # of every random number in the run
    out: Path | None = None  # folder of the run; by default a new one under runs/
    smoke: bool = False  # shrink everything to seconds, to see that it runs
    progress: bool = True  # show a progress bar
    resume: ClassVar[bool] = False  # minutes long: there is nothing to continue


DIGITS = Config(components=16, latent=16, code=16, batch_size=50)
MNIST = Config(dataset="mnist", blur=0.7, steps=1200)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": replace(MNIST, dataset="fashion_mnist"),
}


def build(hidden: tuple[int, ...], code: Any, shape: Any, scale: float, prior: Any = None) -> Model:
    """An autoencoder of dense layers with a Normal likelihood; linear where none is hidden."""
    layers = partial(networks.MLP, kernel_init=image_vae.XAVIER)
    decoder = nn.Sequential([layers(hidden[::-1]), heads.FixedNormal(shape, scale)])
    return autoencoder(nn.Sequential([layers(hidden), code]), decoder, prior)


def trainer(config: Config, loss: Any, init: Any, rate: float) -> Any:
    """`(key, x) -> params`, compiled once for all classes."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, config.steps))
    sizes: Any = {"steps": config.steps, "batch_size": config.batch_size}
    whole_run = jax.jit(train.make_train(loss, adam, **sizes))

    def fit(key: Any, x: Any) -> Any:
        init_key, train_key = jax.random.split(key)
        state, history = whole_run(train_key, init(init_key, x[0]), x)
        if not np.isfinite(history["loss"]).all():
            raise wrong("anomaly: training", "a loss not finite", "finite", "lower --learning-rate")
        return state.params

    return fit


def corrupted_draw(noise: float) -> Any:
    """A Draw of x with z from x + noise * eps: a denoising autoencoder (Vincent et al., 2008)."""

    def from_corrupted(model: Model, params: Any, key: Any, x: Any, c: Any) -> Any:
        noise_key, draw_key = jax.random.split(key)
        given = x + noise * jax.random.normal(noise_key, x.shape)
        return draw(model, params, draw_key, x, c, given=given)

    return from_corrupted


def pca_error(components: int, x: Any, x_test: Any) -> np.ndarray:
    """Squared error of the reconstruction from the first principal components, `[n]`."""
    from sklearn.decomposition import PCA

    x, x_test = (images.reshape(len(images), -1) for images in (x, x_test))
    pca = PCA(components, svd_solver="full").fit(x)
    return np.sum((x_test - pca.inverse_transform(pca.transform(x_test))) ** 2, axis=1)


def blurred(x: np.ndarray, sd: float) -> np.ndarray:
    """Images `[n, height, width, channels]` under a Gaussian blur; anything as it is at 0."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, sd, sd, 0)) if sd else x


def scorer(config: Config, shape: Any, size: int, x_test: Any) -> Any:
    """What `anomaly.one_class` calls for each class; `size`: images to which a class is cycled."""
    squared = 0.5**0.5  # the scale under which -log p is the squared error
    linear = build((), heads.Code(config.components), shape, squared)
    dae = build(config.hidden, heads.Code(config.code), shape, squared)
    prior = Normal(jnp.zeros(config.latent), jnp.ones(config.latent))
    model = build(config.hidden, heads.Normal(config.latent), shape, config.scale, prior)
    # A deterministic autoencoder has no rate: its loss is the distortion alone.
    error = partial(objectives.elbo, rate=lambda d: jnp.zeros(()))
    denoising = error(dae, draw=corrupted_draw(config.noise))
    fit_linear = trainer(config, error(linear), linear.init, config.linear_rate)
    fit_dae = trainer(config, denoising, dae.init, config.learning_rate)
    fit_vae = trainer(config, objectives.elbo(model), model.init, config.learning_rate)
    smooth_test, draws = blurred(x_test, config.blur), jax.random.key(config.seed)

    def fit_and_score(label: int, x: Any, x_test: Any) -> dict[str, Any]:
        smooth = blurred(x, config.blur)
        # Of one size for every class, cycled where there are fewer: compiled once.
        cycled, smooth_cycled = (np.resize(i, (size, *shape)) for i in (x, smooth))
        keys = jax.random.split(jax.random.fold_in(draws, label), 6)
        found = {
            "pca": pca_error(config.components, x, x_test),
            "linear_ae": anomaly.reconstruction_error(
                linear, fit_linear(keys[0], cycled), keys[1], x_test
            ),
            "pca_blurred": pca_error(config.components, smooth, smooth_test),
            "dae_reconstruction": anomaly.reconstruction_error(
                dae, fit_dae(keys[2], smooth_cycled), keys[3], smooth_test
            ),
        }
        background = Normal(smooth.mean(axis=0), np.maximum(smooth.std(axis=0), config.scale))
        by_vae = anomaly.scores(
            model,
            fit_vae(keys[4], smooth_cycled),
            keys[5],
            smooth_test,
            train=smooth_cycled[:1000],
            background=anomaly.independent_pixels(background),
            samples=config.samples,
            particles=config.particles,
        )
        return found | {f"vae_{name}": score for name, score in by_vae.items()}

    return fit_and_score


def bars(found: dict[str, anomaly.OneClass], names: list[str]) -> Any:
    """AUROC of every class by some scores, with 95 % intervals, and the mean in the legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.add_subplot(xlabel="class of the normal images", ylabel="AUROC (95 % interval)")
    for i, name in enumerate(names):
        labels, areas = zip(*found[name].per_class.items(), strict=True)
        value, low, high = np.transpose(areas)
        places = np.arange(len(labels)) + 0.8 * ((i + 0.5) / len(names) - 0.5)
        ends, legend = [value - low, high - value], f"{name}: mean {found[name].mean:.4f}"
        axis.errorbar(places, value, ends, fmt="o", ms=4, capsize=2, label=legend)
    axis.set_xticks(range(len(labels)), labels)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def extremes(x: Any, score: Any, normal: Any, label: int) -> Any:
    """Test images at the ends of the ranking, where the score is right and where it fails."""
    count = int(min(10, normal.sum(), (~normal).sum()))
    order = np.argsort(score)
    inside, outside = order[normal[order]], order[~normal[order]]
    rows = inside[:count], inside[-count:][::-1], outside[:count], outside[-count:][::-1]
    names = ["class, lowest", "class, highest", "others, lowest", "others, highest"]
    title = f"test images by anomaly score, trained on class {label}"
    return plot.images(x[np.concatenate(rows)], columns=count, title=title, labels=names)


def main(config: Config) -> dict[str, Any]:
    """Train, score, measure and draw; returns what summary.json holds."""
    if config.smoke:
        config = replace(
            config,
            steps=5,
            batch_size=8,
            samples=2,
            particles=2,
            components=4,
            train_split="train[:300]",
            test_split="test[:100]",
            classes=(0, 1),
        )
    at_least_one("anomaly", steps=config.steps, batch_size=config.batch_size)
    images, test = (data.load(config.dataset, s) for s in (config.train_split, config.test_split))
    if isinstance(images.y, tuple) or isinstance(test.y, tuple):
        raise wrong("anomaly: --dataset", "no labels", "labels", "np.savez(path, x=..., y=...)")
    x, x_test = (np.asarray(data.scale(jax.random.key(0), part.x)) for part in (images, test))
    absent = sorted(set(config.classes) - set(np.unique(images.y).tolist()))
    if absent:
        expected, fix = f"some of {np.unique(images.y).tolist()}", "leave the option out for all"
        raise wrong("anomaly: --classes", absent, expected, fix)
    if config.blur and x.ndim != 4:
        fix = "add --blur 0"
        raise wrong("anomaly: --blur", f"vectors {x.shape}", "images to blur", fix)
    chosen = np.isin(images.y, config.classes or np.unique(images.y))
    x, y = x[chosen], images.y[chosen]
    score_class = scorer(
        config, x.shape[1:], int(np.unique(y, return_counts=True)[1].max()), x_test
    )
    folder = common.open_folder(config, name=f"anomaly-{Path(config.dataset).stem}")
    began, kept = time.perf_counter(), {}

    def fit_and_score(label: int, x_class: Any, tested: Any) -> dict[str, Any]:
        kept[label] = score_class(label, x_class, tested)
        if config.progress:
            print(f"class {label}: {time.perf_counter() - began:.0f} s", flush=True)
        return kept[label]

    found = anomaly.one_class(fit_and_score, x, y, x_test, test.y)
    summary = {
        "score": config.score,
        "score_auroc_mean": found[config.score].mean,
        "auroc_mean": {name: result.mean for name, result in found.items()},
        "auroc_per_class": {
            name: {str(label): area._asdict() for label, area in result.per_class.items()}
            for name, result in found.items()
        },
        "test_images": len(x_test),
        "seconds": time.perf_counter() - began,
    }
    common.write_json(folder / "summary.json", summary)
    worst = min(kept, key=lambda label: found[config.score].per_class[label].value)
    drawn = {"auroc": bars(found, ["pca", "linear_ae", "dae_reconstruction", config.score])}
    if x_test.ndim == 4:
        drawn["extremes"] = extremes(x_test, kept[worst][config.score], test.y == worst, worst)
    common.save_figures(folder, drawn)
    means = {name: result.mean for name, result in found.items()}
    common.report(folder, means, f"mean AUROC over classes; the score of the claim: {config.score}")
    return summary


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__ or "")
