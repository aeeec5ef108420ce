"""One update of all layers of a net from one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from bali_keras.posterior import LayerPosterior, Prior, Step
from bali_keras.statistics import BatchSums
from tfp_rank1._refusal import all_finite

# Of the averages' memory, the most that covariances may be old. Beyond all of it the first epochs
# of convolutional nets are unstable.
MEMORY_SHARE = 0.35


class LayerUpdate(NamedTuple):
    """One layer and what the batch says about it.

    Attributes:
        state: the layer's posterior.
        prior: its prior and damping.
        sums: of the batch, over all replicas.
        noise_variance: `[k]` for the output layer of a Normal likelihood, whose targets are the
            labels; None for all others.
        is_fresh: whether the layer collects and factorises in every step. Its steps are then as
            long as they should be at any rate, and have no trust region: what makes one linear
            layer conjugate regression.
    """

    state: LayerPosterior
    prior: Prior
    sums: BatchSums
    noise_variance: tf.Tensor | None
    is_fresh: bool = False


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

    (But for averages whose factorisation fails: they stay, and covariances and means with them.)

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
        layer.state.collect(layer.sums, rate if layer.is_fresh else collecting_rate, accept)
    parts = [(layer.state, layer.prior, layer.noise_variance) for layer in layers]
    fresh = [part for part, layer in zip(parts, layers, strict=True) if layer.is_fresh]
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
        layer.state.step(
            layer.sums, num_examples, layer.prior, holds_shifts=layer.noise_variance is not None
        )
        for layer in layers
    ]
    scale = _scale(layers, steps, shares, num_examples, trust_region)
    accept &= all_finite(steps)
    step_kl = tf.zeros(())
    for layer, step, share in zip(layers, steps, shares, strict=True):
        length = share if layer.is_fresh else share * scale
        layer.state.move(step, length, accept & moving)
        layer.state.targets.update(layer.sums.examples, rate, accept)
        step_kl += tf.square(length) * step.kl / num_examples
    condition = tf.reduce_max(tf.stack([layer.state.condition() for layer in layers]))
    return Health(tf.where(accept & moving, step_kl, 0.0), condition, accept)


def factorise(
    layers: Iterable[tuple[LayerPosterior, Prior, Any]], num_examples: tf.Tensor
) -> tf.Tensor:
    """New covariances for all layers or, if one factorisation fails, for none.

    Args:
        layers: posterior, prior, and noise variance or None (see `LayerPosterior.factorised`).
        num_examples: N, divided by the temperature.

    Returns:
        Boolean scalar: whether all succeeded.
    """
    layers = list(layers)
    found = [state.factorised(num_examples, prior, noise) for state, prior, noise in layers]
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
        if not layer.is_fresh
    ]
    if trust_region is None or not bounded:
        return tf.ones(())
    kl = tf.maximum(tf.add_n(bounded), 1e-30)
    return tf.minimum(1.0, tf.sqrt(trust_region / kl))


def interval(rate: tf.Tensor, every: int) -> tf.Tensor:
    """Steps between factorisations at the present rate, int64 scalar, at most `every`.

    At most a third of the averages' memory, `1 / rho` steps: a covariance older than that belongs
    to another net, and steps by it overshoot. Powers of two, so that the multiples of a longer
    interval are multiples of a shorter one, and none is missed when it grows.
    """
    powers = tf.constant([2**i for i in range(every.bit_length())], tf.int64)
    age = tf.cast(tf.floor(MEMORY_SHARE / rate), tf.int64)
    return tf.reduce_max(tf.where(powers <= age, powers, 1))


def stride(interval: tf.Tensor) -> tf.Tensor:
    """Steps between collections of moments: two collections per factorisation."""
    return tf.maximum(interval // 2, 1)


def is_collecting(step: tf.Tensor, warmup_steps: int, interval: tf.Tensor) -> tf.Tensor:
    """Whether a step collects moments: every `stride`, and all while the net changes fastest."""
    since = step - warmup_steps - 1
    return (since < interval) | tf.equal(since % stride(interval), 0)


def is_factorising(step: tf.Tensor, warmup_steps: int, interval: tf.Tensor) -> tf.Tensor:
    """Whether a step recomputes the covariances.

    Every `interval` steps, and at steps 0, 1, 2, 4, 8, ... after the warm-up, when the statistics
    change fastest.

    Args:
        step: number of the step, from 1.
        warmup_steps: steps that only gather statistics.
        interval: at least 1.
    """
    since = step - warmup_steps - 1
    early = tf.equal(tf.bitwise.bitwise_and(since, since - 1), 0) & (since < interval)
    return (since >= 0) & (tf.equal(since % interval, 0) | early)


def period(sizes: list[tuple[int, int]], batch_size: int) -> int:
    """Most steps between factorisations: so that they cost a fifteenth of the rest of a step.

    Factorising a layer takes about `2 (d^3 + k^3)` multiplications, at half the speed of a matrix
    product, the rest of a step about `B (2 d^2 + 4 d k + 2 k^2) + d^2 k`. Below a million it is
    free. At most 20: statistics at the start change faster than that.

    Args:
        sizes: (d, k) of every layer.
        batch_size: B.
    """
    factorising = sum(d**3 + k**3 for d, k in sizes)
    if factorising < 1_000_000:
        return 1
    rows = sum(2 * d * d + 4 * d * k + 2 * k * k for d, k in sizes)
    step = batch_size * rows + sum(d * d * k for d, k in sizes)
    return max(1, min(20, round(15 * 4 * factorising / step)))
