"""The matrix-normal family against dense Kronecker products, in float64."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import multivariate_normal
from tensorflow_probability import distributions as tfd

from bali_keras import matrix_normal as mn

D, K = 4, 3


def positive_definite(rng, size):
    a = rng.normal(size=(size, size))
    return a @ a.T + 0.5 * np.eye(size)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_family(rng):
    row, column, mean = (
        positive_definite(rng, D),
        positive_definite(rng, K),
        rng.normal(size=(D, K)),
    )
    natural = mn.NaturalParameters(row, row @ mean, column)
    covariance = np.kron(np.linalg.inv(row), np.linalg.inv(column))
    return mn.MatrixNormal.from_natural(natural), natural, mean, covariance


def test_natural_and_mean_form_are_inverse(rng):
    q, natural, mean, _ = random_family(rng)
    np.testing.assert_allclose(q.mean, mean, atol=1e-12)
    for ours, given in zip(q.natural(), natural, strict=True):
        np.testing.assert_allclose(ours, given, rtol=1e-10, atol=1e-12)


def test_covariances_are_the_inverses(rng):
    q, natural, _, _ = random_family(rng)
    np.testing.assert_allclose(q.row_covariance(), np.linalg.inv(natural.row_precision))
    np.testing.assert_allclose(q.column_covariance(), np.linalg.inv(natural.column_precision))


def test_log_prob_is_that_of_the_vector(rng):
    q, _, mean, covariance = random_family(rng)
    w = rng.normal(size=(5, D, K))
    expected = multivariate_normal(mean.ravel(), covariance).logpdf(w.reshape(5, -1))
    np.testing.assert_allclose(q.log_prob(w), expected)
    np.testing.assert_allclose(q.distribution().log_prob(w), expected)


def test_kl_is_that_of_the_vectors(rng):
    q, _, mean, covariance = random_family(rng)
    p, _, prior_mean, prior_covariance = random_family(rng)
    expected = tfd.kl_divergence(
        tfd.MultivariateNormalTriL(mean.ravel(), np.linalg.cholesky(covariance)),
        tfd.MultivariateNormalTriL(prior_mean.ravel(), np.linalg.cholesky(prior_covariance)),
    )
    np.testing.assert_allclose(q.kl_divergence(p), expected)
    np.testing.assert_allclose(q.kl_divergence(q), 0.0, atol=1e-12)


@pytest.mark.parametrize("source", ["ours", "tfp"])
def test_samples_have_the_kronecker_covariance(rng, source):
    q, _, mean, covariance = random_family(rng)
    n = 100_000
    draws = q.sample(n, (1, 2)) if source == "ours" else q.distribution().sample(n, seed=(1, 2))
    draws = np.reshape(draws, [n, -1])
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) / n)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean.ravel()), 5 * np.sqrt(np.diag(scale)))
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - covariance), 7 * scale)


def test_marginal_variance_of_a_product(rng):
    q, natural, _, covariance = random_family(rng)
    h = rng.normal(size=(6, D))
    for row, variance in zip(h, q.row_variance(h), strict=True):
        spread = np.kron(row, np.eye(K))  # vec of W by rows: h' W = (h (x) I) vec
        column = np.linalg.inv(natural.column_precision)
        np.testing.assert_allclose(spread @ covariance @ spread.T, variance * column)


def test_product_is_the_bayesian_update(rng):
    _, a, _, _ = random_family(rng)
    h, y = rng.normal(size=(9, D)), rng.normal(size=(9, K))
    likelihood = mn.NaturalParameters(h.T @ h, h.T @ y, a.column_precision)
    posterior = mn.MatrixNormal.from_natural(mn.product(a, likelihood))
    row = a.row_precision + h.T @ h
    np.testing.assert_allclose(posterior.mean, np.linalg.solve(row, a.linear + h.T @ y))


def test_damping_bounds_the_eigenvalues(rng):
    matrix = np.outer(*2 * [rng.normal(size=K)])  # rank one
    damped = mn.damp(tf.constant(matrix), 0.01, 0.1)
    expected = matrix + (0.01 + 0.1 * np.trace(matrix) / K) * np.eye(K)
    np.testing.assert_allclose(damped, expected)
    assert np.linalg.eigvalsh(damped)[0] >= 0.01


def test_not_positive_definite_is_not_finite():
    factor = mn.inverse_factor(tf.constant([[1.0, 2.0], [2.0, 1.0]]))
    assert not np.isfinite(factor).all()


def test_large_matrices_are_factorised_by_halves(rng):
    """Two levels of halves, of odd sizes, with rows of very different scales."""
    h = rng.normal(size=(900, 603)) * np.exp(rng.normal(size=603))
    matrix = h.T @ h
    factor = mn.inverse_factor(tf.constant(matrix)).numpy()
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ matrix @ factor, np.eye(603), atol=1e-9)
    np.testing.assert_allclose(mn.covariance(tf.constant(factor)), factor @ factor.T, atol=1e-12)
    matrix[-1, -1] = 0.0
    assert not np.isfinite(mn.inverse_factor(tf.constant(matrix))).all()
    matrix[-1, -1] = 1e-6  # positive diagonal, yet not positive definite
    assert not np.isfinite(mn.inverse_factor(tf.constant(matrix))).all()


@pytest.mark.parametrize("rank", [20, 200])
def test_large_matrices_without_full_rank(rng, rank):
    """Float32, N S + I of fewer examples than inputs: no eigenvalue is lost in the halves."""
    h = rng.normal(size=(2000, rank)) @ rng.normal(size=(rank, 513)) / np.sqrt(rank)
    data = 1e5 * (h.T @ h).astype("float32") / 2000
    matrix = data * (1.0 + 1e-5 * np.eye(513, dtype="float32")) + np.eye(513, dtype="float32")
    factor = np.float64(mn.inverse_factor(tf.constant(matrix)))
    assert np.isfinite(factor).all()
    np.testing.assert_allclose(factor.T @ matrix @ factor, np.eye(513), atol=0.1)  # 1e6 * 1e-7


def test_rows_of_images_of_height_1(rng):
    """`tf.matmul` of TensorFlow 2.21 reads past the end of such rows on some CPUs."""
    factor = tf.constant(np.triu(rng.normal(size=(21, 21))), tf.float32)
    h = tf.constant(rng.normal(size=(64, 1, 3, 21)), tf.float32)
    expected = mn.row_variance(factor, tf.reshape(h, [-1, 21]))
    np.testing.assert_allclose(np.ravel(mn.row_variance(factor, h)), expected, rtol=1e-5)
