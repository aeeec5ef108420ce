"""Moments of recurrent layers, attention and the layers around them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import members_input
from test_moments import draws_of, random_moments, repeated

import tfp_rank1 as r1
from tfp_rank1.moments import Moments, propagate
from tfp_rank1.predictive.moments import moment_outputs

layers = keras.layers
X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0]], bool)
NARROW = r1.posteriors.Normal(stddev=0.1)

RECURRENT = {
    "lstm": lambda **k: layers.LSTM(5, **k),
    "gru": lambda **k: layers.GRU(5, **k),
    "gru before": lambda **k: layers.GRU(5, reset_after=False, **k),
    "simple": lambda **k: layers.SimpleRNN(5, **k),
    "stacked": lambda **k: layers.RNN([layers.LSTMCell(4), layers.GRUCell(5)], **k),
    "lstm rank1": lambda **k: r1.layers.LSTMRank1(5, ensemble_size=2, posterior=NARROW, **k),
    "gru rank1": lambda **k: r1.layers.GRURank1(5, ensemble_size=2, posterior=NARROW, **k),
    "gru before rank1": lambda **k: r1.layers.GRURank1(
        5, ensemble_size=2, posterior=NARROW, reset_after=False, **k
    ),
}
ATTENTION = {
    "stock": lambda **k: layers.MultiHeadAttention(2, 4, **k),
    "along one axis": lambda **k: layers.MultiHeadAttention(2, 4, attention_axes=(1,), **k),
    "rank1": lambda **k: r1.layers.MultiHeadAttentionRank1(
        2, 4, ensemble_size=2, posterior=NARROW, **k
    ),
}


def known(x, mask=None):
    """Moments without any variance that rules take nevertheless."""
    return Moments(tf.constant(x), tf.zeros_like(x), None if mask is None else tf.constant(mask))


def check_equal(found, expected):
    for moments, value in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(moments.mean, value, atol=1e-5)
        np.testing.assert_allclose(moments.variance_or_zeros(), 0.0, atol=1e-10)


def moved(layer):
    """The layer with other biases than zeros."""
    rng = np.random.default_rng(1)
    for variable in layer.weights:
        if "bias" in variable.name:
            variable.assign(rng.normal(size=variable.shape))
    return layer


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_without_variances_is_the_layer(name):
    for options in (
        {"return_sequences": True, "zero_output_for_mask": True},
        {"return_state": True, "unroll": True},
        {"go_backwards": True},
    ):
        layer = RECURRENT[name](**options)
        layer(X)
        moved(layer)
        for mask in (None, MASK):
            with r1.posterior_mean():
                expected = layer(X, mask=mask)
            with r1.scopes.posterior_scale.set(1e-14):
                check_equal(propagate(layer, known(X, mask)), expected)


def test_a_recurrent_layer_goes_on_from_a_state():
    layer, state = layers.GRU(5), np.ones((4, 5), "float32")
    expected = layer(X, initial_state=state)
    check_equal(propagate(layer, known(X), initial_state=known(state)), expected)
    with pytest.raises(ValueError, match=r"stateful=True.*"):
        propagate(layers.GRU(5, stateful=True), known(X))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_without_variances_is_attention(name):
    layer, keys = ATTENTION[name](), X[:, ::-1][:, :5].copy()
    mask = MASK[:, :5] | (np.arange(5) == 0)  # every query sees a key
    for options in ({}, {"use_causal_mask": True}):
        for given in (None, mask):
            with r1.posterior_mean():
                expected = layer(X, keys, value_mask=given, **options)
            with r1.scopes.posterior_scale.set(1e-14):
                check_equal(propagate(layer, known(X), known(keys, given), **options), expected)


def test_attention_with_a_gate_and_scores():
    layer = layers.MultiHeadAttention(2, 4, use_gate=True)
    expected = layer(X, X, return_attention_scores=True)
    check_equal(propagate(layer, known(X), known(X), return_attention_scores=True), expected)


# Steps and positions that share their noise count as independent: over all units the standard
# deviation is right to a fifth.
TOLERANCE = 0.2


def check_spread(found, values):
    np.testing.assert_allclose(found.mean, values.mean(0), atol=0.03)
    ratio = np.sqrt(np.mean(found.variance) / np.mean(values.var(0)))
    assert abs(ratio - 1.0) < TOLERANCE


@pytest.mark.parametrize("name", ["lstm", "gru", "gru before", "simple"])
def test_independent_inputs_of_a_sequence(name):
    x, layer = random_moments((2, 6, 3), scale=0.2), RECURRENT[name]()
    values = layer(draws_of(x, 4000).reshape(-1, 6, 3)).numpy()
    check_spread(propagate(layer, x), values.reshape(4000, 2, 5))


@pytest.mark.parametrize("name", ["lstm rank1", "gru rank1", "gru before rank1"])
def test_factors_of_a_recurrent_layer(name):
    layer = RECURRENT[name]()
    layer(X)
    check_spread(propagate(layer, Moments(tf.constant(X))), repeated(layer, X, 4000))


def test_factors_of_attention():
    layer, x = ATTENTION["rank1"](), Moments(tf.constant(X))
    layer(X, X)
    check_spread(propagate(layer, x, x), repeated(lambda v: layer(v, v), X, 4000))


def test_keys_and_values_of_attention():
    """One head of one entry and a known query: nothing but the order of the noise is neglected."""
    keys, values = random_moments((2, 6, 3), scale=0.2), random_moments((2, 6, 3), scale=0.2)
    layer, query = layers.MultiHeadAttention(1, 1), Moments(tf.constant(X[:2]))
    layer(query.mean, values.mean, keys.mean)
    draws = [draws_of(x, 4000, seed).reshape(-1, 6, 3) for seed, x in enumerate((values, keys))]
    outputs = layer(np.tile(X[:2], (4000, 1, 1)), *draws).numpy().reshape(4000, 2, 6, 3)
    found = propagate(layer, query, values, keys)
    np.testing.assert_allclose(found.mean, outputs.mean(0), atol=0.02)
    np.testing.assert_allclose(np.sqrt(found.variance), outputs.std(0), rtol=0.1)


# -- layers around layers -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave"])
def test_both_directions(mode):
    for returns in (False, True):
        layer = layers.Bidirectional(layers.LSTM(3, return_sequences=returns), merge_mode=mode)
        for mask in (None, MASK):
            expected = layer(X, mask=mask)
            check_equal(propagate(layer, known(X, mask)), expected)


def test_every_time_step_through_one_layer():
    layer, x = layers.TimeDistributed(layers.Dense(2, "relu")), random_moments((2, 4, 3))
    layer(x.mean)
    found = propagate(layer, x)
    for step in range(4):
        part = x.moved(lambda value, step=step: value[:, step])
        expected = propagate(layer.layer, part)
        np.testing.assert_allclose(found.mean[:, step], expected.mean, atol=1e-6)
        np.testing.assert_allclose(found.variance[:, step], expected.variance, atol=1e-6)


def test_masked_steps_are_zeros_and_pass_no_variance():
    x = random_moments((2, 4, 3))
    x = Moments(tf.where(tf.range(4)[:, tf.newaxis] < 3, x.mean, 0.0), x.variance)
    found = propagate(layers.Masking(), x)
    np.testing.assert_array_equal(found.variance[:, 3], 0.0)
    np.testing.assert_array_equal(found.variance[:, :3], x.variance[:, :3])


# -- nets ---------------------------------------------------------------------------------------


def lstm_net():
    inputs, h = members_input((5, 3), 2)
    h = layers.Masking()(h)
    with r1.members(2):
        h = r1.layers.TimeDistributedRank1(r1.layers.DenseRank1(4, "tanh"))(h)
        h = layers.Bidirectional(r1.layers.LSTMRank1(4))(h)
        h = r1.layers.DenseRank1(3)(h)
    return inputs, r1.layers.SplitMembers(2)(h)


def transformer_net():
    inputs, h = members_input((5, 4), 2)
    with r1.members(2):
        h = h + r1.layers.MultiHeadAttentionRank1(2, 2)(h, h)
        h = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(h))
        h = r1.layers.DenseRank1(3)(h)
    return inputs, r1.layers.SplitMembers(2)(h)


@pytest.mark.parametrize("net", [lstm_net, transformer_net])
def test_sequences_are_drawn_or_their_steps_count_as_independent(net):
    keras.utils.set_random_seed(0)
    model = r1.BayesianModel(*net(), likelihood="categorical")
    x = np.random.default_rng(0).normal(size=(20, *model.input_shape[1:])).astype("float32")
    x[:5, 3:] = 0.0
    q = model.posterior_predictive(x, num_samples=500, seed=0)
    for passes in (None, 0):
        p = model.posterior_predictive(x, method="moments", num_passes=passes)
        np.testing.assert_allclose(p.mean(), q.mean(), atol=0.02)
    if net is lstm_net:  # the loop over time steps

        def answer(values):
            return moment_outputs(model, values, num_passes=0)[0]

        compiled = tf.function(answer, jit_compile=True, autograph=False)(tf.constant(x))
        np.testing.assert_allclose(compiled, p.samples, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_recurrent_net_leaves_tensorflow(tmp_path):
    """LiteRT takes no loop: the time steps stand in the graph one by one."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = r1.BayesianModel(*lstm_net(), likelihood="categorical")
    x, path = X[:, :5], str(tmp_path / "served.tflite")
    model.export_predictive(path, method="moments", format="litert", num_passes=0)
    runner = interpreter.Interpreter(model_path=path).get_signature_runner("serving_default")
    p = model.posterior_predictive(x, method="moments", num_passes=0)
    np.testing.assert_allclose(runner(x=x)["probs"], p.mean(), atol=1e-5)
