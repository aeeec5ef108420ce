"""Columns of a table as arrays for a net: scaled numbers, and codes of categories."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["TableColumns"]

# Kinds of NumPy dtypes: of numbers, and of what has a meaning that no net can guess.
_NUMBERS, _REFUSED = "biuf", "mMcV"
_MISSING = "(missing)"


class TableColumns(TransformerMixin, BaseEstimator):
    """Scales the numeric columns of a table and counts through the categories of the others.

    Numeric columns: missing numbers become the median of the training part, and a column of zeros
    and ones says where they were; then all have mean 0 and variance 1. Categorical columns (text,
    `category`, `object`): categories become codes `0, 1, ...`; a missing entry is a category of its
    own, and a category that the training part has not is the code -1.

    Args:
        categorical_features: columns that are categories, by name or by place. Defaults to None:
            of a DataFrame all columns that do not hold numbers, of an array none.

    Attributes:
        cardinalities_: number of categories of every categorical column.
        num_numeric_: number of numeric columns of the result, with those of missing numbers.
        numeric_columns_, categorical_columns_: places of the columns in the table.
        kinds_: kind of every column's dtype, as NumPy writes it; "O" for text and categories.

    Example:
    ```python
    columns = TableColumns().fit(frame_train)
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
            ValueError: for a column of dates, complex numbers or infinite numbers, by its name.
        """
        columns = self._columns(X, reset=True)
        self.kinds_ = [_kind(column) for column in columns]
        named = self._named_categorical(len(columns))
        is_category = [i in named or kind not in _NUMBERS for i, kind in enumerate(self.kinds_)]
        self.categorical_columns_ = np.flatnonzero(is_category)
        self.numeric_columns_ = np.flatnonzero(np.logical_not(is_category))
        self.num_numeric_, self.cardinalities_ = 0, []
        if len(self.numeric_columns_):
            imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
            self.numbers_ = make_pipeline(imputer, StandardScaler())
            self.num_numeric_ = self.numbers_.fit_transform(self._numbers(columns)).shape[1]
        if len(self.categorical_columns_):
            self.categories_ = OrdinalEncoder(
                handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.int32
            ).fit(self._categories(columns))
            self.cardinalities_ = [len(found) for found in self.categories_.categories_]
        return self

    def transform(self, X: Any) -> dict[str, np.ndarray]:
        """The arrays of a table: `"numeric"`, `"categorical"` or both.

        Args:
            X: a table with the columns of the training part.

        Raises:
            ValueError: for other columns, or a column whose kind is another than in training.
        """
        check_is_fitted(self, "cardinalities_")
        columns = self._columns(X, reset=False)
        found = {}
        if len(self.numeric_columns_):
            scaled = self.numbers_.transform(self._numbers(columns))
            found["numeric"] = scaled.astype("float32")
        if len(self.categorical_columns_):
            found["categorical"] = self.categories_.transform(self._categories(columns))
        return found

    def _columns(self, X: Any, reset: bool) -> list[Any]:
        """The columns of a table one by one, after checks of its shape and their names."""
        if hasattr(X, "iloc") and hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, reset=reset)
            if not len(X):
                raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
            columns = [X.iloc[:, i] for i in range(X.shape[1])]
        else:
            # Text stays as it is where columns are named as categories.
            dtype = "numeric" if self.categorical_features is None else None
            X = validate_data(self, X, reset=reset, dtype=dtype, ensure_all_finite=False)
            columns = list(X.T)
        for place, column in enumerate(columns):
            if _kind(column) in _REFUSED:
                raise ValueError(
                    f"Column {self._name(place)} holds {column.dtype}, and what of a date or "
                    "duration matters is not for a net to guess: replace it by numbers, such as "
                    "frame['date'].dt.month or days since a first day. Complex data not supported. "
                    f"Received: dtype={column.dtype}"
                )
        return columns

    def _name(self, place: int) -> str:
        """A column's name for messages."""
        names = getattr(self, "feature_names_in_", None)
        return str(place) if names is None else repr(names[place])

    def _named_categorical(self, count: int) -> set[int]:
        """Places of the columns that were named as categories."""
        if self.categorical_features is None:
            return set()
        names = list(getattr(self, "feature_names_in_", ()))
        places = set()
        for given in np.atleast_1d(np.asarray(self.categorical_features, object)):
            is_place = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
            if is_place and 0 <= given < count:
                places.add(int(given))
            elif given in names:
                places.add(names.index(given))
            else:
                raise ValueError(
                    "Argument `categorical_features` must be names or places of columns, "
                    f"{names or f'0 to {count - 1}'}. Received: {given!r}"
                )
        return places

    def _numbers(self, columns: list[Any]) -> np.ndarray:
        """Numeric columns as `[N, P]`, missing numbers as NaN."""
        found = []
        for place in self.numeric_columns_.tolist():
            column = columns[place]
            try:
                if hasattr(column, "to_numpy"):  # of pandas, which has a missing value of its own
                    values = column.to_numpy(dtype="float64", na_value=np.nan)
                else:
                    values = np.asarray(column, "float64")
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"Column {self._name(place)} held numbers in training. "
                    f"Received: dtype={column.dtype}"
                ) from error
            if np.isinf(values).any():
                raise ValueError(
                    f"Column {self._name(place)} contains infinity or a value too large: replace "
                    "it by a missing number or a large one. Received: inf"
                )
            found.append(values)
        return np.stack(found, axis=1)

    def _categories(self, columns: list[Any]) -> np.ndarray:
        """Categorical columns as texts `[N, C]`, of which missing entries are one more."""
        found = []
        for place in self.categorical_columns_.tolist():
            if _kind(columns[place]) in _NUMBERS and self.kinds_[place] not in _NUMBERS:
                raise ValueError(
                    f"Column {self._name(place)} held categories in training, which numbers are "
                    f"not. Received: dtype={columns[place].dtype}"
                )
            values = np.asarray(columns[place], object)
            # NaN, NaT and pandas.NA do not equal themselves, or say neither yes nor no.
            is_missing = np.array([v is None or _is_missing(v) for v in values])
            texts = np.array([_text(v) for v in values], object)
            texts[is_missing] = _MISSING
            found.append(texts)
        return np.stack(found, axis=1)


def _kind(column: Any) -> str:
    """The kind of a column's dtype, as NumPy writes it; "O" for categories and text."""
    dtype = column.dtype
    name = str(dtype)
    if name.startswith(("datetime", "timedelta", "period", "interval")):
        return "M"
    kind = getattr(dtype, "kind", "O")
    if name == "category" or kind not in _NUMBERS + _REFUSED:
        return "O"
    return str(kind)


def _text(value: Any) -> str:
    """A category by its name: 3 and 3.0 are one, as pandas turns whole numbers beside a missing
    one into floats.
    """
    is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


def _is_missing(value: Any) -> bool:
    """Whether an entry is NaN, NaT or pandas.NA."""
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA
        return True
