"""The page of a run: one HTML file that needs nothing else."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.explorer.opened import Opened
from experiments.explorer.program import traced

__all__ = ["page", "program_of"]

HERE = Path(__file__).parent
LEAST = 0.01  # nats, or variance: a dimension below is not used


def program_of(run: Opened) -> dict[str, Any]:
    """The decoder of a run as a program of one code, and of a class where it has one."""
    given = [np.zeros(run.codes[0].size, np.float32)]
    if run.conditions is not None:
        given.append(run.conditions[0])
    return traced(run.decode, *given)


def page(run: Opened, program: dict[str, Any] | None) -> str:
    """The HTML of a run.

    Args:
      run: what is shown.
      program: its decoder; None for a page that asks the server that it came from.
    """
    codes = run.codes.reshape(len(run.codes), -1)
    order = np.argsort(-run.sizes, kind="stable")
    used = [int(i) for i in order if run.sizes[i] >= LEAST]
    used += [int(i) for i in order if int(i) not in used][: max(0, 2 - len(used))]
    facts = {
        "title": run.title,
        "shape": run.shape,
        "latent": codes.shape[1],
        "order": used[: codes.shape[1]],
        "sizes": [float(f"{size:.3g}") for size in run.sizes],
        "measure": run.measure,
        "centre": _base64(codes.mean(axis=0)),
        "codes": _base64(codes),
        "labels": None if run.labels is None else [str(label) for label in run.labels],
        "classes": 0 if run.conditions is None else len(run.conditions),
        "program": program,
    }
    data = json.dumps(facts, default=int).replace("<", "\\u003c")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join(
        (HERE / name).read_text(encoding="utf-8") for name in ("interpreter.js", "page.js")
    )
    allowed = [
        "default-src 'none'",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}",
        "base-uri 'none'",
        "form-action 'none'",
        *(["connect-src 'self'"] if program is None else []),
    ]
    filled = {"POLICY": "; ".join(allowed), "STYLE": style, "SCRIPT": script, "DATA": data}
    text = (HERE / "page.html").read_text(encoding="utf-8")
    before, *rest = text.split("{{")  # each place is filled once, whatever fills it
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += filled[name] + after
    return before


def _hash(text: str) -> str:
    """What a content policy calls a text by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _base64(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
