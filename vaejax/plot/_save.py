"""Figures for print: vectors, embedded fonts, and no title unless it is wanted."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaejax.errors import as_path, wrong

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""Left out, so that the same figure gives the same file."""


def save(figure: "Figure", path: Any, *, title: bool = True, dpi: int = 300) -> Path:
    """Write a figure for print: PDF or SVG with lines and text as vectors, or PNG.

    Pixels of images stay sharp, fonts are embedded in PDF, text stays text in SVG, and the same
    figure gives the same file. The figure itself stays as it is.

    Args:
      figure: one of this module's, or any other of matplotlib.
      path: of the file; its ending says the format: .pdf, .svg, .png or another of matplotlib's.
      title: False leaves out the title over the figure, for a caption below it; titles of panels
        side by side stay.
      dpi: dots per inch of what is no vector.
    Returns:
      The path.
    Raises:
      ValueError: for an ending that matplotlib cannot write.
    """
    from matplotlib import rc_context

    path = as_path("save: path", path)
    known = figure.canvas.get_supported_filetypes()
    kind = path.suffix.lower().removeprefix(".")
    if kind not in known:
        got = repr(path.suffix) if path.suffix else "no ending"
        raise wrong("save: path", got, f"one of {', '.join(sorted(known))}", "name it FIGURE.pdf")
    fonts: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "vaejax"}
    with ExitStack() as stack:
        stack.enter_context(rc_context(fonts))
        for axis in figure.axes:
            for image in axis.images:
                stack.callback(image.set_interpolation, image.get_interpolation())
                image.set_interpolation("nearest")
        if not title:
            _without_title(figure, stack)
        made: Any = DATES.get(f".{kind}")
        figure.savefig(path, dpi=dpi, bbox_inches="tight", metadata=made)
    return path


def _without_title(figure: "Figure", stack: ExitStack) -> None:
    """Take away the title of the whole figure, until the stack ends."""
    above = figure.get_suptitle()
    if above:
        stack.callback(figure.suptitle, above)
        figure.suptitle("")
    drawn = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    if len(drawn) == 1:
        stack.callback(drawn[0].set_title, drawn[0].get_title())
        drawn[0].set_title("")


__all__ = ["save"]
