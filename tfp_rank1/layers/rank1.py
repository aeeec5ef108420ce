"""What makes a stock Keras layer a rank-1 layer.

`Rank1Mixin` gives a layer its factors, their draws and their KL. `Composite` is for layers whose
parts have the factors: projections of attention, cells of recurrent layers.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

from tfp_rank1 import posteriors, priors, scopes
from tfp_rank1.checks import choice
from tfp_rank1.divergence import KLRegularizer
from tfp_rank1.keras_internals import layers_of, tracked_by_tensorflow
from tfp_rank1.layers.factor import Factor
from tfp_rank1.layers.folding import check_rows, fold, resolve_members, unfold
from tfp_rank1.layers.low_rank import load_weights, save_weights
from tfp_rank1.random import fold_in, load_seed_state, next_seed, save_seed_state
from tfp_rank1.serialization import serialize

__all__ = [
    "ARGUMENTS",
    "DEFAULT",
    "SEED_STEP",
    "Axes",
    "Composite",
    "Rank1Mixin",
    "by_name",
    "rank1_config",
    "split_arguments",
]

# A prior that was not given. None is taken: it means "no prior, no KL".
if TYPE_CHECKING:  # the mixins stand in front of a stock layer, which has all that they call
    from keras.layers import Layer as _Stock
else:
    _Stock = object

DEFAULT = "default"
# One axis of a tensor, or several that are channels together, in increasing order.
Axes = int | tuple[int, ...]


# Between the seeds of two layers of a net. Parts of a layer take the seeds in between: projections
# of attention, and the backward layer of a `Bidirectional`.
SEED_STEP = 8
# Arguments that stand in a config as they are; posteriors and priors are serialized.
_PLAIN = (
    "ensemble_size",
    "perturbation",
    "sampling",
    "min_perturbation_value",
    "max_perturbation_value",
    "kl_weight",
    "kl_reduction",
    "seed",
)


@tracked_by_tensorflow
class Rank1Mixin(_Stock):
    """Random rank-1 perturbation of a stock layer's kernel, one per member.

    With K = `ensemble_size`, the outputs of member k are

        multiplicative   y = activation( s_k o (W^T (x o r_k)) + b_k ),   W_k = W o (r_k s_k^T)
        additive         y = activation( W^T (x + r_k) + s_k + b_k )

    The factor r_k scales (or shifts) the input channels, the factor s_k the pre-activations; b_k is
    one bias per member. The rows of all members go through one matrix product: they are folded
    member-major into the batch axis.

    A subclass names the mixin before the stock class. Its `build` calls `_build_rank1` with the
    sizes of the factors; its `call` puts `_perturb_inputs` and `_finish` around the stock layer's
    linear map. Where several axes of a tensor are channels, as in an einsum, a factor has an entry
    for every combination of their indices, in row-major order.

    Args:
        ensemble_size: number of members K; `TileMembers(K)` makes rows `[K*B, ...]`. Defaults to
            None: that of the enclosing `with tfp_rank1.members(K):`, else 1.
        posterior: variational family of r and s: a name or a `tfp_rank1.posteriors` object.
            Defaults to `"normal"`, which together with the default prior starts at random signs
            (`posteriors.default_start`). `r_posterior` and `s_posterior` override it for one
            factor.
        prior: prior of r and s: a name, a `tfp_rank1.priors` object, or None for no KL. Defaults
            to `"default"`, the prior that belongs to the posterior: for `"normal"` one that follows
            the means (`priors.default_pair`), `Normal(1, 0.1)` for Normal posteriors that are given
            as objects (`Normal(0, 0.1)` if additive), their own family for Cauchy, LogNormal and
            HalfCauchy, none for points. `r_prior` and `s_prior` override it for one factor.
        bias_posterior: variational family of the bias. Defaults to None, a point per member.
        bias_prior: prior of a random bias. Defaults to `"default"`, centred at 0.
        perturbation: `"multiplicative"` (default) or `"additive"`.
        sampling: `"example"` (default): one draw per row; `"member"`: one draw per member and
            call, shared by the batch; `"flipout"`: one draw per member and call, whose distance
            from the mean gets random signs in every row. Rows are then uncorrelated, and signs
            cost less than draws. For Normal and Cauchy posteriors, and points.
        min_perturbation_value, max_perturbation_value: range to which draws of r and s from
            heavy-tailed posteriors (Cauchy, HalfCauchy) are clipped. Default to -10 and 10, as in
            Edward2. The clip is part of the likelihood (outputs depend on the clipped factor), so
            the bound stays valid with the KL of the unclipped factor.
        kl_weight: the KL weight in the loss of a plain `keras.Model`, usually 1/N for N training
            examples. Defaults to None: a `BayesianModel` owns the KL weight.
        kl_reduction: `"mean"` (default) over members, the bound for a mixture of members;
            `"sum"` is K times heavier and reproduces Edward2.
        seed: integer for reproducible draws. Defaults to None. As with Dropout, two layers with
            the same seed have the same draws.

    Raises:
        ValueError: for a value out of its range, an unknown name, or a posterior whose KL from its
            prior is infinite.

    A frozen layer (`trainable = False`) adds no KL to the loss, as Keras skips the regularizers of
    frozen variables. Freeze layers or kernels, not single variables of a factor: one of these
    variables carries the KL of the whole layer.

    Example:
    ```python
    class DenseRank1(r1.layers.Rank1Mixin, keras.layers.Dense):
        def build(self, input_shape):
            self._build_rank1(input_shape, in_dim=input_shape[-1], out_dim=self.units)

        def call(self, inputs):
            x, seed = self._perturb_inputs(inputs, channel_axis=-1)
            return self._finish(keras.ops.matmul(x, self.kernel), seed, channel_axis=-1)
    ```

    Source: Dusenberry et al. (2020), "Efficient and Scalable Bayesian Neural Nets with Rank-1
    Factors".
    """

    # The stock class provides these; they are named so that the mixin can be type checked.
    name: str
    bias: Any
    use_bias: bool

    def __init__(
        self,
        *args: Any,
        ensemble_size: int | None = None,
        posterior: Any = "normal",
        prior: Any = DEFAULT,
        r_posterior: Any = None,
        s_posterior: Any = None,
        r_prior: Any = DEFAULT,
        s_prior: Any = DEFAULT,
        bias_posterior: Any = None,
        bias_prior: Any = DEFAULT,
        perturbation: str = "multiplicative",
        sampling: str = "example",
        min_perturbation_value: float = -10.0,
        max_perturbation_value: float = 10.0,
        kl_weight: float | None = None,
        kl_reduction: str = "mean",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ensemble_size = resolve_members(ensemble_size, 1, type(self).__name__)
        self.perturbation = choice("perturbation", perturbation, ("multiplicative", "additive"))
        self.sampling = choice("sampling", sampling, ("example", "member", "flipout"))
        self.kl_reduction = choice("kl_reduction", kl_reduction, ("mean", "sum"))
        self.kl_weight = _check_kl_weight(kl_weight)
        self.min_perturbation_value = float(min_perturbation_value)
        self.max_perturbation_value = float(max_perturbation_value)
        if not self.min_perturbation_value < self.max_perturbation_value:
            raise ValueError(
                "Argument `min_perturbation_value` must lie below `max_perturbation_value`. "
                f"Received: {min_perturbation_value} and {max_perturbation_value}"
            )
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        center = 1.0 if self.perturbation == "multiplicative" else 0.0
        self.r_factor = self._make_factor(
            "r", r_posterior or posterior, prior if r_prior == DEFAULT else r_prior, center
        )
        self.s_factor = self._make_factor(
            "s", s_posterior or posterior, prior if s_prior == DEFAULT else s_prior, center
        )
        self.bias_factor = (
            None
            if bias_posterior is None
            else self._make_factor("bias", bias_posterior, bias_prior, 0.0)
        )
        if self.sampling == "flipout":
            self._check_symmetric()

    def _check_symmetric(self) -> None:
        """Refuse posteriors whose draws are others with their signs around the mean changed."""
        factors = [self.r_factor, self.s_factor, self.bias_factor]
        given = [factor.posterior for factor in factors if factor is not None]
        skew = {type(q).__name__ for q in given if q.stochastic and not q.symmetric}
        if skew:
            raise ValueError(
                "With sampling='flipout' posteriors must be symmetric around their means: Normal, "
                "NormalSharedStddev, NormalFixedStddev, Cauchy, or points. Use sampling='example' "
                f"or 'member'. Received: {sorted(skew)}"
            )

    def _make_factor(self, name: str, posterior: Any, prior: Any, center: float) -> Factor:
        is_default = isinstance(prior, str) and prior == DEFAULT
        if is_default and posterior == "normal" and center == 1.0:
            return Factor(name, *priors.default_pair(), center, self.kl_reduction == "mean")
        q = posteriors.get(posterior)
        given = None if prior is None or is_default else priors.get(prior)
        p = priors.default_for(q) if is_default else given
        return Factor(name, q, p, center, self.kl_reduction == "mean")

    # -- building -------------------------------------------------------------------------------

    def _build_rank1(
        self, input_shape: Any, in_dim: int, out_dim: int, bias_dim: int | None = None
    ) -> None:
        """Create the kernel, the bias of every member and the factors.

        Args:
            input_shape: as `build` gets it.
            in_dim: number of entries of r.
            out_dim: number of entries of s.
            bias_dim: number of entries of the bias. Defaults to `out_dim`.
        """
        # The order of variables is part of saved files: kernel, bias, r, s, LoRA's own. LoRA goes
        # last because it locks the layer against further variables.
        lora_rank = getattr(self, "lora_rank", None)
        if lora_rank:
            self.lora_rank = None
        self._build_stock(input_shape)
        bias_dim = out_dim if bias_dim is None else bias_dim
        self.bias = self._add_bias(bias_dim) if self.use_bias else None
        self.r_factor.build(self, (self.ensemble_size, in_dim))
        self.s_factor.build(self, (self.ensemble_size, out_dim))
        self._hang_kl()
        if lora_rank:
            self.enable_lora(lora_rank, lora_alpha=self.lora_alpha)

    def _build_stock(self, input_shape: Any) -> None:
        """Build the stock layer without its bias."""
        # The stock bias has one row; members have a row each.
        stock_use_bias = self.use_bias
        self.use_bias = False
        try:
            super().build(input_shape)
        finally:
            self.use_bias = stock_use_bias

    def _add_bias(self, dim: int, initializer: Any = None) -> keras.Variable | None:
        shape = (self.ensemble_size, dim)
        if self.bias_factor is not None:
            self.bias_factor.build(self, shape)
            return None
        return self.add_weight(
            name="bias",
            shape=shape,
            initializer=initializer or self.bias_initializer,
            regularizer=self.bias_regularizer,
            constraint=self.bias_constraint,
        )

    def _hang_kl(self) -> None:
        regularized = [f for f in self._factors() if f.prior is not None]
        if regularized:
            # On one variable only: `KLRegularizer` ignores it and takes the KL of the whole layer.
            owner = next(iter(regularized[0].posterior_variables.values()))
            owner.regularizer = KLRegularizer(self)

    def _factors(self) -> list[Factor]:
        bias = [self.bias_factor] if self.bias_factor is not None and self.use_bias else []
        return [self.r_factor, self.s_factor, *bias]

    @property
    def is_random(self) -> bool:
        """Whether calls draw: not if all factors are points."""
        return any(factor.posterior.stochastic for factor in self._factors())

    @property
    def num_random(self) -> int:
        """Number of entries of a member's factors that are random."""
        factors = [factor for factor in self._factors() if factor.posterior.stochastic]
        means = [factor.mean() for factor in factors]
        return sum(int(mean.shape[-1]) for mean in means)

    # -- calling --------------------------------------------------------------------------------

    def _perturb_inputs(self, x: tf.Tensor, channel_axis: Axes) -> tuple[tf.Tensor, tf.Tensor]:
        """`x o r` (or `x + r`) for rows x, and the seed that `_finish` continues with."""
        x = check_rows(x, self.ensemble_size, self.name)
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
            # Keras casts floats only, and draws cast to the dtype of integers would be truncated.
            x = ops.cast(x, self.compute_dtype)
        seed = next_seed(self.seed_generator)
        r = self._draw(self.r_factor, self._num_draws(x), seed)
        return self._perturb(x, r, channel_axis), seed

    def _finish(
        self, z: tf.Tensor, seed: tf.Tensor, channel_axis: Axes, bias_axis: Axes | None = None
    ) -> tf.Tensor:
        """`activation(s o z + b)` (or `activation(z + s + b)`) for pre-activations z of x o r."""
        # r has the seed itself, s `fold_in(seed, 1)`, the bias `fold_in(seed, 2)`.
        s = self._draw(self.s_factor, self._num_draws(z), fold_in(seed, 1))
        z = self._perturb(z, s, channel_axis)
        if self.use_bias:
            bias = self._draw_bias(self._num_draws(z), seed)
            z = self.by_member(z, bias, channel_axis if bias_axis is None else bias_axis, tf.add)
        activation = self.activation
        return z if activation is None else activation(z)

    def _draw(self, factor: Factor, rows: Any, seed: tf.Tensor) -> tf.Tensor:
        """Draws of a factor, or its mean in mean mode: `[K, rows or 1, dim]`."""
        if scopes.mean_mode.value:
            value = factor.mean()
        elif self.sampling == "flipout" and scopes.shared_draws.value is None:
            value = factor.flipped(rows, seed)
        else:
            value = factor.sample(rows, seed)
        # The range is for heavy tails of r and s; a clip of other draws would only take time.
        if factor.posterior.finite_variance or factor is self.bias_factor:
            return value
        return tf.clip_by_value(value, self.min_perturbation_value, self.max_perturbation_value)

    def _draw_bias(self, rows: Any, seed: tf.Tensor) -> tf.Tensor:
        """A bias for every member or, if random, for every row: `[K, rows or 1, dim]`."""
        if self.bias_factor is not None:
            return self._draw(self.bias_factor, rows, fold_in(seed, 2))
        return tf.expand_dims(ops.convert_to_tensor(self.bias), 1)

    def _num_draws(self, x: tf.Tensor) -> Any:
        is_shared = self.sampling == "member" or scopes.shared_draws.value is not None
        return 1 if is_shared else ops.shape(x)[0] // self.ensemble_size

    def _perturb(self, x: tf.Tensor, value: tf.Tensor, channel_axis: Axes) -> tf.Tensor:
        """`x o value`, or `x + value`."""
        # tf.add and not ops.add, which takes `[K, 1, 1]` for a bias of the second axis if that axis
        # has K entries: rows would get the values of other members.
        how = tf.multiply if self.perturbation == "multiplicative" else tf.add
        return self.by_member(x, value, channel_axis, how)

    def by_member(self, x: tf.Tensor, value: tf.Tensor, channel_axis: Axes, how: Any) -> tf.Tensor:
        """`how(x, value)`, every value at the rows and channels of x that it belongs to.

        Args:
            x: rows of all members, member-major.
            value: `[K, B or 1, dim]`, such as draws of a factor or their moments.
            channel_axis: axes of x along which the dim entries of a value lie.
            how: function of two tensors that broadcast, such as `tf.add`.
        """
        # Unfolded, each value broadcasts over the rows of its own member; no value is tiled.
        x = unfold(x, self.ensemble_size)
        rank = len(x.shape)
        shape = [1] * rank
        shape[0] = self.ensemble_size
        shape[1] = -1 if value.shape[1] is None else value.shape[1]
        for axis in (channel_axis,) if isinstance(channel_axis, int) else channel_axis:
            place = axis % (rank - 1) + 1
            shape[place] = x.shape[place]
        # Draws are float32 under every dtype policy, x has the dtype that the layer computes in.
        return fold(how(x, ops.cast(ops.reshape(value, shape), x.dtype)))

    # -- moments --------------------------------------------------------------------------------

    @property
    def factor_axes(self) -> tuple[Axes, Axes, Axes]:
        """The channel axes of inputs, pre-activations and bias, as r, s and b run along them."""
        return -1, -1, -1

    def factor_moments(self, factor: Factor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Mean and variance of a factor's clipped draws, `[K, 1, dim]`; no variance of a point.

        Args:
            factor: one of the layer's factors.
        """
        return factor.moments((self.min_perturbation_value, self.max_perturbation_value))

    def bias_moments(self) -> tuple[tf.Tensor, tf.Tensor | None] | None:
        """Mean and variance of the bias, `[K, 1, dim]`; None without a bias."""
        if not self.use_bias:
            return None
        if self.bias_factor is not None:
            return self.factor_moments(self.bias_factor)
        return tf.convert_to_tensor(self.bias)[:, tf.newaxis], None

    # -- what users read ------------------------------------------------------------------------

    def kl(self) -> tf.Tensor:
        """`mean_k` (or `sum_k`) of `sum_i KL(q_ki || p_ki)`, added over the factors of the layer.

        Terms without a closed form are estimated on fresh draws, not on those of the outputs.

        Returns:
            A scalar in nats, without the KL weight.
        """
        seed = next_seed(self.seed_generator)
        return tf.add_n([f.kl(fold_in(seed, i)) for i, f in enumerate(self._factors())])

    @property
    def r_posterior(self) -> tfd.Distribution:
        """Posterior of the factor r of the inputs, batch shape `[K, in]`."""
        return self.r_factor.distribution()

    @property
    def s_posterior(self) -> tfd.Distribution:
        """Posterior of the factor s of the pre-activations, batch shape `[K, out]`."""
        return self.s_factor.distribution()

    @property
    def bias_posterior(self) -> tfd.Distribution | None:
        """Posterior of a random bias, batch shape `[K, out]`; None without a random bias."""
        if self.bias_factor is None or not self.use_bias:
            return None
        return self.bias_factor.distribution()

    @property
    def r_prior(self) -> tfd.Distribution | None:
        """Prior of the factor r, broadcastable to `[K, in]`; None without a prior."""
        return self.r_factor.prior_distribution()

    @property
    def s_prior(self) -> tfd.Distribution | None:
        """Prior of the factor s, broadcastable to `[K, out]`; None without a prior."""
        return self.s_factor.prior_distribution()

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """Variables of the factors: parameters of their posteriors, and of priors that have any."""
        return [v for factor in self._factors() for v in factor.variables]

    @property
    def slow_weights(self) -> list[keras.Variable]:
        """The weights outside the factors: the kernel and a point bias."""
        factors = {id(v) for v in self.factor_variables}
        return [v for v in self.weights if id(v) not in factors]

    # -- persistence ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments, with a posterior and a prior for each factor."""
        config = super().get_config()
        for factor, name in ((self.r_factor, "r"), (self.s_factor, "s")):
            config[f"{name}_posterior"] = serialize(factor.posterior)
            config[f"{name}_prior"] = serialize(factor.prior)
        if self.bias_factor is not None:
            config["bias_posterior"] = serialize(self.bias_factor.posterior)
            config["bias_prior"] = serialize(self.bias_factor.prior)
        return config | {key: getattr(self, key) for key in _PLAIN}

    def save_own_variables(self, store: Any) -> None:
        """Save all variables and the state of the seed generator."""
        # Stock layers store kernel and bias only, and Keras stores the state of no generator.
        save_weights(self, store)
        save_seed_state(self.seed_generator, store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` wrote."""
        load_weights(self, load_seed_state(self.seed_generator, store))


class Composite(_Stock):
    """A layer whose parts have the factors: the projections of attention, a recurrent cell."""

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """Variables of the factors of all rank-1 layers within."""
        parts = layers_of(self, include_self=False)
        return [v for part in parts if isinstance(part, Rank1Mixin) for v in part.factor_variables]

    @property
    def slow_weights(self) -> list[keras.Variable]:
        """The weights outside the factors."""
        factors = {id(v) for v in self.factor_variables}
        return [v for v in self.weights if id(v) not in factors]


def by_name(stock: Any, positional: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments of a stock layer's constructor, by name.

    Raises:
        TypeError: if there are more arguments than the constructor takes.
    """
    # Not of the class: Keras gives every layer a `__new__` that takes anything.
    parameters = list(inspect.signature(stock.__init__).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(positional) > len(names):
        raise TypeError(
            f"{stock.__name__} takes at most {len(names)} positional arguments, {names}. "
            f"Received: {len(positional)} positional arguments"
        )
    return dict(zip(names, positional, strict=False))


def split_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Rank1Mixin`, and all other arguments."""
    ours = {name: value for name, value in arguments.items() if name in ARGUMENTS}
    return ours, {name: value for name, value in arguments.items() if name not in ours}


def rank1_config(layer: Rank1Mixin) -> dict[str, Any]:
    """The arguments of `Rank1Mixin` in a layer's config."""
    return {name: value for name, value in layer.get_config().items() if name in ARGUMENTS}


def _check_kl_weight(kl_weight: Any) -> float | None:
    if kl_weight is None:
        return None
    if not isinstance(kl_weight, (int, float, np.number)) or not 0.0 <= kl_weight < float("inf"):
        raise ValueError(
            "Argument `kl_weight` must be a finite number of at least 0, usually 1/N. "
            f"Received: kl_weight={kl_weight}"
        )
    return float(kl_weight)


# Names of the mixin's arguments, read from its constructor so that no second list can differ.
ARGUMENTS = frozenset(
    p.name
    for p in inspect.signature(Rank1Mixin.__init__).parameters.values()
    if p.kind is inspect.Parameter.KEYWORD_ONLY
)
