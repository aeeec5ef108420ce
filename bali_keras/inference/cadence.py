"""How often a fit factorises covariances (every `interval` steps) and collects moments (`stride`).

A step of the means is cheap, a factorisation is not, and covariances change slowly. The functions
here are pure: they depend on the step, the rate and the sizes only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

__all__ = [
    "Cost",
    "collecting_rate",
    "interval",
    "is_collecting",
    "is_factorising",
    "period",
    "prior_steps",
    "stride",
]

# The largest age of a covariance, in units of the averages' memory of `1 / rho` steps. At an age
# beyond 1 the first epochs of convolutional nets are unstable.
MEMORY_SHARE = 0.35


class Cost(NamedTuple):
    """Number of multiplications that one layer takes, roughly.

    Attributes:
        factorising: half of the multiplications of one factorisation of the layer's covariances.
        by_row: multiplications of the rest of a step, per row of the batch.
        by_step: multiplications of the rest of a step that do not depend on the batch.
    """

    factorising: int
    by_row: int
    by_step: int


def interval(rate: tf.Tensor, every: int) -> tf.Tensor:
    """Steps between factorisations at the present rate, int64 scalar.

    The interval is at most a third of the averages' memory of `1 / rho` steps. The net has changed
    too much since an older covariance, and steps by such a covariance overshoot.

    Args:
        rate: rho of the step.
        every: upper bound of the interval; see `period`.
    """
    # Powers of two: every multiple of a longer interval is a multiple of a shorter one, so no
    # factorisation is missed when the interval grows.
    powers = tf.constant([2**i for i in range(every.bit_length())], tf.int64)
    age = tf.cast(tf.floor(MEMORY_SHARE / rate), tf.int64)
    return tf.reduce_max(tf.where(powers <= age, powers, 1))


def stride(interval: tf.Tensor) -> tf.Tensor:
    """Steps between collections of moments: two collections per factorisation."""
    return tf.maximum(interval // 2, 1)


def is_collecting(step: tf.Tensor, warmup_steps: Any, interval: tf.Tensor) -> tf.Tensor:
    """Whether a step collects moments: every `stride` steps, and at first in every step.

    At first means the warm-up and one interval after it, when the net changes fastest. The
    arguments are those of `is_factorising`.
    """
    since = step - warmup_steps - 1
    return (since < interval) | tf.equal(since % stride(interval), 0)


def is_factorising(step: tf.Tensor, warmup_steps: Any, interval: tf.Tensor) -> tf.Tensor:
    """Whether a step recomputes the covariances.

    Every `interval` steps, and at steps 0, 1, 2, 4, 8, ... after the warm-up, when the statistics
    change fastest.

    Args:
        step: number of the step, from 1.
        warmup_steps: steps that only gather statistics.
        interval: at least 1.
    """
    since = step - warmup_steps - 1
    # `since & (since - 1)` is 0 for 0 and for the powers of two.
    early = tf.equal(tf.bitwise.bitwise_and(since, since - 1), 0) & (since < interval)
    return (since >= 0) & (tf.equal(since % interval, 0) | early)


def period(costs: list[Cost], batch_size: int) -> int:
    """The upper bound of `interval` at which factorisations cost a fifteenth of all other work.

    The bound is at most 32: late in a fit, when the averages' memory would allow more, there is
    little left to save.

    Args:
        costs: the cost of every layer.
        batch_size: B.
    """
    factorising = sum(cost.factorising for cost in costs)
    # Factorisations of small layers take no noticeable time.
    if factorising < 1_000_000:
        return 1
    step = batch_size * sum(cost.by_row for cost in costs) + sum(cost.by_step for cost in costs)
    # 4, because `factorising` counts half of the multiplications, and a factorisation runs at half
    # the speed of a matrix product.
    return max(1, min(32, round(15 * 4 * factorising / step)))


def collecting_rate(
    step: tf.Tensor, rate: tf.Tensor, interval: tf.Tensor, warmup_steps: Any
) -> tf.Tensor:
    """The rate of the moments' averages: `1 - (1 - rho)^m` where every m-th step collects.

    With this rate the averages' memory, counted in steps, does not depend on m.
    """
    strided = 1.0 - tf.pow(1.0 - rate, tf.cast(stride(interval), tf.float32))
    # Up to this step `is_collecting` takes every step.
    is_first = step <= warmup_steps + interval
    return tf.where(is_first | tf.equal(stride(interval), 1), rate, strided)


def prior_steps(
    step: tf.Tensor, rate: tf.Tensor, interval: tf.Tensor, warmup_steps: Any
) -> tf.Tensor:
    """Of how many steps the pull of the prior is part of this one: `(1 - (1 - rho)^m) / rho`, or 0.

    The pull costs a product of two large matrices, and changes slowly: it is taken with the steps
    that collect moments, every m-th.
    """
    taken = collecting_rate(step, rate, interval, warmup_steps) / rate
    return tf.where(is_collecting(step, warmup_steps, interval), taken, tf.zeros_like(taken))
