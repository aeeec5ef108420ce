"""What became of every layer of a converted model."""

from __future__ import annotations

import dataclasses

__all__ = ["ConversionReport", "Row"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a converted model.

    Attributes:
        name: name of the layer.
        before: name of the class that the layer had.
        after: name of the class that the layer has now.
        note: why the layer was left as it was; empty for a layer that was converted.
        is_frozen: whether a converted layer was frozen. Its factors are then frozen too, and draw
            from the posterior that they started with.
    """

    name: str
    before: str
    after: str
    note: str = ""
    is_frozen: bool = False

    def __str__(self) -> str:
        if self.note:
            return f"{self.name}: {self.before}, {self.note}"
        return f"{self.name}: {self.before} -> {self.after}{', frozen' * self.is_frozen}"


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert` did with every layer of a model.

    Attributes:
        converted: layers that have members now.
        left: layers that were left as they were; all members share their weights, if any.
    """

    converted: tuple[Row, ...]
    left: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} layers converted, {len(self.left)} left as they were"]
        lines += [f"  {row}" for row in (*self.converted, *self.left)]
        return "\n".join(lines)
