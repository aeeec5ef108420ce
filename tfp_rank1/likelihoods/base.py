"""`Likelihood`, the base of all likelihoods: what a likelihood is, and what it can do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.keras_internals import auto_name
from tfp_rank1.serialization import snake_case

__all__ = ["Likelihood", "checked_positions"]


# The net of an image without a Flatten answers for every row of it.
_POSITIONS = (
    " The net answers at every position; for one answer per example flatten or pool the positions "
    "before the last layer."
)


class Likelihood(keras.layers.Layer):
    """Base class: from a model's raw outputs to the distribution of the target.

    A likelihood is a Keras layer that passes the outputs through unchanged. As the last operation
    of a `BayesianModel` it is saved, cloned and exported with the model, and a parameter that it
    learns (the noise scale of `Normal()`) is an ordinary Keras variable.

    Raw outputs have shape `[..., D]`, where the leading axes are any of batch, members, samples
    and positions.

    A subclass defines `distribution`, and overrides the attributes and methods that say what the
    likelihood can do. Training, predictive distributions, metrics, export and BALI use these, and
    never ask for the class of a likelihood. One whose targets cannot be any number overrides
    `is_in_support` and `support_message`, or targets outside are trained on like others.

    Attributes:
        discrete: whether targets are counts or classes; quantiles are then whole numbers.
        predicts_probabilities: whether `mean` returns the probabilities of classes. Answers are
            then probabilities and entropies, else moments.
        is_categorical: whether a target is one index among D classes, which have no order.
        is_gaussian: whether the target is Normal given the raw outputs.
        has_closed_form_marginal: whether the raw outputs are means of Normal targets with a noise
            that does not depend on the outputs. The subclass then overrides `noise_variance` and
            `marginal`.
        link_names: names of the function that the likelihood applies to raw outputs, such as
            `"softmax"`, so that a net must not end in it.
        scale_link_names: the same for the last part of the raw outputs, where this is a scale.
        least: the lower end of the support of targets.
        placeholder: a value inside the support, which stands in for a missing target: log-densities
            are computed for all targets, and those of missing ones are left out.

    Example:
    ```python
    @keras.saving.register_keras_serializable("my_project")
    class Exponential(r1.likelihoods.Likelihood):
        link_names = ("exponential", "exp")

        def distribution(self, outputs):
            return tfd.Exponential(tf.exp(-outputs))             # outputs: log means

        def is_in_support(self, y, num_outputs):
            return tf.math.is_finite(y) & (y >= 0.0)

        def support_message(self, num_outputs):
            return "Exponential likelihood: targets must be at least 0. Received:"
    ```
    """

    discrete: ClassVar[bool] = False
    predicts_probabilities: ClassVar[bool] = False
    is_categorical: ClassVar[bool] = False
    is_gaussian: ClassVar[bool] = False
    has_closed_form_marginal: ClassVar[bool] = False
    link_names: ClassVar[tuple[str, ...]] = ()
    scale_link_names: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[float] = -float("inf")
    placeholder: ClassVar[float] = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the name that 0.1.0 had for `predicts_probabilities`, with a warning."""
        super().__init_subclass__(**kwargs)
        if "mean_name" in vars(cls):
            cls.predicts_probabilities = vars(cls)["mean_name"] == "probs"
            warnings.warn(
                f"`mean_name` of {cls.__name__} became `predicts_probabilities`, a bool, in 0.2.0, "
                "and will not be read from 0.3.0 on: set "
                f"predicts_probabilities = {cls.predicts_probabilities}",
                DeprecationWarning,
                stacklevel=2,
            )

    def __init__(self, **kwargs: Any) -> None:
        # The suffix keeps the name free for a layer or an input called "categorical".
        if kwargs.get("name") is None:
            kwargs["name"] = auto_name(f"{snake_case(type(self).__name__)}_likelihood")
        # float32 under every dtype policy: log-probabilities in half precision are worthless.
        answers = kwargs.pop("answers", None)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.supports_masking = True  # outputs pass through unchanged, and so do masks
        # How the model that ends here answers, as text: a clone of the model is made from its graph
        # alone. See `model.answer_state`; nobody else reads it.
        self.answers: str | None = answers

    def call(self, outputs: tf.Tensor) -> tf.Tensor:
        """The outputs, unchanged, in float32."""
        return keras.ops.convert_to_tensor(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the outputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        answers = {} if self.answers is None else {"answers": self.answers}
        return {**super().get_config(), **answers}

    # -- the distribution of the target ---------------------------------------------------------

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """The distribution of the target given raw outputs `[..., D]`.

        Its batch shape is `[..., targets]`, with independent targets; if `is_categorical`, it is
        one distribution over D classes, with batch shape `[...]`.
        """
        raise NotImplementedError

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Mean of the target, `[..., targets]`; for Categorical class probabilities, `[..., D]`."""
        distribution = self.distribution(outputs)
        return distribution.probs_parameter() if self.is_categorical else distribution.mean()

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """Variance of the target, `[..., targets]`; for Categorical of the one-hot target."""
        if self.is_categorical:
            probabilities = self.mean(outputs)
            return probabilities * (1.0 - probabilities)
        return self.distribution(outputs).variance()

    def entropy(self, outputs: tf.Tensor) -> tf.Tensor:
        """Entropy of the target in nats, `[...]`, summed over independent targets.

        Raises:
            NotImplementedError: for a distribution without a closed form, such as Poisson.
        """
        entropy = self.distribution(outputs).entropy()
        return entropy if self.is_categorical else tf.reduce_sum(entropy, axis=-1)

    def log_prob(
        self, outputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`sum_t w_t log p(targets_t | outputs)` in nats, `[...]`, over the observed targets t.

        Args:
            outputs: raw outputs `[..., D]`.
            targets: targets as `prepare_targets` returns them, broadcast over the leading axes.
            weights: weights w of the targets, broadcast like the targets. Defaults to None: 1.
        """
        return self.log_prob_under(self.distribution(outputs), targets, weights)

    def log_prob_under(
        self, distribution: tfd.Distribution, targets: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """As `log_prob`, for a distribution of the target such as `marginal` returns."""
        # No NaN, whose gradient would be NaN although the value is left out.
        values, observed = self.filled(targets)
        if self.is_categorical:  # one variable, whose axis of targets has size 1
            log_probs = distribution.log_prob(values[..., 0])[..., tf.newaxis]
        else:
            log_probs = distribution.log_prob(values)
        log_probs = tf.where(observed, log_probs, 0.0)
        return tf.reduce_sum(log_probs if weights is None else weights * log_probs, axis=-1)

    @property
    def has_missing_targets(self) -> bool:
        """Whether a target may be missing, see `observed`."""
        return not self.is_categorical

    def observed(self, targets: tf.Tensor) -> tf.Tensor:
        """Which targets are not missing, boolean `[..., targets]`: all but NaN."""
        return ~tf.math.is_nan(targets)

    def filled(self, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The targets with `placeholder` for those that are missing, and which are `observed`."""
        observed = self.observed(targets)
        return tf.where(observed, targets, self.placeholder), observed

    def cdf(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """`P(Y <= targets)` of each target on its own, `[..., targets]`."""
        return self.distribution(outputs).cdf(targets)

    # -- what only some likelihoods can do ------------------------------------------------------

    def entropy_of_mixture(self, mean: tf.Tensor) -> tf.Tensor | None:
        """Entropy in nats, `[...]`, of a mixture over samples, given its mean `[..., targets]`.

        Returns:
            The entropy, `-sum_c p_c log p_c` if `is_categorical`: a mixture of distributions over
            classes is one. None in general, where the mean does not determine the entropy, which is
            then estimated.
        """
        if not self.is_categorical:
            return None
        # Not `xlogy`, which ONNX and LiteRT lack: here 0 log 0 is 0 times a finite number.
        return tf.reduce_sum(-mean * tf.math.log(tf.maximum(mean, 1e-30)), axis=-1)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """Random vectors s with the Fisher information at the outputs as covariance.

            E[s s'] = E_y[grad log p(y | outputs) grad log p(y | outputs)']

        The gradient for a label sampled from the model has this covariance. A linear map of
        standard normal noise has it too, without the noise of a discrete label.

        Args:
            outputs: raw outputs `[..., D]`.
            noise: standard normal numbers e, `[..., D]`.

        Returns:
            The scores s, `[..., D]`. None, as in the base class, if there is no closed form; the
            gradient of `sampled_log_prob` then takes their place.
        """
        return None

    def sampled_log_prob(
        self, outputs: tf.Tensor, seed: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`log p(y | outputs)`, `[...]`, for a label y drawn from the model's own distribution.

        The gradient is a score with the Fisher information as covariance, for any likelihood.

        Args:
            outputs: raw outputs `[..., D]`.
            seed: int32 `[2]`.
            weights: weights of the targets, as in `log_prob`. Defaults to None: 1.
        """
        # A score is a gradient at a fixed label; TFP's draws depend on the outputs.
        drawn = tf.stop_gradient(self.distribution(outputs).sample(seed=seed))
        drawn = drawn[..., tf.newaxis] if self.is_categorical else drawn
        return self.log_prob(outputs, tf.cast(drawn, tf.float32), weights)

    @property
    def has_temperature(self) -> bool:
        """Whether `calibrate` can sharpen or flatten the distribution of the target.

        A likelihood with a temperature overrides `tempered`, if a function of the outputs says it
        all, or `multiply_scale`. False in the base class.
        """
        return False

    def tempered(self, outputs: tf.Tensor, temperature: Any) -> tf.Tensor:
        """Raw outputs at a temperature: logits divided by it, or scales multiplied by it.

        Args:
            outputs: raw outputs `[..., D]`.
            temperature: above 0; above 1 the distribution is wider. A number or a scalar tensor.

        Returns:
            Raw outputs `[..., D]`; the outputs themselves, as in the base class, where they hold
            neither logits nor scales.
        """
        return outputs

    def multiply_scale(self, factor: float) -> None:
        """Multiply a learned scale of the noise; nothing happens, as here, where there is none.

        Args:
            factor: above 0.
        """

    @property
    def closed_form_noise(self) -> Any:
        """A `ClosedFormNoise`, by which a `BaliModel` learns the noise from residuals.

        None, as in the base class, if the noise is not learned or if an optimizer learns it.
        """
        return None

    @property
    def scale_at_start(self) -> Any:
        """A `ScaleAtStart`, by which the first batch of training sets a scale of the noise.

        None, as in the base class, if there is no scale, or it is found in another way.
        """
        return None

    def lowest_scale(self) -> tf.Tensor:
        """Lower bound of scales that the net predicts, in units of the target; 0 without any."""
        return tf.zeros(())

    def noise_variance(self) -> tf.Tensor:
        """The variance v in `y ~ N(outputs, v)`, scalar or `[D]`, if `has_closed_form_marginal`."""
        raise NotImplementedError

    def marginal(self, outputs: tf.Tensor, output_variance: tf.Tensor) -> tfd.Distribution:
        """The distribution of the target with Normal raw outputs integrated out.

        Only a likelihood with `has_closed_form_marginal` has this method.

        Args:
            outputs: means of the raw outputs, `[..., D]`.
            output_variance: variances of the raw outputs, `[..., D]`.
        """
        raise NotImplementedError

    # -- targets --------------------------------------------------------------------------------

    def num_targets(self, num_outputs: int) -> int:
        """Number of target values per example and position for D raw outputs."""
        return 1 if self.is_categorical else num_outputs

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Which target values the distribution can take, boolean, the shape of y."""
        return tf.math.is_finite(y)

    def support_message(self, num_outputs: int) -> str:
        """The start of an error message: what targets must be, before the values received."""
        name = type(self).__name__
        return f"{name} likelihood: targets must be finite, or NaN where missing. Received:"

    def prepare_targets(
        self, targets: Any, num_outputs: int, positions: Sequence[Any] = ()
    ) -> tf.Tensor:
        """Targets as float32 `[B, ..., targets]`, with their values checked.

        A missing target stays as it is: NaN, see `observed`. A bad value raises an error in eager
        execution and in graphs. XLA drops such checks; there a bad value becomes infinite, and the
        loss is not finite.

        Args:
            targets: `[B, ..., targets]`, or `[B, ...]` if there is one target.
            num_outputs: D.
            positions: sizes of the axes between batch and outputs, numbers or scalar tensors; None
                for one that is not known. Defaults to none.

        Raises:
            ValueError: if the shape does not fit the outputs.
            tf.errors.InvalidArgumentError: if a value lies outside the support.
        """
        y = self.shape_targets(targets, num_outputs, positions)
        valid = self.is_in_support(y, num_outputs) | ~self.observed(y)
        message, ends = self.support_message(num_outputs), (tf.reduce_min(y), tf.reduce_max(y))
        if tf.executing_eagerly():
            if not tf.reduce_all(valid):
                low, high = map(float, ends)
                raise tf.errors.InvalidArgumentError(None, None, f"{message} {low:g} to {high:g}")
            return y
        check = tf.debugging.Assert(tf.reduce_all(valid), [message, *ends], summarize=1)
        with tf.control_dependencies([check]):
            return tf.where(valid, y, float("inf"))

    def shape_targets(
        self, targets: Any, num_outputs: int, positions: Sequence[Any] = ()
    ) -> tf.Tensor:
        """Targets as float32 `[B, ..., targets]`, without a check of their values.

        The arguments are those of `prepare_targets`.

        Raises:
            ValueError: if the shape does not fit the outputs, or for texts.
        """
        y = tf.convert_to_tensor(targets)
        if y.dtype == tf.string:
            raise ValueError(_texts_message(f"targets of dtype {y.dtype.name}"))
        expected = self.num_targets(num_outputs)
        if y.shape.rank == 1 + len(positions) and expected == 1:
            y = y[..., tf.newaxis]
        message = self._shape_message(num_outputs, positions)
        if y.shape.rank != 2 + len(positions) or y.shape[-1] not in (None, expected):
            hint = _POSITIONS if positions and y.shape.rank <= len(positions) else ""
            raise ValueError(f"{message}{hint} Received: targets of shape {y.shape}")
        return checked_positions(tf.cast(y, tf.float32), positions, message)

    def _shape_message(self, num_outputs: int, positions: Sequence[Any]) -> str:
        """Which shape targets must have."""
        expected = self.num_targets(num_outputs)
        sizes = [str(n) if isinstance(n, int) else "positions" for n in positions]
        shape = ", ".join(["batch", *sizes])
        return (
            f"{type(self).__name__} likelihood with {num_outputs} outputs: targets must have "
            f"shape [{shape}, {expected}]" + (f" or [{shape}]" if expected == 1 else "") + "."
        )

    def check_targets(self, targets: Any, num_outputs: int, positions: Sequence[Any] = ()) -> None:
        """Check a whole array of targets before training.

        Args:
            targets: the array.
            num_outputs: D.
            positions: sizes of the axes between batch and outputs, numbers or scalar tensors; None
                for one that is not known. Defaults to none.

        Raises:
            ValueError: if a value lies outside the support, with the range of the values.
        """
        y = np.asarray(targets)
        if y.dtype.kind in "OSU" and any(isinstance(v, str | bytes) for v in y.flat):
            raise ValueError(_texts_message(f"targets such as {y.flat[0]!r}"))
        if not y.size:
            return
        shaped = self.shape_targets(tf.constant(y, tf.float32), num_outputs, positions)
        observed = self.observed(shaped)
        if not np.all(self.is_in_support(shaped, num_outputs) | ~observed):
            raise ValueError(
                f"{self.support_message(num_outputs)} min={np.min(y)}, max={np.max(y)}, "
                f"{int(np.sum(~np.isfinite(y.astype(float))))} values not finite"
            )
        if not np.any(observed):
            raise ValueError(
                f"All targets are missing, so there is no loss. Received: {y.size} targets, none "
                "of them observed"
            )


def checked_positions(y: tf.Tensor, positions: Sequence[Any], message: str) -> tf.Tensor:
    """Targets `[B, ..., T]`, one for every position: one for all would be repeated in silence.

    Args:
        y: the targets.
        positions: see `Likelihood.prepare_targets`.
        message: what is expected.

    Raises:
        ValueError: if there is another number of them; where sizes are known to a graph only,
            tf.errors.InvalidArgumentError.
    """
    checks = []
    for axis, size in enumerate(positions, start=1):
        if isinstance(size, int) and y.shape[axis] not in (None, size):
            raise ValueError(f"{message} Received: targets of shape {y.shape}")
        if size is not None and not (isinstance(size, int) and y.shape[axis] is not None):
            given = tf.shape(y)
            check = tf.debugging.Assert(
                tf.equal(given[axis], size), [message, "Received: targets of shape", given]
            )
            checks += [] if check is None else [check]
    with tf.control_dependencies(checks):
        return tf.identity(y) if checks else y


def _texts_message(received: str) -> str:
    return (
        "Targets must be numbers. Number the classes first, for example with "
        "keras.layers.StringLookup(num_oov_indices=0, vocabulary=[...]) or "
        f"sklearn.preprocessing.LabelEncoder. Received: {received}"
    )
