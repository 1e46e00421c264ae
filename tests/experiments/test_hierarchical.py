"""The experiment `hierarchical`: the numbers of its two objectives fit together."""


def test_bounds_units_and_collapsed_layers_fit_together(finished):
    summary = finished("hierarchical", "digits").summary
    for name in ("elbo", "iwae"):
        assert 10 < summary[f"{name}_test_nll_nats"] <= -summary[f"{name}_test_elbo_nats"] + 5
        units, collapsed = summary[f"{name}_active_units"], summary[f"{name}_collapsed_layers"]
        assert len(units) == 2 and 0 <= units[0] <= 6 and 0 <= units[1] <= 3
        assert collapsed == [layer for layer in (1, 2) if units[layer - 1] == 0]
