"""The posterior of one layer: its variables, and how they follow the statistics.

With H the layer's inputs (rows h_n, a trailing 1 for the bias), G the gradients of the
log-likelihood at its pre-activations, and averages that forget at rate rho, S over examples and F
over rows (an example of a convolution has several),

    S <- average of h_n h_n'        F <- average of s_n s_n'        (s: see `Likelihood.scores`)

    V^-1 = F + damping        L = L0 + N S        N: training examples / temperature

Pseudo-targets are the pre-activations moved along the gradient, `y_n = M' h_n + V g_n`. The
posterior given targets would have the natural parameter `L M = L0 M0 + N T`, `T` the average of
`h_n y_n'`. Its moving average, written as a step of M,

    M <- M + rho L^-1 [ N / B H' G V - L0 (M - M0) ]

needs no memory for T and stays right while L^-1 is a few steps old: the bracket alone decides
where M comes to rest, which is where the gradient of the log-posterior vanishes.

Where an example n has several rows t (positions of a convolution), `S (x) F` knows nothing of the
correlation between them. F is multiplied by what is missing in its trace, over random directions u
of the inputs, if that is more than it has:

    c = E |sum_t (u'h_t) s_t|^2 / ( E sum_t (u'h_t)^2  tr F )

In the first layers of a convolutional net c reaches 50, and steps without it go too far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bali_keras.inference.cadence import Cost
from bali_keras.inference.output import ExactOutput, HiddenLayer
from bali_keras.inference.rows import RowCovariance, rows_for
from bali_keras.inference.statistics import (
    Accumulation,
    BatchSums,
    WeightedAverage,
    state_variable,
)
from bali_keras.matrix_normal import MatrixNormal, covariance
from tfp_rank1.model.all_or_nothing import keep

__all__ = ["Factors", "LayerPosterior", "Prior", "Step"]


class Prior(NamedTuple):
    """What the compiled model says about a layer's prior and noise.

    Attributes:
        weight_precision: precision a priori of one weight, in units of fan-in; see
            `BaliModel.compile`.
        row_precision: L0 itself, a number or a matrix `[d, d]`; None to derive it.
        damping: absolute and relative part of what is added to F.
    """

    weight_precision: float
    row_precision: Any
    damping: tuple[float, float]


class Step(NamedTuple):
    """A step of M at rate 1.

    Attributes:
        move: `L^-1 A`, `[d, k]`, with A the bracket of the module's equation.
        kl: `1/2 tr(V^-1 A' L^-1 A)`, scalar: KL in nats between the posteriors after and before.
    """

    move: tf.Tensor
    kl: tf.Tensor


class Factors(NamedTuple):
    """What `LayerPosterior.factorised` finds; not finite where a factorisation failed.

    Attributes:
        prior_row_precision: L0, scalar; 0 for one that is a matrix.
        row: R with `L^-1 = R R'`, in the form of the layer's rows.
        column: C with `V = C C'`, `[k, k]`.
        column_precision: `V^-1`, `[k, k]`.
    """

    prior_row_precision: tf.Tensor
    row: tf.Tensor
    column: tf.Tensor
    column_precision: tf.Tensor


class LayerPosterior:
    """Variables and updates of `W ~ MN(M, L^-1, V)`.

    Args:
        layer: the Keras layer that owns the variables.
        initial_mean: M at the start, an initializer for `[d, k]`.
        size: `(d, k)`, the bias row included in d.
        fan_in: inputs of one unit, the bias not counted.
        prior_at_mean: whether the prior is centred on a stored M0; else M0 = 0.
        dtype: of statistics and posterior, "float32" (default) or "float64".
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        initial_mean: Any,
        size: tuple[int, int],
        fan_in: int,
        prior_at_mean: bool,
        dtype: str = "float32",
    ) -> None:
        d, k = size
        self.size, self.fan_in, self.dtype = size, fan_in, dtype

        def variable(name: str, shape: tuple[int, ...], start: Any = "zeros") -> keras.Variable:
            return state_variable(layer, name, shape, start, dtype)

        # The order is that of saved files.
        self.mean = variable("mean", (d, k), initial_mean)
        self.prior_mean = variable("prior_mean", (d, k)) if prior_at_mean else None
        self.rows: RowCovariance = rows_for(layer, d, dtype)
        self.rows.add_factor(variable)
        self.column_factor = variable("column_factor", (k, k))
        # Products that every step needs and only a factorisation changes.
        self.rows.add_covariance(variable)
        self.column_covariance = variable("column_covariance", (k, k))
        self.pull = variable("pull", (d, k))
        self.prior_row_precision = variable("prior_row_precision", ())
        self.kl = state_variable(layer, "kl", ())
        self.rows.add_average(layer)
        self.fisher = WeightedAverage(layer, "fisher", (k, k), dtype)
        self.together = WeightedAverage(layer, "together", (), dtype)
        self.targets = Accumulation(layer, "targets")

    # -- reading --------------------------------------------------------------------------------

    def matrix_normal(self) -> MatrixNormal:
        """The posterior, with zero factors before the first statistics."""
        mean, column = map(tf.convert_to_tensor, (self.mean, self.column_factor))
        return MatrixNormal(mean, self.rows.dense_factor(), column)

    def has_statistics(self) -> tf.Tensor:
        """Whether the covariance has been computed at least once, boolean scalar."""
        return self.rows.has_statistics()

    def offset(self) -> tf.Tensor:
        """`M - M0`, `[d, k]`."""
        mean = tf.convert_to_tensor(self.mean)
        return mean if self.prior_mean is None else mean - self.prior_mean

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the posterior: its mean, and the factors of its covariances."""
        d, k = self.size
        return d * k + self.rows.num_parameters + k * (k + 1) // 2

    @property
    def cost(self) -> Cost:
        """What one step and one factorisation of this layer take."""
        (d, k), rows = self.size, self.rows
        return Cost(
            rows.factorising_cost + k**3,
            rows.collecting_cost + 4 * d * k + 2 * k * k,
            rows.applying_cost(k),
        )

    def prior_times(self, prior: Prior, right: tf.Tensor) -> tf.Tensor:
        """`L0 B`."""
        if _is_matrix(prior.row_precision):
            return tf.matmul(self._matrix(prior.row_precision), right)
        return self.prior_row_precision * right

    def _log_det_prior(self, prior: Prior) -> tf.Tensor:
        if _is_matrix(prior.row_precision):
            return tf.linalg.logdet(self._matrix(prior.row_precision))
        return self.size[0] * tf.math.log(self.prior_row_precision)

    # -- updating -------------------------------------------------------------------------------

    def collect(self, sums: BatchSums, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """Take the sums of a batch into the moving averages."""
        moments = sums.moments
        self.rows.average.update(moments.inputs, moments.examples, rate, accept)
        self.fisher.update(moments.fisher, moments.rows, rate, accept)
        self.together.update(moments.together, moments.squares, rate, accept)

    def factorised(
        self, num_examples: tf.Tensor, prior: Prior, role: HiddenLayer | ExactOutput
    ) -> Factors:
        """V, L0 and the factor of L^-1 of the present averages; `take` puts them in place.

        Args:
            num_examples: N, divided by the temperature.
            prior: of the layer.
            role: of the layer in the net, which says where V comes from.
        """
        fisher = self._rows_together() * self.fisher.value()
        column, column_precision = role.column(fisher, prior.damping)
        number, matrix = self._prior_of(prior, tf.linalg.trace(column_precision))
        row = self.rows.factorised(tf.cast(num_examples, self.dtype), matrix)
        return Factors(number, row, column, column_precision)

    def take(self, factors: Factors, prior: Prior, accept: tf.Tensor) -> None:
        """Put new factors in place, with all that follows from them, if accepted."""
        keep(self.prior_row_precision, factors.prior_row_precision, accept)
        self.rows.take(factors.row, accept)
        keep(self.column_factor, factors.column, accept)
        keep(self.column_covariance, covariance(factors.column), accept)
        pull = tf.matmul(self.prior_times(prior, self.offset()), factors.column_precision)
        keep(self.pull, pull, accept)
        keep(self.kl, tf.cast(self._kl_divergence(prior), tf.float32), accept)

    def _rows_together(self) -> tf.Tensor:
        """c, at least 1, scalar."""
        trace = tf.linalg.trace(self.fisher.value())
        return tf.maximum(tf.math.divide_no_nan(self.together.value(), trace), 1.0)

    def _kl_divergence(self, prior: Prior) -> tf.Tensor:
        """`KL(MN(M, L^-1, V) || MN(M0, L0^-1, V))`, scalar, nats.

        1/2 [ k tr(L0 L^-1) + tr(V^-1 (M - M0)' L0 (M - M0)) - d k + k (log|L| - log|L0|) ]
        """
        d, k = self.size
        trace = self.rows.trace_with(lambda right: self.prior_times(prior, right))
        volume = self.rows.log_det() - self._log_det_prior(prior)
        shift = tf.reduce_sum(self.offset() * self.pull)
        return 0.5 * (k * trace + shift - d * k + k * volume)

    def _prior_of(self, prior: Prior, trace: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The number l with `L0 = l I` (0 for a matrix), and L0.

        From a precision of weights: `L0^-1 (x) V` has variances `V_jj / l`, on average
        `1 / weight_precision` for `l = weight_precision k / tr(V^-1)` (harmonic mean of V).
        """
        if _is_matrix(prior.row_precision):
            return tf.zeros((), self.dtype), self._matrix(prior.row_precision)
        if prior.row_precision is not None:
            number = tf.constant(float(prior.row_precision), self.dtype)
        else:
            number = prior.weight_precision * self.fan_in * self.size[1] / trace
        return number, number

    def step(
        self,
        sums: BatchSums,
        num_examples: tf.Tensor,
        prior: Prior,
        role: HiddenLayer | ExactOutput,
    ) -> Step:
        """The step of M at rate 1 for one batch.

        Args:
            sums: of the batch.
            num_examples: N, divided by the temperature.
            prior: of the layer.
            role: of the layer in the net, which says what `sums.cross` holds.
        """
        share = tf.cast(tf.math.divide_no_nan(num_examples, sums.examples), self.dtype)
        column_covariance = tf.convert_to_tensor(self.column_covariance)
        gradient, shift = role.gradient_and_shift(share * sums.cross, column_covariance)
        move = self.rows.apply(shift - self.prior_times(prior, self.offset()))
        # A V^-1 without a product: its second part is as old as the last factorisation.
        kl = 0.5 * tf.reduce_sum(move * (gradient - self.pull))
        return Step(move, tf.cast(tf.nn.relu(kl), tf.float32))

    def move(self, step: Step, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """`M <- M + rate move`."""
        keep(self.mean, self.mean + tf.cast(rate, self.dtype) * step.move, accept)

    def _matrix(self, row_precision: Any) -> tf.Tensor:
        d, matrix = self.size[0], tf.convert_to_tensor(row_precision, self.dtype)
        if matrix.shape != (d, d):
            raise ValueError(
                f"A matrix `prior_row_precision` must be [{d}, {d}], one row per input and one "
                f"for the bias. Received: shape {matrix.shape}"
            )
        return matrix


def _is_matrix(row_precision: Any) -> bool:
    return row_precision is not None and len(getattr(row_precision, "shape", ())) == 2
