"""Members that split the batch, several samples in training, tied-mean priors, factor rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1 import scopes

K, INPUTS, CLASSES = 2, 4, 3
DETERMINISTIC = {"layer_kwargs": {"posterior": "deterministic"}}


def classifier(**kwargs):
    return small_classifier(K, units=5, num_inputs=INPUTS, classes=CLASSES, **kwargs)


def batch(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, INPUTS)).astype("float32"), rng.integers(0, CLASSES, rows)


def test_split_members_see_their_own_share():
    model = classifier(**DETERMINISTIC)
    x, y = batch()
    outputs = np.array(model(x))
    with scopes.split_members.set(True):
        found = np.array(model(x))
    expected = np.concatenate([outputs[:3, 0], outputs[3:, 1]])[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    model.compile("sgd", member_batches="split")
    history = model.fit(x, y, batch_size=6, shuffle=False, verbose=0).history
    nll = -tf.nn.log_softmax(expected[:, 0]).numpy()[np.arange(6), y]
    np.testing.assert_allclose(history["nll"], [nll.mean()], rtol=1e-5)


def test_split_members_are_as_many_in_all_layers():
    """The outputs have one member, so only the layers can tell."""

    class Net(r1.BayesianModel):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.tile, self.split = r1.layers.TileMembers(2), r1.layers.SplitMembers(2)
            self.dense = r1.layers.DenseRank1(3, ensemble_size=4)

        def call(self, x):
            return self.likelihood(self.split(self.dense(self.tile(x))))

    model = Net(likelihood="categorical")
    model.compile("sgd", member_batches="split")
    with pytest.raises(ValueError, match="must agree on the number of members"):
        model.fit(np.ones((8, 2), "float32"), np.zeros(8), batch_size=8, verbose=0)


def test_split_batches_must_divide():
    model = classifier()
    model.compile("sgd", member_batches="split")
    x, y = batch(5)
    message = "must be a multiple of 2 examples"
    # Arrays are refused before training, also where only the last batch is odd.
    for size in (5, 4, None):
        with pytest.raises(ValueError, match=f"{message}.* Received: 5 examples in batches of"):
            model.fit(x, y, batch_size=size, verbose=0)
    assert model.optimizer.iterations == 0
    model.fit(x, y, batch_size=4, validation_split=0.2, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        model.fit(dataset, verbose=0)


@pytest.mark.parametrize("loss", ["average_nll", "mixture_nll"])
def test_several_samples_are_averaged_or_mixed(loss):
    """The loss over S samples equals that of S passes put together."""
    model = classifier()
    x, y = batch()
    model.compile("sgd", loss=loss, num_train_samples=3, run_eagerly=True)
    seed = r1.random.make_seed(2)
    with r1.random.seed_scope(seed):
        outputs = model.training_outputs(x)
    assert outputs.shape == (6, 3 * K, CLASSES)
    with r1.random.seed_scope(seed):
        passes = np.array(model(np.concatenate([x] * 3), training=True)).reshape(3, 6, K, CLASSES)
    np.testing.assert_allclose(
        outputs, passes.transpose(1, 0, 2, 3).reshape(6, 3 * K, CLASSES), atol=1e-6
    )
    model.num_train_examples = 6
    log_probs = tf.nn.log_softmax(outputs).numpy()[np.arange(6), :, y]
    expected = -log_probs.mean()
    if loss == "mixture_nll":
        expected = -np.log(np.exp(log_probs).mean(axis=1)).mean()
    np.testing.assert_allclose(model.objective(y, outputs).nll, expected, rtol=1e-5)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("arguments", [{"member_batches": "split"}, {"num_train_samples": 2}])
def test_a_saved_model_keeps_them(arguments, tmp_path):
    model = classifier()
    x, y = batch()
    model.compile("sgd", metrics=["accuracy"], **arguments)
    model.fit(x, y, batch_size=6, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.training_outputs(x).shape == model.training_outputs(x).shape != (6, K, CLASSES)


def test_layers_that_draw_once_take_one_sample():
    model = classifier(layer_kwargs={"sampling": "member"})
    model.compile("sgd", num_train_samples=2)
    with pytest.raises(ValueError, match="layers must draw for every example"):
        model.fit(*batch(), verbose=0)


@pytest.mark.parametrize("arguments", [{"member_batches": "split"}, {"num_train_samples": 2}])
def test_bali_has_no_members(arguments):
    inputs = keras.Input((INPUTS,))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(inputs), likelihood="normal")
    with pytest.raises(ValueError, match="is for nets with members"):
        model.compile(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"member_batches": "own"}, "'tiled' or 'split'"),
        ({"num_train_samples": 0}, "at least 1"),
        ({"num_train_samples": 2, "member_batches": "split"}, "take one sample each"),
        ({"loss": "mixture_nll", "member_batches": "split"}, "the mixture would be one member"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier().compile("sgd", **arguments)


def test_outputs_of_another_number_of_members_are_refused_in_any_loop():
    """Also where no training step of ours is involved."""
    model = classifier()
    model.compile("sgd")
    model.num_train_examples = 6
    _, y = batch()
    with pytest.raises(ValueError, match="must agree on the number of members K"):
        model.compute_loss(y=y, y_pred=tf.zeros([6, K + 1, CLASSES]))


def test_a_multiplier_after_a_moving_average_is_refused():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    for wrapped in (optimizer, keras.optimizers.LossScaleOptimizer(optimizer)):
        with pytest.raises(ValueError, match="use_ema=False"):
            classifier().compile(wrapped, factor_learning_rate_multiplier=0.5)


@pytest.mark.parametrize("arguments", [{"member_batches": "split"}, {"num_train_samples": 2}])
def test_states_belong_to_tiled_batches(arguments):
    inputs = keras.Input(batch_shape=(4, 3, INPUTS))
    h = r1.layers.TileMembers(K)(inputs)
    h = r1.layers.LSTMRank1(5, ensemble_size=K, stateful=True)(h)
    model = r1.BayesianModel(inputs, r1.layers.SplitMembers(K)(h), likelihood="categorical")
    with pytest.raises(ValueError, match=r"stateful=False.* Received: stateful layers"):
        model.compile("sgd", **arguments)


def test_compiling_again_adds_no_metric_and_keeps_none():
    model = classifier()
    x, y = batch()
    model.compile("sgd", metrics=["mae"])  # refused in `fit`, unless another `compile` follows
    for metrics in (None, ["accuracy"], ["accuracy"]):
        model.compile("sgd", metrics=metrics)
        assert "mae" not in model.fit(x, y, verbose=0).history
        names = [metric.name for metric in model.metrics]
        assert len(names) == len(set(names))
        evaluated = set(names) - {"refused"}
        assert len(model.evaluate(x, y, verbose=0)) == len(evaluated)


def test_a_refused_compile_changes_nothing():
    model = classifier()
    model.compile("sgd", factor_learning_rate_multiplier=0.5)
    before, optimizer = model.get_compile_config(), model.optimizer
    for refused in (
        {"loss": "mixture_nll", "member_batches": "split"},
        {"factor_learning_rate_multiplier": 50.0, "member_batches": "halved"},
        {"num_train_samples": 2, "loss": "no such loss"},
        {"num_train_samples": 2, "metrics": 3},
    ):
        with pytest.raises(ValueError, match="Received"):
            model.compile("adam", **refused)
        assert model.get_compile_config() == before
        assert model.optimizer is optimizer
    assert np.isfinite(model.fit(*batch(), verbose=0).history["loss"][0])


@pytest.mark.parametrize(
    "refused", [{"loss": "mse"}, {"warmup_steps": 3, "loss": "nope"}, {"num_train_samples": 2}]
)
def test_a_refused_compile_changes_nothing_of_bali(refused):
    inputs = keras.Input((INPUTS,))
    outputs = bk.layers.DenseBali(1)(inputs)
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    model.compile(temperature=2.0)
    before = model.get_compile_config()
    with pytest.raises(ValueError, match="Received"):
        model.compile(temperature=3.0, **refused)
    assert model.get_compile_config() == before
