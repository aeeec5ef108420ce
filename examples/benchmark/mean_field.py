"""Bayes by Backprop: layers with an independent normal posterior for every weight."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.divergence import KLRegularizer
from tfp_rank1.random import next_seed, normal


class MeanField(keras.layers.Layer):
    """A linear map, `W_ij ~ N(loc_ij, scale_ij^2)`, prior `N(0, prior_stddev^2)`, for all weights.

        z ~ N( loc * x + loc_b,  scale^2 * x^2 + scale_b^2 )

    Pre-activations are drawn from their marginal (the local reparameterization); `*` is the
    subclass's product.

    Args:
        activation: as in Keras. Defaults to None.
        prior_stddev: of every weight. Defaults to 1.
        initial_stddev: of the posterior at the start. Defaults to 0.05.
        **kwargs: as for `keras.layers.Layer`.

    Source: Blundell et al. (2015); Kingma, Salimans & Welling (2015).
    """

    def __init__(
        self,
        activation: Any = None,
        prior_stddev: float = 1.0,
        initial_stddev: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.prior_stddev, self.initial_stddev = prior_stddev, initial_stddev
        self.kl_weight = None  # the BayesianModel's
        self.seed_generator = keras.random.SeedGenerator()

    def _build(self, kernel_shape: tuple[int, ...]) -> None:
        start = r1.initializers.InverseSoftplus(self.initial_stddev)
        self.loc, self.bias_loc = (
            self.add_weight(shape=shape, initializer=initializer, name=name)
            for name, shape, initializer in (
                ("loc", kernel_shape, "he_normal"),
                ("bias_loc", kernel_shape[-1:], "zeros"),
            )
        )
        self.rho, self.bias_rho = (
            self.add_weight(shape=v.shape, initializer=start, name=f"{v.name}_rho")
            for v in (self.loc, self.bias_loc)
        )
        self.loc.regularizer = KLRegularizer(self)
        self.factor_variables = [self.loc, self.rho, self.bias_loc, self.bias_rho]

    def product(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The linear map."""
        raise NotImplementedError

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Sampled outputs."""
        mean = self.product(inputs, self.loc) + self.bias_loc
        variance = self.product(tf.square(inputs), tf.square(tf.nn.softplus(self.rho)))
        variance += tf.square(tf.nn.softplus(self.bias_rho))
        shape = tf.unstack(tf.shape(mean))
        noise = normal((*shape[:-1], mean.shape[-1]), next_seed(self.seed_generator))
        return self.activation(mean + tf.sqrt(variance) * noise)

    def kl(self) -> tf.Tensor:
        """KL from the prior, nats."""
        prior = tfd.Normal(0.0, self.prior_stddev)
        pairs = ((self.loc, self.rho), (self.bias_loc, self.bias_rho))
        terms = [tfd.kl_divergence(tfd.Normal(m, tf.nn.softplus(r)), prior) for m, r in pairs]
        return tf.add_n([tf.reduce_sum(term) for term in terms])


class MeanFieldDense(MeanField):
    """`MeanField` with a matrix product, `[B, d]` to `[B, units]`."""

    def __init__(self, units: int, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(activation, **kwargs)
        self.units = units

    def build(self, input_shape: Any) -> None:
        """Create mean and scale."""
        self._build((input_shape[-1], self.units))

    def product(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The linear map."""
        return tf.matmul(inputs, kernel)


class MeanFieldConv2D(MeanField):
    """`MeanField` with a 2-D convolution, channels last."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: str = "valid",
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activation, **kwargs)
        self.filters, self.kernel_size = filters, kernel_size
        self.strides, self.padding = strides, padding

    def build(self, input_shape: Any) -> None:
        """Create mean and scale."""
        self._build((self.kernel_size, self.kernel_size, input_shape[-1], self.filters))

    def product(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The linear map."""
        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper())
