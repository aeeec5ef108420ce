"""An embedding whose table is perturbed by rank-1 matrices."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import stored_weight
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.folding import check_rows, fold, unfold
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.random import fold_in, next_seed
from tfp_rank1.serialization import registered

__all__ = [
    "EmbeddingRank1",
]


@registered("tfp_rank1")
@fill_docstring
class EmbeddingRank1(Rank1Mixin, keras.layers.Embedding):
    """An embedding whose table is perturbed by random rank-1 matrices, one per member.

        multiplicative   y = r_k[i] (E[i] o s_k),   r_k ~ q(r_k), s_k ~ q(s_k)     i: a token
        additive         y = E[i] + r_k E + s_k

    The layer equals `DenseRank1` without a bias on one-hot inputs: r_k has an entry per token and
    s_k per dimension of the embedding. A token keeps its entry of r_k throughout an example. With
    `sampling="example"` a call draws `rows * input_dim` numbers for r; for large vocabularies use
    `sampling="member"` or `r_posterior="deterministic"`.

    Args:
        input_dim: number of tokens.
        output_dim: size of an embedding.
        {{rank1_arguments}}
            The layer has no bias.

    Input shape: `[K*B, ...]`, member-major, whole numbers in `[0, input_dim)`; as in the stock
        layer, negative numbers count from the end.

    Output shape: `[K*B, ..., output_dim]`.

    {{raises}}

    Example:
    ```python
    h = r1.layers.TileMembers(4)(keras.Input((None,), dtype="int32"))
    h = r1.layers.EmbeddingRank1(1000, 32, mask_zero=True, ensemble_size=4)(h)
    ```

    {{source}}
    """

    # `Rank1Mixin` reads both; the stock layer has neither.
    use_bias = False
    activation = None

    def __init__(self, *args: Any, weights: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The stock constructor would call `build` on weights, before the mixin has made factors.
        if weights is not None:
            self.build()
            table = weights[0] if isinstance(weights, list) else weights
            stored_weight(self, "embeddings").assign(table)

    def build(self, input_shape: Any = None) -> None:
        """Create the table and the factors."""
        if not self.built:
            self._build_rank1(input_shape, in_dim=self.input_dim, out_dim=self.output_dim)

    def _build_stock(self, input_shape: Any) -> None:
        keras.layers.Embedding.build(self, input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Embeddings under fresh draws of the factors, in training and inference alike."""
        tokens = ops.cast(check_rows(inputs, self.ensemble_size, self.name), "int32")
        # `ops.take` counts negative tokens from the end, `tf.gather` in `_of_tokens` does not.
        tokens = tf.where(tokens < 0, tokens + self.input_dim, tokens)
        seed = next_seed(self.seed_generator)
        rows = self._num_draws(tokens)
        r = self._draw(self.r_factor, rows, seed)
        # The stock layer sets `autocast = False`, so its variables come in their own dtype.
        table = ops.cast(self.embeddings, self.compute_dtype)
        y = ops.take(table, tokens, axis=0)
        if self.perturbation == "multiplicative":
            y = y * ops.cast(self._of_tokens(r, tokens), y.dtype)[..., tf.newaxis]
        else:
            y = self._perturb(y, ops.matmul(ops.cast(r, y.dtype), table), channel_axis=-1)
        return self._perturb(y, self._draw(self.s_factor, rows, fold_in(seed, 1)), channel_axis=-1)

    def _of_tokens(self, r: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Every token's entry of r, `[K, B or 1, input_dim]`, in the shape of `tokens`."""
        by_member = unfold(tokens, self.ensemble_size)
        if r.shape[1] == 1:
            return fold(tf.gather(r[:, 0], by_member, batch_dims=1))
        return fold(tf.gather(r, by_member, batch_dims=2))
