"""Columns of a table as one array, for methods that know no categories."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from tfp_rank1.sklearn import TableColumns

__all__ = ["OneHotColumns"]


class OneHotColumns(TransformerMixin, BaseEstimator):
    """`TableColumns` as one array: scaled numbers beside a column per category."""

    def fit(self, X: Any, y: Any = None) -> OneHotColumns:  # noqa: N803  scikit-learn's name
        """Learn scales and categories."""
        self.columns_ = TableColumns().fit(X)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """`[N, numbers and categories]`."""
        arrays = self.columns_.transform(X)
        parts = [arrays["numeric"]] if "numeric" in arrays else []
        for place, count in enumerate(self.columns_.cardinalities_):
            parts.append(np.equal.outer(arrays["categorical"][:, place], np.arange(count)))
        return np.concatenate(parts, axis=1).astype("float64")
