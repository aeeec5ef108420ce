"""Streaming `keras.metrics` of predictive distributions, for `compile` or for use alone."""

from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.calibration import ExpectedCalibrationError
from tfp_rank1.metrics.keras_metrics import OfPredictiveMean, on_predictive_mean
from tfp_rank1.metrics.ood import FPR95, OODAUPR, OODAUROC, ood_score
from tfp_rank1.metrics.probabilistic import (
    CRPS,
    Accuracy,
    BrierScore,
    IntervalCoverage,
    IntervalWidth,
    PredictiveNLL,
    RootMeanSquaredError,
)

__all__ = [
    "CRPS",
    "FPR95",
    "OODAUPR",
    "OODAUROC",
    "Accuracy",
    "BrierScore",
    "ExpectedCalibrationError",
    "IntervalCoverage",
    "IntervalWidth",
    "OfPredictiveMean",
    "PredictiveNLL",
    "RootMeanSquaredError",
    "UncertaintyMetric",
    "on_predictive_mean",
    "ood_score",
]
