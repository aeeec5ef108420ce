"""How far the raw outputs of members lie apart."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_rank1.metrics.base import MixtureMean
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered

__all__ = ["MemberVariance"]


@registered("tfp_rank1")
class MemberVariance(MixtureMean):
    """Variance of the raw outputs over the members, or samples: of logits, means, log rates.

        1/D sum_d Var_s(z_sd),      z_sd: output d of sample s, of logits less their mean over d

    The mean over examples. It is 0 where all members are one function, whatever they predict, and
    sees differences long before predicted classes differ (`MemberDisagreement`). Logits that are
    all shifted by one number give the same probabilities, so that their mean does not count.

    Args:
        name: name in logs. Defaults to `"member_variance"`.
        likelihood: defaults to that of the model, else Categorical.

    Example:
    ```python
    model.compile("adam", metrics=["accuracy", r1.metrics.MemberVariance()])
    ```

    Source: "Is BatchEnsemble a Single Model?" (2026), arXiv 2601.16936, on nets whose members have
    become one function.
    """

    default_likelihood = "categorical"
    better = "up"

    def __init__(self, name: str = "member_variance", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        outputs = mixture.outputs  # [B, S, D]
        if mixture.likelihood.is_categorical:
            outputs -= tf.reduce_mean(outputs, axis=-1, keepdims=True)
        found = tf.reduce_mean(tf.math.reduce_variance(outputs, axis=1), axis=-1, keepdims=True)
        return tf.broadcast_to(found, tf.shape(y))  # the same for all targets of an example
