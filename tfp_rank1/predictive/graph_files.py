"""ONNX and LiteRT files of a function without random numbers.

Both formats take a graph whose variables have become constants, and lack some of TensorFlow's
operations: factorisations, the error function (LiteRT), `xlogy`. Moments do without these.
"""

from __future__ import annotations

import importlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["FORMATS", "write_graph"]

FORMATS = "tf_saved_model", "onnx", "litert"
# The highest that both tf2onnx and every onnxruntime of the last years take.
_OPSET = 17


def write_graph(function: Callable[..., Any], signature: Any, path: str, format: str) -> None:
    """Write a function of tensors as a file for onnxruntime or for LiteRT.

    Args:
        function: from inputs to a dict of tensors.
        signature: structure of `tf.TensorSpec` of its argument; the first axis may be None.
        path: the file; its folder must be there.
        format: "onnx" or "litert".

    Raises:
        ImportError: without the packages of the extra `export`.
    """
    specs = keras.tree.flatten(signature)
    # One flat argument per input: names of arguments become names of the file.
    flat = [tf.TensorSpec(s.shape, s.dtype, s.name or f"x_{i}") for i, s in enumerate(specs)]

    def answer(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(keras.tree.pack_sequence_as(signature, tensors))

    traced = tf.function(answer, autograph=False, input_signature=flat)
    write = {"onnx": _write_onnx, "litert": _write_litert}[format]
    pathlib.Path(path).write_bytes(write(traced, flat))


def _write_onnx(traced: Any, flat: list[tf.TensorSpec]) -> bytes:
    tf2onnx = _required("tf2onnx")
    model, _ = tf2onnx.convert.from_function(traced, input_signature=flat, opset=_OPSET)
    _check_onnx(model, len(flat))
    return model.SerializeToString()


def _check_onnx(model: Any, num_inputs: int) -> None:
    """Refuse a file that onnxruntime would not load: tf2onnx copies what it does not know."""
    onnx = _required("onnx")
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    foreign = sorted({n.op_type for n in model.graph.node if not n.domain} - known)
    if foreign or len(model.graph.input) != num_inputs:
        raise ValueError(
            "ONNX has no operation for a part of this net or its likelihood. Write a SavedModel "
            "(format='tf_saved_model'), or express the part, such as an activation, by sums, "
            f"products, exp and log. Received: operations {foreign} and "
            f"{len(model.graph.input)} inputs for a model with {num_inputs}"
        )


def _write_litert(traced: Any, flat: list[tf.TensorSpec]) -> bytes:
    concrete = traced.get_concrete_function()
    holder = tf.Module()
    holder.answer = traced
    holder.variables_of_graph = list(concrete.variables)
    with tempfile.TemporaryDirectory() as folder:
        # From a SavedModel, whose signature gives inputs and outputs their names.
        tf.saved_model.save(holder, folder, signatures={"serving_default": concrete})
        try:
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # of a private class of the converter
            raise ValueError(
                "LiteRT has no operation for a part of this net or its likelihood. Write a "
                "SavedModel (format='tf_saved_model'), or express the part, such as an activation, "
                f"by sums, products, exp and log. Received: {str(error)[:500]}"
            ) from error


def _required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"ONNX files need the package {name!r}: pip install rank1-bali[export]. "
            f"Received: {error}"
        ) from error
