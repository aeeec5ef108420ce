"""The outputs of a model: one, or several in a list or a dict, each with its likelihood.

A model of several outputs has a list or a dict of likelihoods. Raw outputs, targets, losses and
answers have the same structure; the likelihoods say what it is. For one output all of these are
what they are, without a structure. Structures are of one level.

    likelihood = {"price": Normal(), "sold": Bernoulli()}
    map_heads(lambda likelihood, y: ..., likelihood, y)              # {"price": ..., "sold": ...}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "are_several",
    "for_each",
    "in_each",
    "map_heads",
    "matched",
    "names_of",
    "packed",
    "parts",
]


def are_several(heads: Any) -> bool:
    """Whether there are several outputs, or one that has a name or a place in a list."""
    return isinstance(heads, (dict, list, tuple))


def names_of(heads: Any) -> list[str]:
    """Names of the outputs: keys of a dict, "output_0" and so on of a list; "" for a single one.

    Names are sorted, as the keys of a dict have no order in files.
    """
    if not are_several(heads):
        return [""]
    return sorted(heads) if isinstance(heads, dict) else [f"output_{i}" for i in range(len(heads))]


def parts(heads: Any, structure: Any) -> list[Any]:
    """What a structure like `heads` holds, in the order of `names_of`."""
    if not are_several(heads):
        return [structure]
    return [structure[key] for key in _keys(heads)]


def map_heads(function: Callable[..., Any], heads: Any, *structures: Any) -> Any:
    """`function(head, *values)` for every output.

    Args:
        function: called once per output.
        heads: the likelihoods.
        *structures: structures like `heads`; None stands for None at every output.

    Returns:
        The results, in a dict or list like `heads`; for a single output its result.
    """
    given = [in_each(heads, None) if s is None else s for s in structures]
    columns = zip(parts(heads, heads), *(parts(heads, s) for s in given), strict=True)
    return packed(heads, [function(*column) for column in columns])


def packed(heads: Any, values: Iterable[Any]) -> Any:
    """Values in the order of `names_of`, in a structure like `heads`."""
    values = list(values)
    if not are_several(heads):
        return values[0]
    return dict(zip(_keys(heads), values, strict=True)) if isinstance(heads, dict) else values


def in_each(heads: Any, value: Any) -> Any:
    """A structure like `heads` that holds one value everywhere."""
    return packed(heads, [value for _ in names_of(heads)])


def matched(argument: str, heads: Any, structure: Any) -> Any:
    """What the user gave by output, refused unless it has the structure of `heads`.

    Args:
        argument: its name, for the message.
        heads: the likelihoods.
        structure: what was given; for a single output anything.

    Returns:
        The structure, as a dict or list like `heads`.

    Raises:
        ValueError: with the outputs that are missing, and with unknown names.
    """
    if not are_several(heads):
        return structure
    if isinstance(heads, dict):
        if not isinstance(structure, dict):
            raise ValueError(
                f"Argument `{argument}` must be a dict with one entry for every output, "
                f"{sorted(heads)}. Received: a {type(structure).__name__}"
            )
        missing, unknown = sorted(heads.keys() - structure.keys()), structure.keys() - heads.keys()
        if missing or unknown:
            raise ValueError(
                f"Argument `{argument}` must have one entry for every output, {sorted(heads)}. "
                f"Received: nothing for {missing}, and unknown names {sorted(map(str, unknown))}"
            )
        return {key: structure[key] for key in heads}
    if not isinstance(structure, (list, tuple)) or len(structure) != len(heads):
        found = f"{len(structure)} entries" if hasattr(structure, "__len__") else "no list"
        raise ValueError(
            f"Argument `{argument}` must be a list with one entry for each of the {len(heads)} "
            f"outputs. Received: a {type(structure).__name__} of {found}"
        )
    return list(structure)


def for_each(argument: str, heads: Any, value: Any) -> Any:
    """What the user gave by output, or one value for all of them.

    Args:
        argument: its name, for the message.
        heads: the likelihoods.
        value: a structure like `heads`, or what is no list or dict.

    Raises:
        ValueError: for a structure that does not match.
    """
    if are_several(heads) and not are_several(value):
        return in_each(heads, value)
    return matched(argument, heads, value)


def _keys(heads: Any) -> list[Any]:
    return sorted(heads) if isinstance(heads, dict) else list(range(len(heads)))
