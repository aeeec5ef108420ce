"""The precision of the kernels' prior, found by cross-validation inside of the training data."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_rank1 as r1
from tfp_rank1.model import kernel_search
from tfp_rank1.model.kernel_prior import DEFAULT_KERNEL_PRECISION
from tfp_rank1.model.kernel_search import folds_for
from tfp_rank1.model.search_data import in_memory


def table(has_signal=True, rows=60):
    """Six columns and two classes, of which the columns say all or nothing."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 6)).astype("float32")
    labels = np.arange(rows) % 2
    x[:, 0] += 6.0 * has_signal * (labels - 0.5)
    return x, labels.astype("int32")


def classifier():
    keras.utils.set_random_seed(2)
    with r1.members(2):
        h = inputs = keras.Input((6,))
        h = r1.layers.DenseRank1(12, activation="relu")(r1.layers.TileMembers()(h))
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(2)(h))
    return r1.BayesianModel(inputs, outputs, likelihood="categorical")


@pytest.fixture
def searches(monkeypatch):
    """Notes the searches that `fit` begins, in place of their fits."""
    begun = []

    def search(model, examples, *args):
        begun.append(examples)
        return 0.5

    monkeypatch.setattr(kernel_search, "_search", search)
    return begun


def test_how_much_a_search_may_cost():
    assert folds_for(500, 800) == folds_for(1500, 800) == 3
    assert folds_for(2000, 800) == 1
    assert folds_for(3200, 800) == folds_for(60_000, 800) == 0
    assert folds_for(500, 99) == folds_for(39, 800) == 0


@pytest.mark.slow
def test_noise_asks_for_a_stronger_prior_than_a_clear_signal(capsys):
    found = {}
    for has_signal in (False, True):
        model = classifier()
        model.compile(keras.optimizers.Adam(0.02))
        model.fit(*table(has_signal), batch_size=12, epochs=20, verbose=2)
        found[has_signal] = model.kernel_precision
        assert f"Found: kernel_precision {model.kernel_precision:.3g}" in capsys.readouterr().out
    assert found[False] >= 10.0 * found[True]


def test_a_search_leaves_no_trace_but_what_it_found():
    """The fit after a search is the fit with the precision that was found, number by number."""
    x, y = table(has_signal=False)
    models = []
    for precision in (None, 0):
        model = classifier()
        if precision is not None:
            precision = models[0].kernel_precision
        model.compile("adam", kernel_precision=precision)
        model.fit(x, y, batch_size=20, epochs=34, shuffle=False, verbose=0)
        models.append(model)
    assert models[0].kernel_precision > DEFAULT_KERNEL_PRECISION
    for searched, plain in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(searched, plain)
    for searched, plain in zip(
        models[0].optimizer.variables, models[1].optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(searched, plain)


def test_a_found_precision_is_kept(searches, tmp_path):
    x, y = table()
    model = classifier()
    model.compile("adam")
    assert model.kernel_precision == DEFAULT_KERNEL_PRECISION
    model.fit(x, y, batch_size=16, epochs=30, verbose=0)
    assert model.kernel_precision == 0.5
    (examples,) = searches
    assert sorted(map(bytes, examples.x)) == sorted(map(bytes, x))
    # Neither a second fit nor a new `compile` searches again: the net knows the examples by now.
    model.compile("adam")
    model.fit(x, y, batch_size=16, epochs=30, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.kernel_precision == 0.5
    loaded.compile("adam")
    assert loaded.kernel_precision == 0.5
    loaded.fit(x, y, batch_size=16, epochs=30, verbose=0)
    assert len(searches) == 1


@pytest.mark.parametrize(
    "reason",
    ["given", "short", "stops early", "generator", "keras loss", "points", "trained"],
)
def test_no_search(reason, searches):
    x, y = table()
    model = classifier()
    arguments = {"batch_size": 16, "epochs": 3 if reason == "short" else 30, "verbose": 0}
    options = {"kernel_precision": 0.2} if reason == "given" else {}
    if reason == "points":
        inputs = keras.Input((6,))
        model = r1.BayesianModel(inputs, keras.layers.Dense(2)(inputs), likelihood="categorical")
    if reason == "keras loss":
        inputs = keras.Input((6,))
        outputs = r1.layers.DenseRank1(2)(inputs)
        model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
        options["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", **options)
    if reason == "trained":
        model.num_train_examples = 60
        model.train_on_batch(x, y)
    if reason == "stops early":
        arguments["callbacks"] = [keras.callbacks.EarlyStopping("loss")]
    if reason == "generator":
        model.num_train_examples = 60
        arguments = {"steps_per_epoch": 120, "verbose": 0}
        model.fit(((x[:16], y[:16]) for _ in range(120)), **arguments)
    else:
        model.fit(x, y, **arguments)
    assert not searches
    expected = {"given": 0.2, "points": 0.0}.get(reason, DEFAULT_KERNEL_PRECISION)
    assert model.kernel_precision == expected


def test_batches_of_a_dataset_and_weights_are_searched(searches):
    x, y = table()
    weights = np.arange(60, dtype="float32")
    model = classifier()
    model.compile("adam")
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(12)
    model.fit(data, epochs=20, verbose=0)
    (examples,) = searches
    assert sorted(examples.weights) == sorted(weights)


# Keras warns of every compiled model that is saved before its first step.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
@pytest.mark.filterwarnings("ignore:A total of 1 objects could not be loaded:UserWarning")
@pytest.mark.parametrize("way", ["pickle", "file", "compile_from_config"])
def test_a_net_that_is_copied_before_its_first_fit_is_searched(way, searches, tmp_path):
    x, y = table()
    model = classifier()
    model.compile("adam")
    if way == "pickle":
        copy = pickle.loads(pickle.dumps(model))
    elif way == "file":
        model.save(tmp_path / "model.keras")
        copy = keras.models.load_model(tmp_path / "model.keras")
    else:
        copy = keras.models.clone_model(model)
        copy.compile_from_config(model.get_compile_config())
    copy.fit(x, y, epochs=60, verbose=0)
    assert len(searches) == 1 and copy.kernel_precision == 0.5
    clone = keras.models.clone_model(copy)
    clone.compile_from_config(copy.get_compile_config())
    assert clone.kernel_precision == DEFAULT_KERNEL_PRECISION  # to be searched by its own fit


def test_a_clone_with_trained_weights_is_not_searched(searches):
    x, y = table()
    model = classifier()
    model.compile("adam")
    model.fit(x, y, epochs=60, verbose=0)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    clone.compile("adam")
    clone.fit(x, y, epochs=60, verbose=0)
    assert len(searches) == 1


def test_a_precision_that_was_given_stays_for_a_trained_net():
    x, y = table()
    model = classifier()
    model.compile("adam", kernel_precision=0.5)
    model.fit(x, y, epochs=2, verbose=0)
    model.compile("adam")
    assert model.kernel_precision == 0.5


def test_rows_that_are_repeated_come_into_one_fold():
    """Oversampled rows must not be held out and trained on at once."""
    x, y = table(rows=40)
    x, y = np.tile(x, (4, 1)), np.tile(y, 4)
    examples = in_memory({"x": x, "y": y}, len(y))
    places = [np.flatnonzero((examples.x == row).all(axis=1)) for row in x[:40]]
    assert all(np.ptp(p) == 3 for p in places)


def test_class_weights_of_a_dataset_are_searched_with():
    x, y = table()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    examples = in_memory({"x": batches, "class_weight": {0: 5.0}}, len(y))
    np.testing.assert_array_equal(examples.weights, np.where(examples.y == 0, 5.0, 1.0))
