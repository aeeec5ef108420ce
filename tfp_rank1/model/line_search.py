"""The minimum of a function of one number, by few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["minimum"]

# Golden section: each evaluation shortens the bracket by this factor.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def minimum(
    function: Callable[[float], float],
    start: float,
    step: float,
    bounds: tuple[float, float],
    tolerance: float,
) -> float:
    """Walk downhill from `start` by steps, then search the bracket by golden section.

    Args:
        function: should have one minimum near the start; it may be NaN or infinite far off.
        start: where to begin.
        step: length of a step of the walk.
        bounds: the least and the largest result.
        tolerance: length of the bracket at which the search ends.

    Returns:
        The point with the smallest value among all that were evaluated.
    """
    found: dict[float, float] = {}

    def value(x: float) -> float:
        if x not in found:
            y = function(x)
            found[x] = y if math.isfinite(y) else math.inf
        return found[x]

    best = _walk(value, start, step, bounds)
    low, high = max(best - step, bounds[0]), min(best + step, bounds[1])
    while high - low > tolerance:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if value(left) <= value(right):
            high = right
        else:
            low = left
    # The start wins a tie: a function that is constant moves nothing.
    return min(found, key=lambda x: (found[x], abs(x - start)))


def _walk(
    value: Callable[[float], float], start: float, step: float, bounds: tuple[float, float]
) -> float:
    """The last point of a walk downhill."""
    best = start
    for direction in (-step, step):
        while bounds[0] <= best + direction <= bounds[1]:
            if value(best + direction) >= value(best):
                break
            best += direction
        if best != start:
            break
    return best
