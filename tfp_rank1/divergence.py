"""`KL(q || p)` per entry, and the one owner of the KL weight.

There are closed forms for every pair that TFP registers (Normal-Normal, LogNormal-LogNormal,
Cauchy-Cauchy, ...), and for any q with finite variance and known entropy against a Normal p. Every
other KL is a Monte Carlo estimate from fresh reparameterized draws. Points (Deterministic,
MixtureOfDeltas) have no KL from a density; their penalty is `-E_q[log p]`, the MAP objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1 import scopes

__all__ = [
    "KLOwner",
    "KLRegularizer",
    "entropy",
    "kl_divergence",
    "kl_from_random_normal",
    "normal_cross_entropy",
    "register_kl",
    "weigh",
]

MONTE_CARLO_SAMPLES = 16
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


Formula = Callable[[tfd.Distribution, tfd.Distribution], tf.Tensor]
# Newest first: the first formula that fits a pair counts.
_FORMULAS: list[tuple[type, type, Formula]] = []


def register_kl(q_class: type, p_class: type) -> Callable[[Formula], Formula]:
    """Give `kl_divergence` a formula for a pair of distribution classes and their subclasses.

    If several formulas fit a pair, the newest counts. The formulas do not enter TFP's own registry,
    because some of them are penalties of points, which are no KL.

    A formula may return NotImplemented, and the next one that fits is asked.

    Args:
        q_class: class of the posterior's distribution.
        p_class: class of the prior's distribution.

    Example:
    ```python
    @r1.divergence.register_kl(MyPosterior, tfd.Normal)
    def my_kl(q, p):
        return ...                               # per entry, in nats
    ```
    """

    def register(formula: Formula) -> Formula:
        _FORMULAS.insert(0, (q_class, p_class, formula))
        return formula

    return register


def kl_divergence(
    q: tfd.Distribution,
    p: tfd.Distribution,
    seed: tf.Tensor,
    num_samples: int = MONTE_CARLO_SAMPLES,
) -> tf.Tensor:
    """`E_q[log q(z) - log p(z)]` per entry, in nats.

    The value comes from a formula of `register_kl`, else from TFP, else from Monte Carlo.

    Args:
        q: posterior with batch shape `[..., dim]`.
        p: prior whose batch shape broadcasts against that of q.
        seed: int32 `[2]`, used by Monte Carlo only.
        num_samples: number of fresh draws of Monte Carlo. Defaults to 16.

    Returns:
        A tensor with the batch shape of q.

    Example:
    ```python
    r1.divergence.kl_divergence(tfd.Normal(1.0, 0.03), tfd.Normal(1.0, 0.1), seed)     # closed form
    ```
    """
    for q_class, p_class, formula in _FORMULAS:
        fits = isinstance(q, q_class) and isinstance(p, p_class)
        found = formula(q, p) if fits else NotImplemented
        if found is not NotImplemented:
            return found
    try:
        return tfd.kl_divergence(q, p)
    except NotImplementedError:
        z = q.sample(num_samples, seed=seed)
        return tf.reduce_mean(q.log_prob(z) - p.log_prob(z), axis=0)


@register_kl(tfd.MixtureSameFamily, tfd.Distribution)
def _points_penalty(q: tfd.Distribution, p: tfd.Distribution) -> tf.Tensor:
    """The mean of `-log p` over the points of a mixture; for points alone."""
    if not _is_point(q):
        return NotImplemented
    log_probs = _with_trailing_axis(p).log_prob(q.components_distribution.loc)
    weights = q.mixture_distribution.probs_parameter()
    return -tf.reduce_sum(weights * log_probs, axis=-1)


@register_kl(tfd.Deterministic, tfd.Distribution)
def _point_penalty(q: tfd.Distribution, p: tfd.Distribution) -> tf.Tensor:
    """`-log p` at the point."""
    return -p.log_prob(q.mean())


@register_kl(tfd.Distribution, tfd.Normal)
def _kl_from_normal(q: tfd.Distribution, p: tfd.Distribution) -> tf.Tensor:
    """The KL from a Normal of any q with finite variance and known entropy."""
    try:
        return normal_cross_entropy(q, p.loc, tf.math.log(p.scale), p.scale**-2) - entropy(q)
    except NotImplementedError:  # TFP knows no variance, or no entropy
        return NotImplemented


# After the formula above, which fits this pair too. TFP's form does not subtract an entropy from a
# cross entropy, so it stays accurate where q is close to p.
register_kl(tfd.Normal, tfd.Normal)(tfd.kl_divergence)


def entropy(q: tfd.Distribution) -> tf.Tensor:
    """Differential entropy per entry, in nats; 0 for points, whose KL is a MAP penalty."""
    return tf.zeros_like(q.mean()) if _is_point(q) else q.entropy()


def _is_point(q: tfd.Distribution) -> bool:
    """Whether a distribution is one point per entry, or a mixture of points."""
    if isinstance(q, tfd.MixtureSameFamily):
        return _is_point(q.components_distribution)
    return isinstance(q, tfd.Deterministic)


def normal_cross_entropy(
    q: tfd.Distribution, mean: tf.Tensor, log_stddev: tf.Tensor, precision: tf.Tensor
) -> tf.Tensor:
    """`-E_q[log N(z; mean, stddev^2)]` for any q with finite variance.

        log(stddev) + log(2 pi) / 2 + precision / 2 * (Var_q + (E_q - mean)^2)

    Args:
        q: a distribution with finite variance.
        mean: mean of the Normal.
        log_stddev: `log(stddev)`; for a random stddev its expectation.
        precision: `stddev^-2`; for a random stddev its expectation.
    """
    second_moment = q.variance() + tf.math.squared_difference(q.mean(), mean)
    return log_stddev + _HALF_LOG_TWO_PI + 0.5 * precision * second_moment


def kl_from_random_normal(
    q: tfd.Distribution,
    mean: tf.Tensor,
    log_stddev: tf.Tensor,
    precision: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """`E KL(q || N(mean, stddev^2))` over a random stddev, per entry, in nats.

    In closed form where TFP knows q's variance and entropy, else a Monte Carlo estimate over z ~ q.
    The arguments are those of `normal_cross_entropy`; the seed is int32 `[2]`.
    """
    try:
        return normal_cross_entropy(q, mean, log_stddev, precision) - entropy(q)
    except NotImplementedError:
        z = q.sample(MONTE_CARLO_SAMPLES, seed=seed)
        square = tf.reduce_mean(tf.math.squared_difference(z, mean), axis=0)
        cross_entropy = log_stddev + _HALF_LOG_TWO_PI + 0.5 * precision * square
        return cross_entropy + tf.reduce_mean(q.log_prob(z), axis=0)


def _with_trailing_axis(p: tfd.Distribution) -> tfd.Distribution:
    """The prior with a batch axis of size 1 appended, to broadcast over the points of a mixture."""
    return p if p.batch_shape.rank == 0 else p[..., tf.newaxis]


class KLOwner:
    """The KL weight that a `BayesianModel` gives all layers, and the sum of the layers' KL.

    Args:
        weight: the KL weight, scalar tensor, `anneal(t) / N`.
    """

    def __init__(self, weight: tf.Tensor) -> None:
        self.weight = weight
        self._terms: list[tf.Tensor] = []

    def add(self, kl: tf.Tensor) -> tf.Tensor:
        """Record the KL of a layer, and return it times the KL weight."""
        self._terms.append(kl)
        return tf.cast(self.weight, kl.dtype) * kl

    @property
    def total(self) -> tf.Tensor:
        """The sum of the recorded KL, unweighted, in nats."""
        return tf.add_n(self._terms) if self._terms else tf.zeros(())


def weigh(kl: tf.Tensor, kl_weight: float | None, layer_name: str) -> tf.Tensor:
    """A layer's contribution to the loss: `weight * kl`, with exactly one owner of the KL weight.

    Args:
        kl: the layer's KL in nats, scalar.
        kl_weight: the layer's own KL weight, or None.
        layer_name: name of the layer, for error messages.

    Raises:
        ValueError: if neither the layer nor a model gives a KL weight, or if both do.
    """
    owner = scopes.kl_owner.value
    if owner is None and kl_weight is None:
        raise ValueError(
            f"Layer '{layer_name}' has a KL term and nobody gave its weight. It is 1/N for N "
            "training examples and is never guessed. Two ways out: train the layer inside a "
            "tfp_rank1.BayesianModel, whose `fit` finds N; or, in a plain keras.Model, pass "
            "`kl_weight=1/N` to the layer. Received: kl_weight=None"
        )
    if owner is not None and kl_weight is not None:
        raise ValueError(
            f"The KL of layer '{layer_name}' has two owners: a BayesianModel and the layer's own "
            "`kl_weight`. Remove `kl_weight` from the layer, or use a plain keras.Model. "
            f"Received: kl_weight={kl_weight}"
        )
    return kl_weight * kl if owner is None else owner.add(kl)


class KLRegularizer(keras.regularizers.Regularizer):
    """Attaches the KL of a layer to one of the layer's variables.

    The regularizer ignores the variable and returns the weighted KL. A layer creates its
    regularizer anew in `build`; it is never serialized.

    Args:
        layer: a layer with `kl()`, `kl_weight` and a name.
    """

    # Why not `add_loss`: it counts the KL once per call of a shared layer, in the loop of an RNN
    # and under XLA. Keras evaluates a regularizer once per variable.

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, variable: Any) -> tf.Tensor:
        layer = self._layer
        # In Keras's default dtype, because a plain keras.Model adds it to losses of that dtype.
        return tf.cast(weigh(layer.kl(), layer.kl_weight, layer.name), keras.config.floatx())
