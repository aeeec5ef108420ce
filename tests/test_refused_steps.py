"""A batch that is not finite leaves weights, optimizer, moving statistics and metrics alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import members_input

import tfp_rank1 as r1

ROWS, BATCH = 24, 8
BAD = 1  # the second batch


def data(with_bad):
    """Three batches, the second of them bad or left out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype("float32")
    y = rng.integers(0, 3, ROWS)
    bad = slice(BAD * BATCH, (BAD + 1) * BATCH)
    if with_bad:
        x[bad][2, 1] = np.nan
    else:
        x, y = (np.delete(v, bad, axis=0) for v in (x, y))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def train(strategy, with_bad, **kwargs):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs, h = members_input((4,), 2)
        h = r1.layers.DenseRank1(5, ensemble_size=2, posterior="deterministic")(h)
        h = keras.layers.BatchNormalization(synchronized=True)(h)
        h = r1.layers.DenseRank1(3, ensemble_size=2, posterior="deterministic")(h)
        outputs = r1.layers.SplitMembers(2)(h)
        model = r1.BayesianModel(inputs, outputs, likelihood="categorical", num_train_examples=ROWS)
        metrics = [r1.metrics.ExpectedCalibrationError()]
        model.compile(keras.optimizers.Adam(1e-2), metrics=metrics, **kwargs)
    history = model.fit(data(with_bad), epochs=2, verbose=0).history
    return [np.array(v) for v in [*model.weights, *model.optimizer.variables]], history


@pytest.mark.parametrize("where", ["one", "replicas", pytest.param("xla", marks=pytest.mark.slow)])
def test_it_is_as_if_the_batch_were_not_there(where, strategy):
    used = strategy if where == "replicas" else tf.distribute.get_strategy()
    kwargs = {"jit_compile": where == "xla"}
    with pytest.warns(UserWarning, match="In 2 of 2 epochs some batches, up to 33%"):
        found, history = train(used, with_bad=True, **kwargs)
    expected, clean = train(used, with_bad=False, **kwargs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.pop("refused"), 1 / 3, rtol=1e-6)
    assert clean.pop("refused") == [0.0, 0.0]
    assert history.keys() == clean.keys()
    for name, values in clean.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


def test_an_epoch_of_refused_batches_has_no_loss():
    """Nought would look like the best epoch of all."""
    keras.utils.set_random_seed(0)
    inputs, h = members_input((4,), 2)
    outputs = r1.layers.SplitMembers(2)(r1.layers.DenseRank1(3, ensemble_size=2)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    model.compile("sgd")
    before = [np.array(v) for v in model.weights]
    with pytest.warns(UserWarning, match="In 1 of 1 epochs some batches, up to 100%"):
        data = tf.data.Dataset.from_tensor_slices((np.full((8, 4), np.inf), np.zeros(8)))
        history = model.fit(data.batch(8), verbose=0).history
    assert np.isnan(history["loss"]).all()
    assert np.isnan(history["nll"]).all()
    for ours, theirs in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
