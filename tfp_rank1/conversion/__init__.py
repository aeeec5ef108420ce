"""`convert` turns a stock Keras model into a rank-1 model; `bali_keras` shares its helpers."""

from tfp_rank1.conversion.batch_axis import check_training
from tfp_rank1.conversion.comparison import Converted, check_same_function
from tfp_rank1.conversion.convert import ConversionReport, convert, register_converter
from tfp_rank1.conversion.refusals import check_kernel, check_model, check_stock
from tfp_rank1.conversion.report import Rows, warn_of_points
from tfp_rank1.conversion.stock import (
    copy,
    likelihoods_for,
    without_function,
    without_likelihood,
)
from tfp_rank1.conversion.transfer import same_own_weights, same_weights, uncompiled
from tfp_rank1.conversion.trial import trial_inputs, trial_of
from tfp_rank1.model.raw_outputs import ends_to_drop, is_graph

__all__ = [
    "ConversionReport",
    "Converted",
    "Rows",
    "check_kernel",
    "check_model",
    "check_same_function",
    "check_stock",
    "check_training",
    "convert",
    "copy",
    "ends_to_drop",
    "is_graph",
    "likelihoods_for",
    "register_converter",
    "same_own_weights",
    "same_weights",
    "trial_inputs",
    "trial_of",
    "uncompiled",
    "warn_of_points",
    "without_function",
    "without_likelihood",
]
