"""The observation noise that a rank-1 net learns in closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.model import noise as noise_module
from tfp_rank1.model.noise import (
    learn_noise,
    without_noise,
)

pytestmark = pytest.mark.filterwarnings("ignore:Targets have mean")  # noise has any unit
ROWS, INPUTS = 200, 3


def compiled(num_train_examples=ROWS, likelihood="normal"):
    net = keras.Sequential([keras.Input((INPUTS,)), keras.layers.Dense(2)])
    model = r1.BayesianModel(
        net.inputs, net.outputs, likelihood=likelihood, num_train_examples=num_train_examples
    )
    model.compile(keras.optimizers.Adam(1e-2))
    model.build_optimizer()
    return model


def batch(unit, rows=32, members=4):
    rng = np.random.default_rng(0)
    y = unit * (rng.normal(size=(rows, 2)) * [1.0, 3.0] + [0.0, 20.0])
    outputs = y[:, np.newaxis] + unit * 0.3 * rng.normal(size=(rows, members, 2))
    return y, outputs, rng.uniform(0.5, 2.0, size=rows)


def mode(y, outputs, weights):
    """The mode by hand, float64: one example as far off as targets are from their mean."""
    squares = np.average(((y[:, np.newaxis] - outputs) ** 2).mean(1), axis=0, weights=weights)
    center = np.average(y, axis=0, weights=weights)
    prior = np.average((y - center) ** 2, axis=0, weights=weights)
    strength = noise_module._PRIOR_EXAMPLES
    return (strength * prior + ROWS * squares) / (strength + ROWS)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_the_first_batch_sets_the_noise_in_any_unit(unit):
    model = compiled()
    y, outputs, weights = batch(unit)
    noise = model.likelihood.closed_form_noise
    learn_noise(model, *(tf.constant(v, tf.float32) for v in (y, outputs, weights)))
    np.testing.assert_allclose(noise.variance(), mode(y, outputs, weights), rtol=2e-3)


def test_later_batches_move_the_noise_by_their_share():
    model = compiled()
    y, outputs, weights = batch(1.0)
    noise = model.likelihood.closed_form_noise
    noise.variables[0].assign(noise.raw(tf.constant([4.0, 4.0])))
    model.optimizer.iterations.assign(99)
    learn_noise(model, *(tf.constant(v, tf.float32) for v in (y, outputs, weights)))
    share = 32 / ROWS
    expected = 4.0 + share * (mode(y, outputs, weights) - 4.0)
    np.testing.assert_allclose(noise.variance(), expected, rtol=1e-4)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_the_noise_of_the_loss_falls_no_faster_than_weights_move(unit):
    model = compiled()
    y, outputs, weights = batch(unit)
    noise = model.likelihood.closed_form_noise

    def learn(outputs):
        values = (tf.constant(v, tf.float32) for v in (y, outputs, weights))
        (found,) = learn_noise(model, *values).values()
        return found.numpy()

    before = learn(outputs)
    np.testing.assert_allclose(before, noise.variance(), rtol=1e-4)
    model.optimizer.iterations.assign(99)
    better = y[:, np.newaxis] + 0.1 * (outputs - y[:, np.newaxis])
    expected = before * np.exp(-1e-2 * noise_module._FALL)
    np.testing.assert_allclose(learn(better), expected, rtol=1e-3)
    worse = learn(y[:, np.newaxis] + 30.0 * (outputs - y[:, np.newaxis]))
    np.testing.assert_allclose(worse, noise.variance(), rtol=1e-3)


def test_the_loss_has_the_tempered_noise_and_the_answer_its_own():
    model = compiled()
    x = np.random.default_rng(0).normal(size=(ROWS, INPUTS)).astype("float32")
    y = x[:, :2] + 1e-3
    model.fit(x, y, epochs=30, batch_size=32, verbose=0)
    (logarithm,) = model.state_beside_weights
    noise = model.likelihood.closed_form_noise.variance()
    assert (np.exp(logarithm.numpy()) > 2.0 * noise.numpy()).all()
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    answer = -np.mean(model.posterior_predictive(x, 8, seed=0).log_prob(y))
    assert logs["nll"] == pytest.approx(answer, abs=0.1)
    assert model.history.history["nll"][-1] > answer + 0.3


def test_a_batch_that_is_not_finite_keeps_the_noise():
    model = compiled()
    y, outputs, weights = batch(1.0)
    outputs[3, 1] = np.nan
    noise = model.likelihood.closed_form_noise
    before = noise.variance().numpy()
    learn_noise(model, *(tf.constant(v, tf.float32) for v in (y, outputs, weights)))
    np.testing.assert_array_equal(noise.variance(), before)


def test_an_exact_fit_leaves_the_noise_that_its_rows_allow():
    """N residuals of 0 say that the noise is about the targets' spread over sqrt(N)."""
    model = compiled()
    y, outputs, weights = batch(1.0)
    outputs[:] = y[:, np.newaxis]
    noise = model.likelihood.closed_form_noise
    learn_noise(model, *(tf.constant(v, tf.float32) for v in (y, outputs, weights)))
    expected = mode(y, outputs, weights)
    assert (expected > 0).all()
    np.testing.assert_allclose(noise.variance(), expected, rtol=1e-3)


def test_the_optimizer_leaves_a_noise_in_closed_form_alone():
    model = compiled()
    rho = model.likelihood.rho
    assert all(v is not rho for v in without_noise(model))
    assert any(v is rho for v in model.trainable_variables)
    student = compiled(likelihood="student_t")
    assert student.likelihood.closed_form_noise is None
    assert any(v is student.likelihood.rho for v in without_noise(student))
    model.compile("adam", loss=r1.losses.MixtureNLL())
    assert any(v is model.likelihood.rho for v in without_noise(model))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_intervals_cover_right_after_conversion_in_any_unit(unit):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype("float32")
    y = (unit * (x[:, :1] + 0.1 * rng.normal(size=(600, 1)))).astype("float32")
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    net.layers[0].set_weights([unit * np.eye(4, 1, dtype="float32")])
    model = r1.convert(net, likelihood="normal")
    # Adam moves a kernel by its rate at each step, so the rate has the kernel's unit.
    model.compile(keras.optimizers.Adam(1e-3 * min(unit, 1.0)))
    model.fit(x[:400], y[:400], epochs=2, verbose=0)
    low, high = map(np.asarray, model.posterior_predictive(x[400:], seed=0).credible_interval(0.9))
    covered = ((low <= y[400:]) & (y[400:] <= high)).mean()
    assert 0.84 < covered < 0.995
    assert float(model.likelihood.scale[0]) / unit == pytest.approx(0.1, rel=0.3)


START = {
    "heteroscedastic": (r1.likelihoods.HeteroscedasticNormal, 2),
    "student_t": (r1.likelihoods.StudentT, 1),
    "laplace": (r1.likelihoods.Laplace, 1),
}


def stddev_of(model, x):
    with r1.posterior_mean():
        return np.asarray(model.likelihood.distribution(model(x)).stddev())


@pytest.mark.parametrize("unit", [1e-3, 1e6])
@pytest.mark.parametrize("kind", ["rank1", "bali"])
@pytest.mark.parametrize("name", START)
def test_other_scales_start_at_the_first_residuals(name, kind, unit):
    """In any unit of the target, from the first step on; a scale that is about right stays."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(ROWS, INPUTS)).astype("float32")
    y = (unit * np.random.default_rng(1).normal(size=(ROWS, 1))).astype("float32")
    make, size = START[name]
    inputs = keras.Input((INPUTS,))
    if kind == "bali":
        model = bk.BaliModel(
            inputs, bk.layers.DenseBali(size, kernel_initializer="zeros")(inputs), likelihood=make()
        )
        model.compile(None if name == "heteroscedastic" else keras.optimizers.SGD(0.0))
    else:
        zeros = keras.layers.Dense(size, kernel_initializer="zeros")
        model = r1.BayesianModel(inputs, zeros(inputs), likelihood=make())
        model.compile(keras.optimizers.SGD(0.0))
    model.fit(x, y, batch_size=ROWS, verbose=0)
    expected = np.std(y)
    found = stddev_of(model, x)
    assert np.all((found > 0.5 * expected) & (found < 2.0 * expected))
    before = [np.array(v) for v in model.likelihood.variables]
    if kind == "rank1":  # compiled anew, as for a second phase of training
        model.compile(keras.optimizers.SGD(0.0))
        model.fit(x, y, batch_size=ROWS, verbose=0)
        for a, b in zip(before, model.likelihood.variables, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_first_batch_that_is_refused_starts_nothing():
    x, y = np.ones((4, INPUTS)), np.ones((4, 1))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    inputs = keras.Input((INPUTS,))
    model = r1.BayesianModel(
        inputs, keras.layers.Dense(2)(inputs), likelihood="heteroscedastic_normal"
    )
    model.compile("sgd")
    bad = data.map(lambda a, b: (a * np.inf, b * 1e6))
    with pytest.warns(UserWarning, match="left the model as it was"):
        model.fit(bad, verbose=0)
    np.testing.assert_array_equal(model.likelihood.unit, [1.0])


def test_width_that_training_left_counts_once():
    """Against the equation by hand: variance beyond twice P v / N leaves the noise."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((INPUTS,))
    with r1.members(4):
        wide = r1.posteriors.Normal(stddev=0.5)
        h = r1.layers.DenseRank1(2, posterior=wide)(r1.layers.TileMembers()(inputs))
        outputs = r1.layers.SplitMembers()(h)
    model = r1.BayesianModel(inputs, outputs, likelihood="normal", num_train_examples=ROWS)
    model.compile(keras.optimizers.Adam(1e-2))
    model.build_optimizer()
    random = INPUTS + 2
    rng = np.random.default_rng(0)
    for spread in (0.05, 0.15, 0.3):  # within, beyond, and beyond the bound
        y = rng.normal(size=(64, 2))
        z = y[:, None] + 0.3 * rng.normal(size=(64, 1, 2)) + spread * rng.normal(size=(64, 4, 2))
        mean, s2 = ((y[:, None] - z) ** 2).mean((0, 1)), z.var(1, ddof=1).mean(0)
        u = np.maximum(mean - 2 * np.maximum(0.0, s2 - 2 * random / ROWS * mean), mean / 4)
        strength = noise_module._PRIOR_EXAMPLES
        expected = (strength * y.var(0) + ROWS * u) / (strength + ROWS)
        noise = model.likelihood.closed_form_noise
        learn_noise(model, *(tf.constant(v, tf.float32) for v in (y, z)), None)
        np.testing.assert_allclose(noise.variance(), expected, rtol=1e-3)
        assert np.all((u < 0.95 * mean) == (spread > 0.1))


@pytest.mark.parametrize("unit", [1e-3, pytest.param(1.0, marks=pytest.mark.slow), 1e6])
def test_intervals_cover_right_after_convert(unit):
    """In any unit of the target, after two epochs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 4)).astype("float32")
    y = (unit * (x[:, :1] + 0.1 * rng.normal(size=(1000, 1)))).astype("float32")
    hidden = keras.layers.Dense(16, activation="relu")
    net = keras.Sequential(
        [keras.Input((4,)), hidden, keras.layers.Dense(1), keras.layers.Rescaling(unit)]
    )
    net.compile(keras.optimizers.Adam(1e-2), lambda a, b: ((a - b) / unit) ** 2)
    net.fit(x, y, epochs=30, verbose=0)
    model = r1.convert(net, likelihood="normal")
    model.compile("adam")
    model.fit(x, y, epochs=2, verbose=0)
    low, high = model.posterior_predictive(x, seed=0).credible_interval(0.9)
    assert 0.86 <= np.mean((low <= y) & (y <= high)) <= 0.94
