"""The posterior of one layer: its variables, and how they follow the statistics.

H holds the layer's inputs (rows h_n, with a trailing 1 for the bias), and G the gradients of the
log-likelihood at the layer's pre-activations. Moving averages forget at rate rho: S over examples,
F over rows (an example of a convolution has one row per position).

    S <- average of h_n h_n'        F <- average of s_n s_n'        (s: see `Likelihood.scores`)

    V^-1 = F + damping        L = (L0 + N S) / c        N: training examples / temperature

Pseudo-targets are the pre-activations moved along the gradient, `y_n = M' h_n + V g_n`. Given
these targets the posterior has the natural parameter `c L M = L0 M0 + N T`, where T is the average
of `h_n y_n'`. The moving average of this parameter is a step of M:

    M <- M + rho (c L)^-1 [ N / B H' G V - L0 (M - M0) ]

A step needs no memory for T and may use an L^-1 that is a few steps old. The bracket alone decides
where M comes to rest, which is where the gradient of the log-posterior vanishes.

Both products of the bracket cost `d^2 k` however small the batch is. With fewer rows than columns
the first is taken row by row, `(H L^-1)' G V`; and where covariances are not new in every step, the
second is taken every m-th step, with the rate `1 - (1 - rho)^m`.

The scale c of the covariance is 1 for one layer, whose posterior is then exact. The posteriors of
several layers are independent of each other, and each holds the uncertainty of the outputs as if it
were the only one: a c below 1 counts it once. It leaves the mean where it is.

Where an example n has several rows t, the product `S (x) F` ignores the correlation between the
rows. F is therefore multiplied by q, unless q is below 1: the ratio of the information of all rows
of an example together to that of its rows one by one, over random directions u of the inputs.

    q = E |sum_t (u'h_t) s_t|^2 / ( E sum_t (u'h_t)^2  tr F )

In the first layers of a convolutional net q reaches 50, and steps without q are too long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from bali_keras.inference.cadence import Cost
from bali_keras.inference.output import LayerRole
from bali_keras.inference.rows import RowCovariance
from bali_keras.inference.statistics import (
    Accumulation,
    BatchRows,
    BatchSums,
    WeightedAverage,
    state_variable,
)
from bali_keras.matrix_normal import MatrixNormal, covariance, upper_operator
from bali_keras.matrix_normal import precision as column_precision
from tfp_rank1.model.all_or_nothing import keep, sum_over_replicas

__all__ = ["Factors", "LayerPosterior", "Prior", "Step"]


class Prior(NamedTuple):
    """What the compiled model says about a layer's prior and noise.

    Attributes:
        weight_precision: precision of one network weight a priori, in units of fan-in; see
            `BaliModel.compile`.
        row_precision: L0 itself, a number or a matrix `[d, d]`; None to derive L0 from
            `weight_precision`.
        damping: absolute and relative part of the damping of F.
        covariance_scale: c of the module's equation.
    """

    weight_precision: Any
    row_precision: Any
    damping: tuple[Any, float]
    covariance_scale: Any = 1.0


class Step(NamedTuple):
    """A step of M at rate 1.

    Attributes:
        move: `(c L)^-1 A`, `[d, k]`, where A is the bracket of the module's equation.
        kl: `1/2 tr(V^-1 A' (c L)^-1 A)`, scalar: for c = 1 the KL in nats of the posterior after
            the step from the one before.
    """

    move: tf.Tensor
    kl: tf.Tensor

    @classmethod
    def of(cls, move: tf.Tensor, twice_kl: tf.Tensor) -> Step:
        """A step by twice its KL, of which rounding may make less than 0."""
        return cls(move, tf.cast(tf.nn.relu(0.5 * twice_kl), tf.float32))


class Factors(NamedTuple):
    """New Cholesky factors of a layer; not finite where a factorisation failed.

    Attributes:
        prior_row_precision: l with `L0 = l I`, scalar; 0 if L0 is no number.
        row: R with `L^-1 = R R'`, in the form of the layer's `RowCovariance`.
        column: C with `V = C C'`, `[k, k]`.
        column_precision: `V^-1`, `[k, k]`.
    """

    prior_row_precision: tf.Tensor
    row: tf.Tensor
    column: tf.Tensor
    column_precision: tf.Tensor


class LayerPosterior:
    """The variables of one layer's posterior `W ~ MN(M, L^-1, V)`, and their updates.

    Args:
        layer: the Keras layer that owns the variables.
        initial_mean: initializer of M, `[d, k]`.
        rows: the form of the row covariance; its d includes the row of the bias.
        columns: k.
        fan_in: number of inputs of one unit, without the bias.
        prior_at_mean: True for a prior centred on a stored M0, False for M0 = 0.
        stored_prior: whether there is a stored L0, see `become_prior`. Defaults to False.
        dtype: dtype of statistics and posterior, `"float32"` (default) or `"float64"`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        initial_mean: Any,
        rows: RowCovariance,
        columns: int,
        fan_in: int,
        prior_at_mean: bool,
        dtype: str = "float32",
        stored_prior: bool = False,
    ) -> None:
        d, k = self.size = rows.size, columns
        self.rows, self.fan_in, self.dtype = rows, fan_in, dtype

        def variable(name: str, shape: tuple[int, ...], start: Any = "zeros") -> keras.Variable:
            return state_variable(layer, name, shape, start, dtype)

        self._add = variable

        # Keras saves variables in the order of their creation: keep it, or old files do not load.
        self.mean = variable("mean", (d, k), initial_mean)
        self.prior_mean = variable("prior_mean", (d, k)) if prior_at_mean else None
        self.rows.add_factor(variable)
        self.column_factor = variable("column_factor", (k, k))
        # Products that every step needs and only a factorisation changes; `pull` is
        # `L0 (M - M0) V^-1`.
        self.rows.add_covariance(variable)
        self.column_covariance = variable("column_covariance", (k, k))
        self.pull = variable("pull", (d, k))
        self.prior_row_precision = variable("prior_row_precision", ())
        self.kl = state_variable(layer, "kl", ())
        self.rows.add_average(layer)
        self.fisher = WeightedAverage(layer, "fisher", (k, k), dtype)
        self.together = WeightedAverage(layer, "together", (), dtype)
        self.targets = Accumulation(layer, "targets")
        self.prior_precision: keras.Variable | None = None
        if stored_prior:
            self.add_prior()

    def add_prior(self) -> tuple[keras.Variable, keras.Variable]:
        """Create the variables of a stored prior: M0, L0, and `tr(V^-1)` when L0 was taken.

        Returns:
            M0 and L0; those that are there already.
        """
        if self.prior_mean is None:
            self.prior_mean = self._add("prior_mean", self.size)
        if self.prior_precision is None:
            shape = tuple(self.rows.zeros().shape)
            self.prior_precision = self._add("prior_precision", shape)
            self.prior_trace = self._add("prior_trace", ())
        return self.prior_mean, self.prior_precision

    def become_prior(self, num_examples: tf.Tensor, prior: Prior, strength: float) -> None:
        """Make the posterior the prior, and forget the statistics that it is made of.

            M0 <- M        L0 <- L0 + strength N S

        L0 is in units of the present V: a posterior with another V has the prior
        `L0 tr(V0^-1) / tr(V^-1)`, as a prior with a number has. The scale c is left out, because it
        is none of the steps of M. Answers stay as they are.

        Args:
            num_examples: N, divided by the temperature, of the data until now.
            prior: prior and damping of the layer until now.
            strength: by which the data until now count.
        """
        count = strength * tf.cast(num_examples, self.dtype)
        precision = self.rows.precision(count, self._prior_in_use(prior))
        stored_mean, stored_precision = self.add_prior()
        stored_precision.assign(precision)
        stored_mean.assign(self.mean)
        self.prior_trace.assign(tf.linalg.trace(column_precision(self.column_factor)))
        self.prior_row_precision.assign(tf.ones((), self.dtype))
        for average in (self.rows.average, self.fisher, self.together):
            average.total.assign(tf.zeros_like(average.total))
            average.weight.assign(tf.zeros_like(average.weight))
        self.targets.weight.assign(tf.zeros_like(self.targets.weight))
        self.pull.assign(tf.zeros_like(self.pull))

    # -- reading --------------------------------------------------------------------------------

    def matrix_normal(self) -> MatrixNormal:
        """The posterior with a dense R; before the first factorisation both factors are 0."""
        mean, column = map(tf.convert_to_tensor, (self.mean, self.column_factor))
        return MatrixNormal(mean, self.rows.dense_factor(), column)

    def distribution(self) -> tfd.MatrixNormalLinearOperator:
        """The posterior as a TFP distribution, event shape `[d, k]`."""
        mean, column = map(tf.convert_to_tensor, (self.mean, self.column_factor))
        return tfd.MatrixNormalLinearOperator(mean, self.rows.operator(), upper_operator(column))

    def perturbed(self, noise: tf.Tensor) -> tf.Tensor:
        """A sample `M + R E C'` for given standard normal E `[d, k]`."""
        right = tf.matmul(noise, tf.convert_to_tensor(self.column_factor), transpose_b=True)
        return self.mean + self.rows.perturbation(right)

    def has_statistics(self) -> tf.Tensor:
        """Whether the covariance has been computed at least once, boolean scalar."""
        return self.rows.has_statistics()

    def offset(self) -> tf.Tensor:
        """`M - M0`, `[d, k]`."""
        mean = tf.convert_to_tensor(self.mean)
        return mean if self.prior_mean is None else mean - self.prior_mean

    @property
    def num_parameters(self) -> int:
        """How many numbers describe the posterior: its mean and its two Cholesky factors."""
        d, k = self.size
        return d * k + self.rows.num_parameters + k * (k + 1) // 2

    @property
    def cost(self) -> Cost:
        """The cost of one step and of one factorisation of this layer."""
        (d, k), rows = self.size, self.rows
        return Cost(
            rows.factorising_cost + k**3,
            rows.collecting_cost + 4 * d * k + 2 * k * k,
            rows.applying_cost(k),
        )

    def prior_times(self, prior: Prior, right: tf.Tensor) -> tf.Tensor:
        """`L0 B`."""
        return self.rows.times(self._prior_in_use(prior), right)

    def _prior_in_use(self, prior: Prior) -> tf.Tensor:
        """L0 of the last factorisation."""
        if self.prior_precision is not None:
            return self.prior_row_precision * self.prior_precision
        own = self._given_prior(prior.row_precision)
        return tf.convert_to_tensor(self.prior_row_precision) if own is None else own

    def _given_prior(self, row_precision: Any) -> tf.Tensor | None:
        """An L0 that is no number, in the form of the rows; None for a number or none."""
        if isinstance(row_precision, np.ndarray) and row_precision.ndim > 0:
            return self.rows.of_matrix(row_precision)
        return None

    def effective_parameters(self, prior: Prior) -> tf.Tensor:
        """`tr(F V) (d - tr(L0 (c L)^-1))`: how many weights the data determine, scalar.

        The first term counts outputs, by how much of V^-1 is not damping; the second inputs. An
        exact output layer has no damping, and its first term is k.

        Source: MacKay (1992), "Bayesian Interpolation".
        """
        d, k = self.size
        fisher = self._rows_together() * self.fisher.value()
        is_exact = tf.equal(tf.linalg.trace(fisher), 0.0)
        outputs = tf.reduce_sum(fisher * tf.convert_to_tensor(self.column_covariance))
        outputs = tf.where(is_exact, tf.cast(k, self.dtype), outputs)
        trace = self.rows.trace_with(self._prior_in_use(prior))
        return outputs * (d - trace / tf.cast(prior.covariance_scale, self.dtype))

    # -- updating -------------------------------------------------------------------------------

    def collect(self, sums: BatchSums, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """Take the sums of a batch into the moving averages.

        Args:
            sums: the sums of the batch over all replicas.
            rate: rho of the averages.
            accept: boolean scalar; False leaves the averages as they are.
        """
        moments = sums.moments
        self.rows.average.update(moments.inputs, moments.examples, rate, accept)
        self.fisher.update(moments.fisher, moments.rows, rate, accept)
        # Divided by `squares` in place of a sample weight, this average is `q tr F`.
        self.together.update(moments.together, moments.squares, rate, accept)

    def factorised(self, num_examples: tf.Tensor, prior: Prior, role: LayerRole) -> Factors:
        """L0 and the Cholesky factors of L^-1 and V for the present averages; changes nothing.

        Args:
            num_examples: N, divided by the temperature.
            prior: prior and damping of the layer.
            role: the role of the layer in the net, which says where V comes from.
        """
        fisher = self._rows_together() * self.fisher.value()
        column, column_precision = role.column(fisher, prior.damping)
        number, l0 = self._prior_of(prior, tf.linalg.trace(column_precision))
        row = self.rows.factorised(tf.cast(num_examples, self.dtype), l0)
        row *= tf.sqrt(tf.cast(prior.covariance_scale, self.dtype))
        return Factors(number, row, column, column_precision)

    def take(self, factors: Factors, prior: Prior, accept: tf.Tensor) -> None:
        """Assign new Cholesky factors, and all that is derived from them, if accepted.

        Args:
            factors: what `factorised` returned.
            prior: prior and damping of the layer.
            accept: boolean scalar; False leaves everything as it is.
        """
        # The order matters: `prior_times` reads the new L0, and the KL reads all that precedes it.
        keep(self.prior_row_precision, factors.prior_row_precision, accept)
        self.rows.take(factors.row, accept)
        keep(self.column_factor, factors.column, accept)
        keep(self.column_covariance, covariance(factors.column), accept)
        pull = tf.matmul(self.prior_times(prior, self.offset()), factors.column_precision)
        keep(self.pull, pull, accept)
        keep(self.kl, tf.cast(self._kl_divergence(prior), tf.float32), accept)

    def _rows_together(self) -> tf.Tensor:
        """The ratio q of the module's equation, at least 1, scalar."""
        trace = tf.linalg.trace(self.fisher.value())
        return tf.maximum(tf.math.divide_no_nan(self.together.value(), trace), 1.0)

    def _kl_divergence(self, prior: Prior) -> tf.Tensor:
        """`KL(MN(M, L^-1, V) || MN(M0, L0^-1, V))`, scalar, in nats.

        1/2 [ k tr(L0 L^-1) + tr(V^-1 (M - M0)' L0 (M - M0)) - d k + k (log|L| - log|L0|) ]
        """
        d, k = self.size
        l0 = self._prior_in_use(prior)
        trace = self.rows.trace_with(l0)
        volume = self.rows.log_det() - self.rows.log_det_of(l0)
        shift = tf.reduce_sum(self.offset() * self.pull)
        return 0.5 * (k * trace + shift - d * k + k * volume)

    def _prior_of(self, prior: Prior, trace: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The number l with `L0 = l I`, or times a stored L0, 0 if L0 was given; and L0.

        A priori a weight in column j has the variance `V_jj / l`. With p the precision that one
        weight shall have, `l = p k / tr(V^-1)`: V is replaced by the harmonic mean of its
        eigenvalues.

        Args:
            prior: prior and damping of the layer.
            trace: `tr(V^-1)`, scalar.
        """
        if self.prior_precision is not None:
            number = self.prior_trace / trace
            return number, number * self.prior_precision
        own = self._given_prior(prior.row_precision)
        if own is not None:
            return tf.zeros((), self.dtype), own
        if prior.row_precision is not None:
            number = tf.constant(float(prior.row_precision), self.dtype)
        else:
            precision = tf.cast(prior.weight_precision, self.dtype)
            number = precision * self.fan_in * self.size[1] / trace
        return number, number

    def step(
        self,
        sums: BatchSums,
        num_examples: tf.Tensor,
        prior: Prior,
        role: LayerRole,
        rows: BatchRows | None = None,
        prior_steps: tf.Tensor | None = None,
    ) -> Step:
        """The step of M at rate 1 for one batch.

        Args:
            sums: the sums of the batch over all replicas.
            num_examples: N, divided by the temperature.
            prior: prior and damping of the layer.
            role: the role of the layer in the net, which says what `sums.cross` holds.
            rows: the rows of this replica, to multiply by `L^-1` one by one; they must be few.
                Defaults to None: their sum is multiplied.
            prior_steps: of how many steps the pull of the prior is part of this step, scalar.
                Defaults to None: of this one.
        """
        # 0 for a batch whose sample weights are all 0.
        share = tf.cast(tf.math.divide_no_nan(num_examples, sums.examples), self.dtype)
        column_covariance = tf.convert_to_tensor(self.column_covariance)
        scale = tf.cast(prior.covariance_scale, self.dtype)
        if rows is None and prior_steps is None:
            cross = share * sums.cross
            gradient = role.gradient(cross, column_covariance)
            shift = role.shifts(cross, column_covariance)
            move = self.rows.apply(shift - self.prior_times(prior, self.offset())) / scale
        else:
            data = self._data_move(sums, role, rows, share / scale)
            gradient = role.gradient(sums.cross, column_covariance)
            times = tf.ones((), self.dtype) if prior_steps is None else prior_steps
            times = tf.cast(times, self.dtype)

            def with_prior() -> tuple[tf.Tensor, tf.Tensor]:
                pulled = self.rows.apply(self.prior_times(prior, self.offset()))
                move = data - (times / scale) * pulled
                return move, tf.reduce_sum(move * (share * gradient - times * self.pull))

            def without() -> tuple[tf.Tensor, tf.Tensor]:
                return data, share * tf.reduce_sum(data * gradient)

            return Step.of(*tf.cond(times > 0.0, with_prior, without))
        # `gradient - pull` is `A V^-1` without another matrix product. `pull` is as old as the last
        # factorisation, so the sum may fall below 0, which no KL does.
        return Step.of(move, tf.reduce_sum(move * (gradient - self.pull)))

    def _data_move(
        self, sums: BatchSums, role: LayerRole, rows: BatchRows | None, factor: tf.Tensor
    ) -> tf.Tensor:
        """`L^-1 H'G V`, `[d, k]`, times a factor, over all replicas."""
        covariance = tf.convert_to_tensor(self.column_covariance)
        if rows is None:
            return self.rows.apply(factor * role.shifts(sums.cross, covariance))
        shifts = factor * role.shifts(rows.right, covariance)
        return sum_over_replicas(self.rows.applied_cross(rows.inputs, shifts))

    def prefers_rows(self, num_rows: int) -> bool:
        """Whether rows of this number are cheaper to multiply by `L^-1` and V than their sum."""
        (d, k), rows = self.size, self.rows
        one_by_one = num_rows * (rows.applying_cost(1) + k * k + d * k)
        return one_by_one < rows.applying_cost(k) + d * k * k

    def move(self, step: Step, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """`M <- M + rate move`, if accepted."""
        keep(self.mean, self.mean + tf.cast(rate, self.dtype) * step.move, accept)
