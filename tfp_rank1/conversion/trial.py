"""Trial runs: random inputs that a net can take, states that stay, and results that are equal."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.keras_internals import layers_of, nodes_of, own_state, seed_generators_of

__all__ = [
    "TOLERANCE",
    "as_array",
    "cited",
    "differ",
    "reset_states",
    "tolerance_of",
    "trial_inputs",
    "trial_of",
]

# Sizes of axes that a model leaves open, tried in this order. Convolutions may need many pixels,
# and some of TensorFlow read past the end of very few; tables of positions may be short.
_SIZES = 32, 8, 128
# Bounds of whole numbers of which nothing is known; a flag, or an index into a short table.
_NARROW, _WIDE = 2, {"uint8": 256}
_WORDS = ("a", "b", "a b", "trial")
# Relative errors that rounding may make in a net's outputs, by the coarsest dtype in the net.
TOLERANCE = 1e-3
_TOLERANCES = {"bfloat16": 0.1, "float16": 0.03}
# Rounding of large outputs also moves small ones: a part of the tolerance refers to the largest.
_OF_THE_LARGEST = 0.03
# Letters that a message cites of an error.
_LETTERS = 200
# Smaller numbers may be what rounding left of 0.
_SMALLEST = 1e-9


# -- random inputs --------------------------------------------------------------------------------


def trial_inputs(model: Any, rows: int) -> Iterator[list[Any]]:
    """Random values for the inputs of a Functional or Sequential model, one guess after another.

    Numbers are standard normal; whole numbers and texts are such as the layers that read them know:
    rows of an embedding, entries of a vocabulary. Layers that mask a value find it once.

    Args:
        model: the model.
        rows: number of rows, unless the model has a number of its own.

    Yields:
        A flat list of tensors, one per input.
    """
    rng = np.random.default_rng(0)
    known = [_known_values(t, model) for t in model.inputs]
    masks = (v.mask_value for v in layers_of(model) if isinstance(v, keras.layers.Masking))
    masked = next(masks, None)
    for size in _SIZES:
        for is_narrow in (False, True):
            pairs = zip(model.inputs, known, strict=True)
            yield [
                _values(t, rng, rows, size, () if is_narrow else v, is_narrow, masked)
                for t, v in pairs
            ]


def _values(
    tensor: Any,
    rng: np.random.Generator,
    rows: int,
    size: int,
    known: Sequence[Any],
    is_narrow: bool,
    masked: float | None,
) -> Any:
    """Random values in the shape and dtype of a symbolic input; see `trial_inputs`."""
    shape = [tensor.shape[0] or rows, *(size if d is None else d for d in tensor.shape[1:])]
    if tensor.dtype == "string":
        known = known or _WORDS
    elif not known:
        known = range(_NARROW if is_narrow else _WIDE.get(tensor.dtype, _NARROW))
        if keras.backend.is_float_dtype(tensor.dtype) and not is_narrow:
            known = ()
    values: Any = rng.normal(size=shape)
    if known:
        places = rng.integers(0, len(known), shape)
        kind = object if tensor.dtype == "string" else None
        is_range = isinstance(known, range)  # which may be too long for an array
        values = places if is_range else np.array(known, dtype=kind)[places]
    if masked is not None and not known and values.ndim > 2:
        values[0, -1] = masked
    values = tf.cast(tf.constant(values), tensor.dtype)
    if tensor.sparse:
        return tf.sparse.from_dense(values)
    is_ragged = getattr(tensor, "ragged", False)
    return tf.RaggedTensor.from_tensor(values) if is_ragged else values


def _known_values(tensor: Any, model: Any) -> Sequence[Any]:
    """Values of a symbolic tensor that its readers know; empty where none says which."""
    pending, seen = [(tensor, model)], {id(tensor)}
    while pending:
        tensor, graph = pending.pop(0)
        for node in nodes_of(graph):
            places = [i for i, t in enumerate(node.input_tensors) if t is tensor]
            operation = node.operation
            if places and isinstance(operation, keras.Model) and nodes_of(operation):
                pending.append((operation.inputs[places[0]], operation))
            elif places:
                found = _values_of(operation)
                if found:
                    return found
                # Behind a layer that reads texts values are its own, and weights mix them.
                if tensor.dtype != "string" and not getattr(operation, "weights", None):
                    fresh = [t for t in node.outputs if id(t) not in seen]
                    seen.update(id(t) for t in fresh)
                    pending += [(t, graph) for t in fresh]
    return ()


def _values_of(operation: Any) -> Sequence[Any]:
    """Values that a layer, or a layer in it, has an entry for."""
    parts = layers_of(operation) if isinstance(operation, keras.layers.Layer) else []
    for part in parts:
        if hasattr(part, "get_vocabulary"):
            return list(part.get_vocabulary(include_special_tokens=False))
    sizes = [v.input_dim for v in parts if isinstance(v, keras.layers.Embedding)]
    encoders = [v for v in parts if isinstance(v, keras.layers.CategoryEncoding)]
    sizes += [v.num_tokens for v in encoders if v.num_tokens]
    return range(min(sizes)) if sizes else ()


# -- states that stay -----------------------------------------------------------------------------


@contextlib.contextmanager
def trial_of(layer: Any) -> Iterator[None]:
    """A context for trial runs: it restores moving statistics, states and seeds of a layer.

    Warnings are silent: they are about inputs that are none of the user's. GPUs multiply in full
    precision, as TF32 would round like half precision does.
    """
    parts = layers_of(layer)
    variables = [v for part in parts for v in own_state(part)]
    variables += [g.state for part in parts for g in seed_generators_of(part)]
    # Keras does not count the states of recurrent layers among their variables.
    states = [getattr(v, "states", None) for v in parts if getattr(v, "stateful", False)]
    variables += [v for v in keras.tree.flatten(states) if isinstance(v, keras.Variable)]
    before = [tf.convert_to_tensor(v) for v in variables]
    is_rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(is_rounded)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def cited(error: Exception) -> str:
    """What an error says, without the arguments of the call and the codes of colours."""
    text = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
    return " ".join(text.partition("Arguments received by")[0].split())[:_LETTERS]


def reset_states(layer: Any) -> None:
    """Set the states of stateful recurrent layers to 0: a run begins a sequence."""
    for part in layers_of(layer):
        if getattr(part, "stateful", False) and hasattr(part, "reset_states"):
            part.reset_states()


# -- equal results --------------------------------------------------------------------------------


def tolerance_of(layer: Any) -> float:
    """The relative error that rounding may make in the results of a layer or model."""
    dtypes = {getattr(part, "compute_dtype", "") for part in layers_of(layer)}
    return max(_TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes)


def as_array(tensor: Any) -> np.ndarray:
    """A tensor as an array; NumPy has no bfloat16."""
    tensor = tf.convert_to_tensor(tensor)
    return (tf.cast(tensor, tf.float64) if tensor.dtype.is_floating else tensor).numpy()


def differ(expected: np.ndarray, found: np.ndarray, tolerance: float) -> bool:
    """Whether two results differ by more than rounding; NaN and infinity equal themselves.

    Args:
        expected: `[B, ..., D]`.
        found: of the same shape.
        tolerance: error relative to the largest number in a column, and less to the largest of all.
    """
    if expected.shape != found.shape:
        return True
    if expected.dtype.kind not in "fiub":
        return bool(np.any(expected != found))
    a, b = np.float64(expected), np.float64(found)
    is_same = (a == b) | (np.isnan(a) & np.isnan(b))
    size = np.where(np.isfinite(a), np.abs(a), 0.0)
    columns = size.max(axis=tuple(range(max(a.ndim - 1, 0))), initial=0.0)
    allowed = tolerance * (columns + _OF_THE_LARGEST * size.max(initial=0.0)) + _SMALLEST
    with np.errstate(invalid="ignore"):  # of infinity and infinity
        return not bool(np.all(is_same | (np.abs(a - b) <= allowed)))
