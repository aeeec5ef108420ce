"""Every thread-local of both packages: what code further out tells layers further in.

A layer is called by Keras, which passes no arguments of ours on. What a layer must know besides
its inputs (whether to sample, from which seed, who weighs its KL) stands in a scope. A scope
belongs to its thread. The replicas of `tf.distribute` are threads of their own: a function that
runs on replicas opens the scopes it needs by itself.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

__all__ = [
    "Scope",
    "held_draws",
    "kl_owner",
    "marginal",
    "mean_mode",
    "posterior_mean",
    "recorder",
    "seed_source",
    "split_members",
]

T = TypeVar("T")


class Scope(threading.local, Generic[T]):
    """A value that code sets for what it calls, in its own thread.

    Args:
        default: called once per thread, for the value outside of any scope.

    Example:
    ```python
    is_training = Scope(lambda: False)
    with is_training.set(True):
        is_training.value                       # True
    ```
    """

    def __init__(self, default: Callable[[], T]) -> None:
        self.value = default()

    @contextlib.contextmanager
    def set(self, value: T) -> Iterator[T]:
        """Inside the context `value` holds; afterwards the value before, also after an error."""
        previous, self.value = self.value, value
        try:
            yield value
        finally:
            self.value = previous


def _none() -> Any:
    return None


# Whether layers use posterior means instead of drawing samples.
mean_mode: Scope[bool] = Scope(bool)
# Whether members share a batch, each with its own part: `TileMembers` then passes `[B, ...]` on,
# of which member k has rows `k B / K` and following, and `SplitMembers` gives every row the one
# output it has, `[B, 1, ...]`.
split_members: Scope[bool] = Scope(bool)
# Where seeds come from: a `random.SeedSource`, or None for the layers' own generators.
seed_source: Scope[Any] = Scope(_none)
# Who weighs the KL of layers: a `divergence.KLOwner`, or None for the layers' own `kl_weight`.
kl_owner: Scope[Any] = Scope(_none)
# The draws of a recurrent cell while a sequence is under way, by cell.
held_draws: Scope[weakref.WeakKeyDictionary[Any, Any]] = Scope(weakref.WeakKeyDictionary)
# What records the calls of layers for a training step, or None.
recorder: Scope[Any] = Scope(_none)
# The layer that returns its mean and leaves its variance here instead of drawing, or None.
marginal: Scope[Any] = Scope(_none)


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
    with mean_mode.set(True):
        yield
