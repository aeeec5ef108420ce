"""What a column of a table holds: numbers, text, or what a net cannot take."""

from __future__ import annotations

import datetime
import decimal
import numbers
from typing import Any

import numpy as np

__all__ = ["NUMBERS", "REFUSED", "as_numbers", "as_texts", "doubt_about", "is_category", "kind_of"]
__all__ += ["missing_in"]

# Kinds of NumPy dtypes: of numbers, and of what has a meaning that no net can guess.
NUMBERS, REFUSED = "biuf", "mMcV"
# Beginnings of names of such dtypes, in pandas and in Arrow.
_TIMES = "datetime", "timedelta", "period", "interval", "date", "time", "duration"
_TIME_CLASSES = datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64
# Codes that are written as whole numbers are often categories; more different ones seldom are.
_MOST_CODES = 20
# No text that a column could hold.
_MISSING = "\0missing"


def is_category(column: Any) -> bool:
    """Whether a column is a `category` of pandas."""
    return str(column.dtype) == "category"


def kind_of(column: Any) -> str:
    """The kind of a column's values, as NumPy writes it; "O" for text, also for none at all.

    Objects have the kind of what they are, so that a table from a database (truth values beside a
    missing one, decimal numbers, dates) is read like one whose columns have dtypes.

    Args:
        column: a Series or an array `[N]`.
    """
    dtype = column.cat.categories.dtype if is_category(column) else column.dtype
    if str(dtype).startswith(_TIMES):
        return "M"
    kind = str(getattr(dtype, "kind", "O"))
    if kind in NUMBERS + REFUSED:
        return kind
    values = np.asarray(column, object)
    present = values[~missing_in(values)]
    if any(isinstance(value, _TIME_CLASSES) for value in present):
        return "M"
    if any(isinstance(value, complex) for value in present):
        return "c"
    if any(isinstance(value, (list, tuple, dict, set, np.ndarray)) for value in present):
        return "V"  # values within values, as NumPy's void
    is_numeric = all(isinstance(v, (numbers.Real, decimal.Decimal)) for v in present)
    return "f" if is_numeric and len(present) else "O"


def missing_in(column: Any) -> np.ndarray:
    """Which entries are missing, None, NaN, NaT or pandas.NA: boolean `[N]`."""
    return np.array(
        [v is None or _differs_from_itself(v) for v in np.asarray(column, object)], bool
    )


def _differs_from_itself(value: Any) -> bool:
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA, which says neither yes nor no
        return True


def as_numbers(column: Any) -> np.ndarray:
    """A column as float64, missing numbers as NaN.

    Raises:
        TypeError, ValueError: for text.
    """
    if hasattr(column, "to_numpy") and column.dtype != object:
        return np.asarray(column.to_numpy(dtype="float64", na_value=np.nan))
    values = np.asarray(column)
    if values.dtype == object:
        values = np.where(missing_in(values), np.nan, values)
    return values.astype("float64")


def as_texts(column: Any) -> np.ndarray:
    """A column as the names of its categories; all missing entries have one name of their own."""
    values = np.asarray(column, object)
    texts = np.array([_text(value) for value in values], object)
    texts[missing_in(values)] = _MISSING
    return texts


def doubt_about(column: Any) -> str | None:
    """Why a column of text is perhaps none of categories: the end of a sentence, or None.

    Args:
        column: a Series of text `[N]`, not a `category` of pandas.
    """
    values = np.asarray(column, object)
    present = values[~missing_in(values)]
    different = len(set(map(str, present)))
    try:
        numbers = present.astype("float64")
    except (TypeError, ValueError):
        is_other = different > max(_MOST_CODES, len(present) // 2)
        way_out = "drop it, or replace it by what matters of it"
        return f"is text that differs from row to row: {way_out}" if is_other else None
    if different > _MOST_CODES or not np.all(numbers == np.floor(numbers)):
        return "holds numbers as text: make them numbers by pandas.to_numeric"
    return None


def _text(value: Any) -> str:
    """3 and 3.0 are one category: beside a missing one pandas turns whole numbers into floats."""
    is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)
