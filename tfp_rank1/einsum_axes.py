"""The axes in an equation of `keras.layers.EinsumDense`, such as `"...x,xy->...y"`."""

from __future__ import annotations

__all__ = ["expand", "letters"]


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
