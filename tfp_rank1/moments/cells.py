"""Recurrent cells: moments of the state after one time step.

    LSTM          c <- f c + i g,             h <- o activation(c)
    GRU           h <- u h + (1 - u) g
    SimpleRNN     h <- activation(W'x + U'h + b)

Gates f, i, o, u and candidates g are activations of `W'x + U'h + b`; with rank-1 factors of
`s o (W'(x o r)) + s' o (U'(h o r')) + b`. Gates, candidates and state count as independent.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1 import layers as rank1_layers
from tfp_rank1.moments.activations import activated
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.merging import added, multiplied
from tfp_rank1.moments.rank1 import perturbed
from tfp_rank1.moments.registry import propagate, register

__all__ = ["gru_states", "lstm_states", "parts"]

layers = keras.layers
States = list[Moments]


class _Stock:
    """The two products of a cell of Keras and its biases.

    Args:
        cell: an LSTM, GRU or simple cell.
    """

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.size = int(cell.kernel.shape[-1])

    def inputs(self, x: Moments) -> Moments:
        """`W'x`, `[rows, gates * units]`."""
        return _product(x, self.cell.kernel)

    def state(self, h: Moments, columns: slice = slice(None)) -> Moments:
        """`U'h`, for some columns of U."""
        return _product(h, self.cell.recurrent_kernel, columns)

    def biased(self, z: Moments, row: int = 0) -> Moments:
        """`z + b`, where a GRU with `reset_after` has a bias of inputs and one of states."""
        if not self.cell.use_bias:
            return z
        rows = tf.reshape(tf.convert_to_tensor(self.cell.bias), [-1, self.size])
        return Moments(z.mean + tf.cast(rows[row], z.mean.dtype), z.variance)


class _Rank1(_Stock):
    """As `_Stock`, with kernels and biases that are perturbed by member."""

    def inputs(self, x: Moments) -> Moments:
        """`s o (W'(x o r))`."""
        inner = super().inputs(self._perturbed(x, self.cell.r_factor))
        return self._perturbed(inner, self.cell.s_factor)

    def state(self, h: Moments, columns: slice = slice(None)) -> Moments:
        """`s' o (U'(h o r'))`."""
        inner = super().state(self._perturbed(h, self.cell.recurrent_r_factor), columns)
        return self._perturbed(inner, self.cell.recurrent_s_factor, columns)

    def biased(self, z: Moments, row: int = 0) -> Moments:
        if not self.cell.use_bias:
            return z
        columns = slice(row * self.size, (row + 1) * self.size)
        mean, variance = (_taken(v, columns) for v in self.cell.bias_moments())
        spread = z.variance
        if variance is not None:
            spread = self.cell.by_member(z.variance_or_zeros(), variance, -1, tf.add)
        return Moments(self.cell.by_member(z.mean, mean, -1, tf.add), spread)

    def _perturbed(self, x: Moments, factor: Any, columns: slice = slice(None)) -> Moments:
        mean, variance = (_taken(v, columns) for v in self.cell.factor_moments(factor))
        return perturbed(self.cell, x, (mean, variance), -1)


def _taken(value: tf.Tensor | None, columns: slice) -> Any:
    return None if value is None else value[..., columns]


def _product(x: Moments, kernel: Any, columns: slice = slice(None)) -> Moments:
    """Moments of `W'x` for independent entries x, for some columns of W."""
    kernel = tf.cast(tf.convert_to_tensor(kernel), x.mean.dtype)[:, columns]
    variance = None if x.variance is None else ops.matmul(x.variance, tf.square(kernel))
    return Moments(ops.matmul(x.mean, kernel), variance)


def parts(z: Moments, count: int) -> list[Moments]:
    """Moments of gates that lie side by side."""
    means, variances = (tf.split(v, count, axis=-1) for v in (z.mean, z.variance_or_zeros()))
    return [Moments(*pair) for pair in zip(means, variances, strict=True)]


def lstm_states(cell: Any, z: Moments, states: States) -> States:
    """Moments of the states h and c of an LSTM after a time step.

    Args:
        cell: names the activations.
        z: pre-activations, `[rows, 4 units]`.
        states: h and c before the time step.
    """
    z_i, z_f, candidate, z_o = parts(z, 4)
    i, f, o = (activated(cell.recurrent_activation, gate) for gate in (z_i, z_f, z_o))
    c = added(multiplied(f, states[1]), multiplied(i, activated(cell.activation, candidate)))
    return [multiplied(o, activated(cell.activation, c)), c]


def _lstm_step(products: _Stock, x: Moments, states: States) -> tuple[Moments, States]:
    z = products.biased(added(products.inputs(x), products.state(states[0])))
    h, c = lstm_states(products.cell, z, states)
    return h, [h, c]


def _gru_step(products: _Stock, x: Moments, states: States) -> tuple[Moments, States]:
    cell, (h,), units = products.cell, states, products.cell.units
    of_x = parts(products.biased(products.inputs(x)), 3)
    if cell.reset_after:
        (h,) = gru_states(cell, of_x, parts(products.biased(products.state(h), 1), 3), states)
        return h, [h]
    u, r = _gates(cell, of_x, parts(products.state(h, slice(0, 2 * units)), 2))
    inner = products.state(multiplied(r, h), slice(2 * units, 3 * units))
    h = _blended(u, h, activated(cell.activation, added(of_x[2], inner)))
    return h, [h]


def gru_states(cell: Any, of_x: States, of_h: States, states: States) -> States:
    """Moments of the state of a GRU that resets after the product, after a time step.

    Args:
        cell: names the activations.
        of_x: pre-activations of gates and candidate from the inputs, three of `[rows, units]`.
        of_h: those from the state.
        states: h before the time step.
    """
    u, r = _gates(cell, of_x, of_h)
    candidate = activated(cell.activation, added(of_x[2], multiplied(r, of_h[2])))
    return [_blended(u, states[0], candidate)]


def _gates(cell: Any, of_x: States, of_h: States) -> list[Moments]:
    """Moments of the update and the reset gate."""
    return [activated(cell.recurrent_activation, added(of_x[i], of_h[i])) for i in (0, 1)]


def _blended(u: Moments, h: Moments, g: Moments) -> Moments:
    """Moments of `u h + (1 - u) g`, in which both terms have the same u.

    Var = (E u^2) Var h + (E (1 - u)^2) Var g + Var u (E h - E g)^2
    """
    own, rest, spread = u.mean, 1.0 - u.mean, u.variance_or_zeros()
    variance = (tf.square(own) + spread) * h.variance_or_zeros()
    variance += (tf.square(rest) + spread) * g.variance_or_zeros()
    variance += spread * tf.square(h.mean - g.mean)
    return Moments(own * h.mean + rest * g.mean, variance)


def _rule_of_cell(products: Any, step: Any) -> Any:
    """The rule of a cell whose products and step are these."""

    def rule(cell: Any, x: Moments, states: States) -> tuple[Moments, States]:
        return step(products(cell), x, states)

    return rule


register(layers.LSTMCell)(_rule_of_cell(_Stock, _lstm_step))
register(rank1_layers.LSTMCellRank1)(_rule_of_cell(_Rank1, _lstm_step))
register(layers.GRUCell)(_rule_of_cell(_Stock, _gru_step))
register(rank1_layers.GRUCellRank1)(_rule_of_cell(_Rank1, _gru_step))


@register(layers.SimpleRNNCell)
def _simple_cell(cell: Any, x: Moments, states: States) -> tuple[Moments, States]:
    products = _Stock(cell)
    z = products.biased(added(products.inputs(x), products.state(states[0])))
    h = activated(cell.activation, z)
    return h, [h]


@register(layers.StackedRNNCells)
def _stacked(cell: Any, x: Moments, states: list[States]) -> tuple[Moments, list[States]]:
    """Cells one upon the other, each with states of its own."""
    new = []
    for part, own in zip(cell.cells, states, strict=True):
        x, own = propagate(part, x, own)
        new.append(own)
    return x, new
