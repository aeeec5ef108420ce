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
from tfp_rank1.model.roles import has_kl

__all__ = [
    "DEFAULT_KERNEL_PRECISION",
    "FoundPrecision",
    "is_open",
    "kernel_penalty",
    "kernels",
    "precision_in_graph",
    "precision_of",
]

# For nets whose factors have a prior, chosen on held-out parts of tables, digits and images: noisy
# tables ask for more, clean ones for less.
DEFAULT_KERNEL_PRECISION = 0.01
# Names under which layers of Keras hold their kernels.
_NAMES = "kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel"


class FoundPrecision:
    """The p that a search tries or has found; none at first.

    It is held by a variable, which the graph of the train step reads: a search traces no graph of
    its own for every value that it tries.
    """

    def __init__(self) -> None:
        # An initializer, not a number: only shapes are made of a model in a stateless scope.
        self._value = keras.Variable(
            keras.initializers.Constant(-1.0),
            shape=(),
            dtype="float32",
            trainable=False,
            name="found_kernel_precision",
        )

    @property
    def value(self) -> float | None:
        """The p; None if none was found."""
        number = float(self._value.numpy())
        return number if number >= 0.0 else None

    def assign(self, precision: float | None) -> None:
        """Set the p, or forget it."""
        self._value.assign(-1.0 if precision is None else precision)

    def tensor(self, default: float) -> tf.Tensor:
        """The p, or the default if none was found, scalar."""
        found = tf.convert_to_tensor(self._value)
        return tf.where(found >= 0.0, found, tf.constant(default, tf.float32))


def precision_of(model: Any) -> float:
    """The p of the kernels' prior in use; 0 for none."""
    fixed = _fixed(model)
    if fixed is not None:
        return fixed
    found = model.found_kernel_precision.value
    return model.default_kernel_precision if found is None else found


def precision_in_graph(model: Any) -> float | tf.Tensor | None:
    """As `precision_of`; a tensor where a search may change it, None for no prior."""
    fixed = _fixed(model)
    if fixed is not None:
        return fixed or None
    return model.found_kernel_precision.tensor(model.default_kernel_precision)


def _fixed(model: Any) -> float | None:
    """The p that no search may change: given, or 0 for nets without a KL and after `convert`."""
    given = model._options.kernel_precision
    if given is not None:
        return float(given)
    return None if is_open(model) else 0.0


def is_open(model: Any) -> bool:
    """Whether p is neither given nor 0 by the kind of the net, so that a search may find it."""
    is_given = model._options.kernel_precision is not None
    return not is_given and model.default_kernel_precision > 0.0 and has_kl(model)


def kernel_penalty(model: Any, precision: float | tf.Tensor) -> tf.Tensor:
    """`-log p(W)` in nats without its constant, scalar.

    Args:
        model: a built model.
        precision: p.
    """
    # Half the sum of the squares, in one pass over a kernel.
    halves = [
        fan_in * tf.nn.l2_loss(tf.cast(tf.convert_to_tensor(kernel), tf.float32))
        for kernel, fan_in in kernels(model)
    ]
    return precision * tf.add_n(halves) if halves else tf.zeros(())


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
