"""Updates that happen as a whole or not at all: a refused step changes no variable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Snapshot", "all_finite", "finite_everywhere", "keep", "sum_over_replicas"]


def sum_over_replicas(sums: Any) -> Any:
    """Sum a structure of tensors over the replicas of a `tf.distribute` strategy.

    Call it unconditionally: a collective inside `tf.cond` fails.

    Args:
        sums: a structure of tensors of this replica.

    Returns:
        The same structure; `sums` itself where there are no replicas.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return sums
    flat = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(sums))
    return tf.nest.pack_sequence_as(sums, flat)


def all_finite(values: Any) -> tf.Tensor:
    """Whether every number in a structure of tensors is finite, boolean scalar."""
    # The gradient of an embedding table comes as IndexedSlices, that of an unused weight as None.
    tensors = [v.values if isinstance(v, tf.IndexedSlices) else v for v in tf.nest.flatten(values)]
    flags = [tf.reduce_all(tf.math.is_finite(v)) for v in tensors if v is not None]
    return tf.reduce_all(tf.stack(flags))


def finite_everywhere(values: Any) -> tf.Tensor:
    """Whether `all_finite` holds on every replica, boolean scalar."""
    # A replica that refused alone would leave its copies of the weights unlike the others'.
    broken = tf.cast(~all_finite(values), tf.float32)
    return tf.equal(sum_over_replicas(broken), 0.0)


def keep(
    variable: keras.Variable, value: tf.Tensor, accept: tf.Tensor, old: tf.Tensor | None = None
) -> None:
    """Assign `value` if `accept`, else `old`; a refused `value` may be NaN.

    Args:
        variable: the variable to assign to.
        value: the new value.
        accept: boolean scalar.
        old: the value after a refusal. Defaults to None: the present value.
    """
    # Not `tf.cond`, in which replicas cannot assign what they aggregate, and not a product with
    # `accept`: 0 * NaN is NaN.
    old = tf.convert_to_tensor(variable) if old is None else old
    variable.assign(tf.where(accept, value, old))


class Snapshot:
    """The values that variables have now, to be put back if the step is refused."""

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        # `v.value` is the TensorFlow variable, which changes; `tf.identity` reads it now.
        self._before = [(v, tf.identity(v.value)) for v in variables]

    def restore(self) -> None:
        """Put the values back."""
        for variable, old in self._before:
            variable.assign(old)

    def restore_unless(self, accept: tf.Tensor) -> None:
        """Put the values back if `accept`, a boolean scalar, is False."""
        for variable, old in self._before:
            keep(variable, variable.value, accept, old)
