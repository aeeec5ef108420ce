"""A dense layer whose kernel is perturbed by rank-1 matrices."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.serialization import registered

__all__ = [
    "DenseRank1",
]


@registered("tfp_rank1")
@fill_docstring
class DenseRank1(Rank1Mixin, keras.layers.Dense):
    """A dense layer whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o (W^T (x o r_k)) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Each member adds O(in + out) parameters to those of the stock layer. Factors and draws take
    O(rows (in + out)) memory: no kernel of a member is ever formed.

    Args:
        units: number of outputs.
        {{rank1_arguments}}

    Input shape: `[K*B, ..., in]`, member-major, of rank 2 or more.

    Output shape: `[K*B, ..., units]`.

    {{raises}}

    Example:
    ```python
    x = inputs = keras.Input((64,))
    x = r1.layers.TileMembers(4)(x)
    x = r1.layers.DenseRank1(128, activation="relu", ensemble_size=4)(x)
    x = r1.layers.DenseRank1(10, ensemble_size=4, prior=r1.priors.Normal(1.0, 0.1))(x)
    outputs = r1.layers.SplitMembers(4)(x)                                         # [B, 4, 10]
    ```

    {{source}}
    """

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        self._build_rank1(input_shape, in_dim=input_shape[-1], out_dim=self.units)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, channel_axis=-1)
        return self._finish(ops.matmul(x, self.kernel), seed, channel_axis=-1)
