"""The role of a layer in its net: a hidden layer, or the exact output layer.

The pseudo-targets of a hidden layer are its pre-activations moved along a gradient, and its noise
covariance V comes from the Fisher information at these pre-activations. A linear last layer whose
outputs are the means of a Gaussian likelihood needs neither: its targets are the labels, its V is
the observation noise, and predictions can integrate the layer out. `HiddenLayer` and `ExactOutput`
hold all that differs between the two roles; the rest of inference calls their methods.
"""

from __future__ import annotations

from typing import Any, Protocol

import keras
import tensorflow as tf

from bali_keras.inference.statistics import Accumulation
from bali_keras.matrix_normal import damp, inverse_factor
from bali_keras.recording import Record
from tfp_rank1.heads import parts
from tfp_rank1.keras_internals import calls_of, layers_of, nodes_of, producer_of
from tfp_rank1.likelihoods import ClosedFormNoise, Likelihood
from tfp_rank1.model.all_or_nothing import keep

__all__ = [
    "ExactOutput",
    "HiddenLayer",
    "LayerRole",
    "NoiseAverage",
    "exact_layer_of",
    "outputs_behind",
    "squared_residuals",
]


class LayerRole(Protocol):
    """What inference asks of a layer's role.

    Attributes:
        collects_scores: whether the layer needs F.
        is_fresh: whether the layer collects and factorises in every step. A step of a fresh layer
            has the right length at any rate, so no trust region shortens it. This is what makes
            one linear layer conjugate regression.
    """

    collects_scores: bool
    is_fresh: bool

    def cross_rows(self, gradients: tf.Tensor, noise: tf.Tensor, weights: Any) -> tf.Tensor:
        """The rows that `H'` is multiplied by, `[R, k]`.

        Args:
            gradients: `w_r g_r` of every row r, `[R, k]`.
            noise: the noise of the forward pass, outputs minus mean, `[R, k]`.
            weights: the weight of every target of every row, `[R, k]`; None for 1.
        """

    def column(
        self, fisher: tf.Tensor, damping: tuple[float, float]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The Cholesky factor C with `V = C C'`, and `V^-1`, `[k, k]` each.

        Args:
            fisher: F, `[k, k]`.
            damping: absolute and relative part of the damping of F.
        """

    def gradient(self, cross: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """`H'G`, `[d, k]`.

        Args:
            cross: `H'` times `cross_rows`, `[d, k]`.
            covariance: V, `[k, k]`.
        """

    def shifts(self, right: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """`G V`, `[R, k]`, of what `cross_rows` returned; or `H'G V`, `[d, k]`, of their sum."""


class HiddenLayer:
    """The role of a layer whose V is found from scores, `V^-1 = F + damping`."""

    collects_scores = True
    is_fresh = False

    def cross_rows(self, gradients: tf.Tensor, noise: tf.Tensor, weights: Any) -> tf.Tensor:
        """`w_r g_r`."""
        return gradients

    def column(
        self, fisher: tf.Tensor, damping: tuple[float, float]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """C and `V^-1` of the damped Fisher information."""
        precision = damp(fisher, *damping)
        return inverse_factor(precision), precision

    def gradient(self, cross: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """`cross` is `H'G`."""
        return cross

    def shifts(self, right: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """V is multiplied."""
        return tf.matmul(right, covariance)


class ExactOutput:
    """The role of a Gaussian likelihood's linear output layer: labels as targets, their noise as V.

    Args:
        noise_variance: variance of the observation noise of every output, `[k]`.
        is_fresh: whether covariances are computed in every step, as exactness needs.
    """

    collects_scores = False

    def __init__(self, noise_variance: tf.Tensor, is_fresh: bool) -> None:
        self._noise_variance, self.is_fresh = noise_variance, is_fresh

    def cross_rows(self, gradients: tf.Tensor, noise: tf.Tensor, weights: Any) -> tf.Tensor:
        """`w_rt (y_rt - m_t' h_r)`, whatever noise the forward pass drew."""
        # `V g` is the distance of the label from the sampled output; with the noise added back it
        # is the distance from the mean.
        shift = gradients * tf.cast(self._noise_variance, gradients.dtype)
        return shift + (noise if weights is None else noise * tf.cast(weights, noise.dtype))

    def column(
        self, fisher: tf.Tensor, damping: tuple[float, float]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """C and `V^-1` of the observation noise, undamped."""
        # Damping would make the regression on the labels inexact.
        variance = tf.cast(self._noise_variance, fisher.dtype)
        return tf.linalg.diag(tf.sqrt(variance)), tf.linalg.diag(1.0 / variance)

    def gradient(self, cross: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """`cross` is `H'G V`, and the diagonal V is divided out."""
        # V is 0 during the warm-up, in which the mean does not move.
        return tf.math.divide_no_nan(cross, tf.linalg.diag_part(covariance))

    def shifts(self, right: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """The rows themselves, which hold V."""
        return right


class NoiseAverage:
    """The moving average by which a likelihood's noise variance is learned in closed form.

    Args:
        noise: the closed form, from the likelihood.
        prior_examples: strength of the prior on the noise, in examples, above 0.
        weight: the total sample weight behind the average.
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
            squares: `sum_n w_nt E[(y_nt - z_nt)^2]`, `[D]`, over all replicas.
            examples: `sum_n w_nt`, `[D]`, over all replicas.
            num_examples: N.
            rate: rho.
        """
        mean = tf.math.divide_no_nan(squares, examples)
        batch = self._noise.mode(mean, num_examples, self._prior_examples)
        total = tf.reduce_mean(examples)
        variance = self._noise.moved(batch, self._weight.share(total, rate))
        # A target that the batch does not hold says nothing of its noise.
        variance = tf.where(examples > 0.0, variance, self._noise.variance())
        accept = tf.reduce_all(tf.math.is_finite(variance))
        self._weight.update(total, rate, accept)
        for variable in self._noise.variables:
            keep(variable, self._noise.raw(variance), accept)


def squared_residuals(
    noise: ClosedFormNoise, record: Record | None, targets: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """`E[(y - z)^2]`, `[B, D]`, the expectation over the posterior of an exact output layer.

    Args:
        noise: the likelihood's closed form.
        record: the call of the exact output layer; None if there is no such layer, and the sampled
            outputs stand for the expectation.
        targets: `[B, D]`.
        outputs: outputs of the forward pass, `[B, D]`.
    """
    if record is None:
        return tf.square(noise.residuals(targets, tf.cast(outputs, tf.float32)))
    # The variance of z given h is `h' L^-1 h V`, and V is the noise variance.
    spread = tf.cast(record.variance, tf.float32)[..., tf.newaxis] * noise.variance()
    return tf.square(noise.residuals(targets, tf.cast(record.mean, tf.float32))) + spread


def exact_layer_of(model: Any, kind: type, likelihood: Likelihood | None = None) -> Any:
    """The linear layer whose outputs are the means of a Gaussian likelihood of the model.

    Args:
        model: a Functional model, which ends in its likelihood. A subclassed model has no graph to
            search, and gives None.
        kind: the class of layers that have a posterior.
        likelihood: of one of several outputs. Defaults to None: that of the single one.

    Returns:
        The layer; None if another operation makes the outputs, or if the layer has other uses.
    """
    likelihood = model.likelihood if likelihood is None else likelihood
    if not likelihood.has_closed_form_marginal or not nodes_of(model):
        return None
    outputs = calls_of(likelihood)[-1].input_tensors[0]
    # One of several outputs may be an input of another: then it has other gradients than its own.
    if sum(any(t is outputs for t in node.input_tensors) for node in nodes_of(model)) > 1:
        return None
    container, (operation, _, _) = model, producer_of(outputs)
    # The layer may stand in nested models; each of them must be called once as well.
    while isinstance(operation, keras.Model):
        if not _is_called_once(operation, container):
            return None
        container, (operation, _, _) = operation, producer_of(operation.outputs[0])
    is_linear = getattr(operation, "activation", None) is keras.activations.linear
    is_exact = isinstance(operation, kind) and is_linear
    return operation if is_exact and _is_called_once(operation, container) else None


def outputs_behind(model: Any) -> dict[int, set[int]]:
    """The outputs that depend on every layer: their places in `heads.names_of`, by the layer's id.

    Args:
        model: a Functional model with several outputs; a subclassed one has no graph, and gives an
            empty dict.
    """
    found: dict[int, set[int]] = {}
    if not nodes_of(model):
        return found
    for place, tensor in enumerate(parts(model.likelihood, model.output)):
        waiting, seen = [tensor], set()
        while waiting:
            operation, index, _ = producer_of(waiting.pop())
            if (id(operation), index) in seen:
                continue
            seen.add((id(operation), index))
            waiting += calls_of(operation)[index].input_tensors
            within = layers_of(operation) if isinstance(operation, keras.layers.Layer) else []
            for layer in within:
                found.setdefault(id(layer), set()).add(place)
    return found


def _is_called_once(operation: Any, container: Any) -> bool:
    """Whether a model's graph holds one call of a layer; another call of it would be hidden."""
    return sum(node.operation is operation for node in nodes_of(container)) == 1
