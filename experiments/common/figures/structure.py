"""Figures of several codes side by side: reconstructions, samples, other kinds of images."""

from typing import Any

import numpy as np

from vaejax import plot

__all__ = ["draw"]


def draw(numbers: dict[str, Any], x: np.ndarray, pictures: Any, there: np.ndarray) -> Any:
    """Reconstructions, decoded samples, and images of other kinds.

    Args:
      numbers: by name of a way its squared error and the distance of its samples to images.
      x: test images.
      pictures: by name of a way its reconstructions of the first ten, and 20 samples.
      there: images of other kinds and their reconstructions, in rows of ten.
    """
    errors = [f"{name}: {numbers[name]['squared_error']:.3g}" for name in pictures]
    far = [f"{name}: {numbers[name]['sample_distance']:.3g}" for name in pictures]
    ratios = numbers["elsewhere_over_pca"].items()
    rebuilt = np.concatenate([x[:10], *(r for r, _ in pictures.values())])
    return {
        "reconstructions": plot.images(
            rebuilt,
            columns=10,
            labels=["x", *errors],
            title="test images, and their reconstructions with the squared error per image",
        ),
        "samples": plot.images(
            np.concatenate([drawn for _, drawn in pictures.values()]),
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
