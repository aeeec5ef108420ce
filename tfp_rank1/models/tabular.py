"""A net for tables: embedded columns, then an MLP whose many members share their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1 import initializers, layers, posteriors, priors
from tfp_rank1.checks import choice, whole
from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts

__all__ = [
    "NUMERIC_EMBEDDINGS",
    "table_features",
    "tabular",
]

NUMERIC_EMBEDDINGS = ("piecewise_linear", "periodic", "encoding", "none")


def table_features(
    num_numeric: int,
    categories: Sequence[int] = (),
    edges: Sequence[Sequence[float]] | None = None,
    numeric_embedding: str = "piecewise_linear",
    embedding_dim: int = 16,
    category_dim: int | None = 8,
) -> tuple[Any, Any, list[int]]:
    """Inputs of a table and the vector `[B, entries]` that a net sees of a row.

    Args:
        num_numeric: number of numeric columns P, of unit size and without missing numbers.
        categories: number of categories of every categorical column. Defaults to none.
        edges: of the bins of every numeric column, as `layers.quantile_edges` gives them. Needed
            for `"piecewise_linear"` and `"encoding"`.
        numeric_embedding: `"piecewise_linear"` (default), `"periodic"`, `"encoding"` (the places
            among the edges, without weights), or `"none"` for the numbers themselves.
        embedding_dim: size of the vector of a numeric column. Defaults to 16.
        category_dim: size of the vector of a categorical column, see `layers.CategoryEmbedding`.
            Defaults to 8; None for one-hot columns.

    Returns:
        The inputs: `[B, P]`, int `[B, C]`, or for both a dict `{"numeric": .., "categorical": ..}`;
        the vector; and the number of entries of every column.

    Raises:
        ValueError: for a table without columns, an unknown embedding, or edges that are missing or
            of another number of columns.
    """
    num_numeric = whole("num_numeric", num_numeric, least=0)
    choice("numeric_embedding", numeric_embedding, NUMERIC_EMBEDDINGS)
    if not num_numeric and not categories:
        raise ValueError("A table has columns. Received: num_numeric=0 and categories=()")
    inputs, parts, sizes = {}, [], []
    if num_numeric:
        inputs["numeric"] = keras.Input((num_numeric,), name="numeric")
        embedded, entries = inputs["numeric"], [1] * num_numeric
        if numeric_embedding != "none":
            layer = _numeric_layer(num_numeric, edges, numeric_embedding, embedding_dim)
            embedded = layer(embedded)
            is_flat = numeric_embedding == "encoding"
            entries = layer.bins_of if is_flat else [embedded.shape[-1]] * num_numeric
        parts.append(keras.layers.Flatten()(embedded))
        sizes += entries
    if categories:
        inputs["categorical"] = keras.Input((len(categories),), name="categorical", dtype="int32")
        layer = layers.CategoryEmbedding(categories, category_dim, name="categories")
        parts.append(layer(inputs["categorical"]))
        sizes += layer.sizes
    joined = parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
    return inputs if len(inputs) > 1 else next(iter(inputs.values())), joined, sizes


def _numeric_layer(num_numeric: int, edges: Any, kind: str, dim: int) -> keras.layers.Layer:
    """The layer that embeds numeric columns."""
    if kind == "periodic":
        return layers.PeriodicEmbedding(dim, name="numbers")
    if edges is None or len(edges) != num_numeric:
        raise ValueError(
            f"numeric_embedding={kind!r} needs the edges of bins of all {num_numeric} numeric "
            "columns: edges=tfp_rank1.layers.quantile_edges(x_train). Received: "
            + ("edges=None" if edges is None else f"edges of {len(edges)} columns")
        )
    if kind == "encoding":
        return layers.PiecewiseLinearEncoding(edges, flatten=True, name="numbers")
    return layers.PiecewiseLinearEmbedding(edges, dim, name="numbers")


def tabular(
    num_numeric: int,
    num_outputs: int,
    categories: Sequence[int] = (),
    edges: Sequence[Sequence[float]] | None = None,
    hidden: Sequence[int] = (256, 256),
    activation: Any = "relu",
    dropout: float = 0.1,
    numeric_embedding: str = "piecewise_linear",
    embedding_dim: int = 16,
    category_dim: int = 8,
    likelihood: Any = "categorical",
    ensemble_size: int = 32,
    posterior: str = "deterministic",
    stddev: float = 0.03,
    **rank1: Any,
) -> BayesianModel:
    """Embeddings of the columns, dense layers with dropout, and a dense head, by K members.

    The members share all kernels and differ in the factor r of the first layer, which starts at
    random signs, one per column and member; every other factor starts at 1. So each member sees the
    columns in its own way before they are mixed. With points, the default, this is TabM.

    Args:
        num_numeric: number of numeric columns P. Scale them to unit size.
        num_outputs: number of outputs D, as many as the likelihood takes.
        categories: number of categories of every categorical column. Defaults to none.
        edges: edges of bins, `layers.quantile_edges(x_train)`.
        hidden: sizes of the hidden layers. Defaults to (256, 256).
        activation: activation of the hidden layers. Defaults to `"relu"`.
        dropout: rate after every hidden layer, another draw for every member. Defaults to 0.1.
        numeric_embedding: `"piecewise_linear"` (default), `"periodic"`, `"encoding"` or `"none"`;
            see `table_features`.
        embedding_dim: size of the vector of a numeric column. Defaults to 16.
        category_dim: size of the vector of a categorical column. Defaults to 8.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        ensemble_size: number of members K. Defaults to 32.
        posterior: `"deterministic"` (default) for points; `"normal"` for Normal posteriors of all
            factors under a prior that follows their means.
        stddev: standard deviation of Normal posteriors at the start. Defaults to 0.03.
        **rank1: more arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` to `[B, K, num_outputs]`; its inputs are those of `table_features`.

    Raises:
        ValueError: as for `table_features`, for hidden sizes that are empty, or another posterior.

    Example:
    ```python
    model = r1.models.tabular(8, 2, categories=[3, 12], edges=r1.layers.quantile_edges(x_train))
    model.compile(keras.optimizers.AdamW(2e-3, weight_decay=3e-4))
    model.fit({"numeric": x_train, "categorical": codes_train}, y_train, epochs=50)
    ```

    Source: Gorishniy, Kotelnikov & Babenko (2025), "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling"; for posteriors Dusenberry et al. (2020).
    """
    if not hidden:
        raise ValueError("Argument `hidden` must name at least one size. Received: hidden=()")
    choice("posterior", posterior, ("deterministic", "normal"))
    inputs, h, sizes = table_features(
        num_numeric, categories, edges, numeric_embedding, embedding_dim, category_dim
    )
    ones = _factor(posterior, "ones", stddev)
    parts = Parts(ensemble_size, 0.0, None, None, {**ones, **rank1})
    signs = initializers.ByFeature(initializers.RandomSign(), sizes)
    first = _factor(posterior, signs, stddev)
    h = parts.start(h)
    for place, units in enumerate(hidden):
        own = {f"r_{name}": value for name, value in first.items()} if place == 0 else {}
        h = parts.layer("Dense", units, activation=activation, **own)(h)
        h = keras.layers.Dropout(dropout)(h) if dropout else h
    outputs = parts.layer("Dense", num_outputs)(h)
    return parts.model(inputs, outputs, likelihood, "tabular")


def _factor(posterior: str, start: Any, stddev: float) -> dict[str, Any]:
    """Posterior and prior of factors that start at given means."""
    if posterior == "deterministic":
        return {"posterior": posteriors.Deterministic(start), "prior": None}
    return {"posterior": posteriors.Normal(start, stddev), "prior": priors.NormalWithTiedMean()}
