"""EinsumDenseBali."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bali_keras.layers.base import BaliLayer
from tfp_rank1.einsum_axes import expand, letters, shape_of_outputs
from tfp_rank1.serialization import registered

__all__ = [
    "EinsumDenseBali",
]


@registered("bali_keras")
class EinsumDenseBali(BaliLayer):
    """`keras.layers.EinsumDense` with a matrix-normal posterior over its kernel.

    The kernel axes that are summed over make the rows of W, the kernel axes of the output make its
    columns. A kernel axis that both inputs and output have (a kernel per head or position) fits
    neither and is refused.

    Args:
        equation: as in the stock layer, for example `"abc,cd->abd"` or `"...x,xy->...y"`.
        output_shape: as in the stock layer, without the batch axis.
        bias_axes: all output axes of the kernel, in any order. Defaults to None: no bias.
        **kwargs: as for `BaliLayer`, without `use_bias`.

    Raises:
        ValueError: for an equation or bias axes that a matrix W cannot represent.

    Example:
    ```python
    h = bk.layers.EinsumDenseBali("abc,cde->abde", (None, 4, 16), bias_axes="de")(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    def __init__(
        self, equation: str, output_shape: Any, bias_axes: str | None = None, **kwargs: Any
    ) -> None:
        if "use_bias" in kwargs:
            raise ValueError(
                "EinsumDenseBali has a bias where `bias_axes` names its axes. "
                f"Received: use_bias={kwargs['use_bias']}"
            )
        super().__init__(use_bias=bias_axes is not None, **kwargs)
        self.equation, self.bias_axes = equation, bias_axes
        self.partial_output_shape = output_shape
        self.kernel_axes()  # refuses an equation at once, not when the layer is built

    def _stock(self) -> keras.layers.EinsumDense:
        """A stock layer, which reads the equation as Keras does and refuses what Keras refuses."""
        shape = self.partial_output_shape
        return keras.layers.EinsumDense(self.equation, shape, bias_axes=self.bias_axes)

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        stock = self._stock()
        stock.build(input_shape)
        sizes = dict(zip(letters(self.equation)[1], stock.kernel.shape, strict=True))
        summed, kept = self.kernel_axes()
        self._input_shape_of_rows = [sizes[a] for a in summed]
        self._output_shape_of_rows = [sizes[a] for a in kept]
        # Rows before columns, whatever the stock kernel's order; `kernel` transposes back.
        self._build_posterior(
            tuple(sizes[a] for a in summed) + tuple(sizes[a] for a in kept), len(summed)
        )

    def kernel_axes(self) -> tuple[str, str]:
        """The kernel axes that are summed over, and the kernel axes of the output, as letters.

        Raises:
            ValueError: for an equation or bias axes that W cannot represent.
        """
        inputs, kernel, output = letters(self.equation)
        summed = "".join(a for a in inputs if a in kernel and a not in output)
        kept = "".join(a for a in output if a in kernel and a not in inputs)
        if len(summed) + len(kept) != len(kernel) or not summed or not kept:
            raise ValueError(
                "EinsumDenseBali needs a kernel whose axes are either summed over or new in the "
                f"output, for example 'abc,cd->abd'. Received: equation={self.equation!r}"
            )
        if self.bias_axes is not None and set(self.bias_axes) != set(kept):
            raise ValueError(
                f"Argument `bias_axes` must name all output axes of the kernel, {kept!r}, or be "
                f"None: the bias is a row of W. Received: bias_axes={self.bias_axes!r}"
            )
        return summed, kept

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        axes = expand(letters(self.equation)[0], len(inputs.shape))
        summed, _ = self.kernel_axes()
        rest = [i for i, a in enumerate(axes) if a not in summed]
        x = ops.transpose(inputs, [*rest, *(axes.index(a) for a in summed)])
        shape = ops.shape(x)[: len(rest)]
        return ops.reshape(x, (*shape, math.prod(self._input_shape_of_rows)))

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        inputs, _, output = letters(self.equation)
        summed, kept = self.kernel_axes()
        rest = len(z.shape) - 1
        input_letters = expand(inputs, rest + len(summed))
        layout = [a for a in input_letters if a not in summed] + list(kept)
        z = ops.reshape(z, (*ops.shape(z)[:-1], *self._output_shape_of_rows))
        target = expand(output, len(layout))
        return ops.transpose(z, [layout.index(a) for a in target])

    @property
    def kernel(self) -> tf.Tensor:
        """The posterior mean of the kernel, in the stock layer's order of axes."""
        return tf.transpose(super().kernel, self._order())

    def as_matrix(self, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        """As `BaliLayer.as_matrix`, of a kernel in the stock layer's order of axes."""
        order = self._order()
        inverse = [order.index(i) for i in range(len(order))]
        return super().as_matrix(tf.transpose(kernel, inverse), bias)

    def _order(self) -> list[int]:
        """For each axis of the stock kernel its place among summed axes, then output axes."""
        own = "".join(self.kernel_axes())
        return [own.index(a) for a in letters(self.equation)[1]]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the stock layer."""
        return shape_of_outputs(self.equation, input_shape, self.partial_output_shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["use_bias"]
        return {
            **config,
            "equation": self.equation,
            "output_shape": self.partial_output_shape,
            "bias_axes": self.bias_axes,
        }
