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
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from experiments import common
from experiments.common import one_class
from experiments.common.figures import anomalies as figures
from vaejax import anomaly
from vaejax.errors import wrong

Score = Literal[
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
]


@dataclass(frozen=True)
class Config(common.Splits):
    classes: tuple[int, ...] = ()  # classes to train on; by default each in turn
    # the score of the claim, chosen on held-out training images; every score is recorded
    score: Score = "vae_distortion"
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


SMOKE: dict[str, Any] = {"steps": 5, "batch_size": 8, "samples": 2, "particles": 2, "components": 4}
SMOKE |= {"classes": (0, 1), "train_split": "train[:300]", "test_split": "test[:100]"}


def main(config: Config) -> dict[str, Any]:
    """Train, score, measure and draw; returns what summary.json holds."""
    config = common.shrunk(config, **SMOKE)
    images, test = common.both_splits(config, "anomaly", labelled=True)
    x, x_test = common.scaled(images), common.scaled(test)
    absent = sorted(set(config.classes) - set(np.unique(images.y).tolist()))
    if absent:
        expected, fix = f"some of {np.unique(images.y).tolist()}", "leave the option out for all"
        raise wrong("anomaly: --classes", absent, expected, fix)
    if config.blur and x.ndim != 4:
        fix = "add --blur 0"
        raise wrong("anomaly: --blur", f"vectors {x.shape}", "images to blur", fix)
    chosen = np.isin(images.y, config.classes or np.unique(images.y))
    x, y = x[chosen], images.y[chosen]
    score_class = one_class.scorer(
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
    summary: dict[str, Any] = {
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
    worst = min(kept, key=lambda label: found[config.score].per_class[label].value)
    drawn = {"auroc": figures.bars(found, ["pca", "linear_ae", "dae_reconstruction", config.score])}
    if x_test.ndim == 4:
        seen = kept[worst][config.score], test.y == worst, worst
        drawn["extremes"] = figures.extremes(x_test, *seen)
    note = f"mean AUROC over classes; the score of the claim: {config.score}"
    return common.finish(folder, summary, drawn, note, shown=summary["auroc_mean"])


if __name__ == "__main__":
    common.command_line(main, PRESETS, __doc__)
