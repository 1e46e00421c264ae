"""Whether a code is disentangled: what its dimensions say about factors that are known."""

from typing import Any, NamedTuple

import numpy as np

from vaejax.errors import at_least, finite_values, wrong
from vaejax.types import describe_fields


@describe_fields
class InformationGap(NamedTuple):
    """What `mig` returns.

    Args:
      value: the mean of the gaps, 0 to 1.
      gaps: of each factor, a share of its entropy, `[factors]`.
      information: I(v_k; z_j), nats, `[factors, latent]`.
      entropy: H(v_k), nats, `[factors]`.
    """

    value: float
    gaps: np.ndarray
    information: np.ndarray
    entropy: np.ndarray


def mig(codes: Any, factors: Any, *, bins: int = 20) -> InformationGap:
    """The mutual information gap: how much more of a factor the best dimension says than the next.

    `MIG = mean_k (I(v_k; z_j(k)) - max_{j != j(k)} I(v_k; z_j)) / H(v_k)`, j(k) the dimension that
    says most of v_k. A code with each factor in a dimension of its own has 1, the same code rotated
    by 45 degrees about 0.

    Args:
      codes: draws z ~ q(z|x), as in the paper, `[n, latent]`. A mean code is not noisy, and even a
        dimension that has collapsed moves with x a little.
      factors: whole numbers, which of its values each factor has, `[n, factors]`.
      bins: see `mutual_information`; more than a factor's values for a perfect code to have 1.
    Returns:
      An InformationGap.
    Raises:
      ValueError: as `mutual_information` does, for fewer than two dimensions, and for a factor that
        never changes.
    Example:
      >>> import numpy as np
      >>> from vaejax import disentanglement
      >>> factors = np.indices((4, 4)).reshape(2, -1).T
      >>> round(disentanglement.mig(factors.astype(float), factors, bins=5).value, 3)
      1.0

    References:
      Chen, Li, Grosse and Duvenaud, 2018, arXiv:1802.04942.
    """
    information = mutual_information(codes, factors, bins=bins)
    if information.shape[1] < 2:
        raise wrong("mig: codes", "1 dimension", "2 or more", "a gap is one between two")
    entropy = np.array(
        [_entropy(np.unique(v, return_counts=True)[1]) for v in np.asarray(factors).T]
    )
    if not entropy.all():
        constant = int(np.argmin(entropy))
        got = f"factor {constant} with one value in all {len(np.asarray(codes))} rows"
        raise wrong("mig: factors", got, "two values or more", "leave that factor out")
    second, first = np.sort(information, axis=1)[:, -2:].T
    gaps = (first - second) / entropy
    return InformationGap(float(gaps.mean()), gaps, information, entropy)


def mutual_information(codes: Any, factors: Any, *, bins: int = 20) -> np.ndarray:
    """I(v_k; z_j) of every factor and every dimension of a code.

    `I = sum_{b, v} p(b, v) log(p(b, v) / (p(b) p(v)))` of the counts, b the bin of z_j. The bins
    hold equally many codes (equal codes stay together): a monotone map of a dimension changes
    nothing, nor does one code far from the others. Of independent pairs it is too high by about
    (bins - 1) (values - 1) / (2 n).

    Args:
      codes: `[n, latent]`.
      factors: whole numbers, which of its values each factor has, `[n, factors]`.
      bins: at most so many for each dimension, 2 to n.
    Returns:
      The information, nats, `[factors, latent]`.
    Raises:
      ValueError: for other shapes or lengths, codes that are not finite, factors that are not
        whole, and bins < 2 or above n.
    """
    codes, factors = np.asarray(codes, float), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        got, fix = f"{codes.shape} and {factors.shape}", "give one row for each example"
        raise wrong("mig: codes and factors", got, "[n, latent] and [n, factors]", fix)
    finite_values("mig", "the sum of the code", codes.sum(axis=1), codes)
    if not np.array_equal(factors, np.round(factors)):
        fix = "pass which of its values a factor has, as sprites.sample gives it"
        raise wrong("mig: factors", "fractions or NaN", "whole numbers", fix)
    at_least(0, "mig", bins=bins)
    if not 2 <= bins <= len(codes):
        raise wrong("mig: bins", bins, f"2 to {len(codes)}, the examples", "20 are usual")
    binned = [_binned(column, bins) for column in codes.T]
    places = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    return np.array([[_shared(b, v) for b in binned] for v in places])


def _binned(column: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value `[n]`: how many of the bins - 1 inner edges are not above it."""
    ranked = np.sort(column)
    # Edges are values, not means of two: no quantile's convention, of which numpy has nine.
    edges = ranked[(np.arange(1, bins) * len(column)) // bins]
    return np.searchsorted(edges, column, side="right")


def _shared(b: np.ndarray, v: np.ndarray) -> float:
    """The mutual information of two columns of places, nats: H(b) + H(v) - H(b, v)."""
    rows, columns = b.max() + 1, v.max() + 1
    table = np.bincount(b * columns + v, minlength=rows * columns).reshape(rows, columns)
    return max(0.0, _entropy(table.sum(axis=0)) + _entropy(table.sum(axis=1)) - _entropy(table))


def _entropy(counts: np.ndarray) -> float:
    """The entropy of the shares that counts are of their sum, nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


__all__ = ["InformationGap", "mig", "mutual_information"]
