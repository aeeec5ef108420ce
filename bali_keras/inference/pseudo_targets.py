"""Sums over a recorded batch from which a layer's posterior follows.

Pseudo-targets are the mean pre-activations moved along the back-propagated gradient of the
log-likelihood, `y_n = M' h_n + V g_n` with `g_n = d log p(label_n) / d z_n`, per example and not
divided by the batch size. A step needs only the sum `H'(Y - H M) = H' G V`, not the targets
themselves. The functions here compute `H' G` and the second moments of inputs and scores;
`LayerPosterior` multiplies by V.
"""

from __future__ import annotations

import tensorflow as tf

from bali_keras.inference.output import LayerRole
from bali_keras.inference.rows import RowCovariance
from bali_keras.inference.statistics import BatchRows, Moments
from bali_keras.inference.weights import BatchWeights
from bali_keras.recording import Record
from tfp_rank1.random import normal_rows

__all__ = ["cross_sum", "moments", "no_moments"]

# Number of random directions u that estimate the ratio q: how much more the rows of an example
# inform together than one by one; see `bali_keras.inference.posterior`.
DIRECTIONS = 4


def cross_sum(
    records: list[Record],
    gradients: list[tf.Tensor],
    weights: BatchWeights,
    role: LayerRole,
    leverage: tf.Tensor | None,
    rows: RowCovariance,
    dtype: str,
) -> tuple[tf.Tensor, tf.Tensor, BatchRows]:
    """`BatchSums.cross` and `BatchSums.examples` of one layer, for this replica, and its rows.

    The calls of a shared layer are rows of one matrix H. Where L^-1 does not hold the batch, the
    gradient of a row is divided by `1 + a_n`,

        a_n = rho N / B w_n h_n' L^-1 h_n,

    since `(L + rho N / B w h h')^-1 h = L^-1 h / (1 + a)` (Sherman and Morrison): a row with
    features that the averages have forgotten would else take a step that is a_n times too long.

    Args:
        records: one record per call of the layer.
        gradients: `w_n g_n` per call, `[B, ..., k]`.
        weights: the weights of the batch.
        role: the role of the layer in the net.
        leverage: `rho N / B`, scalar; None for a layer whose L^-1 holds the batch.
        rows: the layer's row covariance.
        dtype: dtype of the sums.
    """
    noise = _rows([r.outputs - r.mean for r in records], dtype)
    row_weights = _row_weights(records, weights.rows, dtype)
    # The outputs of an exact layer are those of the net, so that their rows have its targets.
    targets = None if weights.targets is None else _rows([weights.targets], "float32")
    cross = role.cross_rows(_rows(gradients, dtype), noise, targets)
    if leverage is not None:
        variance = _rows([r.variance[..., tf.newaxis] for r in records], dtype)[:, 0]
        variance = variance if row_weights is None else variance * row_weights
        cross = cross / (1.0 + tf.cast(leverage, dtype) * variance)[:, tf.newaxis]
    # Padding is no data, whatever gradient reaches it.
    mask = _row_weights(records, None, dtype)
    if mask is not None:
        cross = cross * mask[:, tf.newaxis]
    # All calls of a shared layer see the same examples: one call counts them.
    examples = _total(records[0].mean, weights.counts)
    inputs = _flat_inputs(records, rows, dtype)
    return rows.cross(inputs, cross), examples, BatchRows(inputs, cross)


def moments(
    records: list[Record],
    scores: list[tf.Tensor] | None,
    weights: BatchWeights,
    seed: tf.Tensor,
    rows: RowCovariance,
    dtype: str,
) -> Moments:
    """`BatchSums.moments` of one layer, for this replica.

    Args:
        records: one record per call of the layer.
        scores: `sqrt(w_n) s_n` per call, `[B, ..., k]`; None for a layer that needs no F.
        weights: the weights of the batch.
        seed: int32 `[2]`, the same on all replicas.
        rows: the layer's row covariance, which knows the form of `Moments.inputs`.
        dtype: dtype of the sums.
    """
    inputs = _flat_inputs(records, rows, dtype)
    weight, mask = (_row_weights(records, w, dtype) for w in (weights.rows, None))
    k = records[0].mean.shape[-1]
    fisher, together, squares = (tf.zeros(shape, dtype) for shape in ((k, k), (), ()))
    if scores is not None:
        scores_rows = _rows(scores, dtype)
        scores_rows = scores_rows if mask is None else scores_rows * mask[:, tf.newaxis]
        fisher = tf.matmul(scores_rows, scores_rows, transpose_a=True)
        together, squares = _together(records, rows, inputs, weight, scores_rows, seed)
    return Moments(
        inputs=rows.second_moment(inputs, weight),
        fisher=fisher,
        examples=_total(records[0].mean, weights.counts),
        rows=_total(_rows([r.mean for r in records], dtype), weight),
        together=together,
        squares=squares,
    )


def _together(
    records: list[Record],
    rows: RowCovariance,
    inputs: tf.Tensor,
    weight: tf.Tensor | None,
    scores: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`sum_n w_n |sum_t (u'h_nt) s_nt|^2` and `sum_n w_n sum_t (u'h_nt)^2` over random u.

    Both are 0 if every example n has one row t: then q is 1.
    """
    if len(records) == 1 and set(records[0].mean.shape[1:-1]) <= {1}:
        return tf.zeros((), scores.dtype), tf.zeros((), scores.dtype)
    # From row 0 on every replica: their sums are added, so the directions must be the same.
    directions = tf.cast(normal_rows(0, (rows.size, DIRECTIONS), seed), scores.dtype)
    projected = tf.reshape(rows.product(inputs, directions), [-1, DIRECTIONS])
    squares = tf.reduce_sum(tf.square(projected), axis=-1)
    squares = squares if weight is None else weight * squares
    sizes = [tf.reduce_prod(tf.shape(r.mean)[:-1]) for r in records]
    examples = tf.shape(records[0].mean)[0]
    sums = []
    for some, score in zip(tf.split(projected, sizes), tf.split(scores, sizes), strict=True):
        by_example = tf.reshape(some, [examples, -1, DIRECTIONS])
        score = tf.reshape(score, [examples, -1, scores.shape[-1]])
        sums.append(tf.matmul(by_example, score, transpose_a=True))
    return tf.reduce_sum(tf.square(tf.add_n(sums))), tf.reduce_sum(squares)


def no_moments(rows: RowCovariance, columns: int, dtype: str) -> Moments:
    """The moments of a step that collects none: zeros, for a layer with k = `columns`."""
    scalar, count = tf.zeros((), dtype), tf.zeros(())
    return Moments(
        inputs=rows.zeros(),
        fisher=tf.zeros((columns, columns), dtype),
        examples=count,
        rows=count,
        together=scalar,
        squares=scalar,
    )


def _total(tensor: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """The sum of the given weights; without weights the length of the tensor's first axis."""
    if weights is None:
        return tf.cast(tf.shape(tensor)[0], tf.float32)
    return tf.cast(tf.reduce_sum(weights), tf.float32)


def _flat_inputs(records: list[Record], rows: RowCovariance, dtype: str) -> tf.Tensor:
    """The rows h of all calls as one list; see `RowCovariance.flat`."""
    flat = [rows.flat(r.inputs, dtype) for r in records]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)


def _rows(tensors: list[tf.Tensor], dtype: str) -> tf.Tensor:
    """Tensors `[B, ..., n]` as the rows of one matrix `[R, n]`."""
    flat = [tf.reshape(tf.cast(t, dtype), [-1, t.shape[-1]]) for t in tensors]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)


def _row_weights(records: list[Record], weights: tf.Tensor | None, dtype: str) -> tf.Tensor | None:
    """The weight of every row, `[R]`, 0 for padding; None if all are 1.

    Args:
        records: one record per call of the layer.
        weights: by example, `[B]`, or by position of the net's outputs, `[B, ...]`. A layer with
            other positions counts all rows of an example by the largest of its weights.
        dtype: of the result.
    """
    if weights is None and all(record.mask is None for record in records):
        return None
    per_call = []
    for record in records:
        spread = tf.ones(tf.shape(record.mean)[:-1]) if record.mask is None else record.mask
        if weights is not None:
            spread *= _at_rows(weights, record.mean)
        per_call.append(tf.reshape(spread, [-1]))
    return tf.cast(tf.concat(per_call, axis=0), dtype)


def _at_rows(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Weights that broadcast over the rows `[B, ...]` of values `[B, ..., k]`."""
    positions = values.shape[1:-1]
    if weights.shape[1:].is_fully_defined() and weights.shape[1:] == positions:
        return weights
    by_example = tf.reduce_max(weights, axis=list(range(1, int(weights.shape.rank))))
    return tf.reshape(by_example, [-1] + [1] * positions.rank)
