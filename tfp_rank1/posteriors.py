"""Posteriors: the variational families of a factor.

A posterior is a small serializable description. Its `build` creates variables in a layer, its
`distribution` turns these variables into a `tfd.Distribution`. One description may serve any number
of factors and layers, because all state lives in the layers.

A scale is `softplus(rho) + 1e-6`; the constant keeps a KL finite where softplus underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.checks import positive
from tfp_rank1.initializers import InverseSoftplus, WideSigns
from tfp_rank1.random import normal
from tfp_rank1.serialization import Configurable, lookup, registered

__all__ = [
    "ALL",
    "DEFAULT_HEAVY_PRIOR_SCALE",
    "DEFAULT_HEAVY_SCALE",
    "DEFAULT_SCALE",
    "DEFAULT_SPREAD",
    "SCALE_FLOOR",
    "AddWeight",
    "Cauchy",
    "Deterministic",
    "HalfCauchy",
    "LogNormal",
    "MixtureOfDeltas",
    "Normal",
    "NormalFixedStddev",
    "NormalSharedStddev",
    "Parameters",
    "Posterior",
    "Variables",
    "default_start",
    "family",
    "get",
    "softplus_scale",
]

AddWeight = Callable[..., keras.Variable]
Variables = dict[str, keras.Variable]
Parameters = Mapping[str, Any]

# Means start from N(centre, 0.1^2), which is the Normal family's default prior: the members differ,
# and their means cost only half a nat per entry.
DEFAULT_SPREAD = 0.1
# Scales start at sqrt(p / (1 - p)), the noise of dropout with p = 1e-3.
DEFAULT_SCALE = math.sqrt(1e-3 / (1.0 - 1e-3))
# Layers clip heavy-tailed draws to [-10, 10]. The clipped draws of a Cauchy with scale g have a
# variance of about 4 * 10 * g / pi, so this g gives about the standard deviation above.
DEFAULT_HEAVY_SCALE = 1e-4
# Chosen on held-out parts of UCI sets. A prior scale of 0.1 holds the posterior's scale up and does
# far worse; 0.001 does as well, but pulls too hard for SGD at means so near to 1. At the start,
# means that differ cost 7 nats per entry under this prior.
DEFAULT_HEAVY_PRIOR_SCALE = 1e-2
SCALE_FLOOR = 1e-6


def softplus_scale(rho: Any) -> tf.Tensor:
    """`softplus(rho) + 1e-6`."""
    return tf.nn.softplus(tf.convert_to_tensor(rho)) + SCALE_FLOOR


class Posterior(Configurable):
    """Base class of the variational families.

    A subclass creates its variables in `build` and reads them in `distribution`. Parameters may
    have extra axes, so the same code serves `[members, dim]` and `[members, rows, dim]`. Layers,
    priors, recipes and `convert` use the attributes and methods below, and never ask for the class
    of a posterior.

    Attributes:
        stochastic: whether samples differ; False for a point.
        positive: whether every sample is positive.
        finite_variance: whether the second moment exists.
        symmetric: whether samples lie around `mean` symmetrically, as `sampling="flipout"` needs. A
            subclass with a `distribution` or a `sample` of its own does not inherit it.
        default_prior: the name, in `tfp_rank1.priors`, of the prior that a factor gets by default;
            None for no prior.
    """

    stochastic: ClassVar[bool] = True
    positive: ClassVar[bool] = False
    finite_variance: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    default_prior: ClassVar[str | None] = "normal"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Draws of its own may be skew: their class has to say that they are not.
        own = cls.__dict__
        if ("sample" in own or "distribution" in own) and "symmetric" not in own:
            cls.symmetric = False

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        """Create the variables.

        Args:
            add_weight: `add_weight(name, shape, initializer)` of the layer that owns the variables.
            shape: shape of the factor, `[members, dim]`.
            center: the neutral value of the factor, which leaves the layer unperturbed: 1 for
                multiplicative factors, 0 for additive ones.

        Returns:
            The variables by parameter name.
        """
        raise NotImplementedError

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        """The distribution with the given parameters; its batch shape is theirs."""
        raise NotImplementedError

    def mean(self, parameters: Parameters) -> tf.Tensor:
        """The posterior mean; for a family without a mean, the median."""
        return self.distribution(parameters).mean()

    def sample(
        self, parameters: dict[str, tf.Tensor], rows: int | tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Independent draws `[members, rows, dim]`, differentiable in the parameters.

        Args:
            parameters: with an axis for the rows, `[members, 1, dim]`.
            rows: number of draws per member.
            seed: int32 `[2]`.
        """
        # The rows belong into the batch shape: `sample(rows)` would put the rows before the members
        # and cost a transpose of the whole draw. It is enough to spread one parameter over rows.
        name, value = next(iter(parameters.items()))
        ones = [1] * (value.shape.rank - 2)
        spread = {**parameters, name: value + tf.zeros([1, rows, *ones], value.dtype)}
        return self.distribution(spread).sample(seed=seed)

    def widened(self, draws: tf.Tensor, parameters: Parameters, variance_factor: Any) -> tf.Tensor:
        """Draws whose variance is c times that of the posterior.

            mean + sqrt(c) (draw - mean)

        Of a positive family the logarithms are widened, `mean (draw / mean)^sqrt(c)`, so that draws
        stay positive.

        Args:
            draws: `[members, rows, dim]`.
            parameters: as for `sample`.
            variance_factor: c, at least 0, a number or a scalar tensor.
        """
        mean, root = self.mean(parameters), tf.sqrt(tf.cast(variance_factor, draws.dtype))
        if self.positive:
            return mean * tf.pow(draws / mean, root)
        return mean + root * (draws - mean)

    def moments(
        self,
        parameters: Parameters,
        variance_factor: Any = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of what `widened` gives, in the shape of the parameters.

        Args:
            parameters: as for `distribution`.
            variance_factor: c of `widened`. Defaults to None: 1.
            bounds: range to which draws are clipped. A family with a finite variance is never
                clipped and does not look at it.

        Raises:
            ValueError: in the base class, for a positive family at another c than 1: its widened
                draws have moments of their own.
        """
        distribution = self.distribution(parameters)
        mean, variance = distribution.mean(), distribution.variance()
        if variance_factor is None:
            return mean, variance
        if self.positive:
            raise ValueError(
                f"The family {type(self).__name__} does not say which moments it has once it is "
                "widened by `calibrate`: override `moments`. "
                f"Received: variance_factor={variance_factor}"
            )
        return mean, tf.cast(variance_factor, variance.dtype) * variance

    def around(self, center: float) -> Posterior:
        """The same family with its mean at exactly `center` at the start.

        Returns:
            A new posterior; or the posterior itself, if its start was given by the user or is
            documented as its own.

        Raises:
            ValueError: in the base class: a start elsewhere would change a converted net unseen.
        """
        raise ValueError(
            f"The family {type(self).__name__} does not say how it starts at a mean of {center}: "
            f"override `around`. Received: posterior={self!r}"
        )

    @classmethod
    def starting_at(cls, mean_initializer: Any, spread: float) -> Posterior:
        """A posterior of this family with the given start of its means and its spread.

        Args:
            mean_initializer: a Keras initializer; None for the family's default.
            spread: scale or standard deviation at the start, above 0; a point ignores it.

        Raises:
            ValueError: for a family that has no such start, as in the base class.
        """
        raise ValueError(
            f"The family {cls.__name__} has no start by mean and spread: override `starting_at`. "
            f"Received: mean_initializer={mean_initializer}, spread={spread}"
        )

    def assign_mean(self, variables: Variables, mean: Any) -> None:
        """Set the posterior mean to `mean`, `[members, dim]` or broadcast to this shape.

        Args:
            variables: the variables that `build` returned.
            mean: values that the family can take.

        Raises:
            ValueError: for a family that cannot have a given mean, as in the base class.
        """
        raise ValueError(
            f"The family {type(self).__name__} cannot be put at a given mean: override "
            f"`assign_mean`. Received: variables {sorted(variables)}"
        )


class _LocationScale(Posterior):
    """Families with a location per entry and a scale `softplus(rho)` per entry."""

    def __init__(self, mean_initializer: Any = None, scale: float = DEFAULT_SCALE) -> None:
        self.mean_initializer = keras.initializers.get(mean_initializer)
        self.scale = positive("scale", scale)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        return {
            "loc": self._add_loc(add_weight, shape, center),
            "rho": add_weight("rho", self._rho_shape(shape), InverseSoftplus(self.scale)),
        }

    def _add_loc(
        self, add_weight: AddWeight, shape: tuple[int, ...], center: float
    ) -> keras.Variable:
        initializer = self.mean_initializer
        if initializer is None:
            initializer = self._default_initializer(center)
        # Cloned: an unseeded Keras initializer that is used twice repeats its first draw.
        return add_weight("loc", shape, initializer.clone())

    def _default_initializer(self, center: float) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(center, DEFAULT_SPREAD)

    def _rho_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def around(self, center: float) -> Posterior:
        """The family with means at `center`, unless a `mean_initializer` was given."""
        if self.mean_initializer is not None:
            return self
        config = {**self.get_config(), "mean_initializer": self._initializer_at(center)}
        return type(self)(**config)

    def _initializer_at(self, center: float) -> keras.initializers.Initializer:
        """The initializer of `loc` for a posterior mean of `center`."""
        return keras.initializers.Constant(center)

    @classmethod
    def starting_at(cls, mean_initializer: Any, spread: float) -> Posterior:
        return cls(mean_initializer, spread)

    def assign_mean(self, variables: Variables, mean: Any) -> None:
        loc = variables["loc"]
        loc.assign(tf.broadcast_to(tf.cast(mean, loc.dtype), loc.shape))

    def get_config(self) -> dict[str, Any]:
        return {
            "mean_initializer": _serialize_initializer(self.mean_initializer),
            "scale": self.scale,
        }


@registered("tfp_rank1.posteriors")
class Normal(_LocationScale):
    """`N(loc, softplus(rho)^2)` per entry.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`, where
            the centre is 1 for multiplicative and 0 for additive factors.
        stddev: standard deviation at the start, above 0, in units of the factor.
            Defaults to 0.0316.

    Raises:
        ValueError: for a standard deviation that is not above 0.

    Example:
    ```python
    signs = r1.initializers.RandomSign(0.5)
    r1.layers.DenseRank1(10, posterior=r1.posteriors.Normal(signs, stddev=0.05))
    ```
    """

    symmetric = True

    def __init__(self, mean_initializer: Any = None, stddev: float = DEFAULT_SCALE) -> None:
        super().__init__(mean_initializer, positive("stddev", stddev))
        self.stddev = self.scale

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.Normal(tf.convert_to_tensor(parameters["loc"]), self._stddev(parameters))

    def sample(
        self, parameters: dict[str, tf.Tensor], rows: int | tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        return _normal_draws(parameters["loc"], self._stddev(parameters), rows, seed)

    def _stddev(self, parameters: Parameters) -> tf.Tensor:
        return softplus_scale(parameters["rho"])

    def get_config(self) -> dict[str, Any]:
        return {
            "mean_initializer": _serialize_initializer(self.mean_initializer),
            "stddev": self.stddev,
        }


def default_start(stddev: float = DEFAULT_SCALE) -> Normal:
    """`Normal(WideSigns(), stddev)`: the posterior of factors that were given nothing.

    Means of factors with 64 entries or more are signs, three of four of them positive, so that
    members differ from the start: else the mixture is one net. With as many negative signs nets on
    small sets learn too slowly. Under a prior around 1 a negative sign would cost 200 nats; the
    prior that belongs to this start follows the means, see `priors.default_pair`.

    Args:
        stddev: standard deviation, above 0. Defaults to that of any `Normal`.
    """
    return Normal(WideSigns(), stddev)


@registered("tfp_rank1.posteriors")
class NormalSharedStddev(Normal):
    """`N(loc, softplus(rho)^2)` with one standard deviation for all members and entries.

    Args: as for `Normal`.
    """

    def _rho_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * len(shape)


@registered("tfp_rank1.posteriors")
class NormalFixedStddev(Normal):
    """`N(loc, stddev^2)`: the mean is trained, the standard deviation stays as given.

    Args: as for `Normal`.
    """

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        return {"loc": self._add_loc(add_weight, shape, center)}

    def _stddev(self, parameters: Parameters) -> tf.Tensor:
        return tf.cast(self.stddev, tf.convert_to_tensor(parameters["loc"]).dtype)


@registered("tfp_rank1.posteriors")
class LogNormal(_LocationScale):
    """`exp(N(loc, softplus(rho)^2))` per entry: positive, median `exp(loc)`.

    Args:
        mean_initializer: Keras initializer of `loc`, the mean of the logarithm. Defaults to None:
            `N(log(centre), 0.1^2)`. Additive factors have the centre 0 and need an initializer.
        scale: standard deviation of the logarithm at the start, above 0. Defaults to 0.0316.
    """

    positive: ClassVar[bool] = True
    default_prior: ClassVar[str | None] = "log_normal"

    def _default_initializer(self, center: float) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(_log_center(self, center), DEFAULT_SPREAD)

    def _initializer_at(self, center: float) -> keras.initializers.Initializer:
        # The mean of exp(N(loc, scale^2)) is exp(loc + scale^2 / 2).
        return keras.initializers.Constant(_log_center(self, center) - self.scale**2 / 2)

    def assign_mean(self, variables: Variables, mean: Any) -> None:
        scale = softplus_scale(variables["rho"])
        super().assign_mean(variables, tf.math.log(mean) - tf.square(scale) / 2.0)

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.LogNormal(
            tf.convert_to_tensor(parameters["loc"]), softplus_scale(parameters["rho"])
        )

    def sample(
        self, parameters: dict[str, tf.Tensor], rows: int | tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        scale = softplus_scale(parameters["rho"])
        return tf.exp(_normal_draws(parameters["loc"], scale, rows, seed))

    def widened(self, draws: tf.Tensor, parameters: Parameters, variance_factor: Any) -> tf.Tensor:
        """`exp(N(loc, c softplus(rho)^2))`: c is the factor of the logarithm's variance."""
        loc, root = parameters["loc"], tf.sqrt(tf.cast(variance_factor, draws.dtype))
        return tf.exp(loc + root * (tf.math.log(draws) - loc))

    def moments(
        self,
        parameters: Parameters,
        variance_factor: Any = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`exp(loc + v / 2)` and `(exp(v) - 1) exp(2 loc + v)` with `v = c softplus(rho)^2`."""
        loc = tf.convert_to_tensor(parameters["loc"])
        v = tf.square(softplus_scale(parameters["rho"]))
        if variance_factor is not None:
            v *= tf.cast(variance_factor, v.dtype)
        mean = tf.exp(loc + v / 2.0)
        return mean, tf.math.expm1(v) * tf.square(mean)


class _HeavyTailed(_LocationScale):
    """Families without a variance, which start with a scale of their own."""

    finite_variance: ClassVar[bool] = False

    def __init__(self, mean_initializer: Any = None, scale: float = DEFAULT_HEAVY_SCALE) -> None:
        super().__init__(mean_initializer, scale)


@registered("tfp_rank1.posteriors")
class Cauchy(_HeavyTailed):
    """`Cauchy(loc, softplus(rho))` per entry: heavy tails and no mean; `mean()` is the median.

    A draw far from the rest makes a gradient that an optimizer with momentum carries on for many
    steps. So clip gradients, as in `keras.optimizers.Adam(1e-3, clipnorm=1.0)`.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`.
        scale: half width at half maximum at the start, above 0. Defaults to 1e-4. Layers clip the
            draws, which then have a standard deviation of 0.036, near the Normal family's default.
            The paper starts at 0.0316, which gives a standard deviation of 0.6.

    Source: Dusenberry et al. (2020).
    """

    symmetric = True

    default_prior: ClassVar[str | None] = "cauchy"

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.Cauchy(
            tf.convert_to_tensor(parameters["loc"]), softplus_scale(parameters["rho"])
        )

    def mean(self, parameters: Parameters) -> tf.Tensor:
        return tf.convert_to_tensor(parameters["loc"])

    def moments(
        self,
        parameters: Parameters,
        variance_factor: Any = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of draws that are clipped to finite bounds."""
        loc = tf.convert_to_tensor(parameters["loc"])
        scale = _widened_scale(softplus_scale(parameters["rho"]), variance_factor)
        # The density is 1 / (pi (1 + u^2)) for u = (draw - loc) / scale.
        return _clipped_cauchy_moments(loc, scale, bounds, 1.0 / math.pi, -math.pi / 2.0)


@registered("tfp_rank1.posteriors")
class HalfCauchy(_HeavyTailed):
    """`HalfCauchy(softplus(loc), softplus(rho))` per entry, on `[softplus(loc), inf)`.

    Softplus keeps the lower end above 0, inside the support of the positive priors: outside of it
    the KL would be infinite. The family has no mean; `mean()` is the median, the lower end plus the
    scale.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `softplus(loc)` starts
            around the centre. Additive factors have the centre 0 and need an initializer.
        scale: scale at the start, above 0. Defaults to 1e-4, for the reason given in `Cauchy`.
    """

    positive: ClassVar[bool] = True
    default_prior: ClassVar[str | None] = "half_cauchy"

    def around(self, center: float) -> Posterior:
        """The posterior itself: its lower end starts around the centre, and draws lie above it."""
        return self

    def assign_mean(self, variables: Variables, mean: Any) -> None:
        raise ValueError(
            "A HalfCauchy posterior has no mean. Use a Normal or LogNormal posterior. "
            "Received: posterior=HalfCauchy"
        )

    def _default_initializer(self, center: float) -> keras.initializers.Initializer:
        _log_center(self, center)  # refuses the centre of additive factors
        lower = math.log(math.expm1(center))
        return keras.initializers.RandomNormal(lower, DEFAULT_SPREAD)

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.HalfCauchy(softplus_scale(parameters["loc"]), softplus_scale(parameters["rho"]))

    def mean(self, parameters: Parameters) -> tf.Tensor:
        return softplus_scale(parameters["loc"]) + softplus_scale(parameters["rho"])

    def widened(self, draws: tf.Tensor, parameters: Parameters, variance_factor: Any) -> tf.Tensor:
        """A half Cauchy with the same lower end and `sqrt(c)` times the scale."""
        lower = softplus_scale(parameters["loc"])
        root = tf.sqrt(tf.cast(variance_factor, draws.dtype))
        return lower + root * (draws - lower)

    def moments(
        self,
        parameters: Parameters,
        variance_factor: Any = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of draws that are clipped to finite bounds."""
        lower = softplus_scale(parameters["loc"])
        scale = _widened_scale(softplus_scale(parameters["rho"]), variance_factor)
        # The density is 2 / (pi (1 + u^2)) for u = (draw - lower) / scale of at least 0.
        low = tf.maximum(lower, bounds[0])
        return _clipped_cauchy_moments(lower, scale, (low, bounds[1]), 2.0 / math.pi, 0.0)


@registered("tfp_rank1.posteriors")
class Deterministic(_LocationScale):
    """A point per entry: members differ, samples do not (BatchEnsemble).

    With a prior, training leads to the MAP: the penalty is `-log p(loc)`, since the KL of a point
    from a density is infinite.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`.

    Source: Wen et al. (2020), "BatchEnsemble".
    """

    stochastic: ClassVar[bool] = False
    default_prior: ClassVar[str | None] = None  # as in BatchEnsemble

    def __init__(self, mean_initializer: Any = None) -> None:
        super().__init__(mean_initializer)

    @classmethod
    def starting_at(cls, mean_initializer: Any, spread: float) -> Posterior:
        return cls(mean_initializer)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        return {"loc": self._add_loc(add_weight, shape, center)}

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.Deterministic(tf.convert_to_tensor(parameters["loc"]))

    def get_config(self) -> dict[str, Any]:
        return {"mean_initializer": _serialize_initializer(self.mean_initializer)}


@registered("tfp_rank1.posteriors")
class MixtureOfDeltas(Posterior):
    """A uniform mixture of `num_components` points per entry.

    With a prior, the penalty is the mean of `-log p(loc_c)` over the components c.

    Args:
        num_components: number of points, at least 1. Defaults to 5.
        mean_initializer: Keras initializer of the points `[members, dim, num_components]`.
            Defaults to None: `N(centre, 0.1^2)`.

    Raises:
        ValueError: for fewer points than 1.
    """

    default_prior: ClassVar[str | None] = None

    def __init__(self, num_components: int = 5, mean_initializer: Any = None) -> None:
        if int(num_components) < 1:
            raise ValueError(
                "Argument `num_components` must be at least 1. "
                f"Received: num_components={num_components}"
            )
        self.num_components = int(num_components)
        self.mean_initializer = keras.initializers.get(mean_initializer)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        initializer = self.mean_initializer
        if initializer is None:
            initializer = keras.initializers.RandomNormal(center, DEFAULT_SPREAD)
        return {"loc": add_weight("loc", (*shape, self.num_components), initializer.clone())}

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        loc = tf.convert_to_tensor(parameters["loc"])
        return tfd.MixtureSameFamily(
            tfd.Categorical(logits=tf.zeros_like(loc)), tfd.Deterministic(loc)
        )

    def mean(self, parameters: Parameters) -> tf.Tensor:
        return tf.reduce_mean(tf.convert_to_tensor(parameters["loc"]), axis=-1)

    def moments(
        self,
        parameters: Parameters,
        variance_factor: Any = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance over the points."""
        loc = tf.convert_to_tensor(parameters["loc"])
        variance = tf.math.reduce_variance(loc, axis=-1)
        if variance_factor is not None:
            variance *= tf.cast(variance_factor, variance.dtype)
        return tf.reduce_mean(loc, axis=-1), variance

    def around(self, center: float) -> Posterior:
        """The posterior itself: its points have a start of their own, around the centre."""
        return self

    def assign_mean(self, variables: Variables, mean: Any) -> None:
        """Set all points to the mean."""
        loc = variables["loc"]
        mean = tf.cast(mean, loc.dtype)[..., tf.newaxis]
        loc.assign(tf.broadcast_to(mean, loc.shape))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_components": self.num_components,
            "mean_initializer": _serialize_initializer(self.mean_initializer),
        }


# The posteriors that a string can name.
ALL: tuple[type[Posterior], ...] = (
    Normal,
    NormalSharedStddev,
    NormalFixedStddev,
    LogNormal,
    Cauchy,
    HalfCauchy,
    Deterministic,
    MixtureOfDeltas,
)


def family(name: str) -> type[Posterior]:
    """The class of a posterior by its name, such as `"normal"`.

    Raises:
        ValueError: for an unknown name; the message lists the known names.
    """
    return type(get(name))


def get(identifier: Any) -> Posterior:
    """A posterior from an object, a class, a name such as `"normal"`, or a config.

    Raises:
        ValueError: for an unknown name; the message lists the known names.
    """
    return lookup(identifier, Posterior, ALL, "posterior")


def _normal_draws(
    loc: tf.Tensor, scale: tf.Tensor, rows: int | tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """`loc + scale * z` with standard normal z, `[members, rows, dim]`."""
    members, _, dim = loc.shape
    return loc + scale * normal((members, rows, dim), seed)


def _widened_scale(scale: tf.Tensor, variance_factor: Any) -> tf.Tensor:
    """The scale of a heavy-tailed family that is widened by c: `sqrt(c) scale`."""
    if variance_factor is None:
        return scale
    return tf.sqrt(tf.cast(variance_factor, scale.dtype)) * scale


def _clipped_cauchy_moments(
    loc: tf.Tensor, scale: tf.Tensor, bounds: tuple[Any, Any], height: float, start: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of `loc + scale clip(u, a, b)`, u of density `height / (1 + u^2)`.

        int u du / (1 + u^2) = log(1 + u^2) / 2,      int u^2 du / (1 + u^2) = u - arctan u

    Args:
        loc: location of the draws.
        scale: their scale.
        bounds: range of the clipped draws, each a finite number or a tensor.
        height: the density at u = 0.
        start: arctan of the smallest u.
    """
    # Around loc and in units of the scale: a difference of second moments of the draws themselves
    # would lose the variance of a narrow posterior to rounding.
    a, b = ((tf.cast(bound, loc.dtype) - loc) / scale for bound in bounds)
    below = height * (tf.atan(a) - start)
    above = height * (math.pi / 2.0 - tf.atan(b))
    logarithms = tf.math.log1p(tf.square(b)) - tf.math.log1p(tf.square(a))
    first = a * below + b * above + 0.5 * height * logarithms
    inner = (b - tf.atan(b)) - (a - tf.atan(a))
    second = tf.square(a) * below + tf.square(b) * above + height * inner
    return loc + scale * first, tf.square(scale) * (second - tf.square(first))


def _serialize_initializer(initializer: Any) -> Any:
    return None if initializer is None else keras.initializers.serialize(initializer)


def _log_center(posterior: Posterior, center: float) -> float:
    """The logarithm of the centre, for a posterior that takes positive values only.

    Raises:
        ValueError: for a centre of 0.
    """
    if center <= 0.0:
        raise ValueError(
            f"posterior={type(posterior).__name__} only takes positive values and has no default "
            f"start around {center}, the neutral value of additive factors: pass "
            "`mean_initializer=`, or use a Normal or Cauchy posterior."
        )
    return math.log(center)
