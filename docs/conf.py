"""Settings of the documentation: Sphinx with MyST-NB, built without the network.

The reference is written here, from the public modules: a page for each, which lists what its
`__all__` has. A public name without an entry is a warning, and the build is strict.
"""

import importlib
import inspect
import shutil
import sys
from pathlib import Path
from typing import Any

import docutils.nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import vaejax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import docstrings  # noqa: E402
import formulas  # noqa: E402
import pages  # noqa: E402

logger = logging.getLogger(__name__)

project = "vaejax"
author = "the authors of vaejax"
copyright = "the authors of vaejax"
version = release = vaejax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "code"  # single backticks in docstrings
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = f"vaejax {release}"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2}
html_math_renderer = "mathml"  # which browsers draw by themselves: no script, no network

nb_execution_mode = "off"  # the notebooks are shown as they are stored
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def write(path: Path, text: str) -> None:
    """Write a page that has changed, so that an unchanged one is not read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_reference(app: Sphinx) -> None:
    """Write the pages of the reference, and copy the notebooks beside the tutorials."""
    folder = HERE / "reference" / "modules"
    modules = pages.public_modules()
    for old in folder.glob("*.rst"):
        if old.stem not in modules:
            old.unlink()
    for module in modules:
        write(folder / f"{module}.rst", pages.page(module))
    rows = [f"   * - :doc:`{m} <modules/{m}>`\n     - {pages.first_line(m)}" for m in modules]
    table = ".. list-table::\n   :widths: 35 65\n\n" + "\n".join(rows) + "\n"
    write(HERE / "reference" / "map.rst.txt", table)
    for path, text in pages.copies().items():
        write(HERE.parent / path, text)
    for path, png in pages.pictures().items():
        (HERE.parent / path).write_bytes(png)
    notebooks = HERE / "tutorials" / "notebooks"
    notebooks.mkdir(exist_ok=True)
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        target = notebooks / notebook.name
        if not target.exists() or target.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, target)


def with_links(app: Sphinx, name: str, source: list[str]) -> None:
    """A page of docs/ with links to the copies of pages that lie elsewhere."""
    path = f"docs/{name}.md"
    if (HERE.parent / path).exists() and not name.startswith("copies/"):
        source[0] = pages.relinked(source[0], path, path)


def shorter_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """The signature of a network without the two arguments that Linen adds to each."""
    if what != "class" or signature is None:
        return None
    parts = [p for p in signature[1:-1].split(", ") if not p.startswith(("parent:", "name: str |"))]
    return f"({', '.join(parts)})", returns


def converted(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The docstring as reStructuredText, in place."""
    lines[:] = docstrings.converted(lines)


def without_fields(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out the fields of NamedTuples, which the docstrings of their classes explain."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field") else None


def mathml(block: bool) -> tuple[Any, Any]:
    """A renderer of formulas, and nothing to do at their end."""

    def visit(self: Any, node: Any) -> None:
        formula = latex2mathml.tex2mathml(formulas.prepared(node.astext()), as_block=block)
        around = '<div style="margin: 1em 0">{}</div>' if block else "{}"
        self.body.append(around.format(formula))
        raise docutils.nodes.SkipNode

    return visit, None


def check_names(app: Sphinx, env: Any) -> None:
    """Warn of every public name that the reference does not have."""
    known = set(env.get_domain("py").objects)
    for module in pages.public_modules():
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            names = {f"{module}.{name}"}
            if pages.documented(value):
                names.add(pages.home(value, module))
            if not inspect.ismodule(value) and not names & known:
                logger.warning("%s.%s is not in the reference", module, name)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", with_links)
    app.connect("autodoc-process-docstring", converted, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorter_signature)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("env-check-consistency", check_names)
    app.add_html_math_renderer("mathml", mathml(False), mathml(True))
