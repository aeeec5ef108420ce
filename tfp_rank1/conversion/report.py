"""What became of every layer of a converted model."""

from __future__ import annotations

import dataclasses

__all__ = ["ConversionReport", "Row"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a converted model.

    Attributes:
        name: of the layer.
        before: class it was.
        after: class it is now.
        note: why it was left as it was; empty for a layer that was converted.
        is_frozen: whether a converted layer was frozen: its factors are as well, and draw from
            the posterior they start with.
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
        converted: layers with members of their own now.
        left: layers whose weights, if any, all members share.
    """

    converted: tuple[Row, ...]
    left: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} layers converted, {len(self.left)} left as they were"]
        lines += [f"  {row}" for row in (*self.converted, *self.left)]
        return "\n".join(lines)
