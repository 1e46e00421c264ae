"""The disentangling experiment: its numbers, and what it says of a critic that has won or lost."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import common, disentangle
from experiments.common import factors
from vaejax import sprites
from vaejax.types import Estimate


def test_sprites_have_gaps_bounds_and_notes_by_method(finished):
    summary = finished("disentangle", "small").summary
    assert summary["methods"] == ["beta_tcvae", "factor_vae"]
    for method in summary["methods"]:
        one = summary[method]
        assert one["elbo_nats"] == pytest.approx(-one["distortion_nats"] - one["rate_nats"])
        gaps = np.array([one[f"gap_{name}"] for name in sprites.FACTORS])
        assert gaps.mean() == pytest.approx(one["mig"], rel=1e-6)
        assert ((gaps >= 0) & (gaps <= 1)).all() and one["total_correlation_nats"] > -0.1
    assert 0.3 < summary["critic/loss"] < 1.2 and 0 <= summary["critic_accuracy"] <= 1
    assert len(summary["notes"]) == 2 and "collapsed" in summary["notes"][0]  # after a single epoch


def test_images_without_factors_have_traversals_and_total_correlation(tmp_path):
    config = replace(
        disentangle.Config(),
        dataset="digits",
        methods=("vae",),
        smoke=True,
        progress=False,
        out=tmp_path / "run",
    )
    summary = disentangle.main(config)
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == {
        "traversals_vae",
        "curves",
    }
    assert "mig" not in summary["vae"] and "critic_accuracy" not in summary
    assert "total_correlation_nats" in summary["vae"]


def test_training_images_are_black_and_white_and_named_by_their_factors(key):
    config = replace(disentangle.Config(), examples=64, size=8, scales=2, rotations=2, positions=3)
    images, whole = factors.images_of(config, key)
    assert images.x.shape == (64, 8, 8, 1) and len(whole.x) == 3 * 2 * 2 * 3 * 3
    for batch in (images, whole):
        assert set(np.unique(batch.x)) == {0, 255} and batch.x.dtype == np.uint8
        assert batch.y.shape == (len(batch.x), 5)
    place = np.ravel_multi_index(tuple(images.y.T), (3, 2, 2, 3, 3))
    np.testing.assert_array_equal(images.x, whole.x[place])


def notes(accuracy, loss, correlation):
    one = {
        "elbo_nats": -1.0,
        "distortion_nats": 1.0,
        "rate_nats": 0.0,
        "total_correlation_nats": Estimate(correlation, 0.0),
        "collapsed_dimensions": 0,
    }
    critic = {"critic_accuracy": accuracy, "critic/loss": loss}
    config = disentangle.Config(methods=("factor_vae",))
    return factors.summarised(config, {"factor_vae": one}, critic)["notes"]


def test_a_critic_that_has_won_is_reported():
    assert notes(0.55, 0.68, 0.0) == []
    for won in (notes(0.99, 0.2, 0.0), notes(0.94, 0.05, 0.0)):
        assert len(won) == 1 and "the critic has won" in won[0]


def test_a_critic_that_sees_nothing_is_reported():
    assert notes(0.51, 0.69, 0.4) == notes(0.6, 0.67, 1.2) == []
    (blind,) = notes(0.51, 0.69, 1.2)
    assert "the critic sees nothing" in blind and "1.2 nats" in blind


def test_the_command_line_takes_methods():
    config = common.parse(disentangle.PRESETS, "", ["sprites", "--methods", "vae", "factor_vae"])
    assert config.methods == ("vae", "factor_vae") and config.size == 32
    with pytest.raises(ValueError, match="methods >= 1, got 0"):
        disentangle.main(replace(config, methods=()))
