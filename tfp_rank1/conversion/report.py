"""What became of every layer of a converted model."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

from tfp_rank1.keras_internals import layers_of, own_trainable_variables

__all__ = ["ConversionReport", "Row", "Rows", "warn_of_points"]

# Below this share of Bayesian parameters a converted net is mostly the net that it was.
_FEW = 0.5
# Number of layers that a warning names.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a converted model.

    Attributes:
        name: name of the layer.
        before: name of the class that the layer had.
        after: name of the class that the layer has now.
        note: why the layer was left as it was; empty for a layer that was converted.
        is_frozen: whether a converted layer was frozen. The factors of a rank-1 layer are then
            frozen too, and draw from the posterior that they started with.
        parameters: number of the layer's parameters before, without moving statistics; a parameter
            of several layers counts for the first.
        is_chosen: whether the user left the layer, by name or by freezing it.
    """

    name: str
    before: str
    after: str
    note: str = ""
    is_frozen: bool = False
    parameters: int = 0
    is_chosen: bool = False

    def __str__(self) -> str:
        size = f" ({self.parameters:,} parameters)" if self.parameters else ""
        if self.note:
            return f"{self.name}: {self.before}{size}, {self.note}"
        return f"{self.name}: {self.before}{size} -> {self.after}{', frozen' * self.is_frozen}"


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert` did with every layer of a model.

    Attributes:
        converted: layers that became Bayesian; in a rank-1 model also those that have members now.
        left: layers that were left as they were; all members share their weights, if any.
    """

    converted: tuple[Row, ...]
    left: tuple[Row, ...]

    @property
    def converted_parameters(self) -> int:
        """Number of parameters, in the original, of the layers that were converted."""
        return sum(row.parameters for row in self.converted)

    @property
    def left_parameters(self) -> int:
        """Number of parameters of the layers that were left as they were."""
        return sum(row.parameters for row in self.left)

    def __str__(self) -> str:
        lines = [
            f"{len(self.converted)} layers converted, {len(self.left)} left as they were; "
            f"{self.converted_parameters:,} parameters converted, {self.left_parameters:,} left"
        ]
        lines += [f"  {row}" for row in (*self.converted, *self.left)]
        return "\n".join(lines)


class Rows:
    """Collects the rows of a report while a model is converted."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._counted: set[int] = set()

    def add(
        self,
        layer: Any,
        new: Any,
        note: str = "",
        is_frozen: bool = False,
        is_chosen: bool = False,
        name: str | None = None,
    ) -> None:
        """Add the row of a layer; see `Row` for the arguments. `name` defaults to the layer's."""
        variables = {id(v): v for part in layers_of(layer) for v in own_trainable_variables(part)}
        fresh = variables.keys() - self._counted
        self._counted |= fresh
        size = sum(math.prod(variables[i].shape) for i in fresh)
        kinds = type(layer).__name__, type(new).__name__
        self._rows.append(Row(name or layer.name, *kinds, note, is_frozen, size, is_chosen))

    def copy(self) -> Rows:
        """The same rows, to go on without changing these."""
        new = Rows()
        new._rows, new._counted = list(self._rows), set(self._counted)
        return new

    def report(self) -> ConversionReport:
        """The report on all rows; a row with a note is a layer that was left."""
        done = tuple(row for row in self._rows if not row.note)
        return ConversionReport(done, tuple(row for row in self._rows if row.note))


def warn_of_points(report: ConversionReport, way_out: str) -> None:
    """Warn of a net most of whose parameters stay points, unless the user chose to leave them.

    Args:
        report: of the conversion.
        way_out: what to do about it.
    """
    left = [row for row in report.left if row.parameters and not row.is_chosen]
    bayesian = report.converted_parameters
    total = bayesian + sum(row.parameters for row in left)
    if bayesian >= _FEW * total:
        return
    largest = sorted(left, key=lambda row: row.parameters, reverse=True)[:_NAMED]
    named = ", ".join(f"{r.name!r} ({r.before}, {r.parameters:,})" for r in largest)
    warnings.warn(
        f"Only {100 * bayesian / total:.2g}% of the parameters of the net became Bayesian, "
        f"{bayesian:,} of {total:,}; the others stay points, and error bars know nothing of them. "
        f"{way_out} "
        f"Received: layers left as they are, the largest {named}",
        stacklevel=3,  # the line that called `convert`
    )
