"""BayesianModel: N, roles, state, persistence and its errors."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier

import tfp_rank1 as r1
from tfp_rank1.model.graph import Functional


def test_roles_partition_the_model():
    model = small_classifier()
    roles = [id(v) for v in model.factor_variables + model.slow_weights]
    assert sorted(roles) == sorted(id(v) for v in model.weights)


@pytest.mark.parametrize("functional_first", [True, False])
def test_subclassed_models_live_beside_functional_ones(functional_first):
    class Net(r1.BayesianModel):
        def __init__(self):
            super().__init__(likelihood=r1.likelihoods.Normal())
            self.tile = r1.layers.TileMembers(2)
            self.dense = r1.layers.DenseRank1(1, ensemble_size=2)
            self.split = r1.layers.SplitMembers(2)

        def call(self, inputs):
            return self.likelihood(self.split(self.dense(self.tile(inputs))))

    if functional_first:
        small_classifier()
    model = Net()
    model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    history = model.fit(x, x[:, :1], epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert any(v is model.likelihood.rho for v in model.trainable_variables)
    assert model.posterior_predictive(x, num_samples=5).samples.shape == (6, 16, 1)
    assert not issubclass(r1.BayesianModel, Functional)  # Keras injects it where it may


def test_sequential_models_are_wrapped():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = r1.BayesianModel(net.inputs, net.outputs, likelihood="heteroscedastic_normal")
    x = np.ones((4, 3), "float32")
    model.compile("sgd")
    assert np.isfinite(model.fit(x, x[:, 0], verbose=0).history["loss"]).all()
    assert model.posterior_predictive(x, 1).mean().shape == (4, 1)


def test_subclass_that_forgets_its_likelihood_is_refused():
    class Net(r1.BayesianModel):
        def __init__(self):
            super().__init__(likelihood="normal")
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

    model = Net()
    model.compile("sgd")
    x = np.ones((4, 2), "float32")
    with pytest.warns(UserWarning, match="unbuilt state"):
        model(x)
    with pytest.raises(ValueError, match=r"must end `call` with `return self.likelihood"):
        model.fit(x, x[:, :1], verbose=0)


def datasets(x, y):
    data = tf.data.Dataset.from_tensor_slices((x, y))
    return {
        "arrays": (x, y),
        "batches": (data.batch(16), None),
        "dropped_remainder": (data.batch(16, drop_remainder=True), None),
    }


@pytest.mark.parametrize(
    ("kind", "n"), [("arrays", 50), ("batches", 50), ("dropped_remainder", 48)]
)
def test_fit_finds_n(kind, n):
    x, y = np.ones((50, 64), "float32"), np.zeros(50)
    model = small_classifier()
    model.compile("sgd", run_eagerly=True)
    history = model.fit(*datasets(x, y)[kind], verbose=0).history
    assert model.num_train_examples == n
    np.testing.assert_allclose(history["kl_weight"][0], 1 / n, rtol=1e-5)


def test_fit_finds_n_anew_and_respects_a_split():
    x, y = np.ones((50, 64), "float32"), np.zeros(50)
    model = small_classifier()
    model.compile("sgd")
    model.fit(x, y, verbose=0, validation_split=0.2)
    assert model.num_train_examples == 40
    history = model.fit(x[:10], y[:10], verbose=0).history
    np.testing.assert_allclose(history["kl_weight"][0], 0.1, rtol=1e-5)
    given = small_classifier(num_train_examples=7)
    given.compile("sgd")
    np.testing.assert_allclose(given.fit(x, y, verbose=0).history["kl_weight"][0], 1 / 7, rtol=1e-5)


def test_n_of_an_endless_dataset_must_be_given():
    data = tf.data.Dataset.from_tensors((np.ones((4, 64)), np.zeros(4))).repeat()
    model = small_classifier()
    model.compile("sgd")
    message = r"N of training examples is not known yet.*num_train_examples=.*Received"
    with pytest.raises(ValueError, match=message):
        model.fit(data, steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match=message):
        _ = model.losses


def test_posterior_mean_governs_predict_and_evaluate(digits, digits_model):
    """Also after `predict` was compiled, in both directions."""
    x = digits[2][:16]
    sampled = digits_model.predict(x, verbose=0)
    with r1.posterior_mean():
        mean = digits_model.predict(x, verbose=0)
        expected = tf.reduce_mean(tf.nn.softmax(digits_model(x)), axis=1)
        np.testing.assert_allclose(mean, expected, atol=1e-5)
    assert not np.allclose(mean, sampled, atol=1e-4)
    np.testing.assert_array_equal(digits_model.predict(x, verbose=0), sampled)


def test_resume_is_exact(digits, tmp_path):
    """Two epochs at once equal one epoch, a saved file, and one more epoch, bit by bit."""
    x, y = digits[0][:64], digits[1][:64]

    def epochs(model, start, end):
        annealing = r1.callbacks.KLAnnealing(steps=8)
        model.fit(
            x, y, batch_size=16, initial_epoch=start, epochs=end, shuffle=False, verbose=0,
            callbacks=[annealing],
        )  # fmt: skip

    straight, interrupted = small_classifier(), small_classifier()
    for model in (straight, interrupted):
        model.compile("adam")
    interrupted.set_weights(straight.get_weights())
    for a, b in zip(straight.layers, interrupted.layers, strict=True):
        if hasattr(a, "seed_generator"):
            b.seed_generator.state.assign(a.seed_generator.state)
    epochs(straight, 0, 2)
    epochs(interrupted, 0, 1)
    interrupted.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    epochs(resumed, 1, 2)
    for a, b in zip(straight.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_saved_and_cloned_models_keep_everything(digits, digits_model, tmp_path):
    x, y = digits[2][:64], digits[3][:64]
    digits_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, r1.BayesianModel)
    assert loaded.num_train_examples == digits_model.num_train_examples
    assert isinstance(loaded.likelihood, r1.likelihoods.Categorical)
    with r1.posterior_mean():
        np.testing.assert_allclose(
            loaded.evaluate(x, y, verbose=0), digits_model.evaluate(x, y, verbose=0), rtol=1e-5
        )
    clone = keras.models.clone_model(digits_model)
    assert isinstance(clone, r1.BayesianModel)
    assert isinstance(clone.likelihood, r1.likelihoods.Categorical)
    digits_model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(digits_model.weights, clone.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert clone.num_train_examples == digits_model.num_train_examples


def test_learned_noise_is_a_weight_of_the_model(regression_model, tmp_path):
    scale = float(regression_model.likelihood.scale[0])
    assert scale != pytest.approx(1.0, abs=1e-3)
    regression_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.likelihood.scale[0]) == pytest.approx(scale)
    assert loaded.layers[-1].name == regression_model.layers[-1].name
    assert not isinstance(loaded.layers[-1], r1.likelihoods.Likelihood)


def stock(**kwargs):
    """A model of stock layers; without a `likelihood` there is none."""
    inputs = keras.Input((4,))
    return r1.BayesianModel(inputs, keras.layers.Dense(3)(inputs), **kwargs)


def two_outputs():
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3)(inputs)
    return r1.BayesianModel(inputs, [outputs, outputs], likelihood="normal")


def compiled(*args, **kwargs):
    model = small_classifier(num_train_examples=8)
    model.compile("sgd", *args, **kwargs)
    return model


def fitted(y, rows=4, **kwargs):
    """Trained on so many rows, where `y` is their targets, if any."""
    return compiled(**kwargs).fit(np.ones((rows, 64), "float32"), y, verbose=0)


ERRORS = {
    "no likelihood": (stock, "needs a likelihood"),
    "unknown likelihood": (
        lambda: stock(likelihood="gamma"),
        "Unknown likelihood: expected one of .*'categorical'.*'gamma'",
    ),
    "two outputs": (two_outputs, "a likelihood for each"),
    "no examples": (
        lambda: stock(likelihood="normal", num_train_examples=0),
        "`num_train_examples` must be a finite number above 0",
    ),
    "another likelihood": (
        lambda: compiled(r1.losses.AverageNLL("normal")), "different likelihoods",
    ),
    "multiplier of 0": (
        lambda: compiled(factor_learning_rate_multiplier=0.0),
        "`factor_learning_rate_multiplier` must be a finite number above 0",
    ),
    "multiplier of letters": (
        lambda: compiled(factor_learning_rate_multiplier="a"),
        "`factor_learning_rate_multiplier` must be a finite number above 0",
    ),
    "label out of range": (
        lambda: fitted(np.full(4, 10)),
        r"labels must be whole numbers in \[0, 10\), or .*Received: min=10, max=10",
    ),
    "labels of nan": (
        lambda: fitted(np.full(4, np.nan)), "Received: min=nan, max=nan, 4 values not finite",
    ),
    "rows of no probability": (
        lambda: fitted(np.zeros((4, 10))), r"rows of 10 probabilities.* Received: min=0.0, max=0.0",
    ),
    "rows of other classes": (
        lambda: fitted(np.ones((4, 9)) / 9),
        r"targets must have shape \[batch, 1\] or \[batch\].*(\(None, 9\)|\(4, 9\))",
    ),
    "unknown loss": (lambda: compiled("avg_nll"), r"Unknown loss: .*'average_nll'.*'avg_nll'"),
    "no loss": (lambda: fitted(np.zeros(4), loss=None), "The model has no loss"),
    "no targets": (lambda: fitted(None), "needs targets"),
    "no rows": (
        lambda: fitted(np.zeros(0), rows=0),
        r"at least one example. Received: x of shape \[\(0, 64\)\]",
    ),
    "annealing without a length": (
        r1.callbacks.KLAnnealing, "exactly one of `epochs` and `steps`",
    ),
    "annealing from above 1": (
        lambda: r1.callbacks.KLAnnealing(epochs=1, start=2.0), r"`start` must lie in \[0, 1\]",
    ),
    "frozen samples": (
        lambda: small_classifier().export("model.onnx", format="onnx"), "would freeze the samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_out_of_range_in_a_dataset_are_refused():
    data = tf.data.Dataset.from_tensor_slices((np.ones((4, 64)), np.full(4, 12))).batch(4)
    model = small_classifier()
    model.compile("sgd")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"whole numbers in \[0, 10\)"):
        model.fit(data, verbose=0)


def test_n_is_never_stale(digits):
    x, y = digits[0][:48], digits[1][:48]
    model = small_classifier()
    model.compile("sgd")
    model.fit(x, y, 16, 1, 0, None, 0.25)
    assert model.num_train_examples == 36

    def generator():
        while True:
            yield x[:8], y[:8]

    with pytest.raises(ValueError, match="N of training examples is not known yet"):
        model.fit(generator(), steps_per_epoch=2, verbose=0)
    model.num_train_examples = 1000
    model.fit(x, y, verbose=0)
    assert model.num_train_examples == 1000
    model.fit(generator(), steps_per_epoch=2, verbose=0)
    assert model.num_train_examples == 1000


def test_frozen_factors_need_no_n(digits):
    model = small_classifier()
    model.trainable = False
    model.compile("sgd")
    assert np.isfinite(model.evaluate(digits[0][:8], digits[1][:8], verbose=0)).all()


def unfolded_graphs():
    dense = r1.layers.DenseRank1
    tile, split = r1.layers.TileMembers, r1.layers.SplitMembers
    return {
        "nothing folded": lambda x: dense(3, ensemble_size=4)(x),
        "another number": lambda x: split(2)(dense(3, ensemble_size=4)(tile(2)(x))),
        "a divisor": lambda x: split(4)(dense(3, ensemble_size=2)(tile(4)(x))),
        "no split": lambda x: dense(3, ensemble_size=2)(tile(2)(x)),
        "tiled once": lambda x: split(1)(dense(3, ensemble_size=2)(tile(1)(x))),
        "no tile": lambda x: split(2)(dense(3, ensemble_size=2)(x)),
    }


@pytest.mark.parametrize("name", unfolded_graphs())
def test_layers_must_agree_on_the_members(name):
    inputs = keras.Input((5,))
    outputs = unfolded_graphs()[name](inputs)
    with pytest.raises(ValueError, match=r"must agree on the number of members K.*Received"):
        r1.BayesianModel(inputs, outputs, likelihood="categorical")


def test_subclasses_must_fold_as_well():
    class Net(r1.BayesianModel):
        def __init__(self):
            super().__init__(likelihood="categorical")
            self.dense = r1.layers.DenseRank1(3, ensemble_size=2)

        def call(self, inputs):
            return self.likelihood(self.dense(inputs))

    model = Net()
    model.compile("sgd")
    with pytest.raises(ValueError, match="must agree on the number of members K"):
        model.fit(np.ones((4, 2)), np.zeros(4), verbose=0)


def test_own_tiles_are_tiles():
    class MyTile(r1.layers.TileMembers):
        pass

    inputs = keras.Input((5,))
    h = r1.layers.DenseRank1(3, ensemble_size=2)(MyTile(2)(inputs))
    r1.BayesianModel(inputs, r1.layers.SplitMembers(2)(h), likelihood="categorical")


def test_loading_never_replaces_a_known_n(digits, tmp_path):
    x, y = digits[0][:16], digits[1][:16]
    small, large = small_classifier(), small_classifier()
    for model, copies in ((small, 1), (large, 4)):
        model.compile("sgd", run_eagerly=True)
        model.fit(np.tile(x, (copies, 1)), np.tile(y, copies), verbose=0)
    small.save_weights(tmp_path / "small.weights.h5")
    large.load_weights(tmp_path / "small.weights.h5")
    assert large.num_train_examples == 64
    weight = large.evaluate(x, y, verbose=0, return_dict=True)["kl_weight"]
    np.testing.assert_allclose(weight, 1 / 64, rtol=1e-5)


def test_posterior_mean_governs_single_batches(digits):
    x, y = digits[0][:8], digits[1][:8]
    model = small_classifier(num_train_examples=8)
    model.compile("sgd")

    def scores(x):
        model.reset_metrics()  # which would go on with the batch before
        return model.test_on_batch(x, y)

    for call in (model.predict_on_batch, scores):
        first = call(x)
        with r1.posterior_mean():
            assert not np.array_equal(call(x), first)
        np.testing.assert_array_equal(call(x), first)


def test_pickle_and_uncompiled_files(digits, tmp_path):
    x = digits[0][:4]
    model = small_classifier()
    restored = pickle.loads(pickle.dumps(model))
    with r1.posterior_mean():
        np.testing.assert_array_equal(restored(x), model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.compiled


def test_early_stopping_knows_the_direction(digits):
    x, y = digits[0][:32], digits[1][:32]
    model = small_classifier()
    metrics = ["accuracy", r1.metrics.ExpectedCalibrationError()]
    model.compile("sgd", metrics=metrics, run_eagerly=True)
    stops = [
        keras.callbacks.EarlyStopping(name, patience=5)
        for name in ("val_accuracy", "val_ece", "val_loss")
    ]
    stops.append(keras.callbacks.EarlyStopping("val_nll", mode="min"))
    model.fit(x, y, validation_data=(x, y), epochs=1, verbose=0, callbacks=stops)


def test_callbacks_may_predict_in_the_other_mode(digits):
    x, y = digits[0][:32], digits[1][:32]
    model = small_classifier()
    model.compile("sgd")
    found = []

    def predict(epoch, logs):
        with r1.posterior_mean():
            found.append(model.predict(x, verbose=0))
            model.evaluate(x, y, verbose=0)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=predict)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    with r1.posterior_mean():
        np.testing.assert_array_equal(found[-1], model.predict(x, verbose=0))
