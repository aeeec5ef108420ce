"""DenseBali."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from bali_keras.layers.base import BaliLayer
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "DenseBali",
]


@registered("bali_keras")
class DenseBali(BaliLayer):
    """`keras.layers.Dense` with a matrix-normal posterior over its weights.

        y = activation([h, 1]' W),   W ~ MN(M, L^-1, V)

    Args:
        units: k, size of the output.
        **kwargs: as for `BaliLayer`: `activation`, `use_bias`, `kernel_initializer`,
            `bias_initializer`, `sampling`, `prior_at_mean`, `seed`.

    Call arguments:
        inputs: `[B, ..., d]`; the axes between hold the rows of one example, such as time steps.
        mask: boolean `[B, ...]`, which Keras passes on; padded rows do not count as data.

    Returns:
        `[B, ..., units]`.

    Example:
    ```python
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = whole("units", units)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        if input_shape[-1] is None:
            raise ValueError(
                "DenseBali needs a last input axis of known size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self._build_posterior((input_shape[-1], self.units), 1)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        return z

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`[B, ..., units]`."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}
