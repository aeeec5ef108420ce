"""Out-of-distribution scores, and metrics of how well they separate two sets."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.histogram import unit_of_positive, unit_of_real
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered

__all__ = [
    "FPR95",
    "OODAUPR",
    "OODAUROC",
    "SCORES",
    "check_score",
    "default_score",
    "ood_score",
    "unit_score",
]

SCORES = (
    *("max_probability", "entropy", "mutual_information", "energy"),
    *("epistemic_variance", "variance"),
)


def ood_score(mixture: PredictiveMixture, score: str = "entropy") -> tf.Tensor:
    """How unlike the training data each example looks; higher is more unlike.

    Args:
        mixture: a `PosteriorPredictive`.
        score: one of

            - `"max_probability"`: 1 minus the largest probability, for Categorical;
            - `"entropy"` (default): entropy of the predictive distribution, in nats;
            - `"mutual_information"`: the epistemic part of the entropy, in nats;
            - `"energy"`: `-mean_s logsumexp(logits_s)` over samples s, for Categorical;
            - `"epistemic_variance"`: summed over targets, in squared units, for regression;
            - `"variance"`: the total variance, epistemic and aleatoric, summed over targets; for
              classes that of the one-hot target, `1 - sum_c p_c^2`.

    Returns:
        Scores `[N]`.

    Raises:
        ValueError: for an unknown score, or a score that the likelihood does not have.

    Example:
    ```python
    scores = r1.metrics.ood_score(model.posterior_predictive(x), "mutual_information")
    ```

    Source: Hendrycks & Gimpel (2017), "A Baseline for Detecting Misclassified and
    Out-of-Distribution Examples"; for the energy Liu et al. (2020), "Energy-based
    Out-of-distribution Detection".
    """
    check_score(score)
    if score == "epistemic_variance":
        return tf.reduce_sum(mixture.epistemic_variance(), axis=-1)
    if score == "variance":
        return tf.reduce_sum(mixture.variance(), axis=-1)
    if not mixture.likelihood.predicts_probabilities:
        raise ValueError(
            f"score={score!r} needs class probabilities; for regression use "
            f"'variance' or 'epistemic_variance'. Received: {type(mixture.likelihood).__name__}"
        )
    if score == "entropy":
        return mixture.entropy()
    if score == "mutual_information":
        return mixture.mutual_information()
    if not mixture.likelihood.is_categorical:
        raise ValueError(
            f"score={score!r} needs a Categorical likelihood. "
            f"Received: {type(mixture.likelihood).__name__}"
        )
    if score == "energy":
        return mixture.energy()
    return 1.0 - tf.reduce_max(mixture.mean(), axis=-1)


def default_score(likelihood: Likelihood) -> str:
    """The score by which doubtful examples are left out: `"max_probability"` or `"variance"`.

    For one Bernoulli target the variance p (1 - p) ranks as the entropy does; for several, unlike
    the entropy, it needs no draws.
    """
    return "max_probability" if likelihood.is_categorical else "variance"


def unit_score(values: tf.Tensor, score: str) -> tf.Tensor:
    """Values of a score mapped to [0, 1], in the same order.

    Scores of a confident model span many powers of ten, and are resolved by ratios: energies are
    logarithms already, and may be negative.
    """
    return unit_of_real(values) if score == "energy" else unit_of_positive(values)


def check_score(score: str) -> str:
    """`score`, refused unless it is one of `SCORES`."""
    if score not in SCORES:
        raise ValueError(f"Argument `score` must be one of {SCORES}. Received: score={score!r}")
    return score


class _Separation(UncertaintyMetric):
    """Makes a Keras metric of binary labels a metric of a score; out-of-distribution is label 1.

    The metrics see only the order of the scores, which `unit_score` keeps.
    """

    default_likelihood = "categorical"

    def __init__(self, score: str = "entropy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.score = check_score(score)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: 1 for out-of-distribution and 0 for in, `[B]`; outputs `[B, K, D]`.

        With positions a label is that of an example, `[B]`, or of a position, `[B, ...]`.
        """
        mixture = self.mixture(y_pred)
        by_position = mixture.by_position()
        values = ood_score(by_position, self.score)
        if mixture.positions:
            y_true = mixture.per_position(y_true)
            if sample_weight is not None:
                sample_weight = mixture.per_position(sample_weight)
        if by_position.mask is not None:
            counts = tf.cast(by_position.mask, tf.float32)
            given = 1.0 if sample_weight is None else tf.cast(sample_weight, tf.float32)
            sample_weight = counts * given
        # Keras counts at thresholds that are uniform on [0, 1]: 2,000 of them are 0.4 % apart for
        # scores near 1 and 15 % apart near 1e-9.
        unit = unit_score(values, self.score)
        super().update_state(y_true, unit, sample_weight)

    def get_config(self) -> dict[str, Any]:
        # Keras's own arguments (curve, sensitivity, ...) are fixed by the constructors below.
        kept = ("name", "dtype", "likelihood")
        config = {k: v for k, v in super().get_config().items() if k in kept}
        return {**config, "score": self.score, "num_thresholds": self.num_thresholds}


@registered("tfp_rank1")
class OODAUROC(_Separation, keras.metrics.AUC):
    """Area under the ROC curve of a score: 1 if it separates perfectly, 0.5 if not at all.

    Labels are 1 for out-of-distribution and 0 for in-distribution examples.

    Args:
        score: a score of `ood_score`. Defaults to `"entropy"`.
        num_thresholds: number of points on the curve. Defaults to 2000.
        name: name in logs. Defaults to `"ood_auroc"`.
        likelihood: defaults to that of the model, else Categorical.

    Raises:
        ValueError: for an unknown score; in `update_state`, for a score that the likelihood does
            not have.

    Example:
    ```python
    metric = r1.metrics.OODAUROC("mutual_information")
    metric.update_state(is_out, model.posterior_predictive(x))
    metric.result()
    ```
    """

    def __init__(
        self,
        score: str = "entropy",
        num_thresholds: int = 2000,
        name: str = "ood_auroc",
        **kwargs: Any,
    ) -> None:
        super().__init__(score, num_thresholds=num_thresholds, curve="ROC", name=name, **kwargs)


@registered("tfp_rank1")
class OODAUPR(_Separation, keras.metrics.AUC):
    """Area under the precision-recall curve of a score, with out-of-distribution as positive.

    Args: as for `OODAUROC`; name defaults to `"ood_aupr"`.
    """

    def __init__(
        self,
        score: str = "entropy",
        num_thresholds: int = 2000,
        name: str = "ood_aupr",
        **kwargs: Any,
    ) -> None:
        super().__init__(score, num_thresholds=num_thresholds, curve="PR", name=name, **kwargs)


@registered("tfp_rank1")
class FPR95(_Separation, keras.metrics.SpecificityAtSensitivity):
    """Share of in-distribution examples that are flagged when 95 % of the out-of-distribution are.

    Args: as for `OODAUROC`; name defaults to `"fpr95"`.
    """

    better = "down"

    def __init__(
        self,
        score: str = "entropy",
        num_thresholds: int = 2000,
        name: str = "fpr95",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            score, sensitivity=0.95, num_thresholds=num_thresholds, name=name, **kwargs
        )

    def result(self) -> tf.Tensor:
        """The false positive rate at a true positive rate of at least 0.95."""
        return 1.0 - super().result()
