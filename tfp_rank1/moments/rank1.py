"""Layers of this library: rank-1 factors, members, and normalization by member.

    E(x r) = mu m_r                Var(x r) = v (m_r^2 + s_r^2) + mu^2 s_r^2
    E z = W'E(x r)                 Var z = W^2'Var(x r)
    E(z s) = E z m_s               Var(z s) = Var z (m_s^2 + s_s^2) + (E z)^2 s_s^2

m and s are the mean and the standard deviation of a factor, mu and v those of an input (v is a
variance). An additive factor adds its mean and its variance. A bias adds its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import layers, scopes
from tfp_rank1.layers.folding import fold, unfold
from tfp_rank1.layers.rank1 import Axes, Rank1Mixin
from tfp_rank1.moments.activations import activated
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.linear import covariance_of_dense, has_joint, is_dense, mapped
from tfp_rank1.moments.registry import register, register_for_exact

__all__ = ["perturbed"]

Pair = tuple[tf.Tensor, tf.Tensor | None]


def perturbed(layer: Rank1Mixin, x: Moments, factor: Pair, axis: Axes) -> Moments:
    """Moments of `x o r`, or of `x + r` for a layer with additive factors.

    Args:
        layer: the layer with its number of members.
        x: rows of all members.
        factor: mean and variance of r, `[K, 1, dim]`.
        axis: channel axes of x.
    """
    mean, variance = factor

    def by(how: Any, value: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        return layer.by_member(value, other, axis, how)

    if layer.perturbation == "additive":
        spread = x.variance
        if variance is not None:
            spread = by(tf.add, x.variance_or_zeros(), variance)
        return Moments(by(tf.add, x.mean, mean), spread)
    spread = None
    if x.variance is not None:
        square = tf.square(mean) if variance is None else tf.square(mean) + variance
        spread = by(tf.multiply, x.variance, square)
    if variance is not None:
        own = by(tf.multiply, tf.square(x.mean), variance)
        spread = own if spread is None else spread + own
    return Moments(by(tf.multiply, x.mean, mean), spread)


@register(
    layers.DenseRank1,
    layers.EinsumDenseRank1,
    layers.Conv1DRank1,
    layers.Conv2DRank1,
    layers.Conv3DRank1,
    layers.Conv1DTransposeRank1,
    layers.Conv2DTransposeRank1,
    layers.Conv3DTransposeRank1,
    layers.DepthwiseConv1DRank1,
    layers.DepthwiseConv2DRank1,
    layers.SeparableConv1DRank1,
    layers.SeparableConv2DRank1,
)
def _rank1(layer: Any, x: Moments) -> Moments:
    inputs, outputs, bias_axes = layer.factor_axes
    x, r = _floating(x, layer), layer.factor_moments(layer.r_factor)
    if x.is_exact and is_dense(layer) and layer.perturbation == "multiplicative":
        inner = _of_known(layer, x, r)
    else:
        inner = mapped(layer, perturbed(layer, x, r, inputs))
    s = layer.factor_moments(layer.s_factor)
    z = perturbed(layer, inner, s, outputs)
    bias = layer.bias_moments()
    if bias is not None:
        z = _plus(layer, z, bias, bias_axes)
    is_linear = layer.activation is None or layer.activation is keras.activations.linear
    joint = _joint(layer, x, r, z, s) if is_linear and has_joint(layer) else None
    result = activated(layer.activation, z)
    return Moments(result.mean, result.variance, None, joint)


def _of_known(layer: Any, x: Moments, r: Pair) -> Moments:
    """Moments of `W'(x o r)` for an x that is known: with `m W` and `s^2 W^2`, `[K, in, out]`.

    The first layer of a net has the most inputs, and so nothing is computed per input and row.
    """
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), x.mean.dtype)
    mean, variance = (None if v is None else tf.cast(v[:, 0], kernel.dtype) for v in r)
    product = _by_member if x.source is None else _from_source
    rows = unfold(x.mean, layer.ensemble_size) if x.source is None else x.source[tf.newaxis]
    shape = tf.concat([tf.shape(x.mean)[:-1], [layer.units]], axis=0)
    inner = tf.reshape(product(_flat(rows), mean, kernel), shape)
    if variance is None:
        return Moments(inner)
    spread = product(tf.square(_flat(rows)), variance, tf.square(kernel))
    return Moments(inner, tf.reshape(spread, shape))


def _by_member(rows: tf.Tensor, factor: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`(r_k o W)'x` for rows x of every member, `[K, rows, out]`."""
    return tf.matmul(rows, factor[..., tf.newaxis] * kernel)


def _from_source(rows: tf.Tensor, factor: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """As `_by_member`, for rows `[1, rows, in]` that all members share: one matrix product."""
    members, outputs = factor.shape[0], kernel.shape[1]
    # The kernels of all members side by side, `[in, K * out]`.
    wide = tf.transpose(factor)[..., tf.newaxis] * kernel[:, tf.newaxis]
    wide = tf.reshape(wide, [-1, members * outputs])
    by_row = tf.reshape(tf.matmul(rows[0], wide), [-1, members, outputs])
    return tf.transpose(by_row, [1, 0, 2])


def _flat(x: tf.Tensor) -> tf.Tensor:
    """`[K, B, ..., in]` -> `[K, rows, in]`."""
    return tf.reshape(x, [x.shape[0], -1, x.shape[-1]])


def _floating(x: Moments, layer: Any) -> Moments:
    """Moments as floats: Keras casts integers only where a layer computes."""
    if x.mean.dtype.is_floating:
        return x
    dtype = "float64" if layer.compute_dtype == "float64" else "float32"
    return Moments(tf.cast(x.mean, dtype))


def _plus(layer: Any, z: Moments, bias: Pair, axes: Axes) -> Moments:
    mean, variance = bias
    spread = z.variance
    if variance is not None:
        spread = layer.by_member(z.variance_or_zeros(), variance, axes, tf.add)
    return Moments(layer.by_member(z.mean, mean, axes, tf.add), spread)


def _joint(layer: Any, x: Moments, r: Pair, z: Moments, s: Pair) -> Any:
    """Computes the covariance of `s o z`: `C_ij m_i m_j` off the diagonal, where `C = Cov z`."""

    def joint() -> tf.Tensor:
        spread = perturbed(layer, x, r, -1).variance
        if spread is None:
            return tf.linalg.diag(z.variance_or_zeros())
        covariance = covariance_of_dense(layer, spread)
        if layer.perturbation == "multiplicative":
            mean = s[0]
            covariance = layer.by_member(covariance, mean, -1, tf.multiply)
            covariance = layer.by_member(covariance, mean, -2, tf.multiply)
        return tf.linalg.set_diag(covariance, z.variance_or_zeros())

    return joint


@register(layers.EmbeddingRank1)
def _embedding(layer: Any, tokens: Moments) -> Moments:
    """A row of the table times an entry of r and all entries of s."""
    index = tf.cast(tokens.mean, tf.int32)
    index = tf.where(index < 0, index + layer.input_dim, index)
    dtype = tf.float64 if layer.compute_dtype == "float64" else tf.float32
    table = tf.cast(tf.convert_to_tensor(layer.embeddings), dtype)
    y = Moments(tf.gather(table, index))
    r = _of_tokens(layer, layer.factor_moments(layer.r_factor), index, table)
    mean, variance = r
    if layer.perturbation == "multiplicative":
        spread = None if variance is None else tf.square(y.mean) * variance
        y = Moments(y.mean * mean, spread)
    else:
        y = perturbed(layer, y, r, -1)
    return perturbed(layer, y, layer.factor_moments(layer.s_factor), -1)


def _of_tokens(layer: Any, r: Pair, tokens: tf.Tensor, table: tf.Tensor) -> Pair:
    """Moments of every token's entry of r, `[rows, ..., 1]`; if additive, of `r E`, `[K, 1, D]`."""
    mean, variance = r
    if layer.perturbation == "additive":
        of_table = None if variance is None else tf.matmul(tf.cast(variance, table.dtype), table**2)
        return tf.matmul(tf.cast(mean, table.dtype), table), of_table
    by_member = unfold(tokens, layer.ensemble_size)

    def entry(value: tf.Tensor) -> tf.Tensor:
        chosen = fold(tf.gather(value[:, 0], by_member, batch_dims=1))
        return tf.cast(chosen, table.dtype)[..., tf.newaxis]

    return entry(mean), None if variance is None else entry(variance)


@register_for_exact(layers.TileMembers)
def _tile(layer: Any, x: Moments) -> Moments:
    tiled = x.moved(layer.call)
    if scopes.split_members.value or not x.is_exact:
        return tiled
    return dataclasses.replace(tiled, source=x.mean)


@register(layers.SplitMembers)
def _split(layer: Any, x: Moments) -> Moments:
    split = x.moved(layer.call)
    joint = None if x.joint is None else lambda: layer.call(x.covariance())
    return Moments(split.mean, split.variance, None, joint)


@register(layers.EnsembleBatchNormalization)
def _normalization(layer: Any, x: Moments) -> Moments:
    """An affine map by member: `gamma (x - mean) / sqrt(variance + epsilon) + beta`."""
    members = layer.ensemble_size
    axis = layer.axis % x.mean.shape.rank

    def lay(value: Any) -> tf.Tensor:
        value = tf.cast(tf.convert_to_tensor(value), x.mean.dtype)
        shape = [1] * (x.mean.shape.rank + 1)
        shape[0], shape[axis + 1] = value.shape[0], x.mean.shape[axis]
        return tf.reshape(value, shape)

    scale = tf.math.rsqrt(lay(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale *= lay(layer.gamma)
    offset = -lay(layer.moving_mean) * scale
    if layer.center:
        offset += lay(layer.beta)
    rows = x.moved(lambda value: unfold(value, members)).scaled(scale, offset)
    return rows.moved(fold)
