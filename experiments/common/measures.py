"""Measures that no module of the library has: of images, of codes, of points."""

from typing import Any

import numpy as np

from vaejax import representation

__all__ = ["EXACT", "principal_axes", "principal_error", "probed", "psnr"]

EXACT = 60.0
"""dB: what an image counts that is better than this, for instance one left as it was."""


def psnr(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`-10 log10(mean squared error)` of each image, `[n]`, in dB, at most `EXACT`."""
    error = np.mean((other - clean).reshape(len(clean), -1) ** 2, axis=1, dtype=np.float64)
    return -10 * np.log10(np.maximum(error, 10 ** (-EXACT / 10)))


def principal_axes(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first principal axes of `x` `[n, d]`, orthonormal rows `[count, d]`, and its mean."""
    from sklearn.decomposition import PCA

    pca = PCA(count, svd_solver="covariance_eigh").fit(x.astype(np.float64))
    return pca.components_, pca.mean_


def principal_error(x: np.ndarray, axes: np.ndarray, mean: np.ndarray) -> float:
    """The squared error of `x` `[n, d]` in the mean, if orthonormal axes are all that is kept."""
    centred = x - mean
    return float(np.sum((centred - centred @ axes.T @ axes) ** 2) / len(centred))


def probed(codes: Any, labels: Any, test_codes: Any, test_labels: Any) -> tuple[float, float]:
    """The share of test examples that a linear probe, and the nearest neighbours, get right."""
    labelled = codes, labels, test_codes, test_labels
    return representation.linear_probe(*labelled), representation.nearest_neighbours(*labelled)
