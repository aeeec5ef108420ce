"""Layers for the architectures: rank-1 layers, or stock layers for a net without members."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1 import layers, posteriors, priors
from tfp_rank1.checks import choice
from tfp_rank1.layers.rank1 import SEED_STEP
from tfp_rank1.model import BayesianModel

__all__ = [
    "Parts",
    "input_of",
]

# Batch normalization has these values in the reference code.
MOMENTUM, EPSILON = 0.9, 1e-5


class Parts:
    """Makes the layers of one net, all with the same factors, penalties and priors.

    Args:
        ensemble_size: number of members K; None for stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on kernels, biases, scales and offsets; 0 for
            no penalty.
        prior_stddev: standard deviation of the prior of Normal posteriors to which `rank1` gives no
            prior; None for `default_stddev`. The prior's mean is the value of no perturbation.
        default_stddev: standard deviation that the architecture has by default; None for the start
            and the prior that layers have by themselves.
        rank1: arguments of `tfp_rank1.layers.Rank1Mixin`.
        batch_normalization: `"shared"`, one for all members; or `"member"`, one per member.

    Raises:
        ValueError: for arguments of factors without members, or for a `prior_stddev` that no
            factor would use.
    """

    def __init__(
        self,
        ensemble_size: int | None,
        l2: float,
        prior_stddev: float | None,
        default_stddev: float | None,
        rank1: dict[str, Any],
        batch_normalization: str = "shared",
    ) -> None:
        if ensemble_size is None and rank1:
            raise ValueError(
                "A net without members, ensemble_size=None, has no factors. "
                f"Received: {sorted(rank1)}"
            )
        self.ensemble_size, self.l2 = ensemble_size, l2
        kinds = ("shared", "member")
        self.by_member = choice("batch_normalization", batch_normalization, kinds) == "member"
        self.rank1 = {**rank1, "ensemble_size": ensemble_size}
        self._seed = rank1.get("seed")
        without_prior = [] if ensemble_size is None else _normal_without_prior(rank1)
        # A prior of mean None has the factor's centre: 1, or 0 if additive.
        stddev = default_stddev if prior_stddev is None else prior_stddev
        if stddev is not None:
            self.rank1 |= {f"{name}_prior": priors.Normal(None, stddev) for name in without_prior}
        if prior_stddev is not None and not without_prior:
            raise ValueError(
                "Argument `prior_stddev` is for Normal posteriors without a prior of their own. "
                f"Received: prior_stddev={prior_stddev} with {sorted(rank1)}"
            )

    def layer(self, stock: str, *args: Any, **kwargs: Any) -> Any:
        """A layer by the name of its stock layer, with the penalty on kernel and bias."""
        if "use_bias" not in kwargs or kwargs["use_bias"]:
            kwargs.setdefault("bias_regularizer", self._penalty())
        kwargs.setdefault("kernel_regularizer", self._penalty())
        return self.without_penalty(stock, *args, **kwargs)

    def without_penalty(self, stock: str, *args: Any, **kwargs: Any) -> Any:
        """A layer by the name of its stock layer."""
        if self.ensemble_size is None:
            return getattr(keras.layers, stock)(*args, **kwargs)
        # Layers with the same seed would have the same draws.
        if self._seed is not None:
            self.rank1["seed"] = self._seed
            self._seed += SEED_STEP
        return getattr(layers, f"{stock}Rank1")(*args, **kwargs, **self.rank1)

    def convolution(self, filters: int, kernel_size: int, strides: int) -> Any:
        """A square 2-D convolution of a residual net, without a bias."""
        return self.layer(
            "Conv2D",
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )

    def batch_normalization(self, **kwargs: Any) -> Any:
        """Batch normalization with the penalty on scale and offset."""
        kwargs = {
            "momentum": MOMENTUM,
            "epsilon": EPSILON,
            "beta_regularizer": self._penalty(),
            "gamma_regularizer": self._penalty(),
            **kwargs,
        }
        if self.by_member and self.ensemble_size is not None:
            return layers.EnsembleBatchNormalization(self.ensemble_size, **kwargs)
        return keras.layers.BatchNormalization(**kwargs)

    def start(self, inputs: Any) -> Any:
        """The inputs, tiled for the members."""
        members = self.ensemble_size
        return inputs if members is None else layers.TileMembers(members)(inputs)

    def model(self, inputs: Any, outputs: Any, likelihood: Any, name: str) -> BayesianModel:
        """The model, with outputs split by member."""
        if self.ensemble_size is not None:
            outputs = layers.SplitMembers(self.ensemble_size)(outputs)
        return BayesianModel(inputs, outputs, likelihood=likelihood, name=name)

    def _penalty(self) -> Any:
        return keras.regularizers.L2(self.l2) if self.l2 else None


def input_of(input_shape: Any) -> Any:
    """A Keras input for examples of shape `input_shape`.

    Raises:
        ValueError: unless `input_shape` is a list or tuple.
    """
    if not isinstance(input_shape, (list, tuple)):
        raise ValueError(
            "Argument `input_shape` must be a tuple, the shape of one example: (28, 28, 1), or "
            f"(8,) for 8 numbers. Received: input_shape={input_shape!r}"
        )
    return keras.Input(tuple(input_shape))


def _normal_without_prior(rank1: dict[str, Any]) -> list[str]:
    """Names of the factors, among r and s, that would get a Normal prior by default."""
    if "prior" in rank1:
        return []
    shared = rank1.get("posterior", "normal")
    return [
        name
        for name in ("r", "s")
        if f"{name}_prior" not in rank1
        and posteriors.get(rank1.get(f"{name}_posterior") or shared).default_prior == "normal"
    ]
