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


@pytest.mark.parametrize("prior_at_kernels", [True, False])
def test_a_converted_model_starts_at_the_kernels_and_gains_a_posterior(
    trained, digits, prior_at_kernels
):
    x, y, x_test, y_test = digits
    model = bk.convert(trained, "categorical", prior_at_kernels=prior_at_kernels)
    expected = trained.predict(x_test, verbose=0)
    with r1.posterior_mean():
        found = tf.nn.softmax(model.predict(x_test, verbose=0))
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
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Activation("softmax")]
    )
    with pytest.raises(ValueError, match="raw outputs"):
        bk.convert(doubled, "categorical")
    empty = keras.Sequential([keras.Input((4,)), keras.layers.Activation("relu")])
    with pytest.raises(ValueError, match="no layer that can be converted"):
        bk.convert(empty, "normal")
