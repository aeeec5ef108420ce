"""`RowCovariance`: what a form of the row covariance must be able to do.

A layer's posterior `W ~ MN(M, L^-1, V)` has two covariances. The column covariance V is a small
dense matrix. The row covariance `L^-1` grows with the layer's inputs, and its form decides what a
step costs. All other code uses `L` through the methods here, and does not know its shape.

A form also knows how a layer's rows h are stored. Rows are `[..., d]` tensors, but for layers whose
rows have few entries that are not 0: those of an embedding are integers.
"""

from __future__ import annotations

from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from bali_keras.inference.statistics import AddVariable, WeightedAverage

__all__ = ["RowCovariance"]


class RowCovariance(Protocol):
    """The row precision of a layer with d rows and k columns of weights.

    Three methods create the variables, `add_factor`, `add_covariance` and `add_average`, because
    saved files keep variables in the order of their creation, and `LayerPosterior` creates others
    in between. A precision L0 is a scalar l, which stands for `l I`, or in the form of the class.

    Attributes:
        size: d.
        dtype: of the statistics, "float32" or "float64".
        average: moving average of `h h'` over examples, in this form.
    """

    size: int
    dtype: str
    average: WeightedAverage

    def add_factor(self, add: AddVariable) -> None:
        """Create R, the Cholesky factor of `L^-1 = R R'`; 0 before the first factorisation."""

    def add_covariance(self, add: AddVariable) -> None:
        """Create the variables derived from R, for products that every step needs."""

    def add_average(self, layer: keras.layers.Layer) -> None:
        """Create `average`."""

    # -- rows -----------------------------------------------------------------------------------

    def flat(self, h: tf.Tensor, dtype: str) -> tf.Tensor:
        """Rows with any axes in front as one list, as the two methods below take them."""

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        """`sum_r w_r h_r h_r'` in this form.

        Args:
            h: rows, see `flat`.
            weight: w_r, `[R]`; None for 1.
        """

    def cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`sum_r h_r b_r'`, `[d, k]`.

        Args:
            h: rows, see `flat`.
            right: b_r, `[R, k]`.
        """

    def product(self, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`W' h`, `[..., k]`, of rows h and W `[d, k]`."""

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        """`h' L^-1 h` of rows h, `[...]`, in the dtype of h."""

    # -- factorisation --------------------------------------------------------------------------

    def zeros(self) -> tf.Tensor:
        """The second moment of no rows at all."""

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """R of `L = L0 + N S` for the present average; not finite if the factorisation fails.

        Args:
            num_examples: N, divided by the temperature.
            prior: L0.
        """

    def precision(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """`L0 + N S` in this form; the arguments are those of `factorised`."""

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        """Assign a new R, and all that is derived from R, if accepted."""

    def has_statistics(self) -> tf.Tensor:
        """Whether R has been computed at least once, boolean scalar."""

    # -- products -------------------------------------------------------------------------------

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        """`L^-1 B` for B `[d, n]`."""

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`L^-1 sum_r h_r b_r'`, `[d, k]`, row by row: for fewer rows than columns.

        The arguments are those of `cross`.
        """

    def perturbation(self, noise: tf.Tensor) -> tf.Tensor:
        """`R E` for E `[..., d, n]`."""

    def diagonal(self) -> tf.Tensor:
        """The diagonal of `L^-1`, `[d]`."""

    def log_det(self) -> tf.Tensor:
        """`log |L|`, scalar."""

    def condition(self) -> tf.Tensor:
        """A lower bound of the condition number of L, float32 scalar."""

    def operator(self) -> tf.linalg.LinearOperator:
        """R as an operator, for TFP."""

    def dense_factor(self) -> tf.Tensor:
        """R as a matrix `[d, d]`."""

    # -- a prior precision L0 -------------------------------------------------------------------

    def of_matrix(self, matrix: np.ndarray) -> tf.Tensor:
        """An L0 given as a symmetric matrix, in this form.

        Raises:
            ValueError: for a matrix of another size, or with entries that the form leaves out.
        """

    def times(self, prior: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`L0 B` for B `[d, n]`."""

    def log_det_of(self, prior: tf.Tensor) -> tf.Tensor:
        """`log |L0|`, scalar."""

    def trace_with(self, prior: tf.Tensor) -> tf.Tensor:
        """`tr(L0 L^-1)`, scalar."""

    # -- cost -----------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Number of entries of R that may differ from 0."""

    @property
    def factorising_cost(self) -> int:
        """Half of the multiplications of `factorised`, roughly."""

    @property
    def collecting_cost(self) -> int:
        """Multiplications of `second_moment` and `variance` together, per row."""

    def applying_cost(self, columns: int) -> int:
        """Multiplications of `apply` for a matrix of that many columns."""
