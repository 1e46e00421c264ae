"""The experiment `vq`: the numbers of its two stages, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import vq


def test_both_stages_are_trained_and_measured(finished):
    one = finished("vq", "digits")
    summary = one.summary
    assert 1 <= summary["test_perplexity"] <= summary["entries"] == 8
    bound = summary["test_distortion_nats"] + summary["test_code_nats"]
    assert summary["test_nll_bound_nats"] == pytest.approx(bound, rel=1e-5)
    assert summary["codes_per_image"] == 16
    assert summary["test_uniform_code_nats"] == pytest.approx(16 * np.log(8))
    assert {"autoencoder", "prior"} <= {path.name for path in one.folder.iterdir()}


def test_what_cannot_be_coded_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((800, 5), np.float32))
    with pytest.raises(ValueError, match=r"vq: --dataset: got examples \(5,\), expected images"):
        vq.main(replace(vq.DIGITS, dataset=str(tmp_path / "rows.npy"), out=tmp_path / "run"))
