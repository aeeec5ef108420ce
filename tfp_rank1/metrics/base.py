"""What the metrics share: a likelihood, and from outputs the mixture over members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfp_rank1 import likelihoods
from tfp_rank1.keras_internals import set_better_direction
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.losses import as_mixture
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import serialize
from tfp_rank1.target_weights import weights_by_target

__all__ = [
    "MixtureMean",
    "UncertaintyMetric",
]

if TYPE_CHECKING:  # the mixin stands in front of a metric of Keras
    from keras.metrics import Metric as _Stock
else:
    _Stock = object


class UncertaintyMetric(_Stock):
    """A mixin that lets a `keras.metrics.Metric` read raw outputs, `[B, K, D]` or `[B, D]`.

    Used alone, `update_state` also takes a `PosteriorPredictive` as `y_pred`.

    Args:
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to None: a
            `BayesianModel` gives its own at `compile`; used alone, metrics of classification
            take Categorical.

    Example:
    ```python
    metric = r1.metrics.PredictiveNLL()
    metric.update_state(y_test, model.posterior_predictive(x_test))
    metric.result()                                                # nats per example
    ```
    """

    default_likelihood: str | None = None
    # Whether "up" or "down" is better. `EarlyStopping` and `ModelCheckpoint` in mode "auto" ask the
    # metric, and refuse a metric that does not say.
    better: str | None = None

    def __init__(self, *args: Any, likelihood: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.better is not None:
            set_better_direction(self, self.better)
        self._given = None if likelihood is None else likelihoods.get(likelihood)
        self._bound: Likelihood | None = None

    def bind(self, likelihood: Likelihood) -> None:
        """Use the likelihood of a model, unless the constructor was given one."""
        self._bound = likelihood

    def mixture(self, y_pred: tf.Tensor) -> PredictiveMixture:
        """The mixture over members of raw outputs, or of a `PosteriorPredictive`.

        Raises:
            ValueError: if there is no likelihood.
        """
        if isinstance(y_pred, PredictiveMixture):
            return y_pred.by_example()
        likelihood = self._given or self._bound
        if likelihood is None and self.default_likelihood is not None:
            likelihood = likelihoods.get(self.default_likelihood)
        if likelihood is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} has no likelihood. Pass one, {name}(likelihood='normal'), or give the "
                "metric to a BayesianModel, which fills in its own. Received: likelihood=None"
            )
        return as_mixture(likelihood, y_pred)

    def by_position(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> tuple[Any, PredictiveMixture, Any]:
        """A batch in which every position (pixel, time step) is an example of its own.

        Args:
            y_true: targets `[B, ...]` or `[B, ..., targets]`.
            y_pred: raw outputs `[B, K, ..., D]`.
            sample_weight: see `target_weights`.

        Returns:
            Targets, the mixture over members, and weights; as they are where there are no
            positions.
        """
        return self.mixture(y_pred).at_positions(y_true, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        # A likelihood that a model gave is left out: another model must be able to give its own.
        config = super().get_config()
        if self._given is not None:
            config["likelihood"] = serialize(self._given)
        return config


class MixtureMean(UncertaintyMetric, keras.metrics.Mean):
    """Mean over all targets of a value that `values` computes from targets and mixture.

    Missing targets are left out.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, ..., targets]`, raw outputs `[B, K, ..., D]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        targets, observed = mixture.filled(mixture.prepare_targets(y_true))
        values = self.values(targets, mixture)
        weights = weights_by_target(sample_weight, observed)
        super().update_state(values, tf.broadcast_to(weights, tf.shape(values)))

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        """The value of each target, `[B, targets]`, from targets `[B, targets]`."""
        raise NotImplementedError
