"""BaliModel: bad input ends in a clear error or a finite posterior."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data, net, posteriors

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.layers.base import row_mask


def test_degenerate_data_gives_a_finite_posterior():
    """Constant and duplicated features, a constant target, a last batch of one example."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(65, 1))
    x = np.concatenate([a, a, np.ones((65, 1)), np.zeros((65, 1))], axis=1).astype("float32")
    model = net(4, (8,), 1, r1.likelihoods.Normal(), "relu")
    model.compile()
    history = model.fit(x, np.full(65, 2.0, "float32"), batch_size=16, epochs=30, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    p = model.posterior_predictive(x, num_samples=8)
    np.testing.assert_allclose(p.mean(), 2.0, atol=0.2)
    assert np.isfinite(p.stddev()).all()


@pytest.mark.filterwarnings("ignore:The model was fitted before, and this fit is to other data")
def test_one_bad_batch_is_refused_and_counted():
    x, y = linear_data(rows=40)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    model = net(hidden=(8,), activation="relu")
    model.compile(warmup_steps=0)
    model.fit(data, epochs=3, verbose=0)
    before = posteriors(model)
    bad = x.copy()
    bad[3, 0] = np.inf
    with pytest.raises(ValueError, match="the first of them row 3"):
        model.fit(bad, y, verbose=0)
    bad = tf.data.Dataset.from_tensor_slices((bad[:10], y[:10])).batch(10)
    with pytest.warns(UserWarning, match="1 of 1 batches left the model as it was"):
        history = model.fit(bad, verbose=0).history
    assert history["refused"] == [1.0]
    assert model.refused_updates == 1
    for ours, theirs in zip(posteriors(model), before, strict=True):
        assert np.isfinite(ours[0]).all()
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert model.fit(data, verbose=0).history["refused"] == [0.0]


@tf.custom_gradient
def without_gradient_of_large(x):
    """The inputs; gradients are NaN if one of them is beyond 20, as they are at a root of zero."""
    return tf.identity(x), lambda g: g + tf.where(tf.reduce_any(tf.abs(x) > 20.0), np.nan, 0.0)


def test_gradients_of_the_optimizer_alone_are_refused_too():
    x, y = linear_data(rows=40)
    x[5] = 100.0
    inputs = keras.Input((3,))
    h = keras.layers.Lambda(without_gradient_of_large)(keras.layers.Dense(4)(inputs))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood=r1.likelihoods.Normal(0.3))
    model.compile("adam", warmup_steps=0)
    with pytest.warns(UserWarning, match="1 of 4 batches left the model as it was"):
        history = model.fit(x, y, batch_size=10, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(np.array(v)).all() for v in model.weights)


def test_statistics_that_are_not_positive_definite_are_refused():
    """As after bits that flipped: counted, reported, the posterior stays; then it goes on."""
    x, y = linear_data(rows=40)
    model = net(hidden=(8,), activation="relu")
    model.compile(warmup_steps=0, factorise_every=1)
    model.fit(x, y, batch_size=10, verbose=0)
    before = posteriors(model)
    total = model.bali_layers[0].posterior_state.rows.average.total
    good = np.array(total)
    total.assign(-100.0 * good)
    with pytest.warns(UserWarning, match="4 of 4 batches left the model as it was"):
        model.fit(x, y, batch_size=10, verbose=0)
    assert model.refused_updates == 4
    for ours, theirs in zip(posteriors(model), before, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    total.assign(good)
    assert model.fit(x, y, batch_size=10, verbose=0).history["refused"] == [0.0]


def test_bad_targets_are_named():
    x, y = linear_data()
    y[3] = np.inf
    model = net()
    model.compile()
    with pytest.raises(ValueError, match="must be finite"):
        model.fit(x, y, verbose=0)


def test_an_unknown_number_of_examples_is_named():
    x, y = linear_data()

    def batches():
        while True:
            yield x[:10], y[:10]

    model = net()
    model.compile(forgetting=0.1)
    with pytest.raises(ValueError, match="num_train_examples"):
        model.fit(batches(), steps_per_epoch=2, verbose=0)
    model.num_train_examples = 60
    assert np.isfinite(model.fit(batches(), steps_per_epoch=2, verbose=0).history["nll"]).all()


def test_a_layer_without_gradient_is_named():
    inputs = keras.Input((3,))
    h = bk.layers.DenseBali(4, name="cut")(inputs)
    outputs = bk.layers.DenseBali(1)(keras.ops.stop_gradient(h))
    model = bk.BaliModel(inputs, outputs, likelihood="normal")
    model.compile()
    x, y = linear_data(outputs=1)
    with pytest.raises(ValueError, match="'cut'"):
        model.fit(x, y, verbose=0)
    model.get_layer("cut").trainable = False
    model.compile()
    assert np.isfinite(model.fit(x, y, verbose=0).history["nll"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forgetting": 0.0}, "forgetting"),
        ({"forgetting": "linear"}, "forgetting"),
        ({"damping": -1.0}, "damping"),
        ({"damping": (0.1, -1.0)}, "damping"),
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"prior_row_precision": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
        ({"temperature": float("inf")}, "temperature"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": False}, "warmup_steps"),
        ({"forgetting": True}, "forgetting"),
        ({"damping": (0.1, "a")}, "damping"),
        ({"trust_region": 0.0}, "trust_region"),
        ({"factorise_every": 0}, "factorise_every"),
        ({"factorise_every": True}, "factorise_every"),
        ({"evaluation_samples": 0}, "evaluation_samples"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received|Received.*{message}"):
        net().compile(**arguments)


def test_a_matrix_of_the_wrong_size_is_named():
    model = net()
    model.compile(prior_row_precision=np.eye(3), warmup_steps=0)
    x, y = linear_data()
    with pytest.raises(ValueError, match=r"must be \[4, 4\]"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("compile_arguments", "fit_arguments", "message"),
    [
        ({"prior_row_precision": {"nobody": 1.0}}, {}, "nobody"),
        ({}, {"sample_weight": np.full(60, -1.0)}, "at least 0"),
        ({}, {"sample_weight": np.zeros(60)}, "not all 0"),
        ({}, {"callbacks": keras.callbacks.CallbackList()}, "list of callbacks"),
    ],
)
def test_bad_fits(compile_arguments, fit_arguments, message):
    x, y = linear_data()
    model = net()
    model.compile(**compile_arguments)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, **fit_arguments)


def test_losses_are_one_per_example():
    x, y = linear_data()
    model = net()
    model.compile(loss=lambda y, p: tf.reduce_mean(tf.square(y - p)))
    with pytest.raises(ValueError, match="loss of every example"):
        model.fit(x, y, verbose=0)
    model.compile(loss=["mse"])
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(8), "needs targets"),
        (lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(8).take(0), "at least one"),
    ],
)
def test_datasets_without_targets_or_examples(data, message):
    model = net()
    model.compile()
    with pytest.raises(ValueError, match=message):
        model.fit(data(*linear_data()), verbose=0)


def test_steps_without_a_length_are_refused():
    x, y = linear_data()
    model = net(num_train_examples=60)
    model.compile()
    with pytest.raises(ValueError, match="length of a fit"):
        model.train_on_batch(x, y)
    model.compile(forgetting=0.1, warmup_steps=0)
    assert np.isfinite(model.train_on_batch(x, y)).all()
    with pytest.raises(ValueError, match="noise scale"):
        net(likelihood=r1.likelihoods.Normal()).compile(loss="mse")


def test_a_refused_batch_leaves_the_other_layers_as_they_were():
    x, y = linear_data()
    inputs = keras.Input((3,))
    h = bk.layers.DenseBali(4, activation="relu")(inputs)
    h = keras.layers.Dense(4)(keras.layers.BatchNormalization()(h))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood=r1.likelihoods.Normal())
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), forgetting=0.1, warmup_steps=0)
    model.fit(x, y, batch_size=20, epochs=2, verbose=0)
    before = [np.array(v) for v in model.weights + model.optimizer.variables]
    model.train_on_batch(np.full_like(x, np.nan), y)
    counters = {id(v) for v in (model._counters.updates, model._counters.refused)}
    variables = model.weights + model.optimizer.variables
    for variable, old in zip(variables, before, strict=True):
        if id(variable) not in counters:
            np.testing.assert_array_equal(variable, old, err_msg=variable.path)
    assert model.refused_updates == 1


def test_features_of_any_scale_and_whole_numbers():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 2)) * [3000.0, 1.0]).astype("float32")
    y = (x @ np.array([[0.001], [1.0]]) + 0.3).astype("float32")
    arguments = {"warmup_steps": 0, "prior_row_precision": 0.7, "factorise_every": 1}
    model = net(2, outputs=1, likelihood=r1.likelihoods.Normal(scale=0.5))
    model.compile(forgetting=bk.schedules.Averaging(), **arguments)
    model.fit(x, y, batch_size=50, verbose=0)
    mean, covariance = conjugate(x, y, 0.7)
    found = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(found.mean, mean, atol=2e-3)
    np.testing.assert_allclose(np.diag(found.row_covariance()), np.diag(covariance), rtol=1e-3)
    layer = bk.layers.DenseBali(2)
    whole = np.arange(6).reshape(2, 3)
    with r1.posterior_mean():
        np.testing.assert_array_equal(layer(whole), layer(whole.astype("float32")))


@pytest.mark.filterwarnings("ignore:`build")  # Keras says that a layer is not built
def test_a_layer_that_takes_no_part_is_named():
    class Net(bk.BaliModel):
        def __init__(self):
            super().__init__(likelihood=r1.likelihoods.Normal())
            self.used, self.unused = bk.layers.DenseBali(1), bk.layers.DenseBali(1, name="idle")

        def call(self, inputs, training=None):
            return self.likelihood(self.used(inputs, training=training))

    model = Net()
    model.compile()
    with pytest.raises(ValueError, match=r"unused layers.*idle"):
        model.fit(*linear_data(outputs=1), verbose=0)


def test_unbuilt_sequential_nets_and_wrong_masks_are_named():
    with pytest.raises(ValueError, match=r"begin it with keras\.Input"):
        bk.BaliModel(keras.Sequential([bk.layers.DenseBali(2)]), likelihood="normal")
    with pytest.raises(ValueError, match="one entry per row"):
        row_mask(tf.ones((4, 3, 2), bool), tf.ones((4, 3, 5)))
