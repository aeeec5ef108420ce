"""EinsumDenseRank1."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.einsum_axes import expand, letters
from tfp_rank1.layers.rank1 import Axes, Rank1Mixin
from tfp_rank1.serialization import registered


@registered("tfp_rank1")
class EinsumDenseRank1(Rank1Mixin, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o einsum(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    r_k has an entry for every combination of the kernel's axes that are in the inputs, s_k for
    those in the outputs: in `"abc,cde->abde"` r_k runs over c and s_k over d and e together. An
    axis of the kernel that is in both (a kernel per position) is in r_k and s_k.

    Args:
        equation: as in the stock layer, for example `"abc,cd->abd"` or `"...x,xy->...y"`.
        output_shape: as in the stock layer, without the batch axis.
        **kwargs: every argument of `keras.layers.EinsumDense`, and those of
            `tfp_rank1.layers.Rank1Mixin`. The bias has one row per member, over `bias_axes`.

    Input shape: `[K*B, ...]`, member-major; the first axis of the equation is the batch.

    Output shape: that of the stock layer.

    Raises:
        ValueError: if K does not divide the batch, if the kernel holds the batch axis, for unknown
            names, or for a posterior whose KL from the prior is infinite.

    Example:
    ```python
    EinsumDenseRank1("abc,cde->abde", (None, 4, 16), bias_axes="de", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """

    bias_axes: str | None

    @property
    def use_bias(self) -> bool:  # type: ignore[override]
        """Whether the layer has a bias."""
        return self.bias_axes is not None

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        inputs, kernel, outputs = letters(self.equation)
        rank = len(input_shape)
        output_shape = self.compute_output_shape(input_shape)
        input_axes = expand(inputs, rank)
        output_axes = expand(outputs, len(output_shape))
        if input_axes[0] != output_axes[0] or input_axes[0] in kernel:
            raise ValueError(
                "EinsumDenseRank1 needs the batch as the first axis of inputs and outputs, and not "
                f"in the kernel. Received: equation={self.equation!r}"
            )
        bias = set(self.bias_axes or "")
        self._input_axes = _places(input_axes, set(kernel))
        self._output_axes = _places(output_axes, set(kernel))
        self._bias_axes = _places(output_axes, bias)
        self._build_rank1(
            input_shape,
            in_dim=_size(input_shape, self._input_axes),
            out_dim=_size(output_shape, self._output_axes),
            bias_dim=_size(output_shape, self._bias_axes),
        )

    def _build_stock(self, input_shape: Any) -> None:
        bias_axes, self.bias_axes = self.bias_axes, None
        try:
            keras.layers.EinsumDense.build(self, input_shape)
        finally:
            self.bias_axes = bias_axes

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, self._input_axes)
        z = ops.einsum(self.equation, x, self.kernel)
        return self._finish(z, seed, self._output_axes, self._bias_axes)


def _places(axes: list[str], names: set[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(axes) if name in names)


def _size(shape: Any, axes: Axes) -> int:
    return math.prod(shape[axis] for axis in axes)  # type: ignore[union-attr]
