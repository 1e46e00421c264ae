"""Figures have the axes, labels and pixels they should, and errors that say what to do."""

import subprocess
import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from vaejax import plot
from vaejax.plot import _pictures

rng = np.random.default_rng(0)
SHAPES = [(5, 9, 3), (7, 3), (1, 1, 1)]


def drawn(figure, tmp_path):
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    return figure.axes[0]


def names(ticks):
    return [tick.get_text() for tick in ticks]


def test_matplotlib_is_imported_late_and_a_notebook_shows_the_picture_without_pyplot():
    code = """
import sys, pickle, warnings, numpy as np, vaejax.plot
assert not any(name.startswith("matplotlib") for name in sys.modules)
figure = vaejax.plot.images(np.zeros((2, 3, 3)))
assert "matplotlib" in sys.modules
warnings.simplefilter("ignore")  # of IPython's
from IPython.core.formatters import DisplayFormatter
for shown in figure, pickle.loads(pickle.dumps(figure)):
    data, _ = DisplayFormatter().format(shown)
    assert data["image/png"].startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code], check=True
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size(shape, tmp_path):
    x = rng.random((7, *shape))
    axis = drawn(plot.images(x, columns=3, title="samples"), tmp_path)
    assert axis.get_title() == "samples"
    canvas = np.asarray(axis.images[0].get_array())
    first = x[0, ..., 0] if shape[2:] == (1,) else x[0]
    np.testing.assert_allclose(canvas[: shape[0], : shape[1]], first, atol=1e-6)
    assert axis.images[0].get_clim() == (0, 1)
    assert (canvas[-shape[0] :, -shape[1] :] == 1).all()  # nine places, seven images


def test_rows_of_images_have_names(tmp_path):
    x = rng.random((7, 4, 4))
    axis = drawn(plot.images(x, columns=3, labels=["image", "first", "second"]), tmp_path)
    assert names(axis.get_yticklabels()) == ["image", "first", "second"]
    assert not len(drawn(plot.images(x), tmp_path).get_yticks())


def test_levels_are_divided_by_255_and_floats_are_clipped():
    levels = plot.images(np.full((1, 2, 2), 51, np.uint8)).axes[0].images[0].get_array()
    np.testing.assert_allclose(levels, 0.2)
    floats = plot.images(jnp.full((1, 2, 2, 3), 1.5)).axes[0].images[0].get_array()
    np.testing.assert_array_equal(floats, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstructions(shape, tmp_path):
    x = rng.integers(0, 256, (6, *shape)).astype(np.uint8)
    axis = drawn(plot.reconstructions(x, jnp.asarray(x / 255, jnp.float32)), tmp_path)
    assert names(axis.get_yticklabels()) == ["original", "reconstruction"]
    assert axis.get_xlabel() == "example" and len(axis.get_xticks()) == 6
    canvas = np.asarray(axis.images[0].get_array())
    np.testing.assert_allclose(canvas[: shape[0]], canvas[-shape[0] :], atol=1e-6)


def test_interpolations_and_traversals(tmp_path):
    x = rng.random((3, 5, 4, 7, 3))
    axis = drawn(plot.interpolations(x), tmp_path)
    assert names(axis.get_xticklabels()) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert names(axis.get_yticklabels()) == ["pair 1", "pair 2", "pair 3"]
    axis = drawn(plot.traversals(x, values=np.linspace(-3, 3, 5)), tmp_path)
    assert names(axis.get_yticklabels()) == ["z1", "z2", "z3"]
    assert names(axis.get_xticklabels()) == ["-3", "-1.5", "0", "1.5", "3"]
    assert "standard deviations of the prior" in axis.get_xlabel()
    axis = drawn(plot.traversals(x[..., 0], labels=["a", "b", "c"]), tmp_path)
    assert names(axis.get_yticklabels()) == ["a", "b", "c"] and axis.get_xlabel() == "step"


def test_many_rows_and_columns_are_thinned(tmp_path):
    axis = drawn(plot.interpolations(rng.random((60, 50, 4, 4))), tmp_path)
    assert len(axis.get_yticks()) <= 24 and len(axis.get_xticks()) <= 11


def test_latent_in_the_plane(tmp_path):
    z = rng.normal(size=(200, 2))
    axis = drawn(plot.latent(z), tmp_path)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("z1", "z2")
    np.testing.assert_allclose(axis.collections[0].get_offsets(), z)


def test_latent_by_principal_components(tmp_path):
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    scales = np.array([4.0, 2.0, 1.0, 0.5, 0.1])
    z = (rng.normal(size=(5000, 5)) * scales) @ basis.T + 7
    axis = drawn(plot.latent(z, rng.integers(-1, 3, 5000)), tmp_path)
    covariance = np.cov(z.T)
    share = np.linalg.eigvalsh(covariance)[::-1] / np.trace(covariance)
    assert axis.get_xlabel() == f"first principal component ({share[0]:.0%} of variance)"
    assert axis.get_ylabel() == f"second principal component ({share[1]:.0%} of variance)"
    points = np.asarray(axis.collections[0].get_offsets())
    np.testing.assert_allclose(points.var(axis=0, ddof=1) / np.trace(covariance), share[:2])


@pytest.mark.parametrize("classes", [3, 10, 20, 47])
def test_classes_have_colours_of_their_own(classes, tmp_path):
    y = np.arange(200) % classes - 1
    figure = plot.latent(rng.normal(size=(200, 2)), y)
    axis = drawn(figure, tmp_path)
    colours = axis.collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == classes
    np.testing.assert_allclose(colours[0], [0.75, 0.75, 0.75, 1])  # -1: unlabelled
    if classes <= 20:
        texts = names(figure.legends[0].get_texts())
        assert texts[:2] == ["unlabelled", "0"] and len(texts) == classes
    else:
        assert figure.axes[1].get_ylabel() == "class"


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_manifold_grid_is_even_in_probability(n):
    z = plot.manifold_grid(n)
    assert z.shape == (n * n, 2) and z.dtype == np.float32
    expected = stats.norm.ppf((np.arange(n) + 0.5) / n)
    np.testing.assert_allclose(z[:n, 0], expected, atol=1e-6)
    np.testing.assert_allclose(z[::n, 1], expected[::-1], atol=1e-6)


def test_manifold_puts_each_code_at_its_place(tmp_path):
    n = 4
    z = stats.norm.cdf(plot.manifold_grid(n))
    x = np.broadcast_to(z[:, None, None, :1], (16, 5, 3, 1))  # as bright as z1 is large
    axis = drawn(plot.manifold(x, n), tmp_path)
    canvas = np.asarray(axis.images[0].get_array())
    assert canvas.shape == (20, 12)
    np.testing.assert_allclose(canvas[0, 1::3], [0.125, 0.375, 0.625, 0.875], atol=1e-6)
    assert names(axis.get_xticklabels()) == ["-1.2", "-0.3", "0.3", "1.2"]
    assert names(axis.get_yticklabels()) == ["1.2", "0.3", "-0.3", "-1.2"]
    assert "z1" in axis.get_xlabel() and "standard deviations" in axis.get_ylabel()


def test_curves(tmp_path):
    test = np.array([np.nan, np.nan, 5.0, 4.0])
    axis = drawn(plot.curves({"train": jnp.arange(4.0), "test": test}), tmp_path)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "nats per example")
    assert names(axis.get_legend().get_texts()) == ["train", "test"]
    np.testing.assert_array_equal(axis.lines[1].get_xdata(), [3, 4])
    np.testing.assert_array_equal(axis.lines[1].get_ydata(), [5, 4])
    assert axis.get_title() == "training curves"
    places = {"steps": [0, 10, 20, 30], "xlabel": "step", "title": "test"}
    axis = drawn(plot.curves({"a": test}, **places), tmp_path)
    assert (axis.get_xlabel(), axis.get_title()) == ("step", "test")
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [20, 30])


X = np.zeros((4, 3, 3, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.images(X[0, 0]), r"images: x: got shape \(3, 1\), expected .* rank 3 or 4"),
        (lambda: plot.images(X[:0]), "not empty"),
        (lambda: plot.images(np.zeros((4, 3, 3, 2))), "1 or 3 channels"),
        (
            lambda: plot.images(np.where(np.arange(4)[:, None, None] == 2, np.inf, X[..., 0])),
            r"9 values not finite, the first at \[2, 0, 0\]",
        ),
        (lambda: plot.images(X, columns=-1), "images: columns: got -1"),
        (lambda: plot.images(X, columns=0), "images: columns: got 0"),
        (lambda: plot.images(X, labels=["a"]), "images: labels: got 1 names, expected 2"),
        (lambda: plot.reconstructions(X, X[:3]), "reconstructions: reconstructed"),
        (lambda: plot.interpolations(X[0]), "rank 4 or 5"),
        (lambda: plot.traversals(X[None], values=[1.0]), "traversals: values: got 1 values"),
        (lambda: plot.traversals(X[None], labels=["a", "b"]), "traversals: labels: got 2 names"),
        (lambda: plot.latent(np.zeros(3)), "latent: z"),
        (lambda: plot.latent(np.zeros((3, 1))), "histogram"),
        (lambda: plot.latent(np.zeros((1, 3))), "both at least 2"),
        (lambda: plot.latent(np.zeros((3, 2)), np.zeros(2, int)), "latent: y"),
        (lambda: plot.latent(np.zeros((3, 2)), np.zeros(3)), "integer labels"),
        (lambda: plot.manifold_grid(0), "manifold_grid: n: got 0"),
        (lambda: plot.manifold(X, 3), "manifold: x: got 4 images, expected 9"),
        (lambda: plot.curves({}), "curves: history"),
        (lambda: plot.curves({"a": [np.nan]}), "only NaN"),
        (lambda: plot.curves({"a": [np.inf]}), "1 values not finite"),
        (lambda: plot.bound({"ELBO": [1.0], "KL": [-0.1]}, places="a"), "'KL'.*got -0.1"),
        (lambda: plot.bound({"ELBO": [1.0]}, places="a"), "bound: parts: got 1 parts"),
        (lambda: plot.bound({"ELBO": [1.0], "KL": [1.0, 2.0]}, places="a"), "'KL'.*got 2 values"),
        (lambda: plot.curves({"a": [1.0, 2.0]}, steps=[1]), r"curves: steps: got shape \(1,\)"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "expected" in str(caught.value) and "; " in str(caught.value)


def test_constant_codes_have_no_shares_to_divide_by(tmp_path):
    drawn(plot.latent(np.ones((5, 4))), tmp_path)


def test_a_bound_and_its_gap_end_at_log_px(tmp_path):
    parts = {"ELBO": [-5.0, -4.0], "approximation": [1.0, 0.5], "amortisation": [2.0, -1e-6]}
    figure = plot.bound(parts, places=[0, 10], xlabel="epoch")
    drawn(figure, tmp_path)
    (top,) = figure.axes[0].lines
    np.testing.assert_allclose(top.get_ydata(), [-2.0, -3.5], atol=1e-5)  # rounding is let pass
    bars = [patch.get_y() + patch.get_height() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(bars, [-5, -4, -4, -3.5, -2, -3.5], atol=1e-5)


def test_filters_are_each_scaled_to_their_own_largest_magnitude_around_grey():
    weights = np.array([[[0.0, 2.0], [-1.0, 0.5]], [[0.0, -10.0], [0.0, 0.0]], np.zeros((2, 2))])
    with mock.patch.object(_pictures, "images") as images:
        plot.filters(weights, columns=3, title="t")
    drawn = images.call_args.args[0]
    np.testing.assert_allclose(drawn[0], [[0.5, 1.0], [0.25, 0.625]])
    np.testing.assert_allclose(drawn[1], [[0.5, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(drawn[2], 0.5)
    assert plot.filters(weights, columns=3).axes
    with pytest.raises(ValueError, match="filters: weights"):
        plot.filters(weights[0, 0])


def test_originals_are_drawn_at_both_ends_of_an_interpolation():
    x, ends = rng.random((2, 5, 4, 4, 1)), rng.random((2, 2, 4, 4, 1))
    axis = plot.interpolations(x, originals=(ends[0], ends[1])).axes[0]
    canvas = np.asarray(axis.images[0].get_array())
    assert canvas.shape[1] == 7 * 4 + 6  # two more columns, and the gaps
    np.testing.assert_allclose(canvas[:4, :4], ends[0, 0, ..., 0], atol=1e-6)
    np.testing.assert_allclose(canvas[-4:, -4:], ends[1, 1, ..., 0], atol=1e-6)
    said = names(axis.get_xticklabels())
    assert said[0] == said[-1] == "original" and said[1:-1] == [
        "0.00",
        "0.25",
        "0.50",
        "0.75",
        "1.00",
    ]
    long = plot.interpolations(rng.random((1, 48, 2, 2)), originals=(x[:1, 0, :2, :2],) * 2)
    said = names(long.axes[0].get_xticklabels())
    assert said[0] == said[-1] == "original" and len(said) <= 11


def test_an_order_by_rate_is_told_on_the_axis():
    x = rng.random((3, 4, 5, 5))
    axis = plot.traversals(x, labels=["z7", "z1", "z2"], rates=[2.5, 2.0, 0.01]).axes[0]
    assert names(axis.get_yticklabels()) == ["z7 (2.50)", "z1 (2.00)", "z2 (0.01)"]
    assert axis.get_ylabel() == "latent dimension (its rate, nats), largest first"
    axis = plot.traversals(x, rates=[1.0, 2.0, 0.0]).axes[0]
    assert axis.get_ylabel() == "latent dimension (its rate, nats)"


def test_panels_of_curves_share_whole_epochs(tmp_path):
    history = {"ELBO": {"train": [-3.0, -2.0], "test": [np.nan, -2.5]}, "rate R": {"train": [1, 2]}}
    figure = plot.curves(history, ylabel="nats per image")
    drawn(figure, tmp_path)
    assert [axis.get_title() for axis in figure.axes] == ["ELBO", "rate R"]
    assert [len(axis.lines) for axis in figure.axes] == [2, 1]
    for axis in figure.axes:
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
    part = plot.curves({"loss": [3.0, 2.0]}, steps=[0.5, 1.0], xlabel="share").axes[0]
    assert not all(float(tick).is_integer() for tick in part.get_xticks())


def test_a_sweep_is_drawn_as_means_and_deviations_over_the_seeds(tmp_path):
    hyper = {"beta": [1.0, 1.0, 8.0, 8.0] * 2, "rate": [0.1] * 4 + [0.2] * 4, "seed": [0, 1] * 4}
    elbo = np.array([1.0, 3.0, 2.0, 6.0, 0.0, 1.0, np.nan, 5.0])
    labels = {"beta": "weight", "elbo": "ELBO, nats"}
    figure = plot.sweep(hyper, {"elbo": elbo, "loss": -elbo}, labels=labels)
    axis = drawn(figure, tmp_path)
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xscale()) == (
        "weight",
        "ELBO, nats",
        "log",
    )
    assert names(axis.get_xticklabels()) == ["1", "8"]
    first, second = axis.containers
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[1, 2], [8, 4]])
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[1, 0.5], [8, 5]])  # no mean of NaN
    (bars,) = first.lines[2]
    for segment, (mean, sd) in zip(bars.get_segments(), [(2, 2**0.5), (4, 8**0.5)], strict=True):
        np.testing.assert_allclose(segment[:, 1], [mean - sd, mean + sd])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["rate 0.1", "rate 0.2"]
    assert figure.get_suptitle() == "mean and standard deviation over 2 seeds"
    alone = plot.sweep({"beta": [1, 2], "seed": [0, 0]}, {"elbo": [1, 2]})
    assert alone.get_suptitle() == "one seed" and len(alone.axes) == 1


@pytest.mark.parametrize(
    ("hyper", "found", "message"),
    [
        ({"seed": [0, 1]}, {"a": [1, 2]}, "sweep: got no swept name"),
        ({"beta": [0, 1]}, {}, "sweep: got no numbers"),
        ({"beta": [0, 1]}, {"a": [1.0]}, "sweep: a: got 1 values, expected 2, one for each member"),
        ({"beta": [0, np.nan]}, {"a": [1.0, 2.0]}, "not finite"),
    ],
)
def test_what_is_no_sweep_is_refused(hyper, found, message):
    with pytest.raises(ValueError, match=message):
        plot.sweep(hyper, found)


def test_figures_for_print_are_vectors_without_a_title_and_the_same_each_time(tmp_path):
    figure = plot.interpolations(rng.random((2, 3, 4, 4)))
    paths = [plot.save(figure, tmp_path / f"{n}.svg", title=n == "with") for n in ("with", "out")]
    title = "interpolations in the latent space"
    texts = [path.read_text() for path in paths]
    assert title in texts[0] and title not in texts[1]
    assert all("fraction of the way" in text for text in texts), "text stays text"
    assert figure.axes[0].get_title() == title, "the figure stays as it is"
    assert figure.axes[0].images[0].get_interpolation() == "auto"
    pdf = [plot.save(figure, tmp_path / f"{n}.pdf").read_bytes() for n in "ab"]
    assert pdf[0].startswith(b"%PDF") and pdf[0] == pdf[1] and b"/FontFile2" in pdf[0]
    panels = plot.curves({"ELBO": {"train": [1.0, 2.0]}, "rate R": {"train": [1.0, 2.0]}})
    text = plot.save(panels, str(tmp_path / "panels.svg"), title=False).read_text()
    assert "ELBO" in text and "rate R" in text
    swept = plot.sweep({"beta": [1, 2]}, {"elbo": [1, 2]})
    assert "one seed" not in plot.save(swept, tmp_path / "s.svg", title=False).read_text()
    assert swept.get_suptitle() == "one seed"
    for name, got in (("figure", "no ending"), ("figure.doc", "'.doc'")):
        with pytest.raises(ValueError, match=f"save: path: got {got}, expected one of .*pdf.*svg"):
            plot.save(figure, tmp_path / name)
