"""How files and users name objects: registered names, lookup by name, configs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import keras

__all__ = ["Configurable", "lookup", "registered", "serialize", "snake_case"]

T = TypeVar("T")

# Earlier files name a class after the module that it stood in. They must load wherever the class
# stands now, so each class is also known under these packages.
_FORMER_PACKAGES = {
    "tfp_rank1": tuple(
        f"tfp_rank1.{module}"
        for module in ("initializers", "layers", "losses", "metrics", "model", "models", "recipes")
    ),
    "bali_keras": ("bali_keras.layers", "bali_keras.model"),
}


def registered(package: str) -> Callable[[type[T]], type[T]]:
    """A decorator that registers a class with Keras as `"<package>>ClassName"`.

    A registered name is part of every saved file, so the package is written out: it must not change
    when the class moves to another module. Posteriors, priors and likelihoods share class names, so
    each of these families is a package of its own.

    Args:
        package: `"tfp_rank1"`, `"bali_keras"`, or one of their families, `"tfp_rank1.priors"`.

    Example:
    ```python
    @registered("tfp_rank1")
    class DenseRank1(Rank1Mixin, keras.layers.Dense): ...     # "tfp_rank1>DenseRank1"
    ```
    """

    def register(cls: type[T]) -> type[T]:
        keras.saving.register_keras_serializable(package)(cls)
        for former in _FORMER_PACKAGES.get(package, ()):
            keras.saving.get_custom_objects()[f"{former}>{cls.__name__}"] = cls
        return cls

    return register


def serialize(value: Any) -> Any:
    """The config that Keras writes for an object; None stays None."""
    return None if value is None else keras.saving.serialize_keras_object(value)


def snake_case(name: str) -> str:
    """`"LogNormal"` -> `"log_normal"`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def lookup(identifier: Any, base: type[T], classes: Iterable[type[T]], kind: str) -> T:
    """Turn a name, a class, a config or an instance into an instance of `base`.

    Args:
        identifier: an instance of `base`, one of `classes`, its name (`"log_normal"` or
            `"LogNormal"`), or its serialized config.
        base: the common base class.
        classes: the classes that a name can stand for.
        kind: what is looked up, for the message, for example `"prior"`.

    Returns:
        An instance of `base`.

    Raises:
        ValueError: for an unknown identifier.
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
        f"Unknown {kind}: expected one of {sorted(by_name)}, or a {base.__name__} object of "
        f"tfp_rank1.{kind}s. Received: {identifier!r}"
    )


class Configurable:
    """An immutable value object: its config rebuilds it and decides equality and `repr`."""

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
