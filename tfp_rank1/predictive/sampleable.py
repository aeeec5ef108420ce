"""What sampling, moments and export need of a model."""

from __future__ import annotations

from typing import Any, Protocol

import keras

__all__ = ["Sampleable"]


class Sampleable(Protocol):
    """What answers need of a model; a protocol, as the model imports the rooms of answers."""

    likelihood: Any
    seed_generator: keras.random.SeedGenerator
    _samplers: Any
    output: Any
    has_members: bool | None
    conformal: Any
    calibration: Any

    def __call__(self, x: Any, training: bool = False) -> Any:
        """Raw outputs of one pass."""

    def check_answerable(self) -> None:
        """Raise if the model has nothing to answer with yet."""

    def marginal_outputs(self, x: Any) -> tuple[Any, Any]:
        """Raw outputs of one pass, and their variance where the model knows it, else None."""

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Symbolic outputs."""
