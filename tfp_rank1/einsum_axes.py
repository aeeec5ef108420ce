"""The axes in an equation of `keras.layers.EinsumDense`, such as `"...x,xy->...y"`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["expand", "letters", "shape_of_outputs"]


def letters(equation: str) -> tuple[str, str, str]:
    """The axes of inputs, kernel and outputs, with an ellipsis as one axis: `"0x", "xy", "0y"`."""
    # Einsum names axes by letters, so a digit is free for the ellipsis.
    left, outputs = equation.replace(" ", "").replace("...", "0").split("->")
    inputs, kernel = left.split(",")
    return inputs, kernel, outputs


def expand(names: str, rank: int) -> list[str]:
    """The axes of a tensor of a given rank, one name each; those of the ellipsis are "0", "1", ...

    Args:
        names: axes from `letters`.
        rank: number of axes of the tensor.

    Returns:
        `rank` names: `["0", "1", "x"]` for `"0x"` and rank 3.
    """
    # The ellipsis stands for the same axes in inputs and outputs: both give them the same names.
    named = len(names.replace("0", ""))
    ellipsis = [str(i) for i in range(rank - named)]
    return [name for a in names for name in (ellipsis if a == "0" else [a])]


def shape_of_outputs(
    equation: str, input_shape: Sequence[int | None], partial: Any
) -> tuple[int | None, ...]:
    """The shape of the outputs, which Keras before 3.15 knows of built layers only.

    Args:
        equation: as of `keras.layers.EinsumDense`.
        input_shape: shape of the inputs with the batch, None where unknown.
        partial: the layer's `output_shape`: one size, or all without the batch and the ellipsis;
            None stays None.

    Returns:
        The shape with the batch: `(None, 5, 8)` for `"...x,xy->...y"`, `(None, 5, 3)` and 8.

    Raises:
        ValueError: if the equation does not fit the shapes.
    """
    inputs, _, outputs = letters(equation)
    named = outputs.replace("0", "")
    rank = len(named) + len(input_shape) - len(inputs.replace("0", ""))
    given = partial if isinstance(partial, Iterable) else [partial]
    names = expand(inputs, len(input_shape)), expand(outputs, rank)
    sizes: dict[str, int | None] = dict(zip(names[0], input_shape, strict=False))
    sizes |= zip(reversed(named), reversed([*given]), strict=False)
    if len(names[0]) != len(input_shape) or not sizes.keys() >= set(names[1]):
        raise ValueError(
            "Argument `equation` must have a letter for every axis of the inputs, and argument "
            "`output_shape` a size for every axis that the outputs alone have. Received: "
            f"equation={equation!r}, output_shape={partial}, inputs of shape {tuple(input_shape)}"
        )
    return tuple(sizes[name] for name in names[1])
