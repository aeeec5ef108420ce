"""Patches of a convolution, in one, two or three dimensions."""

from __future__ import annotations

import itertools

import tensorflow as tf

__all__ = [
    "extract_patches",
    "pad",
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
