"""CompositeBali: a layer made of layers, some of which are BALI layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from tfp_rank1.conversion import same_own_weights, same_weights
from tfp_rank1.keras_internals import (
    freeze,
    layers_of,
    own_attributes,
    replace_part,
    take_signature,
)
from tfp_rank1.serialization import registered

__all__ = ["CompositeBali", "composed", "layers_within"]


@registered("bali_keras")
class CompositeBali(keras.layers.Layer):
    """A layer made of layers, such as the encoder of a transformer, with BALI layers within.

    It calls the layer as it is, whose code then meets BALI layers in the place of some of its
    parts. All else in it is frozen, and its dropout is off. `bali_keras.convert` makes it.

    Args:
        layer: what `keras.saving.serialize_keras_object` makes of the layer.
        parts: by path, such as `"encoder_layers.0.mlp"`, the layer that takes the place of a part.
        **kwargs: as for `keras.layers.Layer`.

    Call arguments:
        *args, **kwargs: as for the layer.

    Returns:
        What the layer returns.

    Raises:
        KeyError: for a path at which the layer has no part.

    Example:
    ```python
    encoder = keras.layers.Bidirectional(keras.layers.LSTM(8))
    encoder.build((None, 10, 3))
    layer = composed(encoder, {"forward_layer": bk.layers.LSTMBali(8)})
    ```
    """

    def __init__(
        self, layer: Mapping[str, Any], parts: Mapping[str, keras.layers.Layer], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True  # see `compute_mask`
        self._description = dict(layer)  # as it was: a layer may read its config from its parts
        self.layer: Any = None
        self.parts = dict(parts)
        self._shapes: dict[str, Any] = {}

    def take(self, layer: Any) -> None:
        """Put the parts in their places in a built layer, and freeze all else in it.

        Args:
            layer: of the class and config of this one's.
        """
        self.layer = layer
        found = dict(layers_within(layer))
        missing = [path for path in self.parts if path not in found]
        if missing:
            raise KeyError(f"{type(layer).__name__} has no parts {missing}: {list(found)}")
        self._shapes = {path: v.get_build_config() for path, v in found.items() if v.built}
        self._shapes[""] = layer.get_build_config()
        for path, part in self.parts.items():
            if not part.built:
                part.build_from_config(self._shapes[path])
            _replace(layer, path, part)
        _freeze(layer, list(self.parts.values()))
        take_signature(self, layer)
        self.built = True

    def get_build_config(self) -> dict[str, Any]:
        """The build configs of the layer, and of its parts, by path."""
        return {"shapes": self._shapes}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Create all weights, and put the parts in their places."""
        shapes = config["shapes"]
        layer = _made(self._description)
        if not layer.built:
            layer.build_from_config(shapes[""])
        _build_within(layer, shapes)
        self.take(layer)

    @property
    def moments_of(self) -> Any:
        """The layer whose rule of moments is this one's."""
        return self.layer

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask that the layer passes on."""
        layer = self.layer
        return layer.compute_mask(inputs, previous_mask) if layer.supports_masking else None

    def get_config(self) -> dict[str, Any]:
        parts = {path: keras.saving.serialize_keras_object(v) for path, v in self.parts.items()}
        return {**super().get_config(), "layer": self._description, "parts": parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompositeBali:
        parts = {path: _made(v) for path, v in config["parts"].items()}
        return cls(**{**config, "parts": parts})


def composed(layer: Any, parts: Mapping[str, keras.layers.Layer]) -> CompositeBali:
    """A copy of a layer and its weights, with other layers in the places of some parts.

    Args:
        layer: a built layer, which stays as it is.
        parts: by path, the layers that take their places.

    Raises:
        ValueError: for a layer that its config does not rebuild.
    """
    description = description_of(layer)
    new = _made(description)
    if not new.built:
        new.build_from_config(layer.get_build_config())
    shapes = {path: v.get_build_config() for path, v in layers_within(layer) if v.built}
    _build_within(new, shapes)
    _same_weights(layer, new)
    result = CompositeBali(description, parts, name=layer.name, dtype=layer.dtype_policy)
    result.take(new)
    return result


def _same_weights(old: Any, new: Any) -> None:
    """Copy the weights of a layer and of all its parts, path by path: orders may differ."""
    same_own_weights(old, new)
    found = dict(layers_within(new))
    for path, part in layers_within(old):
        if path not in found:
            raise ValueError(
                f"A layer has to be copied, and its config makes one without {path!r}. Give the "
                "class a get_config with all arguments of its constructor. "
                f"Received: layer {old.name!r} of class {type(old).__name__}"
            )
        copy = same_weights if isinstance(part, keras.Model) else same_own_weights
        copy(part, found[path])


def _build_within(layer: Any, shapes: Mapping[str, Any]) -> None:
    """Build what a layer builds when it is called, and not before."""
    for path, part in layers_within(layer):
        if not part.built and shapes.get(path):
            part.build_from_config(shapes[path])


def layers_within(
    layer: Any, is_closed: Callable[[Any], bool] | None = None, path: str = ""
) -> Iterator[tuple[str, Any]]:
    """The layers that are attributes of a layer, or in its lists and dicts, and those within these.

    Args:
        layer: the layer.
        is_closed: whether not to look into a layer that is found. Defaults to None: into all that
            are no models.
        path: path of the layer, with a dot at its end.

    Yields:
        Paths and layers, such as `"encoder_layers.0.mlp"`. A layer of several attributes comes
        several times.
    """
    for name, value in own_attributes(layer).items():
        for own, part in _found(value, f"{path}{name}"):
            yield own, part
            if not (is_closed or _is_model)(part):
                yield from layers_within(part, is_closed, f"{own}.")


def _is_model(layer: Any) -> bool:
    return isinstance(layer, keras.Model)


# Layers that draw in training, and what says how much.
NOISY = {
    keras.layers.AlphaDropout: "rate",
    keras.layers.Dropout: "rate",
    keras.layers.GaussianDropout: "rate",
    keras.layers.GaussianNoise: "stddev",
    keras.layers.SpatialDropout1D: "rate",
    keras.layers.SpatialDropout2D: "rate",
    keras.layers.SpatialDropout3D: "rate",
}


def _found(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The layers in a value and their paths; within them is not looked at."""
    if isinstance(value, keras.layers.Layer):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _found(entry, f"{path}.{index}")
    elif isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(key, str) and "." not in key:
                yield from _found(entry, f"{path}.{key}")


def _replace(layer: Any, path: str, new: Any) -> None:
    """Put a layer in the place of the part at a path."""
    owner, holder = layer, None
    *before, last = path.split(".")
    for step in before:
        entry = getattr(owner, step) if holder is None else _entry(holder, step)
        is_layer = isinstance(entry, keras.layers.Layer)
        owner, holder = (entry, None) if is_layer else (owner, entry)
    replace_part(owner, _key(holder, last), new, holder)


def _entry(holder: Any, step: str) -> Any:
    return holder[_key(holder, step)]


def _key(holder: Any, step: str) -> Any:
    """A step of a path as the index of a list."""
    return int(step) if isinstance(holder, (list, tuple)) else step


def _freeze(layer: Any, parts: list[Any]) -> None:
    """Freeze a layer but for some parts, and turn its dropout and noise off.

    Frozen parts are not trained, and their noise would count as noise of the observations.
    """
    kept = [(v, v.trainable) for part in parts for v in layers_of(part)]
    freeze(layer)
    for part, flag in kept:
        part.trainable = flag
    own = {id(part) for part, _ in kept}
    for part in layers_of(layer):
        for kind, amount in NOISY.items():
            if id(part) not in own and isinstance(part, kind):
                setattr(part, amount, 0.0)


def description_of(layer: Any) -> dict[str, Any]:
    """What rebuilds a layer: its serialized form, with the arguments of its constructor alone.

    Some classes describe themselves with numbers that they compute, which they do not take back.

    Raises:
        ValueError: for a layer that its config does not rebuild.
    """
    found = keras.saving.serialize_keras_object(layer)
    found.pop("build_config", None)
    try:
        _made(found)
    except Exception:
        taken = {n for cls in type(layer).__mro__ for n in _arguments(cls)} | {"trainable"}
        config = {name: value for name, value in found["config"].items() if name in taken}
        found = {**found, "config": config}
        try:
            _made(found)
        except Exception as error:
            raise ValueError(
                f"A layer has to be copied, and its config does not rebuild it ({error}). Give the "
                "class a get_config with all arguments of its constructor. "
                f"Received: layer {layer.name!r} of class {type(layer).__name__}"
            ) from error
    return found


def _arguments(cls: type) -> list[str]:
    """Names of the arguments of a constructor."""
    return list(inspect.signature(cls).parameters)


def _made(description: dict[str, Any]) -> Any:
    return keras.saving.deserialize_keras_object(description)
