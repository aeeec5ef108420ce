"""Architectures of BALI layers: a net for tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bali_keras.layers import DenseBali
from bali_keras.model import BaliModel
from tfp_rank1.models import table_features

__all__ = ["tabular"]


def tabular(
    num_numeric: int,
    num_outputs: int,
    categories: Sequence[int] = (),
    edges: Sequence[Sequence[float]] | None = None,
    hidden: Sequence[int] = (100, 100),
    activation: Any = "relu",
    numeric_embedding: str = "encoding",
    embedding_dim: int = 16,
    category_dim: int | None = None,
    likelihood: Any = "categorical",
    **bali: Any,
) -> BaliModel:
    """Embeddings of the columns, then dense layers with conjugate posteriors.

    By default the embeddings have no weights, places among edges and one-hot categories, so that
    every weight of the net has a posterior. Layers with weights, `"piecewise_linear"` or
    `"periodic"`, are trained by the optimizer of `compile` in the same step.

    Args:
        num_numeric: number of numeric columns P. Scale them to unit size.
        num_outputs: number of outputs D, as many as the likelihood takes.
        categories: number of categories of every categorical column. Defaults to none.
        edges: edges of bins, `tfp_rank1.layers.quantile_edges(x_train)`.
        hidden: sizes of the hidden layers; empty for Bayesian regression on the embeddings.
            Defaults to (100, 100).
        activation: activation of the hidden layers. Defaults to `"relu"`.
        numeric_embedding: `"encoding"` (default), `"none"`, `"piecewise_linear"` or `"periodic"`.
        embedding_dim: size of the vector of a numeric column that has weights. Defaults to 16.
        category_dim: largest number of categories that is one-hot, and size of the vector of a
            column with more. Defaults to None: all columns are one-hot.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        **bali: arguments of `bali_keras.layers.BaliLayer`, for all layers.

    Returns:
        A `BaliModel` to `[B, num_outputs]`; its inputs are those of
        `tfp_rank1.models.table_features`.

    Raises:
        ValueError: as for `tfp_rank1.models.table_features`.

    Example:
    ```python
    model = bk.models.tabular(8, 2, edges=r1.layers.quantile_edges(x_train))
    model.compile()
    model.fit(x_train, y_train, batch_size=64, epochs=50)
    ```

    Source: Kurle, Klushyn & Herbrich (2024); for the encoding Gorishniy, Rubachev & Babenko (2022).
    """
    inputs, h, _ = table_features(
        num_numeric, categories, edges, numeric_embedding, embedding_dim, category_dim
    )
    for units in hidden:
        h = DenseBali(units, activation=activation, **bali)(h)
    outputs = DenseBali(num_outputs, **bali)(h)
    return BaliModel(inputs, outputs, likelihood=likelihood, name="tabular")
