"""The adversarial experiment: what it says of samples, and of critics that have won."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import adversarial, common
from experiments.common import game


@pytest.mark.parametrize("preset", ["digits_mixture", "digits_vae_gan", "digits_gan"])
def test_samples_are_counted_and_the_game_is_measured(preset, finished):
    folder, summary, _ = finished("adversarial", preset)
    assert sum(summary["class_histogram"]) == 50
    assert 0 <= summary["test_critic_accuracy"] <= 1
    assert ("codes_cross_entropy_nats" in summary) == (preset != "digits_gan")
    assert ("test_encoder_loss" in summary) == (preset != "digits_gan")
    assert ("test_feature_distortion" in summary) == (preset == "digits_vae_gan")
    assert ("rate" in common.rows(folder)[0]) == (preset == "digits_vae_gan")


def test_shown_counts_classes_with_one_percent():
    x = np.repeat(np.arange(4), [500, 400, 95, 5])
    found = game.shown(lambda x: x, x, 5)
    assert (found["classes_shown"], found["class_histogram"]) == (3, [500, 400, 95, 5, 0])
    p = np.array([0.5, 0.4, 0.095, 0.005])
    assert found["class_entropy_nats"] == pytest.approx(-np.sum(p * np.log(p)))


def test_a_critic_that_has_won_and_a_collapse_are_said():
    fine = {"critic_has_won": False, "classes_shown": 2, "class_histogram": [3, 4]}
    assert "WARNING" not in game.note(adversarial.DIGITS, fine)
    assert "critic has won" in game.note(adversarial.DIGITS, fine | {"critic_has_won": True})
    assert "collapse" in game.note(adversarial.DIGITS, fine | {"class_histogram": [3, 4, 0]})


def test_the_ring_has_its_centres_on_the_circle(key):
    prior = game.ring(10, radius=2.0, scale=0.01)
    z = np.asarray(jax.vmap(prior.sample)(jax.random.split(key, 500)))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 2, atol=0.1)
    tenth = np.round(np.arctan2(z[:, 1], z[:, 0]) / (2 * np.pi / 10)) % 10
    assert len(np.unique(tenth)) == 10
    log_p = np.asarray(jax.vmap(prior.log_prob)(z[:20]))
    expected = -np.log(10) - np.log(2 * np.pi * 1e-4)  # at a centre; a draw is lower by chi^2 / 2
    assert (log_p < expected + 1e-3).all() and (log_p > expected - 12).all()


def test_bad_options_are_refused(tmp_path):
    for changes, message in (
        ({"epochs": 0}, "--epochs: got 0, expected .* from 1 up"),
        ({"sweep": ("gamma=1,2",)}, "--sweep: got 'gamma', expected one of .*weight;"),
        ({"prior": "ring", "latent": 3}, "--prior ring: got 3 latent dimensions, expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            adversarial.main(replace(adversarial.DIGITS, out=tmp_path / "run", **changes))
    chosen = common.parse(adversarial.PRESETS, "", ["mnist_gan", "--critic-rate", "1e-3"])
    assert (chosen.family, chosen.critic_rate, chosen.dataset) == ("gan", 1e-3, "mnist")
