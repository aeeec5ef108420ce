"""Bernoulli: independent yes/no targets."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.serialization import registered

__all__ = ["Bernoulli"]


@registered("tfp_rank1.likelihoods")
class Bernoulli(Likelihood):
    """D independent yes/no targets: `p(y_d = 1) = sigmoid(outputs_d)`.

    Raw outputs are logits `[..., D]`, targets `[B, D]` are 0 or 1.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="bernoulli")
    ```
    """

    discrete: ClassVar[bool] = True
    predicts_probabilities: ClassVar[bool] = True
    link_names: ClassVar[tuple[str, ...]] = ("sigmoid",)

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Bernoulli` with batch shape `[..., D]`."""
        return tfd.Bernoulli(logits=outputs, dtype=tf.float32)

    def entropy_of_mixture(self, mean: tf.Tensor) -> tf.Tensor | None:
        """The entropy of the mean probability; None for several targets."""
        # Several targets of one example share the samples. In the mixture they depend on each
        # other, and their joint entropy has no closed form.
        if mean.shape[-1] != 1:
            return None
        return _entropy(mean, 1.0 - mean)

    def entropy(self, outputs: tf.Tensor) -> tf.Tensor:
        """`-p log p - (1 - p) log(1 - p)`, summed over targets."""
        # `sigmoid(-outputs)`, because `1 - sigmoid(outputs)` rounds to 0 for large logits.
        return _entropy(tf.sigmoid(outputs), tf.sigmoid(-outputs))

    @property
    def has_temperature(self) -> bool:
        """True: the logits are divided by it."""
        return True

    def tempered(self, outputs: tf.Tensor, temperature: Any) -> tf.Tensor:
        """`outputs / temperature`."""
        return outputs / tf.cast(temperature, outputs.dtype)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`sqrt(p (1 - p)) o e`."""
        # `sigmoid(-outputs)`, because `1 - sigmoid(outputs)` rounds to 0 for large logits.
        return noise * tf.sqrt(tf.sigmoid(outputs) * tf.sigmoid(-outputs))

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """0 and 1."""
        return (y == 0.0) | (y == 1.0)

    def support_message(self, num_outputs: int) -> str:
        return "Bernoulli likelihood: targets must be 0 or 1. Received:"


def _entropy(yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
    """`-sum_t (p log p + q log q)` in nats, `[...]`, from probabilities `[..., T]`."""
    # Not `xlogy`, which ONNX and LiteRT lack.
    terms = tf.add_n([-p * tf.math.log(tf.maximum(p, 1e-30)) for p in (yes, no)])
    return tf.reduce_sum(terms, axis=-1)
