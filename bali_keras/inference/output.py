"""What a layer is in its net: hidden, or the exact output layer.

The pseudo-targets of a hidden layer are its pre-activations moved along a gradient, and its noise
covariance V comes from the Fisher information there. A linear last layer whose outputs are the
means of a Gaussian likelihood needs neither: its targets are the labels, its V is the observation
noise, and it can be integrated out of predictions. `HiddenLayer` and `ExactOutput` hold all that
differs; the rest of inference asks them.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bali_keras.inference.statistics import Accumulation
from bali_keras.matrix_normal import damp, inverse_factor
from bali_keras.recording import Record
from tfp_rank1.keras_internals import calls_of, nodes_of, producer_of
from tfp_rank1.likelihoods import ClosedFormNoise, Likelihood
from tfp_rank1.model.all_or_nothing import keep

__all__ = [
    "ExactOutput",
    "HiddenLayer",
    "NoiseAverage",
    "exact_layer_of",
    "squared_residuals",
]


class HiddenLayer:
    """A layer whose V is found from scores, `V^-1 = F + damping`.

    Attributes:
        collects_scores: whether F is needed.
        is_fresh: whether the layer collects and factorises in every step. Its steps are then as
            long as they should be at any rate, and have no trust region: what makes one linear
            layer conjugate regression.
    """

    collects_scores = True
    is_fresh = False

    def cross_rows(self, gradients: tf.Tensor, noise: tf.Tensor, weights: Any) -> tf.Tensor:
        """What is multiplied by the inputs, `[R, k]`: `w_r g_r`.

        Args:
            gradients: `w_r g_r` of every row r.
            noise: what the forward pass drew, outputs minus mean, `[R, k]`.
            weights: of every row, `[R]`; None for 1.
        """
        return gradients

    def column(
        self, fisher: tf.Tensor, damping: tuple[float, float]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """C with `V = C C'`, and `V^-1`, `[k, k]` both.

        Args:
            fisher: F, `[k, k]`.
            damping: absolute and relative part of what is added to F.
        """
        precision = damp(fisher, *damping)
        return inverse_factor(precision), precision

    def gradient_and_shift(
        self, cross: tf.Tensor, covariance: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`H'G` and `H'G V`, `[d, k]` both.

        Args:
            cross: inputs times `cross_rows`, `[d, k]`.
            covariance: V, `[k, k]`.
        """
        return cross, tf.matmul(cross, covariance)


class ExactOutput(HiddenLayer):
    """The linear output layer of a Gaussian likelihood: targets are labels, V is their noise.

    Args:
        noise_variance: of every output, `[k]`.
        is_fresh: whether covariances are computed in every step, as exactness needs.
    """

    collects_scores = False

    def __init__(self, noise_variance: tf.Tensor, is_fresh: bool) -> None:
        self._noise_variance, self.is_fresh = noise_variance, is_fresh

    def cross_rows(self, gradients: tf.Tensor, noise: tf.Tensor, weights: Any) -> tf.Tensor:
        """`w_r (y_r - M' h_r)`, whatever noise the forward pass drew."""
        shift = gradients * tf.cast(self._noise_variance, gradients.dtype)
        return shift + (noise if weights is None else noise * weights[:, tf.newaxis])

    def column(
        self, fisher: tf.Tensor, damping: tuple[float, float]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Of the observation noise, undamped."""
        variance = tf.cast(self._noise_variance, fisher.dtype)
        return tf.linalg.diag(tf.sqrt(variance)), tf.linalg.diag(1.0 / variance)

    def gradient_and_shift(
        self, cross: tf.Tensor, covariance: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The cross product holds whole shifts; V, which is diagonal, is divided out of them."""
        # The covariance is 0 in the warm-up, when no step is made.
        return tf.math.divide_no_nan(cross, tf.linalg.diag_part(covariance)), cross


class NoiseAverage:
    """The noise of a likelihood that has a closed form, from moving averages of residuals.

    Args:
        noise: what the likelihood says about its noise.
        prior_examples: weight of the prior on the noise, in examples, above 0.
        weight: how much the average has seen.
    """

    def __init__(self, noise: ClosedFormNoise, prior_examples: float, weight: Accumulation) -> None:
        self._noise, self._prior_examples, self._weight = noise, prior_examples, weight

    def update(
        self,
        squares: tf.Tensor,
        examples: tf.Tensor,
        num_examples: tf.Tensor,
        rate: tf.Tensor,
    ) -> None:
        """Take in one batch: the variance moves by the batch's share towards the batch's mode.

        Args:
            squares: `sum_n w_n E[(y_n - z_n)^2]`, `[D]`, over all replicas.
            examples: `sum_n w_n`.
            num_examples: N.
            rate: rho.
        """
        mean = tf.math.divide_no_nan(squares, examples)
        batch = self._noise.mode(mean, num_examples, self._prior_examples)
        old, share = self._noise.variance(), self._weight.share(examples, rate)
        variance = self._noise.bounded(old + share * (batch - old))
        accept = tf.reduce_all(tf.math.is_finite(variance))
        self._weight.update(examples, rate, accept)
        for variable in self._noise.variables:
            keep(variable, self._noise.raw(variance), accept)


def squared_residuals(
    noise: ClosedFormNoise, record: Record | None, targets: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """`E[(y - z)^2]`, `[B, D]`, over the weights of the output layer where it is exact.

    Args:
        noise: of the likelihood.
        record: of the exact output layer's call; None where the outputs are only sampled.
        targets: `[B, D]`.
        outputs: of the forward pass, `[B, D]`.
    """
    if record is None:
        return tf.square(noise.residuals(targets, tf.cast(outputs, tf.float32)))
    spread = tf.cast(record.variance, tf.float32)[..., tf.newaxis] * noise.variance()
    return tf.square(noise.residuals(targets, tf.cast(record.mean, tf.float32))) + spread


def exact_layer_of(model: Any, kind: type) -> Any:
    """The linear layer whose outputs are the means of the model's Gaussian likelihood.

    Args:
        model: a Functional model, which ends in its likelihood; others give None.
        kind: class of the layers that have a posterior.
    """
    likelihood: Likelihood = model.likelihood
    if not likelihood.has_closed_form_marginal or not nodes_of(model):
        return None
    outputs = calls_of(likelihood)[-1].input_tensors[0]
    container, (operation, _, _) = model, producer_of(outputs)
    while isinstance(operation, keras.Model):  # a nested net, such as a Sequential
        if not _is_called_once(operation, container):
            return None
        container, (operation, _, _) = operation, producer_of(operation.outputs[0])
    is_linear = getattr(operation, "activation", None) is keras.activations.linear
    is_exact = isinstance(operation, kind) and is_linear
    return operation if is_exact and _is_called_once(operation, container) else None


def _is_called_once(operation: Any, container: Any) -> bool:
    """Whether a model's graph holds one call of a layer: a shared one is not only the output."""
    return sum(node.operation is operation for node in nodes_of(container)) == 1
