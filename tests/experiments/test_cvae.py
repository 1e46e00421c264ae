"""The conditional experiment: its numbers, and what it refuses."""

from dataclasses import replace

import pytest

from experiments import cvae

NUMBERS = {
    "test_elbo_nats",
    "test_nll_nats",
    "test_nll_particles",
    "test_ess_median",
    "test_distortion_nats",
    "test_rate_nats",
    "test_nll_without_latents_nats",
    "posterior_collapsed",
    "test_images",
    "epochs",
    "seconds_train",
}


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        ("digits", {"samples_recognised", "judge_error"}),
        ("digits_completion", {"hidden_pixels"}),
    ],
)
def test_the_bound_is_split_and_each_condition_has_its_numbers(preset, own, finished):
    summary = finished("cvae", preset).summary
    assert summary.keys() == NUMBERS | own
    parts = summary["test_distortion_nats"] + summary["test_rate_nats"]
    assert -summary["test_elbo_nats"] == pytest.approx(parts, rel=1e-5)
    assert summary.get("hidden_pixels", 25) == 25  # a square of 5 x 5


def test_what_it_cannot_run_on(unlabelled):
    for options, message in (
        ({"dataset": unlabelled}, "cvae: --dataset: got no labels, .*--condition block"),
        ({"epochs": 0}, "--epochs: got 0"),
        ({"condition": "block", "block": 9}, "erased_block: side: got 9, expected 1 to 8"),
    ):
        with pytest.raises(ValueError, match=message):
            cvae.main(replace(cvae.DIGITS, **options))
