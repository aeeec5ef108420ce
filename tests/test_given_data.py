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
        (1.0, (keras.layers.Reshape((2, 2)), keras.layers.Flatten()), True),
        (1.0, (keras.layers.Rescaling(0.001),), False),
        (1.0, (keras.layers.Dense(4),), False),  # which is trained without a prior
    ],
)
def test_inputs_that_no_layer_scales_are_named(net, size, before, is_named):
    """Inputs that are too large for rank-1 nets, or too small for BALI, if not of size 1."""
    size *= (1000.0 if net is rank1 else 0.01) if before else 1.0
    model = net([keras.layers.deserialize(keras.layers.serialize(v)) for v in before])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_input_size(model, size * X)
    assert [("Normalization" in str(w.message)) for w in caught] == [True] * is_named


@pytest.mark.parametrize(
    ("net", "size", "is_named"),
    [
        *((rank1, 1000.0, True), (rank1, 0.01, False), (rank1, 0.0, False)),
        *((bali, 1000.0, False), (bali, 0.01, True), (bali, 0.0, False)),
    ],
)
def test_sizes_are_those_of_the_package(net, size, is_named):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_input_size(net(), size * X)
    assert len(caught) == is_named


def test_indices_have_no_size():
    inputs = keras.Input((3,), dtype="int32")
    h = keras.layers.Flatten()(r1.layers.EmbeddingRank1(1000, 2)(inputs))
    model = r1.BayesianModel(inputs, r1.layers.DenseRank1(2)(h), likelihood="categorical")
    warn_of_input_size(model, RNG.integers(0, 1000, (8, 3)))


def test_one_large_column_is_enough():
    with pytest.warns(UserWarning, match=r"Inputs of size 300 .*each column"):
        warn_of_input_size(rank1(), np.where(np.arange(4) == 2, 300.0, X))


@pytest.mark.parametrize("values", [1e4 * X, X / 100, X + 100.0, np.where(X > 0, np.nan, X * 1e4)])
@pytest.mark.parametrize("cls", [r1.BayesianModel, bk.BaliModel])
def test_targets_far_from_unit_size_are_named(cls, values):
    with pytest.warns(UserWarning, match=r"Targets have mean .* and standard deviation"):
        warn_of_target_size(cls.sizes, r1.likelihoods.Normal(), values)
    for likelihood in ("poisson", "log_normal"):  # of which the size is a parameter
        warn_of_target_size(cls.sizes, r1.likelihoods.get(likelihood), np.abs(values))


def test_targets_of_unit_size_are_not():
    sizes, likelihood = bk.BaliModel.sizes, r1.likelihoods.Normal()
    for values in (X, 10 * X + 5, np.ones(5), np.full(3, np.nan), Y, list(X)):
        warn_of_target_size(sizes, likelihood, values)
    weights = (X > 0).astype("float32")
    warn_of_target_size(sizes, likelihood, np.where(weights > 0, X, 1e6), weights)
    warn_of_target_size(sizes, likelihood, np.where(weights[:, :1] > 0, X, 1e6), weights[:, 0])


@pytest.mark.parametrize("cls", [r1.BayesianModel, bk.BaliModel])
def test_the_first_fit_warns_of_sizes(cls):
    """Then the net has learned to take them."""
    inputs = keras.Input((4,))
    dense = r1.layers.DenseRank1 if cls is r1.BayesianModel else bk.layers.DenseBali
    model = cls(inputs, dense(1)(inputs), likelihood="normal")
    model.compile(**({"optimizer": "adam"} if cls is r1.BayesianModel else {}))
    x, said = (1000.0 if cls is r1.BayesianModel else 0.01) * X, []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(x, 1e4 * X[:, 0], verbose=0)
        said.append({str(w.message).split()[0] for w in caught} & {"Inputs", "Targets"})
    assert said == [{"Inputs", "Targets"}, set()]


def test_a_converted_net_knows_its_inputs():
    stock = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model = r1.convert(stock, likelihood="categorical")
    model.compile("adam")
    model.fit(1000.0 * X, Y, verbose=0)


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
