"""NegativeBinomial: counts that vary more than a Poisson's."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import ScaledLikelihood
from tfp_rank1.likelihoods.poisson import are_counts
from tfp_rank1.serialization import registered

__all__ = ["NegativeBinomial"]


@registered("tfp_rank1.likelihoods")
class NegativeBinomial(ScaledLikelihood):
    """Counts with mean `m = exp(outputs)` and variance `m + dispersion m^2`.

    The distribution is a Poisson whose rate varies by a Gamma distribution; at dispersion 0 it is
    the Poisson. Raw outputs are log means `[..., D]`, targets whole numbers of at least 0.

    Args:
        dispersion: above 0. Defaults to None: it is learned, one per output, by the optimizer.
        initial_dispersion: value at which a learned dispersion starts, above 0. Defaults to 1.
        **kwargs: as for `keras.layers.Layer`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.NegativeBinomial())
    ```

    Source: Hilbe (2011), "Negative Binomial Regression".
    """

    least: ClassVar[float] = 0.0
    discrete: ClassVar[bool] = True
    link_names: ClassVar[tuple[str, ...]] = ("exponential", "exp")
    scale_name: ClassVar[str] = "dispersion"

    def __init__(
        self, dispersion: float | None = None, initial_dispersion: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(dispersion, initial_dispersion, **kwargs)

    @property
    def dispersion(self) -> tf.Tensor:
        """The dispersion, `[D]` if it is learned, else scalar."""
        return self.scale

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.NegativeBinomial` with batch shape `[..., D]`."""
        dispersion = self.scale_of(outputs)
        # The mean of TFP's distribution is `total_count exp(logits)`.
        logits = outputs + tf.math.log(dispersion)
        return tfd.NegativeBinomial(
            total_count=tf.broadcast_to(1.0 / dispersion, tf.shape(outputs)), logits=logits
        )

    def cdf(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """In float64: the incomplete beta function of large counts has no digits in float32."""
        dispersion = tf.cast(self.scale_of(outputs), tf.float64)
        logits = tf.cast(outputs, tf.float64) + tf.math.log(dispersion)
        exact = tfd.NegativeBinomial(1.0 / dispersion + tf.zeros_like(logits), logits=logits)
        return tf.cast(exact.cdf(tf.cast(targets, tf.float64)), tf.float32)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`sqrt(m / (1 + dispersion m)) o e`."""
        # Not m / (1 + dispersion m), which is NaN where m overflows.
        return noise * tf.math.rsqrt(tf.exp(-outputs) + self.dispersion)

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Whole numbers of at least 0."""
        return are_counts(y)

    def support_message(self, num_outputs: int) -> str:
        return "NegativeBinomial likelihood: targets must be whole numbers of at least 0. Received:"

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {
            **{k: v for k, v in config.items() if k not in ("scale", "initial_scale")},
            "dispersion": config["scale"],
            "initial_dispersion": config["initial_scale"],
        }
