"""HeteroscedasticNormal: a Gaussian whose noise the net predicts."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import positive
from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.likelihoods.noise import ScaleAtStart, softplus_inverse
from tfp_rank1.posteriors import SCALE_FLOOR
from tfp_rank1.serialization import registered

__all__ = ["HeteroscedasticNormal"]

# The lower bound of scales, in units of the residuals at the start.
_RELATIVE = 1e-3


@registered("tfp_rank1.likelihoods")
class HeteroscedasticNormal(Likelihood):
    """`y ~ N(loc, scale^2)`, where the net predicts loc and scale for every example.

    Raw outputs are `[..., 2 D]` for D targets: the first half is loc, and the second half gives
    `scale = unit softplus(second half) + min_scale`. The unit is 1 until training begins: the first
    batch multiplies it by the root mean square of `(y - loc) / scale`, if that is above 2 or below
    a half: scales start at the size of the residuals, whatever the unit of the target.

    Args:
        min_scale: lower bound of the scale, in units of the target, above 0. Defaults to None:
            a thousandth of the unit. Without a bound a single fitted point drives the
            log-likelihood to infinity.
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

    def __init__(self, min_scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_scale = None if min_scale is None else positive("min_scale", min_scale)
        self.unit: keras.Variable | None = None

    def build(self, input_shape: Any) -> None:
        """Create the unit, one per target, and check that the outputs come in pairs."""
        self.unit = self.add_weight(
            name="unit",
            shape=(self.num_targets(input_shape[-1]),),
            initializer="ones",
            trainable=False,
            autocast=False,
        )
        self.built = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Normal` with batch shape `[..., D]`."""
        loc, raw = tf.split(outputs, 2, axis=-1)
        return tfd.Normal(loc, self._scale(raw))

    def _unit(self) -> tf.Tensor:
        return tf.ones(()) if self.unit is None else tf.convert_to_tensor(self.unit)

    def _scale(self, raw: tf.Tensor) -> tf.Tensor:
        return self._unit() * tf.nn.softplus(raw) + self.lowest_scale()

    def lowest_scale(self) -> tf.Tensor:
        """`min_scale`, `[D]` or scalar."""
        if self.min_scale is not None:
            return tf.constant(self.min_scale, tf.float32)
        return _RELATIVE * self._unit()

    @property
    def has_temperature(self) -> bool:
        """True: predicted scales are multiplied by it."""
        return True

    def tempered(self, outputs: tf.Tensor, temperature: Any) -> tf.Tensor:
        """Outputs whose scale is `temperature scale`, or `min_scale` if that is larger."""
        loc, raw = tf.split(outputs, 2, axis=-1)
        scale = tf.cast(temperature, outputs.dtype) * self._scale(raw)
        above = (scale - self.lowest_scale()) / self._unit()
        return tf.concat([loc, softplus_inverse(tf.maximum(above, SCALE_FLOOR))], axis=-1)

    @property
    def scale_at_start(self) -> ScaleAtStart | None:
        """What the first batch does to the unit."""
        if self.unit is None:
            return None
        return ScaleAtStart(self.unit, self._unit, tf.identity, self.distribution)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`(e_1 / scale, sqrt(2) e_2 scale' / scale)` with `scale' = d scale / d raw`."""
        # The Fisher information of a scale is `2 / scale^2`; the slope of softplus is `sigmoid`.
        _, raw = tf.split(outputs, 2, axis=-1)
        scale = self._scale(raw)
        first, second = tf.split(noise, 2, axis=-1)
        slope = self._unit() * tf.sigmoid(raw)
        slopes = tf.concat([first, tf.sqrt(2.0) * second * slope], axis=-1)
        return slopes / tf.concat([scale, scale], axis=-1)

    def num_targets(self, num_outputs: int) -> int:
        """Half the outputs."""
        if num_outputs % 2:
            raise ValueError(
                "HeteroscedasticNormal needs two outputs per target, mean and raw scale: an even "
                f"number. Received: {num_outputs} outputs"
            )
        return num_outputs // 2

    def load_own_variables(self, store: Any) -> None:
        """Load the unit; files of 0.1.0 hold none, and their scales have the unit 1."""
        if self.unit is not None and len(store.keys()):
            super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "min_scale": self.min_scale}
