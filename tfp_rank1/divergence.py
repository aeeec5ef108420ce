"""KL(q || p) per entry, and the one owner of its weight.

Closed forms: every pair that TFP registers (Normal-Normal, LogNormal-LogNormal, Cauchy-Cauchy,
...), and any q with finite variance and known entropy against a Normal p. Every other pair is a
Monte Carlo estimate on fresh reparameterized draws. Points (Deterministic, MixtureOfDeltas) have
no KL from a density; their penalty is `-E_q[log p]`, the MAP objective.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

MONTE_CARLO_SAMPLES = 16
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def kl_divergence(
    q: tfd.Distribution,
    p: tfd.Distribution,
    seed: tf.Tensor,
    num_samples: int = MONTE_CARLO_SAMPLES,
) -> tf.Tensor:
    """`E_q[log q(z) - log p(z)]` per entry, in nats.

    Args:
        q: posterior with batch shape `[..., dim]`.
        p: prior whose batch shape broadcasts against it.
        seed: int32 `[2]`, used by the Monte Carlo branch only.
        num_samples: fresh draws of the Monte Carlo branch. Defaults to 16.

    Returns:
        A tensor with the batch shape of q; every entry is one term of the sum.

    Example:
    ```python
    kl_divergence(tfd.Normal(1.0, 0.03), tfd.Normal(1.0, 0.1), seed)     # closed form
    ```
    """
    if isinstance(p, tfd.Normal) and not isinstance(q, tfd.Normal):
        return normal_cross_entropy(q, p.loc, tf.math.log(p.scale), p.scale**-2) - entropy(q)
    if isinstance(q, tfd.Deterministic):
        return -p.log_prob(q.mean())
    if isinstance(q, tfd.MixtureSameFamily):
        points = q.components_distribution.loc
        return -tf.reduce_mean(_with_trailing_axis(p).log_prob(points), axis=-1)
    try:
        return tfd.kl_divergence(q, p)
    except NotImplementedError:
        z = q.sample(num_samples, seed=seed)
        return tf.reduce_mean(q.log_prob(z) - p.log_prob(z), axis=0)


def entropy(q: tfd.Distribution) -> tf.Tensor:
    """Differential entropy per entry, in nats; 0 for points, whose KL is a MAP penalty."""
    is_point = isinstance(q, (tfd.Deterministic, tfd.MixtureSameFamily))
    return tf.zeros_like(q.mean()) if is_point else q.entropy()


def normal_cross_entropy(
    q: tfd.Distribution, mean: tf.Tensor, log_stddev: tf.Tensor, precision: tf.Tensor
) -> tf.Tensor:
    """`-E_q[log N(z; mean, stddev^2)]` for any q with finite variance.

    `= log(stddev) + log(2 pi) / 2 + precision / 2 * (Var_q + (E_q - mean)^2)`

    `log_stddev` and `precision` are separate so that a random stddev may enter by its own
    expectations `E[log stddev]` and `E[stddev^-2]`.
    """
    second_moment = q.variance() + tf.math.squared_difference(q.mean(), mean)
    return log_stddev + _HALF_LOG_TWO_PI + 0.5 * precision * second_moment


def _with_trailing_axis(p: tfd.Distribution) -> tfd.Distribution:
    """P with a batch axis of size 1 appended, to broadcast over mixture components."""
    return p if p.batch_shape.rank == 0 else p[..., tf.newaxis]


class KLScope:
    """The weight that an owner (a `BayesianModel`) applies, and the KL it was applied to.

    Attributes:
        weight: scalar tensor, `anneal(t) / N`.
    """

    def __init__(self, weight: tf.Tensor) -> None:
        self.weight = weight
        self._terms: list[tf.Tensor] = []

    def add(self, kl: tf.Tensor) -> tf.Tensor:
        """Record a layer's KL and return it weighted."""
        self._terms.append(kl)
        return tf.cast(self.weight, kl.dtype) * kl

    @property
    def total(self) -> tf.Tensor:
        """The unweighted KL so far, in nats."""
        return tf.add_n(self._terms) if self._terms else tf.zeros(())


class _Scopes(threading.local):
    current: KLScope | None = None


_scopes = _Scopes()


@contextlib.contextmanager
def kl_scope(weight: tf.Tensor) -> Iterator[KLScope]:
    """Inside the scope, layers weight their KL by `weight` instead of by their own `kl_weight`."""
    previous = _scopes.current
    scope = KLScope(weight)
    _scopes.current = scope
    try:
        yield scope
    finally:
        _scopes.current = previous


def current_kl_scope() -> KLScope | None:
    """The innermost open scope, or None."""
    return _scopes.current


def weigh(kl: tf.Tensor, kl_weight: float | None, layer_name: str) -> tf.Tensor:
    """A layer's contribution to the loss: `weight * kl`, with exactly one owner of the weight.

    Args:
        kl: the layer's KL in nats, scalar.
        kl_weight: the layer's own weight, or None.
        layer_name: for the messages.

    Raises:
        ValueError: if nobody gives a weight, or two do.
    """
    scope = current_kl_scope()
    if scope is None and kl_weight is None:
        raise ValueError(
            f"Layer '{layer_name}' has a KL term and nobody gave its weight. It is 1/N for N "
            "training examples and is never guessed. Two ways out: train the layer inside a "
            "tfp_rank1.BayesianModel, whose `fit` finds N; or, in a plain keras.Model, pass "
            "`kl_weight=1/N` to the layer. Received: kl_weight=None"
        )
    if scope is not None and kl_weight is not None:
        raise ValueError(
            f"The KL of layer '{layer_name}' has two owners: a BayesianModel and the layer's own "
            "`kl_weight`. Remove `kl_weight` from the layer, or use a plain keras.Model. "
            f"Received: kl_weight={kl_weight}"
        )
    return kl_weight * kl if scope is None else scope.add(kl)


class KLRegularizer(keras.regularizers.Regularizer):
    """Hangs the layer's KL on one of its variables.

    Keras evaluates regularizers once per variable and asks no questions about the argument.
    That counts the KL once for a shared layer, inside an RNN's loop and under XLA, where
    `add_loss` would count it per call. Created anew in `build`, never serialized.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, variable: Any) -> tf.Tensor:
        layer = self._layer
        # In Keras's dtype: a plain keras.Model adds it to losses of that.
        return tf.cast(weigh(layer.kl(), layer.kl_weight, layer.name), keras.config.floatx())
