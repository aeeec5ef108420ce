"""What is given to a model: refused or warned of where answers would be wrong in silence."""

import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.model.scales import warn_of_input_size, warn_of_target_size

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def rank1(before=(), **kwargs):
    inputs = h = keras.Input((4,))
    for layer in before:
        h = layer(h)
    h = r1.layers.DenseRank1(8, activation="relu")(h)
    return r1.BayesianModel(inputs, r1.layers.DenseRank1(2)(h), likelihood="categorical", **kwargs)


def bali(before=()):
    inputs = h = keras.Input((4,))
    for layer in before:
        h = layer(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood="categorical")


@pytest.fixture(scope="module")
def fitted():
    model = rank1()
    model.compile("adam", kernel_precision=0.01)
    model.fit(X, Y, verbose=0)
    return model


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [rank1, bali])
@pytest.mark.parametrize(
    ("size", "before", "is_named"),
    [
        (1.0, (), False),
        (1000.0, (), True),
        (1000.0, (keras.layers.Reshape((2, 2)), keras.layers.Flatten()), True),
        (0.01, (), True),
        (1000.0, (keras.layers.Rescaling(0.001),), False),
        (1000.0, (keras.layers.Dense(4),), False),  # which is trained without a prior
        (0.0, (), False),
    ],
)
def test_inputs_that_no_layer_scales_are_named(net, size, before, is_named):
    model = net([keras.layers.deserialize(keras.layers.serialize(v)) for v in before])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_input_size(model, size * X)
    assert [("Normalization" in str(w.message)) for w in caught] == [True] * is_named


def test_indices_have_no_size():
    inputs = keras.Input((3,), dtype="int32")
    h = keras.layers.Flatten()(r1.layers.EmbeddingRank1(1000, 2)(inputs))
    model = r1.BayesianModel(inputs, r1.layers.DenseRank1(2)(h), likelihood="categorical")
    warn_of_input_size(model, RNG.integers(0, 1000, (8, 3)))


def test_one_large_column_is_enough():
    with pytest.warns(UserWarning, match=r"Inputs of size 300 .*each column"):
        warn_of_input_size(rank1(), np.where(np.arange(4) == 2, 300.0, X))


@pytest.mark.parametrize("values", [1000 * X, X / 100, X + 100.0, np.where(X > 0, np.nan, X * 100)])
def test_targets_far_from_unit_size_are_named(values):
    with pytest.warns(UserWarning, match=r"Targets have mean .* and standard deviation"):
        warn_of_target_size(r1.likelihoods.Normal(), values)
    for likelihood in ("poisson", "log_normal"):  # of which the size is a parameter
        warn_of_target_size(r1.likelihoods.get(likelihood), np.abs(values))


def test_targets_of_unit_size_are_not():
    for values in (X, 10 * X + 5, np.ones(5), np.full(3, np.nan), Y, list(X)):
        warn_of_target_size(r1.likelihoods.Normal(), values)


@pytest.mark.parametrize("cls", [r1.BayesianModel, bk.BaliModel])
def test_fit_warns_of_sizes_once(cls):
    """Of inputs before the first fit only: then the net has learned to take them."""
    inputs = keras.Input((4,))
    dense = r1.layers.DenseRank1 if cls is r1.BayesianModel else bk.layers.DenseBali
    model = cls(inputs, dense(1)(inputs), likelihood="normal")
    model.compile(**({"optimizer": "adam"} if cls is r1.BayesianModel else {}))
    with pytest.warns(UserWarning, match="Inputs of size"):
        model.fit(1000 * X, X[:, 0], verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(1000 * X, X[:, 0], verbose=0)
    assert not any("Inputs of size" in str(w.message) for w in caught)
    with pytest.warns(UserWarning) as caught:  # and BALI of other data
        model.fit(X, 1000 * X[:, 0], verbose=0)
    assert any("Targets have" in str(w.message) for w in caught)


# -- rows that were trained on --------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["calibrate", "conformalize"])
def test_rows_that_were_trained_on_are_named(ask, fitted):
    def asked(*data):
        ask_it = getattr(fitted, ask)
        return ask_it(*data, verbose=0) if ask == "calibrate" else ask_it(*data)

    with pytest.warns(UserWarning, match=f"40 of 40 examples given to `{ask}`"):
        asked(X[:40].astype("float64"), Y[:40])
    new = RNG.normal(size=(40, 4)).astype("float32")
    asked(new, Y[:40])
    asked(np.concatenate([X[:10], new[:30]]), Y[:40])  # some rows may well come twice


def test_rows_that_fit_held_out_were_not_trained_on():
    model = rank1()
    model.compile("adam", kernel_precision=0.01)
    model.fit(X, Y, validation_split=0.25, verbose=0)
    model.calibrate(X[48:], Y[48:], verbose=0)
    with pytest.warns(UserWarning, match="16 of 16"):
        model.calibrate(X[:16], Y[:16], verbose=0)


def test_rows_of_few_values_are_equal_by_chance():
    model, codes = rank1(), (X > 0).astype("float32")
    model.compile("adam", kernel_precision=0.01)
    model.fit(codes, Y, verbose=0)
    model.calibrate(codes[:20], Y[:20], verbose=0)


# -- what Keras would not name --------------------------------------------------------------------


@pytest.mark.parametrize("net", [rank1, bali])
def test_a_forgotten_compile_is_named(net):
    with pytest.raises(ValueError, match=r"call model.compile\(...\) first"):
        net().fit(X, Y)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [(pd.array([1, None] * 32, "Int64"), "Int64"), (["a", "b"] * 32, "(object|str)")],
)
def test_columns_without_numbers_are_named(fitted, column, dtype):
    table = pd.DataFrame(X, columns=list("abcd")).assign(b=column)
    for ask in (
        lambda: fitted.fit(table, Y),
        lambda: fitted.evaluate(table, Y),
        lambda: fitted.predict(table),
        lambda: fitted.posterior_predictive(table),
    ):
        with pytest.raises(ValueError, match=rf"astype\('float32'\).*column 'b' of dtype {dtype}"):
            ask()
    dates = pd.Series(pd.date_range("2020", periods=64), name="born")
    with pytest.raises(ValueError, match=r"`y` must have.*column 'born' of dtype datetime64"):
        fitted.fit(X, dates)


def test_tables_of_numbers_are_taken(fitted):
    table = pd.DataFrame(X, columns=list("abcd"))
    fitted.fit(table, pd.Series(Y), verbose=0)
    np.testing.assert_array_equal(fitted.predict(table, verbose=0), fitted.predict(X, verbose=0))


def test_arrays_without_examples_are_named(fitted):
    for ask in (lambda: fitted.fit(X[:0], Y[:0]), lambda: fitted.evaluate(X[:0], Y[:0])):
        with pytest.raises(ValueError, match=r"at least one example.*\(0, 4\)"):
            ask()


def test_a_dataset_without_batches_is_named(fitted):
    single = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(
        ValueError, match=r"dataset.batch\(32\). Received: elements of shape \(4,\)"
    ):
        fitted.fit(single)
    fitted.fit(single.batch(16), verbose=0)


def test_wrong_kinds_of_arguments_are_shown_as_they_are():
    with pytest.raises(ValueError, match="Received: number='4'"), r1.members("4"):
        pass
    with pytest.raises(ValueError, match=r"load_model\(path\).*Received: 'net.keras'"):
        r1.convert("net.keras", likelihood="categorical")
