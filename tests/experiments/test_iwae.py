"""The experiment `iwae`: its bounds, and that its objectives are paired."""

from dataclasses import replace

from experiments import iwae


def test_each_bound_is_below_the_likelihood(finished):
    summary = finished("iwae", "digits").summary
    for name in ("elbo", "iwae", "dreg"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_bound_nats"] + 5


def test_the_order_of_the_objectives_changes_no_number_and_an_ended_run_resumes(finished, tmp_path):
    whole = finished("iwae", "digits").summary  # elbo, iwae, dreg
    config = replace(iwae.DIGITS, smoke=True, progress=False, objectives=("dreg", "iwae"))
    other = iwae.main(replace(config, out=tmp_path / "run"))
    names = ("iwae_test_nll_nats", "dreg_test_nll_nats")
    assert [whole[name] for name in names] == [other[name] for name in names]
    assert "elbo_test_nll_nats" not in other
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"bounds", "samples_dreg", "samples_iwae"}
    for name in config.objectives:
        assert (tmp_path / "run" / name / "metrics.jsonl").exists()
    again = iwae.main(replace(config, out=tmp_path / "run", resume=True))
    assert [again[name] for name in names] == [other[name] for name in names]
