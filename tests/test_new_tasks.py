"""A posterior that becomes the prior of the next data."""

import keras
import numpy as np
import pytest
from bali_case import conjugate, linear_data, net

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.small import load_digits

FULL = {"forgetting": 1.0, "warmup_steps": 0, "prior_row_precision": 3.0, "factorise_every": 1}


@pytest.mark.parametrize("form", ["dense", "diagonal", 2])
def test_two_fits_are_one_to_all_data(form):
    """One linear layer with a known noise, float64: `L0 + N S` adds up, and so does `L M`."""
    x, y = linear_data(60)
    if form != "dense":  # rows that every form holds exactly
        x = np.eye(3, dtype="float32")[np.arange(60) % 3] * x
    inputs = keras.Input((3,))
    layer = bk.layers.DenseBali(2, use_bias=False, row_covariance=form, dtype="float64")
    likelihood = r1.likelihoods.Normal(scale=0.3)
    model = bk.BaliModel(inputs, layer(inputs), likelihood=likelihood)
    model.compile(**FULL)
    model.fit(x[:20], y[:20], batch_size=20, epochs=1, verbose=0)
    before = model.predict(x, verbose=0)
    model.posterior_to_prior()
    np.testing.assert_allclose(model.predict(x, verbose=0), before)
    model.fit(x[20:], y[20:], batch_size=40, epochs=1, verbose=0)
    precision = 3.0 * np.eye(3) + x.T.astype("float64") @ x
    mean = np.linalg.solve(precision, x.T.astype("float64") @ y)
    np.testing.assert_allclose(layer.posterior_state.mean, mean, rtol=1e-4, atol=1e-5)
    factor = np.array(layer.posterior_state.rows.dense_factor())
    np.testing.assert_allclose(factor @ factor.T, np.linalg.inv(precision), rtol=1e-4, atol=1e-7)


def test_three_tasks_files_and_clones(tmp_path):
    x, y = linear_data(90)
    model = net()
    model.compile(**FULL)
    for start in (0, 30, 60):
        rows = slice(start, start + 30)
        model.fit(x[rows], y[rows], batch_size=30, epochs=1, verbose=0)
        if start < 60:
            model.posterior_to_prior()
            assert model.is_new_task
            model.save(tmp_path / "model.keras")
            loaded = keras.models.load_model(tmp_path / "model.keras")
            clone = keras.models.clone_model(model)
            clone.set_weights(model.get_weights())
            for other in (loaded, clone):
                assert other.is_new_task
                with r1.posterior_mean():
                    np.testing.assert_array_equal(other(x), model(x))
            model = loaded
    assert not model.is_new_task
    expected, _ = conjugate(x, y, 3.0)
    mean = model.bali_layers[0].posterior_state.mean
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)


def test_the_strength_counts_the_first_data():
    x, y = linear_data(60)
    model = net()
    model.compile(**FULL)
    model.fit(x[:20], y[:20], batch_size=20, epochs=1, verbose=0)
    model.posterior_to_prior(0.5)
    rows = model.bali_layers[0].posterior_state.rows
    first = np.c_[x[:20], np.ones(20)].astype("float64")
    expected = 3.0 * np.eye(4) + 0.5 * first.T @ first
    np.testing.assert_allclose(
        model.bali_layers[0].posterior_state.prior_precision, expected, rtol=1e-5
    )
    model.fit(x[20:], y[20:], batch_size=40, epochs=1, verbose=0)
    second = np.c_[x[20:], np.ones(40)].astype("float64")
    factor = np.array(rows.dense_factor())
    inverse = np.linalg.inv(expected + second.T @ second)
    np.testing.assert_allclose(factor @ factor.T, inverse, rtol=1e-4)


def test_there_must_be_a_posterior():
    model = net()
    model.compile(**FULL)
    with pytest.raises(ValueError, match=r"call fit\(x, y\) first.*0 steps"):
        model.posterior_to_prior()
    x, y = linear_data(30)
    model.fit(x, y, batch_size=30, verbose=0)
    with pytest.raises(ValueError, match="strength"):
        model.posterior_to_prior(0.0)
    model.posterior_to_prior()
    with pytest.raises(ValueError, match="fit"):
        model.posterior_to_prior()


def test_the_first_digits_are_not_forgotten():
    """Digits 0 to 4, then 5 to 9; without the prior the first task is lost."""
    keras.utils.set_random_seed(0)
    data = load_digits(0)
    first, second = data.y_train < 5, data.y_train >= 5
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile(prior_precision=0.02, damping=0.05, covariance_scale=1.0)

    def accuracies():
        p = model.posterior_predictive(data.x_test, method="moments").mean()
        right = np.argmax(p, axis=1) == data.y_test
        return right[data.y_test < 5].mean(), right[data.y_test >= 5].mean()

    model.fit(data.x_train[first], data.y_train[first], batch_size=32, epochs=15, verbose=0)
    assert accuracies()[0] > 0.96
    model.posterior_to_prior()
    model.fit(data.x_train[second], data.y_train[second], batch_size=32, epochs=15, verbose=0)
    assert min(accuracies()) > 0.9
