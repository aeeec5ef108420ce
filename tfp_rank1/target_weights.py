"""Sample weights, and targets that are missing.

    w_nt = sample_weight_nt [y_nt is observed]

`sample_weight` has one number per example, `[B]` or `[B, 1]`; one per position (pixel, time step),
`[B, ...]`; or one per target, `[B, ..., T]`. A weight per example multiplies the loss of the
example. A weight per position or target multiplies the log-density of its targets under every
member, so that a target of weight 0 is as good as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["split_weights", "weights_by_example", "weights_by_target"]


def split_weights(
    sample_weight: Any, num_targets: int, positions: Sequence[int | None] = ()
) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Weights per example, `[B]`, and weights per target, `[B, ..., T]`; one of them, or neither.

    Weights per position are weights per target, `[B, ..., 1]`.

    Args:
        sample_weight: `[B]`, `[B, 1]`, `[B, ...]` or `[B, ..., T]`; None for 1.
        num_targets: T.
        positions: sizes of the axes of positions; None for one that is not known. Defaults to none.

    Raises:
        ValueError: for another shape.
    """
    if sample_weight is None:
        return None, None
    weights = tf.cast(tf.convert_to_tensor(sample_weight), tf.float32)
    if weights.shape.rank == 1:
        return weights, None
    if weights.shape.rank == 2 and weights.shape[-1] == 1:
        return weights[:, 0], None
    if positions and weights.shape[1:].is_compatible_with(list(positions)):
        return None, weights[..., tf.newaxis]
    for last in {num_targets, 1}:
        if weights.shape.rank > 1 and weights.shape[1:].is_compatible_with([*positions, last]):
            return None, weights
    by_position = f"one per position, {['batch', *positions]}, " if positions else ""
    raise ValueError(
        f"Argument `sample_weight` must have one number per example, [batch], {by_position}or one "
        f"per target, {['batch', *positions, num_targets]}. Received: shape {weights.shape}"
    )


def weights_by_target(sample_weight: Any, observed: tf.Tensor) -> tf.Tensor:
    """`w_nt`, `[B, ..., T]`.

    Args:
        sample_weight: as in `split_weights`.
        observed: which targets are not missing, boolean `[B, ..., T]`.
    """
    positions = observed.shape[1:-1].as_list()
    examples, targets = split_weights(sample_weight, observed.shape[-1], positions)
    weights = tf.cast(observed, tf.float32)
    if targets is not None:
        weights *= targets
    if examples is None:
        return weights
    return weights * tf.reshape(examples, [-1] + [1] * (len(positions) + 1))


def weights_by_example(sample_weight: Any, observed: tf.Tensor) -> tf.Tensor:
    """The weight of every example, `[B]`: the mean over its targets, 0 if one of them is missing.

    For what takes an example as a whole, such as a metric of Keras.
    """
    weights = tf.reduce_mean(weights_by_target(sample_weight, observed), axis=-1)
    return tf.where(tf.reduce_all(observed, axis=-1), weights, 0.0)
