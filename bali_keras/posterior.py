"""The posterior of one layer: its variables, and how they follow the statistics.

With H the layer's inputs (rows h_n, a trailing 1 for the bias), G the gradients of the
log-likelihood at its pre-activations, and averages that forget at rate rho, S over examples and F
over rows (an example of a convolution has several),

    S <- average of h_n h_n'        F <- average of s_n s_n'        (s: scores, see `fisher`)

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
import numpy as np
import tensorflow as tf

from bali_keras.matrix_normal import (
    MatrixNormal,
    add_diagonal,
    covariance,
    damp,
    inverse_factor,
    log_diagonal,
)
from bali_keras.statistics import Accumulation, BatchSums, WeightedAverage, state_variable
from tfp_rank1._refusal import keep


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
        prior_row_precision: L0, scalar, or the scale of one that is a matrix.
        row: R with `L^-1 = R R'`, `[d, d]`.
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

        self.mean = variable("mean", (d, k), initial_mean)
        self.prior_mean = variable("prior_mean", (d, k)) if prior_at_mean else None
        # Zero: a point, until there are statistics.
        self.row_factor = variable("row_factor", (d, d))
        self.column_factor = variable("column_factor", (k, k))
        # Products that every step needs and only a factorisation changes.
        self.row_covariance = variable("row_covariance", (d, d))
        self.column_covariance = variable("column_covariance", (k, k))
        self.pull = variable("pull", (d, k))
        self.prior_row_precision = variable("prior_row_precision", ())
        self.kl = state_variable(layer, "kl", ())
        self.inputs = WeightedAverage(layer, "inputs", (d, d), dtype)
        self.fisher = WeightedAverage(layer, "fisher", (k, k), dtype)
        self.together = WeightedAverage(layer, "together", (), dtype)
        self.targets = Accumulation(layer, "targets")

    # -- reading --------------------------------------------------------------------------------

    def matrix_normal(self) -> MatrixNormal:
        """The posterior, with zero factors before the first statistics."""
        return MatrixNormal(
            *map(tf.convert_to_tensor, (self.mean, self.row_factor, self.column_factor))
        )

    def has_statistics(self) -> tf.Tensor:
        """Whether the covariance has been computed at least once, boolean scalar."""
        return self.row_factor[0, 0] > 0.0

    def offset(self) -> tf.Tensor:
        """`M - M0`, `[d, k]`."""
        mean = tf.convert_to_tensor(self.mean)
        return mean if self.prior_mean is None else mean - self.prior_mean

    def condition(self) -> tf.Tensor:
        """A lower bound of the condition number of L: `(max diag R / min diag R)^2`."""
        diagonal = tf.linalg.diag_part(self.row_factor)
        ratio = tf.math.divide_no_nan(tf.reduce_max(diagonal), tf.reduce_min(diagonal))
        return tf.cast(tf.square(ratio), tf.float32)

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
        self.inputs.update(moments.inputs, moments.examples, rate, accept)
        self.fisher.update(moments.fisher, moments.rows, rate, accept)
        self.together.update(moments.together, moments.squares, rate, accept)

    def factorised(
        self, num_examples: tf.Tensor, prior: Prior, noise_variance: Any = None
    ) -> Factors:
        """V, L0 and the factor of L^-1 of the present averages; `take` puts them in place.

        Args:
            num_examples: N, divided by the temperature.
            prior: of the layer.
            noise_variance: `[k]` for the output layer of a Normal likelihood, whose V is the
                observation noise itself; None for V from the Fisher information.

        """
        num_examples = tf.cast(num_examples, self.dtype)
        if noise_variance is None:
            column_precision = damp(self._rows_together() * self.fisher.value(), *prior.damping)
            column_factor = inverse_factor(column_precision)
        else:
            noise_variance = tf.cast(noise_variance, self.dtype)
            column_precision = tf.linalg.diag(1.0 / noise_variance)
            column_factor = tf.linalg.diag(tf.sqrt(noise_variance))
        row_precision, prior_row_precision = self._row_precision(
            num_examples, prior, tf.linalg.trace(column_precision)
        )
        row_factor = inverse_factor(row_precision)
        return Factors(prior_row_precision, row_factor, column_factor, column_precision)

    def take(self, factors: Factors, prior: Prior, accept: tf.Tensor) -> None:
        """Put new factors in place, with all that follows from them, if accepted."""
        keep(self.prior_row_precision, factors.prior_row_precision, accept)
        keep(self.row_factor, factors.row, accept)
        keep(self.row_covariance, covariance(factors.row), accept)
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
        factor = tf.convert_to_tensor(self.row_factor)
        trace = tf.reduce_sum(factor * self.prior_times(prior, factor))
        volume = -2.0 * log_diagonal(factor) - self._log_det_prior(prior)
        shift = tf.reduce_sum(self.offset() * self.pull)
        return 0.5 * (k * trace + shift - d * k + k * volume)

    def _row_precision(
        self, num_examples: tf.Tensor, prior: Prior, trace: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`L = L0 + N S`, and the number l with `L0 = l I`.

        From a precision of weights: `L0^-1 (x) V` has variances `V_jj / l`, on average
        `1 / weight_precision` for `l = weight_precision k / tr(V^-1)` (harmonic mean of V).
        """
        k = self.size[1]
        data = num_examples * self.inputs.value()
        data = add_diagonal(data, _jitter(data) * tf.linalg.diag_part(data))
        if _is_matrix(prior.row_precision):
            return data + self._matrix(prior.row_precision), tf.zeros((), self.dtype)
        if prior.row_precision is not None:
            number = tf.constant(float(prior.row_precision), self.dtype)
        else:
            number = prior.weight_precision * self.fan_in * k / trace
        return add_diagonal(data, number), number

    def step(
        self, sums: BatchSums, num_examples: tf.Tensor, prior: Prior, holds_shifts: bool
    ) -> Step:
        """The step of M at rate 1 for one batch.

        Args:
            sums: of the batch.
            num_examples: N, divided by the temperature.
            prior: of the layer.
            holds_shifts: whether `sums.cross` holds whole shifts `y - M' h` in place of gradients.
        """
        share = tf.cast(tf.math.divide_no_nan(num_examples, sums.examples), self.dtype)
        cross, covariance = share * sums.cross, tf.convert_to_tensor(self.column_covariance)
        if holds_shifts:  # V is diagonal
            # The covariance is 0 in the warm-up, when no step is made.
            gradient = tf.math.divide_no_nan(cross, tf.linalg.diag_part(covariance))
            shift = cross
        else:
            gradient, shift = cross, tf.matmul(cross, covariance)
        bracket = shift - self.prior_times(prior, self.offset())
        move = tf.matmul(self.row_covariance, bracket)
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


def _jitter(data: tf.Tensor) -> tf.Tensor:
    """What rounding may take from the eigenvalues of `[d, d]`, in units of its diagonal, scalar.

    It is added there: it bounds the condition number, and does not enter the fixed point of M.
    The precision of the dtype times the Frobenius norm of the correlations, which bounds the
    largest of their eigenvalues: where many inputs say the same the smallest ones are noise of
    that size.
    """
    scale = tf.math.divide_no_nan(1.0, tf.sqrt(tf.linalg.diag_part(data)))
    correlations = data * scale[:, tf.newaxis] * scale
    norm = tf.sqrt(tf.reduce_sum(tf.square(correlations)))
    precision = np.finfo(data.dtype.as_numpy_dtype).eps
    return tf.maximum(tf.cast(8.0 * precision, data.dtype), precision * norm)


def _is_matrix(row_precision: Any) -> bool:
    return row_precision is not None and len(getattr(row_precision, "shape", ())) == 2
