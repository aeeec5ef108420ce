"""StudentT: a bell with heavy tails."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import positive
from tfp_rank1.likelihoods.noise import ScaleAtStart, ScaledLikelihood
from tfp_rank1.serialization import registered

__all__ = ["StudentT"]


@registered("tfp_rank1.likelihoods")
class StudentT(ScaledLikelihood):
    """`y = outputs + scale t`, where t has Student's distribution with `df` degrees of freedom.

    Single targets far from the rest cost little; they would widen or bend the fit of a `Normal`.

    Args:
        df: degrees of freedom, above 2, so that the target has a variance. Defaults to 4.
        scale: scale of the noise, in units of the target, above 0; the standard deviation is
            `scale sqrt(df / (df - 2))`. Defaults to None: the residuals of the first batch
            start it, one per output, and the optimizer learns it.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1.
        **kwargs: as for `keras.layers.Layer`.

    Raises:
        ValueError: for a `df` of 2 or less.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.StudentT(df=3))
    ```

    Source: Lange, Little & Taylor (1989), "Robust Statistical Modeling Using the t Distribution".
    """

    def __init__(
        self,
        scale: float | None = None,
        initial_scale: float = 1.0,
        df: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale, initial_scale, **kwargs)
        self.df = positive("df", df)
        if self.df <= 2.0:
            raise ValueError(
                "Argument `df` must be above 2: with fewer degrees of freedom the target has no "
                f"variance. Received: df={df}"
            )

    @property
    def scale_at_start(self) -> ScaleAtStart | None:
        """The residuals of the first batch."""
        return self.started_by_residuals()

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.StudentT` with batch shape `[..., D]`."""
        return tfd.StudentT(self.df, outputs, self.scale_of(outputs))

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """The outputs."""
        return tf.identity(outputs)

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """`scale^2 df / (df - 2)`."""
        factor = self.df / (self.df - 2.0)
        return factor * tf.square(self.scale_of(outputs)) + tf.zeros_like(outputs)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`e / scale sqrt((df + 1) / (df + 3))`."""
        # The Fisher information is below that of a Normal: targets in the tails say little.
        return noise / self.scale * math.sqrt((self.df + 1.0) / (self.df + 3.0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "df": self.df}
