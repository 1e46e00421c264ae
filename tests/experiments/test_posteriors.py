"""The experiment `posteriors`: its bounds, and its count of active units."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import posteriors
from experiments.common import variations
from tests.experiments.conftest import config_of, run
from vaejax.distributions import MultivariateNormal, Normal
from vaejax.model import Model


def test_the_bound_of_every_posterior_is_below_the_likelihood(finished):
    summary = finished("posteriors", "digits").summary
    for name in ("diagonal", "planar", "iaf"):
        assert summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_elbo_nats"] + 1


def test_a_posterior_alone_has_no_gain_over_the_diagonal_one(tmp_path):
    config = config_of("posteriors", "digits", tmp_path / "run", posteriors=("iaf",))
    summary, _ = run("posteriors", config)
    assert summary["iaf_test_nll_nats"] <= -summary["iaf_test_elbo_nats"] + 1
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"samples_iaf", "clouds", "curves"}


def test_active_units_are_those_whose_mean_moves_however_wide_the_posterior():
    def encode(params, x, c=(), *, key=None):
        return Normal(jnp.array([1.0, 0.0]) * x, jnp.array([0.5, 3.0]))

    model = Model(*[encode] * 4)
    x = jax.random.normal(jax.random.key(0), (2000,))
    assert posteriors.active_units(model, {}, jax.random.key(1), x) == 1


def test_pixels_start_at_their_mean_for_images_that_are_no_bytes():
    """Grey images in [0, 1] were divided by 255 once more for the full covariance."""
    images = np.full((4, 2, 2, 1), 0.5, np.float32)
    config = replace(posteriors.DIGITS, hidden=(3,))
    model = variations.network(config, images, posterior="full_covariance")
    params = model.init(jax.random.key(0), jnp.zeros((2, 2, 1)))
    assert isinstance(model.encode(params, images[0]), MultivariateNormal)
    spread = jnp.abs(model.decode(params, jnp.zeros(2)).mean - 0.5)
    assert float(spread.max()) < 1e-5
