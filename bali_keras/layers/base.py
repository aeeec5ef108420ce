"""`BaliLayer`, the base of all BALI layers: from rows of inputs to sampled pre-activations."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

from bali_keras.inference.posterior import LayerPosterior, Prior
from bali_keras.inference.rows import RowCovariance, check_row_covariance, rows_for
from bali_keras.matrix_normal import correlated
from bali_keras.recording import Record, Recorder, current_recorder
from tfp_rank1.keras_internals import graph_of, tracked_by_tensorflow, unlocked
from tfp_rank1.random import load_seed_state, next_seed, normal, save_seed_state
from tfp_rank1.scopes import marginal as marginal_scope
from tfp_rank1.scopes import mean_mode, row_masks, shared_draws, variance_factor

__all__ = ["OF_POSTERIOR", "BaliLayer", "Marginal", "row_mask", "widened"]

# Arguments that a layer made of others passes on to all of them, and their defaults.
OF_POSTERIOR: dict[str, Any] = {
    "prior_at_mean": False,
    "row_covariance": "auto",
    "stored_prior": False,
    "statistics_dtype": None,
    "seed": None,
}


class Marginal:
    """A context in which some layers return their means, draw nothing, and store `h' L^-1 h` here.

    Args:
        *layers: the layers.

    Attributes:
        variances: `h' L^-1 h` of each layer's last call, `[B]`, by the layer, times c in the
            answers of a calibrated model; empty before the calls.
    """

    def __init__(self, *layers: BaliLayer) -> None:
        self.layers = {id(layer) for layer in layers}
        self.variances: dict[BaliLayer, Any] = {}

    def __enter__(self) -> Marginal:
        self._scope = marginal_scope.set(self)
        return self._scope.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._scope.__exit__(*exception)


@tracked_by_tensorflow
class BaliLayer(keras.layers.Layer):
    """A linear map `Z = H W` whose weights have a matrix-normal posterior, then an activation.

        W ~ MN(M, L^-1, V)        z_n | h_n ~ N(M' h_n, (h_n' L^-1 h_n) V)

    A row h of H is one input of the layer (a patch for a convolution) with a trailing 1 for the
    bias, which is the last row of W. A `BaliModel` infers the posterior; the layer has no weights
    for an optimizer. In a plain `keras.Model` the layer only predicts: with samples or, inside
    `tfp_rank1.posterior_mean()`, with its mean.

    In training every row draws its own pre-activations from their marginal distribution (the local
    reparameterization). Such draws are exact where every example is one row, and have less variance
    than draws of W. Before the first factorisation the posterior is a point at the initial weights.

    Args:
        activation: as in Keras. Defaults to None, linear.
        use_bias: whether h has a trailing 1. Defaults to True.
        kernel_initializer: initializer of the kernel's mean. Defaults to `"he_normal"`.
        bias_initializer: initializer of the bias's mean. Defaults to `"zeros"`.
        sampling: how prediction draws: `"example"` as in training, `"weights"` one matrix W per
            call, shared by the batch. Defaults to None: `"example"` where an example is one row,
            else `"weights"`, because the rows of an example (positions of a convolution) share W.
        prior_at_mean: True for a prior centred on a stored M0, which `bali_keras.convert` sets;
            False for a prior centred on 0. Defaults to False.
        row_covariance: how `L^-1` is stored: `"dense"`; `"blocks"` of 512 inputs, or of as many as
            a whole number says; or `"diagonal"`. Blocks leave out what inputs of two blocks have in
            common, and a step costs less. Defaults to `"auto"`, dense where the layer's matrices
            stay below 64 MiB, else blocks.
        stored_prior: whether the layer has a prior precision of its own, which
            `BaliModel.posterior_to_prior` gives it. Defaults to False.
        statistics_dtype: dtype of statistics, factorisations and posterior, `"float32"` or
            `"float64"`. Choose float64 for inputs with huge offsets, or for very many inputs that
            say the same. Defaults to None: float64 in a layer that computes in float64, else
            float32, also in mixed precision.
        seed: integer for reproducible draws in prediction. Defaults to None.
        **kwargs: as for `keras.layers.Layer`.

    Raises:
        ValueError: for an unknown `sampling`, `row_covariance` or `statistics_dtype`.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    def __init__(
        self,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "he_normal",
        bias_initializer: Any = "zeros",
        sampling: str | None = None,
        prior_at_mean: bool = False,
        row_covariance: str | int = "auto",
        stored_prior: bool = False,
        statistics_dtype: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if statistics_dtype not in (None, "float32", "float64"):
            raise ValueError(
                "Argument `statistics_dtype` must be None, 'float32' or 'float64'. "
                f"Received: statistics_dtype={statistics_dtype!r}"
            )
        if sampling not in (None, "example", "weights"):
            raise ValueError(
                "Argument `sampling` must be None, 'example' or 'weights'. "
                f"Received: sampling={sampling!r}"
            )
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.sampling = sampling
        self.prior_at_mean = prior_at_mean
        self.row_covariance = check_row_covariance(row_covariance)
        self.stored_prior = bool(stored_prior)
        self.statistics_dtype = statistics_dtype
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    # -- what a subclass provides ---------------------------------------------------------------

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs as rows `[B, ..., fan_in]`, without the trailing 1 for the bias."""
        raise NotImplementedError

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        """Pre-activations `[B, ..., k]` in the layout of the layer's outputs."""
        raise NotImplementedError

    def _linear(self, inputs: tf.Tensor, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`H W`, `[B, ..., k]`, of inputs whose rows are H; a convolution has a faster way to it.

        Args:
            inputs: of the layer.
            h: their rows, with the trailing 1.
            weights: W, `[d, k]`, in the dtype of the rows.
        """
        return self.posterior_state.rows.product(h, weights)

    # -- building -------------------------------------------------------------------------------

    def _build_posterior(self, kernel_shape: tuple[int, ...], num_inputs: int) -> None:
        """Create the posterior of a kernel.

        Args:
            kernel_shape: shape of the kernel, the axes that are summed over first.
            num_inputs: number of axes that are summed over.
        """
        fan_in = math.prod(kernel_shape[:num_inputs])
        units = math.prod(kernel_shape[num_inputs:])
        rows = rows_for(self.row_covariance, fan_in + int(self.use_bias), self._dtype_of_state())
        self._create_posterior(kernel_shape, units, rows, units, fan_in)

    def _create_posterior(
        self,
        kernel_shape: tuple[int, ...],
        bias_size: int,
        rows: RowCovariance,
        columns: int,
        fan_in: int,
    ) -> None:
        """Create the posterior with rows in a given form.

        Args:
            kernel_shape: shape of the kernel.
            bias_size: number of biases, if there are any.
            rows: the form of the row covariance.
            columns: k.
            fan_in: number of inputs that one unit sums over, without the bias.
        """
        self.kernel_shape, self._num_columns = tuple(kernel_shape), columns

        def initial_mean(shape: Any, dtype: Any = None) -> tf.Tensor:
            kernel = self.kernel_initializer(self.kernel_shape, dtype=dtype)
            bias = self.bias_initializer((bias_size,), dtype=dtype) if self.use_bias else None
            return self._matrix(kernel, bias)

        self.posterior_state = LayerPosterior(
            self,
            initial_mean,
            rows,
            columns,
            fan_in,
            self.prior_at_mean,
            rows.dtype,
            self.stored_prior,
        )
        self.built = True

    def become_prior(self, num_examples: tf.Tensor, prior: Prior, strength: float) -> None:
        """See `LayerPosterior.become_prior`."""
        with unlocked(self):
            self.posterior_state.become_prior(num_examples, prior, strength)
        self.stored_prior = True

    def _dtype_of_state(self) -> str:
        """The dtype of statistics and posterior."""
        is_double = self.compute_dtype == "float64"
        return self.statistics_dtype or ("float64" if is_double else "float32")

    # -- calling --------------------------------------------------------------------------------

    def call(
        self, inputs: tf.Tensor, mask: tf.Tensor | None = None, training: bool | None = None
    ) -> tf.Tensor:
        """The activation of sampled pre-activations.

        Args:
            inputs: see the docstring of the layer.
            mask: boolean `[B, ...]`, for a layer with `supports_masking`. Rows where the mask is
                False are padding and do not count as data. Keras passes masks from layer to layer.
            training: True is refused outside of a `BaliModel`, which alone trains the layer.
        """
        recorder = current_recorder()
        if recorder is not None:
            h = self._homogeneous(inputs)
            own = mask if self.supports_masking else None
            z = self._record(inputs, h, recorder, row_masks.value.get(id(self), own))
        else:
            self._refuse_training(training)
            with graph_of(inputs):
                h = self._homogeneous(inputs)
            z = self._predict(inputs, h)
        outputs = self._arrange(z)
        return outputs if self.activation is None else self.activation(outputs)

    def _homogeneous(self, inputs: tf.Tensor) -> tf.Tensor:
        """Rows h `[B, ..., d]`, with the trailing 1 if there is a bias."""
        h = self._rows(ops.cast(inputs, self.compute_dtype))  # Keras itself casts floats only
        if not self.use_bias:
            return h
        return ops.concatenate([h, ops.ones_like(h[..., :1])], axis=-1)

    def row_moments(
        self, mean: tf.Tensor, variance: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Means and variances of the rows h, `[B, ..., d]` each, from those of the inputs.

        Args:
            mean: means of the inputs, in the dtype of the result.
            variance: variances of the inputs; None for inputs that are known.

        Returns:
            Both, where the trailing 1 of the bias has a variance of 0; None for no variance.
        """
        h, v = self._rows(mean), None if variance is None else self._rows(variance)
        if self.use_bias:
            h = ops.concatenate([h, ops.ones_like(h[..., :1])], axis=-1)
            v = None if v is None else ops.concatenate([v, ops.zeros_like(v[..., :1])], axis=-1)
        return h, v

    def arranged(self, z: tf.Tensor) -> tf.Tensor:
        """Values of pre-activations `[B, ..., k]` in the layout of the layer's outputs."""
        return self._arrange(z)

    def _mean(self, inputs: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
        return self._linear(inputs, h, ops.cast(self.posterior_state.mean, self.compute_dtype))

    def _record(
        self, inputs: tf.Tensor, h: tf.Tensor, recorder: Recorder, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Pre-activations in training, each row with its own noise; the recorder keeps the call."""
        mean = self._mean(inputs, h)
        variance = tf.zeros(tf.shape(mean)[:-1], mean.dtype)
        z = tf.identity(mean)
        if not mean_mode.value:
            variance = self._row_variance(h)
            z = self._add_noise(mean, variance, recorder.noise(_sizes(mean)))
        if self.trainable:  # a frozen layer samples as well, but nothing is inferred from its calls
            recorder.watch(z)
            recorder.record(self, Record(h, mean, z, variance, row_mask(mask, mean)))
        return z

    def _predict(self, inputs: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
        marginal: Marginal | None = marginal_scope.value
        is_marginal = marginal is not None and id(self) in marginal.layers
        is_mean = mean_mode.value
        if not is_mean and not is_marginal and self._samples_weights(h):
            state = self.posterior_state
            noise = widened(self._noise(state.size))
            weights = state.perturbed(tf.cast(noise, state.dtype))
            return self._linear(inputs, h, ops.cast(weights, self.compute_dtype))
        with graph_of(h):
            mean = self._mean(inputs, h)
            variance = None if is_mean else self._answer_variance(h)
        if marginal is not None and is_marginal:
            marginal.variances[self] = variance
        if is_mean or is_marginal:
            return mean
        sizes = _sizes(mean) if shared_draws.value is None else (1, *_sizes(mean)[1:])
        return self._add_noise(mean, variance, self._noise(sizes))

    def _noise(self, shape: tuple[Any, ...]) -> tf.Tensor:
        """Standard normal numbers, of this call or of all examples."""
        shared = shared_draws.value
        if shared is not None:
            return shared.normal(shape)
        return normal(shape, next_seed(self.seed_generator))

    def _samples_weights(self, h: tf.Tensor) -> bool:
        has_one_row = all(size == 1 for size in h.shape[1:-1])
        return (self.sampling or ("example" if has_one_row else "weights")) == "weights"

    def _row_variance(self, h: tf.Tensor) -> tf.Tensor:
        # No gradient: through the variance it would cost each layer a matrix product, and it
        # changed no result.
        variance = self.posterior_state.rows.variance(h)
        return tf.stop_gradient(tf.cast(variance, self.compute_dtype))

    def _answer_variance(self, h: tf.Tensor) -> tf.Tensor:
        """`c h' L^-1 h`, where a calibrated model answers with c times its posterior variances."""
        variance, factor = self._row_variance(h), variance_factor()
        return variance if factor is None else tf.cast(factor, variance.dtype) * variance

    def _add_noise(self, mean: tf.Tensor, variance: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """`mean + sqrt(variance) C e` with `V = C C'`."""
        return mean + tf.sqrt(variance)[..., tf.newaxis] * self._correlated(noise)

    def _correlated(self, noise: tf.Tensor) -> tf.Tensor:
        """Rows `C e` of standard normal rows e."""
        factor = tf.convert_to_tensor(self.posterior_state.column_factor)
        dtype = self.compute_dtype
        return correlated(tf.cast(noise, dtype), tf.cast(factor, dtype))

    def _refuse_training(self, training: bool | None) -> None:
        if training and self.trainable:
            raise ValueError(
                f"Layer {self.name!r} learns only in `fit` of a bali_keras.BaliModel; an optimizer "
                "would leave it as it is without a word. Use BaliModel(inputs, outputs, "
                "likelihood=...), call the model with training=False, or freeze the layer: "
                "layer.trainable = False. Received: training=True"
            )

    # -- what users read ------------------------------------------------------------------------

    @property
    def kernel(self) -> tf.Tensor:
        """The posterior mean of the kernel, in the stock layer's shape."""
        mean = tf.convert_to_tensor(self.posterior_state.mean)
        kernel = mean[:-1] if self.use_bias else mean
        return tf.reshape(kernel, self.kernel_shape)

    def as_matrix(self, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        """W, `[d, k]`, of a kernel and a bias in the stock layer's shapes.

        Args:
            kernel: in the shape of `kernel`.
            bias: None for a layer without a bias.
        """
        return self._matrix(kernel, bias)

    def _matrix(self, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """W of a kernel in the shape `kernel_shape`."""
        columns = self._num_columns
        matrix = ops.reshape(kernel, (-1, columns))
        if bias is None:
            return matrix
        return ops.concatenate([matrix, ops.reshape(bias, (1, columns))], axis=0)

    @property
    def bias(self) -> tf.Tensor | None:
        """The posterior mean of the bias, `[k]`; None for a layer without a bias."""
        return tf.convert_to_tensor(self.posterior_state.mean)[-1] if self.use_bias else None

    def kl(self) -> tf.Tensor:
        """KL of the posterior from the prior at the last factorisation, scalar, in nats."""
        return tf.convert_to_tensor(self.posterior_state.kl)

    @property
    def posterior(self) -> tfd.MatrixNormalLinearOperator:
        """`W ~ MN(M, L^-1, V)`, where W is the kernel as a matrix, with the bias as its last row.

        Raises:
            ValueError: before the first factorisation.
        """
        if not bool(self.posterior_state.has_statistics()):
            raise ValueError(
                f"Layer {self.name!r} has no posterior yet: it is a point until a BaliModel with "
                "it has been fitted. Received: no statistics"
            )
        return self.posterior_state.distribution()

    # -- persistence ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "sampling": self.sampling,
            "prior_at_mean": self.prior_at_mean,
            "row_covariance": self.row_covariance,
            "stored_prior": self.stored_prior,
            "statistics_dtype": self.statistics_dtype,
            "seed": self.seed,
        }

    def save_own_variables(self, store: Any) -> None:
        """Save the posterior, its statistics and the state of the seed generator."""
        super().save_own_variables(store)
        save_seed_state(self.seed_generator, store)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(load_seed_state(self.seed_generator, store))


def widened(noise: tf.Tensor) -> tf.Tensor:
    """`sqrt(c) E`, where a calibrated model answers with c times its posterior variances."""
    factor = variance_factor()
    return noise if factor is None else tf.sqrt(tf.cast(factor, noise.dtype)) * noise


def row_mask(mask: tf.Tensor | None, rows: tf.Tensor) -> tf.Tensor | None:
    """A boolean mask as float32 `[B, ...]`, broadcast to one number per row of `[B, ..., d]`."""
    if mask is None:
        return None
    shape = tf.shape(rows)[:-1]
    if mask.shape.rank > rows.shape.rank - 1:
        raise ValueError(
            "A mask must have one entry per row of the inputs, [batch, ...] without the last "
            f"axis. Received: mask of shape {mask.shape} for inputs of shape {rows.shape}"
        )
    missing = [1] * (rows.shape.rank - 1 - mask.shape.rank)
    leading = tf.concat([tf.shape(mask), tf.constant(missing, tf.int32)], axis=0)
    return tf.broadcast_to(tf.reshape(tf.cast(mask, tf.float32), leading), shape)


def _sizes(tensor: tf.Tensor) -> tuple[Any, ...]:
    """The shape of a tensor: integers where it is static, scalar tensors elsewhere."""
    dynamic = tf.unstack(tf.shape(tensor))
    return tuple(dynamic[i] if n is None else n for i, n in enumerate(tensor.shape))
