"""`convert` turns a stock Keras model into a rank-1 model; `bali_keras` shares its helpers."""

from tfp_rank1.conversion.convert import ConversionReport, convert, register_converter
from tfp_rank1.conversion.transfer import same_weights, uncompiled
from tfp_rank1.model.raw_outputs import (
    applies,
    check_raw,
    is_graph,
    is_only_use,
    last_operation,
)

__all__ = [
    "ConversionReport",
    "applies",
    "check_raw",
    "convert",
    "is_graph",
    "is_only_use",
    "last_operation",
    "register_converter",
    "same_weights",
    "uncompiled",
]
