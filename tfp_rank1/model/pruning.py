"""A model of fewer members: answers cost as many rows as there are members."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import positive, whole
from tfp_rank1.keras_internals import Functional, layers_of
from tfp_rank1.layers.members import TileMembers
from tfp_rank1.model import answer_state
from tfp_rank1.predictive import evaluated, labelled_batches

__all__ = ["best_members", "member_log_probs", "prune_members"]


def prune_members(
    model: Any,
    num_members: int,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
) -> Any:
    """A new model of some members; see `BayesianModel.prune_members`."""
    given = _members_of(model)
    num_members = whole("num_members", num_members)
    if num_members > given:
        raise ValueError(
            f"Argument `num_members` must be at most {given}, the members of the model. "
            f"Received: num_members={num_members}"
        )
    if y is not None and x is None:
        raise ValueError("Targets need their inputs: pass x as well. Received: x=None with y")
    chosen = np.arange(num_members)
    if x is not None:
        log_probs, weights = member_log_probs(model, x, y, sample_weight, batch_size or 128)
        chosen = np.sort(best_members(log_probs, num_members, weights))
    pruned = type(model).from_config(_with_members(model.get_config(), given, num_members))
    _copy_weights(model, pruned, given, chosen)
    answer_state.forget_calibration(pruned)
    pruned.has_seen_data = model.has_seen_data
    pruned._count, pruned._count_is_given = model.num_train_examples, model._count_is_given
    if model.compiled:
        pruned.compile_from_config(model.get_compile_config())
    return pruned


def _members_of(model: Any) -> int:
    """K of a Functional model.

    Raises:
        ValueError: for a subclassed model, or one without members.
    """
    folds = [v.ensemble_size for v in layers_of(model) if isinstance(v, TileMembers)]
    if not isinstance(model, Functional) or not folds:
        raise ValueError(
            "Members can be left out of a graph with TileMembers and SplitMembers. Received: "
            f"{type(model).__name__} {model.name!r} without them"
        )
    return int(folds[0])


def member_log_probs(
    model: Any, x: Any, y: Any, sample_weight: Any, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`log p(y_n | member k)` at the posterior mean, `[N, K]`, and the weights of the examples.

    Args:
        model: a `BayesianModel` with members.
        x: inputs, or batches of pairs.
        y: targets, for arrays.
        sample_weight: one number per example, for arrays; or None.
        batch_size: examples per pass, for arrays.

    Raises:
        ValueError: for weights of targets or positions.
    """
    found, weights = [], []
    # At its mean a member is one function, however random its factors are.
    with scopes.mean_mode.set(True):
        for inputs, targets, weight in labelled_batches(x, y, sample_weight, batch_size):
            mixtures = evaluated(model, inputs)
            parts = heads.map_heads(_log_probs, model.likelihood, mixtures, targets)
            found.append(tf.add_n(heads.parts(model.likelihood, parts)).numpy())
            weight = np.ones(len(found[-1])) if weight is None else np.asarray(weight)
            if weight.shape != (len(found[-1]),):
                raise ValueError(
                    "Argument `sample_weight` must hold one number per example. "
                    f"Received: weights of shape {weight.shape}"
                )
            weights.append(weight)
    total = float(np.sum([np.sum(w) for w in weights]))
    positive("sum of sample_weight", total)
    return np.concatenate(found), np.concatenate(weights)


def _log_probs(likelihood: Any, mixture: Any, y: Any) -> tf.Tensor:
    """`log p(y_n | member k)` of one output, `[B, K]`, summed over positions."""
    targets, observed = mixture.filled(mixture.prepare_targets(y))
    by_member = likelihood.log_prob(
        mixture.outputs, tf.expand_dims(targets, 1), tf.expand_dims(tf.cast(observed, "float32"), 1)
    )
    return tf.reduce_sum(by_member, axis=list(range(2, by_member.shape.rank)))


def best_members(
    log_probs: np.ndarray, num_members: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Members whose mixture fits best, found one by one, in the order of their choice.

    Each is the one that raises `mean_n log 1/|S| sum_{k in S} p(y_n | member k)` most.

    Args:
        log_probs: `log p(y_n | member k)`, `[N, K]`.
        num_members: number of members to choose.
        weights: of the examples. Defaults to None: 1.

    Source: Caruana et al. (2004), "Ensemble Selection from Libraries of Models".
    """
    log_probs = np.asarray(log_probs, np.float64)
    chosen: list[int] = []
    joint = np.full(len(log_probs), -np.inf)
    while len(chosen) < num_members:
        rest = np.setdiff1d(np.arange(log_probs.shape[1]), chosen)
        candidates = np.logaddexp(joint[:, None], log_probs[:, rest])
        best = int(np.argmax(np.average(candidates, axis=0, weights=weights)))
        joint = candidates[:, best]
        chosen.append(int(rest[best]))
    return np.array(chosen)


def _with_members(config: Any, given: int, num_members: int) -> Any:
    """A config in which every layer of `given` members has `num_members`."""
    if isinstance(config, dict):
        return {
            name: num_members
            if name == "ensemble_size" and value == given
            else None
            if name == "build_config"  # shapes of folded rows, which are others now
            else _with_members(value, given, num_members)
            for name, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_with_members(value, given, num_members) for value in config)
    return config


def _copy_weights(model: Any, pruned: Any, given: int, chosen: np.ndarray) -> None:
    """The weights of the chosen members, and all that members share."""
    for old, new in zip(model.variables, pruned.variables, strict=True):
        value = old.numpy()
        if tuple(old.shape) != tuple(new.shape):
            value = np.take(value, chosen, axis=0)
        if value.shape != tuple(new.shape):
            raise ValueError(
                f"A layer keeps its members on another axis than the first: {old.path!r} has the "
                f"shape {tuple(old.shape)} for {given} members, and {tuple(new.shape)} for "
                f"{len(chosen)}"
            )
        new.assign(value)
