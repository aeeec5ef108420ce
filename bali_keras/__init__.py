"""BALI, Bayesian layerwise inference, for Keras 3: posteriors by layer, without an optimizer.

    import bali_keras as bk, keras, tfp_rank1 as r1

    h = inputs = keras.Input((8,))
    h = bk.layers.DenseBali(50, activation="relu")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood=r1.likelihoods.Normal())
    model.compile()
    model.fit(x, y, batch_size=64, epochs=100)

`bali_keras` builds on the general parts of `tfp_rank1` (model, likelihoods, predictive
distribution, metrics, export) and never on its rank-1 layers.

Source: Kurle, Klushyn & Herbrich (2024), "Learning Neural Networks via Bayesian Layerwise
Inference".
"""

import importlib
from typing import Any

# `tfp_rank1` refuses a Keras that does not run on TensorFlow. The error must name the package that
# the user imported.
try:
    import tfp_rank1
except ImportError as error:
    raise ImportError(f"bali_keras needs tfp_rank1, which cannot be imported: {error}") from error

from bali_keras import (
    layers,
    matrix_normal,
    models,
    moments,  # noqa: F401  registers the rules of the layers
    recording,
    schedules,
)
from bali_keras.conversion import convert
from bali_keras.model import BaliModel

__version__ = tfp_rank1.__version__


def __getattr__(name: str) -> Any:
    """Import `plots` and `sklearn` at their first use: they need the packages of an extra."""
    if name in ("plots", "sklearn"):
        return importlib.import_module(f"bali_keras.{name}")
    raise AttributeError(f"module 'bali_keras' has no attribute {name!r}")


__all__ = [
    "BaliModel",
    "__version__",
    "convert",
    "layers",
    "matrix_normal",
    "models",
    "plots",
    "recording",
    "schedules",
    "sklearn",
]
