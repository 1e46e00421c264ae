"""The representation experiment, shrunk; and how a measure along a direction is judged."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import common, representation
from experiments.common import directions
from vaejax.evaluate.representation import thickness


def smoke(out, **changes):
    config = replace(representation.Config(), smoke=True, progress=False, out=out, **changes)
    return representation.main(config)


def test_accuracies_and_ranks_are_in_their_ranges(finished):
    summary = finished("representation", "digits").summary
    for name in ("codes", "pixels", "pca"):
        for kind in ("probe", "knn"):
            assert 0 <= summary[f"{kind}_accuracy_{name}"] <= 1
    assert summary["probe_accuracy_pixels"] > 0.7
    for name in ("thickness", "slant"):
        assert len(summary[f"{name}_mean_along"]) == 7
        assert -1 <= summary[f"{name}_rank_correlation"] <= 1


def test_parameters_of_another_run_are_read(finished, tmp_path):
    trained = finished("vae", "digits_density").folder
    one, two = (smoke(tmp_path / n, trained=trained) for n in "ab")
    assert one == two
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_other_data_and_presets_are_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).uniform(size=(400, 7)))
    config = replace(representation.Config(), dataset=str(tmp_path / "rows.npy"))
    with pytest.raises(ValueError, match=r"got x \(.*expected labelled grey images"):
        representation.main(replace(config, out=tmp_path / "a"))
    with pytest.raises(ValueError, match="--preset: got 'digit'"):
        smoke(tmp_path / "b", preset="digit")
    assert common.parse(representation.PRESETS, "", ["mnist"]).dataset == "mnist"


def test_groups_are_balanced_over_classes():
    """Checked against groups over all classes, whose direction would be one from class to class."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 50)
    values = rng.normal(size=150) + 10 * y
    top, bottom = directions.extremes_within_classes(values, y, 0.1)
    assert np.bincount(y[top]).tolist() == np.bincount(y[bottom]).tolist() == [5, 5, 5]
    assert values[top & (y == 1)].min() > values[bottom & (y == 1)].max()


def test_a_direction_that_thickens_is_seen_to_rise_and_its_opposite_to_fall():
    """A decoder that draws bars as wide as its code: known thickness, known order."""

    def decode(z):
        widths = np.clip(np.round(np.asarray(z)[:, 0]), 1, 12).astype(int)
        images = np.zeros((len(z), 20, 20, 1))
        for image, width in zip(images, widths, strict=True):
            image[2:18, 2 : 2 + width] = 1
        return images

    codes, multiples = np.full((3, 2), 5.0), np.array([-1.0, 0.0, 1.0])
    images, up = directions.along(decode, codes, np.array([3.0, 0.0]), multiples, thickness)
    assert images.shape == (3, 3, 20, 20, 1)
    assert up["rank_correlation"] == up["share_rising_at_every_step"] == 1.0
    _, down = directions.along(decode, codes, np.array([-3.0, 0.0]), multiples, thickness)
    assert (down["rank_correlation"], down["share_rising_at_every_step"]) == (-1.0, 0.0)
    expected = [2 * w * 16 / (2 * (w + 16)) for w in (2, 5, 8)]
    np.testing.assert_allclose(up["mean_along"], expected, rtol=0.05)
