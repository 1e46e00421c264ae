"""The structure experiment, shrunk; and its measures on cases with known answers."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import common, structure
from experiments.common import features, measures
from vaejax import data, distributions
from vaejax.model import Model

# A model that leaves everything out.
NOTHING = Model(
    init=lambda key, x, c=(): {},
    prior=lambda params, c=(): None,
    encode=lambda params, x, c=(), *, key=None: distributions.Delta(x),
    decode=lambda params, z, c=(), *, key=None: distributions.Delta(0 * z),
)
WAYS = ["free", "dimension", "sparsity", "noise", "prior"]


def test_the_measures_of_every_way_are_in_their_ranges(finished):
    summary = finished("structure", "digits").summary
    for name in WAYS:
        judged = summary[name]
        assert 0 < judged["squared_error"] < 30 and judged["sample_distance"] > 0
        for share in ("probe_accuracy", "neighbours_accuracy", "near_zero", "hoyer"):
            assert 0 <= judged[share] <= 1, (name, share)
    kinds = summary["elsewhere_over_pca"]
    assert kinds.keys() == {"itself", "rotated", "inverted", "shuffled"}
    assert summary["explained_independent_pca"] == 0.25


def test_the_same_images_elsewhere_give_the_same_error():
    splits = {"train_split": "train[:200]", "test_split": "test[:50]"}
    config = replace(structure.Config(), others=("digits",), **splits)
    x, test_x = (features.levels(data.load("digits", split).x) for split in splits.values())
    kinds, _ = features.elsewhere(config, NOTHING, {}, x, test_x)
    assert kinds["digits"] == pytest.approx(kinds["itself"], rel=1e-4)


def test_the_mnist_preset_and_what_it_cannot_take(tmp_path):
    assert common.parse(structure.PRESETS, "", ["mnist"]).others == ("fashion_mnist",)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).uniform(size=(400, 7)))
    config = replace(structure.Config(), dataset=str(tmp_path / "rows.npy"), out=tmp_path / "run")
    with pytest.raises(ValueError, match="--dataset: got float32.*labelled images"):
        structure.main(config)
    assert not (tmp_path / "run").exists()


def test_sparsity_of_known_codes():
    one, equal, none = np.eye(4)[:1], np.full((1, 4), -2.0), np.zeros((1, 4))
    assert measures.few_entries(one) == pytest.approx({"near_zero": 0.75, "hoyer": 1.0})
    assert measures.few_entries(equal) == pytest.approx({"near_zero": 0.0, "hoyer": 0.0})
    # Half of the entries: (2 - sqrt 2) / (2 - 1), whatever the scale; no code at all counts as 1.
    half = np.array([[1.0, -1.0, 0.0, 0.0], [5.0, 0.0, 0.0, 5.0]])
    assert measures.few_entries(half)["hoyer"] == pytest.approx(2 - 2**0.5)
    assert measures.few_entries(np.concatenate([one, none]))["hoyer"] == pytest.approx(1.0)


def test_samples_of_a_point_code_have_its_mean_and_covariance(key):
    """Checked against a fit of each unit by itself, which would lose how units go together."""
    rng = np.random.default_rng(0)
    codes = (rng.normal(size=(500, 2)) @ [[1.0, 2.0, 0.0], [0.0, 0.5, 0.0]] + 3).astype(np.float32)

    def check(codes_drawn):
        np.testing.assert_allclose(codes_drawn.mean(axis=0), codes.mean(axis=0), atol=0.15)
        np.testing.assert_allclose(np.cov(codes_drawn.T), np.cov(codes.T), atol=0.4)

    class Itself:
        prior = staticmethod(lambda params: None)
        decode = staticmethod(lambda params, z: distributions.Delta(z))

    check(features.samples(Itself, {}, codes, key, 4000))
    alone = codes.mean(axis=0) + rng.normal(size=(4000, 3)) * codes.std(axis=0)
    with pytest.raises(AssertionError):
        check(alone)


def test_distance_to_the_nearest_image():
    a, b = np.zeros((1, 2, 2, 1)), np.stack([np.full((2, 2, 1), v) for v in (1.0, -3.0)])
    assert measures.to_nearest(a, b) == pytest.approx(4.0)
    assert measures.squared_error(b, a) == pytest.approx((4 + 36) / 2)


@pytest.mark.parametrize("share", [1, 2])
def test_images_of_a_plane_are_explained_by_pca_alone(share):
    """A model that leaves everything out errs, over PCA, as the second moment over the rest."""
    rng = np.random.default_rng(share)
    x = rng.uniform(size=(300, 4, 4, 1)).astype(np.float32)

    config = replace(structure.Config(), small=4)
    found, pictures = features.elsewhere(config, NOTHING, {}, x, x)
    flat = x.reshape(300, -1)
    for name, values in {"itself": flat, "rotated": flat, "inverted": 1 - flat}.items():
        left_over = np.sort(np.linalg.eigvalsh(np.cov(values.T, bias=True)))[:12].sum()
        assert found[name] == pytest.approx(np.mean(np.sum(values**2, axis=1)) / left_over, 1e-3)
    assert found["shuffled"] == pytest.approx(found["itself"], rel=1e-3)
    assert pictures.shape == (80, 4, 4, 1)
    assert jax.numpy.all(pictures[10:20] == 0)
