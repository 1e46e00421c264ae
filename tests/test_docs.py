"""The reference has every public module and name, and docstrings turn into its markup."""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import vaejax

DOCS = Path(__file__).resolve().parents[1] / "docs"


def loaded(name):
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings = loaded("docstrings")
formulas = loaded("formulas")
pages = loaded("pages")
MODULES = pages.public_modules()


def test_every_module_that_can_be_imported_by_name_has_a_page():
    found = {m.name for m in pkgutil.walk_packages(vaejax.__path__, "vaejax.")}
    public = {name for name in found if "._" not in name}
    assert set(MODULES) == public | {"vaejax"}


@pytest.mark.parametrize("module", MODULES)
def test_a_page_names_all_that_its_module_offers(module):
    page = pages.page(module)
    words = set(page.replace(",", " ").replace("``", " ").replace(":", " ").split())
    for name in importlib.import_module(module).__all__:
        assert {name, f"{module}.{name}"} & words, name
    assert pages.first_line(module).endswith((".", ":")), "the map shows the first sentence"


def test_a_name_is_described_at_home_and_linked_from_elsewhere():
    assert ":py:obj:`vaejax.types.Batch`" in pages.page("vaejax")
    assert "   :members: " in pages.page("vaejax.types")
    for name in ("vaejax.model", "vaejax.evaluate"):
        assert f"automodule:: {name}" in pages.page(name)


@pytest.mark.parametrize(
    ("plain", "markup"),
    [
        (["the norm |x|, `|x|`"], [r"the norm \|x\|, `|x|`"]),
        (["L_-k is 2 * x"], [r"L\_-k is 2 \* x"]),
        (["text", "", "    x = 1", "", "more"], ["text", "", ".. code-block:: python", ""]),
        (["text", "", "    R = I(x; z) + KL", "", "more"], ["text", "", "::", ""]),
        (["Args:", "  particles: K."], ["Args:", r"  particles: K\."]),
        (["one of", "- a", "  b", "then"], ["one of", "", "- a", "  b", "", "then"]),
        (["| a | b |", "| - | - |", "| 1 | `x || y` |"], ["", ".. list-table::"]),
    ],
)
def test_docstrings_become_restructured_text(plain, markup):
    assert docstrings.converted(plain)[: len(markup)] == markup


def test_examples_stay_as_they_are():
    plain = ["Sum.", "", "Example:", "  >>> a | b", "  1"]
    assert docstrings.converted(plain) == plain


def test_links_lead_to_the_copies_of_pages_from_elsewhere():
    text = "[a](../../experiments/README.md#vae) [b](data.md) [c](https://x.org/README.md)"
    here = "docs/how-to/loss.md"
    expected = "[a](../copies/experiments.md#vae) [b](data.md) [c](https://x.org/README.md)"
    assert pages.relinked(text, here, here) == expected
    for path, text in pages.copies().items():
        assert (pages.ROOT / path).suffix == ".md" and text.startswith("# ")


def test_a_label_stands_under_its_brace():
    formula = r"\underbrace{a_{1}}_{\text{b}} + \big[\underbrace{c}\big]"
    expected = r"\underset{\text{b}}{\underbrace{a_{1}}} + [\underbrace{c}]"
    assert formulas.prepared(formula) == expected
