"""The experiment `vq`, shrunk: two stages, and what they leave behind."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import vq


def smoke(out, **changes):
    return vq.main(replace(vq.DIGITS, smoke=True, progress=False, out=out, **changes))


def test_both_stages_are_trained_measured_and_drawn(tmp_path):
    summary = smoke(tmp_path / "run")
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 1 <= summary["test_perplexity"] <= summary["entries"] == 8
    bound = summary["test_distortion_nats"] + summary["test_code_nats"]
    assert summary["test_nll_bound_nats"] == pytest.approx(bound, rel=1e-5)
    assert summary["codes_per_image"] == 16
    assert summary["test_uniform_code_nats"] == pytest.approx(16 * np.log(8))
    names = {"perplexity", "reconstructions", "samples", "usage"}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")} == names
    assert {"autoencoder", "prior"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_what_cannot_be_coded_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((800, 5), np.float32))
    with pytest.raises(ValueError, match=r"vq: --dataset: got examples \(5,\), expected images"):
        smoke(tmp_path / "rows", dataset=tmp_path / "rows.npy")
