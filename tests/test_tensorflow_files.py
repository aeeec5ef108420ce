"""What TensorFlow writes by itself, checkpoints and SavedModels, holds all of a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1

L = r1.layers


def rank1():
    inputs = keras.Input((6, 3))
    with r1.members(2):
        h = L.TileMembers()(inputs)
        h = L.Conv1DRank1(4, 3, posterior="cauchy", bias_posterior="normal")(h)
        h = L.EnsembleBatchNormalization()(h)
        h = L.MultiHeadAttentionRank1(1, 4, prior="hierarchical_normal")(h, h)
        h = L.LSTMRank1(4)(h)
        outputs = L.SplitMembers()(L.DenseRank1(1)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="normal")
    model.compile("adam")
    return model


def bali():
    inputs = keras.Input((6, 3))
    h = bk.layers.Conv1DBali(4, 3, activation="relu")(inputs)
    h = keras.layers.BatchNormalization()(keras.layers.Flatten()(h))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood="normal")
    model.compile("adam")
    return model


def state(model):
    generators = [g.state for v in model._flatten_layers() for g in v._seed_generators]
    return [np.array(v) for v in [*model.weights, *model.optimizer.variables, *generators]]


@pytest.mark.parametrize("make", [rank1, bali])
def test_a_checkpoint_of_tensorflow_restores_all_of_it(make, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 6, 3)).astype("float32"), rng.normal(size=(48, 1))
    first, second = make(), make()
    first.fit(x, y, batch_size=8, epochs=3, verbose=0)
    second.optimizer.build(second.optimizer_variables)
    path = tf.train.Checkpoint(model=first, optimizer=first.optimizer).write(str(tmp_path / "ckpt"))
    assert any(not np.array_equal(a, b) for a, b in zip(state(first), state(second), strict=True))
    restored = tf.train.Checkpoint(model=second, optimizer=second.optimizer).read(path)
    restored.assert_existing_objects_matched()
    for saved, found in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(saved, found)
    np.testing.assert_array_equal(first(x), second(x))  # the same draws as well


@pytest.mark.parametrize("make", [rank1, bali])
def test_a_model_is_written_by_tensorflow_as_it_is(make, tmp_path):
    model, x = make(), np.ones((4, 6, 3), "float32")
    model.fit(x, np.ones((4, 1)), epochs=2, verbose=0)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    found = loaded.signatures["serving_default"](tf.constant(x))
    (outputs,) = found.values()
    assert outputs.shape == model(x).shape and np.isfinite(outputs).all()
