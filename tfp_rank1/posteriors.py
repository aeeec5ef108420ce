"""Variational families of a factor: what is trained.

A posterior is a small serializable description. `build` creates its variables in a layer,
`distribution` turns them into a `tfd.Distribution`. One description may serve any number of
factors and layers: the state lives in the layer, never here.

Scales are `softplus(rho)`, floored at 1e-6 so that no KL becomes infinite by underflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1._registry import Configurable, lookup, positive, registered
from tfp_rank1.initializers import InverseSoftplus
from tfp_rank1.random import normal

AddWeight = Callable[..., keras.Variable]
Variables = dict[str, keras.Variable]
Parameters = Mapping[str, Any]

# Means start from N(centre, 0.1^2), the default prior of the Normal family itself, so that members
# differ and yet cost half a nat per entry; scales start at sqrt(p / (1 - p)), the noise of dropout
# at p = 1e-3.
DEFAULT_SPREAD = 0.1
DEFAULT_SCALE = math.sqrt(1e-3 / (1.0 - 1e-3))
# Heavy tails: clipped to [-10, 10], as layers clip them, draws of a Cauchy of scale g have a
# variance of about 4 * 10 * g / pi; this scale gives the standard deviation above.
DEFAULT_HEAVY_SCALE = 1e-4
# Of the prior, chosen on held-out parts of UCI sets: 0.1 holds the posterior's scale up and does
# far worse; 0.001 does alike, but pulls too hard for SGD at means so near 1. The price of means
# that differ is 7 nats per entry at first.
DEFAULT_HEAVY_PRIOR_SCALE = 1e-2
_SCALE_FLOOR = 1e-6


def softplus_scale(rho: Any) -> tf.Tensor:
    """`softplus(rho)`, at least 1e-6."""
    return tf.nn.softplus(tf.convert_to_tensor(rho)) + _SCALE_FLOOR


class Posterior(Configurable):
    """Base class of the variational families.

    A subclass creates its variables in `build` and reads them in `distribution`; the parameters
    may carry extra axes, so the same code serves `[members, dim]` and `[members, rows, dim]`.

    Attributes:
        stochastic: whether samples differ; a point posterior is not.
        positive: whether every sample is positive.
        finite_variance: whether the second moment exists.
    """

    stochastic: ClassVar[bool] = True
    positive: ClassVar[bool] = False
    finite_variance: ClassVar[bool] = True

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        """Create the variables.

        Args:
            add_weight: `add_weight(name, shape, initializer)` of the layer that owns them.
            shape: shape of the factor, `[members, dim]`.
            center: the value that leaves the layer unperturbed: 1 for multiplicative factors,
                0 for additive ones.

        Returns:
            The variables by parameter name.
        """
        raise NotImplementedError

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        """The distribution with the given parameters, batch shape that of the parameters."""
        raise NotImplementedError

    def mean(self, parameters: Parameters) -> tf.Tensor:
        """The posterior mean; the median where the family has no mean."""
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
        # The rows belong into the batch shape: sample(rows) would put them before the members
        # and cost a transpose of the whole draw.
        loc = parameters["loc"]
        ones = [1] * (loc.shape.rank - 2)
        spread = {**parameters, "loc": loc + tf.zeros([1, rows, *ones], loc.dtype)}
        return self.distribution(spread).sample(seed=seed)


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

    def get_config(self) -> dict[str, Any]:
        return {
            "mean_initializer": _serialize_initializer(self.mean_initializer),
            "scale": self.scale,
        }


@registered
class Normal(_LocationScale):
    """`N(loc, softplus(rho)^2)` per entry.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`, where
            the centre is 1 for multiplicative and 0 for additive factors.
        stddev: standard deviation at the start, above 0, in units of the factor.
            Defaults to 0.0316.

    Example:
    ```python
    DenseRank1(10, posterior=posteriors.Normal(mean_initializer=RandomSign(0.5), stddev=0.05))
    ```
    """

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


@registered
class NormalSharedStddev(Normal):
    """`N(loc, softplus(rho)^2)` with one standard deviation for all members and entries.

    Args: as for `Normal`.
    """

    def _rho_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * len(shape)


@registered
class NormalFixedStddev(Normal):
    """`N(loc, stddev^2)`: the mean is trained, the standard deviation stays as given.

    Args: as for `Normal`.
    """

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        return {"loc": self._add_loc(add_weight, shape, center)}

    def _stddev(self, parameters: Parameters) -> tf.Tensor:
        return tf.cast(self.stddev, tf.convert_to_tensor(parameters["loc"]).dtype)


@registered
class LogNormal(_LocationScale):
    """`exp(N(loc, softplus(rho)^2))` per entry: positive, median `exp(loc)`.

    Args:
        mean_initializer: Keras initializer of `loc`, the mean of the logarithm. Defaults to None:
            `N(log(centre), 0.1^2)`; additive factors have centre 0 and need one given.
        scale: standard deviation of the logarithm at the start, above 0. Defaults to 0.0316.
    """

    positive: ClassVar[bool] = True

    def _default_initializer(self, center: float) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(_log_center(self, center), DEFAULT_SPREAD)

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.LogNormal(
            tf.convert_to_tensor(parameters["loc"]), softplus_scale(parameters["rho"])
        )

    def sample(
        self, parameters: dict[str, tf.Tensor], rows: int | tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        scale = softplus_scale(parameters["rho"])
        return tf.exp(_normal_draws(parameters["loc"], scale, rows, seed))


class _HeavyTailed(_LocationScale):
    """Families without a variance."""

    finite_variance: ClassVar[bool] = False

    def __init__(self, mean_initializer: Any = None, scale: float = DEFAULT_HEAVY_SCALE) -> None:
        super().__init__(mean_initializer, scale)


@registered
class Cauchy(_HeavyTailed):
    """`Cauchy(loc, softplus(rho))` per entry: heavy tails, no mean (its `mean()` is the median).

    A draw far from the rest makes a gradient that an optimizer with momentum carries on for many
    steps: clip gradients, as in `keras.optimizers.Adam(1e-3, clipnorm=1.0)`.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`.
        scale: half width at half maximum at the start, above 0. Defaults to 1e-4: as layers clip
            the draws, a standard deviation of 0.036, near that of the Normal family's default. The
            paper starts at 0.0316, a standard deviation of 0.6.
    """

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.Cauchy(
            tf.convert_to_tensor(parameters["loc"]), softplus_scale(parameters["rho"])
        )

    def mean(self, parameters: Parameters) -> tf.Tensor:
        return tf.convert_to_tensor(parameters["loc"])


@registered
class HalfCauchy(_HeavyTailed):
    """`HalfCauchy(softplus(lower), softplus(rho))` per entry, on `[softplus(lower), inf)`.

    The lower end is kept at or above 0 so that the factor stays inside the support of the
    positive priors: a support that sticks out makes the KL infinite. It has no mean; `mean()` is
    the median, `loc + scale`.

    Args:
        mean_initializer: Keras initializer of `lower`. Defaults to None: `softplus(lower)` starts
            around the centre; additive factors have centre 0 and need one given.
        scale: scale at the start, above 0. Defaults to 1e-4: see `Cauchy`.
    """

    positive: ClassVar[bool] = True

    def _default_initializer(self, center: float) -> keras.initializers.Initializer:
        _log_center(self, center)
        lower = math.log(math.expm1(center))
        return keras.initializers.RandomNormal(lower, DEFAULT_SPREAD)

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.HalfCauchy(softplus_scale(parameters["loc"]), softplus_scale(parameters["rho"]))

    def mean(self, parameters: Parameters) -> tf.Tensor:
        return softplus_scale(parameters["loc"]) + softplus_scale(parameters["rho"])


@registered
class Deterministic(_LocationScale):
    """A point per entry: members differ, samples do not (BatchEnsemble).

    Against a prior it is trained towards the MAP: its penalty is `-log p(loc)`, since the KL of a
    point from a density is infinite.

    Args:
        mean_initializer: Keras initializer of `loc`. Defaults to None: `N(centre, 0.1^2)`.
    """

    stochastic: ClassVar[bool] = False

    def __init__(self, mean_initializer: Any = None) -> None:
        super().__init__(mean_initializer)

    def build(self, add_weight: AddWeight, shape: tuple[int, ...], center: float) -> Variables:
        return {"loc": self._add_loc(add_weight, shape, center)}

    def distribution(self, parameters: Parameters) -> tfd.Distribution:
        return tfd.Deterministic(tf.convert_to_tensor(parameters["loc"]))

    def get_config(self) -> dict[str, Any]:
        return {"mean_initializer": _serialize_initializer(self.mean_initializer)}


@registered
class MixtureOfDeltas(Posterior):
    """Per entry a uniform mixture of `num_components` points.

    Its penalty against a prior is the mean of `-log p(loc_c)` over the components.

    Args:
        num_components: number of points, at least 1. Defaults to 5.
        mean_initializer: Keras initializer of the points `[members, dim, num_components]`.
            Defaults to None: `N(centre, 0.1^2)`.
    """

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

    def get_config(self) -> dict[str, Any]:
        return {
            "num_components": self.num_components,
            "mean_initializer": _serialize_initializer(self.mean_initializer),
        }


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


def get(identifier: Any) -> Posterior:
    """A posterior from an object, a name such as `"normal"`, or a serialized config.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    return lookup(identifier, Posterior, ALL, "posterior")


def _normal_draws(
    loc: tf.Tensor, scale: tf.Tensor, rows: int | tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """`loc + scale * z` with z `[members, rows, dim]`."""
    members, _, dim = loc.shape
    return loc + scale * normal((members, rows, dim), seed)


def _serialize_initializer(initializer: Any) -> Any:
    return None if initializer is None else keras.initializers.serialize(initializer)


def _log_center(posterior: Posterior, center: float) -> float:
    if center <= 0.0:
        raise ValueError(
            f"posterior={type(posterior).__name__} only takes positive values and has no default "
            f"start around {center}, the neutral value of additive factors: pass "
            "`mean_initializer=`, or use a Normal or Cauchy posterior."
        )
    return math.log(center)
