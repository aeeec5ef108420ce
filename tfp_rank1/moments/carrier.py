"""Moments: what is known of an activation without samples, its mean and its variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

__all__ = ["Moments"]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of every entry of an activation, over draws of the weights.

    A rule takes moments for the inputs of a layer and returns moments for its outputs. Entries
    count as independent of each other, but for what `joint` and `shared` know of the last axis.

    Attributes:
        mean: `[B, ...]`, float32 or float64.
        variance: `[B, ...]`; None where the activation is known exactly.
        mask: boolean `[B, ...]`, as Keras passes it from layer to layer; None without one.
        joint: computes `[B, ..., D, D]`, the covariance of the entries of the last axis; None where
            nothing is known of it. A function, because only the outputs of a net are asked for it.
        shared: computes `K_n' (Cov - diag Cov) K_n`, `[B, D, D]`, for transposed kernels of few
            columns, `[B, D, k]` or `[1, D, k]`: what correlations between the k entries of the last
            axis add to the covariance of `K_n'x`. None where entries count as independent.
        source: `[B / K, ...]`, the rows that all K members got a copy of; None where the rows of
            members differ.
    """

    mean: tf.Tensor
    variance: tf.Tensor | None = None
    mask: tf.Tensor | None = None
    joint: Callable[[], tf.Tensor] | None = None
    shared: Callable[[tf.Tensor], tf.Tensor] | None = None
    source: tf.Tensor | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the activation has no variance."""
        return self.variance is None

    def variance_or_zeros(self) -> tf.Tensor:
        """The variance as a tensor, in the shape of the mean."""
        return tf.zeros_like(self.mean) if self.variance is None else self.variance

    def covariance(self) -> tf.Tensor:
        """Covariance of entries of the last axis, `[B, ..., D, D]`; diagonal without `joint`."""
        if self.joint is not None:
            return self.joint()
        return tf.linalg.diag(self.variance_or_zeros())

    def moved(self, move: Callable[[tf.Tensor], tf.Tensor]) -> Moments:
        """The moments of entries that a function moves, repeats or leaves out.

        Args:
            move: such as a reshape; it must not change or add numbers.
        """
        variance = None if self.variance is None else move(self.variance)
        return Moments(move(self.mean), variance)

    def scaled(self, scale: tf.Tensor, offset: tf.Tensor | float = 0.0) -> Moments:
        """The moments of `scale x + offset`."""
        variance = None if self.variance is None else scale * scale * self.variance
        found = Moments(scale * self.mean + offset, variance)
        shared = self.shared
        if shared is None:
            return found
        rows = scale * tf.ones_like(self.mean)  # [B, k]
        return dataclasses.replace(found, shared=lambda seen: shared(seen * rows[:, tf.newaxis]))
