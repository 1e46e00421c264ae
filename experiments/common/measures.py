"""Measures that no module of the library has: of images, of codes, of points."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vaejax import evaluate, representation

__all__ = [
    "EXACT",
    "bits",
    "bound_numbers",
    "energy_distance",
    "few_entries",
    "over_seeds",
    "principal_axes",
    "principal_error",
    "probed",
    "psnr",
    "slope",
    "squared_error",
    "summarise",
    "to_nearest",
]

EXACT = 60.0
"""dB: what an image counts that is better than this, for instance one left as it was."""


def bits(nats: float, images: Any) -> dict[str, float]:
    """-log p(x) of an image, a mean over `images` `[n, ...]`, in bits per dimension.

    Of a probability alone, of discrete pixels: of a density it would be no length of a code.
    """
    return {"test_nll_bits_per_dim": float(evaluate.bits_per_dim(-nats, images.shape[1:]))}


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


def probed(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, **options: Any
) -> tuple[float, float]:
    """The share of test examples that a linear probe, and the nearest neighbours, get right.

    `options`: of `nearest_neighbours`.
    """
    labelled = codes, labels, test_codes, test_labels
    near = representation.nearest_neighbours(*labelled, **options)
    return representation.linear_probe(*labelled), near


def over_seeds(name: str, values: Any) -> dict[str, float]:
    """`NAME`, the mean over the seeds, and with two or more of them `NAME_sd`, with n - 1."""
    found = {name: float(np.mean(values))}
    return found | {f"{name}_sd": float(np.std(values, ddof=1))} if len(values) > 1 else found


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


def to_nearest(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance to the nearest of b, averaged over a."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=1).fit(b.reshape(len(b), -1))
    return float(np.mean(found.kneighbors(a.reshape(len(a), -1))[0] ** 2))


def summarise(rows: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean and deviation over seeds of every measure, and contractive against plain."""
    table = {m: {n: np.array([row[n] for row in rows[m]]) for n in rows[m][0]} for m in rows}
    summary: dict[str, Any] = {}
    for method, found in table.items():
        for name, values in found.items():
            summary |= over_seeds(f"{method}_{name}", values)
    if "plain" in table and "contractive" in table:
        plain, ours = table["plain"], table["contractive"]
        for name in ("jacobian_norm", "reconstruction_nats"):
            summary[f"plain_over_contractive_{name}"] = float(np.mean(plain[name] / ours[name]))
        for rival in sorted(set(table) - {"plain", "contractive"}):
            error = table[rival]["error_percent"]
            holds = (ours["error_percent"] <= error) & (error < plain["error_percent"])
            summary[f"seeds_in_order_{rival}"] = f"{holds.sum()} of {len(holds)}"
    return summary


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased: 0 in the mean for equal distributions."""
    from scipy.spatial.distance import cdist

    own = (cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(2 * cdist(x, y).mean() - sum(own))


def bound_numbers(truth: Any, found: Any, gaps: Any) -> dict[str, Any]:
    """Means over the images of bounds on log p(x) and of what they miss, nats.

    Args:
      truth: of `exact.quadrature`.
      found: of `bounds.sandwich`.
      gaps: the lower and the upper bound of each image less the exact value.
    """
    lower, upper, ladder, simulated = found[:4]
    short = truth.log_px - ladder.log_px[-1]
    worst = int(short.argmax())
    return {
        "exact_log_px_nats": truth.log_px.mean(),
        "exact_changed_by_last_halving_nats": np.abs(truth.log_px - truth.coarse).max(),
        "ais_log_px_nats": lower.log_px.mean(),
        "reverse_ais_log_px_nats": upper.log_px.mean(),
        "ais_minus_exact_nats": gaps[0].mean(),
        "reverse_ais_minus_exact_nats": gaps[1].mean(),
        "ais_ess_median": np.median(lower.ess),
        "ais_acceptance": lower.acceptance.mean(),
        "bdmc_gap_nats": simulated.gap.mean(),
        "importance_log_px_nats": ladder.log_px[-1].mean(),
        "importance_gap_mean_nats": short.mean(),
        "importance_gap_worst_nats": short.max(),
        "importance_worst_image": worst,
        "importance_worst_image_ess": ladder.ess[-1, worst],
    }


def slope(k: Any, values: Any) -> float:
    """The exponent a of values ~ k^a, by least squares in the logarithms."""
    return float(np.polyfit(np.log(np.asarray(k, float)), np.log(np.asarray(values)), 1)[0])
