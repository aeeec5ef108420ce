"""What `convert` cannot do, and says."""

import sys

import keras
import numpy as np
import pytest
from keras import ops
from test_convert import dense_net

import tfp_rank1 as r1

layers = keras.layers


class Subclassed(keras.Model):
    def call(self, x):
        return x


def nested_subclassed():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(Subclassed()(inputs)))


def with_lambda():
    return keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x), layers.Dense(2)])


def between(operation):
    """A net with an operation on its hidden units."""

    def make():
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(2)(operation(layers.Dense(3)(inputs))))

    return make


def on_input(**kwargs):
    """A net on an input of that kind."""

    def make():
        inputs = keras.Input((4,), **kwargs)
        return keras.Model(inputs, layers.Dense(2)(inputs))

    return make


def quantized():
    net = dense_net()
    net.layers[0].quantize("int8")
    return net


def time_major():
    inputs = keras.Input((None, 4))
    h = ops.transpose(layers.Dense(3)(inputs), (1, 0, 2))
    return keras.Model(inputs, layers.Dense(2)(ops.mean(h, axis=1)))


def excluded_mean():
    inputs = keras.Input((4,), batch_size=3)
    inner = keras.Model(inputs, inputs - ops.sum(inputs, axis=0, keepdims=True), name="inner")
    return keras.Model(inputs, layers.Dense(2)(inner(inputs)))


def excluded_lambda():
    within = keras.Sequential(with_lambda().layers)
    inner = keras.Sequential([keras.Input((4,)), within], name="inner")
    return keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)])


def excluded_wrapper():
    wrapper = layers.TimeDistributed(layers.Lambda(lambda v: v), name="wrapper")
    return keras.Sequential([keras.Input((5, 4)), wrapper, layers.Flatten(), layers.Dense(2)])


class OwnCall(keras.Model):
    def call(self, x, training=None):
        return 10.0 * super().call(x, training=training)


def with_own_call():
    inputs = keras.Input((4,))
    return OwnCall(inputs, layers.Dense(2)(inputs))


def nested_own_call():
    """A model within a model within the model."""
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, with_own_call()(inputs))
    return keras.Sequential([inputs, inner, layers.Dense(2)])


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(1)(inputs)])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Subclassed, {}, "rewrite a subclassed one with rank-1 layers"),
        (nested_subclassed, {}, "rewrite a subclassed one.*Received: Subclassed"),
        (lambda: keras.Sequential([layers.Dense(2)]), {}, "built=False"),
        (with_lambda, {}, "A Lambda layer may mix the rows"),
        (
            between(lambda h: h - ops.mean(h, 0, keepdims=True)),
            {},
            r"batch axis.*Mean .*axis=\[0\]",
        ),
        (between(lambda h: h / ops.max(h)), {}, r"batch axis.*from .*\(None, 3\).* to \[\(\)\]"),
        (between(lambda h: ops.transpose(ops.transpose(h))), {}, r"batch axis.*to \[\(3, None\)\]"),
        (between(lambda h: ops.softmax(h, axis=-2)), {}, r"batch axis.*axis=\[-2\]"),
        (between(lambda h: layers.Concatenate(axis=0)([h, h])), {}, "batch axis.*Concatenate"),
        (with_own_call, {}, "A model with a `call` of its own.*Received: OwnCall"),
        (nested_own_call, {}, "A model with a `call` of its own.*Received: OwnCall"),
        (lambda: r1.models.mlp((4,), 2), {}, "has rank-1 layers already"),
        (two_outputs, {}, "a likelihood for each.*'output_0', 'output_1'"),
        (dense_net, {"units": 7}, r"takes the arguments of rank-1 layers.*\['units'\]"),
        (dense_net, {"kl_weight": 0.1}, r"owns the weight of the KL"),
        (dense_net, {"exclude": "dense"}, "must be a collection of names"),
        (dense_net, {"bias_posterior": "log_normal"}, "biases of the model may be negative"),
        (on_input(sparse=True), {}, "dense and always given.*sparse=True"),
        (on_input(ragged=True), {}, "dense and always given.*ragged=True"),
        (on_input(optional=True), {}, "dense and always given.*optional=True"),
        (quantized, {}, "A quantized layer has no kernel.*int8"),
        (between(lambda h: ops.flip(h)), {}, "batch axis.*Flip"),
        (between(lambda h: ops.roll(h, 1)), {}, "batch axis.*Roll"),
        (time_major, {}, "batch axis.*Transpose"),
        (between(lambda h: ops.matmul(ops.einsum("ij,kj->ik", h, h), h)), {}, "batch axis.*Einsum"),
        pytest.param(
            between(lambda h: ops.tensordot(ops.inner(h, h), h, 1)),
            {},
            "batch axis.*Inner",
            marks=pytest.mark.skipif(
                keras.__version__ < "3.15", reason="Keras takes the shape of inner for a scalar's"
            ),
        ),
        (between(lambda h: ops.softmax(h, axis=None)), {}, "batch axis.*Softmax"),
        (between(lambda h: ops.reshape(ops.cumsum(h), (-1, 3))), {}, "batch axis.*Cumsum"),
        (between(lambda h: ops.tril(h)), {}, "batch axis.*Tril"),
        (between(lambda h: ops.associative_scan(ops.add, h)), {}, "batch axis.*AssociativeScan"),
        (excluded_lambda, {"exclude": ["inner"]}, "A Lambda layer may mix the rows"),
        (excluded_wrapper, {"exclude": ["wrapper"]}, "A Lambda layer may mix the rows"),
        (excluded_mean, {"exclude": ["inner"]}, "batch axis.*Sum"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.ReLU()]), {}, "no layer that can be"),
        (dense_net, {"exclude": ["nobody"]}, r"names of layers. Received: \['nobody'\]"),
        (dense_net, {"batch_normalization": "own"}, "must be 'member' or 'shared'"),
        (dense_net, {"prior": "gauss"}, "Unknown prior"),
        (dense_net, {"ensemble_size": 0}, "`ensemble_size` must be a whole number"),
    ],
)
def test_refusals_say_why(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        r1.convert(make(), likelihood="normal", **arguments)


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: ops.einsum("id,id->id", h, h),
        lambda h: ops.reshape(ops.softmax(ops.reshape(h, (-1, 1, 3))), (-1, 3)),
        lambda h: ops.take(np.eye(3, dtype="float32"), ops.argmax(h, axis=-1), axis=0),
        lambda h: ops.where(h > 0, h, ops.cumsum(h, axis=-1)),
        lambda h: ops.stack(ops.unstack(h, axis=1), axis=-1),
        lambda h: ops.vectorized_map(ops.tanh, h),
    ],
)
def test_operations_that_keep_the_rows_apart_are_taken(operation):
    model = between(operation)()
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    converted = r1.convert(model, 2, likelihood="normal")
    with r1.posterior_mean():
        for member in range(2):
            np.testing.assert_allclose(converted(x)[:, member], model(x), atol=1e-5)


class SoftmaxOverRows(layers.Layer):
    """A softmax over the rows of each member."""

    def call(self, x, mask=None):
        by_member = ops.reshape(x, (2, -1, x.shape[-1]))
        return ops.reshape(ops.softmax(by_member, axis=1), (-1, x.shape[-1]))


def test_a_converter_of_ones_own_answers_for_the_batch_axis(monkeypatch):
    model = between(layers.Softmax(axis=0))()
    with pytest.raises(ValueError, match="batch axis"):
        r1.convert(model, likelihood="normal")
    monkeypatch.setattr(sys.modules["tfp_rank1.conversion.convert"], "_registered", {})
    r1.register_converter(layers.Softmax, lambda layer, arguments: SoftmaxOverRows(name=layer.name))
    assert "softmax" in str(r1.convert(model, 2, likelihood="normal").conversion_report)
