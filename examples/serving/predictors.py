"""What answers instances: a SavedModel by TensorFlow, or an ONNX file by onnxruntime alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["OnnxPredictor", "Predictor", "SavedModelPredictor", "predictor_for"]

# Names of onnxruntime for the dtypes that inputs have.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class Predictor(Protocol):
    """A model with one input, safe to call from several threads.

    Attributes:
        shape: of one instance; None for axes of any size.
    """

    shape: list[int | None]

    def __call__(self, instances: Any) -> list[dict[str, Any]]:
        """One dict of outputs per instance.

        Raises:
            ValueError: for instances of another shape, or not finite.
        """


def predictor_for(path: str | os.PathLike[str]) -> Predictor:
    """The predictor of what `export_predictive` wrote: an ONNX file, or the folder of a SavedModel.

    Args:
        path: a file that ends in `.onnx`, or a folder.
    """
    return OnnxPredictor(path) if Path(path).suffix == ".onnx" else SavedModelPredictor(path)


class SavedModelPredictor:
    """A SavedModel; needs TensorFlow.

    Args:
        folder: as written by `export_predictive`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # Here, so that a server of ONNX files runs where TensorFlow is not installed.
        import tensorflow as tf

        self._tf = tf
        self._loaded = tf.saved_model.load(str(folder))  # kept: its functions do not hold it
        self._function = self._loaded.signatures["serving_default"]
        (self._spec,) = self._function.structured_input_signature[1].values()
        self.shape = self._spec.shape.as_list()[1:]

    def __call__(self, instances: Any) -> list[dict[str, Any]]:
        x = _array(instances, self._spec.dtype.as_numpy_dtype, [None, *self.shape])
        try:
            outputs = self._function(**{self._spec.name: self._tf.constant(x)})
        except self._tf.errors.InvalidArgumentError as error:
            raise ValueError(str(error)) from error
        return _rows({name: value.numpy() for name, value in outputs.items()})


class OnnxPredictor:
    """An ONNX file; needs onnxruntime and no TensorFlow.

    Args:
        path: as written by `export_predictive(..., method="moments", format="onnx")`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path))
        (self._input,) = self._session.get_inputs()
        self._names = [output.name for output in self._session.get_outputs()]
        # Axes of any size have names.
        self.shape = [n if isinstance(n, int) else None for n in self._input.shape[1:]]

    def __call__(self, instances: Any) -> list[dict[str, Any]]:
        x = _array(instances, np.dtype(_DTYPES[self._input.type]).type, [None, *self.shape])
        values = self._session.run(self._names, {self._input.name: x})
        return _rows(dict(zip(self._names, values, strict=True)))


def _array(instances: Any, dtype: Any, shape: list[int | None]) -> np.ndarray:
    """Nested lists as an array of the model's dtype and shape.

    Raises:
        ValueError: for anything else.
    """
    try:
        given = np.asarray(instances)
        if given.dtype.kind not in "fiu":
            raise ValueError(f"found {given.dtype}")
        x = given.astype(dtype)
        if np.issubdtype(dtype, np.integer) and (x != given).any():
            raise ValueError(f"the model takes {np.dtype(dtype)}")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`instances` must be nested lists of numbers: {error}") from error
    is_right = x.ndim == len(shape) and all(
        n in (None, m) for n, m in zip(shape, x.shape, strict=True)
    )
    if not is_right or not x.size:
        raise ValueError(
            f"`instances` must have shape {tuple(shape)}, at least one. Received: {x.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("`instances` must be finite. Received: NaN or infinity")
    return x


def _rows(outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    columns = {name: value.tolist() for name, value in outputs.items()}
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
