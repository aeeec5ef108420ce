"""Sample weights, and targets that are missing.

    w_nt = sample_weight_nt [y_nt is observed]

`sample_weight` has one number per example, `[B]` or `[B, 1]`, or one per target, `[B, T]`. A weight
per example multiplies the loss of the example. A weight per target multiplies the log-density of
the target under every member, so that a target of weight 0 is as good as missing.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["split_weights", "weights_by_example", "weights_by_target"]


def split_weights(
    sample_weight: Any, num_targets: int
) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Weights per example, `[B]`, and weights per target, `[B, T]`; one of them, or neither.

    Args:
        sample_weight: `[B]`, `[B, 1]` or `[B, T]`; None for 1.
        num_targets: T.

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
    if weights.shape.rank == 2 and weights.shape[-1] == num_targets:
        return None, weights
    raise ValueError(
        "Argument `sample_weight` must have one number per example, [batch], or one per target, "
        f"[batch, {num_targets}]. Received: shape {weights.shape}"
    )


def weights_by_target(sample_weight: Any, observed: tf.Tensor) -> tf.Tensor:
    """`w_nt`, `[B, T]`.

    Args:
        sample_weight: as in `split_weights`.
        observed: which targets are not missing, boolean `[B, T]`.
    """
    examples, targets = split_weights(sample_weight, observed.shape[-1])
    weights = tf.cast(observed, tf.float32)
    if targets is not None:
        weights *= targets
    return weights if examples is None else weights * examples[:, tf.newaxis]


def weights_by_example(sample_weight: Any, observed: tf.Tensor) -> tf.Tensor:
    """The weight of every example, `[B]`: the mean over its targets, 0 if one of them is missing.

    For what takes an example as a whole, such as a metric of Keras.
    """
    weights = tf.reduce_mean(weights_by_target(sample_weight, observed), axis=-1)
    return tf.where(tf.reduce_all(observed, axis=-1), weights, 0.0)
