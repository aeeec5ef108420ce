"""Sections that the docstrings of the estimators share."""

from __future__ import annotations

from typing import TypeVar

from tfp_rank1.layers.docstrings import fill

__all__ = ["documented"]

T = TypeVar("T")

_SECTIONS = {
    "numeric_embedding": """\
numeric_embedding: `"piecewise_linear"`, `"periodic"`, `"encoding"` or `"none"`, see
    `tfp_rank1.models.table_features`. Defaults to {{embedding}}.""",
    "training": """\
batch_size: rows of a step. Defaults to `"auto"`: a fortieth of the rows, 32 to 256.
early_stopping: whether training ends once the NLL of held-out rows has not fallen for
    `n_iter_no_change` epochs, at the weights of the best epoch. Defaults to {{stops_early}}.
validation_fraction: share of the rows that early stopping and calibration hold out.
    Defaults to 0.1.
n_iter_no_change: epochs to wait. Defaults to 16.
calibrate: whether `BayesianModel.calibrate` on the held-out rows follows. Without early
    stopping all rows are trained on after it, by a second fit that keeps the calibration and
    what a search of hyperparameters found. Defaults to True.
categorical_features: columns that are categories: names, places, or a mask. Defaults to None:
    of a DataFrame all columns that do not hold numbers, of an array none.
random_state: an integer or a `numpy.random.RandomState` for reproducible fits. Defaults to None.
verbose: as in `keras.Model.fit`. Defaults to 0.""",
    "attributes": """\
model_: the `tfp_rank1.BayesianModel`, which takes `columns_.transform(X)`.
columns_: the `TableColumns`.
history_: the logs of `fit`, by epoch.
n_iter_: number of epochs.""",
    "scales": """\
offset_, scale_: mean and standard deviation of the targets; the net works in their units.""",
}


def documented(cls: type[T]) -> type[T]:
    """A decorator that fills the placeholders in the docstring of an estimator."""
    is_bali = cls.__name__.startswith("Bali")
    defaults = {
        "embedding": '`"encoding"`' if is_bali else '`"piecewise_linear"`',
        "stops_early": str(not is_bali),
    }
    return fill(cls, _SECTIONS | defaults)
