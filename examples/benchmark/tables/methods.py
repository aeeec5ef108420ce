"""The methods for tables: estimators, each with its floor or peer, by the same names for classes
and numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

import tfp_rank1 as r1
from bali_keras.sklearn import BaliClassifier, BaliRegressor
from examples.benchmark.tables import proba, tabm
from examples.benchmark.tables.one_hot import OneHotColumns
from examples.benchmark.tables.proba import ProbaClassifier, ProbaRegressor
from examples.benchmark.tables.tabm import TabMClassifier, TabMRegressor
from examples.benchmark.tasks import Data
from examples.benchmark.training import Fitted
from tfp_rank1 import likelihoods
from tfp_rank1.keras_internals import layers_of
from tfp_rank1.layers.randomness import is_random
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.sklearn import Rank1Classifier, Rank1Regressor

__all__ = ["METHODS", "TableMethod", "fit", "settings_of"]

# Below the likelihood's smallest scale the inverse of softplus would be that of a negative number.
_MIN_SCALE = 1e-6


@dataclasses.dataclass(frozen=True)
class TableMethod:
    """A row of the tables.

    Attributes:
        classifier: makes an estimator from a seed.
        regressor: likewise; it answers `predict(x, return_std=True)`.
        brief: arguments of both for a run of seconds.
        packages: distributions whose versions matter.
        require: raises where an extra is missing; None for a method of this project.
    """

    classifier: Callable[..., Any]
    regressor: Callable[..., Any]
    brief: dict[str, Any] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ("scikit-learn",)
    require: Callable[[], None] | None = None


class NoisyBoosting(RegressorMixin, BaseEstimator):
    """Gradient boosting of trees, with the errors on held-out rows as its standard deviation."""

    def __init__(self, random_state: int = 0) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: np.ndarray) -> NoisyBoosting:  # noqa: N803
        """Fit to nine tenths of the rows, look at the others, then fit to all."""

        def trees() -> Any:
            return HistGradientBoostingRegressor(
                categorical_features="from_dtype", random_state=self.random_state
            )

        train, held_out, y_train, y_held_out = train_test_split(
            X, y, test_size=0.1, random_state=self.random_state
        )
        errors = y_held_out - trees().fit(train, y_train).predict(held_out)
        self.stddev_ = float(np.sqrt(np.mean(errors**2)))
        self.trees_ = trees().fit(X, y)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:  # noqa: N803
        """Means, and the same standard deviation for all."""
        mean = self.trees_.predict(X)
        return (mean, np.full_like(mean, self.stddev_)) if return_std else mean


METHODS: dict[str, TableMethod] = {
    "linear": TableMethod(
        lambda seed: make_pipeline(OneHotColumns(), LogisticRegression(max_iter=2000)),
        lambda seed: make_pipeline(OneHotColumns(), BayesianRidge()),
    ),
    "boosting": TableMethod(
        lambda seed: HistGradientBoostingClassifier(
            categorical_features="from_dtype", random_state=seed
        ),
        lambda seed: NoisyBoosting(seed),
    ),
    "rank1_table": TableMethod(
        lambda seed, **more: Rank1Classifier(random_state=seed, **more),
        lambda seed, **more: Rank1Regressor(random_state=seed, **more),
        {"epochs": 2, "ensemble_size": 4},
    ),
    "rank1_table_normal": TableMethod(
        lambda seed, **more: Rank1Classifier(posterior="normal", random_state=seed, **more),
        lambda seed, **more: Rank1Regressor(posterior="normal", random_state=seed, **more),
        {"epochs": 2, "ensemble_size": 4},
    ),
    "bali_table": TableMethod(
        lambda seed, **more: BaliClassifier(random_state=seed, **more),
        lambda seed, **more: BaliRegressor(random_state=seed, **more),
        {"epochs": 2},
    ),
    "tabm": TableMethod(
        lambda seed, **more: TabMClassifier(random_state=seed, **more),
        lambda seed, **more: TabMRegressor(random_state=seed, **more),
        {"epochs": 2},
        ("torch", "tabm"),
        tabm.require,
    ),
    "keras_proba": TableMethod(
        lambda seed, **more: ProbaClassifier(random_state=seed, **more),
        lambda seed, **more: ProbaRegressor(random_state=seed, **more),
        {"epochs": 2},
        ("keras-proba",),
        proba.require,
    ),
}


def _estimator(name: str, regression: bool, seed: int, brief: bool) -> Any:
    method = METHODS[name]
    make = method.regressor if regression else method.classifier
    return make(seed, **(method.brief if brief else {}))


def settings_of(name: str, regression: bool, brief: bool) -> dict[str, str]:
    """The arguments of an estimator as text, but for its seed."""
    found = _estimator(name, regression, 0, brief).get_params(deep=False)
    # The steps of a pipeline say all that its parts were given.
    return {key: repr(value) for key, value in found.items() if key != "random_state"}


def fit(name: str, regression: bool, data: Data, seed: int, brief: bool) -> Fitted:
    """Train one method on one split.

    Args:
        name: a key of `METHODS`.
        regression: whether targets are numbers.
        data: one split, of frames.
        seed: of the estimator.
        brief: whether to train for seconds only.
    """
    estimator = _estimator(name, regression, seed, brief)
    start = time.perf_counter()
    estimator.fit(data.split.x_train, data.split.y_train.ravel())
    seconds = time.perf_counter() - start

    def predict(x: Any) -> PredictiveMixture:
        if not regression:
            probabilities = estimator.predict_proba(x)
            logits = np.log(np.maximum(probabilities, 1e-30))
            return PredictiveMixture(likelihoods.Categorical(), logits[None].astype("float32"))
        mean, stddev = estimator.predict(x, return_std=True)
        raw = np.log(np.expm1(np.maximum(stddev, 1e-5) - _MIN_SCALE))
        outputs = np.stack([mean, raw], axis=-1)[None].astype("float32")
        return PredictiveMixture(likelihoods.HeteroscedasticNormal(min_scale=_MIN_SCALE), outputs)

    model = getattr(estimator, "model_", None)
    steps = None if model is None else model.steps_taken
    return Fitted(predict, None, seconds, steps, [], members=_members(estimator, regression))


def _members(
    estimator: Any, regression: bool
) -> Callable[[Any], dict[str, PredictiveMixture]] | None:
    """What every member says, of an estimator that has any."""
    if hasattr(estimator, "members"):
        likelihood = likelihoods.get("normal" if regression else "categorical")
        return lambda x: {"member": PredictiveMixture(likelihood, estimator.members(x))}
    model = getattr(estimator, "model_", None)
    if model is None or not model.has_members:
        return None

    def members(x: Any) -> dict[str, PredictiveMixture]:
        inputs = estimator.net_inputs(x)
        with r1.posterior_mean():
            found = {"member": model.posterior_predictive(inputs, num_samples=1)}
        if is_random(layers_of(model)):
            found["drawn"] = model.posterior_predictive(inputs, num_samples=1, seed=0)
        return found

    return members
