"""BALI, Bayesian layerwise inference, for Keras 3.

The package builds on the general parts of `tfp_rank1` (model, likelihoods, predictive
distribution, metrics, export) and never on its layers. Its layers and train step are not part of
this release.

Source: Kurle, Klushyn & Herbrich (2024), "Learning Neural Networks via Bayesian Layerwise
Inference".
"""

from tfp_rank1._backend import require_tensorflow

require_tensorflow("bali_keras")

from tfp_rank1._version import __version__  # noqa: E402  the backend is checked first

__all__ = ["__version__"]
