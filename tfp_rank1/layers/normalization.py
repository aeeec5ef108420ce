"""Batch normalization of the rows of all members."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.checks import choice
from tfp_rank1.keras_internals import tracked_by_tensorflow
from tfp_rank1.layers.folding import check_rows, fold, resolve_members, unfold
from tfp_rank1.serialization import registered

__all__ = [
    "EnsembleBatchNormalization",
]


@registered("tfp_rank1")
@tracked_by_tensorflow
class EnsembleBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization of rows `[K*B, ...]` with one scale and offset per member.

        y = (x - mean_k) / sqrt(variance_k + epsilon) * gamma_k + beta_k

    Members see different activations, so by default each has its own mean and variance. With
    `statistics="shared"` they have one mean and variance together, as in the reference networks; a
    small batch may need it.

    Args:
        ensemble_size: number of members K. Defaults to None: that of the enclosing
            `with tfp_rank1.members(K):`, else 1.
        statistics: `"member"` (default) or `"shared"`.
        **kwargs: every argument of `keras.layers.BatchNormalization` but `renorm`. With
            `synchronized=True` mean and variance of a batch are taken over all replicas.

    Input shape: `[K*B, ...]`, member-major.

    Output shape: that of the inputs.

    Raises:
        ValueError: for `renorm=True`, for a mask with `synchronized=True`, or if K does not divide
            the number of rows.

    Example:
    ```python
    x = r1.layers.Conv2DRank1(16, 3, use_bias=False, ensemble_size=4)(x)
    x = r1.layers.EnsembleBatchNormalization(ensemble_size=4)(x)
    ```

    Source: Ioffe & Szegedy (2015); Dusenberry et al. (2020).
    """

    def __init__(
        self, ensemble_size: int | None = None, statistics: str = "member", **kwargs: Any
    ) -> None:
        if kwargs.get("renorm"):
            raise ValueError(
                "EnsembleBatchNormalization has no batch renormalization. Received: renorm=True"
            )
        super().__init__(**kwargs)
        self.ensemble_size = resolve_members(ensemble_size, 1, type(self).__name__)
        self.statistics = choice("statistics", statistics, ("member", "shared"))

    def build(self, input_shape: Any) -> None:
        """Create scale and offset, `[K, C]`, and moving statistics, `[K, C]` or `[1, C]`."""
        channels = input_shape[self.axis]
        rows = {"member": self.ensemble_size, "shared": 1}[self.statistics]

        def add(name: str, members: int, initializer: Any, **kwargs: Any) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=(members, channels),
                initializer=initializer,
                autocast=False,
                **kwargs,
            )

        if self.scale:
            self.gamma = add(
                "gamma",
                self.ensemble_size,
                self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
            )
        if self.center:
            self.beta = add(
                "beta",
                self.ensemble_size,
                self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
            )
        self.moving_mean = add("moving_mean", rows, self.moving_mean_initializer, trainable=False)
        self.moving_variance = add(
            "moving_variance", rows, self.moving_variance_initializer, trainable=False
        )
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Rows normalized by statistics of the batch in training, else by moving statistics."""
        inputs = check_rows(inputs, self.ensemble_size, self.name)
        # float32 even under mixed precision: sums over a batch overflow half precision.
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(unfold(inputs, self.ensemble_size), dtype)
        channel_axis = self.axis % len(inputs.shape) + 1
        shape = [1] * len(x.shape)
        shape[channel_axis] = x.shape[channel_axis]

        def lay(value: Any) -> tf.Tensor:
            """`[K or 1, C]` along the member and channel axes of x."""
            return ops.reshape(ops.cast(value, dtype), [value.shape[0], *shape[1:]])

        # As in the stock layer, a frozen layer uses and keeps its moving statistics.
        if training and self.trainable:
            mean, variance = self._batch_statistics(x, channel_axis, mask)
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = ops.rsqrt(lay(variance) + self.epsilon)
        if self.scale:
            scale *= lay(self.gamma)
        offset = -lay(mean) * scale
        if self.center:
            offset += lay(self.beta)
        return ops.cast(fold(x * scale + offset), self.compute_dtype)

    def _batch_statistics(
        self, x: tf.Tensor, channel_axis: int, mask: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        kept = {channel_axis} | ({0} if self.statistics == "member" else set())
        axes = [axis for axis in range(len(x.shape)) if axis not in kept]
        if mask is None:
            mean, variance = ops.moments(x, axes=axes, synchronized=self.synchronized)
        else:
            mean, variance = self._masked_moments(x, axes, mask)
        rows = self.moving_mean.shape
        return ops.reshape(mean, rows), ops.reshape(variance, rows)

    def _masked_moments(
        self, x: tf.Tensor, axes: list[int], mask: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of the entries that are not masked; 0 and 1 if all are masked."""
        # `ops.moments` synchronizes replicas, but takes no mask.
        if self.synchronized:
            raise ValueError(
                "EnsembleBatchNormalization does not synchronize masked inputs. Use "
                "synchronized=False, or inputs without a mask. Received: a mask of shape "
                f"{mask.shape}"
            )
        weight = unfold(ops.cast(mask, x.dtype), self.ensemble_size)
        weight = ops.reshape(weight, (*ops.shape(weight), *[1] * (x.ndim - weight.ndim)))
        weight = ops.broadcast_to(weight, ops.shape(x))
        count = ops.sum(weight, axis=axes, keepdims=True)
        mean = tf.math.divide_no_nan(ops.sum(weight * x, axis=axes, keepdims=True), count)
        square = ops.sum(weight * ops.square(x - mean), axis=axes, keepdims=True)
        # A variance of 0 would scale later inputs by 1 / sqrt(epsilon).
        variance = tf.where(count > 0.0, tf.math.divide_no_nan(square, count), 1.0)
        return mean, variance

    def _move(self, average: keras.Variable, value: tf.Tensor) -> None:
        old, value = ops.convert_to_tensor(average), ops.cast(value, average.dtype)
        average.assign(old * self.momentum + value * (1.0 - self.momentum))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "ensemble_size": self.ensemble_size,
            "statistics": self.statistics,
        }
