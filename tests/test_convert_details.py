"""Corners of converted models: starts, dtypes, what is frozen, shared, named and registered."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import check_equal
from test_convert import K, check_same_function, dense_net, inputs_of, randomized

import tfp_rank1 as r1

layers = keras.layers


# -- where factors start --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"r_posterior": "normal", "s_posterior": "log_normal"},
        {"posterior": r1.posteriors.Normal(stddev=0.01)},
        {"posterior": r1.posteriors.LogNormal(scale=0.3)},
        {"posterior": "normal", "perturbation": "additive", "s_posterior": "cauchy"},
    ],
)
def test_posteriors_without_a_mean_of_their_own_start_at_the_original(arguments):
    model = dense_net()
    check_same_function(model, inputs_of(model), **arguments)


def test_points_of_a_net_that_is_converted_differ():
    """By name they start at 1, where members would stay copies of each other."""
    model = dense_net()
    with pytest.warns(UserWarning, match="copies of each other"):
        r1.convert(model, K, likelihood="normal", posterior="deterministic")
    own = r1.convert(model, K, likelihood="normal", posterior=r1.posteriors.Deterministic())
    outputs = np.array(own(inputs_of(model)))
    assert np.ptp(outputs, axis=1).min() > 1e-3


# -- dtypes and names -----------------------------------------------------------------------------


def test_ends_of_a_net_keep_their_dtypes_under_a_half_precision_policy():
    """Token ids before and outputs after the members, which bfloat16 would round."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((3,), dtype="float32")
    h = layers.Flatten(dtype="float32")(layers.Embedding(2000, 4)(inputs))
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(h))
    model.layers[-1].bias.assign([1000.3])
    x = np.array([[1001.0, 1999.0, 7.0]], "float32")
    converted = check_same_function(model, x)
    assert converted.output.dtype == "float32"


def test_a_column_may_be_called_as_a_likelihood():
    inputs = keras.Input((4,), name="categorical")
    model = keras.Model(inputs, layers.Dense(3, name="normal")(inputs))
    for likelihood in ("categorical", "normal"):
        r1.convert(model, K, likelihood=likelihood)


# -- what is frozen -------------------------------------------------------------------------------


def test_frozen_layers_are_named():
    model = dense_net()
    model.layers[0].trainable = False
    report = r1.convert(model, K, likelihood="normal").conversion_report
    assert [row.is_frozen for row in report.converted] == [True, False]
    assert str(report).count("DenseRank1, frozen\n") == 1


def test_a_frozen_net_is_loaded_frozen(tmp_path):
    """With the optimizer's state; and what was frozen can be made trainable again."""
    inputs = keras.Input((4,))
    h = layers.BatchNormalization()(layers.Dense(5)(inputs))
    model = r1.convert(keras.Model(inputs, layers.Dense(2)(h)), K, likelihood="normal")
    trainable = len(model.trainable_variables)
    model.freeze_slow_weights()
    model.compile("adam")
    x = inputs_of(dense_net(), 6)
    model.fit(x, np.ones((6, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables) < trainable
    check_equal(loaded.optimizer.variables, model.optimizer.variables)
    loaded.freeze_slow_weights(frozen=False)
    assert len(loaded.trainable_variables) == trainable


# -- what is shared and registered ----------------------------------------------------------------


def test_a_cell_of_two_layers_is_one_cell():
    a, b = keras.Input((5, 4)), keras.Input((5, 4))
    cell = layers.LSTMCell(3)
    h = layers.RNN(cell)(a) + layers.RNN(cell)(b)
    model = randomized(keras.Model([a, b], layers.Dense(2)(h)))
    x = [np.random.default_rng(i).normal(size=(3, 5, 4)).astype("float32") for i in range(2)]
    converted = check_same_function(model, x)
    kernels = [v for v in converted.weights if "kernel" in v.name]
    assert len(kernels) == len([v for v in model.weights if "kernel" in v.name]) == 3


@keras.saving.register_keras_serializable("tests")
class OwnCell(layers.LSTMCell):
    """A user's own cell."""


@keras.saving.register_keras_serializable("tests")
class OwnBlock(keras.Model):
    """A user's own block, subclassed."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_own_cells_and_blocks_can_be_registered(monkeypatch):
    inputs = keras.Input((5, 4))
    h = OwnBlock()(layers.RNN(OwnCell(3))(inputs))
    model = keras.Model(inputs, layers.Dense(2)(h))
    monkeypatch.setattr(sys.modules["tfp_rank1.conversion.convert"], "_registered", {})
    r1.register_converter(
        OwnCell,
        lambda cell, arguments: r1.layers.LSTMCellRank1(cell.units, **arguments),
    )
    r1.register_converter(
        OwnBlock,
        lambda block, arguments: r1.layers.DenseRank1(block.units, **arguments),
        lambda block, new: (
            new.kernel.assign(block.dense.kernel),
            new.bias.assign(tf.broadcast_to(block.dense.bias, new.bias.shape)),
        ),
    )
    report = check_same_function(model, inputs_of(model)).conversion_report
    assert not report.left


# -- what is left as it is ------------------------------------------------------------------------


def adapted():
    layer = layers.Normalization(axis=-1)
    layer.adapt(np.random.default_rng(0).normal(5.0, 3.0, (100, 4)))
    return layer


def with_low_rank():
    layer = layers.Dense(3)
    layer.build((None, 4))
    layer.enable_lora(2, lora_alpha=5)
    layer.lora_kernel_b.assign(tf.ones_like(layer.lora_kernel_b))
    return layer


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.Sequential([keras.Input((4,)), adapted(), layers.Dense(3)]), (4,)),
        (lambda: keras.Sequential([keras.Sequential([keras.Input((4,)), adapted()])]), (4,)),
        (lambda: layers.TimeDistributed(adapted()), (5, 4)),
        (lambda: layers.Bidirectional(layers.LSTM(3)), (5, 4)),
        (with_low_rank, (4,)),
        (lambda: keras.Sequential([keras.Input((4,)), with_low_rank()]), (4,)),
    ],
    ids=["model", "model in model", "wrapper", "recurrent", "LoRA", "LoRA in model"],
)
def test_excluded_parts_come_along(make, shape):
    part = make()
    model = keras.Sequential([keras.Input(shape), part, layers.Flatten(), layers.Dense(2)])
    converted = check_same_function(model, inputs_of(model), exclude=[part.name])
    notes = {row.before: row.note for row in converted.conversion_report.left}
    assert notes["Flatten"] == "no weights"
    assert len(converted.conversion_report.converted) == 1


def test_excluded_vocabularies_and_attention_come_along():
    lookup = layers.StringLookup(output_mode="multi_hot", vocabulary=["a", "b"])
    inner = keras.Sequential([keras.Input((1,), dtype="string"), lookup], name="inner")
    model = keras.Sequential([keras.Input((1,), dtype="string"), inner, layers.Dense(2)])
    check_same_function(model, tf.constant([["b"], ["a"], ["c"]]), exclude=["inner"])
    inputs, attention = keras.Input((3, 4)), layers.MultiHeadAttention(2, 3)
    h = layers.Flatten()(attention(inputs, inputs))
    model = keras.Model(inputs, layers.Dense(2)(h))
    attention._query_dense.enable_lora(2)
    projection = attention._query_dense
    projection.lora_kernel_b.assign(tf.ones_like(projection.lora_kernel_b))
    check_same_function(model, inputs_of(model), exclude=[attention.name])


def test_a_part_with_a_loss_of_its_own():
    """It was trained by itself; its compilation is not taken over, and it keeps its own."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    inner.compile("sgd", loss=lambda y, p: (y - p) ** 2)
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)])
    converted = check_same_function(model, inputs_of(model))
    assert inner.compiled
    assert not any(getattr(v, "compiled", False) for v in converted._flatten_layers())
