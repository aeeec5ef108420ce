"""The parts of BALI's inference on their own: rows, roles of layers, cadence; in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.inference import cadence
from bali_keras.inference.output import ExactOutput, HiddenLayer, exact_layer_of
from bali_keras.inference.rows import DenseRows
from bali_keras.inference.statistics import state_variable

D, K, R = 5, 3, 40
RNG = np.random.default_rng(0)


@pytest.fixture
def rows():
    """Dense rows in float64 that have seen one batch."""
    layer = keras.layers.Layer(dtype="float64")

    def add(name, shape):
        return state_variable(layer, name, shape, dtype="float64")

    found = DenseRows(D, "float64")
    found.add_factor(add)
    found.add_covariance(add)
    found.add_average(layer)
    return found


def test_rows_are_what_a_dense_inverse_gives(rows):
    h, weights = RNG.normal(size=(R, D)), RNG.uniform(0.5, 2.0, R)
    moment = rows.second_moment(tf.constant(h), tf.constant(h * weights[:, None]))
    np.testing.assert_allclose(moment, (h * weights[:, None]).T @ h)
    assert not bool(rows.has_statistics())
    accept, total = tf.constant(True), tf.constant(weights.sum(), tf.float32)
    rows.average.update(moment, total, tf.constant(1.0), accept)
    prior = RNG.normal(size=(D, D))
    for l0 in (np.array(0.7), prior @ prior.T + np.eye(D)):
        matrix = l0 if l0.ndim else l0 * np.eye(D)
        precision = matrix + 100.0 * np.array(rows.average.value())
        rows.take(rows.factorised(tf.constant(100.0, tf.float64), tf.constant(l0)), accept)
        inverse = np.linalg.inv(precision)
        right = RNG.normal(size=(D, K))
        np.testing.assert_allclose(rows.apply(tf.constant(right)), inverse @ right, rtol=1e-9)
        factor = np.array(rows.dense_factor())
        np.testing.assert_allclose(factor @ factor.T, inverse, rtol=1e-9)
        expected = np.einsum("rd,de,re->r", h, inverse, h)
        np.testing.assert_allclose(rows.variance(tf.constant(h)), expected, rtol=1e-9)
        np.testing.assert_allclose(rows.log_det(), np.linalg.slogdet(precision)[1], rtol=1e-9)
        trace = rows.trace_with(lambda b, m=matrix: tf.matmul(tf.constant(m), b))
        np.testing.assert_allclose(trace, np.trace(matrix @ inverse), rtol=1e-9)
        assert 1.0 <= float(rows.condition()) <= np.linalg.cond(precision)
    assert bool(rows.has_statistics())


def test_a_refused_factor_leaves_no_trace(rows):
    before = np.array(rows.factor)
    rows.take(tf.fill((D, D), tf.constant(np.nan, tf.float64)), tf.constant(False))
    np.testing.assert_array_equal(rows.factor, before)
    np.testing.assert_array_equal(rows.covariance, np.zeros((D, D)))


def test_rows_count_what_they_cost(rows):
    """As the module says: triangular factors, `d^3`, `2 d^2` by row, `d^2 k` by step."""
    assert rows.num_parameters == D * (D + 1) // 2
    assert (rows.factorising_cost, rows.collecting_cost) == (D**3, 2 * D * D)
    assert rows.applying_cost(K) == D * D * K
    assert rows.zeros().shape == (D, D)


def test_a_hidden_layer_moves_along_v_times_the_gradient():
    role = HiddenLayer()
    fisher = RNG.normal(size=(K, K))
    fisher = fisher @ fisher.T
    factor, precision = role.column(tf.constant(fisher), (0.1, 0.2))
    damping = 0.1 + 0.2 * np.trace(fisher) / K
    np.testing.assert_allclose(precision, fisher + damping * np.eye(K))
    covariance = np.array(factor) @ np.array(factor).T
    np.testing.assert_allclose(covariance @ precision, np.eye(K), atol=1e-12)
    cross = RNG.normal(size=(D, K))
    gradient, shift = role.gradient_and_shift(tf.constant(cross), tf.constant(covariance))
    np.testing.assert_allclose(gradient, cross)
    np.testing.assert_allclose(shift, cross @ covariance)


def test_the_exact_output_moves_to_its_labels():
    """`V g` plus the noise that was drawn is label minus mean, whatever that noise was."""
    variance = np.array([0.5, 2.0, 0.1])
    role = ExactOutput(tf.constant(variance), is_fresh=True)
    mean, labels, noise = (RNG.normal(size=(R, K)) for _ in range(3))
    weights = RNG.uniform(0.5, 2.0, (R, K))
    gradients = (labels - mean - noise) / variance  # of the log-likelihood at mean + noise
    rows = role.cross_rows(tf.constant(gradients), tf.constant(noise), None)
    np.testing.assert_allclose(rows, labels - mean, atol=1e-12)
    weighted = gradients * weights
    rows = role.cross_rows(tf.constant(weighted), tf.constant(noise), tf.constant(weights))
    np.testing.assert_allclose(rows, (labels - mean) * weights, atol=1e-12)
    factor, precision = role.column(tf.zeros((K, K), tf.float64), (0.1, 0.2))
    np.testing.assert_allclose(np.array(factor) ** 2, np.diag(variance))
    np.testing.assert_allclose(precision, np.diag(1 / variance))
    gradient, shift = role.gradient_and_shift(tf.constant(rows), tf.constant(np.diag(variance)))
    np.testing.assert_allclose(shift, rows)
    np.testing.assert_allclose(gradient, np.array(rows) / variance)
    assert role.is_fresh and not role.collects_scores


def test_which_layer_is_the_exact_output():
    inputs = keras.Input((2,))
    hidden = bk.layers.DenseBali(4, activation="tanh")(inputs)
    for likelihood, is_exact in [("normal", True), ("student_t", False), ("poisson", False)]:
        last = bk.layers.DenseBali(1)
        model = bk.BaliModel(inputs, last(hidden), likelihood=likelihood)
        found = exact_layer_of(model, bk.layers.BaliLayer)
        assert found is (last if is_exact else None)
    curved = bk.layers.DenseBali(1, activation="tanh")
    model = bk.BaliModel(inputs, curved(hidden), likelihood=r1.likelihoods.Normal())
    assert exact_layer_of(model, bk.layers.BaliLayer) is None


def test_a_period_pays_for_its_factorisations():
    """Factorisations, at half speed, cost at most a fifteenth of the rest of the steps."""
    sizes = [(785, 100), (101, 100), (101, 10)]
    costs = [
        cadence.Cost(d**3 + k**3, 2 * d * d + 4 * d * k + 2 * k * k, d * d * k) for d, k in sizes
    ]
    for batch in (32, 250, 4096):
        every = cadence.period(costs, batch)
        step = sum(batch * c.by_row + c.by_step for c in costs)
        share = 4 * sum(c.factorising for c in costs) / (every * step)
        assert every in (1, 20) or share == pytest.approx(1 / 15, rel=0.1)
    assert cadence.period([cadence.Cost(999_999, 1, 1)], 1) == 1


def test_few_collections_remember_as_long_as_many():
    """Collecting every m-th step at the strided rate forgets as much as m steps at rho."""
    rate, interval = tf.constant(0.02), tf.constant(8, tf.int64)
    found = cadence.collecting_rate(tf.constant(100, tf.int64), rate, interval, 10)
    assert float(1.0 - found) == pytest.approx((1 - 0.02) ** int(cadence.stride(interval)))
    early = cadence.collecting_rate(tf.constant(12, tf.int64), rate, interval, 10)
    assert float(early) == pytest.approx(0.02)
