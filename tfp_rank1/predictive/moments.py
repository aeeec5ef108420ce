"""Answers of one pass with means and variances, as pseudo-samples that every answer takes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_rank1 import scopes
from tfp_rank1.moments import Moments, output_moments, pseudo_samples
from tfp_rank1.outputs import join_passes
from tfp_rank1.predictive.sampleable import Sampleable

__all__ = ["DEFAULT_NODES", "moment_outputs"]

DEFAULT_NODES = 64


def moment_outputs(
    model: Sampleable, x: Any, num_nodes: int = DEFAULT_NODES, integrates: bool = True
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Raw outputs at normal nodes, the same on every call, from one pass of the model.

    Args:
        model: a Functional model whose layers have rules.
        x: one batch of inputs.
        num_nodes: nodes of all members together; every member has an even number of them.
        integrates: whether a likelihood that integrates normal outputs in closed form does so; the
            result then is one mean and one variance per member.

    Returns:
        Raw outputs `[S, B, ..., D]` and None; or means and variances of the raw outputs,
        `[K, B, ..., D]`.

    Raises:
        ValueError: for a model without a graph, or a layer without a rule.
    """
    calibration = model.calibration
    with scopes.posterior_scale.set(calibration.posterior_scale):
        found = _by_member(output_moments(model, x))
    members = int(found.mean.shape[1])
    if found.is_exact:
        nodes = found.mean[tf.newaxis]
    elif integrates and model.likelihood.has_closed_form_marginal:
        values = tf.stack([found.mean, found.variance_or_zeros()])
        swapped = tf.transpose(values, [0, 2, 1, *range(3, values.shape.rank)])
        mean, variance = tf.unstack(tf.cast(swapped, tf.float32))
        return mean, variance
    else:
        nodes = pseudo_samples(found, 2 * max(1, round(num_nodes / members / 2)))
    nodes = tf.cast(nodes, tf.float32)
    samples = join_passes(nodes, nodes.shape[0], nodes.shape[3:].as_list())
    if calibration.temperature != 1.0:
        samples = model.likelihood.tempered(samples, calibration.temperature)
    return samples, None


def _by_member(found: Moments) -> Moments:
    """Moments of raw outputs with an axis of members, `[B, K, ..., D]`."""
    if found.mean.shape.rank > 2:
        return found
    joint = None if found.joint is None else lambda: found.covariance()[:, tf.newaxis]
    new = found.moved(lambda value: value[:, tf.newaxis])
    return Moments(new.mean, new.variance, None, joint)
