"""The page for a decoder that a browser cannot run: Python decodes, on this machine alone."""

import contextlib
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
    given = [run.codes[0].ravel()] + ([] if run.conditions is None else [run.conditions[0]])
    decode = jax.jit(run.decode)
    decode(*given).block_until_ready()  # compiled before the first page waits for it
    shapes = [one.shape for one in given]
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, decode, shapes, html))


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /` with the page, and `POST /decode` of codes with images in float32."""

    def __init__(self, decode: Any, shapes: list[Any], html: str, *rest: Any) -> None:
        self.decode, self.shapes, self.html = decode, shapes, html
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
            right = [one.shape for one in given] == self.shapes
        except (ValueError, TypeError):
            right = False
        if not right:
            return self.send_error(400)
        image = np.asarray(self.decode(*given), "<f4")
        self._answer(image.tobytes(), "application/octet-stream")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the page was closed meanwhile
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: each move of the mouse would be a line."""
