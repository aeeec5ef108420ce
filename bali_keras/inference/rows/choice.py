"""Which form a layer's row covariance has."""

from __future__ import annotations

from typing import Any

import numpy as np

from bali_keras.inference.rows.blocks import BlockRows
from bali_keras.inference.rows.covariance import RowCovariance
from bali_keras.inference.rows.dense import DenseRows
from bali_keras.inference.rows.diagonal import DiagonalRows
from tfp_rank1.checks import whole

__all__ = ["BLOCK", "BUDGET", "check_row_covariance", "dense_bytes", "rows_for"]

# Bytes that the covariances of one layer may take before "auto" stores them in blocks.
BUDGET = 64 * 2**20
# Size of the blocks of "auto" and "blocks".
BLOCK = 512

FORMS = "auto", "dense", "blocks", "diagonal"


def check_row_covariance(value: Any) -> Any:
    """A form of the row covariance, by its name or by the size of its blocks.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str) and value in FORMS:
        return value
    if isinstance(value, str) or value is None:
        raise ValueError(
            f"Argument `row_covariance` must be one of {list(FORMS)}, or a whole number, the size "
            f"of blocks. Received: row_covariance={value!r}"
        )
    return whole("row_covariance", value)


def dense_bytes(size: int, dtype: str = "float32") -> int:
    """Bytes of the three matrices of a dense row covariance: the average, R and `L^-1`."""
    return 3 * size**2 * np.dtype(dtype).itemsize


def rows_for(form: Any, size: int, dtype: str) -> RowCovariance:
    """The row covariance of a layer with d inputs.

    Args:
        form: see `check_row_covariance`.
        size: d.
        dtype: "float32" or "float64".
    """
    if form == "auto":
        form = "dense" if dense_bytes(size, dtype) <= BUDGET else "blocks"
    if form == "diagonal":
        return DiagonalRows(size, dtype)
    if form == "dense":
        return DenseRows(size, dtype)
    block = BLOCK if form == "blocks" else form
    return DenseRows(size, dtype) if block >= size else BlockRows(size, block, dtype)
