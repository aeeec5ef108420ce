"""Rank-1 nets with many members as estimators of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.checks import not_negative, positive
from tfp_rank1.models import tabular
from tfp_rank1.sklearn.docstrings import documented
from tfp_rank1.sklearn.estimators import TableClassifier, TableEstimator, TableRegressor

__all__ = ["Rank1Classifier", "Rank1Regressor"]


def _rate(name: str, value: float) -> float:
    """A rate of dropout, from 0 to below 1."""
    if not_negative(name, value) >= 1.0:
        raise ValueError(f"Argument `{name}` must lie below 1. Received: {name}={value}")
    return float(value)


class _Rank1(TableEstimator):
    """The net of `tfp_rank1.models.tabular`."""

    def __init__(
        self,
        hidden: Sequence[int] = (256, 256),
        ensemble_size: int = 32,
        posterior: str = "deterministic",
        numeric_embedding: str = "piecewise_linear",
        num_bins: int = 48,
        embedding_dim: int = 16,
        dropout: float = 0.1,
        learning_rate: float = 2e-3,
        weight_decay: float = 3e-4,
        kernel_precision: float | None = 0.01,
        epochs: int = 200,
        batch_size: Any = "auto",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 16,
        calibrate: bool = True,
        categorical_features: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.ensemble_size = ensemble_size
        self.posterior = posterior
        self.numeric_embedding = numeric_embedding
        self.num_bins = num_bins
        self.embedding_dim = embedding_dim
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.kernel_precision = kernel_precision
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.calibrate = calibrate
        self.categorical_features = categorical_features
        self.random_state = random_state
        self.verbose = verbose

    def _make_net(self, table: dict[str, Any], num_outputs: int, likelihood: str) -> Any:
        return tabular(
            num_outputs=num_outputs,
            hidden=tuple(self.hidden),
            dropout=_rate("dropout", self.dropout),
            numeric_embedding=self.numeric_embedding,
            embedding_dim=self.embedding_dim,
            likelihood=likelihood,
            ensemble_size=self.ensemble_size,
            posterior=self.posterior,
            **table,
        )

    def _compile(self, model: Any) -> None:
        model.compile(
            keras.optimizers.AdamW(
                positive("learning_rate", self.learning_rate),
                weight_decay=not_negative("weight_decay", self.weight_decay),
            ),
            kernel_precision=self.kernel_precision,
        )

    def _take_hyperparameters(self, model: Any, before: Any) -> None:
        if self.kernel_precision is None:
            model.found_kernel_precision.assign(before.kernel_precision)


@documented
class Rank1Classifier(TableClassifier, _Rank1):
    """A classifier of tables: a BatchEnsemble of many members, or one with posteriors.

    Args:
        hidden: sizes of the hidden layers. Defaults to (256, 256).
        ensemble_size: number of members K, which share their kernels. Defaults to 32.
        posterior: `"deterministic"` (default) for points; `"normal"` for Normal posteriors of the
            factors.
        {{numeric_embedding}}
        num_bins: number of bins of a numeric column, of equally many training rows. Defaults to 48.
        embedding_dim: size of the vector of a numeric column. Defaults to 16.
        dropout: rate after every hidden layer. Defaults to 0.1.
        learning_rate: of AdamW. Defaults to 0.002.
        weight_decay: of AdamW. Defaults to 0.0003.
        kernel_precision: p of the prior of the kernels, see `BayesianModel.compile`; 0 for none.
            Defaults to 0.01.
        epochs: largest number of epochs. Defaults to 200.
        {{training}}

    Attributes:
        classes_: the labels.
        {{attributes}}

    Example:
    ```python
    model = r1.sklearn.Rank1Classifier(random_state=0).fit(frame_train, y_train)
    model.predict_proba(frame_test)
    ```

    Source: Gorishniy, Kotelnikov & Babenko (2025), "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling"; Dusenberry et al. (2020).
    """


@documented
class Rank1Regressor(TableRegressor, _Rank1):
    """A regressor for tables: a BatchEnsemble of many members, or one with posteriors.

    Args: as for `Rank1Classifier`.

    Attributes:
        {{scales}}
        {{attributes}}

    Example:
    ```python
    model = r1.sklearn.Rank1Regressor(random_state=0).fit(frame_train, y_train)
    mean, stddev = model.predict(frame_test, return_std=True)
    model.predict_interval(frame_test, coverage=0.9)
    ```

    Source: Gorishniy, Kotelnikov & Babenko (2025), "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling"; Dusenberry et al. (2020).
    """
