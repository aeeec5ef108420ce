"""EmbeddingBali."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import ops

from bali_keras.inference.rows import OneHotRows
from bali_keras.layers.base import BaliLayer
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "EmbeddingBali",
]


@registered("bali_keras")
class EmbeddingBali(BaliLayer):
    """`keras.layers.Embedding` with a matrix-normal posterior over its table.

        z_t = W_i = e_i' W,   W ~ MN(M, L^-1, V),   L_ii = L0 + N * how often an example has index i

    The row of an index is one-hot, so that L is diagonal and exact, and a step costs no more than
    that of a stock embedding. Indices that training never shows keep the width of the prior.

    Args:
        input_dim: number of indices.
        output_dim: k, size of a vector.
        mask_zero: as in the stock layer: whether index 0 is padding, which is no data.
        embeddings_initializer: initializer of the table's mean. Defaults to `"uniform"`.
        **kwargs: as for `BaliLayer`, without `activation`, `use_bias` and `row_covariance`.

    Call arguments:
        inputs: integers `[B, ...]`.

    Returns:
        `[B, ..., output_dim]`.

    Example:
    ```python
    h = bk.layers.EmbeddingBali(10_000, 64, mask_zero=True)(tokens)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        mask_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("activation", "use_bias", "kernel_initializer", "row_covariance"):
            if name in kwargs:
                raise ValueError(
                    f"EmbeddingBali takes no `{name}`: it looks up vectors, and its row covariance "
                    f"is diagonal. Received: {name}={kwargs[name]!r}"
                )
        super().__init__(
            use_bias=False,
            kernel_initializer=embeddings_initializer,
            row_covariance="diagonal",
            **kwargs,
        )
        self.input_dim, self.output_dim = (
            whole("input_dim", input_dim),
            whole("output_dim", output_dim),
        )
        self.mask_zero = bool(mask_zero)
        self.supports_masking = self.mask_zero
        # Keras would turn integers into floats.
        self.autocast = False

    def build(self, input_shape: Any = None) -> None:
        """Create the posterior."""
        rows = OneHotRows(self.input_dim, self._dtype_of_state())
        shape = self.input_dim, self.output_dim
        self._create_posterior(shape, self.output_dim, rows, self.output_dim, fan_in=1)

    def call(
        self, inputs: tf.Tensor, mask: tf.Tensor | None = None, training: bool | None = None
    ) -> tf.Tensor:
        """Sampled vectors; index 0 is no data, with `mask_zero`."""
        return super().call(inputs, mask=self.compute_mask(inputs), training=training)

    def _homogeneous(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._rows(inputs)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        return ops.cast(inputs, "int32")

    def row_moments(
        self, mean: tf.Tensor, variance: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The indices, which no layer before makes random."""
        return self._rows(mean), None

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        return z

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """False at index 0, with `mask_zero`."""
        return ops.not_equal(inputs, 0) if self.mask_zero else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`[B, ..., output_dim]`."""
        return (*input_shape, self.output_dim)

    @property
    def embeddings(self) -> tf.Tensor:
        """The posterior mean of the table, `[input_dim, output_dim]`."""
        return self.kernel

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        initializer = config.pop("kernel_initializer")
        for name in ("activation", "use_bias", "bias_initializer", "row_covariance"):
            del config[name]
        return {
            **config,
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "embeddings_initializer": initializer,
            "mask_zero": self.mask_zero,
        }
