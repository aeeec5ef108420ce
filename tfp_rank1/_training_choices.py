"""Choices of `compile` and `fit` that exclude each other, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfp_rank1._counting import count_examples
from tfp_rank1._registry import positive
from tfp_rank1.layers._members import split_message
from tfp_rank1.layers.members import TileMembers
from tfp_rank1.losses import MixtureNLL

_BATCH_SIZE = 32  # of Keras's `fit`, unless another is given


def stateful_layers(layers: Iterable[Any]) -> list[str]:
    """Names of the layers that go on in one batch where the batch before ended."""
    return [layer.name for layer in layers if getattr(layer, "stateful", False)]


def check_multiplier(multiplier: Any, optimizer: Any) -> float:
    """The factors' learning-rate multiplier as a number.

    Raises:
        ValueError: unless it is finite and above 0, or where the optimizer averages weights: it
            does so before the factors' steps are multiplied.
    """
    value = positive("factor_learning_rate_multiplier", multiplier)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if value != 1.0 and getattr(inner, "use_ema", False):
        raise ValueError(
            "The moving average of an optimizer is taken before the factors' steps are "
            "multiplied: use factor_learning_rate_multiplier=1, or an optimizer with "
            f"use_ema=False. Received: factor_learning_rate_multiplier={multiplier}"
        )
    return value


def check_members_share(
    member_batches: str, num_train_samples: int, loss: Any, layers: Iterable[Any]
) -> None:
    """Refuse ways to spread a batch over members and samples that do not go together.

    Raises:
        ValueError: naming the arguments.
    """
    if member_batches not in ("tiled", "split"):
        raise ValueError(
            "Argument `member_batches` must be 'tiled' or 'split'. "
            f"Received: member_batches={member_batches!r}"
        )
    if member_batches == "split" and num_train_samples > 1:
        raise ValueError(
            "Members that split a batch take one sample each: use num_train_samples=1, or "
            f"member_batches='tiled'. Received: num_train_samples={num_train_samples}"
        )
    if member_batches == "split" and isinstance(loss, MixtureNLL):
        raise ValueError(
            "Members that split a batch see one example each, so the mixture would be one "
            "member: use loss='average_nll', or member_batches='tiled'. "
            f"Received: loss={loss.name!r}"
        )
    stateful = stateful_layers(layers)
    if stateful and (member_batches == "split" or num_train_samples > 1):
        raise ValueError(
            "A stateful layer keeps a state for every row of a tiled batch: use stateful=False, "
            "or member_batches='tiled' and num_train_samples=1. "
            f"Received: stateful layers {stateful}"
        )


def check_split_batches(arguments: Mapping[str, Any], layers: Iterable[Any]) -> None:
    """Refuse arrays that `fit` would cut into batches which the members cannot share.

    A compiled step would refuse them too, but only at the last batch, and XLA drops the message.

    Args:
        arguments: of `fit`.
        layers: of the model.

    Raises:
        ValueError: unless the members' number divides every batch.
    """
    x = arguments.get("x")
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if isinstance(x, tf.data.Dataset) or replicas > 1 or arguments.get("steps_per_epoch"):
        return
    count = count_examples(x, arguments.get("validation_split", 0.0))
    if not count:  # batches of unknown sizes
        return
    batch = min(arguments.get("batch_size") or _BATCH_SIZE, count)
    rows = {batch, count % batch} - {0}
    for members in {v.ensemble_size for v in layers if isinstance(v, TileMembers)}:
        odd = sorted(n for n in rows if n % members)
        if odd:
            raise ValueError(
                f"{split_message(members)} Received: {count} examples in batches of {batch}, "
                f"some of {odd}"
            )
