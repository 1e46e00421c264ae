"""The page for a decoder that a browser cannot run: Python decodes, on this machine alone."""

import json
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import numpy as np

from experiments.explorer.opened import Opened

__all__ = ["server"]

LARGEST = 2**20  # bytes of a request


def server(run: Opened, html: str, port: int) -> ThreadingHTTPServer:
    """A server of the page on this machine; `serve_forever` starts it.

    Args:
      run: what is shown.
      html: its page.
      port: where; 0 for any that is free.
    """
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, run, html))


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /` with the page, and `POST /decode` of codes with images in float32."""

    def __init__(self, run: Opened, html: str, *rest: Any) -> None:
        self.run, self.html = run, html
        super().__init__(*rest)

    def do_GET(self) -> None:
        if self.path != "/":
            return self.send_error(404)
        self._answer(self.html.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/decode" or length > LARGEST:
            return self.send_error(404)
        try:
            given = [np.asarray(one, np.float32) for one in json.loads(self.rfile.read(length))]
            sizes = [self.run.codes[0].size]
            sizes += [] if self.run.conditions is None else [len(self.run.conditions)]
            right = [one.shape for one in given] == [(size,) for size in sizes]
        except (ValueError, TypeError):
            right = False
        if not right:
            return self.send_error(400)
        image = np.asarray(_decoded(self.run)(*given), "<f4")
        self._answer(image.tobytes(), "application/octet-stream")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: each move of the mouse would be a line."""


_PROGRAMS: dict[int, tuple[Opened, Any]] = {}


def _decoded(run: Opened) -> Any:
    """The decoder of a run, compiled once."""
    if id(run) not in _PROGRAMS:
        _PROGRAMS[id(run)] = run, jax.jit(run.decode)
    return _PROGRAMS[id(run)][1]
