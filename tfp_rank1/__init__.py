"""Rank-1 Bayesian layers for Keras 3, from `fit` to calibrated answers and a served model.

    import keras, tfp_rank1 as r1

    x = inputs = keras.Input((64,))
    x = r1.layers.TileMembers(4)(x)
    x = r1.layers.DenseRank1(128, activation="relu", ensemble_size=4)(x)
    x = r1.layers.DenseRank1(10, ensemble_size=4)(x)
    outputs = r1.layers.SplitMembers(4)(x)
    model = r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Categorical())

Source: Dusenberry et al. (2020), "Efficient and Scalable Bayesian Neural Nets with Rank-1
Factors".
"""

import importlib
from typing import Any

from tfp_rank1.backend import require_tensorflow

require_tensorflow("tfp_rank1")

from tfp_rank1 import (  # noqa: E402  the backend is checked first
    callbacks,
    initializers,
    layers,
    likelihoods,
    losses,
    metrics,
    models,
    moments,
    posteriors,
    priors,
    random,
    recipes,
)
from tfp_rank1._version import __version__  # noqa: E402
from tfp_rank1.conversion.convert import ConversionReport, convert, register_converter  # noqa: E402
from tfp_rank1.model import BayesianModel  # noqa: E402
from tfp_rank1.predictive import PosteriorPredictive, PredictiveMoments  # noqa: E402
from tfp_rank1.scopes import members, posterior_mean  # noqa: E402


def __getattr__(name: str) -> Any:
    """Import `plots` and `sklearn` at their first use: they need the packages of an extra."""
    if name in ("plots", "sklearn"):
        return importlib.import_module(f"tfp_rank1.{name}")
    raise AttributeError(f"module 'tfp_rank1' has no attribute {name!r}")


__all__ = [
    "BayesianModel",
    "ConversionReport",
    "PosteriorPredictive",
    "PredictiveMoments",
    "__version__",
    "callbacks",
    "convert",
    "initializers",
    "layers",
    "likelihoods",
    "losses",
    "members",
    "metrics",
    "models",
    "moments",
    "plots",
    "posterior_mean",
    "posteriors",
    "priors",
    "random",
    "recipes",
    "register_converter",
    "sklearn",
]
