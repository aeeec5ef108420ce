"""Patches of a convolution, in one, two or three dimensions."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

__all__ = [
    "extract_patches",
    "pad",
    "spread",
]


def extract_patches(
    x: tf.Tensor,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    dilation_rate: tuple[int, ...],
    padding: str,
) -> tf.Tensor:
    """The inputs under the kernel at every position, `[B, *positions, prod(kernel_size) * C]`.

    A convolution is the matrix product of these patches and the kernel, reshaped to
    `[prod(kernel_size) * C, filters]`. The patches are one strided slice per kernel element.

    Args:
        x: inputs `[B, *spatial, C]`.
        kernel_size: size of the kernel along each spatial axis.
        strides: distance of neighbouring positions along each axis.
        dilation_rate: distance of neighbouring kernel elements along each axis.
        padding: `"valid"`, `"same"`, or for one spatial axis `"causal"`.
    """
    # Static sizes where they are known: positions of known number keep the output shape static.
    sizes = tf.unstack(tf.shape(x)[1:-1])
    sizes = [sizes[i] if n is None else n for i, n in enumerate(x.shape[1:-1])]
    extents = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation_rate, strict=True)]
    pads = [pad(n, e, s, padding) for n, e, s in zip(sizes, extents, strides, strict=True)]
    counts = [
        (n + sum(p) - e) // s + 1 for n, p, e, s in zip(sizes, pads, extents, strides, strict=True)
    ]
    if padding != "valid":
        x = tf.pad(x, [[0, 0], *pads, [0, 0]])

    def under(offsets: tuple[int, ...]) -> tf.Tensor:
        slices = tuple(
            slice(o, o + s * (n - 1) + 1, s)
            for o, s, n in zip(offsets, strides, counts, strict=True)
        )
        return x[(slice(None), *slices, slice(None))]

    places = [
        tuple(d * i for d, i in zip(dilation_rate, index, strict=True))
        for index in itertools.product(*map(range, kernel_size))
    ]
    return tf.concat([under(place) for place in places], axis=-1)


def pad(
    size: int | tf.Tensor, extent: int, stride: int, padding: str
) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Number of zeros before and after one axis, as TensorFlow's convolutions pad.

    Args:
        size: size of the axis.
        extent: size of the kernel along the axis, with the gaps of its dilation.
        stride: stride along the axis.
        padding: as in `extract_patches`.
    """
    if padding == "causal":
        return extent - 1, 0
    if padding == "valid":
        return 0, 0
    count = -(-size // stride)
    total = (count - 1) * stride + extent - size
    total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
    # Of an odd number of zeros, one more stands after the axis than before it.
    return total // 2, total - total // 2


def spread(
    x: tf.Tensor,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    dilation_rate: tuple[int, ...],
    padding: str,
    outputs: list[int | tf.Tensor],
) -> tf.Tensor:
    """Inputs with `stride - 1` zeros between them and a border of zeros, `[B, *wide, C]`.

    The patches of the result, of stride 1 and without padding, are the inputs that reach every
    output of a transposed convolution.

    Args:
        x: inputs `[B, *spatial, C]`.
        kernel_size: size of the kernel along each spatial axis.
        strides: distance of the inputs along each axis of the outputs.
        dilation_rate: distance of neighbouring kernel elements along each axis.
        padding: `"valid"` or `"same"`.
        outputs: size of every spatial axis of the outputs.
    """
    axes = zip(kernel_size, strides, dilation_rate, outputs, strict=True)
    for axis, (size, stride, dilation, count) in enumerate(axes, start=1):
        extent = dilation * (size - 1) + 1
        n = tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]
        x = _with_gaps(x, axis, stride)
        length = (n - 1) * stride + 1
        # Of what the kernel reaches beyond the outputs, half is cut off before them, rounded down.
        beyond = length + extent - 1 - count
        beyond = max(beyond, 0) if isinstance(beyond, int) else tf.maximum(beyond, 0)
        before = extent - 1 - (0 if padding == "valid" else beyond // 2)
        after = count + extent - 1 - before - length
        pads: list[list[Any]] = [[0, 0] for _ in x.shape]
        pads[axis] = [before, after]
        x = tf.pad(x, pads)
    return x


def _with_gaps(x: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """`stride - 1` zeros between the entries of an axis."""
    if stride == 1:
        return x
    shape = [tf.shape(x)[i] if n is None else n for i, n in enumerate(x.shape)]
    pads = [[0, 0] for _ in range(len(shape) + 1)]
    pads[axis + 1] = [0, stride - 1]
    wide = tf.pad(tf.expand_dims(x, axis + 1), pads)
    shape[axis] = shape[axis] * stride
    inside = [slice(None)] * axis + [slice(0, shape[axis] - stride + 1)]
    return tf.reshape(wide, shape)[tuple(inside)]
