"""The axes that an equation of `keras.layers.EinsumDense` names."""

from __future__ import annotations

__all__ = ["expand", "letters"]


def letters(equation: str) -> tuple[str, str, str]:
    """Axes of inputs, kernel and outputs; an ellipsis becomes one axis, "0"."""
    left, outputs = equation.replace(" ", "").replace("...", "0").split("->")
    inputs, kernel = left.split(",")
    return inputs, kernel, outputs


def expand(names: str, rank: int) -> list[str]:
    """Axis names of a tensor, the ellipsis written out as "0", "1", ..."""
    named = len(names.replace("0", ""))
    ellipsis = [str(i) for i in range(rank - named)]
    return [name for a in names for name in (ellipsis if a == "0" else [a])]
