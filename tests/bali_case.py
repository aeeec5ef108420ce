"""Small BALI models and a float64 reference of the inference, in its moving-average form."""

import keras
import numpy as np

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.random import fold_in, normal_rows, shared_seed


def linear_data(rows=60, inputs=3, outputs=2, noise=0.3, seed=0):
    """Inputs, targets of a linear model with a bias, float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype("float32")
    w = rng.normal(size=(inputs, outputs))
    y = x @ w + 0.5 + noise * rng.normal(size=(rows, outputs))
    return x, y.astype("float32")


def net(inputs=3, hidden=(), outputs=2, likelihood=None, activation=None, **kwargs):
    """A Functional BaliModel of dense layers."""
    h = x = keras.Input((inputs,))
    for units in hidden:
        h = bk.layers.DenseBali(units, activation=activation)(h)
    outputs = bk.layers.DenseBali(outputs)(h)
    likelihood = likelihood or r1.likelihoods.Normal(scale=0.3)
    return bk.BaliModel(x, outputs, likelihood=likelihood, **kwargs)


def conjugate(x, y, precision, weights=None):
    """Mean, and inverse of the row precision, of Bayesian linear regression, float64."""
    h = np.c_[x, np.ones(len(x))].astype("float64")
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, "float64")
    row = precision * np.eye(h.shape[1]) + h.T @ (weights[:, None] * h)
    mean = np.linalg.solve(row, h.T @ (weights[:, None] * y))
    return mean, np.linalg.inv(row)


def posteriors(model):
    """Mean, row factor and column factor of every layer, as arrays."""
    return [
        [np.array(v) for v in layer.posterior_state.matrix_normal()] for layer in model.bali_layers
    ]


class Reference:
    """A deep net of linear BALI layers by moving averages of natural parameters, float64.

        eta <- (1 - rho) eta + rho (L0 M0 + N / B H'Y)      L <- (1 - rho) L + rho (L0 + N / B H'H)
        M = L^-1 eta,                                       y = M'h + V g

    without noise in the forward pass; scores from the model's own random numbers.
    """

    def __init__(self, model, row_precision, damping, scale, num_examples):
        self.means = [np.array(v.posterior_state.mean, "float64") for v in model.bali_layers]
        self.row_precision, self.damping, self.scale = row_precision, damping, scale
        self.count = num_examples
        self.generator = keras.random.SeedGenerator(0)
        self.generator.state.assign(model.seed_generator.state)
        size = [m.shape for m in self.means]
        self.etas = [np.zeros((d, k)) for d, k in size]
        self.rows = [np.zeros((d, d)) for d, _ in size]
        self.fishers = [np.zeros((k, k)) for _, k in size]
        self.weight = 0.0

    def step(self, x, y, rate):
        """One batch."""
        inputs, h = [], x.astype("float64")
        for mean in self.means:
            h = np.c_[h, np.ones(len(h))]
            inputs.append(h)
            h = h @ mean
        seed = shared_seed(self.generator)
        noise = np.array(normal_rows(0, h.shape, fold_in(seed, 1)), "float64")
        gradients = self._backward((y - h) / self.scale**2)
        scores = self._backward(noise / self.scale)
        share = rate / ((1 - rate) * self.weight + rate)
        self.weight = (1 - rate) * self.weight + rate
        for i, (h, g, s) in enumerate(zip(inputs, gradients, scores, strict=True)):
            self.fishers[i] += share * (s.T @ s / len(x) - self.fishers[i])
            if i == len(inputs) - 1:
                column = self.scale**2 * np.eye(g.shape[1])
            else:
                damped = self.fishers[i] + self.damping * np.eye(g.shape[1])
                column = np.linalg.inv(damped)
            targets = h @ self.means[i] + g @ column
            times = self.count / len(x)
            prior = self.row_precision * np.eye(h.shape[1])
            self.etas[i] += share * (times * h.T @ targets - self.etas[i])
            self.rows[i] += share * (prior + times * h.T @ h - self.rows[i])
            self.means[i] = np.linalg.solve(self.rows[i], self.etas[i])

    def _backward(self, g):
        gradients = [g]
        for mean in self.means[:0:-1]:
            g = g @ mean[:-1].T
            gradients.insert(0, g)
        return gradients
