"""Arrays that are given to `fit`: what is refused before Keras cuts them into batches."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.checks import rows_not_finite
from tfp_rank1.keras_internals import input_structure

__all__ = ["check_arrays", "check_batched", "check_columns", "check_inputs", "check_rank"]
__all__ += ["warn_of_missing"]


def check_arrays(x: Any, y: Any) -> None:
    """Refuse what `fit` cannot learn from; what is no array passes unchecked.

    Args:
        x: inputs: an array or a structure of arrays.
        y: targets.

    Raises:
        ValueError: for lists of numbers, arrays without examples or without targets, and inputs
            that are not finite, with the number of the first row.
    """
    check_inputs(x, y)
    if y is None and _arrays_of(x):
        raise ValueError("`fit` needs targets with arrays of inputs: fit(x, y). Received: y=None")


def check_inputs(x: Any, y: Any = None) -> None:
    """Refuse lists of numbers, columns that Keras cannot take, arrays without examples, and inputs
    that are not finite; `evaluate`, `predict`, `fit` do.

    Args:
        x: inputs: an array or a structure of arrays.
        y: targets, if there are any.

    Raises:
        ValueError: with the argument, or with the number of the first row.
    """
    for name, value in (("x", x), ("y", y)):
        if isinstance(value, list | tuple) and _are_numbers(keras.tree.flatten(value)):
            raise ValueError(
                f"Argument `{name}` must be an array, and a list is taken for several arrays: pass "
                f"np.array({name}). Received: a {type(value).__name__} of {len(value)} entries"
            )
        check_columns(name, value)
    arrays = _arrays_of(x)
    if any(0 in leaf.shape[:1] for leaf in arrays):
        shapes = [tuple(leaf.shape) for leaf in arrays]
        raise ValueError(f"Arrays need at least one example. Received: x of shape {shapes}")
    for leaf in keras.tree.flatten(x):
        _check_finite(leaf)


def check_columns(name: str, value: Any) -> None:
    """Refuse tables of pandas with text, dates or nullable numbers, which Keras cannot take.

    Args:
        name: of the argument, for the message.
        value: a DataFrame, a Series or a structure of these; what is no table passes.

    Raises:
        ValueError: with the column and its dtype.
    """
    for table in (v for v in keras.tree.flatten(value) if hasattr(v, "iloc")):
        is_frame = hasattr(table, "columns")
        dtypes = dict(table.dtypes.items()) if is_frame else {table.name: table.dtype}
        for column, dtype in dtypes.items():
            is_number = isinstance(dtype, np.dtype) and dtype.kind in "biuf"
            # Labels may be text, of which the likelihood says more.
            is_label = name == "y" and getattr(dtype, "kind", "O") in "OSUT"
            if not is_number and not is_label:
                raise ValueError(
                    f"Argument `{name}` must have columns of numbers: make it one by "
                    ".astype('float32'), or give the table to the estimators of tfp_rank1.sklearn "
                    "or bali_keras.sklearn, which take text, categories and gaps. Received: column "
                    f"{column!r} of dtype {dtype}"
                )


def check_batched(model: Any, x: Any) -> None:
    """Refuse a dataset of single examples, which Keras would take for batches.

    Args:
        model: a model; one without symbolic inputs takes anything.
        x: what `fit` was given; what is no `tf.data.Dataset` passes.

    Raises:
        ValueError: with the way to make batches.
    """
    wanted = _input_shapes(model)
    if not isinstance(x, tf.data.Dataset) or not wanted:
        return
    spec = x.element_spec
    leaves = keras.tree.flatten(spec[0] if isinstance(spec, tuple) else spec)
    if len(leaves) != len(wanted):
        return
    for shape, leaf in zip(wanted, leaves, strict=True):
        given = getattr(leaf, "shape", None)
        if given is not None and given.rank == len(shape) - 1 and math.prod(given[:1]) != 1:
            raise ValueError(
                f"Argument `x` must be a dataset of batches {('batch', *shape[1:])}: make them by "
                f"dataset.batch(32). Received: elements of shape {tuple(given)}"
            )


def check_rank(model: Any, x: Any) -> None:
    """Refuse a single example without a batch axis, which Keras would take for a batch.

    Args:
        model: a model; one without symbolic inputs takes anything.
        x: inputs: an array or a structure of arrays; what is no array passes.

    Raises:
        ValueError: with the way to write one example.
    """
    wanted = _input_shapes(model)
    leaves = keras.tree.flatten(x)
    if len(wanted) != len(leaves):
        return
    for shape, leaf in zip(wanted, leaves, strict=True):
        given = tuple(getattr(leaf, "shape", ()))
        # Of one feature per example a vector is a batch.
        if given and given == tuple(shape[1:]) and math.prod(given) > 1:
            raise ValueError(
                f"Inputs must have a batch axis: {('batch', *shape[1:])}; for one example pass "
                f"x[np.newaxis]. Received: an array of shape {given}"
            )


def _input_shapes(model: Any) -> list[tuple[int | None, ...]]:
    return [v.shape for v in keras.tree.flatten(input_structure(model)) if v is not None]


def _arrays_of(x: Any) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "__array__")]


def _are_numbers(leaves: list[Any]) -> bool:
    return bool(leaves) and all(isinstance(v, int | float | str | np.generic) for v in leaves)


def _check_finite(array: Any) -> None:
    """Refuse inputs with NaN or infinity, whose batches `fit` would refuse one by one."""
    bad = rows_not_finite(array) if isinstance(array, np.ndarray) else np.zeros(0, bool)
    if bad.any():
        raise ValueError(
            "Inputs must be finite; remove or impute these rows. Received: NaN or infinity in "
            f"{int(bad.sum())} of {len(array)} rows, the first of them row {int(np.argmax(bad))}"
        )


def warn_of_missing(y: Any) -> None:
    """Say how many targets are NaN: they count as missing, be it meant or not.

    Args:
        y: targets; what is no array passes.
    """
    values = np.asarray(y) if hasattr(y, "__array__") else np.zeros(0)
    count = int(np.isnan(values).sum()) if np.issubdtype(values.dtype, np.floating) else 0
    if count:
        warnings.warn(
            f"{count} of {values.size} targets are NaN: they count as missing, and are left out of "
            "the loss and of all metrics",
            stacklevel=4,
        )
