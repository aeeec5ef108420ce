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
    ordinary = _houses(rng, train + test // 2, (60.0, 160.0))
    large = _houses(rng, test - test // 2, (200.0, 260.0))
    parts = [(a[:train], np.concatenate([a[train:], b])) for a, b in zip(ordinary, large, strict=True)]
    features, price, asked, sold = parts
    shift, scale = features[0].mean(0), features[0].std(0)
    return tuple(
        Houses(
            ((features[i] - shift) / scale).astype("float32"),
            {
                "price": np.where(sold[i] > 0, price[i], np.nan).astype("float32"),
                "sold": sold[i].astype("float32"),
            },
            price[i],
        )
        for i in (0, 1)
    )  # type: ignore[return-value]


def _houses(
    rng: np.random.Generator, count: int, sizes: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    size, age = rng.uniform(*sizes, count), rng.gamma(2.0, 15.0, count)
    distance = rng.gamma(2.0, 4.0, count)
    worth = 0.02 * size * (1.0 + np.exp(-distance / 6.0)) - 0.006 * age + 0.4
    price = worth * np.exp(0.08 * rng.normal(size=count))
    asked = worth * np.exp(0.15 * rng.normal(size=count))
    chance = 1.0 / (1.0 + np.exp(8.0 * np.log(asked / worth)))
    sold = rng.uniform(size=count) < chance
    return np.stack([size, age, distance, asked], axis=1), price, asked, sold
