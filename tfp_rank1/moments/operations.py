"""Operations of `keras.ops` in a graph, such as the sum in `h + x`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import producer_of
from tfp_rank1.moments.activations import activated, clipped, integrated, leaky, softened
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.merging import (
    added,
    joined,
    larger,
    multiplied,
    of_one_dtype,
    smaller,
    subtracted,
)
from tfp_rank1.moments.registry import WAY_OUT, exact, register

__all__: list[str] = []


def _class_of(function: Callable[..., Any]) -> type:
    """The class of the operation that a function of `keras.ops` makes in a graph."""
    operation, _, _ = producer_of(function(keras.Input((2, 2))))
    return type(operation)


def _as_moments(value: Any, like: Any = None) -> Moments:
    """An argument of an operation as moments; numbers and arrays are exact."""
    if isinstance(value, Moments):
        return value
    dtype = like.mean.dtype if isinstance(like, Moments) else None
    return exact(tf.convert_to_tensor(value, dtype))


def _of_two(function: Callable[[Moments, Moments], Moments]) -> Callable[..., Moments]:
    def rule(operation: Any, x1: Any, x2: Any) -> Moments:
        x, y = of_one_dtype([_as_moments(x1, x2), _as_moments(x2, x1)])
        return function(x, x if x1 is x2 else y)

    return rule


register(_class_of(lambda x: ops.add(x, x)))(_of_two(added))
register(_class_of(lambda x: ops.subtract(x, x)))(_of_two(subtracted))
register(_class_of(lambda x: ops.multiply(x, x)))(_of_two(multiplied))
register(_class_of(lambda x: ops.maximum(x, x)))(_of_two(larger))
register(_class_of(lambda x: ops.minimum(x, x)))(_of_two(smaller))


@register(_class_of(lambda x: ops.divide(x, 2.0)), _class_of(lambda x: ops.true_divide(x, 2.0)))
def _divide(operation: Any, x1: Any, x2: Any) -> Moments:
    x, y = _as_moments(x1, x2), _as_moments(x2, x1)
    if not y.is_exact:
        raise ValueError(
            f"Moments do not divide by a random number: {WAY_OUT}. "
            f"Received: operation {operation.name!r}"
        )
    return x.scaled(1.0 / y.mean)


@register(_class_of(lambda x: ops.stop_gradient(x)))
def _unchanged(operation: Any, x: Moments) -> Moments:
    return x


@register(_class_of(lambda x: ops.cast(x, "float32")))
def _cast(operation: Any, x: Moments) -> Moments:
    dtype = keras.backend.standardize_dtype(operation.dtype)
    # Half precision cannot hold small variances.
    return x.moved(lambda v: tf.cast(v, dtype)) if dtype == "float64" else x


@register(_class_of(lambda x: ops.clip(x, 0.0, 1.0)))
def _clip(operation: Any, x: Moments) -> Moments:
    return clipped(x, float(operation.x_min), float(operation.x_max))


@register(_class_of(lambda x: ops.sum(x, axis=1)), _class_of(lambda x: ops.mean(x, axis=1)))
def _reduced(operation: Any, x: Moments) -> Moments:
    """Sums and means over an axis whose entries count as independent."""
    mean = operation.call(x.mean)
    ratio = tf.size(x.mean) / tf.maximum(tf.size(mean), 1)
    is_mean = type(operation) is _class_of(lambda v: ops.mean(v, axis=1))
    share = tf.cast(1.0 / ratio, mean.dtype) if is_mean else 1.0
    return Moments(mean, share * operation.call(x.variance_or_zeros()))


@register(_class_of(lambda x: ops.negative(x)))
def _negative(operation: Any, x: Moments) -> Moments:
    return x.scaled(-1.0)


@register(
    _class_of(lambda x: ops.reshape(x, (-1, 4))),
    _class_of(lambda x: ops.transpose(x, (0, 2, 1))),
    _class_of(lambda x: ops.expand_dims(x, 1)),
    _class_of(lambda x: ops.squeeze(ops.expand_dims(x, 1), 1)),
    _class_of(lambda x: ops.swapaxes(x, 1, 2)),
    _class_of(lambda x: ops.moveaxis(x, 1, 2)),
    _class_of(lambda x: ops.flip(x, 1)),
    _class_of(lambda x: x[:, 0]),
)
def _arranged(operation: Any, x: Moments, *args: Any, **kwargs: Any) -> Moments:
    return x.moved(lambda value: operation.call(value, *args, **kwargs))


@register(_class_of(lambda x: ops.concatenate([x, x], axis=1)))
def _concatenated(operation: Any, xs: Any) -> Moments:
    return joined([_as_moments(x) for x in xs], operation.axis)


@register(_class_of(lambda x: ops.stack([x, x], axis=1)))
def _stacked(operation: Any, xs: Any) -> Moments:
    parts = [_as_moments(x) for x in xs]
    axis = operation.axis
    widened = [p.moved(lambda v: ops.expand_dims(v, axis)) for p in parts]
    return joined(widened, axis)


@register(_class_of(lambda x: ops.relu(x)))
def _relu(operation: Any, x: Moments) -> Moments:
    return leaky(x, 0.0)


@register(_class_of(lambda x: ops.relu6(x)))
def _relu6(operation: Any, x: Moments) -> Moments:
    return clipped(x, 0.0, 6.0)


@register(_class_of(lambda x: ops.softmax(x)))
def _softmax(operation: Any, x: Moments) -> Moments:
    return softened(x, operation.axis)


@register(
    *(
        _class_of(function)
        for function in (
            ops.abs, ops.elu, ops.exp, ops.log_sigmoid, ops.selu, ops.sigmoid, ops.silu,
            ops.sin, ops.cos, ops.softplus, ops.softsign, ops.square, ops.tanh, ops.leaky_relu,
            ops.hard_sigmoid, ops.hard_silu,
        )
    )
)  # fmt: skip
def _entry_by_entry(operation: Any, x: Moments) -> Moments:
    return integrated(operation.call, x)


@register(_class_of(lambda x: ops.gelu(x)))
def _gelu(operation: Any, x: Moments) -> Moments:
    if operation.approximate:
        return integrated(operation.call, x)
    return activated(keras.activations.gelu, x)  # serving formats lack the error function
