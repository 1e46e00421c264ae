"""The denoising and score_field experiments as their users run them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import common, denoising, score_field
from experiments.common import measures, planes
from vaejax import corruption

FIELDS = {"denoising", "plain", "corrupted"}


def test_the_gain_is_over_the_plain_autoencoder(finished):
    summary = finished("denoising", "digits").summary
    assert {name.removesuffix("_psnr_db") for name in summary} > FIELDS
    gain = summary["denoising_psnr_db"] - summary["plain_psnr_db"]
    assert summary["gain_over_plain_db"] == pytest.approx(gain)
    for name in FIELDS:  # the mean of logarithms against the logarithm of the mean
        assert summary[f"{name}_psnr_of_mean_error_db"] < summary[f"{name}_psnr_db"]


def test_the_true_field_has_the_zeros_of_three_modes(finished):
    summary = finished("score_field", "mixture").summary
    assert -1 <= summary["cosine"] <= 1 and summary["relative_squared_error"] > 0
    found = [summary[f"zeros_{kind}_true"] for kind in ("maximum", "saddle", "minimum")]
    assert found == [3, 3, 1]  # maxima - saddles + minima = 1 for any density on the plane
    assert sum(summary["mode_shares_end"]) == pytest.approx(1)


def test_the_field_of_a_spiral_is_measured(finished):
    summary = finished("score_field", "spiral").summary
    assert -1 <= summary["cosine"] <= 1 and summary["relative_squared_error"] > 0


def test_presets_and_options_reach_the_configuration():
    assert common.parse(denoising.PRESETS, "about", ["super_resolution"]).level == 4
    config = common.parse(score_field.PRESETS, "about", ["ring", "--scale", "0.3"])
    assert config.density == "ring" and config.scale == 0.3


@pytest.mark.parametrize("preset", denoising.PRESETS)
def test_every_preset_corrupts_its_images(preset, key):
    config = denoising.PRESETS[preset]
    shape = (8, 8, 1) if config.dataset == "digits" else (28, 28, 1)
    clean = np.full(shape, 0.5, np.float32)
    clean[0, 0] = 0.9
    seen = denoising.corruption_of(config)(key, clean)
    assert seen.shape == shape and not np.array_equal(seen, clean)


def test_psnr_is_of_each_image_in_decibels():
    """Errors of 0.1 everywhere are 20 dB; half of the corrupted images' pixels cost 3 dB less."""
    clean = np.full((3, 4, 4, 1), 0.5, np.float32)
    other = clean + np.array([0.1, 0.0, 0.0], np.float32).reshape(3, 1, 1, 1)
    other[1, :2] += 0.1
    expected = [20, 20 + 10 * np.log10(2), measures.EXACT]
    np.testing.assert_allclose(measures.psnr(clean, other), expected, rtol=1e-4)


def test_masking_costs_what_it_must():
    """The mean squared error of a masked image is nu x^2 in the mean: PSNR of x = 1 at nu = 1/2."""
    clean = np.ones((200, 20, 20, 1), np.float32)
    draws = jax.random.split(jax.random.key(0), 200)
    seen = np.asarray(jax.vmap(corruption.masking(0.5))(draws, clean))
    assert measures.psnr(clean, seen).mean() == pytest.approx(-10 * np.log10(0.5), abs=0.05)


def test_each_of_two_networks_is_trained_by_its_own_loss():
    """The gradient of the sum is each one's own, so that neither touches the other."""

    def square(params, key, batch, step):
        return params**2, {}

    def cube(params, key, batch, step):
        return params**3, {}

    loss = common.together({"one": square, "other": cube})
    params = {"one": 3.0, "other": 2.0}
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
        params, jax.random.key(0), None, 0
    )
    assert value == 17 and metrics == {"one": 9, "other": 8}
    assert grads == {"one": 6, "other": 12}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"level": 1.5}, "masking: nu.*probability"),
        ({"corruption": "erased_block", "level": 9}, "erased_block: side.*1 to 8"),
        ({"corruption": "low_resolution", "level": 1.5}, "low_resolution: factor.*whole"),
        ({"epochs": 0}, "--epochs: got 0"),
    ],
)
def test_impossible_options_are_refused_before_any_work(options, words, tmp_path):
    config = replace(denoising.Config(), out=tmp_path / "run", **options)
    with pytest.raises(ValueError, match=words):
        denoising.main(config)
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_in_the_unit_interval_are_refused(tmp_path):
    path = tmp_path / "wide.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(40, 4, 4)).astype(np.float32))
    with pytest.raises(ValueError, match=r"--dataset.*\[0, 1\].*uint8"):
        denoising.main(replace(denoising.Config(), dataset=str(path), batch_size=4))


@pytest.mark.parametrize("density", ["mixture", "moons", "spiral", "ring"])
def test_the_smoothed_density_is_that_of_noisy_data(density):
    """Its mean and covariance are those of the data, with scale^2 added on the diagonal."""
    rng = np.random.default_rng(0)
    x = planes.sample(density, 20_000, rng)
    assert x.shape == (20_000, 2) and np.abs(x).max() < 4
    smoothed = planes.smoothed(density, 0.3, x[:1000])
    draws = np.asarray(jax.vmap(smoothed.sample)(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(draws.mean(axis=0), x.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(x.T) + 0.09 * np.eye(2), atol=0.15)


def test_the_energy_distance_is_that_of_two_shifted_normals():
    """0 for equal distributions within its error; for a shift by m, known in one dimension."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2000, 1))
    assert abs(measures.energy_distance(x, y)) < 0.01
    from scipy.stats import norm

    def distance(m):  # E|N(m, 2)|
        return 2**0.5 * (2 * norm.pdf(m / 2**0.5) + m / 2**0.5 * (2 * norm.cdf(m / 2**0.5) - 1))

    expected = 2 * distance(1.0) - 2 * distance(0.0)
    assert measures.energy_distance(x, y + 1) == pytest.approx(expected, rel=0.1)
