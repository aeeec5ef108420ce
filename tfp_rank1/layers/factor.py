"""One random vector per member: its posterior, prior, variables, draws and KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1 import scopes
from tfp_rank1.posteriors import Posterior, Variables
from tfp_rank1.priors import FactorState, Prior
from tfp_rank1.random import as_drawn, coins, draw_scope, fold_in

__all__ = [
    "Factor",
]

if TYPE_CHECKING:
    import keras

# Folded into the seed of a draw for its signs: no factor has this number.
_FLIPS = 64


class Factor:
    """A random vector per member, `[members, dim]`, with a posterior and perhaps a prior.

    Args:
        name: `"r"`, `"s"`, `"bias"` or the like: the prefix of the names of its variables.
        posterior: the variational family that is trained.
        prior: the prior in its KL; None for no KL.
        center: the value that leaves the layer unperturbed: 1, or 0 if additive.
        average_members: whether the KL is averaged over members; else it is summed.

    Raises:
        ValueError: if the KL of the posterior from the prior is infinite.
    """

    def __init__(
        self,
        name: str,
        posterior: Posterior,
        prior: Prior | None,
        center: float,
        average_members: bool,
    ) -> None:
        if prior is not None:
            prior.check_posterior(posterior)
        self.name = name
        self.posterior = posterior
        self.prior = prior
        self.center = center
        self.average_members = average_members
        # A factor is no Keras layer: the layer that creates the variables tracks and saves them.
        self.posterior_variables: Variables = {}
        self.prior_variables: Variables = {}

    def build(self, layer: keras.layers.Layer, shape: tuple[int, int]) -> None:
        """Create the variables in `layer`, float32 under every dtype policy.

        Args:
            layer: the layer that owns the variables.
            shape: `[members, dim]`.
        """

        def add_weight(prefix: str) -> Any:
            def add(name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
                # autocast=False: a posterior in bfloat16 would lose its scale.
                return layer.add_weight(
                    name=f"{prefix}_{name}",
                    shape=shape,
                    initializer=initializer,
                    dtype="float32",
                    autocast=False,
                )

            return add

        self.posterior_variables = self.posterior.build(add_weight(self.name), shape, self.center)
        if self.prior is not None:
            self.prior_variables = self.prior.build(add_weight(f"{self.name}_prior"), shape)

    @property
    def variables(self) -> list[keras.Variable]:
        """Variables of the posterior, then those of the prior."""
        return [*self.posterior_variables.values(), *self.prior_variables.values()]

    def distribution(self) -> tfd.Distribution:
        """The posterior, batch shape `[members, dim]`.

        Raises:
            ValueError: if the layer is not built yet.
        """
        if not self.posterior_variables:
            raise ValueError(
                f"The posterior of factor '{self.name}' has no variables before its layer is "
                "built. Call the layer on an input first."
            )
        return self.posterior.distribution(self.posterior_variables)

    def prior_distribution(self) -> tfd.Distribution | None:
        """The prior, broadcastable to `[members, dim]`; None without a prior."""
        if self.prior is None:
            return None
        return self.prior.distribution(self.prior_variables, self._state())

    def _state(self) -> FactorState:
        return FactorState(self.distribution(), self.center, self.average_members)

    def mean(self) -> tf.Tensor:
        """The posterior mean (the median in a family without a mean), `[members, 1, dim]`."""
        return tf.expand_dims(self.posterior.mean(self.posterior_variables), 1)

    def assign_mean(self, mean: Any) -> None:
        """Put the posterior mean at `mean`, `[members, dim]` or broadcast to it."""
        self.posterior.assign_mean(self.posterior_variables, mean)

    def sample(self, rows: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Independent draws, `[members, rows, dim]`; `[members, 1, dim]` for a point.

        In the answers of a calibrated model their variance is c times that of the posterior.

        Args:
            rows: number of draws per member.
            seed: int32 `[2]`.
        """
        # Rows of a point would all be equal: one row broadcasts, and takes no memory.
        if not self.posterior.stochastic:
            return self.mean()
        with draw_scope():
            parameters = {
                # Not `[:, tf.newaxis]`, whose gradient is more than a reshape.
                name: tf.expand_dims(tf.convert_to_tensor(variable), 1)
                for name, variable in self.posterior_variables.items()
            }
            draws = self.posterior.sample(parameters, rows, seed)
            factor = scopes.variance_factor()
            if factor is not None:
                draws = self.posterior.widened(draws, parameters, factor)
        return as_drawn(draws)

    def flipped(self, rows: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """`mean + t_n o (draw - mean)` with one draw per member, `[members, rows, dim]`.

        The signs t_n differ from row to row: every row has the distribution of the draw where that
        is symmetric, and rows are uncorrelated. A sign costs a bit, a draw a normal number.

        Args:
            rows: number of rows per member.
            seed: int32 `[2]`.

        Source: Wen et al. (2018), "Flipout: Efficient Pseudo-Independent Weight Perturbations on
        Mini-Batches".
        """
        draw = self.sample(1, seed)
        if not self.posterior.stochastic:
            return draw
        members, _, dim = draw.shape
        with draw_scope():
            flips = coins((members, rows, dim), fold_in(seed, _FLIPS))
        # -1 turns the draw into `mean - (draw - mean)`.
        return draw + as_drawn(flips) * (2.0 * (draw - self.mean()))

    def moments(self, bounds: tuple[float, float]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Mean and variance of the draws of `sample`, `[members, 1, dim]` each.

        Args:
            bounds: range to which the layer clips draws of families without a variance.

        Returns:
            The mean and the variance; the variance is None for a point.
        """
        if not self.posterior.stochastic:
            return self.mean(), None
        factor = scopes.variance_factor()
        mean, variance = self.posterior.moments(self.posterior_variables, factor, bounds)
        return mean[:, tf.newaxis], variance[:, tf.newaxis]

    def kl(self, seed: tf.Tensor) -> tf.Tensor:
        """`mean_k` (or `sum_k`) of `sum_i KL(q_ki || p_ki)`, plus the prior's own term, in nats.

        Args:
            seed: int32 `[2]`, for terms without a closed form.

        Returns:
            A scalar; 0 without a prior.
        """
        if self.prior is None:
            return tf.zeros(())
        state = self._state()
        entries = self.prior.divergence(self.prior_variables, state, fold_in(seed, 0))
        reduce = tf.reduce_mean if self.average_members else tf.reduce_sum
        # Members share the parameters under a hyperprior, so the term counts once.
        own = self.prior.hyper_divergence(self.prior_variables, state, fold_in(seed, 1))
        return reduce(tf.reduce_sum(entries, axis=-1)) + (0.0 if own is None else own)
