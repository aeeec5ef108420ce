"""Likelihoods: from a model's raw outputs to the distribution of the target.

A likelihood is a Keras layer that passes the outputs through unchanged. As the last operation of
a `BayesianModel` it is saved, cloned and exported with the model, and what it learns (the noise
scale of `Normal()`) is an ordinary weight.

Raw outputs have shape `[..., D]`, where the leading axes are any of batch, members, samples.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils.naming import auto_name, to_snake_case
from tensorflow_probability import distributions as tfd

from tfp_rank1._registry import lookup, positive, registered
from tfp_rank1.initializers import InverseSoftplus
from tfp_rank1.posteriors import softplus_scale


class Likelihood(keras.layers.Layer):
    """Base class of the likelihoods.

    Attributes:
        discrete: whether targets are counts or classes; quantiles are then whole numbers.
        mean_name: what the predictive mean is called in an exported model.
    """

    discrete: ClassVar[bool] = False
    mean_name: ClassVar[str] = "mean"

    def __init__(self, **kwargs: Any) -> None:
        # float32 whatever the policy: log-probabilities in half precision are worthless.
        # A name of its own, which no layer or column of a table called "categorical" takes.
        if kwargs.get("name") is None:
            kwargs["name"] = auto_name(f"{to_snake_case(type(self).__name__)}_likelihood")
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, outputs: tf.Tensor) -> tf.Tensor:
        """The outputs, unchanged, in float32."""
        return keras.ops.convert_to_tensor(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the outputs."""
        return input_shape

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Distribution of the target given raw outputs `[..., D]`.

        Elementwise, batch shape `[..., targets]`; Categorical is one variable over D classes.
        """
        raise NotImplementedError

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Mean of the target, `[..., targets]`; class probabilities for Categorical."""
        return self.distribution(outputs).mean()

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """Variance of the target, `[..., targets]`; of the one-hot target for Categorical."""
        return self.distribution(outputs).variance()

    def entropy(self, outputs: tf.Tensor) -> tf.Tensor:
        """Entropy of the target in nats, `[...]`, summed over independent targets.

        Raises:
            NotImplementedError: where there is no closed form (Poisson).
        """
        return tf.reduce_sum(self.distribution(outputs).entropy(), axis=-1)

    def log_prob(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """`log p(targets | outputs)` in nats, `[...]`, summed over independent targets.

        Args:
            outputs: `[..., D]`.
            targets: as `prepare_targets` returns them, broadcast over the leading axes.
        """
        return tf.reduce_sum(self.distribution(outputs).log_prob(targets), axis=-1)

    def num_targets(self, num_outputs: int) -> int:
        """Number of target values per example for D raw outputs."""
        return num_outputs

    def prepare_targets(self, targets: Any, num_outputs: int) -> tf.Tensor:
        """Targets as float32 `[B, targets]`, with values checked.

        Eagerly and in graphs a bad value raises. XLA drops such checks, so there a bad value
        becomes NaN, and with it the loss.

        Raises:
            ValueError: if the shape does not fit the outputs.
            tf.errors.InvalidArgumentError: if a value lies outside the support.
        """
        return self._checked(self.shape_targets(targets, num_outputs), num_outputs)

    def shape_targets(self, targets: Any, num_outputs: int) -> tf.Tensor:
        """Targets as float32 `[B, targets]`, whatever their values.

        Raises:
            ValueError: if the shape does not fit the outputs.
        """
        y = tf.convert_to_tensor(targets)
        expected = self.num_targets(num_outputs)
        if y.shape.rank == 1 and expected == 1:
            y = y[:, tf.newaxis]
        if y.shape.rank != 2 or y.shape[-1] not in (None, expected):
            raise ValueError(
                f"{type(self).__name__} likelihood with {num_outputs} outputs: targets must have "
                f"shape [batch, {expected}]"
                + (" or [batch]" if expected == 1 else "")
                + f". Received: targets of shape {y.shape}"
            )
        return tf.cast(y, tf.float32)

    def _checked(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        valid = self._valid(y, num_outputs)
        check = tf.debugging.Assert(
            tf.reduce_all(valid),
            [self._support_message(num_outputs), tf.reduce_min(y), tf.reduce_max(y)],
            summarize=1,
        )
        with tf.control_dependencies([check] if check is not None else []):
            return tf.where(valid, y, float("nan"))

    def check_targets(self, targets: Any, num_outputs: int) -> None:
        """Look at a whole array of targets before training.

        Raises:
            ValueError: if a value lies outside the support, with the range received.
        """
        y = np.asarray(targets)
        if y.size and not bool(np.all(self._valid(tf.constant(y, tf.float32), num_outputs))):
            raise ValueError(
                f"{self._support_message(num_outputs)} min={np.min(y)}, max={np.max(y)}, "
                f"{int(np.sum(~np.isfinite(y.astype(float))))} values not finite"
            )

    def _support_message(self, num_outputs: int) -> str:
        return f"{type(self).__name__} likelihood: targets must be finite. Received:"

    def _valid(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        return tf.math.is_finite(y)


@registered
class Categorical(Likelihood):
    """One of C classes; raw outputs are logits `[..., C]`, targets integers `[B]` in `[0, C)`."""

    discrete: ClassVar[bool] = True
    mean_name: ClassVar[str] = "probs"

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Categorical` with batch shape `[...]`."""
        return tfd.Categorical(logits=outputs)

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Class probabilities `[..., C]`."""
        return tf.nn.softmax(outputs)

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """`p (1 - p)` per class, `[..., C]`."""
        probabilities = self.mean(outputs)
        return probabilities * (1.0 - probabilities)

    def entropy(self, outputs: tf.Tensor) -> tf.Tensor:
        """`-sum_c p_c log p_c`, `[...]`."""
        return tfd.Categorical(logits=outputs).entropy()

    def log_prob(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """`log softmax(outputs)[target]`, `[...]`."""
        log_probabilities = tf.nn.log_softmax(outputs)
        label = targets[..., 0]
        one_hot = tf.one_hot(tf.cast(label, tf.int32), outputs.shape[-1])
        chosen = tf.reduce_sum(one_hot * log_probabilities, axis=-1)
        return tf.where(tf.math.is_nan(label), label, chosen)

    def num_targets(self, num_outputs: int) -> int:
        """One label."""
        return 1

    def _support_message(self, num_outputs: int) -> str:
        return (
            f"Categorical likelihood with {num_outputs} classes: labels must be whole numbers in "
            f"[0, {num_outputs}). Received:"
        )

    def _valid(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        return (y >= 0.0) & (y < float(num_outputs)) & (tf.floor(y) == y)


@registered
class Bernoulli(Likelihood):
    """D independent yes/no targets; raw outputs are logits `[..., D]`, targets `[B, D]` 0 or 1."""

    discrete: ClassVar[bool] = True
    mean_name: ClassVar[str] = "probs"

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Bernoulli` with batch shape `[..., D]`."""
        return tfd.Bernoulli(logits=outputs, dtype=tf.float32)

    def _support_message(self, num_outputs: int) -> str:
        return "Bernoulli likelihood: targets must be 0 or 1. Received:"

    def _valid(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        return (y == 0.0) | (y == 1.0)


@registered
class Normal(Likelihood):
    """`y ~ N(outputs, scale^2)`, one scale per output.

    Args:
        scale: standard deviation of the noise, in units of the target, above 0. Defaults to None:
            it is learned, one per output.
        initial_scale: where a learned scale starts. Defaults to 1, right for a standardized
            target.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    ```
    """

    def __init__(
        self, scale: float | None = None, initial_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.fixed_scale = None if scale is None else positive("scale", scale)
        self.initial_scale = positive("initial_scale", initial_scale)
        self.rho: keras.Variable | None = None

    def build(self, input_shape: Any) -> None:
        """Create the learned scale, one per output."""
        if self.fixed_scale is None:
            self.rho = self.add_weight(
                name="rho",
                shape=(input_shape[-1],),
                initializer=InverseSoftplus(self.initial_scale),
                autocast=False,
            )
        self.built = True

    @property
    def scale(self) -> tf.Tensor:
        """Standard deviation of the noise, `[D]` if learned, else scalar."""
        if self.fixed_scale is not None:
            return tf.constant(self.fixed_scale, tf.float32)
        if self.rho is None:
            raise ValueError(
                "likelihoods.Normal() learns its noise scale and belongs to no model that could "
                "train it. Use a tfp_rank1.BayesianModel, or fix it: Normal(scale=0.5). "
                "Received: scale=None"
            )
        return softplus_scale(self.rho)

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Normal` with batch shape `[..., D]`."""
        if self.rho is not None and self.rho.shape[0] != outputs.shape[-1]:
            raise ValueError(
                "A learned noise scale belongs to one model. Give each model its own "
                f"likelihoods.Normal(). Received: a scale for {self.rho.shape[0]} outputs, and "
                f"{outputs.shape[-1]} outputs"
            )
        return tfd.Normal(outputs, self.scale)

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        return {
            **super().get_config(),
            "scale": self.fixed_scale,
            "initial_scale": self.initial_scale,
        }


@registered
class HeteroscedasticNormal(Likelihood):
    """`y ~ N(loc, scale^2)` with the noise predicted per example.

    Raw outputs `[..., 2 D]`: the first D are loc, `scale = softplus(last D) + min_scale`.

    Args:
        min_scale: lower bound of the scale, in units of the target. Defaults to 1e-3: without a
            bound a single fitted point drives the log-likelihood to infinity.
    """

    def __init__(self, min_scale: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_scale = positive("min_scale", min_scale)

    def build(self, input_shape: Any) -> None:
        """Check that the outputs come in pairs."""
        self.num_targets(input_shape[-1])
        self.built = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Normal` with batch shape `[..., D]`."""
        loc, rho = tf.split(outputs, 2, axis=-1)
        return tfd.Normal(loc, tf.nn.softplus(rho) + self.min_scale)

    def num_targets(self, num_outputs: int) -> int:
        """Half the outputs."""
        if num_outputs % 2:
            raise ValueError(
                "HeteroscedasticNormal needs two outputs per target, mean and raw scale: an even "
                f"number. Received: {num_outputs} outputs"
            )
        return num_outputs // 2

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        return {**super().get_config(), "min_scale": self.min_scale}


@registered
class Poisson(Likelihood):
    """Counts; raw outputs are log rates `[..., D]`, targets whole numbers of at least 0."""

    discrete: ClassVar[bool] = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Poisson` with batch shape `[..., D]`."""
        return tfd.Poisson(log_rate=outputs)

    def _support_message(self, num_outputs: int) -> str:
        return "Poisson likelihood: targets must be whole numbers of at least 0. Received:"

    def _valid(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        return (y >= 0.0) & (tf.floor(y) == y) & tf.math.is_finite(y)


ALL: tuple[type[Likelihood], ...] = (
    Categorical,
    Bernoulli,
    Normal,
    HeteroscedasticNormal,
    Poisson,
)


def get(identifier: Any) -> Likelihood:
    """A likelihood from an object, a name such as `"categorical"`, or a serialized config.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    return lookup(identifier, Likelihood, ALL, "likelihood")
