"""How often two members predict different classes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_rank1.metrics.base import MixtureMean
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered

__all__ = ["MemberDisagreement"]


@registered("tfp_rank1")
class MemberDisagreement(MixtureMean):
    """Share of the pairs of members, or samples, that predict different classes.

        1 - sum_c n_c (n_c - 1) / (S (S - 1)),      n_c: samples that predict class c, of S

    The mean over examples, in [0, 1]. At 0 all members are the same classifier, and a mixture of
    them is no better than one; it is 0 for a single sample. With several Bernoulli targets it is
    the mean over targets.

    Args:
        name: name in logs. Defaults to `"disagreement"`.
        likelihood: Categorical or Bernoulli. Defaults to that of the model, else Categorical.

    Raises:
        ValueError: in `update_state`, for a likelihood without probabilities.

    Example:
    ```python
    model.compile("adam", metrics=["accuracy", r1.metrics.MemberDisagreement()])
    ```

    Source: Fort, Hu & Lakshminarayanan (2019), "Deep Ensembles: A Loss Landscape Perspective".
    """

    default_likelihood = "categorical"
    better = "up"

    def __init__(self, name: str = "disagreement", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        likelihood = mixture.likelihood
        if not likelihood.predicts_probabilities:
            raise ValueError(
                "MemberDisagreement compares predicted classes; for regression use the "
                f"epistemic variance. Received: {type(likelihood).__name__}"
            )
        probabilities = likelihood.mean(mixture.outputs)  # [B, S, C], or [B, S, targets]
        if likelihood.is_categorical:
            chosen = tf.one_hot(tf.argmax(probabilities, axis=-1), probabilities.shape[-1])
            return _differing(tf.reduce_sum(chosen, axis=1), mixture.num_samples)[:, tf.newaxis]
        ones = tf.reduce_sum(tf.cast(probabilities > 0.5, tf.float32), axis=1)
        counts = tf.stack([ones, float(mixture.num_samples) - ones], axis=-1)
        return _differing(counts, mixture.num_samples)


def _differing(counts: tf.Tensor, samples: int) -> tf.Tensor:
    """The share of pairs that differ, `[...]`, from samples per class, `[..., C]`."""
    equal = tf.reduce_sum(counts * (counts - 1.0), axis=-1)
    pairs = float(samples * (samples - 1))
    return tf.math.divide_no_nan(pairs - equal, pairs)
