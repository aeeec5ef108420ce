"""From a recorded batch to what its pseudo-targets say about a layer.

Pseudo-targets are the outputs of the forward pass moved along the back-propagated gradient of the
log-likelihood, `y_n = M' h_n + V g_n` with `g_n = d log p(label_n) / d z_n`, per example and not
divided by the batch. Only their sum `H'(Y - H M) = H' G V` is needed, and V comes later: here are
`H' G` and the second moments of inputs and scores.
"""

from __future__ import annotations

import tensorflow as tf

from bali_keras.recording import Record
from bali_keras.statistics import Moments


def cross_sum(
    records: list[Record],
    gradients: list[tf.Tensor],
    weights: tf.Tensor | None,
    noise_variance: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`BatchSums.cross` and `BatchSums.examples` of one layer, of this replica.

    Several calls of a shared layer are more rows.

    Args:
        records: one per call of the layer.
        gradients: `w_n g_n` per call, `[B, ..., k]`.
        weights: `[B]`, or None for 1.
        noise_variance: as in `LayerUpdate`: pseudo-targets are then the labels, whatever noise
            the forward pass drew.
    """
    cross = _rows(gradients)
    if noise_variance is not None:
        noise, weight = _rows([r.outputs - r.mean for r in records]), _row_weights(records, weights)
        cross = cross * noise_variance + (noise if weight is None else noise * weight[:, None])
    mask = _row_weights(records, None)
    if mask is not None:
        cross = cross * mask[:, tf.newaxis]
    inputs = _rows([r.inputs for r in records])
    return tf.matmul(inputs, cross, transpose_a=True), _total(records[0].inputs, weights)


def moments(records: list[Record], scores: list[tf.Tensor], weights: tf.Tensor | None) -> Moments:
    """`BatchSums.moments` of one layer, of this replica.

    Args:
        records: one per call of the layer.
        scores: `sqrt(w_n) s_n` per call, `[B, ..., k]`.
        weights: `[B]`, or None for 1.
    """
    inputs, scores_rows = _rows([r.inputs for r in records]), _rows(scores)
    weight = _row_weights(records, weights)
    weighted = inputs if weight is None else inputs * weight[:, tf.newaxis]
    return Moments(
        inputs=tf.matmul(inputs, weighted, transpose_a=True),
        fisher=tf.matmul(scores_rows, scores_rows, transpose_a=True),
        examples=_total(records[0].inputs, weights),
        rows=_total(inputs, weight),
    )


def no_moments(size: tuple[int, int]) -> Moments:
    """Zeros, for a step that collects none."""
    d, k = size
    return Moments(tf.zeros((d, d)), tf.zeros((k, k)), tf.zeros(()), tf.zeros(()))


def _total(tensor: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """The sum of the weights along the first axis of a tensor; its length if they are all 1."""
    if weights is None:
        return tf.cast(tf.shape(tensor)[0], tf.float32)
    return tf.reduce_sum(weights)


def _rows(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Tensors `[B, ..., n]` as rows `[R, n]`, float32."""
    flat = [tf.reshape(tf.cast(t, tf.float32), [-1, t.shape[-1]]) for t in tensors]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)


def _row_weights(records: list[Record], weights: tf.Tensor | None) -> tf.Tensor | None:
    """The weight of every row, `[R]`: that of its example, and 0 for padding; None for all 1."""
    if weights is None and all(record.mask is None for record in records):
        return None
    per_call = []
    for record in records:
        shape = tf.shape(record.inputs)[:-1]
        spread = tf.ones(shape) if record.mask is None else record.mask
        if weights is not None:
            ones = tf.ones([tf.rank(record.inputs) - 2], tf.int32)
            spread *= tf.reshape(weights, tf.concat([shape[:1], ones], axis=0))
        per_call.append(tf.reshape(spread, [-1]))
    return tf.concat(per_call, axis=0)
