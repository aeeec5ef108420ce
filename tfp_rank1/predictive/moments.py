"""Answers of one pass with means and variances, as pseudo-samples that every answer takes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import whole
from tfp_rank1.moments import Moments, output_moments, pseudo_samples
from tfp_rank1.moments.outputs import check_graph, operations_with_positions
from tfp_rank1.outputs import join_passes
from tfp_rank1.predictive.sampleable import Sampleable
from tfp_rank1.random import SharedDraws, fold_in, make_seed, seed_scope

__all__ = ["DEFAULT_NODES", "moment_outputs"]

DEFAULT_NODES = 64
# Passes of a net whose positions share noise.
PASSES = 8
_SEED = 0


def moment_outputs(
    model: Sampleable,
    x: Any,
    num_nodes: int = DEFAULT_NODES,
    integrates: bool = True,
    num_passes: int | None = None,
    unrolls: bool = False,
) -> tuple[Any, Any]:
    """Raw outputs at normal nodes, the same on every call, from one pass of the model.

    Args:
        model: a Functional model whose layers have rules.
        x: one batch of inputs.
        num_nodes: nodes of all members together; every member has an even number of them.
        integrates: whether a likelihood that integrates normal outputs in closed form does so; the
            result then is one mean and one variance per member.
        num_passes: P, passes that draw the weights of what positions (pixels, time steps) share;
            moments begin behind it. 0 for one pass in which positions count as independent.
            Defaults to None: 8. A net without positions takes one pass.
        unrolls: whether the graph holds every pass and every time step by itself, for formats that
            take no loop.

    Returns:
        Raw outputs `[S, B, ..., D]` and None; or means and variances of the raw outputs,
        `[K, B, ..., D]`. Of several outputs two lists or dicts.

    Raises:
        ValueError: for a model without a graph, or a layer without a rule.
    """
    check_graph(model)
    num_passes = PASSES if num_passes is None else whole("num_passes", num_passes, 0)
    sampled = operations_with_positions(model) if num_passes else frozenset()
    own = model.likelihood
    if not sampled or scopes.mean_mode.value:
        with scopes.unrolled.set(unrolls):
            found = _calibrated(model, x)

        def answer(likelihood: Any, moments: Moments) -> tuple[tf.Tensor, tf.Tensor | None]:
            if integrates and not moments.is_exact and likelihood.has_closed_form_marginal:
                return _means_and_variances(moments)
            return _joined(_at_nodes(moments, num_nodes)), None

        pairs = heads.map_heads(answer, own, found)
    else:
        nodes = _nodes_of_passes(model, x, num_nodes, sampled, num_passes, unrolls)
        pairs = heads.map_heads(lambda _, v: (_joined(v), None), own, nodes)
    outputs = heads.map_heads(lambda _, pair: pair[0], own, pairs)
    outputs = model.calibration.tempered(own, outputs)
    return outputs, heads.map_heads(lambda _, pair: pair[1], own, pairs)


def _means_and_variances(found: Moments) -> tuple[tf.Tensor, tf.Tensor]:
    """Means and variances of the raw outputs of every member, `[K, B, ..., D]` each."""
    values = tf.stack([found.mean, found.variance_or_zeros()])
    by_member = tf.transpose(values, [0, 2, 1, *range(3, values.shape.rank)])
    mean, variance = tf.unstack(tf.cast(by_member, tf.float32))
    return mean, variance


def _joined(nodes: tf.Tensor) -> tf.Tensor:
    """Raw outputs at nodes, `[S / K, B, K, ..., D]`, as samples `[S, B, ..., D]`."""
    return join_passes(nodes, nodes.shape[0], nodes.shape[3:].as_list())


def _calibrated(model: Any, x: Any, sampled: frozenset[int] = frozenset()) -> Any:
    """Moments of raw outputs, `[B, K, ..., D]`, with the posterior's scale of the calibration."""
    with scopes.posterior_scale.set(model.calibration.posterior_scale):
        found = output_moments(model, x, sampled)
    return heads.map_heads(lambda _, v: _with_members(model, v), model.likelihood, found)


def _with_members(model: Any, found: Moments) -> Moments:
    if model.has_members:
        return found
    joint = None if found.joint is None else lambda: found.covariance()[:, tf.newaxis]
    new = found.moved(lambda value: value[:, tf.newaxis])
    return Moments(new.mean, new.variance, None, joint)


def _at_nodes(found: Moments, num_nodes: int, part: Any = 0, num_parts: int = 1) -> tf.Tensor:
    """Raw outputs at normal nodes, `[S / K, B, K, ..., D]`; one node for outputs that are known."""
    if found.is_exact:
        return tf.cast(found.mean[tf.newaxis], tf.float32)
    per_member = 2 * max(1, round(num_nodes / int(found.mean.shape[1]) / 2))
    return tf.cast(pseudo_samples(found, per_member, part, num_parts), tf.float32)


def _nodes_of_passes(
    model: Any, x: Any, num_nodes: int, sampled: frozenset[int], num_passes: int, unrolls: bool
) -> Any:
    """As `_at_nodes`, from several passes that draw what positions share, always alike."""
    seed, own = make_seed(_SEED), model.likelihood
    shapes: list[Any] = []

    def one(index: tf.Tensor, number: int | None = None) -> list[tf.Tensor]:
        nonlocal shapes
        draws = SharedDraws(seed, index, num_passes)
        with seed_scope(fold_in(seed, index)), scopes.shared_draws.set(draws):
            found = _calibrated(model, x, sampled)
            part = index if number is None else number
            per_pass = max(1, num_nodes // num_passes)
            nodes = [_at_nodes(v, per_pass, part, num_passes) for v in heads.parts(own, found)]
        shapes = [v.shape for v in nodes]
        return nodes

    if unrolls:
        with tf.init_scope():
            seed, indices = make_seed(_SEED), list(map(tf.constant, range(num_passes)))
        with scopes.constant_draws.set(True):
            passes = [one(v, number) for number, v in enumerate(indices)]
        return heads.packed(own, [tf.concat(v, axis=0) for v in zip(*passes, strict=True)])
    signature = [tf.TensorSpec(None, tf.float32) for _ in heads.names_of(own)]
    found = tf.map_fn(one, tf.range(num_passes), fn_output_signature=signature)
    joined = [_flat_passes(v, num_passes, s) for v, s in zip(found, shapes, strict=True)]
    return heads.packed(own, joined)


def _flat_passes(values: tf.Tensor, num_passes: int, shape: Any) -> tf.Tensor:
    """Nodes of all passes, `[P, S / (P K), ...]`, on one axis."""
    values = tf.ensure_shape(values, [num_passes, *shape])
    dynamic = tf.shape(values)
    sizes = [dynamic[i + 1] if n is None else n for i, n in enumerate(shape)]
    return tf.reshape(values, [num_passes * sizes[0], *sizes[1:]])
