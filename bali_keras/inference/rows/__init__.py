"""The row covariance of a layer: how `L = L0 + N S` is stored, factorised and applied."""

from bali_keras.inference.rows.blocks import BlockRows, ChannelRows
from bali_keras.inference.rows.choice import check_row_covariance, rows_for
from bali_keras.inference.rows.covariance import RowCovariance
from bali_keras.inference.rows.dense import DenseRows
from bali_keras.inference.rows.diagonal import DiagonalRows, OneHotRows

__all__ = [
    "BlockRows",
    "ChannelRows",
    "DenseRows",
    "DiagonalRows",
    "OneHotRows",
    "RowCovariance",
    "check_row_covariance",
    "rows_for",
]
