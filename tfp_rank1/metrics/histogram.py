"""Histograms of streams: where a value goes, and bins of equal mass made of cells.

A streaming metric cannot keep all examples. It keeps sums by cell of a map that keeps the order:

    unit(z) = 1/2 + z / (2 (half_way + |z|)),   cell = floor(unit(z) num_cells)

z is the logarithm of a positive value, the logit of a probability, or any real value itself. At
`|z| = half_way` the map has gone half of the way to its ends, so `half_way` is where z is resolved
well. One cell spans `2 (half_way + |z|)^2 / (half_way num_cells)` of z.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = [
    "cell_of",
    "merge_to_equal_mass",
    "sums_by_cell",
    "unit_of_positive",
    "unit_of_probability",
    "unit_of_real",
]

# Above the least normal float32, 1.2e-38, so that a value of 0 has a finite logarithm.
_SMALLEST = 1e-37
# 1 - p of the float32 next to 1, about: a probability of 1 gets a finite logit.
_LEAST_REST = 3e-8


def unit_of_positive(values: tf.Tensor) -> tf.Tensor:
    """Values of at least 0 mapped to [0, 1], resolved by ratios: finest at 1."""
    return _unit(tf.math.log(tf.maximum(values, _SMALLEST)), half_way=4.0)


def unit_of_real(values: tf.Tensor) -> tf.Tensor:
    """Any values mapped to [0, 1], finest at 0."""
    return _unit(values, half_way=16.0)


def unit_of_probability(probability: tf.Tensor) -> tf.Tensor:
    """Probabilities mapped to [0, 1], both ends resolved by ratios."""
    rest = tf.maximum(1.0 - probability, _LEAST_REST)
    logit = tf.math.log(tf.maximum(probability, _SMALLEST)) - tf.math.log(rest)
    return _unit(logit, half_way=4.0)


def _unit(z: tf.Tensor, half_way: float) -> tf.Tensor:
    z = tf.clip_by_value(z, -1e30, 1e30)  # infinity over infinity is NaN
    return 0.5 + 0.5 * z / (half_way + tf.abs(z))


def cell_of(unit: tf.Tensor, num_cells: int) -> tf.Tensor:
    """The number of the cell of values in [0, 1], int32; NaN counts as 1."""
    unit = tf.where(tf.math.is_nan(unit), tf.ones_like(unit), unit)
    return tf.clip_by_value(tf.cast(unit * num_cells, tf.int32), 0, num_cells - 1)


def sums_by_cell(rows: tf.Tensor, cell: tf.Tensor, num_cells: int) -> tf.Tensor:
    """Rows `[..., R]` summed by their cells `[...]`: `[num_cells, R]`."""
    flat = tf.reshape(rows, [-1, rows.shape[-1]])
    return tf.math.unsorted_segment_sum(flat, tf.reshape(cell, [-1]), num_cells)


def merge_to_equal_mass(sums: tf.Tensor, num_bins: int) -> tf.Tensor:
    """Sums by cell merged into bins of equal count, in each of G groups on its own.

    Args:
        sums: `[G, cells, R]`; the first of the R sums is the count.
        num_bins: number of bins.

    Returns:
        Sums `[G, num_bins, R]`.
    """
    count = sums[..., 0]
    total = tf.reduce_sum(count, axis=-1, keepdims=True)
    # A cell is never divided: the middle of its ranks among all examples decides its bin.
    rank = tf.math.divide_no_nan(tf.cumsum(count, axis=-1) - 0.5 * count, total)
    bins = cell_of(rank, num_bins)
    groups = int(sums.shape[0])
    first = tf.range(groups)[:, tf.newaxis] * num_bins
    merged = sums_by_cell(sums, first + bins, groups * num_bins)
    return tf.reshape(merged, [groups, num_bins, sums.shape[-1]])
