"""The BALI counterpart of a stock layer, which starts at the stock layer's weights."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from bali_keras import layers
from bali_keras.inference.rows.choice import BLOCK, dense_bytes
from bali_keras.layers import BaliLayer
from tfp_rank1.conversion import check_kernel
from tfp_rank1.keras_internals import attention_projections

__all__ = ["CONVERTED", "Counterparts", "has_counterpart", "is_bayesian", "start_at"]

# Bytes that the row covariances of a net may take before the widest are stored in blocks.
BUDGET = 256 * 2**20

# Constructor arguments that a BALI layer takes over from the stock layer. Initializers are not
# among them: `start_at` overwrites the mean.
_SPATIAL = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")
_CONV = ("filters", *_SPATIAL, "activation", "use_bias")
_DEPTHWISE = (*_SPATIAL, "depth_multiplier", "activation", "use_bias")
_SEPARABLE = (*_CONV, "depth_multiplier")
_TRANSPOSE = (*_CONV, "output_padding")
_ATTENTION = (
    "num_heads", "key_dim", "value_dim", "use_bias", "output_shape", "attention_axes", "use_gate"
)  # fmt: skip

_RECURRENT = (
    "units", "activation", "recurrent_activation", "use_bias", "return_sequences", "go_backwards"
)  # fmt: skip

# A class, and the arguments of its constructor that a stock layer's config holds.
Form = tuple[type[keras.layers.Layer], tuple[str, ...]]

_ARGUMENTS: dict[type, Form] = {
    keras.layers.Dense: (layers.DenseBali, ("units", "activation", "use_bias")),
    keras.layers.EinsumDense: (
        layers.EinsumDenseBali,
        ("equation", "output_shape", "activation", "bias_axes"),
    ),
    keras.layers.Embedding: (layers.EmbeddingBali, ("input_dim", "output_dim", "mask_zero")),
    keras.layers.Conv1D: (layers.Conv1DBali, _CONV),
    keras.layers.Conv2D: (layers.Conv2DBali, _CONV),
    keras.layers.Conv3D: (layers.Conv3DBali, _CONV),
    keras.layers.DepthwiseConv1D: (layers.DepthwiseConv1DBali, _DEPTHWISE),
    keras.layers.DepthwiseConv2D: (layers.DepthwiseConv2DBali, _DEPTHWISE),
    keras.layers.SeparableConv1D: (layers.SeparableConv1DBali, _SEPARABLE),
    keras.layers.SeparableConv2D: (layers.SeparableConv2DBali, _SEPARABLE),
    keras.layers.Conv1DTranspose: (layers.Conv1DTransposeBali, _TRANSPOSE),
    keras.layers.Conv2DTranspose: (layers.Conv2DTransposeBali, _TRANSPOSE),
    keras.layers.Conv3DTranspose: (layers.Conv3DTransposeBali, _TRANSPOSE),
    keras.layers.LSTM: (layers.LSTMBali, _RECURRENT),
    keras.layers.GRU: (layers.GRUBali, _RECURRENT),
    keras.layers.MultiHeadAttention: (layers.MultiHeadAttentionBali, _ATTENTION),
}

_PLAIN = layers.Conv1DBali, layers.Conv2DBali, layers.Conv3DBali

# Names of the stock layers that have a counterpart.
CONVERTED = [kind.__name__ for kind in _ARGUMENTS]


class Counterparts:
    """The BALI counterparts of the layers of one net.

    Args:
        layers: all layers of the net.
        chosen: ids of those that become BALI layers.
        prior_at_kernels: whether priors are centred on the stock layers' weights.
    """

    def __init__(self, layers: list[Any], chosen: set[int], prior_at_kernels: bool) -> None:
        self._chosen, self._prior_at_kernels = chosen, prior_at_kernels
        # By id: the number of inputs of every chosen layer with a kernel, the widest last.
        widths = {id(v): _width(v) for v in layers if id(v) in chosen}
        self._blocks: set[int] = set()
        total = sum(dense_bytes(width) for width in widths.values())
        for key, width in sorted(widths.items(), key=lambda item: -item[1]):
            if total <= BUDGET or width <= BLOCK:
                break
            self._blocks.add(key)
            total -= dense_bytes(width)

    def of(self, layer: Any) -> keras.layers.Layer | None:
        """The counterpart of a layer; None for one that stays as it is."""
        if id(layer) not in self._chosen:
            return None
        form = "blocks" if id(layer) in self._blocks else "auto"
        return _counterpart(layer, self._prior_at_kernels, form)


def _width(layer: Any) -> int:
    """The number of inputs of one unit of a layer with a plain kernel; 0 for another layer."""
    stock = _within(layer)
    form = _form(stock)
    takes_form = form is not None and issubclass(form[0], (layers.DenseBali, *_PLAIN))
    return math.prod(stock.kernel.shape[:-1]) if takes_form else 0


def _counterpart(
    layer: Any, prior_at_kernels: bool, row_covariance: str
) -> keras.layers.Layer | None:
    """The BALI counterpart of a stock layer; None for a layer that has none.

    Args:
        layer: a layer of Keras.
        prior_at_kernels: whether priors are centred on the stock layer's weights.
        row_covariance: as for `BaliLayer`, where a layer takes it.
    """
    if not has_counterpart(layer):
        return None
    stock = _within(layer)
    check_kernel(stock)
    cls, names = _form(stock)  # type: ignore[misc]  # it has one
    config = stock.get_config()
    if getattr(stock, "groups", 1) != 1:
        config["depth_multiplier"] = stock.filters // stock.groups
    arguments: Any = {name: config[name] for name in names if name in config}
    for name in ("activation", "recurrent_activation"):
        if name in arguments:
            arguments[name] = getattr(stock, name)  # also one that no file knows
    if getattr(stock, "zero_output_for_mask", False):  # Bidirectional sets it, no config has it
        arguments["zero_output_for_mask"] = True
    if row_covariance != "auto":
        arguments["row_covariance"] = row_covariance
    return cls(
        **arguments, prior_at_mean=prior_at_kernels, name=layer.name, dtype=stock.dtype_policy
    )


def has_counterpart(layer: Any) -> bool:
    """Whether a stock layer has a BALI counterpart."""
    stock = _within(layer)
    form = _form(stock)
    return form is not None and (form[0] is not layers.EinsumDenseBali or _is_matrix(stock))


def _within(layer: Any) -> Any:
    """The layer itself; of a dense layer at every time step the dense layer.

    A dense layer takes all time steps, whose rows then share one draw of its weights.
    """
    is_dense = type(layer) is keras.layers.TimeDistributed and (
        type(layer.layer) is keras.layers.Dense
    )
    return layer.layer if is_dense else layer


def _form(layer: Any) -> Form | None:
    """The class of a layer's counterpart and the arguments that it takes over; None for none."""
    if getattr(layer, "groups", 1) != 1:
        return _depthwise(layer)
    return None if _has_states(layer) else _ARGUMENTS.get(type(layer))


def _is_matrix(layer: keras.layers.EinsumDense) -> bool:
    """Whether the kernel of an einsum is a matrix."""
    try:
        layers.EinsumDenseBali(
            layer.equation, layer.partial_output_shape, bias_axes=layer.bias_axes
        )
    except ValueError:
        return False
    return True


def _depthwise(layer: Any) -> Form | None:
    """The depthwise form of a convolution with one group per channel; None for other groups."""
    forms = {
        keras.layers.Conv1D: keras.layers.DepthwiseConv1D,
        keras.layers.Conv2D: keras.layers.DepthwiseConv2D,
    }
    form = forms.get(type(layer))
    return _ARGUMENTS[form] if form is not None and layer.kernel.shape[-2] == 1 else None


def _has_states(layer: Any) -> bool:
    """Whether a recurrent layer does what its counterpart does not: takes or returns states."""
    return (
        getattr(layer, "stateful", False)
        or getattr(layer, "return_state", False)
        or not getattr(layer, "reset_after", True)
    )


def is_bayesian(layer: Any) -> bool:
    """Whether a layer is a BALI layer, or made of some."""
    return isinstance(layer, (BaliLayer, *(cls for cls, _ in _ARGUMENTS.values())))


def start_at(new: Any, old: Any) -> None:
    """Set posterior means, and stored prior means, to the weights of the stock layer.

    Args:
        new: its counterpart.
        old: the stock layer.
    """
    old = _within(old)
    if isinstance(old, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)):
        _set(new.depthwise, old.depthwise_kernel, None)
        _set(new.pointwise, old.pointwise_kernel, old.bias)
    elif isinstance(old, keras.layers.MultiHeadAttention):
        pairs = zip(attention_projections(new), attention_projections(old), strict=True)
        for ours, theirs in pairs:
            if theirs is not None:
                start_at(ours, theirs)
    elif isinstance(old, (keras.layers.LSTM, keras.layers.GRU)):
        cell = old.cell
        of_input = of_recurrent = None
        if cell.use_bias:
            bias = tf.convert_to_tensor(cell.bias)  # `[4 units]`, or `[2, 3 units]` of a GRU
            of_input, of_recurrent = (bias, None) if bias.shape.rank == 1 else tf.unstack(bias)
        _set(new.input_map, cell.kernel, of_input)
        _set(new.recurrent_map, cell.recurrent_kernel, of_recurrent)
    elif isinstance(old, keras.layers.Embedding):
        _set(new, old.embeddings, None)
    else:
        kernel = tf.convert_to_tensor(old.kernel)
        if getattr(old, "groups", 1) != 1:  # one per channel
            kernel = tf.reshape(kernel, new.kernel_shape)
        _set(new, kernel, getattr(old, "bias", None))


def _set(layer: BaliLayer, kernel: Any, bias: Any) -> None:
    """Set the mean, and a stored prior mean, of one BALI layer."""
    bias = tf.convert_to_tensor(bias) if layer.use_bias else None
    mean = layer.as_matrix(tf.convert_to_tensor(kernel), bias)
    layer.posterior_state.mean.assign(mean)
    if layer.posterior_state.prior_mean is not None:
        layer.posterior_state.prior_mean.assign(mean)
