"""Settings of the documentation: Sphinx with MyST-NB, built without the network.

The reference is written here, from the public modules: a page for each, which lists what its
`__all__` has. A public name without an entry is a warning, and the build is strict.
"""

import importlib
import inspect
import pkgutil
import re
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
autodoc_default_options = {"show-inheritance": False}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def public_modules() -> list[str]:
    """Every module that a user may import: no part of its name begins with an underscore."""
    found = pkgutil.walk_packages(vaejax.__path__, "vaejax.")
    names = [module.name for module in found]
    return ["vaejax", *sorted(n for n in names if not any(p[0] == "_" for p in n.split(".")))]


def first_line(module: str) -> str:
    """The summary of a module, which the map shows."""
    doc = inspect.getdoc(importlib.import_module(module)) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def write(path: Path, text: str) -> None:
    """Write a page that has changed, so that an unchanged one is not read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def reference_page(module: str) -> str:
    """The page of one module, in reStructuredText: what is at home there, then what is not."""
    loaded = importlib.import_module(module)
    own, values, elsewhere = [], [], []
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.ismodule(value):
            elsewhere.append((name, f":doc:`{value.__name__}`"))
        elif not documented(value):
            values.append((name, value))
        elif home(value, module) == f"{module}.{name}":
            own.append(name)
        else:
            elsewhere.append((name, f":py:obj:`{home(value, module)}`"))
    lines = [module, "=" * len(module), "", f".. automodule:: {module}"]
    lines += [f"   :members: {', '.join(own)}", ""] if own else [""]
    for name, value in values:
        lines += [f".. py:data:: {name}", f"   :module: {module}", f"   :value: {shown(value)}", ""]
    if elsewhere:
        lines += ["Also here", "---------", ""]
        lines += [f"- ``{module}.{name}``: {target}" for name, target in elsewhere]
    return "\n".join(lines) + "\n"


def documented(value: Any) -> bool:
    """Whether a value is a function or a class of the library."""
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__[:6] == "vaejax"


def shown(value: Any) -> str:
    """A constant or an alias of types, in one short line."""
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", " ".join(str(value).split()))
    return text if len(text) <= 200 else text[:200] + " ..."


def home(value: Any, module: str) -> str:
    """Where a function or a class is described: the module that it is from, or the one that asks."""
    private = value.__module__.split(".")
    parts = [part for part in private if part[0] != "_"]
    public = ".".join(parts)
    name = value.__qualname__
    if name in getattr(importlib.import_module(public), "__all__", ()):
        return f"{public}.{name}"
    return f"{module}.{name}"


def write_reference(app: Sphinx) -> None:
    """Write the pages of the reference, and copy the notebooks beside the tutorials."""
    folder = HERE / "reference" / "modules"
    modules = public_modules()
    for old in folder.glob("*.rst"):
        if old.stem not in modules:
            old.unlink()
    for module in modules:
        write(folder / f"{module}.rst", reference_page(module))
    rows = [f"   * - :doc:`{m} <modules/{m}>`\n     - {first_line(m)}" for m in modules]
    table = ".. list-table::\n   :widths: 35 65\n\n" + "\n".join(rows) + "\n"
    write(HERE / "reference" / "map.rst.txt", table)
    notebooks = HERE / "tutorials" / "notebooks"
    notebooks.mkdir(exist_ok=True)
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        target = notebooks / notebook.name
        if not target.exists() or target.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, target)


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
        text = re.sub(r"\\[bB]igg?(?![a-z])", "", node.astext()).replace(r"\dots", r"\ldots")
        formula = latex2mathml.tex2mathml(text, as_block=block)
        self.body.append(f'<div class="math">{formula}</div>' if block else formula)
        raise docutils.nodes.SkipNode

    return visit, None


def check_names(app: Sphinx, env: Any) -> None:
    """Warn of every public name that the reference does not have."""
    known = set(env.get_domain("py").objects)
    for module in public_modules():
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            names = {f"{module}.{name}"}
            if documented(value):
                names.add(home(value, module))
            if not inspect.ismodule(value) and not names & known:
                logger.warning("%s.%s is not in the reference", module, name)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", converted, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorter_signature)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("env-check-consistency", check_names)
    app.add_html_math_renderer("mathml", mathml(False), mathml(True))
