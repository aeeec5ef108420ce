"""Houses on the market: what they fetch, and whether they are sold within a month."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["FEATURES", "Houses", "load_houses"]

FEATURES = "size", "age", "distance", "asked"


class Houses(NamedTuple):
    """Features `[N, 4]` of unit size, and targets by name.

    Attributes:
        x: `FEATURES`, scaled.
        y: "price" in hundreds of thousands, NaN for a house that is not sold, and "sold", 0 or 1.
        price: what every house would fetch, also where `y` does not tell, `[N]`.
    """

    x: np.ndarray
    y: dict[str, np.ndarray]
    price: np.ndarray


def load_houses(train: int = 1200, test: int = 600, seed: int = 0) -> tuple[Houses, Houses]:
    """Training houses, and test houses of which the second half is larger than any of the first.

    A house is sold sooner if less is asked than it is worth, and only a sale tells the price.

    Args:
        train: number of training houses.
        test: number of test houses.
        seed: of all houses.
    """
    rng = np.random.default_rng(seed)
    ordinary = _houses(rng, train + test // 2, 60.0, 160.0)
    large = _houses(rng, test - test // 2, 200.0, 260.0)
    shift, scale = ordinary[0][:train].mean(axis=0), ordinary[0][:train].std(axis=0)

    def of(rows: slice, more: tuple[np.ndarray, ...] | None = None) -> Houses:
        found = [column[rows] for column in ordinary]
        if more is not None:
            found = [np.concatenate(pair) for pair in zip(found, more, strict=True)]
        features, price, sold = found
        known = np.where(sold, price, np.nan).astype("float32")
        x = ((features - shift) / scale).astype("float32")
        return Houses(x, {"price": known, "sold": sold.astype("float32")}, price)

    return of(slice(train)), of(slice(train, None), large)


def _houses(
    rng: np.random.Generator, count: int, smallest: float, largest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features as they are, the price that a sale would fetch, and which houses are sold."""
    size, age = rng.uniform(smallest, largest, count), rng.gamma(2.0, 15.0, count)
    distance = rng.gamma(2.0, 4.0, count)
    worth = 0.02 * size * (1.0 + np.exp(-distance / 6.0)) - 0.006 * age + 0.4
    price = worth * np.exp(0.08 * rng.normal(size=count))
    asked = worth * np.exp(0.15 * rng.normal(size=count))
    chance = 1.0 / (1.0 + (asked / worth) ** 8)
    sold = rng.uniform(size=count) < chance
    return np.stack([size, age, distance, asked], axis=1), price, sold
