"""LSTMBali and GRUBali."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from bali_keras.layers.base import OF_POSTERIOR, row_mask, widened
from bali_keras.layers.dense import DenseBali
from bali_keras.recording import Record, current_recorder
from tfp_rank1.checks import whole
from tfp_rank1.scopes import mean_mode
from tfp_rank1.serialization import registered

__all__ = [
    "GRUBali",
    "LSTMBali",
    "RecurrentMap",
]

# The states of a cell, `[B, units]` each; the first is its output.
States = tuple[tf.Tensor, ...]
# `(input part, recurrent part, states) -> states`, the parts being pre-activations `[B, k]`.
Cell = Callable[[tf.Tensor, tf.Tensor, States], States]


@registered("bali_keras")
class RecurrentMap(DenseBali):
    """The recurrent half of a cell: `U' h`, from one time step to the next.

    Its rows are the outputs of all time steps, which it meets one after the other.
    """

    def unrolled(
        self, inputs: tf.Tensor, cell: Cell, num_states: int, mask: tf.Tensor | None
    ) -> tf.Tensor:
        """The outputs of all time steps, `[B, T, units]`.

        Args:
            inputs: input parts of all time steps, `[B, T, k]`.
            cell: the cell's step.
            num_states: number of states, which start at 0.
            mask: boolean `[B, T]`; where it is False the states stay. None for no mask.
        """
        recorder = current_recorder()
        shape = tf.shape(inputs)
        sizes = tuple(shape[i] if n is None else n for i, n in enumerate(inputs.shape))
        is_local = recorder is not None and not mean_mode.value
        noise = None
        if recorder is not None and is_local:  # the product of all time steps at once
            noise = self._correlated(recorder.noise(sizes))
        # Where the gradient at the pre-activations is read: the loop hides the pre-activations.
        source = tf.zeros(shape, inputs.dtype)
        if recorder is not None and self.trainable:
            recorder.watch(source)
        weights = self._weights(is_training=recorder is not None)
        d, k = self.posterior_state.size
        widths = [self._size()] * num_states
        first = tuple(tf.zeros((sizes[0], width), inputs.dtype) for width in widths)
        of_rows = (d,), (k,), (k,), ()
        empty = tuple(tf.zeros((sizes[0], *width), inputs.dtype) for width in of_rows)

        def step(states: States, x: tf.Tensor, e: tf.Tensor, s: tf.Tensor) -> tuple[Any, ...]:
            h = self._homogeneous(states[0])
            mean = ops.matmul(h, weights)
            variance, z = tf.zeros_like(mean[:, 0]), mean + s
            if noise is not None:
                variance = self._row_variance(h)
                z += tf.sqrt(variance)[:, tf.newaxis] * e
            return cell(x, z, states), (h, mean, z, variance)

        elements = inputs, inputs if noise is None else noise, source
        states, rows = _over_time(step, (first, empty), elements, mask)
        if recorder is not None and self.trainable:
            h, mean, z, variance = rows
            own = row_mask(mask, mean)
            recorder.record(self, Record(tf.stop_gradient(h), mean, z, variance, own, source))
        return states[0]

    def _size(self) -> int:
        return self.posterior_state.size[0] - int(self.use_bias)

    def _weights(self, is_training: bool) -> tf.Tensor:
        """U, or in an answer that samples one draw of it for all time steps."""
        state = self.posterior_state
        if is_training or mean_mode.value:
            return ops.cast(state.mean, self.compute_dtype)
        noise = tf.cast(self._noise(state.size), state.dtype)
        return ops.cast(state.perturbed(widened(noise)), self.compute_dtype)


def _over_time(
    step: Callable[..., tuple[Any, ...]],
    first: tuple[States, tuple[tf.Tensor, ...]],
    elements: tuple[tf.Tensor, ...],
    mask: tf.Tensor | None,
) -> tuple[States, tuple[tf.Tensor, ...]]:
    """What a step returns, its states and its rows, of all time steps, `[B, T, ...]` each.

    Args:
        step: takes states and the elements of a time step.
        first: the states before the first time step, and rows, of which only the shapes matter.
        elements: of all time steps, `[B, T, ...]`.
        mask: boolean `[B, T]`; None for no mask.
    """

    def swapped(values: tf.Tensor) -> tf.Tensor:
        return tf.transpose(values, [1, 0, *range(2, int(values.shape.rank))])

    kept = tf.ones(tf.shape(elements[0])[:2], tf.bool) if mask is None else tf.cast(mask, tf.bool)

    def one(before: Any, element: Any) -> Any:
        states, (*given, keep) = before[0], element
        after, rows = step(states, *given)
        if mask is not None:
            pairs = zip(after, states, strict=True)
            after = tuple(tf.where(keep[:, tf.newaxis], new, old) for new, old in pairs)
        return after, rows

    by_time = tuple(swapped(v) for v in (*elements, kept))
    states, rows = tf.scan(one, by_time, first)
    return tuple(swapped(v) for v in states), tuple(swapped(v) for v in rows)


class _RecurrentBali(keras.layers.Layer):
    """Base of the recurrent layers: a map of the inputs, and one from step to step."""

    num_gates: int
    num_states: int
    recurrent_bias = False
    # `keras.layers.Bidirectional` asks for both.
    stateful = return_state = False

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        return_sequences: bool = False,
        go_backwards: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        self._bali = {name: kwargs.pop(name, default) for name, default in OF_POSTERIOR.items()}
        super().__init__(**kwargs)
        self.units = whole("units", units)
        self.activation = keras.activations.get(activation)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        self.use_bias = use_bias
        self.return_sequences, self.go_backwards = bool(return_sequences), bool(go_backwards)
        self.zero_output_for_mask = bool(zero_output_for_mask)
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)
        seed = self._bali["seed"]
        shared = {**self._bali, "bias_initializer": bias_initializer, "dtype": self.dtype_policy}
        width = self.num_gates * self.units
        self.input_map = DenseBali(
            width,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            name="input_map",
            **shared,
        )
        # Two maps of one seed would have the same draws.
        shared["seed"] = None if seed is None else seed + 1
        self.recurrent_map = RecurrentMap(
            width,
            use_bias=use_bias and self.recurrent_bias,
            kernel_initializer=recurrent_initializer,
            name="recurrent_map",
            **shared,
        )

    def build(self, input_shape: Any) -> None:
        """Create both posteriors."""
        self.input_map.build(input_shape)
        self.recurrent_map.build((*input_shape[:-1], self.units))
        self.built = True

    def call(
        self,
        inputs: tf.Tensor,
        initial_state: None = None,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Outputs of the last time step, `[B, units]`, or of all, `[B, T, units]`."""
        if initial_state is not None:  # an argument because `keras.layers.Bidirectional` passes it
            raise ValueError(
                f"Argument `initial_state` must be None: {type(self).__name__} begins every "
                f"sequence with states of 0. Received: initial_state={initial_state!r}"
            )
        if self.go_backwards:
            inputs = ops.flip(inputs, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
        parts = self.input_map(inputs, mask=mask, training=training)
        outputs = self.recurrent_map.unrolled(parts, self._cell, self.num_states, mask)
        if not self.return_sequences:
            # Where a mask is False the states stay: the last ones are those of the last step.
            return outputs[:, -1]
        if mask is None or not self.zero_output_for_mask:
            return outputs
        return tf.where(tf.cast(mask, tf.bool)[..., tf.newaxis], outputs, tf.zeros_like(outputs))

    def _cell(self, x: tf.Tensor, h: tf.Tensor, states: States) -> States:
        """The states after a time step.

        Args:
            x: input part of the pre-activations, `[B, num_gates units]`.
            h: recurrent part.
            states: before the time step.
        """
        raise NotImplementedError

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask goes on with all time steps."""
        return mask if self.return_sequences else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`[B, units]` or `[B, T, units]`."""
        times = (input_shape[1],) if self.return_sequences else ()
        return (input_shape[0], *times, self.units)

    def get_config(self) -> dict[str, Any]:
        first, second = self.input_map.get_config(), self.recurrent_map.get_config()
        return {
            **super().get_config(),
            **self._bali,
            "stored_prior": self.input_map.stored_prior,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "recurrent_activation": keras.activations.serialize(self.recurrent_activation),
            "use_bias": self.use_bias,
            "kernel_initializer": first["kernel_initializer"],
            "recurrent_initializer": second["kernel_initializer"],
            "bias_initializer": first["bias_initializer"],
            "return_sequences": self.return_sequences,
            "go_backwards": self.go_backwards,
            "zero_output_for_mask": self.zero_output_for_mask,
        }


@registered("bali_keras")
class LSTMBali(_RecurrentBali):
    """`keras.layers.LSTM` of two maps with matrix-normal posteriors, `W'x_t + U'h_(t-1)`.

        i, f, c, o = W'[x_t, 1] + U'h_(t-1)
        state <- sigmoid(f) state + sigmoid(i) tanh(c)        h_t = sigmoid(o) tanh(state)

    Time steps are rows that share W and U. Training draws the pre-activations of every time step,
    answers draw W and U once for all time steps.

    Args:
        units: size of the output.
        activation, recurrent_activation, use_bias: as in the stock layer.
        return_sequences, go_backwards, zero_output_for_mask: likewise.
        kernel_initializer, recurrent_initializer, bias_initializer: of the means.
        unit_forget_bias: whether the mean of the bias of f starts at 1. Defaults to True.
        **kwargs: `prior_at_mean`, `row_covariance`, `statistics_dtype` and `seed` as for
            `BaliLayer`, for both maps.

    Call arguments:
        inputs: `[B, T, d]`.
        mask: boolean `[B, T]`; masked time steps leave the state, and are no data.

    Returns:
        `[B, units]`, or `[B, T, units]` with `return_sequences`.

    Example:
    ```python
    h = bk.layers.LSTMBali(32)(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    num_gates, num_states = 4, 2

    def __init__(self, units: int, unit_forget_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.unit_forget_bias = bool(unit_forget_bias)

    def build(self, input_shape: Any) -> None:
        """Create both posteriors."""
        super().build(input_shape)
        if self.use_bias and self.unit_forget_bias:
            mean = self.input_map.posterior_state.mean
            row = np.zeros(mean.shape, "float32")
            row[-1, self.units : 2 * self.units] = 1.0
            mean.assign(mean + ops.cast(row, mean.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unit_forget_bias": self.unit_forget_bias}

    def _cell(self, x: tf.Tensor, h: tf.Tensor, states: States) -> States:
        i, f, c, o = tf.split(x + h, 4, axis=-1)
        gate = self.recurrent_activation
        state = gate(f) * states[1] + gate(i) * self.activation(c)
        return gate(o) * self.activation(state), state


@registered("bali_keras")
class GRUBali(_RecurrentBali):
    """`keras.layers.GRU` of two maps with matrix-normal posteriors, `W'x_t` and `U'h_(t-1)`.

        z = sigmoid(x_z + h_z)    r = sigmoid(x_r + h_r)    c = tanh(x_c + r h_c)
        h_t = z h_(t-1) + (1 - z) c,   x_z, x_r, x_c = W'[x_t, 1],   h_z, h_r, h_c = U'[h_(t-1), 1]

    As the stock layer with `reset_after=True`, its default. Time steps are rows that share W and U.
    Training draws the pre-activations of every time step, answers draw W and U once for all.

    Args:
        units: size of the output.
        activation, recurrent_activation, use_bias: as in the stock layer.
        return_sequences, go_backwards, zero_output_for_mask: likewise.
        kernel_initializer, recurrent_initializer, bias_initializer: of the means.
        **kwargs: `prior_at_mean`, `row_covariance`, `statistics_dtype` and `seed` as for
            `BaliLayer`, for both maps.

    Call arguments:
        inputs: `[B, T, d]`.
        mask: boolean `[B, T]`; masked time steps leave the state, and are no data.

    Returns:
        `[B, units]`, or `[B, T, units]` with `return_sequences`.

    Example:
    ```python
    h = bk.layers.GRUBali(32, return_sequences=True)(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    num_gates, num_states = 3, 1
    recurrent_bias = True

    def _cell(self, x: tf.Tensor, h: tf.Tensor, states: States) -> States:
        (xz, xr, xc), (hz, hr, hc) = tf.split(x, 3, axis=-1), tf.split(h, 3, axis=-1)
        gate = self.recurrent_activation
        z, r = gate(xz + hz), gate(xr + hr)
        return (z * states[0] + (1.0 - z) * self.activation(xc + r * hc),)
