"""Noise scales that a likelihood learns, one per output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfp_rank1 import scopes
from tfp_rank1.checks import positive
from tfp_rank1.initializers import InverseSoftplus
from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.posteriors import SCALE_FLOOR, softplus_scale

__all__ = [
    "ClosedFormNoise",
    "GaussianNoiseLikelihood",
    "ScaleAtStart",
    "ScaledLikelihood",
    "softplus_inverse",
]

# Smallest variance, in units of `initial_scale` squared, because float32 residuals are no finer.
_SMALLEST = 1e-10


class ScaledLikelihood(Likelihood):
    """Base of likelihoods whose noise has a scale per output, fixed or learned.

    A subclass defines `distribution`. An optimizer learns the scale; a `BaliModel` learns it in
    closed form if the subclass also defines `closed_form_noise`.

    Args:
        scale: scale of the noise, above 0. Defaults to None: it is learned, one per output.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1, right for a
            standardized target.
        **kwargs: as for `keras.layers.Layer`.

    Attributes:
        scale_name: the name of the argument `scale` in the subclass, for error messages.
    """

    scale_name: ClassVar[str] = "scale"

    def __init__(
        self, scale: float | None = None, initial_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.fixed_scale = None if scale is None else positive(self.scale_name, scale)
        self.initial_scale = positive(f"initial_{self.scale_name}", initial_scale)
        self.rho: keras.Variable | None = None

    def build(self, input_shape: Any) -> None:
        """Create the variable of a learned scale, one per output."""
        if self.fixed_scale is None:
            self.rho = self.add_weight(
                name="rho",
                shape=(input_shape[-1],),
                initializer=InverseSoftplus(self.initial_scale),
                autocast=False,
            )
        self.built = True

    @property
    def scale(self) -> tf.Tensor:
        """The scale of the noise, `[D]` if it is learned, else scalar.

        Raises:
            ValueError: for a learned scale outside of a model, where nothing trains it.
        """
        name, argument = type(self).__name__, self.scale_name
        if self.fixed_scale is not None:
            return tf.constant(self.fixed_scale, tf.float32)
        if self.rho is None:
            raise ValueError(
                f"likelihoods.{name}() learns its noise {argument} and belongs to no model that "
                "could train it. Use a tfp_rank1.BayesianModel, or fix it: "
                f"{name}({argument}=0.5). "
                f"Received: {argument}=None"
            )
        factor = scopes.noise_factor.value
        return softplus_scale(self.rho) if factor is None else factor * softplus_scale(self.rho)

    @property
    def has_temperature(self) -> bool:
        """Whether the scale is learned; a scale that the user fixed stays."""
        return self.fixed_scale is None

    def multiply_scale(self, factor: float) -> None:
        """Multiply a learned scale."""
        if self.rho is not None:
            self.rho.assign(_raw_scale(factor * softplus_scale(self.rho)))

    def scale_of(self, outputs: tf.Tensor) -> tf.Tensor:
        """The scale for raw outputs `[..., D]`.

        Raises:
            ValueError: for a scale that was learned for another number of outputs.
        """
        if self.rho is not None and self.rho.shape[0] != outputs.shape[-1]:
            raise ValueError(
                "A learned noise scale belongs to one model. Give each model its own "
                f"likelihoods.{type(self).__name__}(). Received: a scale for {self.rho.shape[0]} "
                f"outputs, and {outputs.shape[-1]} outputs"
            )
        return self.scale

    def started_by_residuals(self) -> ScaleAtStart | None:
        """How residuals start a learned scale to which the standard deviation is proportional."""
        if self.rho is None:
            return None
        return ScaleAtStart(self.rho, lambda: self.scale, _raw_scale, self.distribution)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "scale": self.fixed_scale,
            "initial_scale": self.initial_scale,
        }


class GaussianNoiseLikelihood(ScaledLikelihood):
    """Base of likelihoods whose targets, on the scale of the raw outputs, have Gaussian noise.

        residuals(y, z) ~ N(0, scale^2)

    A subclass defines `distribution`, and `residuals` unless they are `y - z`.
    """

    @property
    def scale(self) -> tf.Tensor:
        """The scale of the noise, `[D]` if it is learned, else scalar.

        In the loss of a training step a learned scale is above the noise: see `model.noise`.
        """
        tempered = scopes.tempered_variance.value or {}
        if id(self) not in tempered or self.fixed_scale is not None:
            return super().scale
        return tf.sqrt(tempered[id(self)])

    def residuals(self, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Targets minus raw outputs, on the scale of the raw outputs."""
        return targets - outputs

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`e / scale`."""
        return noise / self.scale

    @property
    def closed_form_noise(self) -> ClosedFormNoise | None:
        """The mode of the variance given residuals; None for a fixed scale."""
        return ClosedFormNoise(self, self.residuals) if self.fixed_scale is None else None


class ScaleAtStart:
    """A scale that the first batch of training sets from its residuals.

        scale <- scale q,   q = sqrt(E[((y - mean) / stddev)^2]),   unless 1/2 < q < 2

    An optimizer would crawl there from a start in the wrong unit. A scale that is about right, such
    as that of a trained net, is left as it is.

    Args:
        variable: the variable behind the scale, `[D]`.
        scale: function that returns the scale, `[D]`.
        raw: the value of the variable that gives a scale.
        distribution: the distribution of the target for raw outputs.
    """

    def __init__(
        self,
        variable: keras.Variable,
        scale: Callable[[], tf.Tensor],
        raw: Callable[[tf.Tensor], tf.Tensor],
        distribution: Callable[[tf.Tensor], Any],
    ) -> None:
        self.variable = variable
        self._scale, self._raw, self._distribution = scale, raw, distribution

    def standardized(self, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """`(y - mean) / stddev` for raw outputs, in the shape of the targets."""
        distribution = self._distribution(outputs)
        return (targets - distribution.mean()) / distribution.stddev()

    def started(self, mean_square: tf.Tensor) -> tf.Tensor:
        """The variable after the first batch, given `q^2`, `[D]`."""
        is_off = (mean_square > 4.0) | ((mean_square < 0.25) & (mean_square > 0.0))
        is_off &= tf.math.is_finite(mean_square)
        q = tf.where(is_off, tf.sqrt(mean_square), 1.0)
        return tf.where(is_off, self._raw(self._scale() * q), self.variable)


class ClosedFormNoise:
    """The mode of a Gaussian noise variance given the residuals of N examples.

        v = (a s^2 + N E[(y - z)^2]) / (a + N)

    The prior counts for as much as `a` examples whose residual is s, by default the likelihood's
    `initial_scale`. The code that trains the model keeps the moving average of squared residuals.

    Args:
        likelihood: the likelihood that owns the learned scale.
        residuals: function `(targets, outputs) -> y - z`, on the scale of the raw outputs.
    """

    # Why not an optimizer: it would crawl, since the gradient of the scale falls with its square.

    def __init__(
        self,
        likelihood: ScaledLikelihood,
        residuals: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> None:
        self._likelihood, self.residuals = likelihood, residuals

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that an optimizer must leave alone."""
        rho = self._likelihood.rho
        return [] if rho is None else [rho]

    def variance(self) -> tf.Tensor:
        """The present variance, `[D]`."""
        return tf.square(self._likelihood.scale)

    def mode(
        self,
        mean_square: tf.Tensor,
        num_examples: tf.Tensor,
        prior_examples: float,
        prior_variance: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The mode v of the equation above, `[D]`.

        Args:
            mean_square: `E[(y - z)^2]`, `[D]`.
            num_examples: N.
            prior_examples: a.
            prior_variance: `s^2`, `[D]`. Defaults to None: the square of `initial_scale`.
        """
        if prior_variance is None:
            prior_variance = tf.constant(self._likelihood.initial_scale**2, tf.float32)
        total = prior_examples * prior_variance + num_examples * mean_square
        return total / (prior_examples + num_examples)

    def moved(self, mode: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        """The variance after a step of a moving average, `(1 - share) v + share mode`, bounded."""
        # Not `v + share (mode - v)`: from 1 to 1e-8 the difference would round to -1.
        return self.bounded((1.0 - share) * self.variance() + share * mode)

    def bounded(self, variance: tf.Tensor) -> tf.Tensor:
        """The variance, or 1e-10 of the variance at the start if that is larger."""
        return tf.maximum(variance, _SMALLEST * self._likelihood.initial_scale**2)

    def raw(self, variance: tf.Tensor) -> tf.Tensor:
        """The value of `variables[0]` that gives a variance."""
        return _raw_scale(tf.sqrt(variance))


def _raw_scale(scale: tf.Tensor) -> tf.Tensor:
    """The value of `rho` that gives a scale."""
    return softplus_inverse(tf.maximum(scale - SCALE_FLOOR, SCALE_FLOOR))


def softplus_inverse(value: tf.Tensor) -> tf.Tensor:
    """The number whose softplus is `value`, above 0."""
    # `log(exp(value) - 1)` would overflow for a large value, and round to `log(0)` for a small one.
    return value + tf.math.log(-tf.math.expm1(-value))
