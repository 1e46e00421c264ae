"""The experiment `priors`: its bounds, and its paired differences."""

from experiments.common import variations
from tests.experiments.conftest import config_of, run


def test_the_numbers_of_every_prior_fit_together(finished):
    summary = finished("priors", "digits").summary
    for name in ("standard", "mixture", "vamp"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_elbo_nats"] + 1
        assert summary[f"{name}_collapsed"] is (summary[f"{name}_test_rate_nats"] < 2)
    assert 1 <= summary["vamp_components_in_use"] <= 5
    assert "standard_margin_nats" not in summary and "vamp_margin_nats" in summary


def test_a_prior_alone_has_no_margin_to_the_standard_one(tmp_path):
    config = config_of("priors", "digits", tmp_path / "run", priors=("vamp",))
    summary, _ = run("priors", config)
    assert 10 < summary["vamp_test_nll_nats"] <= -summary["vamp_test_elbo_nats"] + 1
    assert not any("margin" in name for name in summary)
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"samples_vamp", "pseudo_inputs", "curves"}


def test_a_margin_is_of_paired_differences():
    found = variations.margin([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert found == {"margin_nats": 2.0, "margin_error_nats": 1 / 3**0.5}
