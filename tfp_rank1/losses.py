"""Negative log-likelihoods over the member axis."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import likelihoods
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.outputs import as_members, position_mask
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered, serialize, snake_case
from tfp_rank1.target_weights import split_weights

__all__ = ["NAMES", "AverageNLL", "MixtureNLL", "NegativeLogLikelihood", "as_mixture"]


def as_mixture(likelihood: Likelihood, outputs: tf.Tensor) -> PredictiveMixture:
    """Outputs `[B, K, D]`, or `[B, D]` of a net without members, as a mixture over members."""
    members = as_members(outputs)
    mask = position_mask(members.values, has_members=True)
    return PredictiveMixture(likelihood, members.values, members.sample_axis, mask=mask)


class NegativeLogLikelihood(keras.losses.Loss):
    """Base class of the losses over members.

    Args:
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to None: a
            `BayesianModel` fills in its own likelihood at `compile`.
        reduction: as in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: defaults to the snake-case name of the class.
    """

    def __init__(
        self,
        likelihood: Any = None,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        # The likelihood computes in float32, whatever the global policy says.
        kwargs = {"dtype": "float32", **kwargs}
        name = name or snake_case(type(self).__name__)
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.likelihood = None if likelihood is None else likelihoods.get(likelihood)

    def _mixture(self, y_pred: tf.Tensor) -> PredictiveMixture:
        if self.likelihood is None:
            raise ValueError(
                f"{type(self).__name__} has no likelihood. Pass one, "
                f"{type(self).__name__}(likelihoods.Categorical()), or train a BayesianModel, "
                "which fills in its own. Received: likelihood=None"
            )
        return as_mixture(self.likelihood, y_pred)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """The losses of all examples, weighted and reduced; as every loss of Keras.

        Args:
            y_true: targets `[B]` or `[B, targets]`; a missing one is NaN, or `ignore_class`.
            y_pred: raw outputs `[B, K, D]`.
            sample_weight: `[B]`, or one weight per target, `[B, targets]`. Defaults to None: 1.
        """
        return self.reduce(y_true, self._mixture(y_pred), sample_weight)

    def reduce(self, y: Any, mixture: PredictiveMixture, sample_weight: Any = None) -> tf.Tensor:
        """As `__call__`, for a mixture in the layout `[B, K, D]`."""
        num_targets = mixture.likelihood.num_targets(int(mixture.outputs.shape[-1]))
        examples, targets = split_weights(sample_weight, num_targets, mixture.positions)
        losses = self.losses(y, mixture, targets)
        # Keras's own reduction, which knows `reduction` and replicas.
        return _Given(name=self.name, reduction=self.reduction, dtype="float32")(
            losses, losses, examples
        )

    def losses(
        self, y: Any, mixture: PredictiveMixture, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Loss per example, `[B]`, nats; `weights` are those of the targets, `[B, targets]`."""
        raise NotImplementedError

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Loss per example, `[B]`, nats."""
        return self.losses(y_true, self._mixture(y_pred))

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the loss."""
        return {**super().get_config(), "likelihood": serialize(self.likelihood)}


@registered("tfp_rank1")
class AverageNLL(NegativeLogLikelihood):
    """Mean of the members' negative log-likelihoods: `-1/K sum_k log p(y | member k)`.

    This loss is the default in training. With a KL that is averaged over the members, the sum of
    the two is a valid bound on the evidence.

    Args: as for `NegativeLogLikelihood`.

    Call arguments:
        y_true: targets `[B]` or `[B, targets]`.
        y_pred: raw outputs `[B, K, D]`.

    Example:
    ```python
    loss = r1.losses.AverageNLL(r1.likelihoods.Categorical())
    model.compile("adam", loss=loss)                                    # plain keras.Model
    ```

    Source: Dusenberry et al. (2020).
    """

    def losses(
        self, y: Any, mixture: PredictiveMixture, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Loss per example, `[B]`, nats."""
        return -tf.reduce_mean(mixture.member_log_prob(y, weights), axis=1)


@registered("tfp_rank1")
class MixtureNLL(NegativeLogLikelihood):
    """Negative log-likelihood of the mixture: `-log 1/K sum_k p(y | member k)`.

    A `BayesianModel` reports this loss in evaluation. In training it gives the tighter bound: by
    Jensen's inequality it is never above `AverageNLL`.

    Args: as for `NegativeLogLikelihood`.

    Call arguments:
        y_true: targets `[B]` or `[B, targets]`.
        y_pred: raw outputs `[B, K, D]`.

    Source: Dusenberry et al. (2020).
    """

    def losses(
        self, y: Any, mixture: PredictiveMixture, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Loss per example, `[B]`, nats."""
        return -mixture.log_prob(y, weights)


class _Given(keras.losses.Loss):
    """Weighs and reduces losses per example that are given as `y_pred`."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return y_pred


NAMES = {"average_nll": AverageNLL, "mixture_nll": MixtureNLL}
