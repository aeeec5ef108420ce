"""Answers predictions over HTTP from an exported model; needs nothing of this library.

    python -m examples.serving.server quickstart_output/served --port 8501
    python -m examples.serving.server served.onnx

A SavedModel needs TensorFlow; an ONNX file onnxruntime alone. A browser shows at `/` a page on
which to draw what the model then answers, for a classifier of square grey images.

The address and the JSON are those of TensorFlow Serving's REST API, so that the same client talks
to either: `POST /v1/models/served:predict` with `{"instances": [[...], ...]}` answers
`{"predictions": [{"probs": [...], "entropy": ..., "mutual_information": ...}, ...]}`.
For many users run TensorFlow Serving itself; this is for trying things out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.serving.predictors import predictor_for

MAX_BYTES = 2**26
PAGE = Path(__file__).with_name("page.html")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of silence before a connection is closed

    def do_GET(self) -> None:
        """The page to draw on."""
        if self.path != "/":
            return self._refuse(404, f"GET / or POST {self.server.path}. Received: {self.path}")
        model = {"path": self.server.path, "shape": self.server.predictor.shape}
        page = PAGE.read_text("utf-8").replace("/*MODEL*/null", json.dumps(model))
        self._send(200, "text/html; charset=utf-8", page.encode())

    def do_POST(self) -> None:
        """Predict; 400 says what is wrong with the request."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return self._refuse(
                400, f"A request needs a Content-Length, at most {MAX_BYTES}. Received: {length!r}"
            )
        body = self.rfile.read(int(length))
        if self.path != self.server.path:
            return self._refuse(404, f"POST {self.server.path}. Received: {self.path}")
        try:
            self._answer(200, {"predictions": self.server.predictor(self._instances(body))})
        except (ValueError, RecursionError) as error:
            self._refuse(400, str(error))
        except Exception as error:  # the connection must get an answer
            self._refuse(500, repr(error))

    def _refuse(self, status: int, error: str) -> None:
        self.close_connection = True  # a body may follow that was not read
        self._answer(status, {"error": error})

    def _instances(self, body: bytes) -> Any:
        content = json.loads(body or b"null")
        if not isinstance(content, dict) or "instances" not in content:
            raise ValueError('A request is {"instances": [...]}. Received: no "instances"')
        return content["instances"]

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for every request is for debugging."""


class Server(ThreadingHTTPServer):
    """A thread per connection.

    Args:
        folder: of the exported model, or its ONNX file; the last part is the model's name.
        port: to listen on; 0 for a free one, see `server_port`.
        host: defaults to this machine alone.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: str | os.PathLike[str], port: int = 8501, host: str = "127.0.0.1"
    ) -> None:
        self.predictor = predictor_for(folder)
        self.path = f"/v1/models/{Path(folder).stem}:predict"
        super().__init__((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args(arguments)
    with Server(options.folder, options.port, options.host) as server:
        print(f"http://{options.host}:{server.server_port}{server.path}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
