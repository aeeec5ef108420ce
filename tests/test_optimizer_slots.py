"""When the optimizer's slots are made, for which variables, and that they are saved."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import check_equal

import bali_keras as bk
import tfp_rank1 as r1

X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
LABELS = np.arange(20) % 3


class Block(keras.layers.Layer):
    """A dense layer, and one that is needed in other shapes only."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.unused = keras.layers.Dense(3), keras.layers.Dense(5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)


def stock_below(kind, *layers, **kwargs):
    """A classifier of those layers, and a last one of its kind."""
    h = inputs = keras.Input((3,))
    for layer in layers:
        h = layer(h)
    last = bk.layers.DenseBali(3) if kind is bk.BaliModel else keras.layers.Dense(3)
    return kind(inputs, last(h), likelihood="categorical", **kwargs)


def fit(model, x=X, y=LABELS, **kwargs):
    return model.fit(x, y, batch_size=10, verbose=0, **kwargs)


def test_a_step_is_traced_once():
    """What makes variables while it is traced is traced twice, for twice the time."""
    traced = []

    class Counting(r1.BayesianModel):
        def train_step(self, data):
            traced.append(self)
            return super().train_step(data)

    model = stock_below(Counting)
    model.compile("adam")
    fit(model)
    assert len(traced) == 1


@pytest.mark.parametrize("kind", [r1.BayesianModel, bk.BaliModel])
def test_slots_are_restored_beside_a_layer_that_was_never_called(kind, tmp_path):
    model = stock_below(kind, Block())
    model.compile("adam")
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Block": Block})
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) == 2
    check_equal(loaded.optimizer.variables, model.optimizer.variables)


@pytest.mark.parametrize("kind", [r1.BayesianModel, bk.BaliModel])
def test_a_callback_may_choose_what_is_trained(kind):
    frozen = keras.layers.Dense(4, trainable=False)

    class Unfreeze(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            frozen.trainable = True

    model = stock_below(kind, frozen)
    model.compile("adam")
    before = np.array(frozen.kernel)
    fit(model, callbacks=[Unfreeze()])
    assert not np.array_equal(frozen.kernel, before)


def test_an_optimizer_that_had_nothing_to_train_may_be_used_later():
    frozen = keras.layers.Dense(4, trainable=False)
    model, optimizer = stock_below(bk.BaliModel, frozen), keras.optimizers.Adam()
    model.compile(optimizer)
    fit(model)
    frozen.trainable = True
    model.compile(optimizer)
    before = np.array(frozen.kernel)
    fit(model)
    assert not np.array_equal(frozen.kernel, before)


def test_nothing_to_train_is_said():
    """As in Keras: metrics of a net that is complete can still be logged."""
    model = stock_below(r1.BayesianModel)
    model.trainable = False
    model.compile("adam")
    before = [np.array(w) for w in model.weights]
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        fit(model)
    check_equal(model.weights, before)


@pytest.mark.parametrize("kind", [r1.BayesianModel, bk.BaliModel])
def test_a_refused_first_batch_of_a_net_without_variables_leaves_none_wrong(kind):
    class Net(kind):
        def __init__(self):
            super().__init__(likelihood="categorical", num_train_examples=20)
            self.normalization = keras.layers.BatchNormalization()
            self.hidden = keras.layers.Dense(4)
            self.last = bk.layers.DenseBali(3) if kind is bk.BaliModel else keras.layers.Dense(3)

        def call(self, inputs, training=None):
            h = self.hidden(self.normalization(inputs, training=training))
            return self.likelihood(self.last(h))

    x = X.copy()
    x[0] = np.nan
    model = Net()
    model.compile("adam", run_eagerly=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the refused batch
        batches = tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(10)
        history = model.fit(batches, verbose=0).history
    assert history["refused"] == [0.5]
    for variable in [*model.weights, *model.optimizer.variables]:
        assert np.isfinite(variable).all(), variable.path


@pytest.mark.slow
def test_slots_are_the_same_under_a_strategy(strategy, tmp_path):
    """Also where the noise is learned in closed form; so that a file moves between them."""

    def make():
        inputs = keras.Input((3,))
        outputs = bk.layers.DenseBali(1)(keras.layers.Dense(2)(inputs))
        model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
        model.compile(keras.optimizers.SGD(momentum=0.9))
        return model

    with strategy.scope():
        model = make()
    fit(model, y=X[:, :1])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables) == 4
    check_equal(loaded.optimizer.variables, model.optimizer.variables)
