"""How often covariances are computed: every `interval` steps, moments every `stride`.

Steps are cheap, factorisations are not, and the covariances change slowly. Pure functions of the
step, the rate and the sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

__all__ = [
    "Cost",
    "collecting_rate",
    "interval",
    "is_collecting",
    "is_factorising",
    "period",
    "stride",
]

# Of the averages' memory, the most that covariances may be old. Beyond all of it the first epochs
# of convolutional nets are unstable.
MEMORY_SHARE = 0.35


class Cost(NamedTuple):
    """Multiplications of one layer, about.

    Attributes:
        factorising: of one factorisation of its covariances, in units of 2 multiplications.
        by_row: of the rest of a step, for every row of the batch.
        by_step: of the rest of a step, whatever the batch.
    """

    factorising: int
    by_row: int
    by_step: int


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


def period(costs: list[Cost], batch_size: int) -> int:
    """Most steps between factorisations: so that they cost a fifteenth of the rest of a step.

    A factorisation runs at half the speed of a matrix product. Below a million multiplications it
    is free. At most 20: statistics at the start change faster than that.

    Args:
        costs: of every layer.
        batch_size: B.
    """
    factorising = sum(cost.factorising for cost in costs)
    if factorising < 1_000_000:
        return 1
    step = batch_size * sum(cost.by_row for cost in costs) + sum(cost.by_step for cost in costs)
    return max(1, min(20, round(15 * 4 * factorising / step)))


def collecting_rate(
    step: tf.Tensor, rate: tf.Tensor, interval: tf.Tensor, warmup_steps: int
) -> tf.Tensor:
    """`1 - (1 - rho)^m` where only each m-th step collects: the memory in steps is the same."""
    strided = 1.0 - tf.pow(1.0 - rate, tf.cast(stride(interval), tf.float32))
    is_first = step <= warmup_steps + interval
    return tf.where(is_first | tf.equal(stride(interval), 1), rate, strided)
