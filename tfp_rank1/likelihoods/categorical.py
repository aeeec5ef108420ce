"""Categorical: one of C classes."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.serialization import registered

__all__ = ["Categorical"]


@registered("tfp_rank1.likelihoods")
class Categorical(Likelihood):
    """One of C classes: `p(y = c) = softmax(outputs)_c`.

    Raw outputs are logits `[..., C]`, targets whole numbers `[B]` in `[0, C)`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="categorical")
    ```
    """

    discrete: ClassVar[bool] = True
    predicts_probabilities: ClassVar[bool] = True
    is_categorical: ClassVar[bool] = True
    link_names: ClassVar[tuple[str, ...]] = ("softmax",)

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Categorical` with batch shape `[...]`."""
        return tfd.Categorical(logits=outputs)

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Class probabilities `[..., C]`."""
        return tf.nn.softmax(outputs)

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """`p (1 - p)` per class, `[..., C]`."""
        probabilities = self.mean(outputs)
        return probabilities * (1.0 - probabilities)

    def entropy(self, outputs: tf.Tensor) -> tf.Tensor:
        """`-sum_c p_c log p_c`, `[...]`."""
        return tfd.Categorical(logits=outputs).entropy()

    def entropy_of_mixture(self, mean: tf.Tensor) -> tf.Tensor | None:
        """`-sum_c p_c log p_c` of the mean: a mixture of Categoricals is a Categorical."""
        return tf.reduce_sum(-tf.math.xlogy(mean, mean), axis=-1)

    def log_prob(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """`log softmax(outputs)[target]`, `[...]`."""
        log_probabilities = tf.nn.log_softmax(outputs)
        label = targets[..., 0]
        # A bad label is NaN under XLA, see `prepare_targets`. No index stands for it, so the NaN
        # is passed on to the loss.
        one_hot = tf.one_hot(tf.cast(label, tf.int32), outputs.shape[-1])
        chosen = tf.reduce_sum(one_hot * log_probabilities, axis=-1)
        return tf.where(tf.math.is_nan(label), label, chosen)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`sqrt(p) o e - p (sqrt(p)' e)`, of covariance `diag(p) - p p'`."""
        probabilities = tf.nn.softmax(outputs)
        root = tf.sqrt(probabilities) * noise
        return root - probabilities * tf.reduce_sum(root, axis=-1, keepdims=True)

    def num_targets(self, num_outputs: int) -> int:
        """One label."""
        return 1

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Whole numbers in `[0, C)`."""
        return (y >= 0.0) & (y < float(num_outputs)) & (tf.floor(y) == y)

    def support_message(self, num_outputs: int) -> str:
        return (
            f"Categorical likelihood with {num_outputs} classes: labels must be whole numbers in "
            f"[0, {num_outputs}). Received:"
        )
