"""MultiHeadAttentionRank1."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1.keras_internals import ATTENTION_PROJECTIONS, attention_value_dim, replace_part
from tfp_rank1.layers.einsum_dense import EinsumDenseRank1
from tfp_rank1.layers.rank1 import Composite, by_name, rank1_config, split_arguments
from tfp_rank1.serialization import registered


@registered("tfp_rank1")
class MultiHeadAttentionRank1(Composite, keras.layers.MultiHeadAttention):
    """Multi-head attention whose projections are perturbed by random rank-1 matrices.

    Queries, keys, values and outputs each go through an `EinsumDenseRank1` with factors of its
    own; the attention between them is the stock layer's.

    Args:
        num_heads: number of heads.
        key_dim: size of each head's queries and keys.
        **kwargs: every argument of `keras.layers.MultiHeadAttention`, and those of
            `tfp_rank1.layers.Rank1Mixin`, for all projections.

    Input shape: `[K*B, T, ...]` queries, `[K*B, S, ...]` values and keys. Attention masks have
    `K*B` rows, or one.

    Output shape: that of the stock layer.

    Raises:
        ValueError: if K does not divide the batch, for unknown names, or for a posterior whose
            KL from the prior is infinite.

    Example:
    ```python
    h = MultiHeadAttentionRank1(num_heads=4, key_dim=16, ensemble_size=4)(h, h)
    ```

    Source: Vaswani et al. (2017); Dusenberry et al. (2020).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {**by_name(keras.layers.MultiHeadAttention, args), **kwargs}
        ours, stock = split_arguments(given)
        super().__init__(seed=ours.get("seed"), **stock)
        # Any layer checks the arguments and turns them into a config.
        self._rank1 = rank1_config(EinsumDenseRank1("ab,bc->ac", 1, **ours))
        self.ensemble_size: int = self._rank1["ensemble_size"]

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        """Create the projections."""
        super().build(query_shape, value_shape, key_shape)
        key_shape = value_shape if key_shape is None else key_shape
        query = getattr(self, ATTENTION_PROJECTIONS[0])
        heads = (*query.compute_output_shape(query_shape)[:-1], attention_value_dim(self))
        shapes = query_shape, key_shape, value_shape, query_shape, heads
        for place, (name, shape) in enumerate(zip(ATTENTION_PROJECTIONS, shapes, strict=True)):
            stock = getattr(self, name, None)
            if stock is not None:
                replace_part(self, name, self._projection(stock, place, shape))

    def _projection(self, stock: keras.layers.EinsumDense, place: int, shape: Any) -> Any:
        """The rank-1 counterpart of a projection, with noise of its own."""
        seed = self._rank1["seed"]
        own = {**self._rank1, "seed": None if seed is None else seed + place}
        layer = EinsumDenseRank1.from_config({**stock.get_config(), **own})
        layer.build(shape)
        return layer

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        return {**super().get_config(), **self._rank1}
