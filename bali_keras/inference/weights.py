"""The weights of one batch: by example, by row of the sums, and by target."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.target_weights import split_weights, weights_by_target

__all__ = ["BatchWeights", "of_all_outputs", "of_examples", "of_targets", "scaled"]


class BatchWeights(NamedTuple):
    """Weights of one batch on one replica; None stands for 1.

    Attributes:
        counts: c_n, by which example n counts among N, `[B]`: its sample weight, or the largest of
            the sample weights of its targets.
        rows: r_n, by which the inputs of example n count, `[B]`: c_n, but 0 without an observed
            target. With positions (pixels, time steps) the same for every position, `[B, ...]`.
        targets: w_nt, `[B, ..., T]`: the sample weight of a target, 0 for a missing one. The
            covariance of a layer has one row covariance for all targets, and counts an example by
            the largest w_nt; the means weigh every target by itself.
    """

    counts: tf.Tensor | None
    rows: tf.Tensor | None
    targets: tf.Tensor | None


def of_examples(sample_weight: Any) -> BatchWeights:
    """Weights for a loss that takes an example as a whole.

    Raises:
        ValueError: for weights by target.
    """
    counts, _ = split_weights(sample_weight, num_targets=1)
    return BatchWeights(counts, counts, None)


def scaled(weights: BatchWeights, factor: float, shape: Any) -> BatchWeights:
    """Weights of an output whose loss counts `factor` times: as if its examples were so many.

    Args:
        weights: of the output. What an example counts among N stays as it is.
        factor: above 0.
        shape: of the output's targets, `[B, ..., T]`.
    """
    if factor == 1.0:
        return weights
    targets = tf.ones(shape) if weights.targets is None else weights.targets
    if weights.targets is None and weights.rows is not None:
        ones = [1] * (targets.shape.rank - 1)
        targets *= tf.reshape(weights.rows, [-1, *ones])
    rows = tf.reduce_max(targets, axis=-1) if weights.rows is None else weights.rows
    return BatchWeights(weights.counts, factor * rows, factor * targets)


def of_all_outputs(weights: list[BatchWeights]) -> BatchWeights:
    """Weights of what several outputs share: an example counts by the largest of its weights.

    Args:
        weights: of every output.
    """
    if len(weights) == 1:
        return weights[0]

    def largest(values: list[tf.Tensor | None]) -> tf.Tensor | None:
        given = [_by_example(v) for v in values if v is not None]
        if not given:
            return None
        if len(given) < len(values):  # None stands for 1
            given.append(tf.ones_like(given[0]))
        return functools.reduce(tf.maximum, given)

    counts = largest([v.counts for v in weights])
    return BatchWeights(counts, largest([v.rows for v in weights]), None)


def _by_example(weights: tf.Tensor) -> tf.Tensor:
    """The largest weight of every example, `[B]`."""
    return tf.reduce_max(weights, axis=list(range(1, int(weights.shape.rank))))


def of_targets(
    sample_weight: Any,
    y: Any,
    likelihood: Likelihood,
    output_shape: tf.TensorShape,
    mask: tf.Tensor | None = None,
) -> BatchWeights:
    """Weights for a likelihood, whose targets may be missing or weighted each by itself.

    Args:
        sample_weight: see `tfp_rank1.target_weights`; None for 1.
        y: targets `[B, ...]` or `[B, ..., T]`.
        likelihood: of the model.
        output_shape: of the raw outputs, `[B, ..., D]`.
        mask: which positions count, boolean `[B, ...]`. Defaults to None: all do.
    """
    positions, num_outputs = output_shape[1:-1].as_list(), int(output_shape[-1])
    num_targets = likelihood.num_targets(num_outputs)
    examples, targets = split_weights(sample_weight, num_targets, positions)
    if targets is None and mask is None and not likelihood.has_missing_targets:
        return BatchWeights(examples, examples, None)
    observed = likelihood.observed(likelihood.prepare_targets(y, num_outputs, positions))
    if mask is not None:
        observed &= mask[..., tf.newaxis]
    by_target = weights_by_target(sample_weight, observed)
    axes = list(range(1, int(by_target.shape.rank)))
    counts = examples if targets is None else tf.reduce_max(targets, axis=axes)
    return BatchWeights(counts, tf.reduce_max(by_target, axis=-1), by_target)
