"""Priors of a factor, some of them with parameters of their own.

Like a posterior, a prior is a small serializable description whose variables live in a layer. The
penalty of a factor is `divergence`, one term per entry, plus `hyper_divergence`, the term of the
prior's own parameters, which counts once and not per member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import positive
from tfp_rank1.divergence import kl_divergence, kl_from_random_normal
from tfp_rank1.initializers import InverseSoftplus
from tfp_rank1.posteriors import (
    DEFAULT_HEAVY_PRIOR_SCALE,
    DEFAULT_SPREAD,
    AddWeight,
    Posterior,
    Variables,
    default_start,
    softplus_scale,
)
from tfp_rank1.serialization import Configurable, lookup, registered

__all__ = [
    "ALL",
    "Cauchy",
    "EmpiricalBayesNormal",
    "FactorState",
    "HalfCauchy",
    "HierarchicalNormal",
    "LogNormal",
    "Normal",
    "NormalWithTiedMean",
    "NormalWithTrainableStddev",
    "Parameters",
    "Prior",
    "default_for",
    "default_pair",
    "get",
]

Parameters = Mapping[str, Any]


class FactorState(NamedTuple):
    """What a prior needs to know about a factor.

    Attributes:
        q: the posterior, batch shape `[members, dim]`.
        center: the neutral value of the factor, 1 or 0.
        average_members: True if the KL is averaged over members, False if it is summed.
    """

    q: tfd.Distribution
    center: float
    average_members: bool


class Prior(Configurable):
    """Base class of the priors.

    A prior with `mean=None` has its mean at the neutral value of the factor: 1 for multiplicative
    factors, 0 for additive ones.
    """

    def build(self, add_weight: AddWeight, shape: tuple[int, ...]) -> Variables:
        """Create the prior's own variables; most priors have none.

        Args:
            add_weight: `add_weight(name, shape, initializer)` of the layer that owns the variables.
            shape: shape of the factor, `[members, dim]`.

        Returns:
            The variables by parameter name.
        """
        return {}

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        """The prior as a distribution whose batch shape broadcasts against that of q.

        Args:
            parameters: the variables that `build` returned.
            factor: the factor and its posterior, to which some priors are tied.
        """
        raise NotImplementedError

    def divergence(self, parameters: Parameters, factor: FactorState, seed: tf.Tensor) -> tf.Tensor:
        """`KL(q || p)` per entry, `[members, dim]`, in nats.

        Args:
            parameters: the variables that `build` returned.
            factor: the factor and its posterior q.
            seed: int32 `[2]`, for a KL that has no closed form.
        """
        p = self.distribution(parameters, factor)
        return kl_divergence(factor.q, p, seed)

    def hyper_divergence(
        self, parameters: Parameters, factor: FactorState, seed: tf.Tensor
    ) -> tf.Tensor | None:
        """The term of the prior's own parameters, scalar, in nats; None for a prior without any."""
        return None

    def check_posterior(self, posterior: Posterior) -> None:
        """Refuse a posterior whose KL from this prior is infinite or constant.

        Raises:
            ValueError: for such a posterior; the message names another prior and posterior.
        """


def _cast(factor: FactorState, *values: float) -> list[tf.Tensor]:
    return [tf.cast(value, factor.q.dtype) for value in values]


def _refuse(
    prior: Prior, posterior: Posterior, reason: str, instead: str, value: str = "infinite"
) -> None:
    raise ValueError(
        f"posterior={type(posterior).__name__} with prior={type(prior).__name__}: the KL is "
        f"{value}, because {reason}. Use {instead}."
    )


class _NormalPrior(Prior):
    """Base of priors that are Normal given their parameters."""

    def __init__(self, mean: float | None = None) -> None:
        self.mean = None if mean is None else float(mean)

    def _mean(self, factor: FactorState) -> tf.Tensor:
        mean = factor.center if self.mean is None else self.mean
        return tf.cast(mean, factor.q.dtype)

    def check_posterior(self, posterior: Posterior) -> None:
        if not posterior.finite_variance:
            _refuse(
                self,
                posterior,
                "the posterior's second moment is",
                "a Cauchy or HalfCauchy prior, or a posterior with finite variance",
            )


@registered("tfp_rank1.priors")
class Normal(_NormalPrior):
    """`N(mean, stddev^2)`, the same for every entry.

    KL: closed form for Normal and LogNormal posteriors.

    Args:
        mean: mean of every entry. Defaults to None, the neutral value of the factor.
        stddev: standard deviation, above 0, in units of the factor. Defaults to 0.1.

    Example:
    ```python
    r1.layers.DenseRank1(10, ensemble_size=4, prior=r1.priors.Normal(1.0, 0.05))
    ```
    """

    def __init__(self, mean: float | None = None, stddev: float = DEFAULT_SPREAD) -> None:
        super().__init__(mean)
        self.stddev = positive("stddev", stddev)

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.Normal(self._mean(factor), *_cast(factor, self.stddev))

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "stddev": self.stddev}


@registered("tfp_rank1.priors")
class NormalWithTiedMean(_NormalPrior):
    """`N(E_q, stddev^2)`: the prior follows the posterior's mean, so only the spread costs.

    KL: closed form for Normal and LogNormal posteriors.

    Args:
        stddev: standard deviation, above 0, in units of the factor. Defaults to 0.1.
    """

    def __init__(self, stddev: float = DEFAULT_SPREAD) -> None:
        super().__init__()
        self.stddev = positive("stddev", stddev)

    def check_posterior(self, posterior: Posterior) -> None:
        super().check_posterior(posterior)
        if not posterior.stochastic:
            instead = "a Normal prior, or a posterior with a spread"
            _refuse(self, posterior, "the prior follows the point", instead, "constant")

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.Normal(factor.q.mean(), *_cast(factor, self.stddev))

    def get_config(self) -> dict[str, Any]:
        return {"stddev": self.stddev}


@registered("tfp_rank1.priors")
class NormalWithTrainableStddev(_NormalPrior):
    """`N(mean, softplus(rho)^2)` with a trained standard deviation per entry.

    KL: closed form for Normal and LogNormal posteriors. The standard deviation has no prior of its
    own, unlike the variance of `EmpiricalBayesNormal` and the scale of `HierarchicalNormal`.

    Args:
        mean: mean of every entry. Defaults to None, the neutral value of the factor.
        stddev: standard deviation at the start, above 0. Defaults to 0.1.
    """

    def __init__(self, mean: float | None = None, stddev: float = DEFAULT_SPREAD) -> None:
        super().__init__(mean)
        self.stddev = positive("stddev", stddev)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...]) -> Variables:
        return {"rho": add_weight("rho", shape, InverseSoftplus(self.stddev))}

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.Normal(self._mean(factor), softplus_scale(parameters["rho"]))

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "stddev": self.stddev}


@registered("tfp_rank1.priors")
class EmpiricalBayesNormal(_NormalPrior):
    """`N(mean, v)` with `v ~ InverseGamma(concentration, scale)` set to its optimum.

    With S the sum of `Var_q + (E_q - mean)^2` over the n entries of one member,

        v = (mean over members of S + 2 scale) / (n + 2 concentration + 2)

    minimises `KL(q || N(mean, v)) - log InverseGamma(v)`. For `kl_reduction="sum"`, S and n are
    those of all members together.

    KL: closed form for Normal and LogNormal posteriors. The hyperprior's term, a log density,
    counts once and may be negative.

    Args:
        mean: mean of every entry. Defaults to None, the neutral value of the factor.
        variance_concentration: shape of the inverse gamma, above 0. Defaults to 2.01.
        variance_scale: scale of the inverse gamma, above 0. Defaults to 0.0101, with which the
            mean of the inverse gamma is 0.1^2.

    Source: Dusenberry et al. (2020).
    """

    def __init__(
        self,
        mean: float | None = None,
        variance_concentration: float = 2.01,
        variance_scale: float = 0.0101,
    ) -> None:
        super().__init__(mean)
        self.variance_concentration = positive("variance_concentration", variance_concentration)
        self.variance_scale = positive("variance_scale", variance_scale)

    def variance(self, factor: FactorState) -> tf.Tensor:
        """The optimal v, scalar."""
        q = factor.q
        # The reference code has `E_q^2` in place of `(E_q - mean)^2`, which is wrong unless the
        # mean is 0.
        second_moment = q.variance() + tf.math.squared_difference(q.mean(), self._mean(factor))
        per_member = tf.reduce_sum(second_moment, axis=-1)
        entries = tf.cast(tf.shape(second_moment)[-1], q.dtype)
        if factor.average_members:
            total = tf.reduce_mean(per_member)
        else:
            total = tf.reduce_sum(per_member)
            entries *= tf.cast(tf.size(per_member), q.dtype)
        v = (total + 2.0 * self.variance_scale) / (
            entries + 2.0 * self.variance_concentration + 2.0
        )
        # At a minimum in v the gradient through v is 0.
        return tf.stop_gradient(v)

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.Normal(self._mean(factor), tf.sqrt(self.variance(factor)))

    def hyper_divergence(
        self, parameters: Parameters, factor: FactorState, seed: tf.Tensor
    ) -> tf.Tensor | None:
        hyperprior = tfd.InverseGamma(
            tf.cast(self.variance_concentration, factor.q.dtype),
            tf.cast(self.variance_scale, factor.q.dtype),
        )
        return -hyperprior.log_prob(self.variance(factor))

    def get_config(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "variance_concentration": self.variance_concentration,
            "variance_scale": self.variance_scale,
        }


@registered("tfp_rank1.priors")
class HierarchicalNormal(_NormalPrior):
    """`N(mean, tau^2)` with `tau ~ HalfCauchy(0, scale)`, one tau for all entries of a factor.

    The posterior of tau is `LogNormal(m, s)`, trained with the factor. An entry's divergence is

        E_tau KL(q || N(mean, tau^2))
            = m + log(2 pi) / 2 + exp(2 s^2 - 2 m) / 2 * (Var_q + (E_q - mean)^2) - H(q)

    in closed form for Normal and LogNormal posteriors. The term of tau counts once:
    `KL(LogNormal(m, s) || HalfCauchy(0, scale))`, a Monte Carlo estimate. Training thus learns the
    spread of the whole factor, and pulls entries that the data do not need to the mean together.

    Args:
        mean: mean of every entry. Defaults to None, the neutral value of the factor.
        scale: scale of the half-Cauchy hyperprior on tau, above 0. Defaults to 0.1.

    Source: Gelman (2006), "Prior distributions for variance parameters in hierarchical models".
    """

    def __init__(self, mean: float | None = None, scale: float = DEFAULT_SPREAD) -> None:
        super().__init__(mean)
        self.scale = positive("scale", scale)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...]) -> Variables:
        start = keras.ops.log(self.scale)
        return {
            "tau_loc": add_weight("tau_loc", (1,), keras.initializers.Constant(float(start))),
            "tau_rho": add_weight("tau_rho", (1,), InverseSoftplus(DEFAULT_SPREAD)),
        }

    def tau_posterior(self, parameters: Parameters) -> tfd.Distribution:
        """The posterior of tau, `LogNormal(m, s)`, batch shape `[1]`."""
        return tfd.LogNormal(
            tf.convert_to_tensor(parameters["tau_loc"]), softplus_scale(parameters["tau_rho"])
        )

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        """`N(mean, tau^2)` at the posterior median of tau."""
        return tfd.Normal(
            self._mean(factor),
            tf.exp(tf.convert_to_tensor(parameters["tau_loc"])),
        )

    def divergence(self, parameters: Parameters, factor: FactorState, seed: tf.Tensor) -> tf.Tensor:
        tau = self.tau_posterior(parameters)
        precision = tf.exp(2.0 * tau.scale**2 - 2.0 * tau.loc)
        return kl_from_random_normal(factor.q, self._mean(factor), tau.loc, precision, seed)

    def hyper_divergence(
        self, parameters: Parameters, factor: FactorState, seed: tf.Tensor
    ) -> tf.Tensor | None:
        tau = self.tau_posterior(parameters)
        hyperprior = tfd.HalfCauchy(
            tf.zeros((), factor.q.dtype), tf.cast(self.scale, factor.q.dtype)
        )
        # Many draws of one scalar cost nothing.
        return tf.reduce_sum(kl_divergence(tau, hyperprior, seed, num_samples=256))

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "scale": self.scale}


@registered("tfp_rank1.priors")
class Cauchy(Prior):
    """`Cauchy(loc, scale)`: heavy tails let single entries leave the centre.

    KL: closed form for Cauchy posteriors, Monte Carlo for all others.

    Args:
        loc: median of every entry. Defaults to None, the neutral value of the factor.
        scale: half width at half maximum, above 0. Defaults to 0.01. The paper's scale of 0.1 holds
            the scale of Cauchy posteriors up, and small nets do not train.

    Source: Dusenberry et al. (2020).
    """

    def __init__(self, loc: float | None = None, scale: float = DEFAULT_HEAVY_PRIOR_SCALE) -> None:
        self.loc = None if loc is None else float(loc)
        self.scale = positive("scale", scale)

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        loc = factor.center if self.loc is None else self.loc
        return tfd.Cauchy(*_cast(factor, loc, self.scale))

    def get_config(self) -> dict[str, Any]:
        return {"loc": self.loc, "scale": self.scale}


class _PositivePrior(Prior):
    """Base of priors with support on the positive numbers."""

    def check_posterior(self, posterior: Posterior) -> None:
        if not posterior.positive:
            _refuse(
                self,
                posterior,
                "the posterior reaches values at or below 0, where the prior has no mass",
                "a LogNormal or HalfCauchy posterior, or a Normal or Cauchy prior",
            )


@registered("tfp_rank1.priors")
class LogNormal(_PositivePrior):
    """`LogNormal(loc, scale)`: positive, median `exp(loc)`.

    KL: closed form for LogNormal posteriors, Monte Carlo for HalfCauchy.

    Args:
        loc: mean of the logarithm. Defaults to 0, for a median of 1.
        scale: standard deviation of the logarithm, above 0. Defaults to 0.1.
    """

    def __init__(self, loc: float = 0.0, scale: float = DEFAULT_SPREAD) -> None:
        self.loc = float(loc)
        self.scale = positive("scale", scale)

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.LogNormal(*_cast(factor, self.loc, self.scale))

    def get_config(self) -> dict[str, Any]:
        return {"loc": self.loc, "scale": self.scale}


@registered("tfp_rank1.priors")
class HalfCauchy(_PositivePrior):
    """`HalfCauchy(loc, scale)` on `[loc, inf)`.

    KL: Monte Carlo for LogNormal and HalfCauchy posteriors.

    Args:
        loc: lower end of the support, at most 0, since posteriors reach down to 0. Defaults to 0.
        scale: scale, above 0. Defaults to 1.

    Raises:
        ValueError: for a `loc` above 0, with which the KL would be infinite.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        if float(loc) > 0.0:
            raise ValueError(
                "Argument `loc` of a HalfCauchy prior must be at most 0: positive posteriors "
                "reach down to 0, and mass below the prior's support makes the KL infinite. "
                f"Received: loc={loc}"
            )
        self.loc = float(loc)
        self.scale = positive("scale", scale)

    def distribution(self, parameters: Parameters, factor: FactorState) -> tfd.Distribution:
        return tfd.HalfCauchy(
            tf.cast(self.loc, factor.q.dtype), tf.cast(self.scale, factor.q.dtype)
        )

    def get_config(self) -> dict[str, Any]:
        return {"loc": self.loc, "scale": self.scale}


# The priors that a string can name.
ALL: tuple[type[Prior], ...] = (
    Normal,
    NormalWithTiedMean,
    NormalWithTrainableStddev,
    EmpiricalBayesNormal,
    HierarchicalNormal,
    Cauchy,
    LogNormal,
    HalfCauchy,
)


def get(identifier: Any) -> Prior:
    """A prior from an object, a class, a name such as `"normal"`, or a config.

    Raises:
        ValueError: for an unknown name; the message lists the known names.
    """
    return lookup(identifier, Prior, ALL, "prior")


def default_for(posterior: Posterior) -> Prior | None:
    """The default prior of a posterior, by its family's `default_prior`.

    The Normal families get a Normal prior. Cauchy, HalfCauchy and LogNormal get the prior of their
    own family; from a Normal prior the KL of the heavy tails would be infinite. Points get None.
    """
    return None if posterior.default_prior is None else get(posterior.default_prior)


def default_pair() -> tuple[Posterior, Prior]:
    """The posterior and prior of a multiplicative factor for which neither is given.

    The prior follows the means, so that signs cost nothing.
    """
    return default_start(), NormalWithTiedMean()
