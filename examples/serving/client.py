r"""Asks a server for predictions: the one beside this file, or TensorFlow Serving.

    docker run -p 8501:8501 -v "$PWD/served:/models/served/1" \
        -e MODEL_NAME=served tensorflow/serving
    python -m examples.serving.client http://127.0.0.1:8501/v1/models/served:predict

Needs NumPy only.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Sequence

import numpy as np


def ask(url: str, x: np.ndarray, timeout: float = 30.0) -> dict[str, np.ndarray]:
    """Predictions for a batch.

    Args:
        url: that ends in `:predict`.
        x: inputs `[B, ...]`.
        timeout: in seconds.

    Returns:
        An array `[B, ...]` for every output of the model.

    Raises:
        ValueError: with what the server says is wrong.
    """
    body = json.dumps({"instances": np.asarray(x).tolist()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            rows = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} answers {error.code}: {error.read().decode()}") from error
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask about two scans of digits and print the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    options = parser.parse_args(arguments)
    from examples.datasets.small import load_digits

    for name, values in ask(options.url, load_digits(seed=0).x_test[:2]).items():
        print(name, np.round(values, 3).tolist())


if __name__ == "__main__":
    main()
