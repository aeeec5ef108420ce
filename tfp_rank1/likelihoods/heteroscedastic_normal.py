"""HeteroscedasticNormal: a Gaussian whose noise the net predicts."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import positive
from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.serialization import registered

__all__ = ["HeteroscedasticNormal"]


@registered("tfp_rank1.likelihoods")
class HeteroscedasticNormal(Likelihood):
    """`y ~ N(loc, scale^2)`, where the net predicts loc and scale for every example.

    Raw outputs are `[..., 2 D]` for D targets: the first half is loc, and the second half gives
    `scale = softplus(second half) + min_scale`.

    Args:
        min_scale: lower bound of the scale, in units of the target, above 0. Defaults to 1e-3.
            Without a bound a single fitted point drives the log-likelihood to infinity.
        **kwargs: as for `keras.layers.Layer`.

    Raises:
        ValueError: for an odd number of outputs, or a `min_scale` that is not above 0.

    Example:
    ```python
    outputs = r1.layers.DenseRank1(2 * num_targets)(h)
    r1.BayesianModel(inputs, outputs, likelihood="heteroscedastic_normal")
    ```
    """

    is_gaussian: ClassVar[bool] = True
    scale_link_names: ClassVar[tuple[str, ...]] = ("softplus", "exponential", "exp")

    def __init__(self, min_scale: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_scale = positive("min_scale", min_scale)

    def build(self, input_shape: Any) -> None:
        """Check that the outputs come in pairs."""
        self.num_targets(input_shape[-1])
        self.built = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Normal` with batch shape `[..., D]`."""
        loc, raw = tf.split(outputs, 2, axis=-1)
        return tfd.Normal(loc, self._scale(raw))

    def _scale(self, raw: tf.Tensor) -> tf.Tensor:
        return tf.nn.softplus(raw) + self.min_scale

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`(e_1 / scale, sqrt(2) e_2 scale' / scale)` with `scale' = d scale / d raw`."""
        # The Fisher information of a scale is `2 / scale^2`; the slope of softplus is `sigmoid`.
        _, raw = tf.split(outputs, 2, axis=-1)
        scale = self._scale(raw)
        first, second = tf.split(noise, 2, axis=-1)
        slopes = tf.concat([first, tf.sqrt(2.0) * second * tf.sigmoid(raw)], axis=-1)
        return slopes / tf.concat([scale, scale], axis=-1)

    def num_targets(self, num_outputs: int) -> int:
        """Half the outputs."""
        if num_outputs % 2:
            raise ValueError(
                "HeteroscedasticNormal needs two outputs per target, mean and raw scale: an even "
                f"number. Received: {num_outputs} outputs"
            )
        return num_outputs // 2

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "min_scale": self.min_scale}
