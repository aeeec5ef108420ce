"""The one predictive distribution that `predict`, `evaluate` and validation look at.

Its draws are the same for every example, every batch and every call: the prediction for an example
is a function of the example alone, and two epochs of training are compared on the same draws.
`posterior_predictive` draws for every example by itself. With moments nothing is drawn, and the
two are the same.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.keras_internals import layers_of
from tfp_rank1.layers.randomness import is_random
from tfp_rank1.outputs import as_members, position_mask
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.predictive.moments import moment_outputs
from tfp_rank1.predictive.sampleable import Sampleable
from tfp_rank1.predictive.sampling import (
    mask_of_positions,
    sample_marginals,
    sample_outputs,
    stateful_layers,
)
from tfp_rank1.random import SharedDraws, make_seed, seed_scope

__all__ = ["Evaluable", "evaluated"]

_SEED = 0


class Evaluable(Sampleable, Protocol):
    """What evaluation needs of a model."""

    evaluation_samples: int
    evaluation_method: str
    integrates_in_evaluation: bool

    def give_up_moments(self) -> bool:
        """Have evaluation take samples from now on; False if the user asked for moments."""


def evaluated(model: Evaluable, x: Any) -> Any:
    """The predictive distribution of one batch, from samples or in one pass of moments.

    Inside `posterior_mean()`, and for a model that draws nothing, one pass gives all members. A
    stateful model must not run twice on a batch: it gets one pass as well.

    Args:
        model: a `BayesianModel`.
        x: one batch of inputs.

    Returns:
        The `PredictiveMixture`, in the layout `[B, S, ..., D]` of the metrics; of several outputs a
        list or dict.

    Raises:
        ValueError: for moments of a model without a graph, or of a layer without a rule.
    """
    layers = layers_of(model)
    is_single = scopes.mean_mode.value or not is_random(layers) or stateful_layers(layers)
    seed = make_seed(_SEED)
    if is_single:
        with seed_scope(seed), scopes.shared_draws.set(SharedDraws(seed, 0, 1)):
            outputs = model(x, training=False)
        return heads.map_heads(functools.partial(_of_one_pass, model), model.likelihood, outputs)
    found = _in_one_pass(model, x) if model.evaluation_method == "moments" else None
    count, variance, mask = model.evaluation_samples, None, mask_of_positions(model, x)
    if found is not None:
        outputs, variance = found
    elif model.integrates_in_evaluation:
        outputs, variance = sample_marginals(model, x, count, seed, shared=True)
    else:
        outputs = sample_outputs(model, x, count, seed, shared=True)
    return heads.map_heads(_of_samples, model.likelihood, outputs, variance, mask)


def _of_one_pass(model: Evaluable, likelihood: Any, outputs: tf.Tensor) -> PredictiveMixture:
    members = as_members(outputs, model.has_members).values
    mask = position_mask(members, has_members=True)
    return PredictiveMixture(likelihood, members, axis=1, mask=mask)


def _of_samples(likelihood: Any, outputs: tf.Tensor, variance: Any, mask: Any) -> PredictiveMixture:
    return PredictiveMixture(likelihood, outputs, 0, variance, mask).by_example()


def _in_one_pass(model: Evaluable, x: Any) -> tuple[Any, Any] | None:
    """Answers of one pass; None where a rule refuses, and samples were as welcome."""
    try:
        return moment_outputs(model, x, integrates=model.integrates_in_evaluation)
    except (ValueError, TypeError, tf.errors.OpError):
        if not model.give_up_moments():
            raise
        return None
