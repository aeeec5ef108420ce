"""DenseRank1."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.serialization import registered


@registered("tfp_rank1")
class DenseRank1(Rank1Mixin, keras.layers.Dense):
    """A dense layer whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o (W^T (x o r_k)) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Beyond the stock layer it has O(in + out) parameters per member and needs O(rows (in + out))
    memory.

    Args:
        units: size of the outputs.
        **kwargs: every argument of `keras.layers.Dense`, and those of
            `tfp_rank1.layers.Rank1Mixin`: `ensemble_size`, `posterior`, `prior`, ...

    Input shape: `[K*B, ..., in]`, member-major; any rank of at least 2.

    Output shape: `[K*B, ..., units]`.

    Raises:
        ValueError: if K does not divide the batch, for unknown names, or for a posterior whose
            KL from the prior is infinite.

    Example:
    ```python
    x = inputs = keras.Input((64,))
    x = TileMembers(4)(x)
    x = DenseRank1(128, activation="relu", ensemble_size=4)(x)
    x = DenseRank1(10, ensemble_size=4, prior=priors.Normal(1.0, 0.1))(x)
    outputs = SplitMembers(4)(x)                                         # [B, 4, 10]
    ```

    Source: Dusenberry et al. (2020), "Efficient and Scalable Bayesian Neural Nets with Rank-1
    Factors".
    """

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        self._build_rank1(input_shape, in_dim=input_shape[-1], out_dim=self.units)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, channel_axis=-1)
        return self._finish(ops.matmul(x, self.kernel), seed, channel_axis=-1)
