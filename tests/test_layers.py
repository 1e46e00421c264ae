"""Who may import whom: down a floor, or within a folder; no family imports another."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "vaejax"  # read, not imported
FLOORS = [
    {"_version", "types"},
    {"errors"},
    {"arrays"},
    {"batch", "plot"},
    {"compiling"},
    {"distributions"},
    {"networks"},
    {"model", "data"},
    {"objectives", "train", "evaluate", "sharing"},
    {"families"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}


def imported(path: Path):
    """The modules of the library that a file imports, as tuples: ("model", "terms")."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name[:6] == "vaejax")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaejax":
            for alias in node.names:
                yield (*node.module.split(".")[1:], alias.name)


def room(place: tuple[str, ...]) -> tuple[str, ...]:
    """What is a stranger to the others: a folder of the library, or one family."""
    return place[:2] if place[0] == "families" else place[:1]


def broken(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        here = path.relative_to(root).with_suffix("").parts
        if path == root / "__init__.py" or here[-2:] == ("families", "__init__"):
            continue  # the front doors
        for there in imported(path):
            if HEIGHT.get(there[0], 99) < HEIGHT[here[0]] or room(there) == room(here):
                continue
            found.append(f"{'/'.join(here)} imports {'.'.join(there)}")
    return found


def test_imports_go_down_or_stay_in_their_folder():
    assert broken(ROOT) == []


def test_the_rule_sees_each_kind_of_forbidden_import(tmp_path):
    forbidden = {
        "train/precision.py": "from vaejax.families.quantized import VectorQuantized",
        "families/priors.py": "from vaejax.families import posteriors",
        "families/mixtures/_em.py": "from vaejax.families.linear import ppca",
        "evaluate/bounds.py": "import vaejax.train.checkpoint",
        "model/terms.py": "from vaejax import train",
        "distributions/_base.py": "def late():\n    from vaejax.networks import flows",
    }
    for name, line in forbidden.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    allowed = tmp_path / "families/mixtures/_bernoulli.py"
    allowed.write_text("from vaejax.families.mixtures import _em\nfrom vaejax.types import Key")
    assert len(broken(tmp_path)) == len(forbidden)
