"""The conditional experiment as its users run it."""

import json
from dataclasses import replace

import numpy as np
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
    ("preset", "own", "figures"),
    [
        ("digits", {"samples_recognised", "judge_error"}, {"samples", "curves"}),
        pytest.param(
            "digits_completion",
            {"hidden_pixels"},
            {"completions", "curves"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_leaves_what_it_promises(tmp_path, preset, own, figures):
    config = replace(cvae.PRESETS[preset], smoke=True, progress=False, out=tmp_path / "run")
    summary = cvae.main(config)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() == NUMBERS | own
    parts = summary["test_distortion_nats"] + summary["test_rate_nats"]
    assert -summary["test_elbo_nats"] == pytest.approx(parts, rel=1e-5)
    assert summary.get("hidden_pixels", 25) == 25  # a square of 5 x 5
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == figures


def test_what_it_cannot_run_on(tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, x=np.zeros((100, 8, 8), np.uint8))
    for options, message in (
        ({"dataset": str(images)}, "cvae: --dataset: got no labels, .*--condition block"),
        ({"epochs": 0}, "cvae: expected epochs >= 1"),
        ({"condition": "block", "block": 9}, "erased_block: side: got 9, expected 1 to 8"),
    ):
        with pytest.raises(ValueError, match=message):
            cvae.main(replace(cvae.DIGITS, **options))
