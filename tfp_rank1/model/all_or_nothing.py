"""Updates that are done as a whole or not at all: what is not finite leaves no trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Snapshot", "all_finite", "finite_everywhere", "keep", "sum_over_replicas"]


def sum_over_replicas(sums: Any) -> Any:
    """Sum a structure of tensors over the replicas of a `tf.distribute` strategy.

    Must run unconditionally: a collective inside `tf.cond` fails.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return sums
    flat = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(sums))
    return tf.nest.pack_sequence_as(sums, flat)


def all_finite(values: Any) -> tf.Tensor:
    """Whether every number of a structure of tensors is finite, boolean scalar."""
    tensors = [v.values if isinstance(v, tf.IndexedSlices) else v for v in tf.nest.flatten(values)]
    flags = [tf.reduce_all(tf.math.is_finite(v)) for v in tensors if v is not None]
    return tf.reduce_all(tf.stack(flags))


def finite_everywhere(values: Any) -> tf.Tensor:
    """`all_finite` of all replicas, boolean scalar: they refuse together."""
    broken = tf.cast(~all_finite(values), tf.float32)
    return tf.equal(sum_over_replicas(broken), 0.0)


def keep(
    variable: keras.Variable, value: tf.Tensor, accept: tf.Tensor, old: tf.Tensor | None = None
) -> None:
    """Assign `value` if `accept`; a refused value, which may be NaN, leaves no trace.

    Args:
        variable: what is assigned to.
        value: its new value.
        accept: boolean scalar.
        old: the value if refused. Defaults to None: the present one.
    """
    old = tf.convert_to_tensor(variable) if old is None else old
    variable.assign(tf.where(accept, value, old))


class Snapshot:
    """The values that variables have now, to be put back if the step is refused."""

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        self._before = [(v, tf.identity(v.value)) for v in variables]

    def restore_unless(self, accept: tf.Tensor) -> None:
        """Put them back if `accept`, a boolean scalar, is False."""
        for variable, old in self._before:
            keep(variable, variable.value, accept, old)
