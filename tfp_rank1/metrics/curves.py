"""Curves of what is kept, exact for a whole set: risk against coverage, and sparsification."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_rank1.metrics.ranking import ranked
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = ["RiskCoverage", "Sparsification", "risk_coverage", "sparsification"]


class RiskCoverage(NamedTuple):
    """The risk of the examples that are kept, against their share.

    Attributes:
        coverage: share of the examples (of their weights) that is kept, ascending to 1, `[N]`.
        risk: mean loss of the examples that are kept, `[N]`.
        score: the largest score among the examples that are kept, `[N]`.
        aurc: the area under the curve, the mean of `risk` if all examples weigh the same.
        excess_aurc: `aurc` less that of the best order for these losses, at least 0.
    """

    coverage: np.ndarray
    risk: np.ndarray
    score: np.ndarray
    aurc: float
    excess_aurc: float


def risk_coverage(
    p: PredictiveMixture,
    y: Any,
    score: Any = None,
    loss: str | None = None,
    sample_weight: Any = None,
) -> RiskCoverage:
    """The risk-coverage curve, exact, with its area.

        coverage_n = n / N,   risk_n = 1/n sum of the losses of the n examples of lowest score
        aurc = 1/N sum_n risk_n

    Examples of equal score are in random order, and `risk` is the mean over all orders. Examples
    without a target are left out of N.

    Args:
        p: a `PosteriorPredictive` of the examples.
        y: targets `[N]` or `[N, targets]`.
        score: a score of `ood_score`, or numbers `[N]` of your own; examples with high scores are
            rejected first. Defaults to None: `"max_probability"` for Categorical, else
            `"variance"`, the total predictive variance.
        loss: `"error"`, `"log_loss"` or `"squared_error"`, see `metrics.AURC`. Defaults to None:
            `"error"` for likelihoods with probabilities, else `"squared_error"`.
        sample_weight: `[N]`, where a weight counts as that many examples of equal score, or
            `[N, targets]`, the weights of targets within an example. Defaults to None: 1.

    Returns:
        A `RiskCoverage` of NumPy arrays.

    Raises:
        ValueError: for a score or a loss that the likelihood does not have, scores of another
            shape or with NaN, or if no example has a target.

    Example:
    ```python
    curve = r1.metrics.risk_coverage(model.posterior_predictive(x_test), y_test)
    curve.risk[curve.coverage <= 0.9][-1]                 # errors if a tenth is left to an expert
    ```

    Source: Geifman & El-Yaniv (2017), "Selective Classification for Deep Neural Networks"; Geifman
    et al. (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers".
    """
    ranking = ranked(p, y, score, loss, sample_weight)
    area = ranking.area()
    coverage, risk = ranking.curve()
    excess = max(area - ranking.best().area(), 0.0)  # a rounding error is no excess
    return RiskCoverage(coverage, risk, ranking.score, area, excess)


class Sparsification(NamedTuple):
    """The error of the rest, against the share of the examples that was removed.

    Attributes:
        removed: share of the examples removed, 0, 1/N, .., (N - 1)/N, `[N]`.
        error: root mean squared error of the rest, in units of the target, `[N]`.
        oracle: the same with the largest errors removed first, `[N]`.
        ause: the mean of `error - oracle`, divided by the error of all examples.
    """

    removed: np.ndarray
    error: np.ndarray
    oracle: np.ndarray
    ause: float


def sparsification(p: PredictiveMixture, y: Any, score: Any = None) -> Sparsification:
    """How the error of a regression falls as the least certain examples are removed.

        error_n = sqrt(mean of (y - E[y])^2 over the N - n examples of lowest score)
        ause = 1/N sum_n (error_n - oracle_n) / error_0

    The oracle removes the largest errors first. An AUSE of 0 says that the model knows the order of
    its errors; the division by the error of all makes models comparable. Of examples with equal
    scores the squared errors are averaged. Examples without a target are left out.

    Args:
        p: a `PosteriorPredictive` of a regression.
        y: targets `[N]` or `[N, targets]`. Of several targets the squared errors are averaged and
            the variances added, so they should have one unit.
        score: a score of `ood_score`, or numbers `[N]`. Defaults to None: `"variance"`, which
            orders as the predicted standard deviation does.

    Returns:
        A `Sparsification` of NumPy arrays.

    Raises:
        ValueError: for a Categorical likelihood, scores of another shape or with NaN, or if no
            example has a target.

    Example:
    ```python
    r1.metrics.sparsification(model.posterior_predictive(x_test), y_test).ause
    ```

    Source: Ilg et al. (2018), "Uncertainty Estimates and Multi-Hypotheses Networks for Optical
    Flow".
    """
    ranking = ranked(p, y, score, "squared_error")
    # Kept examples come in reverse: all of them first.
    error, oracle = (np.sqrt(r.curve()[1][::-1]) for r in (ranking, ranking.best()))
    removed = np.arange(len(error)) / len(error)
    gap = float(np.mean(error - oracle))
    return Sparsification(removed, error, oracle, gap / error[0] if error[0] > 0.0 else 0.0)
