"""BALI nets as estimators of scikit-learn, for tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bali_keras.models import tabular
from tfp_rank1.sklearn import TableClassifier, TableEstimator, TableRegressor, documented

__all__ = ["BaliClassifier", "BaliRegressor"]

# Steps cost as the cube of the inputs of the first layer, which are the bins of all columns.
BINS_PER_COLUMN, BINS_OF_ALL = 16, 1024


class _Bali(TableEstimator):
    """The net of `bali_keras.models.tabular`."""

    def __init__(
        self,
        hidden: Sequence[int] = (100, 100),
        numeric_embedding: str = "encoding",
        num_bins: Any = "auto",
        prior_precision: float | None = None,
        epochs: int = 50,
        batch_size: Any = "auto",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 16,
        calibrate: bool = True,
        categorical_features: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.hidden = hidden
        self.numeric_embedding = numeric_embedding
        self.num_bins = num_bins
        self.prior_precision = prior_precision
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.calibrate = calibrate
        self.categorical_features = categorical_features
        self.random_state = random_state
        self.verbose = verbose

    def _bins_per_column(self, num_columns: int) -> int:
        if self.num_bins == "auto":
            return max(1, min(BINS_PER_COLUMN, BINS_OF_ALL // num_columns))
        return super()._bins_per_column(num_columns)

    def _make_net(self, table: dict[str, Any], num_outputs: int, likelihood: str) -> Any:
        return tabular(
            num_outputs=num_outputs,
            hidden=tuple(self.hidden),
            numeric_embedding=self.numeric_embedding,
            likelihood=likelihood,
            **table,
        )

    def _compile(self, model: Any) -> None:
        needs_optimizer = bool(model.trainable_variables)
        model.compile("adam" if needs_optimizer else None, prior_precision=self.prior_precision)

    def _take_hyperparameters(self, model: Any, before: Any) -> None:
        # All that are in use: a default that stayed open would be searched for in the second fit.
        model.hyperparameters.assign(**before.hyperparameter_values())


@documented
class BaliClassifier(TableClassifier, _Bali):
    """A classifier of tables with a conjugate posterior in every layer.

    Args:
        hidden: sizes of the hidden layers; empty for Bayesian regression on the encoding.
            Defaults to (100, 100).
        {{numeric_embedding}}
        num_bins: number of bins of a numeric column, of equally many training rows. Defaults to
            `"auto"`: 16; of more than 64 columns fewer, so that all have 1,024 at most, but at
            least one each.
        prior_precision: p of the prior, see `BaliModel.compile`. Defaults to None: found from the
            training rows.
        epochs: number of epochs, over which the rate of learning falls. Defaults to 50.
        {{training}}

    Attributes:
        classes_: the labels.
        {{attributes}}

    Example:
    ```python
    model = bk.sklearn.BaliClassifier(random_state=0).fit(frame_train, y_train)
    model.predict_proba(frame_test)
    ```

    Source: Kurle, Klushyn & Herbrich (2024), "Learning Neural Networks via Bayesian Layerwise
    Inference".
    """


@documented
class BaliRegressor(TableRegressor, _Bali):
    """A regressor for tables with a conjugate posterior in every layer.

    Args: as for `BaliClassifier`.

    Attributes:
        {{scales}}
        {{attributes}}

    Example:
    ```python
    model = bk.sklearn.BaliRegressor(random_state=0).fit(frame_train, y_train)
    mean, stddev = model.predict(frame_test, return_std=True)
    ```

    Source: Kurle, Klushyn & Herbrich (2024), "Learning Neural Networks via Bayesian Layerwise
    Inference".
    """
