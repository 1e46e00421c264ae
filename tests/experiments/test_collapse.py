"""The collapse experiment as its users run it."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import collapse, common


@pytest.mark.parametrize("preset", sorted(collapse.PRESETS))
def test_the_parts_of_the_bound_add_up_for_every_beta(preset, finished):
    folder, summary, _ = finished("collapse", preset)
    betas = collapse.PRESETS[preset].betas[-2:]
    assert summary["betas"] == list(betas) and len(summary["verdicts"]) == 2
    total = np.add(summary["distortion_nats"], summary["rate_nats"])
    np.testing.assert_allclose(summary["elbo_nats"], -total, rtol=1e-6)
    both = np.add(summary["information_nats"], summary["aggregated_kl_nats"])
    np.testing.assert_allclose(both, summary["rate_nats"], rtol=1e-3)  # the sum rule
    text = (folder / "reports.txt").read_text()
    for beta, verdict in zip(betas, summary["verdicts"], strict=True):
        assert f"beta {beta:g}: {verdict}" in text


def test_no_beta_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--betas: got nothing, expected one value or more"):
        collapse.main(replace(collapse.Config(), betas=(), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_several_betas_follow_one_option():
    config = common.parse(collapse.PRESETS, "about", ["mnist", "--betas", "1", "4"])
    assert config.betas == (1.0, 4.0) and config.dataset == "mnist"
