"""Reports of several runs side by side: their numbers in lists, their texts and their figures."""

from collections.abc import Mapping
from typing import Any

from vaejax import plot

__all__ = ["draw", "numbers_of"]

Reports = Mapping[str, Any]
"""What `diagnostics.inference_report` says of each run."""


def numbers_of(config: Any, reports: Reports) -> dict[str, Any]:
    """What summary.json holds: lists in the order of the betas."""
    every = list(reports.values())
    parts = [report.decomposition for report in every]
    return {
        "betas": list(config.betas),
        "verdicts": [" and ".join(report.verdicts) for report in every],
        "elbo_nats": [part.elbo.value for part in parts],
        "distortion_nats": [part.distortion.value for part in parts],
        "rate_nats": [part.rate.value for part in parts],
        "information_nats": [part.information.value for part in parts],
        "aggregated_kl_nats": [part.aggregated_kl.value for part in parts],
        "cap_nats": parts[0].cap,
        "active_units": [report.units.active for report in every],
        "used_units": [report.used for report in every],
        "implied_betas": [
            None if "collapsed" in report.verdicts else report.implied_beta.value
            for report in every
        ],
        "gap_nats": [report.gap.value for report in every],
        "gap_particles": config.particles,
        "epochs": config.epochs,
    }


def draw(
    numbers: dict[str, Any], reports: Reports, calibrated: Mapping[str, Any]
) -> dict[str, Any]:
    """Rate against distortion, the KL of each dimension, the calibration; the reports as text."""
    rates = {
        name: [part.value for part in report.decomposition.dimension_rate or []]
        for name, report in reports.items()
    }
    curve = numbers["rate_nats"], numbers["distortion_nats"], list(reports)
    drawn: dict[str, Any] = {
        "rate_distortion": plot.rate_distortion(*curve),
        "rates": plot.rates(rates),
    }
    drawn["reports"] = "\n\n".join(f"{n}: {r}" for n, r in reports.items()) + "\n"
    if calibrated:
        coverage = {name: found.coverage for name, found in calibrated.items()}
        levels = next(iter(calibrated.values())).levels
        errors = {name: found.error for name, found in calibrated.items()}
        drawn["calibration"] = plot.calibration(levels, coverage, errors=errors)
    return drawn
