"""Short orders in plain words, with a tag for every word."""

from __future__ import annotations

import numpy as np

from examples.datasets.small import Split

__all__ = ["PADDING", "TAGS", "UNKNOWN", "load_orders", "vocabulary", "words_of"]

TAGS = "other", "amount", "goods", "place", "time"
PADDING, UNKNOWN = 0, 1
LENGTH = 14

_VERBS = "send", "ship", "bring", "deliver", "post"
_AMOUNTS = "one", "two", "three", "four", "ten", "twenty", "some", "many"
# Words of two meanings stand in two lists: only their neighbours tell which one is meant.
_GOODS = (
    "tea",
    "coffee",
    "china",
    "turkey",
    "jersey",
    "apples",
    "paper",
    "bread",
    "cologne",
    "dates",
)
_PLACES = (
    "oslo",
    "lima",
    "china",
    "turkey",
    "jersey",
    "cairo",
    "cologne",
    "quito",
    "perth",
    "bergen",
)
_TIMES = "monday", "may", "march", "june", "noon", "august", "friday", "today"
_FILLERS = "please", "we", "may", "need", "march", "quickly", "also", "then"
# Goods and places of test orders that no training order has: the net sees them as unknown words.
_NEW_GOODS, _NEW_PLACES = ("saffron", "lamps"), ("tromso", "ushuaia")


def vocabulary() -> dict[str, int]:
    """The numbers of the words; 0 is padding, 1 a word that is not among them."""
    lists = (_VERBS, _AMOUNTS, _GOODS, _PLACES, _TIMES, _FILLERS, ("of", "to", "by", "and"))
    words = sorted({word for words in lists for word in words})
    return {word: number for number, word in enumerate(words, start=2)}


def load_orders(train: int = 600, test: int = 300, seed: int = 0) -> Split:
    """Numbers of words `[N, 14]`, 0 behind the end, and their tags `[N, 14]`.

    A third of the test orders name goods or a place that training orders never do.

    Args:
        train: number of training orders.
        test: number of test orders.
        seed: of all orders.
    """
    rng = np.random.default_rng(seed)
    x, y = _numbered([_order(rng, False) for _ in range(train)])
    x_test, y_test = _numbered([_order(rng, i % 3 == 0) for i in range(test)])
    return Split(x, y, x_test, y_test)


def words_of(numbers: np.ndarray) -> list[str]:
    """The words of an order, without its padding."""
    names = {number: word for word, number in vocabulary().items()}
    return [names.get(int(n), "?") for n in numbers if n != PADDING]


def _order(rng: np.random.Generator, is_new: bool) -> list[tuple[str, str]]:
    """Pairs of a word and its tag."""

    def pick(words: tuple[str, ...]) -> str:
        return str(rng.choice(words))

    goods, places = (_NEW_GOODS, _NEW_PLACES) if is_new else (_GOODS, _PLACES)
    found = [(pick(_FILLERS), "other")] if rng.random() < 0.5 else []
    found += [(pick(_VERBS), "other")]
    if rng.random() < 0.8:
        found += [(pick(_AMOUNTS), "amount")]
    found += [("of", "other")] if rng.random() < 0.3 else []
    found += [(pick(goods if rng.random() < 0.5 else _GOODS), "goods")]
    if rng.random() < 0.4:
        found += [("and", "other"), (pick(_GOODS), "goods")]
    ends = [[("to", "other"), (pick(places), "place")], [("by", "other"), (pick(_TIMES), "time")]]
    if rng.random() < 0.5:
        ends.reverse()
    for end in ends[: 1 + int(rng.random() < 0.7)]:
        found += end
    return found


def _numbered(orders: list[list[tuple[str, str]]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = vocabulary()
    x = np.full((len(orders), LENGTH), PADDING, "int32")
    y = np.zeros((len(orders), LENGTH), "int32")
    for row, order in enumerate(orders):
        for place, (word, tag) in enumerate(order):
            x[row, place] = numbers.get(word, UNKNOWN)
            y[row, place] = TAGS.index(tag)
    return x, y
