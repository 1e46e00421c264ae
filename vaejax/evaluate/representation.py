"""What codes know and what their directions mean: probes, neighbours, mean differences, strokes.

Arrays in, numbers out, over any representation: posterior means, pixels, principal components.
`linear_probe`, `nearest_neighbours` and `principal_components` need scikit-learn
(the extra `experiments`).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from vaejax.arrays import numbers
from vaejax.errors import at_least_one, missing, wrong
from vaejax.types import describe_fields

STEPS = 2000  # of a regression, at most


@describe_fields
class Extremes(NamedTuple):
    """Which examples have the largest and the smallest values of a measure.

    Args:
      top, bottom: masks `[n]`.
    """

    top: np.ndarray
    bottom: np.ndarray


def linear_probe(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, *, inverse_penalty: float = 1.0
) -> float:
    """Test accuracy of a linear classifier of the codes: how much a linear map finds in them.

    Multinomial logistic regression, p(y|z) = softmax(W z~ + b), on codes z~ standardised with the
    training set's mean and deviation; it minimises `inverse_penalty * nats + |W|^2 / 2`. Warns
    (UserWarning) where the minimum is not reached.

    Args:
      codes, test_codes: representations, flattened, `[n, ...]` and `[m, ...]`.
      labels, test_labels: integers, `[n]` and `[m]`.
      inverse_penalty: of the weights, above 0.
    Returns:
      The share in [0, 1] of test labels that are predicted.
    Raises:
      ValueError: for fewer than two classes, other lengths or shapes, labels below 0 (unlabelled),
        and values that are not finite.
      ImportError: without scikit-learn.
    References:
      Alain and Bengio, 2017, Understanding intermediate layers using linear classifier probes,
      arXiv:1610.01644.
    """
    sets = _labelled("linear_probe", codes, labels, test_codes, test_labels)
    classes = np.unique(sets[1])
    if len(classes) < 2:
        fix = "give training examples of two classes or more"
        raise wrong("linear_probe: labels", f"one class, {classes[0]}", "two or more", fix)
    if not inverse_penalty > 0:
        raise wrong("linear_probe: inverse_penalty", inverse_penalty, "above 0", "try 1.0")
    _scikit_learn("linear_probe")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(sets[0])
    codes, test_codes = scaler.transform(sets[0]), scaler.transform(sets[2])
    for solver in ("lbfgs", "newton-cg"):  # the second is slower, and gets to the end more often
        classifier = LogisticRegression(C=inverse_penalty, max_iter=STEPS, solver=solver)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(codes, sets[1])
        share = float(np.mean(classifier.predict(test_codes) == sets[3]))
        if not any(issubclass(one.category, ConvergenceWarning) for one in said):
            return share
    warnings.warn(
        "linear_probe: not converged: the regression has not come to its end, so that the "
        "accuracy is not that of the best linear map; give a smaller inverse_penalty",
        stacklevel=2,
    )
    return share


def nearest_neighbours(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, *, neighbours: int = 5
) -> float:
    """Test accuracy of the majority label among the nearest training codes (Euclidean distance).

    Codes are taken as they are: what their scales say about importance is part of the
    representation.

    Args:
      codes, labels, test_codes, test_labels: as in `linear_probe`, but one class will do.
      neighbours: k, from 1 to n.
    Returns:
      The share in [0, 1] of test labels that are predicted.
    Raises:
      ValueError: for k outside 1..n, other lengths or shapes, labels below 0, and values that are
        not finite.
      ImportError: without scikit-learn.
    References:
      Cover and Hart, 1967, Nearest neighbor pattern classification.
    """
    sets = _labelled("nearest_neighbours", codes, labels, test_codes, test_labels)
    at_least_one("nearest_neighbours", neighbours=neighbours)
    if neighbours > len(sets[0]):
        expected, fix = f"at most the {len(sets[0])} training examples", "lower it"
        raise wrong("nearest_neighbours: neighbours", neighbours, expected, fix)
    sklearn = _scikit_learn("nearest_neighbours")
    return _accuracy(sklearn.neighbors.KNeighborsClassifier(neighbours), *sets)


def principal_components(x: Any, test_x: Any, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the first principal axes of the training set: the linear rival of a code.

    `z = U^T (x - mean)`, with U the `size` leading eigenvectors of the training covariance.

    Args:
      x, test_x: examples, flattened, `[n, ...]` and `[m, ...]`.
      size: dimensions of z, from 1 to the smaller of n and the size of x.
    Returns:
      z of both, `[n, size]` and `[m, size]`, in the units of x.
    Raises:
      ValueError: for another size, and for values that are not finite.
      ImportError: without scikit-learn.
    References:
      Pearson, 1901.
    """
    at_least_one("principal_components", size=size)
    x, test_x = _pair("principal_components", "x", "test_x", x, test_x)
    if not 1 <= size <= min(x.shape):
        expected, fix = f"1 to {min(x.shape)}", "lower it or give more examples"
        raise wrong("principal_components: size", size, expected, fix)
    sklearn = _scikit_learn("principal_components")
    pca = sklearn.decomposition.PCA(size, random_state=0).fit(x)
    return pca.transform(x), pca.transform(test_x)


def direction(codes_of_group: Any, codes_of_other: Any) -> np.ndarray:
    """The direction in code space with the meaning of a group: mean code less mean code.

    `v = mean_{i in group} z_i - mean_{j in other} z_j`; added to another example's code and
    decoded, it lends that example what the group has and the other lacks.

    Args:
      codes_of_group: `[n, latent]`.
      codes_of_other: `[m, latent]`.
    Returns:
      v, `[latent]`: one step of it leads from the mean of the other to that of the group.
    Raises:
      ValueError: for empty groups, other shapes, and values that are not finite.
    References:
      Larsen et al., 2016, Autoencoding beyond pixels using a learned similarity metric,
      arXiv:1512.09300.
    """
    names = "codes_of_group", "codes_of_other"
    group, other = _pair("direction", *names, codes_of_group, codes_of_other)
    return group.mean(axis=0) - other.mean(axis=0)


def extremes(values: Any, *, share: float = 0.1) -> Extremes:
    """The examples with the largest and with the smallest values: two groups for `direction`.

    Args:
      values: a measure, such as `thickness(images)`, `[n]`.
      share: of the examples in each group, at most 1/2.
    Returns:
      Masks `[n]` of exactly `floor(share n)` examples each, which do not overlap.
    Raises:
      ValueError: where a group would be empty, for other shapes, and for values that are not
        finite.
    """
    values = np.asarray(values)
    if values.ndim != 1:
        raise wrong("extremes: values", f"shape {values.shape}", "[n]", "pass one number each")
    values = _finite("extremes: values", values)
    count = int(share * len(values) + 1e-9) if 0 < share <= 0.5 else 0
    if count < 1:
        got = f"share={share} of {len(values)} examples"
        fix = "choose a share in (0, 0.5] of enough examples"
        raise wrong("extremes", got, "at least one example in each group", fix)
    order = np.argsort(values, kind="stable")
    masks = np.zeros((2, len(values)), bool)
    masks[0, order[-count:]] = True
    masks[1, order[:count]] = True
    return Extremes(*masks)


def thickness(images: Any) -> np.ndarray:
    """Mean thickness of the strokes of each image, in pixels: twice the area over the perimeter.

    `2 sum_p a_p / sum_p |grad a|_p`, where a is the ink. The total variation is contrast times
    perimeter, so grey and blurred edges count by their share and the contrast cancels; a stroke of
    width w and length l, of which the perimeter is 2 (l + w), measures w / (1 + w / l). A stroke
    thinner than its blur measures as wide as the blur.

    Args:
      images: bright ink on black, uint8 or floats of any range from 0, `[n, height, width]` or
        `[n, height, width, 1]`.
    Returns:
      The thickness, pixels, `[n]`.
    Raises:
      ValueError: for other shapes, negative or non-finite values, and for an image without ink,
        with its index.
    Example:
      >>> import numpy as np
      >>> from vaejax import representation
      >>> image = np.zeros((1, 20, 20))
      >>> image[:, 8:12, 2:18] = 1
      >>> float(representation.thickness(image)[0].round(1))
      3.3

    References:
      Rudin, Osher and Fatemi, 1992 (total variation).
    """
    ink = _ink("thickness", images)
    a = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    # Differences at the corners between pixels, each the mean of two: alike in every direction.
    down, right = np.diff(a, axis=1), np.diff(a, axis=2)
    down, right = (down[:, :, 1:] + down[:, :, :-1]) / 2, (right[:, 1:] + right[:, :-1]) / 2
    return 2 * ink.sum((1, 2)) / np.sqrt(down**2 + right**2).sum((1, 2))


def slant(images: Any) -> np.ndarray:
    """Angle by which each image is sheared, in degrees: above 0 where the top leans to the right.

    `arctan(-cov(row, column) / var(row))` under the ink as weights: the horizontal shear that would
    leave rows and columns uncorrelated.

    Args:
      images: as for `thickness`.
    Returns:
      The angle, degrees in [-90, 90], `[n]`; 0 for ink in one row only.
    Raises:
      ValueError: as `thickness` does.
    References:
      Simard et al., 1992, and many since, remove it from digits ("deslanting").
    """
    ink = _ink("slant", images)
    ink = ink / ink.sum((1, 2), keepdims=True)
    row, column = np.arange(ink.shape[1])[:, None], np.arange(ink.shape[2])[None, :]
    row = row - (ink * row).sum((1, 2), keepdims=True)
    column = column - (ink * column).sum((1, 2), keepdims=True)
    covariance, variance = (ink * row * column).sum((1, 2)), (ink * row**2).sum((1, 2))
    rows = (ink > 0).any(axis=2).sum(axis=1)  # one row has no variance but that of rounding
    return np.where(rows > 1, np.degrees(np.arctan2(-covariance, variance)), 0.0)


def _accuracy(classifier: Any, codes: Any, labels: Any, test_codes: Any, test_labels: Any) -> float:
    return float(np.mean(classifier.fit(codes, labels).predict(test_codes) == test_labels))


def _labelled(function: str, codes: Any, labels: Any, test_codes: Any, test_labels: Any) -> Any:
    codes, test_codes = _pair(function, "codes", "test_codes", codes, test_codes)
    labels, test_labels = np.asarray(labels), np.asarray(test_labels)
    pairs = ("labels", labels, codes), ("test_labels", test_labels, test_codes)
    for name, found, of in pairs:
        if found.shape != (len(of),) or found.dtype.kind not in "iub":
            got = f"{found.dtype} of shape {found.shape}"
            fix = "pass the labels of these very codes"
            raise wrong(f"{function}: {name}", got, f"integers of shape ({len(of)},)", fix)
        if found.min() < 0:
            fix = "drop the unlabelled: codes[labels >= 0]"
            raise wrong(f"{function}: {name}", int(found.min()), "classes from 0", fix)
    return codes, labels, test_codes, test_labels


def _pair(function: str, name: str, other: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of examples as finite matrices `[n, d]` of one width."""
    rows = []
    for where, value in ((f"{function}: {name}", x), (f"{function}: {other}", y)):
        value = np.asarray(numbers(where, value, "examples [n, ...]"))
        if value.ndim < 2 or not value.size:
            got, expected = f"shape {value.shape}", "[n, ...] with at least one example"
            raise wrong(where, got, expected, "give examples along the first axis")
        value = value.reshape(len(value), -1)
        rows.append(_finite(where, value).astype(np.float64))
    if rows[0].shape[1] != rows[1].shape[1]:
        sizes = f"{rows[0].shape[1]} and {rows[1].shape[1]} numbers per example"
        fix = "pass one kind of representation in both"
        raise wrong(f"{function}: {name} and {other}", sizes, "as many in both", fix)
    return rows[0], rows[1]


def _finite(where: str, values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        got = f"values not finite in {int((~finite).sum())} examples, the first at {first}"
        raise wrong(where, got, "finite values", "drop them, or look for where they arise")
    return values


def _ink(function: str, images: Any) -> np.ndarray:
    """Images as finite, non-negative floats `[n, height, width]`, each with some ink."""
    x = np.asarray(images)
    x = x[..., 0] if x.ndim == 4 and x.shape[-1] == 1 else x
    where = f"{function}: images"
    if x.ndim != 3 or not x.size:
        got, fix = f"shape {np.shape(images)}", "add the batch axis: images[None]"
        raise wrong(where, got, "[n, height, width] or [n, height, width, 1]", fix)
    x = _finite(where, x).astype(np.float64)
    if x.min() < 0:
        raise wrong(where, f"a value of {x.min():.4g}", "ink from 0 up", "rescale: x - x.min()")
    blank = np.flatnonzero(x.sum((1, 2)) == 0)
    if len(blank):
        got = f"{len(blank)} images without ink, the first at {blank[0]}"
        raise wrong(where, got, "strokes to measure", "drop them: images[images.any((1, 2))]")
    return x


def _scikit_learn(function: str) -> Any:
    try:
        import sklearn.decomposition
        import sklearn.neighbors
    except ImportError as error:
        raise missing(function, "scikit-learn", "experiments") from error
    return sklearn


__all__ = [
    "Extremes",
    "direction",
    "extremes",
    "linear_probe",
    "nearest_neighbours",
    "principal_components",
    "slant",
    "thickness",
]
