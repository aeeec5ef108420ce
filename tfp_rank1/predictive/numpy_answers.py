"""Answers as NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

__all__ = ["NumpyArray", "answers_in_numpy"]

T = TypeVar("T")


class NumpyArray(np.ndarray):
    """A NumPy array that also has the method `numpy()`, as tensors have.

    What is computed from it are plain arrays and numbers.
    """

    def __array_wrap__(
        self, array: np.ndarray, context: Any = None, return_scalar: bool = False
    ) -> Any:
        return np.asarray(array)[()]

    def numpy(self) -> np.ndarray:
        """The values as a plain `np.ndarray`."""
        return np.asarray(self)


def answers_in_numpy(*names: str) -> Callable[[type[T]], type[T]]:
    """Have methods of a class return NumPy arrays, wherever tensors have values.

    In graphs, whose tensors have none, the methods return tensors.

    Args:
        *names: names of methods that return tensors, or tuples of tensors.
    """

    def decorate(cls: type[T]) -> type[T]:
        for name in names:
            setattr(cls, name, _in_numpy(getattr(cls, name)))
        return cls

    return decorate


def _in_numpy(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def answer(*args: Any, **kwargs: Any) -> Any:
        return tf.nest.map_structure(_array, method(*args, **kwargs))

    return answer


def _array(value: Any) -> Any:
    has_value = isinstance(value, tf.Tensor) and not tf.is_symbolic_tensor(value)
    is_computed = isinstance(value, np.ndarray | np.generic)  # from other answers
    return np.array(value).view(NumpyArray) if has_value or is_computed else value
