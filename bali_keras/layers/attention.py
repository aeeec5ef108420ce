"""MultiHeadAttentionBali."""

from __future__ import annotations

from typing import Any

import keras

from bali_keras.layers.base import OF_POSTERIOR
from bali_keras.layers.einsum_dense import EinsumDenseBali
from tfp_rank1.keras_internals import attention_projections, mask_of
from tfp_rank1.layers.attention import replace_projections
from tfp_rank1.scopes import row_masks
from tfp_rank1.serialization import registered

__all__ = [
    "MultiHeadAttentionBali",
]

# Arguments of `BaliLayer` that hold for every projection, and their defaults.
ARGUMENTS: dict[str, Any] = {"sampling": None, **OF_POSTERIOR}


@registered("bali_keras")
class MultiHeadAttentionBali(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections are BALI layers.

        y = output( softmax(query(q) key(v)' / sqrt(key_dim)) value(v) )

    Queries, keys, values and outputs (and the gate, if `use_gate`) have an `EinsumDenseBali` each:
    positions are rows that share its weights. The attention between them is that of the stock
    layer.

    Args:
        num_heads: number of heads.
        key_dim: size of each head's queries and keys.
        **kwargs: as in the stock layer; and `sampling`, `prior_at_mean`, `row_covariance`,
            `statistics_dtype` and `seed` as for `BaliLayer`, for every projection.

    Call arguments:
        query, value, key, ...: as in the stock layer. Positions that a mask leaves out are no data.

    Raises:
        ValueError: for what the stock layer or `EinsumDenseBali` refuses.

    Example:
    ```python
    h = bk.layers.MultiHeadAttentionBali(num_heads=4, key_dim=16)(h, h)
    ```

    Source: Vaswani et al. (2017), "Attention Is All You Need"; Kurle, Klushyn & Herbrich (2024).
    """

    def __init__(self, num_heads: int, key_dim: int, **kwargs: Any) -> None:
        self._bali = {name: kwargs.pop(name, default) for name, default in ARGUMENTS.items()}
        EinsumDenseBali("ab,bc->ac", 1, **self._bali)  # refuses wrong arguments right away
        super().__init__(num_heads, key_dim, seed=self._bali["seed"], **kwargs)

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        """Create the projections."""
        super().build(query_shape, value_shape, key_shape)
        replace_projections(self, self._projection, query_shape, value_shape, key_shape)

    def _projection(self, stock: keras.layers.EinsumDense, place: int) -> EinsumDenseBali:
        """The BALI counterpart of a stock projection."""
        seed = self._bali["seed"]
        return EinsumDenseBali(
            stock.equation,
            stock.partial_output_shape,
            bias_axes=stock.bias_axes,
            activation=stock.activation,
            kernel_initializer=stock.kernel_initializer,
            bias_initializer=stock.bias_initializer,
            name=stock.name,
            dtype=stock.dtype_policy,
            # Projections of one seed would have the same draws.
            **{**self._bali, "seed": None if seed is None else seed + place},
        )

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """As in the stock layer."""
        of_query = mask_of(query) if query_mask is None else query_mask
        of_value = mask_of(value) if value_mask is None else value_mask
        of_key = mask_of(key) if key_mask is None else key_mask
        of_key = of_value if key is None else of_key
        masks = of_query, of_key, of_value, of_query, of_query
        parts = zip(attention_projections(self), masks, strict=True)
        by_part = {id(part): mask for part, mask in parts if mask is not None}
        with row_masks.set({**row_masks.value, **by_part}):
            return super().call(
                query,
                value,
                key=key,
                query_mask=query_mask,
                value_mask=value_mask,
                key_mask=key_mask,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                training=training,
                use_causal_mask=use_causal_mask,
            )

    def get_config(self) -> dict[str, Any]:
        parts = [part for part in attention_projections(self) if part is not None]
        stored = any(getattr(part, "stored_prior", False) for part in parts)
        return {**super().get_config(), **self._bali, "stored_prior": stored}
