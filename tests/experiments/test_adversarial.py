"""The adversarial experiment, shrunk; and what it says of samples and of critics that have won."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import adversarial, common
from experiments.common import game
from tests.conftest import some_slow
from vaejax import Batch

ALWAYS = {"samples", "players", "critic"}
FIGURES = {
    "digits_mixture": ALWAYS | {"reconstructions", "codes", "curves"},
    "digits_gan": ALWAYS,
}


@pytest.mark.parametrize("preset", some_slow(FIGURES, ["digits_gan"]))
def test_every_family_runs(preset, tmp_path):
    config = adversarial.PRESETS[preset]
    small = {"hidden": (8, 8), "critic": (4, 4), "out": tmp_path / "run", "progress": False}
    summary = adversarial.main(replace(config, smoke=True, **small))
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    pictures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert pictures == FIGURES[preset]
    assert sum(summary["class_histogram"]) == 50
    assert 0 <= summary["test_critic_accuracy"] <= 1
    assert ("codes_cross_entropy_nats" in summary) == (preset != "digits_gan")
    assert all(np.isfinite(v).all() for v in summary.values())


def test_the_vae_gan_s_parts_fit_together(key):
    config = replace(adversarial.PRESETS["digits_vae_gan"], hidden=(8, 8), critic=(4, 4))
    model, critic, loss = game.game_of(config, (8, 8, 1), np.full((8, 8, 1), 0.3))
    x = np.zeros((8, 8, 1), np.float32)

    def one_step(key):
        params = {**model.init(key, x), "critic": critic.init(jax.random.clone(key), x)}
        found = loss(params, jax.random.clone(key), Batch(x[None]), 0)
        return found, game.adam_for(config, 10).init(params)

    (_, metrics), _ = jax.eval_shape(one_step, key)
    assert {"encoder/loss", "feature_distortion", "rate", "critic_accuracy"} <= set(metrics)


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
        ({"epochs": 0}, "adversarial: expected epochs >= 1, got 0"),
        ({"samples": 0}, "adversarial: expected samples >= 1"),
        ({"prior": "ring", "latent": 3}, "--prior ring: got 3 latent dimensions, expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            adversarial.main(replace(adversarial.DIGITS, out=tmp_path / "run", **changes))
    chosen = common.parse(adversarial.PRESETS, "", ["mnist_gan", "--critic-rate", "1e-3"])
    assert (chosen.family, chosen.critic_rate, chosen.dataset) == ("gan", 1e-3, "mnist")
