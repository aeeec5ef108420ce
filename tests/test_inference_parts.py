"""The parts of BALI's inference on their own: rows, roles of layers, cadence; in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.inference import cadence
from bali_keras.inference.output import ExactOutput, HiddenLayer, exact_layer_of
from bali_keras.inference.rows import BlockRows, ChannelRows, DenseRows, DiagonalRows, OneHotRows
from bali_keras.inference.statistics import state_variable

D, K, R = 5, 3, 40
RNG = np.random.default_rng(0)


def created(found):
    """A row covariance in float64 with its variables."""
    layer = keras.layers.Layer(dtype="float64")

    def add(name, shape):
        return state_variable(layer, name, shape, dtype="float64")

    found.add_factor(add)
    found.add_covariance(add)
    found.add_average(layer)
    return found


@pytest.fixture
def rows():
    """Dense rows in float64."""
    return created(DenseRows(D, "float64"))


def plain(rng):
    h = rng.normal(size=(R, D))
    return h, h


def in_two_blocks(rng):
    """Rows of which no two blocks of 3 and 2 inputs meet."""
    h = rng.normal(size=(R, D))
    h[::2, :3], h[1::2, 3:] = 0.0, 0.0
    return h, h


def by_channel(rng):
    """The rows of two channels at every position, each with 3 inputs of its own."""
    h = rng.normal(size=(R // 2, 2, 3))
    dense = np.zeros((R // 2, 2, 2, 3))
    dense[:, [0, 1], [0, 1]] = h
    return h, dense.reshape(R, 6)


def one_hot(rng):
    index = rng.integers(0, D - 1, R)  # the last is never seen
    return index, np.eye(D)[index]


FORMS = {
    "dense": (lambda: DenseRows(D, "float64"), plain),
    "blocks": (lambda: BlockRows(D, 3, "float64"), in_two_blocks),
    "channels": (lambda: ChannelRows(2, 3, "float64"), by_channel),
    "diagonal": (lambda: DiagonalRows(D, "float64"), lambda rng: (one_hot(rng)[1],) * 2),
    "one-hot": (lambda: OneHotRows(D, "float64"), one_hot),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_what_a_dense_inverse_gives(form):
    build, draw = FORMS[form]
    rows, (h, dense) = created(build()), draw(RNG)
    d, weights = rows.size, RNG.integers(1, 4, R) / 2.0
    stored, right = tf.constant(h), RNG.normal(size=(d, K))
    flat = rows.flat(stored, "float64")
    np.testing.assert_allclose(rows.product(stored, right).numpy().reshape(R, K), dense @ right)
    cross = RNG.normal(size=(R, K))
    np.testing.assert_allclose(rows.cross(flat, tf.constant(cross)), dense.T @ cross, atol=1e-12)
    moment = rows.second_moment(flat, tf.constant(weights))
    np.testing.assert_allclose(moment.shape, rows.zeros().shape)
    assert not bool(rows.has_statistics())
    accept, total = tf.constant(True), tf.constant(weights.sum(), tf.float32)
    rows.average.update(moment, total, tf.constant(1.0), accept)
    own = np.array(rows.second_moment(flat, None))
    np.testing.assert_allclose(own, rows.second_moment(flat, tf.ones(R, tf.float64)))
    data = (dense * weights[:, None]).T @ dense / weights.sum()
    prior = np.array(rows.of_matrix(0.7 * np.eye(d)))  # in the form of the rows
    for l0 in (np.array(0.7), 2.0 * prior + own / R):
        in_use = tf.constant(l0)
        matrix = np.array(rows.times(in_use, tf.eye(d, dtype=tf.float64)))
        precision = matrix + 100.0 * data
        np.testing.assert_allclose(matrix, matrix.T)
        if l0.ndim:
            again = rows.times(rows.of_matrix(matrix), tf.eye(d, dtype=tf.float64))
            np.testing.assert_allclose(again, matrix, atol=1e-15)
        rows.take(rows.factorised(tf.constant(100.0, tf.float64), in_use), accept)
        inverse = np.linalg.inv(precision)
        applied = rows.apply(tf.constant(right))
        np.testing.assert_allclose(applied, inverse @ right, rtol=1e-9, atol=1e-12)
        factor = np.array(rows.dense_factor())
        np.testing.assert_allclose(factor @ factor.T, inverse, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows.operator().to_dense(), factor, atol=1e-12)
        perturbed = rows.perturbation(tf.constant(np.stack([right, right])))
        np.testing.assert_allclose(perturbed[1], factor @ right, rtol=1e-9)
        np.testing.assert_allclose(rows.diagonal(), np.diag(inverse), rtol=1e-9)
        expected = np.einsum("rd,de,re->r", dense, inverse, dense)
        variance = np.array(rows.variance(stored)).reshape(R)
        np.testing.assert_allclose(variance, expected, rtol=1e-9)
        np.testing.assert_allclose(rows.log_det(), np.linalg.slogdet(precision)[1], rtol=1e-9)
        of_prior = rows.log_det_of(in_use)
        np.testing.assert_allclose(of_prior, np.linalg.slogdet(matrix)[1], rtol=1e-9)
        np.testing.assert_allclose(rows.trace_with(in_use), np.trace(matrix @ inverse), rtol=1e-9)
        assert 1.0 <= float(rows.condition()) <= np.linalg.cond(precision) * (1.0 + 1e-6)
    assert bool(rows.has_statistics())


def test_a_prior_that_a_form_cannot_hold_is_refused():
    full = np.eye(D) + 0.1
    for rows in (BlockRows(D, 3, "float64"), DiagonalRows(D, "float64")):
        with pytest.raises(ValueError, match=r"row_covariance='dense'.*other entries"):
            rows.of_matrix(full)
        with pytest.raises(ValueError, match=r"must be \[5, 5\].*shape \(4, 4\)"):
            rows.of_matrix(np.eye(4))


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
    both = tf.constant(cross), tf.constant(covariance)
    gradient, shift = role.gradient(*both), role.shifts(*both)
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
    both = tf.constant(rows), tf.constant(np.diag(variance))
    gradient, shift = role.gradient(*both), role.shifts(*both)
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
        assert every in (1, 32) or share == pytest.approx(1 / 15, rel=0.1)
    assert cadence.period([cadence.Cost(999_999, 1, 1)], 1) == 1


def test_few_collections_remember_as_long_as_many():
    """Collecting every m-th step at the strided rate forgets as much as m steps at rho."""
    rate, interval = tf.constant(0.02), tf.constant(8, tf.int64)
    found = cadence.collecting_rate(tf.constant(100, tf.int64), rate, interval, 10)
    assert float(1.0 - found) == pytest.approx((1 - 0.02) ** int(cadence.stride(interval)))
    early = cadence.collecting_rate(tf.constant(12, tf.int64), rate, interval, 10)
    assert float(early) == pytest.approx(0.02)


def test_the_pull_of_the_prior_is_as_long_as_in_every_step():
    """`M <- (1 - rho) M` in m steps is one step by `1 - (1 - rho)^m`, whenever it is taken."""
    rate, interval, warmup = tf.constant(0.02), tf.constant(8, tf.int64), 10
    left = 1.0
    for step in range(1, warmup + 1 + 4 * 8):
        taken = cadence.prior_steps(tf.constant(step, tf.int64), rate, interval, warmup)
        left *= 1.0 - 0.02 * float(taken)
    assert left == pytest.approx((1 - 0.02) ** step, rel=1e-5)
