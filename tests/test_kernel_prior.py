"""The prior of the kernels of rank-1 nets."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.model.kernel_prior import kernel_penalty, kernels

L = r1.layers


def fans(*layers, shape=(8, 8, 3)):
    h = inputs = keras.Input(shape)
    for layer in layers:
        h = layer(h, h) if isinstance(layer, keras.layers.MultiHeadAttention) else layer(h)
    return [(kernel.name, fan_in) for kernel, fan_in in kernels(keras.Model(inputs, h))]


def test_fan_in_of_every_kind_of_kernel():
    """The number of inputs of one unit: a channel of a depthwise convolution is a unit."""
    assert fans(L.DenseRank1(5), shape=(7,)) == [("kernel", 7)]
    assert fans(L.Conv2DRank1(4, 3)) == [("kernel", 27)]
    assert fans(L.Conv2DTransposeRank1(4, 2)) == [("kernel", 12)]
    assert fans(L.DepthwiseConv2DRank1(3, depth_multiplier=2)) == [("kernel", 9)]
    found = fans(L.SeparableConv2DRank1(4, 3))
    assert found == [("depthwise_kernel", 9), ("pointwise_kernel", 3)]
    found = fans(L.LSTMRank1(5), shape=(6, 3))
    assert found == [("kernel", 3), ("recurrent_kernel", 5)]
    assert fans(L.EinsumDenseRank1("abc,cd->abd", output_shape=(None, 4)), shape=(6, 3)) == [
        ("kernel", 3)
    ]
    found = fans(L.MultiHeadAttentionRank1(2, 4), shape=(6, 3))
    assert sorted(fan_in for _, fan_in in found) == [3, 3, 3, 8]
    assert fans(L.EmbeddingRank1(10, 4), shape=(6,)) == []


def test_penalty_is_the_negative_log_density():
    inputs = keras.Input((7,))
    model = keras.Model(inputs, L.DenseRank1(4)(L.DenseRank1(5)(inputs)))
    precision = 0.3
    expected = 0.0
    for layer, fan_in in zip(model.layers[1:], (7, 5), strict=True):
        prior = tfd.Normal(tf.zeros((), "float64"), 1.0 / np.sqrt(precision * fan_in))
        kernel = layer.kernel.numpy().astype("float64")
        expected -= np.sum(prior.log_prob(kernel) - prior.log_prob(0.0))
    assert float(kernel_penalty(model, precision)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_holds_the_prior_once_and_divided_by_n():
    model = small_classifier()
    x = np.random.default_rng(0).normal(size=(20, 64)).astype("float32")
    y = np.zeros(20, "int32")
    model.num_train_examples = 50
    model(x)
    losses = []
    for precision in (0.0, 0.5):
        model.compile("adam", kernel_precision=precision)
        losses.append(model.evaluate(x, y, verbose=0, return_dict=True))
    difference = losses[1]["loss"] - losses[0]["loss"]
    assert difference == pytest.approx(float(kernel_penalty(model, 0.5)) / 50, rel=1e-3)
    assert losses[0]["nll"] == losses[1]["nll"]
    assert losses[0]["kl"] == losses[1]["kl"]


def test_a_strong_prior_shrinks_kernels():
    x = np.random.default_rng(0).normal(size=(40, 64)).astype("float32")
    y = np.arange(40) % 10
    sizes = []
    for precision in (0.0, 10.0):
        keras.utils.set_random_seed(0)
        model = small_classifier()
        model.compile(keras.optimizers.Adam(0.01), kernel_precision=precision)
        model.fit(x, y, epochs=20, verbose=0)
        sizes.append(sum(float(np.sum(k.numpy() ** 2)) for k, _ in kernels(model)))
    assert sizes[1] < 0.2 * sizes[0]


def test_frozen_kernels_have_no_prior():
    model = small_classifier()
    model(np.zeros((1, 64), "float32"))
    model.freeze_slow_weights()
    assert list(kernels(model)) == []


def test_defaults_and_saved_values(tmp_path):
    model = small_classifier()
    model.compile("adam", kernel_precision=0.25)
    model.build_optimizer()
    assert model.kernel_precision == 0.25
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").kernel_precision == 0.25
    inputs = keras.Input((4,))
    stock = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    converted = r1.convert(stock, likelihood="categorical")
    converted.compile("adam")
    assert converted.kernel_precision == 0.0
    points = r1.BayesianModel(inputs, keras.layers.Dense(2)(inputs), likelihood="categorical")
    points.compile("adam")
    assert points.kernel_precision == 0.0
    with pytest.raises(ValueError, match="`kernel_precision` must be a finite number of at least"):
        model.compile("adam", kernel_precision=-1.0)
