"""Rows of K members folded into one batch axis, member-major: row i belongs to member i // B."""

from __future__ import annotations

import tensorflow as tf
from keras import ops

from tfp_rank1 import scopes
from tfp_rank1.checks import whole

__all__ = [
    "check_rows",
    "check_split",
    "fold",
    "resolve_members",
    "split_message",
    "unfold",
]


def resolve_members(ensemble_size: int | None, default: int | None, layer_name: str) -> int:
    """K of a layer: the number given, else that of `tfp_rank1.members`, else `default`.

    Raises:
        ValueError: without any of the three, or for a number that is not whole and at least 1.
    """
    found = scopes.ensemble_size.value if ensemble_size is None else ensemble_size
    found = default if found is None else found
    if found is None:
        raise ValueError(
            f"{layer_name} needs the number of members: {layer_name}(4), or build the net inside "
            "`with tfp_rank1.members(4):`. Received: ensemble_size=None"
        )
    return whole("ensemble_size", found)


def check_rows(x: tf.Tensor, ensemble_size: int, layer_name: str) -> tf.Tensor:
    """The tensor x, `[K*B, ...]`, refused unless K divides its number of rows.

    Args:
        x: rows of all members, member-major.
        ensemble_size: K.
        layer_name: for the message.

    Returns:
        The tensor x; in a graph, behind the check.

    Raises:
        ValueError: if the number of rows is known.
        tf.errors.InvalidArgumentError: with the same text, if only the running graph knows it.
    """
    return _check_divisible(
        x,
        ensemble_size,
        f"Layer '{layer_name}' has ensemble_size={ensemble_size}, so its batch must hold "
        f"{ensemble_size} times as many rows as there are examples. Put "
        f"TileMembers({ensemble_size}) before the first rank-1 layer and "
        f"SplitMembers({ensemble_size}) after the last.",
    )


def check_split(x: tf.Tensor, ensemble_size: int) -> tf.Tensor:
    """The batch x, `[B, ...]`, that K members share, refused unless K divides B.

    Raises:
        ValueError, tf.errors.InvalidArgumentError: as for `check_rows`.
    """
    return _check_divisible(x, ensemble_size, split_message(ensemble_size))


def split_message(ensemble_size: int) -> str:
    """The error message for a batch that K members cannot share, with the ways out."""
    return (
        f"With member_batches='split' every batch must be a multiple of {ensemble_size} examples, "
        "also the last one: choose another batch size, or leave the rest out "
        "(dataset.batch(..., drop_remainder=True))."
    )


def _check_divisible(x: tf.Tensor, ensemble_size: int, message: str) -> tf.Tensor:
    rows = x.shape[0]
    if rows is not None and rows % ensemble_size:
        raise ValueError(f"{message} Received: a batch of {rows} rows, input shape {x.shape}")
    # Symbolic tensors of Keras hold no number to check: the call on data checks it.
    if rows is None and ensemble_size > 1 and tf.is_tensor(x):
        remainder = tf.shape(x)[0] % ensemble_size
        check = tf.debugging.assert_equal(remainder, 0, message=f"{message} Received: other")
        # The check must run first: a reshape further on would fail with a message of its own.
        with tf.control_dependencies([check]):
            x = tf.identity(x)
    return x


def unfold(x: tf.Tensor, ensemble_size: int) -> tf.Tensor:
    """`[K*B, ...]` -> `[K, B, ...]`."""
    rows = x.shape[0]
    per_member = -1 if rows is None else rows // ensemble_size
    return ops.reshape(x, (ensemble_size, per_member, *ops.shape(x)[1:]))


def fold(x: tf.Tensor) -> tf.Tensor:
    """`[K, B, ...]` -> `[K*B, ...]`."""
    members, rows = x.shape[0], x.shape[1]
    return ops.reshape(x, (-1 if rows is None else members * rows, *ops.shape(x)[2:]))
