"""Serializable objects that can be named by a string: posteriors, priors, likelihoods."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import keras
import numpy as np

T = TypeVar("T")


def registered(cls: type[T]) -> type[T]:
    """Register a class with Keras under its public module, `"tfp_rank1.priors>Normal"`.

    The module is part of the name because posteriors, priors and likelihoods share class names.
    """
    package = ".".join(cls.__module__.split(".")[:2])
    return keras.saving.register_keras_serializable(package)(cls)


def snake_case(name: str) -> str:
    """`"LogNormal"` -> `"log_normal"`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def lookup(identifier: Any, base: type[T], classes: Iterable[type[T]], kind: str) -> T:
    """Turn a name, a class, a config or an instance into an instance of `base`.

    Args:
        identifier: an instance of `base`, one of `classes`, its name (`"log_normal"` or
            `"LogNormal"`), or its serialized config.
        base: the common base class.
        classes: the classes that can be named.
        kind: what is being looked up, for the message, for example `"prior"`.

    Returns:
        An instance of `base`.

    Raises:
        ValueError: if the identifier names nothing known.
    """
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, base):
        return identifier()
    if isinstance(identifier, dict):
        found = keras.saving.deserialize_keras_object(identifier)
        if isinstance(found, base):
            return found
    by_name = {snake_case(cls.__name__): cls for cls in classes}
    if isinstance(identifier, str) and snake_case(identifier) in by_name:
        return by_name[snake_case(identifier)]()
    raise ValueError(
        f"Unknown {kind}: expected one of {sorted(by_name)}, or a {base.__module__}."
        f"{base.__name__} object. Received: {identifier!r}"
    )


def positive(name: str, value: Any) -> float:
    """`value` as a float, refused unless finite and above zero."""
    is_number = isinstance(value, (numbers.Real, np.ndarray)) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    if not 0.0 < number < float("inf"):
        raise ValueError(
            f"Argument `{name}` must be a finite number above 0. Received: {name}={value}"
        )
    return number


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, refused unless a whole number of at least `least`."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not float(value).is_integer() or value < least:
        raise ValueError(
            f"Argument `{name}` must be a whole number of at least {least}. "
            f"Received: {name}={value}"
        )
    return int(value)


class Configurable:
    """An immutable value object: equal and printed by its config, which rebuilds it."""

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments, as plain Python objects."""
        return {}

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        """Rebuild the object from `get_config()`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"
