"""What the architectures share: rank-1 layers, or, without members, the stock ones."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1 import layers, priors
from tfp_rank1.model import BayesianModel

# Of batch normalization in the reference code.
MOMENTUM, EPSILON = 0.9, 1e-5


class Parts:
    """Layers of one net.

    Args:
        ensemble_size: number of members K; None for stock layers.
        l2: of the penalty `l2 sum(w^2)` on kernels, biases, scales and offsets; 0 for none.
        prior_stddev: of the prior `N(1, prior_stddev^2)` of the factors, unless `rank1` has one.
        batch_normalization: `"shared"` or `"member"`.
        rank1: arguments of `tfp_rank1.layers.Rank1Mixin`.
    """

    def __init__(
        self,
        ensemble_size: int | None,
        l2: float,
        prior_stddev: float,
        rank1: dict[str, Any],
        batch_normalization: str = "shared",
    ) -> None:
        if batch_normalization not in ("shared", "member"):
            raise ValueError(
                "Argument `batch_normalization` must be 'shared' or 'member'. "
                f"Received: batch_normalization={batch_normalization!r}"
            )
        if ensemble_size is None and rank1:
            raise ValueError(
                "A net without members, ensemble_size=None, has no factors. "
                f"Received: {sorted(rank1)}"
            )
        self.ensemble_size, self.l2 = ensemble_size, l2
        self.by_member = batch_normalization == "member"
        has_default = rank1.get("posterior", "normal") == "normal"
        is_multiplicative = rank1.get("perturbation", "multiplicative") == "multiplicative"
        if has_default and is_multiplicative and ensemble_size is not None:
            rank1 = {"prior": priors.Normal(1.0, prior_stddev), **rank1}
        self.rank1 = {**rank1, "ensemble_size": ensemble_size}

    def layer(self, stock: str, *args: Any, **kwargs: Any) -> Any:
        """A layer by the name of the stock one, with its penalties."""
        if "use_bias" not in kwargs or kwargs["use_bias"]:
            kwargs.setdefault("bias_regularizer", self._penalty())
        kwargs.setdefault("kernel_regularizer", self._penalty())
        return self.without_penalty(stock, *args, **kwargs)

    def without_penalty(self, stock: str, *args: Any, **kwargs: Any) -> Any:
        """A layer by the name of the stock one."""
        if self.ensemble_size is None:
            return getattr(keras.layers, stock)(*args, **kwargs)
        return getattr(layers, f"{stock}Rank1")(*args, **kwargs, **self.rank1)

    def batch_normalization(self, **kwargs: Any) -> Any:
        """Batch normalization, with its penalties."""
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
        """Inputs as the members see them."""
        members = self.ensemble_size
        return inputs if members is None else layers.TileMembers(members)(inputs)

    def model(self, inputs: Any, outputs: Any, likelihood: Any, name: str) -> BayesianModel:
        """The model, its outputs split by members."""
        if self.ensemble_size is not None:
            outputs = layers.SplitMembers(self.ensemble_size)(outputs)
        return BayesianModel(inputs, outputs, likelihood=likelihood, name=name)

    def _penalty(self) -> Any:
        return keras.regularizers.L2(self.l2) if self.l2 else None
