"""Recurrent BALI layers: the stock function, unrolled counterparts, masks, answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.moments import Moments, propagate

K, L = keras.layers, bk.layers
RNG = np.random.default_rng(0)
ROWS, STEPS, INPUTS, UNITS = 12, 5, 3, 4
KINDS = {"lstm": (K.LSTM, L.LSTMBali), "gru": (K.GRU, L.GRUBali)}


def sequences(rows=ROWS):
    x = RNG.normal(size=(rows, STEPS, INPUTS)).astype("float32")
    return x, (x.sum(axis=(1, 2)) > 0).astype("int32")


def stock_net(kind, **arguments):
    inputs = keras.Input((STEPS, INPUTS))
    h = K.Masking()(inputs)
    h = KINDS[kind][0](UNITS, return_sequences=True, bias_initializer="normal", **arguments)(h)
    h = KINDS[kind][0](UNITS, bias_initializer="normal")(h)
    return keras.Model(inputs, K.Dense(2)(h))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("go_backwards", [False, True])
def test_a_converted_net_computes_the_same(kind, go_backwards):
    stock = stock_net(kind, go_backwards=go_backwards)
    model = bk.convert(stock, "categorical")
    x, _ = sequences()
    x[:6, 3:] = 0.0
    if go_backwards:  # the stock layer returns its mask as it came, in the order of the inputs
        x = x[:, :, :] + 1.0
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-5)
    assert [row.before for row in model.conversion_report.left if row.parameters] == []


def unrolled(kind):
    """The cell of the layer as shared dense layers and operations, step by step."""
    gates = 4 if kind == "lstm" else 3
    inputs = keras.Input((STEPS, INPUTS))
    of_input = L.DenseBali(gates * UNITS, name="input_map")(inputs)
    recurrent = L.DenseBali(gates * UNITS, use_bias=kind == "gru", name="recurrent_map")
    h = c = keras.ops.zeros_like(inputs[:, 0, :1]) * np.ones((1, UNITS), "float32")
    sigmoid, tanh, split = keras.ops.sigmoid, keras.ops.tanh, keras.ops.split
    for step in range(STEPS):
        x, z = of_input[:, step], recurrent(h)
        if kind == "lstm":
            i, f, g, o = split(x + z, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(c)
        else:
            (xz, xr, xc), (hz, hr, hc) = split(x, 3, axis=-1), split(z, 3, axis=-1)
            update = sigmoid(xz + hz)
            h = update * h + (1.0 - update) * tanh(xc + sigmoid(xr + hr) * hc)
    return bk.BaliModel(inputs, L.DenseBali(2, name="head")(h), likelihood="categorical")


def rolled(kind):
    inputs = keras.Input((STEPS, INPUTS))
    h = KINDS[kind][1](UNITS)(inputs)
    return bk.BaliModel(inputs, L.DenseBali(2, name="head")(h), likelihood="categorical")


def by_name(model):
    return {layer.name: layer.posterior_state for layer in model.bali_layers}


@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_a_step_is_that_of_the_unrolled_cell(kind):
    """Time steps are rows that share W and U; without noise, so that both see the same numbers."""
    x, y = sequences()
    one, other = rolled(kind), unrolled(kind)
    other.seed_generator.state.assign(one.seed_generator.state)
    for name, state in by_name(one).items():
        by_name(other)[name].mean.assign(state.mean)
    for model in (one, other):
        model.compile(
            forgetting=1.0, warmup_steps=1, prior_precision=1.0, damping=0.1, covariance_scale=1.0
        )
        with r1.posterior_mean():
            model.fit(x, y, batch_size=ROWS, epochs=3, verbose=0)
    for name, state in by_name(one).items():
        expected = by_name(other)[name]
        np.testing.assert_allclose(
            state.rows.average.value(), expected.rows.average.value(), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            state.fisher.value(), expected.fisher.value(), rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(state.mean, expected.mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_training_answers_files_and_masks(kind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, INPUTS))
    h = KINDS[kind][1](UNITS)(K.Masking()(inputs))
    model = bk.BaliModel(inputs, L.DenseBali(2)(h), likelihood="categorical")
    model.compile(prior_precision=0.1, covariance_scale=1.0)
    x, _ = sequences(80)
    x[:40, 3:] = 0.0
    y = (x.sum(axis=(1, 2)) > 0).astype("int32")
    history = model.fit(x, y, batch_size=16, epochs=40, verbose=0).history
    assert not any(history["refused"])
    p = model.posterior_predictive(x, 16, seed=0)
    assert np.mean(np.argmax(p.mean(), axis=1) == y) > 0.85
    assert np.ptp(np.asarray(p.outputs), axis=1).max() > 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.posterior_predictive(x, 16, seed=0).mean(), p.mean())
    at_once = model.posterior_predictive(x, method="moments")
    assert np.abs(at_once.mean() - p.mean()).mean() < 0.05
    counted = by_name(model)["recurrent_map"].rows.average
    assert float(counted.weight) > 0.0
    model.export_predictive(str(tmp_path / "served"))


def a_layer(kind, **arguments):
    """A recurrent layer whose biases and time steps all matter."""
    layer = KINDS[kind][1](UNITS, seed=0, **arguments)
    layer.build((None, STEPS, INPUTS))
    rng = np.random.default_rng(1)
    for inner in (layer.input_map, layer.recurrent_map):
        state = inner.posterior_state
        state.mean.assign(rng.normal(size=state.mean.shape) / 2.0)
        state.rows.take(0.3 * tf.eye(state.size[0]), tf.constant(True))
        state.column_factor.assign(0.3 * np.eye(state.size[1]))
        state.column_covariance.assign(0.09 * np.eye(state.size[1]))
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [{"return_sequences": True}, {"go_backwards": True}])
def test_moments_without_variances_are_the_layer(kind, arguments):
    layer, (x, _) = a_layer(kind, **arguments), sequences()
    mask = RNG.random((ROWS, STEPS)) < 0.7
    for given in (None, mask):
        with r1.posterior_mean():
            found = propagate(layer, Moments(tf.constant(x), mask=given))
            expected = layer(x, mask=given)
        np.testing.assert_allclose(found.mean, expected, atol=1e-5)
        np.testing.assert_allclose(found.variance_or_zeros(), 0.0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_samples(kind):
    """Time steps count as independent: over all units the deviation is right to a fifth."""
    layer, (x, _) = a_layer(kind), sequences(4)
    found = propagate(layer, Moments(tf.constant(x)))
    call = tf.function(lambda: layer(x), autograph=False)
    draws = np.stack([call() for _ in range(800)])
    np.testing.assert_allclose(found.mean, draws.mean(axis=0), atol=0.03)
    ratio = np.sqrt(np.mean(found.variance) / np.mean(draws.var(axis=0)))
    assert abs(ratio - 1.0) < 0.2


def test_layers_with_states_are_left():
    inputs = keras.Input((STEPS, INPUTS))
    h = K.GRU(UNITS, reset_after=False)(inputs)
    model = keras.Model(inputs, K.Dense(2)(h))
    with pytest.warns(UserWarning, match="became Bayesian"):
        converted = bk.convert(model, "categorical")
    assert [row.before for row in converted.conversion_report.left] == ["GRU"]


@pytest.mark.parametrize("make", [lambda: L.LSTMBali(0), lambda: L.GRUBali(2, row_covariance="x")])
def test_bad_arguments(make):
    with pytest.raises(ValueError, match=r"units|row_covariance"):
        make()


def test_a_state_to_begin_with_is_refused():
    with pytest.raises(ValueError, match=r"Argument `initial_state` must be None"):
        a_layer("gru")(sequences()[0], initial_state=np.zeros((ROWS, UNITS)))
