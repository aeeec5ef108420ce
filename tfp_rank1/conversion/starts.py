"""Where the factors of a converted net start: at the centre, which leaves a layer unperturbed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfp_rank1 import posteriors
from tfp_rank1.keras_internals import layers_of
from tfp_rank1.layers import Rank1Mixin
from tfp_rank1.layers.factor import Factor

__all__ = ["around_center", "at_center"]


def around_center(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `convert`, with posteriors that start where factors change nothing."""
    center = 0.0 if arguments.get("perturbation") == "additive" else 1.0
    given = {"posterior": "normal", **arguments}
    names = [n for n in ("posterior", "r_posterior", "s_posterior") if given.get(n) is not None]
    for name in names:
        posterior, is_named = posteriors.get(given[name]), isinstance(given[name], str)
        if not posterior.stochastic and is_named and arguments["ensemble_size"] > 1:
            warnings.warn(
                "Points that start at 1 make members that are copies of each other, and stay so "
                "on the same batches: pass posterior=tfp_rank1.posteriors.Deterministic(), which "
                "starts around 1, or compile with member_batches='split'. Received: "
                f"{name}={given[name]!r}",
                stacklevel=4,
            )
        # A point posterior that is given as an object has its own start, at which members differ.
        is_own = not posterior.stochastic and not is_named
        given[name] = posterior if is_own else posterior.around(center)
    return given


class _Center(posteriors.Posterior):
    """Stands in for the posterior of a factor: the mean is the centre, whatever the variables.

    Args:
        posterior: the posterior whose place it takes.
        center: the value that leaves a layer unperturbed.
    """

    def __init__(self, posterior: posteriors.Posterior, center: float) -> None:
        self._posterior, self._center = posterior, center

    def mean(self, parameters: posteriors.Parameters) -> tf.Tensor:
        return tf.zeros_like(self._posterior.mean(parameters)) + self._center


@contextlib.contextmanager
def at_center(model: Any) -> Iterator[None]:
    """Inside the context the mean of every factor r and s is its centre; biases keep theirs.

    Families such as HalfCauchy, or a posterior with a `mean_initializer`, start elsewhere on
    purpose. At the centre the members of a converted net compute the original function.
    """
    found = [layer for layer in layers_of(model) if isinstance(layer, Rank1Mixin)]
    parts = [(f, v) for v in found for f in vars(v).values() if isinstance(f, Factor)]
    factors = [factor for factor, layer in parts if factor is not layer.bias_factor]
    kept = [factor.posterior for factor in factors]
    for factor in factors:
        factor.posterior = _Center(factor.posterior, factor.center)
    try:
        yield
    finally:
        for factor, posterior in zip(factors, kept, strict=True):
            factor.posterior = posterior
