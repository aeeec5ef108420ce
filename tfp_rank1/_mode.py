"""Whether layers draw samples or use posterior means, and whether members share a batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Mode(threading.local):
    posterior_mean = False
    split_members = False


_mode = _Mode()


@contextlib.contextmanager
def posterior_mean() -> Iterator[None]:
    """Inside the context every layer uses its posterior means instead of drawing samples.

    The median stands in where a family has no mean (Cauchy, HalfCauchy). The methods `predict`,
    `evaluate` and `fit` of a `BayesianModel` follow the context; a plain `keras.Model` keeps the
    function it compiled first, so call it directly, `model(x)`. The context belongs to its thread,
    and replicas are threads of their own: with `strategy.run` enter it in the function that runs.

    Example:
    ```python
    with tfp_rank1.posterior_mean():
        outputs = model(x)                    # deterministic
    ```
    """
    with mean_mode(True):
        yield


@contextlib.contextmanager
def mean_mode(active: bool) -> Iterator[None]:
    """`posterior_mean()` if `active`, else its opposite, within it as well."""
    previous = _mode.posterior_mean
    _mode.posterior_mean = active
    try:
        yield
    finally:
        _mode.posterior_mean = previous


def in_posterior_mean() -> bool:
    """Whether the context manager is active in this thread."""
    return _mode.posterior_mean


@contextlib.contextmanager
def split_members() -> Iterator[None]:
    """Inside the context each member gets its own share of the batch, not all of it.

    `TileMembers` passes `[B, ...]` on, of which member k sees rows `k B / K` and following;
    `SplitMembers` gives every row the one output it has, `[B, 1, ...]`.
    """
    previous = _mode.split_members
    _mode.split_members = True
    try:
        yield
    finally:
        _mode.split_members = previous


def in_split_members() -> bool:
    """Whether the context manager is active in this thread."""
    return _mode.split_members
