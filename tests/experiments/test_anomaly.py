"""The one-class experiment: what it leaves behind, its baselines, and what it refuses."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from experiments import anomaly, common
from experiments.common import one_class
from vaejax import anomaly as library
from vaejax import heads, objectives

SCORES = set(get_args(anomaly.Score))


def test_every_score_has_its_mean_and_intervals(finished):
    summary = finished("anomaly", "digits").summary
    assert summary["auroc_mean"].keys() == summary["auroc_per_class"].keys() == SCORES
    assert summary["score_auroc_mean"] == summary["auroc_mean"][summary["score"]]
    for name, areas in summary["auroc_per_class"].items():
        assert areas.keys() == {"0", "1"}
        for area in areas.values():
            assert 0 <= area["low"] <= area["value"] <= area["high"] <= 1
        mean = np.mean([area["value"] for area in areas.values()])
        assert summary["auroc_mean"][name] == pytest.approx(mean)
    assert summary["auroc_mean"]["pca"] > 0.9  # needs no training, so that a smoke run shows it


def test_the_linear_autoencoder_reaches_the_error_of_pca():
    """Mean squared error on new data within 1 % of scikit-learn's principal components."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * np.linspace(2, 0.3, 6)
    x, new = (rng.normal(size=(n, 6)) @ mixing + 1 for n in (400, 200))
    x, new = x.astype(np.float32), new.astype(np.float32)
    config = replace(anomaly.Config(), steps=3000, batch_size=50)
    model = one_class.build((), heads.Code(2), 6, 0.5**0.5)
    loss = objectives.elbo(model, rate=lambda d: jnp.zeros(()))
    fit = one_class.trainer(config, loss, model.init, 2e-2)
    error = library.reconstruction_error(model, fit(jax.random.key(0), x), jax.random.key(1), new)
    expected = one_class.pca_error(2, x, new)
    pca = PCA(2).fit(x)
    by_hand = np.sum((new - pca.inverse_transform(pca.transform(new))) ** 2, axis=1)
    np.testing.assert_allclose(expected, by_hand, rtol=1e-4)
    assert np.mean(error - 3 * np.log(np.pi)) == pytest.approx(expected.mean(), rel=0.01)


def test_the_corrupted_draw_keeps_its_target_clean():
    """With noise that drowns x the code is random, and the target is still x."""
    model = one_class.build((), heads.Code(2), 6, 0.5**0.5)
    x = jnp.arange(6.0)
    params = model.init(jax.random.key(0), x)
    d = one_class.corrupted_draw(100.0)(model, params, jax.random.key(1), x, ())
    np.testing.assert_array_equal(d.x, x)
    assert jnp.abs(d.z - model.encode(params, x).mean).max() > 10
    still = one_class.corrupted_draw(0.0)(model, params, jax.random.key(1), x, ())
    np.testing.assert_allclose(still.z, model.encode(params, x).mean, rtol=1e-6)


def test_the_blur_spreads_each_image_alone_and_keeps_its_sum():
    x = np.zeros((2, 15, 15, 1), np.float32)
    x[0, 7, 7] = 1.0
    smooth = one_class.blurred(x, 0.7)
    assert smooth[0].sum() == pytest.approx(1, rel=1e-4) and 0 < smooth[0].max() < 0.5
    assert not smooth[1].any()
    assert one_class.blurred(x, 0.0) is x


def test_data_without_labels_or_an_unknown_score_are_refused_before_any_work(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros((40, 5, 5), np.float32))
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="anomaly: --dataset: got no labels"):
        anomaly.main(replace(anomaly.Config(), dataset=str(tmp_path / "own.npy"), out=out))
    with pytest.raises(ValueError, match="--steps: got 0, expected .* from 1 up"):
        anomaly.main(replace(anomaly.Config(), steps=0, out=out))
    assert not out.exists()
    with pytest.raises(ValueError, match="--score: got 'vae_elbow', expected .*vae_distortion"):
        common.parse(anomaly.PRESETS, "about", ["digits", "--score", "vae_elbow"])
