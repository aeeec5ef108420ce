"""The check that Keras runs on TensorFlow, made before any other import of the package."""

from __future__ import annotations

import os

__all__ = [
    "require_tensorflow",
]

_MESSAGE = (
    "{package} needs Keras 3 with the TensorFlow backend. "
    "Received: backend={backend!r}. "
    "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported "
    '(or "backend": "tensorflow" in keras.json).'
)


def require_tensorflow(package: str) -> None:
    """Raise an ImportError unless Keras runs on TensorFlow.

    Args:
        package: name of the package that is being imported, for the message.

    Raises:
        ImportError: if the backend is not TensorFlow.
    """
    # The environment variable first: with a backend that is not installed, importing Keras fails
    # with a message that says nothing about this package.
    requested = os.environ.get("KERAS_BACKEND", "tensorflow")
    if requested != "tensorflow":
        raise ImportError(_MESSAGE.format(package=package, backend=requested))
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ImportError(_MESSAGE.format(package=package, backend=backend))
