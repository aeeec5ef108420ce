"""One update of all BALI layers of a net from one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from bali_keras.inference.output import LayerRole
from bali_keras.inference.posterior import LayerPosterior, Prior, Step
from bali_keras.inference.statistics import BatchRows, BatchSums
from tfp_rank1.model.all_or_nothing import all_finite

__all__ = ["Health", "LayerUpdate", "factorise", "update"]


class LayerUpdate(NamedTuple):
    """One layer and what a batch says about the layer.

    Attributes:
        state: the layer's posterior.
        prior: the layer's prior and damping.
        sums: the sums of the batch over all replicas.
        role: hidden, or the exact output layer.
        rows: the rows of this replica, if they are cheaper to apply `L^-1` to than their sum.
            Defaults to None.
        prior_steps: see `LayerPosterior.step`. Defaults to None.
    """

    state: LayerPosterior
    prior: Prior
    sums: BatchSums
    role: LayerRole
    rows: BatchRows | None = None
    prior_steps: tf.Tensor | None = None

    def step(self, num_examples: tf.Tensor) -> Step:
        """The step of the layer's mean at rate 1."""
        parts = self.sums, num_examples, self.prior, self.role
        return self.state.step(*parts, self.rows, self.prior_steps)


class Health(NamedTuple):
    """Scalars by which a user sees whether inference is well.

    Attributes:
        step_kl: KL of the posteriors after the step of the means from those before, summed over
            layers, in nats per training example.
        condition: largest condition number of the layers' row precisions, as a lower bound.
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
    collecting: tf.Tensor | None = None,
) -> Health:
    """Update statistics, factorisations and means of all layers, or none of them.

    There is one exception: if a factorisation fails, the averages keep the batch, while covariances
    and means stay as they were.

    Args:
        layers: what the batch says about each layer.
        num_examples: N, divided by the temperature.
        rate: rho.
        collecting_rate: rho of the averages of moments; see `cadence.collecting_rate`.
        moving: boolean scalar; False in the warm-up, which only gathers statistics.
        factorising: boolean scalar; whether to recompute the covariances of all layers.
        trust_region: upper bound of `Health.step_kl`, summed over the layers that are not fresh;
            longer steps are shortened to it. None for no bound.
        finite: boolean scalar; False refuses the batch.
        collecting: boolean scalar; whether the batch has moments of layers that are not fresh.
            Defaults to None: it has.

    Returns:
        The health of the update.
    """
    accept = finite & all_finite([(layer.sums.cross, layer.sums.examples) for layer in layers])
    ready = [layer for layer in layers if layer.role.is_fresh or collecting is None]
    waiting = [layer for layer in layers if not any(layer is other for other in ready)]
    accept &= all_finite([layer.sums.moments for layer in ready] or [tf.zeros(())])
    if waiting:
        accept &= tf.cond(
            collecting,
            lambda: all_finite([layer.sums.moments for layer in waiting]),
            lambda: tf.constant(True),
        )
    for layer in ready:
        layer.state.collect(layer.sums, rate if layer.role.is_fresh else collecting_rate, accept)
    if waiting:
        _collect_if(collecting, waiting, collecting_rate, accept)
    parts = [(layer.state, layer.prior, layer.role) for layer in layers]
    fresh = [part for part, layer in zip(parts, layers, strict=True) if layer.role.is_fresh]
    accept &= tf.cond(
        accept & factorising,
        lambda: factorise(parts, num_examples),
        # Fresh layers factorise in every step that moves the means. A step that factorises all
        # layers moves the means too.
        lambda: tf.cond(
            accept & moving, lambda: factorise(fresh, num_examples), lambda: tf.constant(True)
        ),
    )
    shares = [layer.state.targets.share(layer.sums.examples, rate) for layer in layers]
    steps = [layer.step(num_examples) for layer in layers]
    scale = _scale(layers, steps, shares, num_examples, trust_region)
    accept &= all_finite(steps)
    step_kl = tf.zeros(())
    for layer, step, share in zip(layers, steps, shares, strict=True):
        length = share if layer.role.is_fresh else share * scale
        layer.state.move(step, length, accept & moving)
        # In the warm-up too: the share of the first batch is 1, and a step of that length, by the
        # statistics of a few examples, would destroy the initial weights of the net.
        layer.state.targets.update(layer.sums.examples, rate, accept)
        step_kl += tf.square(length) * step.kl / num_examples
    condition = tf.reduce_max(tf.stack([layer.state.rows.condition() for layer in layers]))
    return Health(tf.where(accept & moving, step_kl, 0.0), condition, accept)


def _collect_if(
    collecting: tf.Tensor, layers: list[LayerUpdate], rate: tf.Tensor, accept: tf.Tensor
) -> None:
    """Take the moments of a batch that has some: the averages are as large as covariances."""

    def collect() -> tf.Tensor:
        for layer in layers:
            layer.state.collect(layer.sums, rate, accept)
        return tf.constant(True)

    tf.cond(collecting, collect, lambda: tf.constant(True))


def factorise(
    layers: Iterable[tuple[LayerPosterior, Prior, LayerRole]],
    num_examples: tf.Tensor,
) -> tf.Tensor:
    """Compute new covariances for all layers or, if one factorisation fails, for none.

    Args:
        layers: posterior, prior and role of each layer.
        num_examples: N, divided by the temperature.

    Returns:
        Whether all factorisations succeeded, boolean scalar.
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
    """The multiplier that shortens steps to the trust region: `min(1, sqrt(bound / KL))`, scalar.

    The KL of a step grows with the square of the step's length.
    """
    bounded = [
        tf.square(share) * step.kl / num_examples
        for layer, step, share in zip(layers, steps, shares, strict=True)
        if not layer.role.is_fresh
    ]
    if trust_region is None or not bounded:
        return tf.ones(())
    kl = tf.maximum(tf.add_n(bounded), 1e-30)
    return tf.minimum(1.0, tf.sqrt(trust_region / kl))
