"""The gradients experiment: what it leaves, and the published trends on an exact model."""

import json
from dataclasses import replace

import jax
import pytest

from experiments import gradients as experiment
from experiments.common import estimators, measures
from vaejax import gradients
from vaejax.types import Batch


@pytest.mark.parametrize("preset", ["digits", "toy"])
def test_every_estimator_is_measured_for_encoder_and_decoder(preset, finished):
    folder, summary, _ = finished("gradients", preset)
    assert "slope_encoder_iwae" in summary
    found = json.loads((folder / "measurements.json").read_text())
    assert set(found["particles"]["4"]) == {"dreg", "iwae", "stl"}
    assert set(found["particles"]["4"]["iwae"]) == {"encoder", "decoder"}


def test_one_number_of_particles_gives_no_slope(tmp_path):
    with pytest.raises(ValueError, match="gradients: --particles: got .*two values of K"):
        experiment.main(replace(experiment.TOY, particles=(3,), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_published_trends_of_the_signal_to_noise_ratio(key):
    """Encoder: K^-1/2 under IWAE, rising under DReG; generative model: K^1/2 under both."""
    toy_key, compare_key = jax.random.split(key)
    model, params, x = estimators.toy(toy_key, 2, 4)
    K = (4, 16, 64)
    found = {
        k: gradients.compare(
            estimators.weighted(model, k),
            params,
            jax.random.fold_in(compare_key, k),
            Batch(x),
            samples=4000,
            reference_samples=2,
            chunk=200,
        )
        for k in K
    }

    def slope(name, group):
        return measures.slope(K, [found[k][name][group].snr for k in K])

    assert -0.7 < slope("iwae", "encoder") < -0.3
    assert slope("dreg", "encoder") > 0.2
    for name in ("iwae", "dreg"):
        assert 0.3 < slope(name, "prior") < 0.7
