"""Stock models as BALI models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1


@pytest.fixture(scope="module")
def trained(digits):
    keras.utils.set_random_seed(0)
    x, y, _, _ = digits
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=15, verbose=0)
    return model


@pytest.mark.parametrize("prior_at_kernels", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_converted_model_starts_at_the_kernels_and_gains_a_posterior(
    trained, digits, prior_at_kernels
):
    x, y, x_test, y_test = digits
    model = bk.convert(trained, "categorical", prior_at_kernels=prior_at_kernels)
    expected = trained.predict(x_test, verbose=0)
    with r1.posterior_mean():
        found = model.predict(x_test, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [type(v).__name__ for v in model.bali_layers] == ["Conv2DBali", "DenseBali", "DenseBali"]
    model.compile()
    model.fit(x, y, batch_size=32, epochs=1, verbose=0)
    p = model.posterior_predictive(x_test, num_samples=32, seed=0)
    accuracy = np.mean(np.argmax(expected, 1) == y_test)
    assert np.mean(np.argmax(p.mean(), 1) == y_test) > accuracy - 0.02
    assert np.mean(p.mutual_information()) > 1e-3
    nll = -np.mean(np.log(expected[np.arange(len(y_test)), y_test]))
    assert -np.mean(p.log_prob(y_test)) < 1.1 * nll


def test_conversion_refuses_what_it_cannot_do():
    class Net(keras.Model):
        pass

    with pytest.raises(ValueError, match="subclassed"):
        bk.convert(Net(), "categorical")
    doubled = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Activation("sigmoid")]
    )
    with pytest.raises(ValueError, match="raw outputs"):
        bk.convert(doubled, "categorical")
    empty = keras.Sequential([keras.Input((4,)), keras.layers.Activation("relu")])
    with pytest.raises(ValueError, match="no trainable layer that can be converted"):
        bk.convert(empty, "normal")


@pytest.mark.parametrize(
    ("likelihood", "activation"),
    [
        ("categorical", tf.nn.softmax),
        ("categorical", keras.ops.softmax),
        ("bernoulli", "sigmoid"),
        ("bernoulli", tf.nn.sigmoid),
        ("poisson", "exponential"),
        ("poisson", tf.exp),
        ("categorical", keras.layers.Softmax()),
        ("categorical", keras.layers.LeakyReLU(0.2)),
        ("categorical", "tanh"),  # raw outputs like any other
        ("normal", "softplus"),
    ],
)
def test_the_function_of_the_likelihood_is_applied_once(likelihood, activation):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    inputs = keras.Input((4,))
    stock = keras.Model(inputs, keras.layers.Dense(3, activation=activation)(inputs))
    model = bk.convert(stock, likelihood)
    with r1.posterior_mean():
        found = model(x)
    applied = {"categorical": tf.nn.softmax, "bernoulli": tf.sigmoid, "poisson": tf.exp}
    if not (activation in ("tanh", "softplus") or isinstance(activation, keras.layers.LeakyReLU)):
        found = applied[likelihood](found)
    np.testing.assert_allclose(found, stock(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "last"),
    [
        ("categorical", keras.layers.Dense(3, activation="sigmoid")),
        ("bernoulli", keras.layers.Dense(3, activation="softmax")),
        ("poisson", keras.layers.Dense(3, activation="softplus")),
        ("categorical", keras.ops.sigmoid),
    ],
)
def test_outputs_that_are_not_raw_are_refused(likelihood, last):
    inputs = keras.Input((4,))
    stock = keras.Model(inputs, last(keras.layers.Dense(3)(inputs)))
    with pytest.raises(ValueError, match="takes raw outputs and applies"):
        bk.convert(stock, likelihood)


def test_a_frozen_backbone_stays_as_it_is():
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
    backbone = keras.Model(inputs, h, name="backbone")
    backbone.trainable = False
    outer = keras.Input((8, 8, 1))
    stock = keras.Model(outer, keras.layers.Dense(3)(backbone(outer, training=False)))
    model = bk.convert(stock, "categorical")
    assert [layer.units for layer in model.bali_layers] == [3]
    assert not model.get_layer("backbone").trainable_variables
    model.compile()
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), stock(x), atol=1e-5)
    model.fit(x, np.zeros(32, "int32"), verbose=0)
    for ours, theirs in zip(model.get_layer("backbone").weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "after",
    [
        keras.layers.Reshape((3,)),
        keras.layers.Activation("linear", dtype="float32"),
        keras.layers.Identity(),
    ],
)
def test_a_softmax_behind_other_layers_is_seen(after):
    inputs = keras.Input((4,))
    outputs = after(keras.layers.Dense(3, activation="softmax")(inputs))
    stock, x = keras.Model(inputs, outputs), np.ones((2, 4), "float32")
    with r1.posterior_mean():
        found = tf.nn.softmax(bk.convert(stock, "categorical")(x))
    np.testing.assert_allclose(found, stock(x), rtol=1e-5)


def test_constants_made_of_weights_come_along():
    """An adapted normalization computes with some."""
    x = np.random.default_rng(0).normal(5.0, 3.0, (100, 4)).astype("float32")
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential([keras.Input((4,)), normalization, keras.layers.Dense(2)])
    converted = bk.convert(model, likelihood=r1.likelihoods.Normal())
    with r1.posterior_mean():
        outputs = tf.reshape(converted(x), [100, 2])
    np.testing.assert_allclose(outputs, model(x), rtol=1e-4, atol=1e-4)


def test_parts_with_losses_of_their_own():
    """Their compilation is not taken over, and they keep it."""

    class Squares(keras.losses.Loss):
        """Not registered, so that no configuration leads back to it."""

        def call(self, y_true, y_pred):
            return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu")])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(1)])
    for part in (inner, model):
        part.compile("sgd", Squares())
    converted = bk.convert(model, "normal")
    assert len(converted.bali_layers) == 2
    assert inner.compiled and model.compiled
    assert not any(getattr(v, "compiled", False) for v in converted._flatten_layers())
    x = np.ones((2, 4), "float32")
    with r1.posterior_mean():
        np.testing.assert_allclose(converted(x), model(x), rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Doubling(keras.Model):
    """A subclassed model within a graph: its layers are in no graph that could be cloned."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.built = True

    def call(self, x):
        return 2.0 * self.dense(x)


def test_a_subclassed_model_within_keeps_its_weights():
    inputs = keras.Input((4,))
    stock = keras.Model(inputs, keras.layers.Dense(2)(Doubling()(inputs)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    with pytest.warns(UserWarning, match=r"Only 35%.*'doubling' \(Doubling, 15\)"):
        converted = bk.convert(stock, "normal")
    with r1.posterior_mean():
        np.testing.assert_allclose(converted(x), stock(x), rtol=1e-5, atol=1e-6)
    assert not any(v.trainable for v in converted.layers if isinstance(v, Doubling))
