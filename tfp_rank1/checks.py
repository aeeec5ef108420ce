"""Checks of arguments that several modules share; each error says what was received."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

__all__ = ["choice", "level", "not_negative", "positive", "rows_not_finite", "whole"]


def positive(name: str, value: Any) -> float:
    """`value` as a float, refused unless finite and above zero.

    Args:
        name: name of the argument, for the message.
        value: a number, or an array with one number.
    """
    # A bool is an int in Python, but True is never meant as a number here.
    is_number = isinstance(value, (numbers.Real, np.ndarray)) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    if not 0.0 < number < float("inf"):
        raise ValueError(
            f"Argument `{name}` must be a finite number above 0. Received: {name}={value!r}"
        )
    return number


def not_negative(name: str, value: Any) -> float:
    """`value` as a float, refused unless finite and at least zero; as `positive` otherwise."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    if not 0.0 <= number < float("inf"):
        raise ValueError(
            f"Argument `{name}` must be a finite number of at least 0. Received: {name}={value!r}"
        )
    return number


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, refused unless a whole number of at least `least`.

    Args:
        name: name of the argument, for the message.
        value: a number; floats such as 3.0 are whole as well.
        least: the smallest number that is allowed. Defaults to 1.
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not float(value).is_integer() or value < least:
        raise ValueError(
            f"Argument `{name}` must be a whole number of at least {least}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def choice(name: str, value: Any, allowed: tuple[str, ...], or_none: bool = False) -> str:
    """`value`, refused unless it is one of the strings `allowed`.

    Args:
        name: of the argument, for the message.
        value: what was given.
        allowed: strings.
        or_none: whether the message names None as well, which the caller has let pass.
    """
    if value not in allowed:
        names = " or ".join(map(repr, allowed)) if len(allowed) == 2 else f"one of {allowed}"
        names += " or None" if or_none else ""
        raise ValueError(f"Argument `{name}` must be {names}. Received: {name}={value!r}")
    return str(value)


def level(value: float, name: str = "level") -> float:
    """The level of an interval as a float, refused unless strictly between 0 and 1.

    Args:
        value: a number.
        name: name of the argument, for the message. Defaults to `"level"`.
    """
    if not 0.0 < float(value) < 1.0:
        raise ValueError(
            f"Argument `{name}` must lie strictly between 0 and 1. Received: {name}={value!r}"
        )
    return float(value)


def rows_not_finite(values: np.ndarray) -> np.ndarray:
    """Which rows of `[N, ...]` hold NaN or infinity, boolean `[N]`."""
    if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
        return np.zeros(len(values), bool)
    return ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
