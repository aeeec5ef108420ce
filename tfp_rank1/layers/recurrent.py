"""Recurrent layers and cells whose kernels are perturbed by rank-1 matrices.

All factors are drawn once per sequence: a sequence meets the same net at every time step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1 import scopes
from tfp_rank1.keras_internals import lstm_carry_and_output
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.folding import check_rows, fold
from tfp_rank1.layers.rank1 import SEED_STEP, Composite, Rank1Mixin, by_name, rank1_config
from tfp_rank1.random import fold_in, next_seed
from tfp_rank1.serialization import registered

__all__ = [
    "Draws",
    "GRUCellRank1",
    "GRURank1",
    "LSTMCellRank1",
    "LSTMRank1",
]


class Draws(NamedTuple):
    """The draws for one sequence, `[K, B or 1, ...]`.

    Attributes:
        r, s: factors of the kernel, `[..., in]` and `[..., gates * units]`.
        recurrent_r, recurrent_s: factors of the recurrent kernel, `[..., units]` and
            `[..., gates * units]`.
        bias: `[..., gates * units]`, twice as long for a GRU with `reset_after`; None without a
            bias.
        kernel, recurrent_kernel: as a loop over time steps multiplies by them, in the dtype that
            the layer computes in; None outside of a loop. Inside, draws are rows `[K*B, ...]`.
    """

    r: tf.Tensor
    s: tf.Tensor
    recurrent_r: tf.Tensor
    recurrent_s: tf.Tensor
    bias: tf.Tensor | None
    kernel: tf.Tensor | None = None
    recurrent_kernel: tf.Tensor | None = None


class _CellRank1(Rank1Mixin):
    """The part that LSTM and GRU cells share: two kernels, and draws that last for a sequence.

    Keras tells a cell nothing of sequences but this: `RNN.call` asks a `DropoutRNNCell` for its
    dropout masks before the loop over time steps, and to forget them after the loop. The cell draws
    and forgets its factors at these two calls. So `keras.layers.RNN`, `StackedRNNCells` and
    `Bidirectional` have one draw per sequence. A cell that is called alone draws anew at each call.
    So does a cell inside a user's own cell, unless the outer cell is a `DropoutRNNCell` and passes
    `get_dropout_mask` and `reset_dropout_mask` on.
    """

    gates: int
    units: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recurrent_r_factor, self.recurrent_s_factor = (
            self._make_factor(f"recurrent_{f.name}", f.posterior, f.prior, f.center)
            for f in (self.r_factor, self.s_factor)
        )

    def build(self, input_shape: Any) -> None:
        """Create kernels, biases and factors."""
        outputs = self.gates * self.units
        self._build_rank1(input_shape, input_shape[-1], outputs, bias_dim=self._bias_dim())
        self.recurrent_r_factor.build(self, (self.ensemble_size, self.units))
        self.recurrent_s_factor.build(self, (self.ensemble_size, outputs))

    def _bias_dim(self) -> int:
        return self.gates * self.units

    def _factors(self) -> list[Any]:
        return [*super()._factors(), self.recurrent_r_factor, self.recurrent_s_factor]

    # -- one draw per sequence ------------------------------------------------------------------

    def get_dropout_mask(self, step_input: tf.Tensor) -> Any:
        """The dropout mask; an RNN asks for it before a sequence, so the factors are drawn too."""
        # In a scope and not on the cell: the replicas of `tf.distribute` share the cell, and each
        # runs in a thread of its own.
        scopes.held_draws.value[self] = self._draw_all(step_input)
        return super().get_dropout_mask(step_input)

    def reset_dropout_mask(self) -> None:
        """Forget the mask and the draws: the sequence is over."""
        scopes.held_draws.value.pop(self, None)
        super().reset_dropout_mask()

    def _draw_all(self, x: tf.Tensor) -> Draws:
        x = check_rows(x, self.ensemble_size, self.name)
        rows, seed = self._num_draws(x), next_seed(self.seed_generator)
        factors = (self.r_factor, self.s_factor, self.recurrent_r_factor, self.recurrent_s_factor)
        # From 3 on: `fold_in(seed, 2)` is the seed of a random bias.
        r, s, recurrent_r, recurrent_s = (
            self._draw(f, rows, fold_in(seed, 3 + i)) for i, f in enumerate(factors)
        )
        bias = self._draw_bias(rows, seed) if self.use_bias else None
        return Draws(r, s, recurrent_r, recurrent_s, bias)

    def _draws(self, x: tf.Tensor) -> Draws:
        """The draws of the sequence under way, or fresh draws for a cell that is called alone."""
        found = scopes.held_draws.value.get(self)
        return self._draw_all(x) if found is None else found

    # -- before the loop over time steps --------------------------------------------------------

    def before_loop(self, sequences: tf.Tensor) -> None:
        """Turn the draws that are held into rows, which every time step multiplies by.

        Args:
            sequences: `[K*B, T, in]`.
        """
        # A kernel per member in place of rows of shared draws would spare the step two products by
        # entry, but then the matrix products of some CPUs take twice the time.
        held = self._draws(sequences[:, 0])
        rows = tf.shape(sequences)[0] // self.ensemble_size
        draws = (held.r, held.s, held.recurrent_r, held.recurrent_s, held.bias)
        kernels = (self.kernel, self.recurrent_kernel)
        scopes.held_draws.value[self] = Draws(
            *(None if value is None else self._rows_of(value, rows) for value in draws),
            *(ops.cast(kernel, self.compute_dtype) for kernel in kernels),
        )

    def _rows_of(self, value: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Draws `[K, B or 1, dim]` as `[K*B, dim]`."""
        shape = (self.ensemble_size, rows, value.shape[-1])
        return ops.cast(fold(tf.broadcast_to(value, shape)), self.compute_dtype)

    def _input_part(self, x: tf.Tensor, mask: Any, draws: Draws) -> tf.Tensor:
        """`s o (W^T (x o mask o r))`."""
        kernel = self.kernel if draws.kernel is None else draws.kernel
        return self._factored(self._project(x, mask, kernel, draws.r), draws.s)

    def _state_part(
        self, h: tf.Tensor, mask: Any, draws: Draws, gates: slice = slice(None)
    ) -> tf.Tensor:
        """`s' o (U^T (h o mask o r'))` for the columns of U of some gates."""
        kernel, s = draws.recurrent_kernel, draws.recurrent_s
        kernel = ops.convert_to_tensor(self.recurrent_kernel) if kernel is None else kernel
        if gates != slice(None):
            columns = slice(gates.start * self.units, gates.stop * self.units)
            kernel, s = kernel[..., columns], s[..., columns]
            mask = mask[gates] if isinstance(mask, Sequence) else mask
        return self._factored(self._project(h, mask, kernel, draws.recurrent_r), s)

    # -- one step -------------------------------------------------------------------------------

    def _masks(self, inputs: tf.Tensor, h: tf.Tensor, training: Any) -> tuple[Any, Any]:
        """Dropout masks for inputs and state: None, one mask, or a list of one per gate."""
        # Past this class's `get_dropout_mask`, which would draw the factors again.
        on_inputs = training and 0.0 < self.dropout < 1.0
        on_state = training and 0.0 < self.recurrent_dropout < 1.0
        return (
            super().get_dropout_mask(inputs) if on_inputs else None,
            self.get_recurrent_dropout_mask(h) if on_state else None,
        )

    def _project(self, x: tf.Tensor, mask: Any, kernel: Any, r: tf.Tensor) -> tf.Tensor:
        """`W^T (x o mask o r)`, with one mask for all gates or a list of one per gate."""
        # Keras has a mask per gate under `implementation=1`: then each gate is a product by itself.
        if isinstance(mask, Sequence):
            parts = zip(mask, ops.split(kernel, len(mask), axis=-1), strict=True)
            return ops.concatenate([self._project(x, m, w, r) for m, w in parts], axis=-1)
        return ops.matmul(self._factored(x if mask is None else x * mask, r), kernel)

    def _factored(self, x: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """`x o value`, or `x + value`, for draws `[K, B or 1, dim]` or their rows `[K*B, dim]`."""
        if len(value.shape) == 3:
            return self._perturb(x, value, -1)
        return x * value if self.perturbation == "multiplicative" else x + value

    def _add(self, z: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        if bias is None:
            return z
        return z + bias if len(bias.shape) == 2 else self.by_member(z, bias, -1, tf.add)


@registered("tfp_rank1")
@fill_docstring
class LSTMCellRank1(_CellRank1, keras.layers.LSTMCell):
    """An LSTM cell whose two kernels are perturbed by random rank-1 matrices.

        z = s_k o (W^T (x o r_k)) + s'_k o (U^T (h o r'_k)) + b_k
        i, f, o = recurrent_activation(z_i, z_f, z_o),   c <- f c + i activation(z_c)
        h <- o activation(c)

    The factors r_k, s_k of the kernel W and r'_k, s'_k of the recurrent kernel U are drawn once per
    sequence.

    Args:
        units: size of the state.
        {{rank1_arguments}}
            Posterior and prior hold for both kernels.

    Input shape: `[K*B, in]`, member-major; states h and c, `[K*B, units]`.

    Output shape: `[K*B, units]`, and the states h and c after the time step.

    {{raises}}

    Example: `keras.layers.RNN(LSTMCellRank1(32, ensemble_size=4), return_sequences=True)`

    Source: Hochreiter & Schmidhuber (1997), "Long Short-Term Memory"; Dusenberry et al. (2020).
    """

    gates = 4

    def _add_bias(self, dim: int, initializer: Any = None) -> keras.Variable | None:
        def forgetful(shape: Any, dtype: Any = None) -> tf.Tensor:
            """The bias of the stock layer with `unit_forget_bias`, for every member."""
            # The second gate is the forget gate: with a bias of 1 it is open at the start.
            bias = ops.reshape(self.bias_initializer(shape, dtype), (shape[0], 4, -1))
            ones = ops.ones((shape[0], 1, self.units), bias.dtype)
            parts = [bias[:, :1], ones, bias[:, 2:]]
            return ops.reshape(ops.concatenate(parts, axis=1), shape)

        return super()._add_bias(dim, forgetful if self.unit_forget_bias else None)

    def call(self, inputs: tf.Tensor, states: Any, training: bool = False) -> Any:
        """The output, and the states after the time step."""
        h, c = states
        draws = self._draws(inputs)
        mask, recurrent_mask = self._masks(inputs, h, training)
        z = self._input_part(inputs, mask, draws) + self._state_part(h, recurrent_mask, draws)
        z = self._add(z, draws.bias)
        c, o = lstm_carry_and_output(self, ops.split(z, 4, axis=1), c)
        h = o * self.activation(c)
        return h, [h, c]


@registered("tfp_rank1")
@fill_docstring
class GRUCellRank1(_CellRank1, keras.layers.GRUCell):
    """A GRU cell whose two kernels are perturbed by random rank-1 matrices.

        x' = s_k o (W^T (x o r_k)) + b_k,   h' = s'_k o (U^T (h o r'_k)) + b'_k
        z, r = recurrent_activation(x'_z + h'_z, x'_r + h'_r)
        h <- z h + (1 - z) activation(x'_h + r h'_h)

    z and r are the update and the reset gate. With `reset_after=False` the reset gate multiplies h
    before the product with U, and there is no b'. The factors r_k, s_k of the kernel W and r'_k,
    s'_k of the recurrent kernel U are drawn once per sequence.

    Args:
        units: size of the state.
        {{rank1_arguments}}
            Posterior and prior hold for both kernels.

    Input shape: `[K*B, in]`, member-major; state h, `[K*B, units]`.

    Output shape: `[K*B, units]`, and the state h after the time step.

    {{raises}}

    Example: `keras.layers.RNN(GRUCellRank1(32, ensemble_size=4))`

    Source: Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder";
    Dusenberry et al. (2020).
    """

    gates = 3

    def _bias_dim(self) -> int:
        return (2 if self.reset_after else 1) * self.gates * self.units

    def call(self, inputs: tf.Tensor, states: Any, training: bool = False) -> Any:
        """The output, and the state after the time step, nested as it came."""
        is_nested = isinstance(states, (list, tuple))
        h = states[0] if is_nested else states
        draws = self._draws(inputs)
        mask, recurrent_mask = self._masks(inputs, h, training)
        bias, recurrent_bias = draws.bias, None
        if bias is not None and self.reset_after:
            bias, recurrent_bias = ops.split(bias, 2, axis=-1)
        x = self._add(self._input_part(inputs, mask, draws), bias)
        x = ops.split(x, 3, axis=-1)
        if self.reset_after:
            inner = self._add(self._state_part(h, recurrent_mask, draws), recurrent_bias)
            inner = ops.split(inner, 3, axis=-1)
        else:
            inner = self._state_part(h, recurrent_mask, draws, slice(0, 2))
            inner = ops.split(inner, 2, axis=-1)
        z, r = (self.recurrent_activation(x[i] + inner[i]) for i in range(2))
        if self.reset_after:
            candidate = r * inner[2]
        else:
            candidate = self._state_part(r * h, recurrent_mask, draws, slice(2, 3))
        h = z * h + (1 - z) * self.activation(x[2] + candidate)
        return h, [h] if is_nested else h


class _RecurrentRank1(Composite):
    """A stock recurrent layer around a rank-1 cell."""

    _cell: Any
    _cell_name: str
    _stock: Any
    # Arguments of the layer; all others are for the cell.
    _of_layer = (
        "return_sequences",
        "return_state",
        "go_backwards",
        "stateful",
        "unroll",
        "zero_output_for_mask",
        "activity_regularizer",
        "name",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = {**by_name(self._stock, args), **kwargs}
        units, use_cudnn = kwargs.pop("units"), kwargs.pop("use_cudnn", False)
        if use_cudnn not in (False, "auto"):
            raise ValueError(
                "cuDNN knows no factors: argument `use_cudnn` must be False or 'auto', which is "
                f"the same here. Received: use_cudnn={use_cudnn!r}"
            )
        layer = {name: kwargs.pop(name) for name in self._of_layer if name in kwargs}
        layer |= {name: kwargs[name] for name in ("dtype", "trainable") if name in kwargs}
        self._seed = kwargs.get("seed")
        if layer.get("go_backwards") and self._seed is not None:
            # `Bidirectional` copies one config for both directions, and their draws must differ.
            kwargs["seed"] = self._seed + SEED_STEP // 2
        cell = self._cell(units, name=self._cell_name, **kwargs)
        # Past the stock constructor, which would make a stock cell; the rest of it follows here.
        keras.layers.RNN.__init__(self, cell, **layer)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        # cuDNN would get the kernels of the cell, without its factors.
        self.use_cudnn = False
        self.ensemble_size = cell.ensemble_size

    def call(
        self,
        sequences: tf.Tensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
    ) -> Any:
        """Outputs under one draw of the factors per sequence, also in inference."""
        try:
            return super().call(
                sequences, initial_state=initial_state, mask=mask, training=training
            )
        finally:
            cell: Any = self.cell
            # Keras does so itself, but not after an error: the next call would find old draws.
            cell.reset_dropout_mask()

    def inner_loop(
        self, sequences: tf.Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> Any:
        """The loop over time steps; what is the same in all of them comes before it."""
        cell: Any = self.cell
        cell.before_loop(sequences)
        return super().inner_loop(sequences, initial_state, mask, training)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # The layer's own seed: the seed of a backward layer's cell is moved on.
        return {**config, **rank1_config(self.cell), "seed": self._seed}


@registered("tfp_rank1")
@fill_docstring
class LSTMRank1(_RecurrentRank1, keras.layers.LSTM):
    """An LSTM whose kernels are perturbed by random rank-1 matrices, drawn once per sequence.

        z = s_k o (W^T (x o r_k)) + s'_k o (U^T (h o r'_k)) + b_k

    `LSTMCellRank1` has the other equations. cuDNN is not used: it takes no factors.

    Args:
        units: size of the state.
        {{rank1_arguments}}
            With `sampling="member"` all sequences of a member share a draw.

    Input shape: `[K*B, steps, in]`, member-major; a mask is `[K*B, steps]`.

    {{output_shape}}

    {{raises}}
        ValueError: for `use_cudnn=True`.

    Example:
    ```python
    h = r1.layers.TileMembers(4)(keras.Input((None, 8)))
    lstm = r1.layers.LSTMRank1(32, return_sequences=True, ensemble_size=4)
    h = keras.layers.Bidirectional(lstm)(h)
    ```

    Source: Hochreiter & Schmidhuber (1997), "Long Short-Term Memory"; Dusenberry et al. (2020).
    """

    _cell, _cell_name, _stock = LSTMCellRank1, "lstm_cell", keras.layers.LSTM


@registered("tfp_rank1")
@fill_docstring
class GRURank1(_RecurrentRank1, keras.layers.GRU):
    """A GRU whose kernels are perturbed by random rank-1 matrices, drawn once per sequence.

        x' = s_k o (W^T (x o r_k)) + b_k,   h' = s'_k o (U^T (h o r'_k)) + b'_k

    `GRUCellRank1` has the other equations. cuDNN is not used: it takes no factors.

    Args:
        units: size of the state.
        {{rank1_arguments}}
            With `sampling="member"` all sequences of a member share a draw.

    Input shape: `[K*B, steps, in]`, member-major; a mask is `[K*B, steps]`.

    {{output_shape}}

    {{raises}}
        ValueError: for `use_cudnn=True`.

    Example: `GRURank1(32, ensemble_size=4, posterior="cauchy")`

    Source: Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder";
    Dusenberry et al. (2020).
    """

    _cell, _cell_name, _stock = GRUCellRank1, "gru_cell", keras.layers.GRU
