"""The experiment `posteriors`: what it leaves behind, and its count of active units."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp

from experiments import posteriors
from vaejax.distributions import Normal
from vaejax.model import Model


def test_a_posterior_is_trained_measured_and_drawn(tmp_path):
    out = tmp_path / "run"
    config = replace(posteriors.DIGITS, smoke=True, progress=False, out=out)
    summary = posteriors.main(replace(config, posteriors=("iaf",)))
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["iaf_test_nll_nats"] <= -summary["iaf_test_elbo_nats"] + 1
    names = {"samples_iaf", "clouds", "curves"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == names


def test_active_units_are_those_whose_mean_moves_however_wide_the_posterior():
    def encode(params, x, c=(), *, key=None):
        return Normal(jnp.array([1.0, 0.0]) * x, jnp.array([0.5, 3.0]))

    model = Model(*[encode] * 4)
    x = jax.random.normal(jax.random.key(0), (2000,))
    assert posteriors.active_units(model, {}, jax.random.key(1), x) == 1
