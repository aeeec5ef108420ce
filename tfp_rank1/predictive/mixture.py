"""The equally weighted mixture of the predictions of samples (or members).

With samples s = 1..S of a model's outputs the predictive distribution is

    p(y | x) = 1/S sum_s p(y | outputs_s)

Losses, metrics, `PosteriorPredictive` and exported models all compute this mixture here.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1 import checks
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.outputs import Outputs
from tfp_rank1.target_weights import split_weights

__all__ = ["PredictiveMixture"]

# Halvings of a quantile's bracket: more than the 24 binary digits of float32.
_BISECTIONS = 40


# Points of y under every sample, by which mutual information is found.
_POINTS = 16


def _quantile_levels(targets: int) -> tf.Tensor:
    """Levels `[_POINTS, targets]` in (0, 1), with 1 - u for every row u.

    Equal steps for one target; for several, another order of the steps for each.
    """
    half = (tf.range(_POINTS // 2, dtype=tf.float32) + 0.5) / _POINTS
    columns = []
    for i in range(targets):
        order = tf.argsort(tf.random.stateless_uniform([_POINTS // 2], [0, i]))
        signs = tf.random.stateless_uniform([_POINTS // 2], [1, i]) < 0.5
        level = tf.gather(half, order) if i else half
        columns.append(tf.where(signs, level, 1.0 - level) if i else level)
    first = tf.stack(columns, axis=-1)
    return tf.concat([first, 1.0 - first], axis=0)


class PredictiveMixture:
    """Moments, entropies, quantiles and log-probabilities of a mixture over one axis.

    Args:
        likelihood: how raw outputs become distributions of the target.
        outputs: raw outputs with an axis of S samples, `[S, N, ..., D]` or `[N, S, ..., D]`.
        axis: the axis of the samples, 0 or 1.
        output_variance: variances with the shape of `outputs`, where the last layer is integrated
            out: the raw outputs of sample s are then N(outputs_s, output_variance_s). Defaults to
            None: the raw outputs of sample s are `outputs_s`.
        mask: which positions count, boolean `[N, ...]`; a target at another one is as good as
            missing. Defaults to None: all do.

    All results are float32 and have shape `[N, ..., targets]` or `[N, ...]`. For a Categorical
    likelihood `mean` and the variances are those of the one-hot target, so that `targets` is the
    number of classes. The methods work eagerly, in graphs and under XLA.

    Raises:
        ValueError: for an `output_variance` with a likelihood that has no closed form for it.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        outputs: tf.Tensor,
        axis: int = 0,
        output_variance: tf.Tensor | None = None,
        mask: tf.Tensor | None = None,
    ) -> None:
        self.likelihood = likelihood
        self.mask = mask
        self._layout = Outputs(tf.cast(tf.convert_to_tensor(outputs), tf.float32), axis)
        if output_variance is not None:
            output_variance = tf.cast(tf.convert_to_tensor(output_variance), tf.float32)
        self.output_variance = output_variance
        if output_variance is not None and not likelihood.has_closed_form_marginal:
            raise ValueError(
                "Argument `output_variance` has a closed form for likelihoods such as Normal only. "
                f"Received: a {type(likelihood).__name__} likelihood"
            )

    @property
    def _raw_outputs(self) -> tf.Tensor:
        return self._layout.values

    @property
    def num_samples(self) -> int:
        """Number of samples S."""
        return self._layout.num_samples

    @property
    def outputs(self) -> tf.Tensor:
        """Raw outputs `[N, S, ..., D]`, which the metrics of this package take as `y_pred`."""
        return self._layout.by_example().values

    def by_example(self) -> PredictiveMixture:
        """The same mixture with outputs `[N, S, ..., D]`, the layout of the metrics."""
        variance = self.output_variance
        if variance is not None:
            variance = self._layout.like(variance).by_example().values
        return PredictiveMixture(self.likelihood, self.outputs, 1, variance, self.mask)

    @property
    def positions(self) -> list[int | None]:
        """Sizes of the axes of positions, None where one is not static."""
        return list(self._raw_outputs.shape[2:-1])

    def by_position(self) -> PredictiveMixture:
        """The same mixture with every position as an example of its own, `[N P, S, D]`."""
        if not self.positions:
            return self.by_example()
        variance = self.output_variance
        if variance is not None:
            variance = self._layout.like(variance).by_example().flatten_positions().values
        flat = self._layout.by_example().flatten_positions().values
        mask = None if self.mask is None else tf.reshape(self.mask, [-1])
        return PredictiveMixture(self.likelihood, flat, 1, variance, mask)

    def at_positions(self, y: Any, sample_weight: Any = None) -> tuple[Any, PredictiveMixture, Any]:
        """Targets, mixture and weights in which every position is an example of its own.

        Args:
            y: targets `[N, ...]` or `[N, ..., targets]`.
            sample_weight: see `tfp_rank1.target_weights`. Defaults to None: 1.

        Returns:
            Targets `[N P, targets]`, the mixture with outputs `[N P, S, D]`, and weights `[N P]` or
            `[N P, targets]`; without positions targets and weights as they are.
        """
        if not self.positions:
            return y, self.by_example(), sample_weight
        num_outputs = self._layout.num_outputs
        targets = self.likelihood.shape_targets(y, num_outputs, self._layout.positions)
        size = self.likelihood.num_targets(num_outputs)
        examples, by_target = split_weights(sample_weight, size, self.positions)
        if examples is not None:
            sample_weight = self.per_position(examples)
        elif by_target is not None:
            sample_weight = tf.reshape(by_target, [-1, by_target.shape[-1]])
        return tf.reshape(targets, [-1, targets.shape[-1]]), self.by_position(), sample_weight

    def per_position(self, values: Any) -> tf.Tensor:
        """Numbers of examples, `[N]` or `[N, 1]`, or of positions, `[N, ..., 1]`, as `[N P]`.

        Raises:
            ValueError: for another shape.
        """
        values = tf.convert_to_tensor(values)
        sizes = self._layout.positions
        if values.shape.rank == len(sizes) + 2 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.shape[1:].as_list() in ([], [1]):
            values = tf.reshape(values, [-1] + [1] * len(sizes))
        elif not values.shape[1:].is_compatible_with(self.positions):
            raise ValueError(
                "Expected one number per example, [batch], or one per position, "
                f"{['batch', *self.positions]}. Received: shape {values.shape}"
            )
        return tf.reshape(tf.broadcast_to(values, [tf.shape(values)[0], *sizes]), [-1])

    def by_sample_first(self) -> tf.Tensor:
        """Raw outputs `[S, N, ..., D]`."""
        return self._layout.by_sample().values

    # -- moments --------------------------------------------------------------------------------

    def mean(self) -> tf.Tensor:
        """`E[y]`, `[N, targets]`; class probabilities for Categorical and Bernoulli."""
        return self._layout.average(self.likelihood.mean(self._raw_outputs))

    def variance(self) -> tf.Tensor:
        """Total variance, aleatoric plus epistemic, `[N, targets]`."""
        return self.aleatoric_variance() + self.epistemic_variance()

    def stddev(self) -> tf.Tensor:
        """Square root of the total variance, in units of the target."""
        return tf.sqrt(self.variance())

    def aleatoric_variance(self) -> tf.Tensor:
        """`E_s Var[y | s]`, `[N, targets]`: noise in the data, which more data does not reduce."""
        return self._layout.average(self.likelihood.variance(self._raw_outputs))

    def epistemic_variance(self) -> tf.Tensor:
        """`Var_s E[y | s]`, `[N, targets]`: what the model does not know."""
        # With the last layer integrated out, weights vary within a sample as well.
        between = self._layout.variance(self.likelihood.mean(self._raw_outputs))
        within = self.output_variance
        return between if within is None else between + self._layout.average(within)

    def member_moments(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of the target under every sample, in the layout of the outputs."""
        conditional = self.conditional()
        if self.output_variance is not None:
            return conditional.mean(), conditional.variance()
        return self.likelihood.mean(self._raw_outputs), self.likelihood.variance(self._raw_outputs)

    def conditional(self) -> tfd.Distribution:
        """Distribution of the target under every sample, in the layout of the outputs."""
        if self.output_variance is None:
            return self.likelihood.distribution(self._raw_outputs)
        return self.likelihood.marginal(self._raw_outputs, self.output_variance)

    def energy(self) -> tf.Tensor:
        """`-mean_s logsumexp(outputs_s)`, `[N]`: low where some logit is large."""
        return -self._layout.average(tf.reduce_logsumexp(self._raw_outputs, axis=-1))

    # -- entropies ------------------------------------------------------------------------------

    def entropy(self, num_draws: int = 256, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Entropy of the mixture, nats, `[N]`, or `[N, ...]`: of the target at every position.

        The entropy is exact for Categorical and Bernoulli. A mixture of other distributions has no
        closed form; its entropy is estimated by `-1/M sum_m log p(y_m)` over M draws.

        Args:
            num_draws: M, used where there is no closed form. Defaults to 256.
            seed: int32 `[2]`. Defaults to None: the fixed seed (0, 0).
        """
        closed_form = self.likelihood.entropy_of_mixture(self.mean())
        if closed_form is not None:
            return closed_form
        if self.positions:
            return self.by_example_again(self.by_position().entropy(num_draws, seed))
        draws = self._draw(num_draws, tf.zeros([2], tf.int32) if seed is None else seed)
        # A loop in a graph: all draws at once would need S M N numbers, an eager loop is slow.
        log_probs = tf.function(lambda values: tf.map_fn(self._log_prob, values), autograph=False)(
            draws
        )
        return -tf.reduce_mean(log_probs, axis=0)

    def expected_entropy(self, num_draws: int = 256, seed: tf.Tensor | None = None) -> tf.Tensor:
        """`E_s H[y | s]`, nats; estimated where a likelihood has no entropy (Poisson).

        The shape is that of `entropy`.

        Args:
            num_draws: draws of the estimate. Defaults to 256.
            seed: int32 `[2]`. Defaults to None: the fixed seed (0, 1).
        """
        try:
            return self._layout.average(self.likelihood.entropy(self._raw_outputs))
        except NotImplementedError:
            conditional = self.likelihood.distribution(self._raw_outputs)
            draws = conditional.sample(num_draws, seed=[0, 1] if seed is None else seed)
            negative = -tf.reduce_mean(conditional.log_prob(draws), axis=0)
            return self._layout.average(tf.reduce_sum(negative, axis=-1))

    def mutual_information(self) -> tf.Tensor:
        """`entropy - expected_entropy`: information about the weights in one label, nats.

            E_s E_{y | s}[log p(y | s) - log p(y)]

        Where the entropy of the mixture has no closed form, the expectation is taken over points of
        y that are the same quantiles under every sample, and not over draws, whose error would hide
        small values: it is right to some percent at any size. The exact value is never negative;
        errors below 0 are clipped. The shape is that of `entropy`: with positions every position
        has one label.
        """
        if self.positions:
            return self.by_example_again(self.by_position().mutual_information())
        if self.likelihood.entropy_of_mixture(self.mean()) is None:
            with contextlib.suppress(NotImplementedError):  # a distribution without quantiles
                return tf.nn.relu(self._information())
        return tf.nn.relu(self.entropy() - self.expected_entropy())

    def by_example_again(self, values: tf.Tensor) -> tf.Tensor:
        """Values of `by_position`, `[N P, ...]`, with the axes of positions, `[N, ..., ...]`."""
        if not self.positions:
            return values
        by_example = self._layout.by_example().values
        dynamic = tf.shape(by_example)
        sizes = [dynamic[:1], dynamic[2:-1], tf.shape(values)[1:]]
        found = tf.reshape(values, tf.concat(sizes, axis=0))
        return tf.ensure_shape(found, [by_example.shape[0], *self.positions, *values.shape[1:]])

    def _information(self) -> tf.Tensor:
        """The mutual information over points of y, `[N]`."""
        outputs, variance = self._layout.by_sample(), self.output_variance
        if variance is not None:
            variance = self._layout.like(variance).by_sample().values
        by_sample = PredictiveMixture(self.likelihood, outputs.values, 0, variance)
        conditional = by_sample.conditional()
        targets = self.likelihood.num_targets(outputs.num_outputs)
        ones = [1] * (int(outputs.values.shape.rank) - 1)
        levels = tf.reshape(_quantile_levels(targets), [_POINTS, *ones, targets])
        points = conditional.quantile(levels)
        own = tf.reduce_mean(tf.reduce_sum(conditional.log_prob(points), axis=-1), axis=0)
        flat = tf.reshape(points, tf.concat([[-1], tf.shape(points)[2:]], axis=0))
        flat = tf.ensure_shape(flat, [None, *points.shape[2:]])
        # A loop in a graph: all points at once would need S times their number.
        mixed = tf.function(lambda v: tf.map_fn(by_sample._log_prob, v), autograph=False)(flat)
        return tf.reduce_mean(own, axis=0) - tf.reduce_mean(mixed, axis=0)

    # -- densities ------------------------------------------------------------------------------

    def log_prob(self, y: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """`log 1/S sum_s prod_t p(y_t | outputs_s)^w_t`, `[N]`, nats, by logsumexp.

        Args:
            y: targets `[N]` or `[N, targets]`; integer labels for Categorical. Missing targets
                (NaN, or the label `ignore_class`) are left out.
            weights: weights w of the targets, `[N, targets]`. Defaults to None: 1.
        """
        return self._log_prob(self.prepare_targets(y), weights)

    def member_log_prob(self, y: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """`sum_t w_t log p(y_t | outputs_s)` of every sample, `[S, N]` or `[N, S]`."""
        return self._member_log_prob(self.prepare_targets(y), weights)

    def observed(self, targets: tf.Tensor) -> tf.Tensor:
        """Which of the targets that `prepare_targets` returned are not missing, boolean."""
        return self.filled(targets)[1]

    def filled(self, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The targets with a placeholder for those that are missing, and which are observed."""
        values, observed = self.likelihood.filled(targets)
        return values, observed if self.mask is None else observed & self.mask[..., tf.newaxis]

    def prepare_targets(self, y: tf.Tensor) -> tf.Tensor:
        """Targets as float32 `[N, targets]`, shape and values checked by the likelihood.

        Raises:
            ValueError: for another number of targets than of examples, or another shape.
            tf.errors.InvalidArgumentError: for values outside the support.
        """
        layout = self._layout
        examples = self._raw_outputs.shape[1 - layout.sample_axis]
        given = tf.TensorShape(getattr(y, "shape", None))
        if given.rank and not given[:1].is_compatible_with([examples]):
            raise ValueError(
                f"Targets must be one for each of the {examples} examples of the prediction. "
                f"Received: targets of shape {given}"
            )
        return self.likelihood.prepare_targets(y, layout.num_outputs, layout.positions)

    def _member_log_prob(self, targets: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        if self.mask is not None:
            counts = tf.cast(self.mask, tf.float32)[..., tf.newaxis]
            weights = counts if weights is None else counts * weights
        targets = self._layout.for_all_samples(targets)
        weights = None if weights is None else self._layout.for_all_samples(weights)
        if self.output_variance is None:
            log_probs = self.likelihood.log_prob(self._raw_outputs, targets, weights)
        else:
            log_probs = self.likelihood.log_prob_under(self.conditional(), targets, weights)
        return self._layout.sum_positions(log_probs)

    def _log_prob(self, targets: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        log_probs = self._member_log_prob(targets, weights)
        return self._layout.logsumexp(log_probs) - math.log(self.num_samples)

    # -- quantiles ------------------------------------------------------------------------------

    def cdf(self, y: tf.Tensor) -> tf.Tensor:
        """`P(Y <= y)` of each target on its own, `[N, targets]`.

        Args:
            y: `[N]` or `[N, targets]`, any values.

        Raises:
            ValueError: for Categorical, whose classes have no order.
        """
        self._require_order("cdf")
        layout = self._layout
        y = self.likelihood.shape_targets(y, layout.num_outputs, layout.positions)
        y = layout.for_all_samples(y)
        if self.output_variance is None:
            return layout.average(self.likelihood.cdf(self._raw_outputs, y))
        return layout.average(self.conditional().cdf(y))

    def quantile(self, probability: float) -> tf.Tensor:
        """The value y with `P(Y <= y) = probability`, per target, `[N, targets]`.

        For counts, y is the smallest whole number with `P(Y <= y) >= probability`. The mixture's
        CDF is bisected between the smallest and the largest quantile of its samples.

        Args:
            probability: strictly between 0 and 1.

        Raises:
            ValueError: for another probability, or a Categorical likelihood.
        """
        self._require_order("quantile")
        p = float(probability)
        if not 0.0 < p < 1.0:
            raise ValueError(
                "Argument `probability` must lie strictly between 0 and 1. "
                f"Received: probability={probability}"
            )
        low, high = self._bracket(p)
        # The answer is the upper end; the lower one must lie below any whole number that may be it.
        if self.likelihood.discrete:
            low, high = tf.floor(low) - 1.0, tf.math.ceil(high)

        def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            middle = 0.5 * (low + high)
            point = tf.floor(middle) if self.likelihood.discrete else middle
            below = self.cdf(point) < p
            # Some CDFs of TFP lose the static shape, which a loop must keep.
            below = tf.ensure_shape(below, middle.shape)
            return tf.where(below, middle, low), tf.where(below, high, middle)

        _, high = tf.while_loop(lambda *_: True, halve, (low, high), maximum_iterations=_BISECTIONS)
        # For counts the upper end comes from above to a whole number, but for rounding.
        return tf.floor(high + 1e-4) if self.likelihood.discrete else high

    def _bracket(self, p: float) -> tuple[tf.Tensor, tf.Tensor]:
        """Lower and upper bound of the p-quantile.

        The samples' own quantiles bound it or, for a likelihood without quantiles, Cantelli's
        inequality: the quantile of any distribution with a variance lies between
        `mean - stddev sqrt((1 - p) / p)` and `mean + stddev sqrt(p / (1 - p))`.
        """
        try:
            return self._layout.bounds(self.conditional().quantile(p))
        except NotImplementedError:
            mean, stddev = self.mean(), self.stddev()
        # A hair wider, for distributions that attain a bound.
        low = mean - 1.01 * stddev * math.sqrt((1.0 - p) / p) - 1e-6
        high = mean + 1.01 * stddev * math.sqrt(p / (1.0 - p)) + 1e-6
        return low, high

    def credible_interval(self, level: float = 0.9) -> tuple[tf.Tensor, tf.Tensor]:
        """Central interval that holds the target with probability `level`, per target.

        Args:
            level: strictly between 0 and 1. Defaults to 0.9.

        Returns:
            Lower and upper ends, each `[N, targets]`.
        """
        tail = 0.5 * (1.0 - checks.level(level))
        return self.quantile(tail), self.quantile(1.0 - tail)

    def _require_order(self, what: str) -> None:
        if self.likelihood.is_categorical:
            raise ValueError(
                f"`{what}` needs an ordered target; the classes of a "
                f"{type(self.likelihood).__name__} likelihood have no order. Use `mean()`, the "
                f"class probabilities. Received: likelihood={type(self.likelihood).__name__}"
            )

    # -- draws ----------------------------------------------------------------------------------

    def _draw(self, num_draws: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws `[num_draws, N, targets]`, float32."""
        # First a sample for every draw, then the target given that sample: S times fewer draws
        # than from all samples.
        index_seed, value_seed = tf.unstack(tf.random.split(seed, 2))
        shape = tf.shape(self.outputs)
        index = tf.random.stateless_uniform(
            [shape[0], num_draws], index_seed, maxval=shape[1], dtype=tf.int32
        )
        variance = self.output_variance
        if variance is not None:
            variance = self._layout.like(variance).gather_samples(index).values
        values = self._layout.gather_samples(index).values
        chosen = PredictiveMixture(self.likelihood, values, axis=1, output_variance=variance)
        draws = chosen.conditional().sample(seed=value_seed)
        if self.likelihood.is_categorical:
            draws = draws[..., tf.newaxis]
        return tf.cast(Outputs(draws, 1).by_sample().values, tf.float32)
