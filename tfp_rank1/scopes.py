"""Every thread-local of both packages: what the caller of a model tells the layers in it.

Keras calls layers and passes on no arguments of this package. What a layer must know besides its
inputs (whether to sample, from which seed, who weights its KL) stands in a scope. A scope belongs
to its thread. The replicas of `tf.distribute` are threads of their own: a function that runs on
replicas opens the scopes that it needs itself.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from tfp_rank1.checks import whole

__all__ = [
    "Scope",
    "constant_draws",
    "ensemble_size",
    "held_draws",
    "kl_owner",
    "marginal",
    "mean_mode",
    "members",
    "noise_factor",
    "posterior_mean",
    "posterior_scale",
    "recorder",
    "row_masks",
    "seed_source",
    "shared_draws",
    "split_members",
    "tempered_variance",
    "unrolled",
    "variance_factor",
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
        # `threading.local` calls this again in every thread that uses the scope.
        self.value = default()

    @contextlib.contextmanager
    def set(self, value: T) -> Iterator[T]:
        """Inside the context the scope has `value`; afterwards its former value, even on errors."""
        previous, self.value = self.value, value
        try:
            yield value
        finally:
            self.value = previous


def _none() -> Any:
    return None


# Whether layers use posterior means instead of drawing samples.
mean_mode: Scope[bool] = Scope(bool)
# The draws that all examples share: a `random.SharedDraws`, so that an example's outputs depend on
# nothing but the example; or None, for draws of every example's own.
shared_draws: Scope[Any] = Scope(_none)
# Whether members share a batch: `TileMembers` then passes `[B, ...]` on, member k takes the B / K
# rows from row `k B / K` on, and `SplitMembers` gives every row its only output, `[B, 1, ...]`.
split_members: Scope[bool] = Scope(bool)
# The number of members K of layers that are built without a number of their own; None: they say it.
ensemble_size: Scope[int | None] = Scope(_none)
# The source of seeds: a `random.SeedSource`, or None for the layers' own generators.
seed_source: Scope[Any] = Scope(_none)
# The owner of the KL weight: a `divergence.KLOwner`, or None for the layers' own `kl_weight`.
kl_owner: Scope[Any] = Scope(_none)
# Which rows of the parts of a layer are no padding, by the id of the part: Keras's attention takes
# masks from its inputs before it calls its projections.
row_masks: Scope[dict[int, Any]] = Scope(dict)
# The draws of a recurrent cell while a sequence is under way, by cell.
held_draws: Scope[weakref.WeakKeyDictionary[Any, Any]] = Scope(weakref.WeakKeyDictionary)
# The recorder of the layers' calls for a training step, or None.
recorder: Scope[Any] = Scope(_none)
# The request to one layer to return its mean and leave its variance there, not to draw; or None.
marginal: Scope[Any] = Scope(_none)

# Whether draws become constants of the graph under construction, as in files that know no random
# numbers.
constant_draws: Scope[bool] = Scope(bool)
# Whether every iteration of a loop stands in the graph by itself, for formats that take no loop.
unrolled: Scope[bool] = Scope(bool)
# The variances that learned Gaussian noises have in the loss of a training step, by the ids of
# their likelihoods; None for their own.
tempered_variance: Scope[Any] = Scope(_none)
# The factor c of all posterior variances in the answer under way, a float or a scalar tensor; None
# outside of any model. The outermost model sets it, for all layers and models within.
posterior_scale: Scope[Any] = Scope(_none)
# The factor by which a learned scale of the noise is multiplied, a scalar tensor; None for 1. Only
# the search of `calibrate` sets it.
noise_factor: Scope[Any] = Scope(_none)


def variance_factor() -> Any:
    """The factor c of posterior variances in the answer under way; None where it is 1."""
    factor = posterior_scale.value
    return None if isinstance(factor, float) and factor == 1.0 else factor


@contextlib.contextmanager
def posterior_mean() -> Iterator[None]:
    """Inside the context every layer uses its posterior means instead of drawing samples.

    A family without a mean (Cauchy, HalfCauchy) gives its median. The methods `predict`,
    `evaluate` and `fit` of a `BayesianModel` follow the context; a plain `keras.Model` keeps the
    functions that it compiled first, so call the model itself, `model(x)`. The context belongs to
    its thread, and replicas are threads of their own: with `strategy.run`, enter the context in the
    function that runs.

    Example:
    ```python
    with r1.posterior_mean():
        outputs = model(x)                    # deterministic
    ```
    """
    with mean_mode.set(True):
        yield


@contextlib.contextmanager
def members(number: int) -> Iterator[None]:
    """Inside the context layers with members have K of them, unless `ensemble_size` is given.

    Args:
        number: K, at least 1.

    Raises:
        ValueError: unless K is a whole number of at least 1.

    Example:
    ```python
    with r1.members(4):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(128, activation="relu")(h)
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(h))       # [B, 4, 10]
    ```
    """
    with ensemble_size.set(whole("number", number)):
        yield
