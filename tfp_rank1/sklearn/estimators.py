"""What the estimators share: a table to arrays, a fit with held-out rows, and answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d

from tfp_rank1.checks import level, whole
from tfp_rank1.keras_internals import layers_of
from tfp_rank1.layers import quantile_edges
from tfp_rank1.layers.randomness import is_random
from tfp_rank1.model.answer_state import set_calibration
from tfp_rank1.model.search_data import Examples
from tfp_rank1.sklearn.column_kinds import kind_of, missing_in
from tfp_rank1.sklearn.columns import TableColumns
from tfp_rank1.sklearn.row_batches import RowBatches

__all__ = ["TableClassifier", "TableEstimator", "TableRegressor"]

# Tables are answered in multiples of so many rows, which is one of what a register holds.
_FULL_REGISTERS = 32


class _Data(NamedTuple):
    """What an estimator fits: a table, targets as the likelihood takes them, weights or None."""

    X: Any
    y: np.ndarray
    weights: np.ndarray | None
    num_outputs: int
    likelihood: str
    seed: int


class _Fit(NamedTuple):
    """What a fit made: columns and model, all rows as the net takes them, and the logs by epoch."""

    columns: TableColumns
    model: Any
    examples: Examples
    history: dict[str, list[float]]


class TableEstimator(BaseEstimator):
    """Base of the estimators: columns, held-out rows, training and answers.

    A subclass makes its net in `_make_net`, compiles it in `_compile`, and copies hyperparameters
    in `_take_hyperparameters`. Its constructor has at least the arguments
    `numeric_embedding`, `num_bins`, `epochs`, `batch_size`, `early_stopping`,
    `validation_fraction`, `n_iter_no_change`, `calibrate`, `categorical_features`, `random_state`
    and `verbose`.
    """

    def _make_net(self, table: dict[str, Any], num_outputs: int, likelihood: str) -> Any:
        """The net, a `tfp_rank1.BayesianModel`.

        Args:
            table: arguments `num_numeric`, `categories` and `edges` of the builders of nets.
            num_outputs: number of outputs D.
            likelihood: name of the likelihood.
        """
        raise NotImplementedError

    def _compile(self, model: Any) -> None:
        """Compile the net for training."""
        raise NotImplementedError

    def _take_hyperparameters(self, model: Any, before: Any) -> None:
        """Give a model the hyperparameters that another one has, so that none are searched for."""
        raise NotImplementedError

    # -- fit ------------------------------------------------------------------------------------

    def _fit_net(
        self,
        X: Any,
        y: np.ndarray,
        sample_weight: Any,
        num_outputs: int,
        likelihood: str,
    ) -> None:
        """Fit columns, net and calibration; a fit that fails leaves the estimator as it was.

        Args:
            X: the table.
            y: targets as the likelihood takes them.
            sample_weight: one number per row, or None.
            num_outputs: number of outputs D.
            likelihood: name of the likelihood.
        """
        _check_arguments(self)
        weights = None if sample_weight is None else np.asarray(sample_weight, "float64")
        if weights is not None:
            # Rows without weight say nothing, also of scales, edges and when to stop.
            kept = np.flatnonzero(weights)
            X, y, weights = _rows_of(X, kept), y[kept], weights[kept]
            weights = (weights / weights.mean()).astype("float32")
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        data = _Data(X, y, weights, num_outputs, likelihood, seed)
        rows, held_out = self._split(y, seed)
        found = self._fit_rows(data, rows, held_out)
        if self.calibrate and len(held_out):
            judged = found.examples.take(held_out)
            found.model.calibrate(*judged, verbose=int(bool(self.verbose)))
            if not self.early_stopping:  # calibration alone held rows out: they are data, too
                found = self._fit_rows(data, np.arange(len(y)), held_out[:0], found.model)
        self.columns_, self.model_ = found.columns, found.model
        self.history_, self.n_iter_ = found.history, len(found.history["loss"])
        _take_names(self, found.columns)

    def _fit_rows(
        self, data: _Data, rows: np.ndarray, held_out: np.ndarray, before: Any = None
    ) -> _Fit:
        """Fit columns and net to some rows.

        Args:
            data: all rows.
            rows: those to train on.
            held_out: those that early stopping looks at.
            before: a model of most of these rows, whose hyperparameters and calibration the new
                one has. Defaults to None: hyperparameters are searched, if any are.
        """
        columns = TableColumns(self.categorical_features).fit(_rows_of(data.X, rows))
        arrays = columns.transform(data.X)
        numbers, edges = arrays.get("numeric"), None
        if numbers is not None and self.numeric_embedding in ("piecewise_linear", "encoding"):
            edges = quantile_edges(numbers[rows], self._bins_per_column(columns.num_numeric_))
        table = {
            "num_numeric": columns.num_numeric_,
            "categories": columns.cardinalities_,
            "edges": edges,
        }
        examples = Examples(_net_inputs(arrays), data.y, data.weights)
        with _seeded(data.seed):
            model = self._make_net(table, data.num_outputs, data.likelihood)
            self._compile(model)
            if before is not None:
                self._take_hyperparameters(model, before)
            trained = examples.take(rows)
            model.num_train_examples = trained.total_weight
            history = self._train(model, trained, examples.take(held_out), data.seed)
        if before is not None:
            set_calibration(model, before.calibration)
        return _Fit(columns, model, examples, history)

    def _bins_per_column(self, num_columns: int) -> int:
        """Largest number of bins of a numeric column, of so many."""
        return whole("num_bins", self.num_bins)

    def _split(self, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows that are held out; none of them where nothing asks for it."""
        rows = np.arange(len(y))
        if not (self.early_stopping or self.calibrate):
            return rows, rows[:0]
        fraction = level(self.validation_fraction, "validation_fraction")
        count = max(1, round(fraction * len(y)))
        if count >= len(y):
            raise ValueError(
                "Rows are held out to calibrate or to stop early, and none would be left to train "
                f"on: n_samples={len(y)} with validation_fraction={fraction}. Use "
                "early_stopping=False and calibrate=False. Received: "
                f"early_stopping={self.early_stopping}, calibrate={self.calibrate}"
            )
        is_whole = y.dtype.kind in "iu"
        sizes = np.bincount(y.ravel()) if is_whole else np.zeros(1, int)
        sizes = sizes[sizes > 0]
        is_stratified = is_whole and sizes.min() > 1 and len(sizes) <= min(count, len(y) - count)
        parts = train_test_split(
            rows, test_size=count, random_state=seed, stratify=y if is_stratified else None
        )
        return np.sort(parts[0]), np.sort(parts[1])

    def _train(
        self, model: Any, examples: Examples, held_out: Examples, seed: int
    ) -> dict[str, list[float]]:
        """Train until the held-out NLL stops falling, or for all epochs; the logs by epoch."""
        callbacks = []
        validation = None
        if self.early_stopping:
            patience = whole("n_iter_no_change", self.n_iter_no_change)
            callbacks.append(
                keras.callbacks.EarlyStopping(
                    "val_nll", mode="min", patience=patience, restore_best_weights=True
                )
            )
            validation = RowBatches(held_out, 1024)
        size = self._rows_per_step(len(examples))
        history = model.fit(
            RowBatches(examples, size, seed),
            epochs=whole("epochs", self.epochs),
            validation_data=validation,
            callbacks=callbacks,
            shuffle=False,  # the batches shuffle their rows
            verbose=self.verbose,
        )
        return dict(history.history)

    def _rows_per_step(self, count: int) -> int:
        """Rows of a batch: some forty steps per epoch, of 32 to 256 rows."""
        if self.batch_size == "auto":
            return int(2 ** np.clip(np.round(np.log2(max(count, 1) / 40.0)), 5, 8))
        return whole("batch_size", self.batch_size)

    # -- answers --------------------------------------------------------------------------------

    def net_inputs(self, X: Any) -> Any:
        """What `model_` takes for a table: an array, or a dict of numbers and categories."""
        check_is_fitted(self, "model_")
        return _net_inputs(self.columns_.transform(X))

    def _answers(self, X: Any, ask: Callable[[Any], Any]) -> Any:
        """What a question to the predictive distribution finds, the same on every call.

        Args:
            X: a table.
            ask: from the distribution to tensors with a row for each row of the table.

        Returns:
            Arrays in the structure of these tensors.
        """
        inputs, model = self.net_inputs(X), self.model_
        count = len(keras.tree.flatten(inputs)[0])
        # Rows beyond the last full register are computed by other instructions: an answer would
        # depend on the place of its row, in its last bits.
        rows = np.minimum(np.arange(-(-count // _FULL_REGISTERS) * _FULL_REGISTERS), count - 1)
        inputs = keras.tree.map_structure(lambda v: v[rows], inputs)
        how: dict[str, Any] = {"num_samples": 1}  # one pass has the outputs of all members
        if is_random(layers_of(model)):
            how = {"method": model.evaluation_method}
        found = ask(model.posterior_predictive(inputs, seed=0, **how))
        return keras.tree.map_structure(lambda v: np.asarray(v, np.float64)[:count], found)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        return tags


class TableClassifier(ClassifierMixin, TableEstimator):
    """Base of the classifiers: labels of any kind, and probabilities."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on a table.

        Args:
            X: a DataFrame or an array `[N, columns]`.
            y: labels `[N]`, of numbers or text.
            sample_weight: one number per row, at least 0; they count by their ratio to their mean.
                Defaults to None: 1.

        Raises:
            ValueError: for columns that `TableColumns` refuses, a single class, or labels that
                are no classes.
        """
        X = _table(X)
        y = _targets(X, y, dtype=None)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        classes = encoder.classes_
        if len(classes) < 2:
            raise ValueError(
                "A classifier needs two classes or more. Received: one class, "
                f"{classes.tolist()[0]!r}"
            )
        weights = _weights(sample_weight, y)
        codes = encoder.transform(y).astype("int32")
        self._fit_net(X, codes, weights, len(classes), "categorical")
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, `[N, classes]`, in the order of `classes_`."""
        found = self._answers(X, lambda p: p.mean())
        return found / found.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row, `[N]`."""
        probabilities = self.predict_proba(X)
        return self.classes_[np.argmax(probabilities, axis=1)]

    def predict_uncertainty(self, X: Any) -> dict[str, np.ndarray]:
        """How unsure the answers are, in nats, `[N]` each.

        Returns:
            `"entropy"` of the probabilities, all that is unsure; and `"mutual_information"`, the
            part of it that more data would take away, large for rows unlike the training part.
        """
        return self._answers(
            X, lambda p: {"entropy": p.entropy(), "mutual_information": p.mutual_information()}
        )


class TableRegressor(RegressorMixin, TableEstimator):
    """Base of the regressors: targets of any unit, standard deviations and intervals."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on a table.

        Args:
            X: a DataFrame or an array `[N, columns]`.
            y: targets `[N]`, or `[N, targets]`.
            sample_weight: one number per row, at least 0; they count by their ratio to their mean.
                Defaults to None: 1.

        Raises:
            ValueError: for columns that `TableColumns` refuses, or targets that are not finite.
        """
        X = _table(X)
        y = _targets(X, y, dtype="numeric").astype("float64")
        weights, is_single = _weights(sample_weight, y), y.ndim == 1
        y = y.reshape(len(y), -1)
        # First to unit size, so that squares neither overflow nor vanish.
        size = np.max(np.abs(y), axis=0)
        size = np.where(size > 0.0, size, 1.0)
        mean = np.average(y / size, axis=0, weights=weights)
        spread = np.sqrt(np.average((y / size - mean) ** 2, axis=0, weights=weights))
        spread = np.where(spread > 0.0, spread, 1.0)
        scaled = ((y / size - mean) / spread).astype("float32")
        offset, scale = size * mean, size * spread
        self._fit_net(X, scaled, weights, y.shape[1], "normal")
        self.offset_, self.scale_, self._is_single = offset, scale, is_single
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The predictive mean of every row, in units of the target, `[N]` or `[N, targets]`.

        Args:
            X: a table with the columns of the training part.
            return_std: whether to return the predictive standard deviations as well, of noise and
                of what is not known. Defaults to False.
        """
        mean, stddev = self._answers(X, lambda p: (p.mean(), p.stddev()))
        mean = self._in_units(mean)
        return (mean, self._in_units(stddev, 0.0)) if return_std else mean

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Central intervals of the predictive distribution, `[N, 2]` or `[N, targets, 2]`.

        Args:
            X: a table with the columns of the training part.
            coverage: probability of an interval, in (0, 1). Defaults to 0.9.
        """
        coverage = level(coverage, "coverage")
        low, high = self._answers(X, lambda p: p.credible_interval(coverage))
        return np.stack([self._in_units(low), self._in_units(high)], axis=-1)

    def _in_units(self, values: np.ndarray, offset: Any = None) -> np.ndarray:
        """Values of the net in units of the target."""
        values = values * self.scale_ + (self.offset_ if offset is None else offset)
        return values[:, 0] if self._is_single else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _table(X: Any) -> Any:
    """A DataFrame as it is, anything else as an array with rows and columns."""
    if hasattr(X, "columns") and not len(X.columns):
        raise ValueError(
            "Argument `X` must have a column or more: found 0 feature(s) while a minimum of 1 is "
            f"required. Received: a table of shape {X.shape}"
        )
    is_frame = hasattr(X, "iloc") and len(X)
    return X if is_frame else check_array(X, dtype=None, ensure_all_finite=False)


def _targets(X: Any, y: Any, dtype: Any) -> np.ndarray:
    """Targets as an array with a row for each row of the table."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    if dtype is None:  # one label per row
        y = column_or_1d(y, warn=True)
        is_missing = missing_in(y)
        if is_missing.any():
            raise ValueError(
                "Argument `y` must hold a label for every row: leave out rows without. Received: "
                f"Input y contains NaN or None, in row {int(np.argmax(is_missing))}"
            )
    else:
        columns = [y.iloc[:, i] for i in range(y.shape[1])] if hasattr(y, "columns") else [y]
        for column in columns:
            if hasattr(column, "dtype") and kind_of(column) == "M":
                raise ValueError(
                    "Argument `y` holds dates, times or durations, and a net needs numbers of a "
                    "unit: replace them, such as by (y - y.min()).dt.days. Received: dtype="
                    f"{column.dtype}"
                )
        y = check_array(y, ensure_2d=False, dtype=dtype, input_name="y")
    check_consistent_length(X, y)
    return y


def _weights(sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
    """Sample weights as an array, refused unless at least one is above 0 and none below."""
    if sample_weight is None:
        return None
    rows = np.zeros((len(y), 1))
    weights = np.asarray(_check_sample_weight(sample_weight, rows, ensure_non_negative=True))
    if not weights.any():  # scikit-learn before 1.9 lets them pass
        raise ValueError(
            "Argument `sample_weight` must contain at least one non-zero number. Received: "
            f"{len(weights)} zeros"
        )
    return weights


def _check_arguments(estimator: Any) -> None:
    """Refuse sizes that are no sequence."""
    hidden = estimator.hidden
    if not isinstance(hidden, (list, tuple)):
        raise ValueError(
            f"Argument `hidden` must be a tuple of sizes, such as (256, 256). Received: {hidden!r}"
        )
    for units in hidden:
        whole("hidden", units)


def _take_names(estimator: Any, columns: TableColumns) -> None:
    """The number and the names of columns, as scikit-learn asks for them."""
    estimator.n_features_in_ = columns.n_features_in_
    if hasattr(columns, "feature_names_in_"):
        estimator.feature_names_in_ = columns.feature_names_in_
    elif hasattr(estimator, "feature_names_in_"):  # of a fit before, to a DataFrame
        del estimator.feature_names_in_


def _rows_of(X: Any, rows: np.ndarray) -> Any:
    """Some rows of a DataFrame or an array."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def _net_inputs(arrays: dict[str, np.ndarray]) -> Any:
    """What a net takes: an array, or a dict of two."""
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's generator, from which Keras takes the seeds of layers, at a seed; then as before."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
