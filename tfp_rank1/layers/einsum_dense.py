"""An einsum layer whose kernel is perturbed by rank-1 matrices."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.einsum_axes import expand, letters, shape_of_outputs
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.rank1 import Axes, Rank1Mixin
from tfp_rank1.serialization import registered

__all__ = [
    "EinsumDenseRank1",
]


@registered("tfp_rank1")
@fill_docstring
class EinsumDenseRank1(Rank1Mixin, keras.layers.EinsumDense):
    """An einsum of inputs and a kernel that is perturbed by random rank-1 matrices.

        y = activation( s_k o einsum(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    r_k runs over the axes that the kernel shares with the inputs, s_k over the axes that the
    kernel shares with the outputs: in `"abc,cde->abde"` r_k has an entry for every c, and s_k for
    every pair of d and e. An axis that all three have (a kernel per position) is in r_k and s_k.

    Args:
        equation: as in the stock layer, for example `"abc,cd->abd"` or `"...x,xy->...y"`.
        output_shape: as in the stock layer, without the batch axis.
        {{rank1_arguments}}
            The bias has one row per member, over `bias_axes`.

    Input shape: `[K*B, ...]`, member-major; the first axis of the equation is the batch.

    {{output_shape}}

    {{raises}}
        ValueError: if the batch is not the first axis of inputs and outputs, or is in the kernel.

    Example: `EinsumDenseRank1("abc,cde->abde", (None, 4, 16), bias_axes="de", ensemble_size=4)`

    {{source}}
    """

    bias_axes: str | None

    @property
    def use_bias(self) -> bool:  # type: ignore[override]
        """Whether the layer has a bias."""
        # `Rank1Mixin` reads this attribute, which the stock layer does not have.
        return self.bias_axes is not None

    @property
    def factor_axes(self) -> tuple[Axes, Axes, Axes]:
        return self._input_axes, self._output_axes, self._bias_axes

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
        # Without `bias_axes` the stock layer makes no bias; `use_bias` follows from them here.
        bias_axes, self.bias_axes = self.bias_axes, None
        try:
            keras.layers.EinsumDense.build(self, input_shape)
        finally:
            self.bias_axes = bias_axes

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the stock layer."""
        return shape_of_outputs(self.equation, input_shape, self.partial_output_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, self._input_axes)
        z = ops.einsum(self.equation, x, self.kernel)
        return self._finish(z, seed, self._output_axes, self._bias_axes)


def _places(axes: list[str], names: set[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(axes) if name in names)


def _size(shape: Any, axes: Axes) -> int:
    return math.prod(shape[axis] for axis in axes)  # type: ignore[union-attr]
