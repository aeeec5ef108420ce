"""Streaming `keras.metrics` of predictive distributions, for `compile` or for use alone.

`risk_coverage`, `sparsification` and `abstention_threshold` are functions of a whole set.
"""

from tfp_rank1.metrics.abstention import Abstention, abstention_threshold
from tfp_rank1.metrics.adaptive_calibration import AdaptiveCalibrationError
from tfp_rank1.metrics.aurc import AURC
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.calibration import ExpectedCalibrationError
from tfp_rank1.metrics.curves import (
    RiskCoverage,
    Sparsification,
    risk_coverage,
    sparsification,
)
from tfp_rank1.metrics.disagreement import MemberDisagreement
from tfp_rank1.metrics.keras_metrics import OfPredictiveMean, on_predictive_mean
from tfp_rank1.metrics.member_variance import MemberVariance
from tfp_rank1.metrics.ood import FPR95, OODAUPR, OODAUROC, ood_score
from tfp_rank1.metrics.prediction_sets import Coverage, SetSize
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
    "AURC",
    "CRPS",
    "FPR95",
    "OODAUPR",
    "OODAUROC",
    "Abstention",
    "Accuracy",
    "AdaptiveCalibrationError",
    "BrierScore",
    "Coverage",
    "ExpectedCalibrationError",
    "IntervalCoverage",
    "IntervalWidth",
    "MemberDisagreement",
    "MemberVariance",
    "OfPredictiveMean",
    "PredictiveNLL",
    "RiskCoverage",
    "RootMeanSquaredError",
    "SetSize",
    "Sparsification",
    "UncertaintyMetric",
    "abstention_threshold",
    "on_predictive_mean",
    "ood_score",
    "risk_coverage",
    "sparsification",
]
