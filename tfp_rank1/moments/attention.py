"""Multi-head attention, to first order in the noise of the scores.

    scores        a_ts = q_t'k_s / sqrt(key_dim),    Var a = sum_h E(q^2) Var k + Var q (E k)^2
    weights       p_t = softmax of E a_t
    outputs       o_t = sum_s p_ts v_s,   Var o = sum_s p^2 Var v + p^2 Var a (v_s - o_t)^2

The last term is the derivative of the softmax: `d o / d a_s = p_s (v_s - o)`. Scores and positions
count as independent of each other. They are not: all positions of an example meet one draw of the
factors. With factors of standard deviation 0.1 the standard deviation over all outputs is .9 of the
true one for 8 positions and .87 for 20; that of a single entry was from .5 to 1.8 times the true
one. Passes that draw what positions share miss nothing, see `num_passes` of `predictive.moments`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1 import layers as rank1_layers
from tfp_rank1.keras_internals import (
    attention_equations,
    attention_probabilities,
    attention_projections,
    positions_seen,
)
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.merging import multiplied
from tfp_rank1.moments.registry import propagate, register

__all__ = ["attention"]


@register(keras.layers.MultiHeadAttention, rank1_layers.MultiHeadAttentionRank1)
def attention(
    layer: Any,
    query: Moments,
    value: Moments,
    key: Moments | None = None,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Moments | list[Moments]:
    """The rule of multi-head attention; its arguments are those of the layer's call."""
    masks = {
        "query_mask": _mask(query_mask, query),
        "value_mask": _mask(value_mask, value),
        # Without keys of their own, values are keys, and their mask holds for both.
        "key_mask": _mask(key_mask, key),
        "attention_mask": _mask(attention_mask, None),
        "use_causal_mask": use_causal_mask,
    }
    seen = positions_seen(layer, query.mean, value.mean, **masks)
    of_query, of_key, of_value, of_gate, of_output = attention_projections(layer)
    q = propagate(of_query, query)
    k = propagate(of_key, value if key is None else key)
    scores = _scores(layer, k, q.scaled(float(layer.key_dim) ** -0.5))
    weights = attention_probabilities(layer, scores.mean, seen)
    heads = _attended(layer, weights, scores.variance_or_zeros(), propagate(of_value, value))
    if of_gate is not None:
        heads = multiplied(heads, propagate(of_gate, query))
    outputs = propagate(of_output, heads)
    return [outputs, Moments(weights)] if return_attention_scores else outputs


def _mask(given: Any, tensor: Moments | None) -> Any:
    """A mask of the call, else the mask that came with a tensor."""
    if given is None:
        return None if tensor is None else tensor.mask
    return given.mean if isinstance(given, Moments) else given


def _scores(layer: Any, k: Moments, q: Moments) -> Moments:
    """Moments of sums of products of independent entries."""
    equation, _ = attention_equations(layer)
    variance = ops.einsum(equation, k.variance_or_zeros(), tf.square(q.mean))
    square = tf.square(k.mean) + k.variance_or_zeros()
    variance += ops.einsum(equation, square, q.variance_or_zeros())
    return Moments(ops.einsum(equation, k.mean, q.mean), variance)


def _attended(layer: Any, weights: tf.Tensor, variance: tf.Tensor, v: Moments) -> Moments:
    """Moments of `sum_s p_s v_s` for softmax weights p whose scores have a variance.

    The squares are multiplied out: `sum_s w (v - o)^2 = sum_s w v^2 - 2 o sum_s w v + o^2 sum_s w`.
    """
    _, equation = attention_equations(layer)
    mean = ops.einsum(equation, weights, v.mean)
    square = tf.square(weights)
    w = square * variance
    spread = ops.einsum(equation, w, tf.square(v.mean))
    spread -= 2.0 * mean * ops.einsum(equation, w, v.mean)
    spread += tf.square(mean) * ops.einsum(equation, w, tf.ones_like(v.mean))
    own = ops.einsum(equation, square, v.variance_or_zeros())
    return Moments(mean, tf.nn.relu(spread) + own)
