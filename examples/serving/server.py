"""Answers predictions over HTTP from an exported model; needs TensorFlow, and nothing of ours.

    python -m examples.serving.server quickstart_output/served --port 8501

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

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

MAX_BYTES = 2**26


class Predictor:
    """A SavedModel with one input, safe to call from several threads.

    Args:
        folder: as written by `export_predictive`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._loaded = tf.saved_model.load(str(folder))  # kept: its functions do not hold it
        self._function = self._loaded.signatures["serving_default"]
        (self._spec,) = self._function.structured_input_signature[1].values()

    def __call__(self, instances: Any) -> list[dict[str, Any]]:
        """One dict of outputs per instance.

        Raises:
            ValueError: for instances of another shape, or not finite.
        """
        dtype = self._spec.dtype.as_numpy_dtype
        try:
            given = np.asarray(instances)
            if given.dtype.kind not in "fiu":
                raise ValueError(f"found {given.dtype}")
            x = given.astype(dtype)
            if np.issubdtype(dtype, np.integer) and (x != given).any():
                raise ValueError(f"the model takes {np.dtype(dtype)}")
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"`instances` must be nested lists of numbers: {error}") from error
        if not self._spec.shape.is_compatible_with(x.shape) or not x.size:
            raise ValueError(
                f"`instances` must have shape {self._spec.shape}, at least one. Received: {x.shape}"
            )
        if not np.isfinite(x).all():
            raise ValueError("`instances` must be finite. Received: NaN or infinity")
        outputs = self._function(**{self._spec.name: tf.constant(x)})
        columns = {name: value.numpy().tolist() for name, value in outputs.items()}
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of silence before a connection is closed

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
        except (ValueError, RecursionError, tf.errors.InvalidArgumentError) as error:
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
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
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
        folder: of the exported model; its last part is the model's name.
        port: to listen on; 0 for a free one, see `server_port`.
        host: defaults to this machine alone.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: str | os.PathLike[str], port: int = 8501, host: str = "127.0.0.1"
    ) -> None:
        self.predictor = Predictor(folder)
        self.path = f"/v1/models/{Path(folder).name}:predict"
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
