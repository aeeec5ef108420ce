"""Columns of a table as arrays for a net: scaled numbers, and codes of categories."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from tfp_rank1.sklearn.column_kinds import (
    NUMBERS,
    REFUSED,
    as_numbers,
    as_texts,
    doubt_about,
    is_category,
    kind_of,
    missing_in,
)

__all__ = ["TableColumns"]


class TableColumns(  # type: ignore[call-arg]  # a dict is no frame, whatever `set_output` says
    TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    """Scales the numeric columns of a table and counts through the categories of the others.

    Numeric columns: missing numbers become the median of the training part, and a column of zeros
    and ones says where they were; then all have mean 0 and variance 1. Categorical columns:
    categories become codes `0, 1, ...`; a missing entry is a category of its own, and a category
    that the training part has not is the code -1.

    Args:
        categorical_features: columns that are categories: names, places, or a mask. Defaults to
            None: of a DataFrame all columns that do not hold numbers (text, `category`), of an
            array none. Text that holds numbers, or differs from row to row, is taken with a
            warning.

    Attributes:
        cardinalities_: number of categories of every categorical column.
        num_numeric_: number of numeric columns of the result, with those of missing numbers.
        numeric_columns_, categorical_columns_: places of the columns in the table.
        kinds_: kind of every column's values, as NumPy writes it; "O" for text.

    Example:
    ```python
    columns = r1.sklearn.TableColumns().fit(frame_train)
    columns.transform(frame_test)        # {"numeric": float32 [N, P], "categorical": int32 [N, C]}
    ```
    """

    def __init__(self, categorical_features: Any = None) -> None:
        self.categorical_features = categorical_features

    def fit(self, X: Any, y: Any = None) -> TableColumns:
        """Learn medians, scales and categories.

        Args:
            X: a DataFrame or an array, `[N, columns]`.
            y: not used.

        Raises:
            ValueError: for a column of dates, complex numbers or infinite numbers, by its name; of
                an array, for a column of text that is not named as categories.
        """
        columns = self._columns(X, reset=True)
        self.kinds_ = [kind_of(column) for column in columns]
        chosen = self._named_categorical(len(columns))
        if hasattr(X, "iloc"):
            for i, column in enumerate(columns):
                if is_category(column):
                    chosen.add(i)
                elif self.kinds_[i] not in NUMBERS and i not in chosen:
                    chosen.add(i)
                    self._warn_of_doubt(i, column)
        self.categorical_columns_ = np.array(sorted(chosen), int)
        self.numeric_columns_ = np.setdiff1d(np.arange(len(columns)), self.categorical_columns_)
        self.num_numeric_, self.cardinalities_ = 0, []
        # `set_output`: arrays, whatever scikit-learn is told to put out elsewhere.
        if len(self.numeric_columns_):
            imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
            pipeline = make_pipeline(imputer, StandardScaler())
            self.numbers_ = pipeline.set_output(transform="default")
            with np.errstate(over="ignore", invalid="ignore"):
                self.numbers_.fit(self._numbers(columns))
            self.num_numeric_ = self._scaled(columns).shape[1]
        if len(self.categorical_columns_):
            encoder = OrdinalEncoder(
                handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.int32
            )
            self.categories_ = encoder.set_output(transform="default").fit(self._texts(columns))
            self.cardinalities_ = [len(found) for found in self.categories_.categories_]
        return self

    def transform(self, X: Any) -> dict[str, np.ndarray]:
        """The arrays of a table: `"numeric"`, `"categorical"` or both.

        Args:
            X: a table with the columns of the training part.

        Raises:
            ValueError: for other columns, a column whose values are of another kind than in
                training, or numbers that overflow.
        """
        check_is_fitted(self, "cardinalities_")
        columns = self._columns(X, reset=False)
        found = {}
        if len(self.numeric_columns_):
            found["numeric"] = self._scaled(columns)
        if len(self.categorical_columns_):
            found["categorical"] = self.categories_.transform(self._texts(columns))
        return found

    def _columns(self, X: Any, reset: bool) -> list[Any]:
        """The columns of a table one by one, after checks of its shape and their names."""
        if hasattr(X, "iloc") and hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, reset=reset)
            if not len(X):
                raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
            columns = [X.iloc[:, i] for i in range(X.shape[1])]
        else:
            X = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)
            columns = list(X.T)
        for place, column in enumerate(columns):
            kind = kind_of(column)
            if kind == "c":
                raise ValueError(
                    f"Column {self._name(place)} holds complex numbers. Complex data not "
                    "supported: put real and imaginary parts into two columns. "
                    f"Received: {column.dtype}"
                )
            if kind == "V":
                raise ValueError(
                    f"Column {self._name(place)} holds lists or the like: give every part a column "
                    f"of its own. Received: {next(iter(column))!r}"
                )
            if kind in REFUSED:
                raise ValueError(
                    f"Column {self._name(place)} holds dates, times or durations, and what matters "
                    "of them is not for a net to guess: replace it by numbers, such as "
                    "frame['date'].dt.month, days since a first day, or .dt.total_seconds(). "
                    f"Received: dtype={column.dtype}"
                )
        return columns

    def _name(self, place: int) -> str:
        """A column's name for messages."""
        names = getattr(self, "feature_names_in_", None)
        return str(place) if names is None else repr(names[place])

    def _warn_of_doubt(self, place: int, column: Any) -> None:
        """Warn of text that is perhaps none of categories."""
        doubt = doubt_about(column)
        if doubt is not None:
            warnings.warn(
                f"Column {self._name(place)} {doubt}. Taken for categories, as it is now, values "
                "that training did not have are unknown. If categories are meant, make it one: "
                "frame[name].astype('category').",
                stacklevel=2,
            )

    def _named_categorical(self, count: int) -> set[int]:
        """Places of the columns that were named as categories."""
        if self.categorical_features is None:
            return set()
        given = np.atleast_1d(np.asarray(self.categorical_features, object))
        if len(given) == count and all(isinstance(v, (bool, np.bool_)) for v in given):
            return set(np.flatnonzero(given.astype(bool)).tolist())
        names = list(getattr(self, "feature_names_in_", ()))
        places = set()
        for name in given:
            is_place = isinstance(name, (int, np.integer)) and not isinstance(name, bool)
            if is_place and -count <= name < count:
                places.add(int(name) % count)
            elif name in names:
                places.add(names.index(name))
            else:
                raise ValueError(
                    "Argument `categorical_features` must be names or places of columns, "
                    f"{names or f'0 to {count - 1}'}, or a mask. Received: {name!r}"
                )
        return places

    def _numbers(self, columns: list[Any]) -> np.ndarray:
        """Numeric columns as `[N, P]`, missing numbers as NaN."""
        found = []
        for place in self.numeric_columns_.tolist():
            try:
                values = as_numbers(columns[place])
            except (TypeError, ValueError) as error:
                is_frame = hasattr(self, "feature_names_in_")
                way_out = "as in training" if is_frame else "or be named in `categorical_features`"
                raise ValueError(
                    f"Column {self._name(place)} must hold numbers, {way_out}. Received: {error}"
                ) from error
            if np.isinf(values).any():
                raise ValueError(
                    f"Column {self._name(place)} contains infinity or a value too large: replace "
                    "it by a missing number or a large one. Received: inf"
                )
            found.append(values)
        return np.stack(found, axis=1)

    def _scaled(self, columns: list[Any]) -> np.ndarray:
        """Numeric columns in units of their standard deviations, float32 `[N, num_numeric_]`."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = self.numbers_.transform(self._numbers(columns)).astype("float32")
        is_broken = ~np.isfinite(scaled).all(axis=0)
        if is_broken.any():
            # Those of missing numbers, behind the columns themselves, are always finite.
            place = self.numeric_columns_.tolist()[int(np.argmax(is_broken))]
            raise ValueError(
                f"Column {self._name(place)} holds numbers that are too large, or too far from "
                "those of the training part, for float32: clip it, or take its logarithm. "
                "Received: numbers that are not finite once they are scaled"
            )
        return np.asarray(scaled)

    def _texts(self, columns: list[Any]) -> np.ndarray:
        """Categorical columns as texts `[N, C]`, of which missing entries are one more."""
        found = []
        for place in self.categorical_columns_.tolist():
            column = columns[place]
            is_number = kind_of(column) in NUMBERS and not missing_in(column).all()
            if is_number and self.kinds_[place] not in NUMBERS:
                raise ValueError(
                    f"Column {self._name(place)} held categories in training, which numbers are "
                    f"not. Received: dtype={column.dtype}"
                )
            found.append(as_texts(column))
        return np.stack(found, axis=1)
