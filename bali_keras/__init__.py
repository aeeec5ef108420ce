"""BALI, Bayesian layerwise inference, for Keras 3: exact posteriors layer by layer, no optimizer.

    import bali_keras as bk, keras, tfp_rank1 as r1

    h = inputs = keras.Input((8,))
    h = bk.layers.DenseBali(50, activation="relu")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood=r1.likelihoods.Normal())
    model.compile()
    model.fit(x, y, batch_size=64, epochs=100)

The package builds on the general parts of `tfp_rank1` (model, likelihoods, predictive
distribution, metrics, export) and never on its layers.

Source: Kurle, Klushyn & Herbrich (2024), "Learning Neural Networks via Bayesian Layerwise
Inference".
"""

from tfp_rank1._backend import require_tensorflow

require_tensorflow("bali_keras")

from bali_keras import layers, matrix_normal, recording, schedules  # noqa: E402  backend first
from bali_keras.convert import convert  # noqa: E402
from bali_keras.model import BaliModel  # noqa: E402
from tfp_rank1._version import __version__  # noqa: E402

__all__ = [
    "BaliModel",
    "__version__",
    "convert",
    "layers",
    "matrix_normal",
    "recording",
    "schedules",
]
