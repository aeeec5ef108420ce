"""PosteriorPredictive: samples of a model's outputs turned into answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import whole
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.predictive.conformal import Conformal
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.predictive.numpy_answers import answers_in_numpy
from tfp_rank1.random import next_seed

__all__ = ["PosteriorPredictive", "PredictiveMoments"]


_MOMENTS = (
    "mean",
    "variance",
    "stddev",
    "aleatoric_variance",
    "epistemic_variance",
    "entropy",
    "expected_entropy",
    "mutual_information",
)
# What `PredictiveMoments` cannot have.
_OF_SAMPLES = (
    "quantile",
    "credible_interval",
    "log_prob",
    "cdf",
    "sample",
    "distribution",
    "prediction_set",
    "prediction_interval",
)


@answers_in_numpy(
    *_MOMENTS, "energy", "log_prob", "member_log_prob", "cdf", "quantile", "credible_interval",
    "sample", "member_moments", "prediction_set", "prediction_interval",
)  # fmt: skip
class PosteriorPredictive(PredictiveMixture):
    """The posterior predictive distribution of N examples, as S samples of the raw outputs.

    Answers are NumPy arrays; within a graph, tensors. All come from the mixture of the S
    distributions that the samples give, in units of the target: moments, entropies in nats,
    log-probabilities, quantiles and intervals, draws of the target, and sets with a guarantee.

    Args:
        samples: raw outputs `[S, N, D]`.
        likelihood: how raw outputs become distributions of the target.
        output_variance: variances of the raw outputs, `[S, N, D]`, where the last layer is
            integrated out in closed form (a `bali_keras.BaliModel` with a Normal likelihood);
            `samples` are then means. Defaults to None.
        conformal: scores of held-out examples, for `prediction_set` and `prediction_interval`; a
            model gives its own, see `BayesianModel.conformalize`. Defaults to None.
        mask: which positions are no padding, boolean `[N, ...]`; targets at others count as
            missing. Defaults to None: all are.
        is_sampled: whether the samples were drawn, so that fewer of them are noisier. Defaults to
            True; False for points of moments.

    Example:
    ```python
    p = model.posterior_predictive(x_test, num_samples=32)
    low, high = p.credible_interval(0.9)
    p.log_prob(y_test)                                    # [N], nats
    ```
    """

    def __init__(
        self,
        samples: tf.Tensor,
        likelihood: Likelihood,
        output_variance: tf.Tensor | None = None,
        conformal: Conformal | None = None,
        mask: tf.Tensor | None = None,
        is_sampled: bool = True,
    ) -> None:
        super().__init__(likelihood, samples, 0, output_variance, mask)
        self._conformal, self._is_sampled = conformal, is_sampled

    def __repr__(self) -> str:
        samples, examples, *_, outputs = self.samples.shape
        return (
            f"PosteriorPredictive({type(self.likelihood).__name__}: {examples} examples, "
            f"{samples} samples of {outputs} outputs)"
        )

    @property
    def samples(self) -> tf.Tensor:
        """Raw outputs `[S, N, D]`; with an `output_variance`, the means of the raw outputs."""
        return self._raw_outputs

    def sample(self, num_draws: int = 1, seed: int | None = None) -> tf.Tensor:
        """Draw targets from the predictive distribution.

        Args:
            num_draws: draws per example, at least 1. Defaults to 1.
            seed: integer for reproducible draws. Defaults to None: new draws on each call.

        Returns:
            float32 `[num_draws, N, targets]`; class labels `[num_draws, N, 1]` for Categorical.
        """
        num_draws = whole("num_draws", num_draws)
        chosen = keras.random.SeedGenerator(seed)
        return self._draw(num_draws, next_seed(chosen))

    def prediction_set(self, coverage: float | None = None, groups: Any = None) -> tf.Tensor:
        """Sets of classes that hold the label with a given probability, for any model.

        The label of a new example, exchangeable with those of `BayesianModel.conformalize`, is in
        its set with a probability of at least `coverage`, over the draw of all of them.

        Args:
            coverage: strictly between 0 and 1. Defaults to None: 0.9.
            groups: array `[N]` with the group of every example, if `conformalize` was given an
                array of groups. Defaults to None.

        Returns:
            Boolean `[N, C]`, True for the classes in the set; C is 2 for one Bernoulli target.

        Raises:
            ValueError: without scores, for numbers, a bad coverage, or unknown groups.

        Example:
        ```python
        model.conformalize(x_val, y_val)
        sets = model.posterior_predictive(x_test).prediction_set(coverage=0.95)
        ```
        """
        return self._scores("prediction_set").prediction_set(self, coverage, groups)

    def prediction_interval(
        self, coverage: float | None = None, groups: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Intervals that hold the target with a given probability, for any model; per target.

        Args:
            coverage: strictly between 0 and 1. Defaults to None: the one that `conformalize` was
                given, else 0.9.
            groups: as in `prediction_set`.

        Returns:
            Lower and upper ends, each `[N, targets]`, in units of the target.

        Raises:
            ValueError: without scores, for classes, a bad coverage, another coverage than that of
                method "cqr", or unknown groups.

        Example:
        ```python
        model.conformalize(x_val, y_val)
        low, high = model.posterior_predictive(x_test).prediction_interval(coverage=0.95)
        ```
        """
        return self._scores("prediction_interval").prediction_interval(self, coverage, groups)

    def _scores(self, name: str) -> Conformal:
        if self._conformal is None:
            raise ValueError(
                f"`{name}` needs the scores of held-out examples: call model.conformalize(x_val, "
                "y_val) before posterior_predictive, and after fit and calibrate, which drop them. "
                "Received: a model without scores"
            )
        if self._is_sampled:
            self._conformal.warn_of_fewer(self.num_samples)
        return self._conformal

    def distribution(self) -> tfd.MixtureSameFamily:
        """The predictive distribution as a `tfd.MixtureSameFamily`, batch shape `[N]`."""
        components = self.by_example().conditional()
        if not self.likelihood.is_categorical:
            components = tfd.Independent(components, 1)
        weights = tf.zeros(self.outputs.shape[:2])  # equal logits: every sample counts alike
        return tfd.MixtureSameFamily(tfd.Categorical(logits=weights), components)

    def moments(self) -> PredictiveMoments:
        """Mean, variances and entropies, without the samples."""
        has_entropy = self.likelihood.predicts_probabilities
        return PredictiveMoments(
            self.mean(),
            self.aleatoric_variance(),
            self.epistemic_variance(),
            self.entropy() if has_entropy else None,
            self.expected_entropy() if has_entropy else None,
        )


@answers_in_numpy(*_MOMENTS)
@dataclasses.dataclass(frozen=True, repr=False)
class PredictiveMoments:
    """Moments of the predictive distribution, without its samples.

    `model.posterior_predictive(x, reduce="moments")` gives it. The methods are those of
    `PosteriorPredictive`; quantiles, log-probabilities and draws need samples and are missing.
    """

    _mean: tf.Tensor
    _aleatoric_variance: tf.Tensor
    _epistemic_variance: tf.Tensor
    _entropy: tf.Tensor | None
    _expected_entropy: tf.Tensor | None

    def __repr__(self) -> str:
        examples, *_, targets = self._mean.shape
        return f"PredictiveMoments({examples} examples, {targets} targets)"

    def mean(self) -> tf.Tensor:
        """`E[y]`, `[N, targets]`."""
        return self._mean

    def aleatoric_variance(self) -> tf.Tensor:
        """`E_s Var[y | s]`, `[N, targets]`."""
        return self._aleatoric_variance

    def epistemic_variance(self) -> tf.Tensor:
        """`Var_s E[y | s]`, `[N, targets]`."""
        return self._epistemic_variance

    def variance(self) -> tf.Tensor:
        """Total variance, `[N, targets]`."""
        return self._aleatoric_variance + self._epistemic_variance

    def stddev(self) -> tf.Tensor:
        """Square root of the total variance, in units of the target."""
        return tf.sqrt(self.variance())

    def entropy(self) -> tf.Tensor:
        """Entropy of the mixture, `[N]`, nats.

        Raises:
            ValueError: for a likelihood that predicts no probabilities.
        """
        return self._required(self._entropy, "entropy")

    def expected_entropy(self) -> tf.Tensor:
        """Mean entropy of the samples, `[N]`, nats.

        Raises:
            ValueError: for a likelihood that predicts no probabilities.
        """
        return self._required(self._expected_entropy, "expected_entropy")

    def mutual_information(self) -> tf.Tensor:
        """`entropy - expected_entropy`, `[N]`, nats; rounding errors below 0 are clipped.

        Raises:
            ValueError: for a likelihood that predicts no probabilities.
        """
        return tf.nn.relu(self.entropy() - self.expected_entropy())

    def _required(self, value: tf.Tensor | None, name: str) -> tf.Tensor:
        if value is None:
            raise ValueError(
                f"`{name}` has no closed form for this likelihood and the samples were dropped. "
                "Use posterior_predictive(..., reduce=None). Received: reduce='moments'"
            )
        return value

    def __getattr__(self, name: str) -> Any:
        # An AttributeError, not a method that raises: `hasattr` must say that it is missing.
        if name in _OF_SAMPLES:
            raise AttributeError(
                f"`{name}` needs the samples, which reduce='moments' drops. "
                "Use posterior_predictive(..., reduce=None)."
            )
        raise AttributeError(f"PredictiveMoments has no attribute {name!r}")
