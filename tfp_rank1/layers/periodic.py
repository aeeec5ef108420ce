"""Numbers as sines and cosines of trained frequencies."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.checks import positive, whole
from tfp_rank1.layers.per_feature import check_width, feature_weight
from tfp_rank1.serialization import registered

__all__ = ["PeriodicEmbedding"]


@registered("tfp_rank1")
class PeriodicEmbedding(keras.layers.Layer):
    """Every number as a vector, by waves: `[B, P]` -> `[B, P, dim]`.

        v_p = [cos(2 pi c_p x_p), sin(2 pi c_p x_p)],      h_p = activation(W_p^T v_p + b_p)

    with trained frequencies c_p that start at `N(0, stddev^2)`: slow waves for small `stddev`,
    functions with many bends for a large one. Scale inputs to unit size.

    Args:
        dim: size of a vector. Defaults to 16.
        num_frequencies: number of frequencies per feature, at least 1. Defaults to 48.
        stddev: standard deviation of the frequencies at the start, above 0. Defaults to 0.05.
        activation: as in Keras. Defaults to `"relu"`.
        seed: integer for reproducible weights. Defaults to None.

    Input shape: `[B, P]`, float.

    Output shape: `[B, P, dim]`.

    Raises:
        ValueError: for values out of range, or inputs of another rank.

    Example: `h = keras.layers.Flatten()(PeriodicEmbedding(16)(keras.Input((8,))))`, `[B, 128]`.

    Source: Gorishniy, Rubachev & Babenko (2022), "On Embeddings for Numerical Features in Tabular
    Deep Learning".
    """

    equation = "bpt,ptd->bpd"  # of the waves and the kernel

    def __init__(
        self,
        dim: int = 16,
        num_frequencies: int = 48,
        stddev: float = 0.05,
        activation: Any = "relu",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Half precision would round the phases of fast waves.
        super().__init__(autocast=False, **kwargs)
        self.dim = whole("dim", dim)
        self.num_frequencies = whole("num_frequencies", num_frequencies)
        self.stddev = positive("stddev", stddev)
        self.activation = keras.activations.get(activation)
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Create frequencies, kernel and bias of every feature."""
        features = input_shape[-1]
        check_width(self, input_shape, features or 0)
        waves = 2 * self.num_frequencies
        # Cut at two standard deviations: one fast wave would be noise in a whole vector.
        start = keras.initializers.TruncatedNormal(stddev=self.stddev, seed=self.seed)
        self.frequencies = self.add_weight(
            name="frequencies", shape=(features, self.num_frequencies), initializer=start
        )
        bound = waves**-0.5
        self.kernel = feature_weight(self, "kernel", (features, waves, self.dim), bound, 1)
        self.bias = feature_weight(self, "bias", (features, self.dim), bound, 2)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The vectors, in the dtype that the layer computes in."""
        check_width(self, inputs.shape, self.bias.shape[0])
        x = tf.expand_dims(tf.cast(inputs, tf.float32), -1)
        phases = 2.0 * math.pi * tf.cast(self.frequencies, tf.float32) * x
        waves = tf.cast(tf.concat([tf.cos(phases), tf.sin(phases)], -1), self.compute_dtype)
        kernel, bias = (tf.cast(v, self.compute_dtype) for v in (self.kernel, self.bias))
        return self.activation(tf.einsum(self.equation, waves, kernel) + bias)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, P]` -> `[B, P, dim]`."""
        return (*input_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_frequencies": self.num_frequencies,
            "stddev": self.stddev,
            "activation": keras.activations.serialize(self.activation),
            "seed": self.seed,
        }
