"""The pictures of rates, of the rate-distortion curve and of calibration."""

import numpy as np
import pytest

from vaejax import plot


def test_the_rate_distortion_picture_has_a_line_of_the_best_bound(tmp_path):
    figure = plot.rate_distortion([9.0, 4.0, 0.0], [1.0, 4.0, 20.0], ["a", "b", "c"])
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0, 4, 9])
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [20, 4, 1])
    dashed = next(line for line in axis.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(np.add(*dashed.get_data()), 8.0)  # the smallest D + R
    assert dashed.get_label() == "ELBO = -8.0 nats, the best"
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c"]
    assert "rate" in axis.get_xlabel() and "nats" in axis.get_ylabel()


def test_the_picture_of_rates_is_sorted_and_floored(tmp_path):
    figure = plot.rates({"one": [0.0, 2.0, 0.5], "two": [0.1, -1e-7, 0.2]}, used=0.3)
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [2.0, 0.5, 1e-4])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [0.2, 0.1, 1e-4])
    assert axis.get_yscale() == "log" and axis.lines[2].get_ydata()[0] == 0.3


def test_the_picture_of_calibration_has_the_diagonal_and_the_intervals(tmp_path):
    figure = plot.calibration([0.5, 0.9], {"test": [0.4, 0.8]}, errors={"test": [0.01, 0.02]})
    figure.savefig(tmp_path / "figure.png")
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [0, 1])
    np.testing.assert_array_equal(axis.lines[1].get_ydata(), [0.4, 0.8])
    ends = axis.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([end[:, 1] for end in ends], [[0.3804, 0.4196], [0.7608, 0.8392]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.rate_distortion([1.0], [1.0, 2.0], ["a"]), "rate_distortion: distortion"),
        (lambda: plot.rate_distortion([1.0], [1.0], []), "rate_distortion: labels: got 0"),
        (lambda: plot.rates({}), "rates: rates: got no model"),
        (lambda: plot.rates({"a": [1.0, -1.0]}), "at least 0"),
        (lambda: plot.calibration([0.5], {}), "calibration: coverage: got no model"),
        (
            lambda: plot.calibration([0.5], {"a": [1.5]}),
            r"in \[1.5, 1.5\], expected .* in \[0, 1\]",
        ),
    ],
)
def test_pictures_refuse_what_they_cannot_draw(call, message):
    with pytest.raises(ValueError, match=message):
        call()
