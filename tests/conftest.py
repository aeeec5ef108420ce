"""Two logical CPUs for every test process, fixed seeds, and shared real data."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import numpy as np
import pytest
import tensorflow as tf

# Before TensorFlow initialises: two logical devices, for MirroredStrategy.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import tfp_rank1 as r1  # noqa: E402  after the devices are set


def pytest_collection_finish(session):
    """What is imported by now stays, and graphs are large: collected seldom, both cost less."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def check_equal(found, expected):
    """Lists of arrays or variables, to the bit."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def strategy():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's handwritten digits, `(x_train, y_train, x_test, y_test)`."""
    from examples.datasets.small import load_digits

    return load_digits(seed=0)


@pytest.fixture(scope="session")
def digits_model(digits):
    """A small rank-1 net after a few epochs on the digits; tests must not train it further."""
    keras.utils.set_random_seed(1)
    x, y, _, _ = digits
    model = small_classifier()
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(x, y, batch_size=64, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def regression_model():
    """A rank-1 regression net with learned noise, a few steps into training."""
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (128, 1)).astype("float32")
    y = np.sin(3 * x) + 0.1 * rng.normal(size=x.shape).astype("float32")
    inputs, h = members_input((1,), 2)
    h = r1.layers.DenseRank1(16, activation="tanh", ensemble_size=2)(h)
    h = r1.layers.DenseRank1(1, ensemble_size=2)(h)
    outputs = r1.layers.SplitMembers(2)(h)
    model = r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, batch_size=32, epochs=5, verbose=0)
    return model


def members_input(shape, ensemble_size):
    """An input and its tiled version."""
    inputs = keras.Input(shape)
    return inputs, r1.layers.TileMembers(ensemble_size)(inputs)


def small_classifier(ensemble_size=2, units=16, num_inputs=64, classes=10, **kwargs):
    """Two DenseRank1 layers between TileMembers and SplitMembers."""
    layer_kwargs = kwargs.pop("layer_kwargs", {})
    inputs, h = members_input((num_inputs,), ensemble_size)
    h = r1.layers.DenseRank1(units, activation="relu", ensemble_size=ensemble_size, **layer_kwargs)(
        h
    )
    h = r1.layers.DenseRank1(classes, ensemble_size=ensemble_size, **layer_kwargs)(h)
    outputs = r1.layers.SplitMembers(ensemble_size)(h)
    return r1.BayesianModel(inputs, outputs, likelihood="categorical", **kwargs)
