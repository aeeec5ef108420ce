"""One description of a net, from which every method builds its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

import tfp_rank1 as r1


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer; inputs of any shape are flattened before the first one."""

    units: int


@dataclasses.dataclass(frozen=True)
class Conv:
    """A square 2-D convolution with padding "same"."""

    filters: int
    kernel_size: int = 3
    strides: int = 1


@dataclasses.dataclass(frozen=True)
class Net:
    """ReLU layers and a linear output layer.

    Attributes:
        input_shape: of one example.
        hidden: the layers between.
        outputs: size of the output layer.
    """

    input_shape: tuple[int, ...]
    hidden: tuple[Dense | Conv, ...]
    outputs: int


@dataclasses.dataclass(frozen=True)
class Kit:
    """The layers of one method.

    Attributes:
        dense: called as `dense(units, activation)`.
        conv: called as `conv(filters, kernel_size, strides=, padding=, activation=)`; None if the
            method has none.
        start: applied to the inputs.
        between: applied to the outputs of every hidden layer.
        end: applied to the outputs of the net.
    """

    dense: Callable[..., Any]
    conv: Callable[..., Any] | None = None
    start: Callable[[Any], Any] = lambda h: h
    between: Callable[[Any], Any] = lambda h: h
    end: Callable[[Any], Any] = lambda h: h

    def connect(self, net: Net, inputs: Any) -> Any:
        """Outputs of the net on symbolic inputs.

        Raises:
            ValueError: for a convolution that the method does not have.
        """
        h = self.start(inputs)
        for spec in net.hidden:
            h = self.between(self._layer(spec, h))
        return self.end(self._flatten(self.dense, h)(net.outputs))

    def _layer(self, spec: Dense | Conv, h: Any) -> Any:
        if isinstance(spec, Dense):
            return self._flatten(self.dense, h)(spec.units, activation="relu")
        if self.conv is None:
            raise ValueError(
                "This method has dense layers only: choose a net without convolutions, --net mlp. "
                f"Received: {spec}"
            )
        layer = self.conv(
            spec.filters,
            spec.kernel_size,
            strides=spec.strides,
            padding="same",
            activation="relu",
        )
        return layer(h)

    @staticmethod
    def _flatten(dense: Callable[..., Any], h: Any) -> Callable[..., Any]:
        flat = keras.layers.Flatten()(h) if len(h.shape) > 2 else h
        return lambda *args, **kwargs: dense(*args, **kwargs)(flat)


def build(
    net: Net, kit: Kit, likelihood: Any, model: type[r1.BayesianModel] = r1.BayesianModel
) -> r1.BayesianModel:
    """A Functional model of one kit of layers."""
    inputs = keras.Input(net.input_shape)
    return model(inputs, kit.connect(net, inputs), likelihood=likelihood)


def build_ensemble(net: Net, kit: Kit, members: int, likelihood: Any) -> r1.BayesianModel:
    """Independent nets side by side, outputs `[B, members, D]`: trained at once by their sum."""
    inputs = keras.Input(net.input_shape)
    outputs = keras.ops.stack([kit.connect(net, inputs) for _ in range(members)], axis=1)
    return r1.BayesianModel(inputs, outputs, likelihood=likelihood)
