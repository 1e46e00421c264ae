"""Representations: known accuracies, strokes of known width and slant, directions by hand."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from vaejax import representation as rep

RNG = np.random.default_rng(0)
CLASSIFIERS = [rep.linear_probe, rep.nearest_neighbours]


def bar(width, *, length=40, shear=0.0, size=64):
    """A vertical bar with exact pixel coverage, sheared: the top moves right by shear * height."""
    image = np.zeros((size, size))
    for row in range((size - length) // 2, (size + length) // 2):
        start = size // 2 - width // 2 + shear * (size / 2 - 0.5 - row)
        edges = np.clip(np.arange(size + 1), start, start + width)
        image[row] = np.diff(edges)
    return image


def blobs(n, *, classes=3, apart=8.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return apart * np.eye(classes)[y] + rng.normal(size=(n, classes)), y


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_separate_classes_are_told_apart_and_shuffled_labels_are_not(classifier):
    (x, y), (test_x, test_y) = blobs(300), blobs(300, seed=1)
    assert classifier(x, y, test_x, test_y) > 0.99
    shuffled = np.random.default_rng(2).permutation(y)
    assert classifier(x, shuffled, test_x, test_y) < 0.5


def test_probe_accuracy_is_that_of_the_bayes_rule():
    """Two Gaussians 2 apart with unit variance: the best rule is linear and right in Phi(1)."""
    (x, y), (test_x, test_y) = (blobs(20_000, classes=2, apart=2**0.5, seed=s) for s in (0, 1))
    accuracy = rep.linear_probe(x, y, test_x, test_y)
    assert abs(accuracy - 0.841345) < 4 * np.sqrt(0.841345 * 0.158655 / 20_000)


def test_a_probe_that_has_not_converged_says_so(monkeypatch):
    """Overlapping classes: the second solver needs a few steps, the first more of them."""
    sets = (*blobs(200, apart=2.0), *blobs(200, apart=2.0, seed=1))
    expected = rep.linear_probe(*sets, inverse_penalty=1e6)
    monkeypatch.setattr(rep, "STEPS", 10)
    assert abs(rep.linear_probe(*sets, inverse_penalty=1e6) - expected) <= 0.01
    monkeypatch.setattr(rep, "STEPS", 1)
    with pytest.warns(UserWarning, match="linear_probe: not converged: .*smaller inverse_penalty"):
        rep.linear_probe(*sets, inverse_penalty=1e6)


def test_probe_does_not_depend_on_units_but_neighbours_do():
    """Standardisation by the training set alone; a constant column is harmless."""
    (x, y), (test_x, test_y) = blobs(300, apart=3.0), blobs(300, apart=3.0, seed=1)
    units = np.array([1e-4, 1.0, 1e4])
    plain = rep.linear_probe(x, y, test_x, test_y)
    assert rep.linear_probe(x * units + 5, y, test_x * units + 5, test_y) == plain
    padded = [np.c_[v, np.full(len(v), 7.0)] for v in (x, test_x)]
    assert rep.linear_probe(padded[0], y, padded[1], test_y) == plain
    assert rep.nearest_neighbours(x * units, y, test_x * units, test_y) < plain - 0.1


def test_neighbours_vote_by_hand():
    x, y = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([0, 1, 1, 0])
    test_x, test_y = np.array([[0.1], [9.0]]), np.array([0, 0])
    assert rep.nearest_neighbours(x, y, test_x, test_y, neighbours=1) == 1.0
    assert rep.nearest_neighbours(x, y, test_x, test_y, neighbours=3) == 0.0


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_bad_codes_and_labels_are_named(classifier):
    (x, y), (test_x, test_y) = blobs(30), blobs(20, seed=1)
    name, bad = classifier.__name__, x.copy()
    bad[4, 1] = np.nan
    for arguments, message in [
        ((x, y[:-1], test_x, test_y), rf"{name}: labels: got int64 of shape \(29,\).*\(30,\)"),
        ((x, y, test_x, test_y[:3]), rf"{name}: test_labels: got int64 of shape \(3,\)"),
        ((x, y * 1.0, test_x, test_y), "labels: got float64"),
        ((x, y - 1, test_x, test_y), "labels: got -1, expected classes from 0.*unlabelled"),
        ((bad, y, test_x, test_y), "codes: got values not finite in 1 examples, the first at 4"),
        ((x, y, test_x[:, :2], test_y), "codes and test_codes: got 3 and 2 numbers"),
        ((x[:0], y[:0], test_x, test_y), "codes: got shape .*at least one example"),
    ]:
        with pytest.raises(ValueError, match=message):
            classifier(*arguments)


def test_a_probe_with_one_class_is_refused():
    x, y = blobs(30)
    with pytest.raises(ValueError, match="linear_probe: labels: got one class, 2, expected two"):
        rep.linear_probe(x, np.full(30, 2), x, y)
    with pytest.raises(ValueError, match="inverse_penalty: got 0"):
        rep.linear_probe(x, y, x, y, inverse_penalty=0)
    for neighbours, message in [(0, "neighbours >= 1, got 0"), (31, "at most the 30 training")]:
        with pytest.raises(ValueError, match=message):
            rep.nearest_neighbours(x, y, x, y, neighbours=neighbours)


def test_principal_components_are_those_of_the_training_covariance():
    x, test_x = RNG.normal(size=(2, 50, 2, 3)) * np.array([3.0, 1.0, 0.2])
    z, test_z = rep.principal_components(x, test_x, size=2)
    flat = x.reshape(50, -1)
    _, vectors = np.linalg.eigh(np.cov(flat.T))
    axes = vectors[:, ::-1][:, :2]
    expected = (test_x.reshape(50, -1) - flat.mean(0)) @ axes
    signs = np.sign(np.sum(test_z * expected, axis=0))
    np.testing.assert_allclose(test_z, expected * signs, atol=1e-9)
    assert z.shape == (50, 2) and abs(z.mean()) < 1e-9
    with pytest.raises(ValueError, match="size: got 7, expected 1 to 6"):
        rep.principal_components(x, test_x, size=7)


def test_a_direction_leads_from_mean_to_mean():
    group, other = RNG.normal(size=(7, 4)), RNG.normal(size=(5, 4))
    step = rep.direction(group, other)
    np.testing.assert_allclose(other.mean(0) + step, group.mean(0), atol=1e-12)
    with pytest.raises(ValueError, match=r"direction: codes_of_other: got shape \(0, 4\)"):
        rep.direction(group, other[:0])
    with pytest.raises(ValueError, match="direction: codes_of_group: got values not finite"):
        rep.direction(group * np.nan, other)
    with pytest.raises(ValueError, match="got 4 and 3 numbers per example"):
        rep.direction(group, other[:, :3])


def test_extremes_are_disjoint_and_exact_also_under_ties():
    top, bottom = rep.extremes(np.arange(10.0), share=0.3)
    assert np.flatnonzero(top).tolist() == [7, 8, 9]
    assert np.flatnonzero(bottom).tolist() == [0, 1, 2]
    top, bottom = rep.extremes(np.zeros(9), share=0.5)
    assert top.sum() == bottom.sum() == 4 and not np.any(top & bottom)
    for values, share in [(np.arange(9.0), 0.1), (np.arange(9.0), 0.0), (np.arange(9.0), 0.7)]:
        with pytest.raises(ValueError, match="at least one example in each group"):
            rep.extremes(values, share=share)
    with pytest.raises(ValueError, match="not finite in 1 examples, the first at 1"):
        rep.extremes([0.0, np.nan, 1.0], share=0.5)


@pytest.mark.parametrize("width", [1, 2, 3.5, 6])
def test_thickness_of_a_bar_is_its_width(width):
    """w / (1 + w / l), up to the corners; a width of 1 lies on whole pixels, as it must."""
    image = bar(width)
    expected = width / (1 + width / 40)
    for x in (image, image.T, 0.2 * image, (200 * image).astype(np.uint8)):
        assert rep.thickness(x[None])[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("radius", [6, 10, 20])
def test_thickness_of_a_disc_is_its_radius(radius):
    grid = np.arange(64) - 31.5
    disc = np.clip(radius - np.hypot(grid[:, None], grid[None]) + 0.5, 0, 1)
    assert rep.thickness(disc[None, ..., None])[0] == pytest.approx(radius, rel=0.05)


@pytest.mark.parametrize("shear", [-0.5, -0.2, 0.0, 0.2, 0.5])
def test_slant_of_a_sheared_bar_is_the_angle_of_the_shear(shear):
    """Checked against the sign: rows count downwards, and a top that leans right is positive."""
    image = bar(4, shear=shear)[None]
    angle = np.degrees(np.arctan(shear))
    assert rep.slant(image)[0] == pytest.approx(angle, abs=0.2)
    assert rep.slant(100 * image[:, :, ::-1])[0] == pytest.approx(-angle, abs=0.2)
    assert rep.slant(np.roll(image, 5, axis=2))[0] == pytest.approx(angle, abs=0.2)


def test_slant_of_a_single_row_is_none():
    image = np.zeros((1, 5, 5))
    image[0, 2] = [0.3, 0.1, 0.7, 0.2, 0.9]  # uneven, so that rounding leaves some variance
    assert rep.slant(image)[0] == 0


@pytest.mark.parametrize("measure", [rep.thickness, rep.slant])
def test_images_that_cannot_be_measured_are_named(measure):
    images = RNG.uniform(size=(3, 5, 5))
    name, blank, bad = measure.__name__, images.copy(), images.copy()
    blank[1], bad[2, 0, 0] = 0, np.nan
    for x, message in [
        (blank, f"{name}: images: got 1 images without ink, the first at 1"),
        (bad, "not finite in 1 examples, the first at 2"),
        (-images, "ink from 0 up"),
        (images[0], r"got shape \(5, 5\), expected \[n, height, width\]"),
        (images[..., None].repeat(3, -1), r"got shape \(3, 5, 5, 3\)"),
        (images[:0], r"got shape \(0, 5, 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(x)


def test_scikit_learn_is_imported_only_by_what_needs_it():
    code = "import sys, vaejax.evaluate.representation; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    x, y = blobs(30)
    for call in (*CLASSIFIERS, partial(rep.principal_components, size=1)):
        arguments = (x, x) if isinstance(call, partial) else (x, y, x, y)
        with pytest.raises(ImportError, match="scikit-learn is not installed; pip install -e"):
            call(*arguments)
