"""Multi-head attention whose projections are rank-1 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfp_rank1.keras_internals import ATTENTION_PROJECTIONS, attention_value_dim, replace_part
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.einsum_dense import EinsumDenseRank1
from tfp_rank1.layers.rank1 import Composite, by_name, rank1_config, split_arguments
from tfp_rank1.serialization import registered

__all__ = [
    "MultiHeadAttentionRank1",
    "replace_projections",
]


def replace_projections(
    layer: keras.layers.MultiHeadAttention,
    counterpart: Callable[[keras.layers.EinsumDense, int], keras.layers.Layer],
    query_shape: Any,
    value_shape: Any,
    key_shape: Any = None,
) -> None:
    """Replace the stock projections of a layer that is built: it takes no class for them.

    Args:
        layer: the layer.
        counterpart: from a stock projection and its place in the layer to the new one.
        query_shape: of the queries, as `build` takes it.
        value_shape: of the values.
        key_shape: of the keys. Defaults to None: that of the values.
    """
    key_shape = value_shape if key_shape is None else key_shape
    query = getattr(layer, ATTENTION_PROJECTIONS[0])
    heads = (*query.compute_output_shape(query_shape)[:-1], attention_value_dim(layer))
    shapes = query_shape, key_shape, value_shape, query_shape, heads
    for place, (name, shape) in enumerate(zip(ATTENTION_PROJECTIONS, shapes, strict=True)):
        # Only newer versions of Keras have a gate, and only if `use_gate`.
        stock = getattr(layer, name, None)
        if stock is not None:
            new = counterpart(stock, place)
            new.build(shape)
            replace_part(layer, name, new)


@registered("tfp_rank1")
@fill_docstring
class MultiHeadAttentionRank1(Composite, keras.layers.MultiHeadAttention):
    """Multi-head attention whose projections are perturbed by random rank-1 matrices.

        projection(x) = s_k o einsum(x o r_k, W) + b_k,   r_k ~ q(r_k), s_k ~ q(s_k)
        y = output( softmax(query(q) key(v)^T / sqrt(key_dim)) value(v) )

    Queries, keys, values and outputs (and the gate, if `use_gate`) have a projection each, an
    `EinsumDenseRank1` with its own factors. The attention between the projections is that of the
    stock layer.

    Args:
        num_heads: number of heads.
        key_dim: size of each head's queries and keys.
        {{rank1_arguments}}
            The arguments of `Rank1Mixin` hold for every projection.

    Input shape: `[K*B, T, ...]` queries, `[K*B, S, ...]` values and keys, member-major. An
        attention mask has `K*B` rows, or one.

    {{output_shape}}

    {{raises}}

    Example:
    ```python
    h = r1.layers.MultiHeadAttentionRank1(num_heads=4, key_dim=16, ensemble_size=4)(h, h)
    ```

    Source: Vaswani et al. (2017), "Attention Is All You Need"; Dusenberry et al. (2020).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {**by_name(keras.layers.MultiHeadAttention, args), **kwargs}
        ours, stock = split_arguments(given)
        super().__init__(seed=ours.get("seed"), **stock)
        # Projections are made in `build`. A layer made here refuses wrong arguments right away and
        # turns the others into a config.
        self._rank1 = rank1_config(EinsumDenseRank1("ab,bc->ac", 1, **ours))
        self.ensemble_size: int = self._rank1["ensemble_size"]

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        """Create the projections."""
        super().build(query_shape, value_shape, key_shape)
        replace_projections(self, self._projection, query_shape, value_shape, key_shape)

    def _projection(self, stock: keras.layers.EinsumDense, place: int) -> Any:
        """The rank-1 counterpart of a stock projection."""
        # Projections of one seed would have the same draws.
        seed = self._rank1["seed"]
        own = {**self._rank1, "seed": None if seed is None else seed + place}
        return EinsumDenseRank1.from_config({**stock.get_config(), **own})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._rank1}
