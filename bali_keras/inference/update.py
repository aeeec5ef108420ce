"""One update of all layers of a net from one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from bali_keras.inference.output import ExactOutput, HiddenLayer
from bali_keras.inference.posterior import LayerPosterior, Prior, Step
from bali_keras.inference.statistics import BatchSums
from tfp_rank1.model.all_or_nothing import all_finite

__all__ = ["Health", "LayerUpdate", "factorise", "update"]


class LayerUpdate(NamedTuple):
    """One layer and what the batch says about it.

    Attributes:
        state: the layer's posterior.
        prior: its prior and damping.
        sums: of the batch, over all replicas.
        role: hidden, or the exact output layer.
    """

    state: LayerPosterior
    prior: Prior
    sums: BatchSums
    role: HiddenLayer | ExactOutput


class Health(NamedTuple):
    """What tells whether inference is well, scalars.

    Attributes:
        step_kl: KL between the posteriors after and before the step of the means, summed over
            layers, in nats per training example.
        condition: largest condition number (a lower bound) of the layers' row precisions.
        accepted: False if the batch was refused.
    """

    step_kl: tf.Tensor
    condition: tf.Tensor
    accepted: tf.Tensor


def update(
    layers: list[LayerUpdate],
    num_examples: tf.Tensor,
    rate: tf.Tensor,
    collecting_rate: tf.Tensor,
    moving: tf.Tensor,
    factorising: tf.Tensor,
    trust_region: float | None,
    finite: tf.Tensor,
) -> Health:
    """Update statistics, factorisations and means of all layers; all of it or none.

    One exception: if a factorisation fails, the averages keep the batch, while covariances and
    means stay as they were.

    Args:
        layers: what the batch says about each layer.
        num_examples: N, divided by the temperature.
        rate: rho.
        collecting_rate: rho of the averages of moments, larger if few steps collect them.
        moving: boolean scalar; False only gathers statistics (warm-up).
        factorising: boolean scalar; whether to recompute covariances.
        trust_region: bound of `Health.step_kl` over the layers that are not fresh; their steps
            are shortened to it. None: no bound.
        finite: boolean scalar; False refuses the batch.
    """
    accept = finite & all_finite([layer.sums for layer in layers])
    for layer in layers:
        layer.state.collect(layer.sums, rate if layer.role.is_fresh else collecting_rate, accept)
    parts = [(layer.state, layer.prior, layer.role) for layer in layers]
    fresh = [part for part, layer in zip(parts, layers, strict=True) if layer.role.is_fresh]
    accept &= tf.cond(
        accept & factorising,
        lambda: factorise(parts, num_examples),
        # Fresh layers factorise in every step that moves, and steps that factorise move.
        lambda: tf.cond(
            accept & moving, lambda: factorise(fresh, num_examples), lambda: tf.constant(True)
        ),
    )
    shares = [layer.state.targets.share(layer.sums.examples, rate) for layer in layers]
    steps = [
        layer.state.step(layer.sums, num_examples, layer.prior, layer.role) for layer in layers
    ]
    scale = _scale(layers, steps, shares, num_examples, trust_region)
    accept &= all_finite(steps)
    step_kl = tf.zeros(())
    for layer, step, share in zip(layers, steps, shares, strict=True):
        length = share if layer.role.is_fresh else share * scale
        layer.state.move(step, length, accept & moving)
        layer.state.targets.update(layer.sums.examples, rate, accept)
        step_kl += tf.square(length) * step.kl / num_examples
    condition = tf.reduce_max(tf.stack([layer.state.rows.condition() for layer in layers]))
    return Health(tf.where(accept & moving, step_kl, 0.0), condition, accept)


def factorise(
    layers: Iterable[tuple[LayerPosterior, Prior, HiddenLayer | ExactOutput]],
    num_examples: tf.Tensor,
) -> tf.Tensor:
    """New covariances for all layers or, if one factorisation fails, for none.

    Args:
        layers: posterior, prior and role of each.
        num_examples: N, divided by the temperature.

    Returns:
        Boolean scalar: whether all succeeded.
    """
    layers = list(layers)
    found = [state.factorised(num_examples, prior, role) for state, prior, role in layers]
    accept = all_finite(found) if found else tf.constant(True)
    for (state, prior, _), factors in zip(layers, found, strict=True):
        state.take(factors, prior, accept)
    return accept


def _scale(
    layers: list[LayerUpdate],
    steps: list[Step],
    shares: list[tf.Tensor],
    num_examples: tf.Tensor,
    trust_region: float | None,
) -> tf.Tensor:
    """`min(1, sqrt(bound / KL))`: the KL of a step grows with the square of its length."""
    bounded = [
        tf.square(share) * step.kl / num_examples
        for layer, step, share in zip(layers, steps, shares, strict=True)
        if not layer.role.is_fresh
    ]
    if trust_region is None or not bounded:
        return tf.ones(())
    kl = tf.maximum(tf.add_n(bounded), 1e-30)
    return tf.minimum(1.0, tf.sqrt(trust_region / kl))
