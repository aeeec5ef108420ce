"""Bayes by Backprop: a dense layer with an independent normal posterior for every weight."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.divergence import KLRegularizer
from tfp_rank1.random import next_seed, normal


class MeanFieldDense(keras.layers.Layer):
    """`y = activation([x, 1]' W)`, `W_ij ~ N(loc_ij, scale_ij^2)`, prior `N(0, prior_stddev^2)`.

    Pre-activations are drawn from their marginal, per example (the local reparameterization).

    Args:
        units: size of the output.
        activation: as in Keras. Defaults to None.
        prior_stddev: of every weight. Defaults to 1.
        initial_stddev: of the posterior at the start. Defaults to 0.05.

    Source: Blundell et al. (2015); Kingma, Salimans & Welling (2015).
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        prior_stddev: float = 1.0,
        initial_stddev: float = 0.05,
    ) -> None:
        super().__init__()
        self.units, self.activation = units, keras.activations.get(activation)
        self.prior_stddev, self.initial_stddev = prior_stddev, initial_stddev
        self.kl_weight = None  # the BayesianModel's
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape: Any) -> None:
        """Create mean and scale; the last row belongs to the bias."""
        shape = (input_shape[-1] + 1, self.units)
        self.loc = self.add_weight(shape=shape, initializer="he_normal", name="loc")
        start = r1.initializers.InverseSoftplus(self.initial_stddev)
        self.rho = self.add_weight(shape=shape, initializer=start, name="rho")
        self.loc.regularizer = KLRegularizer(self)
        self.factor_variables = [self.loc, self.rho]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Sampled outputs `[B, units]`."""
        h = tf.concat([inputs, tf.ones_like(inputs[:, :1])], axis=1)
        variance = tf.matmul(h**2, tf.nn.softplus(self.rho) ** 2)
        noise = normal((tf.shape(h)[0], self.units), next_seed(self.seed_generator))
        return self.activation(tf.matmul(h, self.loc) + tf.sqrt(variance) * noise)

    def kl(self) -> tf.Tensor:
        """KL from the prior, nats."""
        posterior = tfd.Normal(self.loc, tf.nn.softplus(self.rho))
        return tf.reduce_sum(tfd.kl_divergence(posterior, tfd.Normal(0.0, self.prior_stddev)))
