"""The last function, which the likelihood applies, is dropped by `convert` or refused."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_convert import K, inputs_of, rng

import tfp_rank1 as r1

layers = keras.layers


def test_the_last_softmax_is_dropped():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    converted = r1.convert(model, K, likelihood="categorical")
    x = inputs_of(model)
    with r1.posterior_mean():
        logits = converted(x)
    np.testing.assert_allclose(tf.nn.softmax(logits)[:, 0], model(x), atol=1e-6)


def ends_in_activation(dense):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Activation("softmax", dtype="float32")(dense(inputs)))


def ends_behind_reshape(dense):
    inputs = keras.Input((4,))
    h = layers.Reshape((1, 3))(dense(inputs))
    return keras.Model(inputs, layers.Reshape((3,))(layers.Activation("softmax")(h)))


def ends_in_layer(dense):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Softmax()(dense(inputs)))


def ends_in_layer_of_a_sequential(dense):
    within = keras.Sequential([keras.Input((4,)), dense, layers.Softmax()])
    return keras.Sequential([keras.Input((4,)), within])


def ends_in_operation(dense):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.ops.softmax(dense(inputs)))


NETS = [
    ends_in_activation,
    ends_behind_reshape,
    ends_in_layer,
    ends_in_layer_of_a_sequential,
    ends_in_operation,
]


@pytest.mark.parametrize("net", NETS)
def test_a_softmax_layer_is_dropped(net):
    model = net(layers.Dense(3))
    converted = r1.convert(model, K, likelihood="categorical")
    x = inputs_of(model)
    with r1.posterior_mean():
        np.testing.assert_allclose(tf.nn.softmax(converted(x))[:, 1], model(x), atol=1e-6)


def softmax_twice():
    inputs, dense = keras.Input((3,)), layers.Dense(3, activation="softmax")
    return keras.Model(inputs, dense(dense(inputs)))


def softmax_in_a_model_used_twice():
    inputs, inner = keras.Input((3,)), softmax_net(3)
    return keras.Model(inputs, inner(inner(inputs)))


def softmax_in_a_wrapper():
    inputs = keras.Input((4,))
    dense = layers.SpectralNormalization(layers.Dense(3, activation="softmax"))
    return keras.Model(inputs, dense(inputs))


def softmax_by_position():
    inputs = keras.Input((2, 4))
    return keras.Model(inputs, layers.Flatten()(layers.Dense(3, activation="softmax")(inputs)))


def softmax_net(size=4):
    return keras.Sequential([keras.Input((size,)), layers.Dense(3, activation="softmax")])


@pytest.mark.parametrize(
    "net",
    [
        softmax_twice,
        softmax_in_a_model_used_twice,
        softmax_in_a_wrapper,
        softmax_by_position,
    ],
)
def test_a_softmax_that_cannot_be_dropped_is_refused(net):
    with pytest.raises(ValueError, match="takes raw outputs and applies softmax"):
        r1.convert(net(), K, likelihood="categorical")


def test_excluded_and_registered_layers_lose_their_softmax_too(monkeypatch):
    model, x = softmax_net(), rng.normal(size=(3, 4)).astype("float32")
    first = keras.Sequential([keras.Input((4,)), layers.Dense(4), model])
    found = [r1.convert(first, K, likelihood="categorical", exclude=[model.layers[0].name])]
    monkeypatch.setattr(sys.modules["tfp_rank1.conversion.convert"], "_registered", {})

    def make(layer, arguments):
        config = {**layer.get_config(), **arguments}
        return r1.layers.DenseRank1(**config)

    r1.register_converter(layers.Dense, make)
    found.append(r1.convert(first, K, likelihood="categorical"))
    for converted in found:
        with r1.posterior_mean():
            np.testing.assert_allclose(tf.nn.softmax(converted(x))[:, 0], first(x), atol=1e-6)
