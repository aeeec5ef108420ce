"""The one place that checks that Keras runs on TensorFlow."""

from __future__ import annotations

import os

_MESSAGE = (
    "{package} needs Keras 3 with the TensorFlow backend. "
    "Received: backend={backend!r}. "
    "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported "
    '(or "backend": "tensorflow" in keras.json).'
)


def require_tensorflow(package: str) -> None:
    """Raise an ImportError unless Keras runs on TensorFlow.

    The environment variable is looked at first: with a backend that is not installed, importing
    Keras itself would fail with a message that says nothing about this package.

    Args:
        package: name of the package that is being imported, for the message.

    Raises:
        ImportError: if the backend is not TensorFlow.
    """
    requested = os.environ.get("KERAS_BACKEND", "tensorflow")
    if requested != "tensorflow":
        raise ImportError(_MESSAGE.format(package=package, backend=requested))
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ImportError(_MESSAGE.format(package=package, backend=backend))
