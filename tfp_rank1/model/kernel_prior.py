"""The prior of the kernels, which a rank-1 net holds as points.

    -log p(W) / N = p / (2 N) sum_layers fan_in |W|^2        (nats per example, but for a constant)

An entry of a kernel has the precision `p fan_in` a priori, so that a pre-activation of inputs with
unit mean square has the variance `1 / p`. The term is part of the evidence bound, scaled by N like
the KL: small data are regularised, large data are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.einsum_axes import letters
from tfp_rank1.keras_internals import layers_of

__all__ = ["DEFAULT_KERNEL_PRECISION", "kernel_penalty", "kernels"]

# For nets whose factors have a prior, chosen on held-out parts of tables, digits and images: noisy
# tables ask for more, clean ones for less.
DEFAULT_KERNEL_PRECISION = 0.01
# Names under which layers of Keras hold their kernels.
_NAMES = "kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel"


def kernel_penalty(model: Any, precision: float) -> tf.Tensor:
    """`-log p(W)` in nats without its constant, scalar.

    Args:
        model: a built model.
        precision: p.
    """
    squares = [
        fan_in * tf.reduce_sum(tf.square(tf.cast(tf.convert_to_tensor(kernel), tf.float32)))
        for kernel, fan_in in kernels(model)
    ]
    return 0.5 * precision * tf.add_n(squares) if squares else tf.zeros(())


def kernels(model: Any) -> Iterator[tuple[keras.Variable, int]]:
    """The trainable kernels of a model, each once, with the number of inputs of one unit."""
    seen: set[int] = set()
    for layer in layers_of(model, include_self=False):
        for name in _NAMES:
            kernel: Any = getattr(layer, name, None)
            is_variable = isinstance(kernel, keras.Variable) and kernel.trainable
            if is_variable and layer.trainable and id(kernel) not in seen:
                seen.add(id(kernel))
                yield kernel, _fan_in(layer, name, kernel.shape)


def _fan_in(layer: Any, name: str, shape: tuple[int, ...]) -> int:
    equation = getattr(layer, "equation", None)
    if equation is not None:
        _, axes, outputs = letters(equation)
        return math.prod(n for a, n in zip(axes, shape, strict=True) if a not in outputs)
    if hasattr(layer, "output_padding"):  # of a transposed convolution, [..., units, inputs]
        return math.prod(shape[:-2]) * shape[-1]
    # A channel of a depthwise convolution is a unit of its own.
    is_depthwise = name == "depthwise_kernel" or hasattr(layer, "depth_multiplier")
    return math.prod(shape[:-2] if is_depthwise and name != "pointwise_kernel" else shape[:-1])
