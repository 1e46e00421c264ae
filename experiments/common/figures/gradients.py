"""Figures of gradient estimators: noise, bias and variance over the number of draws."""

from collections.abc import Callable
from typing import Any

__all__ = ["draw", "panels"]


def panels(curves: dict[str, Any], xlabels: list[str], *, share: bool = True) -> Any:
    """Log-log panels side by side, {"title, y axis": {curve: {x: y}}}; `share`: one y axis."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.6 * len(curves), 3.7), layout="constrained")
    axes = drawn.subplots(1, len(curves), squeeze=False, sharey=share)[0]
    for axis, (title, lines), xlabel in zip(axes, curves.items(), xlabels, strict=True):
        for name, line in lines.items():
            style = {"color": "grey", "linestyle": ":"} if "floor" in name else {"marker": "o"}
            axis.loglog(list(line), list(line.values()), **style, label=name)
        ticks = sorted({at for line in lines.values() for at in line})
        axis.set(title=title.split(", ")[0], ylabel=title.split(", ")[1], xlabel=xlabel)
        axis.xaxis.minorticks_off()
        axis.set_xticks(ticks, [str(at) for at in ticks])
        axis.grid(alpha=0.3)
        axis.margins(y=0.25)  # room for the legend
        axis.legend(fontsize=8, frameon=False)
    return drawn


def draw(over: Callable[..., dict[str, Any]], floor: dict[int, float]) -> dict[str, Any]:
    """Signal-to-noise ratio, bias and variance of every estimator.

    Args:
      over: `over(what, number, group)`: that number of each estimator, at each place measured.
      floor: the ratio that noise alone gives, by K.
    """
    K = "draws per image K"
    ratio, bias = "signal-to-noise ratio per parameter", "|bias| (nats per parameter)"
    alone = {"floor (noise alone)": floor}
    snr = {f"{g}, {ratio}": over("particles", "snr", g) | alone for g in ("encoder", "decoder")}
    biases = {
        f"encoder: measured, {bias}": over("particles", "bias"),
        f"encoder: what noise alone would give, {bias}": over("particles", "bias_error"),
    }
    variances = {
        "ELBO of the model, variance of the encoder's gradient (nats²)": over("draws", "variance"),
        "Toy ELBO, q off centre, K = 4: variance of its gradient (nats²)": over(
            "dimensions", "variance"
        ),
    }
    return {
        "snr": panels(snr, [K, K]),
        "bias": panels(biases, [K, K]),
        "variance": panels(variances, [K, "latent dimensions"], share=False),
    }
