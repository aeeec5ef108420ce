"""`predict`, `evaluate` and metrics look at one predictive distribution, the same on every call."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sk

import bali_keras as bk
import tfp_rank1 as r1

N = 96
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype("float32")
KINDS = ("members", "bali")


def net(kind, outputs, likelihood, **compile_arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    if kind == "bali":
        h = bk.layers.DenseBali(8, activation="relu")(inputs)
        model = bk.BaliModel(inputs, bk.layers.DenseBali(outputs)(h), likelihood=likelihood)
        model.compile(**compile_arguments)
        return model
    with r1.members(2):
        h = r1.layers.DenseRank1(8, activation="relu")(r1.layers.TileMembers()(inputs))
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(outputs)(h))
    model = r1.BayesianModel(inputs, h, likelihood=likelihood)
    model.compile(keras.optimizers.Adam(0.02), **compile_arguments)
    return model


def targets(likelihood):
    noise = 0.3 * RNG.normal(size=N)
    if likelihood == "categorical":
        return np.digitize(X[:, 0] + noise, [-0.4, 0.4])
    if likelihood == "bernoulli":
        return (X[:, 0] + noise > 0.8).astype("float32")
    return (5 + X[:, :2] + 0.1 * RNG.normal(size=(N, 2))).astype("float32")


OUTPUTS = {"categorical": 3, "bernoulli": 1, "normal": 2}


@pytest.mark.parametrize("likelihood", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_predict_is_the_predictive_mean(kind, likelihood):
    y = targets(likelihood)
    model = net(kind, OUTPUTS[likelihood], likelihood)
    model.fit(X, y, epochs=4, batch_size=32, verbose=0)
    found = model.predict(X, verbose=0)
    mean = model.posterior_predictive(X, 256, seed=0).mean()
    assert found.shape == mean.shape
    scale = np.ptp(np.asarray(mean))
    assert np.abs(found - mean).mean() < 0.05 * scale
    # A prediction is a function of the example: no call and no batch changes it.
    np.testing.assert_array_equal(found, model.predict(X, verbose=0))
    np.testing.assert_allclose(found[5:6], model.predict(X[5:6], verbose=0), atol=1e-5 * scale)
    np.testing.assert_allclose(found, model.predict(X, batch_size=7, verbose=0), atol=1e-5 * scale)
    with r1.posterior_mean():
        assert not np.allclose(found, model.predict(X, verbose=0), atol=1e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_repeats_itself_and_metrics_change_nothing(kind):
    y = targets("normal")
    logs = {}
    for metrics in (None, ["mae", keras.metrics.MeanSquaredError(), r1.metrics.CRPS()]):
        model = net(kind, 2, "normal", metrics=metrics)
        history = model.fit(
            X, y, epochs=3, batch_size=32, validation_data=(X, y), verbose=0
        ).history
        first = model.evaluate(X, y, verbose=0, return_dict=True)
        assert first == model.evaluate(X, y, verbose=0, return_dict=True)
        other = model.evaluate(X, y, batch_size=10, verbose=0, return_dict=True)
        assert first["nll"] == pytest.approx(other["nll"], rel=1e-5)
        assert first["nll"] == pytest.approx(history["val_nll"][-1], rel=1e-6)
        logs[bool(metrics)] = {k: history[k] for k in ("nll", "val_nll", "loss", "val_loss")}
    assert logs[False] == logs[True]
    mean = model.predict(X, verbose=0)
    assert first["mae"] == pytest.approx(sk.mean_absolute_error(y, mean), rel=1e-5)
    assert first["mean_squared_error"] == pytest.approx(sk.mean_squared_error(y, mean), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_yes_and_no(kind):
    y = targets("bernoulli")
    scores = [
        keras.metrics.AUC(5000, name="auc"),
        keras.metrics.AUC(5000, curve="PR", name="pr"),
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.BinaryIoU(name="iou"),
        "binary_accuracy",
    ]
    found = {}
    for likelihood, outputs in (("bernoulli", 1), ("categorical", 2)):
        model = net(kind, outputs, likelihood, metrics=[type(s).from_config(s.get_config())
                    if not isinstance(s, str) else s for s in scores])  # fmt: skip
        model.fit(X, y, epochs=20, batch_size=32, verbose=0)
        logs = model.evaluate(X, y, verbose=0, return_dict=True)
        p = model.predict(X, verbose=0)[:, -1]
        found[likelihood] = logs
        assert logs["auc"] == pytest.approx(sk.roc_auc_score(y, p), abs=2e-3)
        assert logs["pr"] == pytest.approx(sk.average_precision_score(y, p), abs=2e-2)
        assert logs["precision"] == pytest.approx(
            sk.precision_score(y, p > 0.5, zero_division=0), abs=1e-6
        )
        assert logs["recall"] == pytest.approx(sk.recall_score(y, p > 0.5), abs=1e-6)
        overlap = [sk.jaccard_score(y, p > 0.5, pos_label=c) for c in (0, 1)]
        assert logs["iou"] == pytest.approx(np.mean(overlap), abs=1e-5)
        assert logs["binary_accuracy"] == pytest.approx(np.mean((p > 0.5) == y), abs=1e-6)


@pytest.mark.parametrize(
    "form", ["labels", pytest.param("column", marks=pytest.mark.slow), "one-hot"]
)
def test_metrics_of_classes(form):
    """A metric gets the labels that it was made for, whatever form the labels have."""
    labels = targets("categorical")
    forms = {"labels": labels, "column": labels[:, None], "one-hot": np.eye(3)[labels]}
    y = forms[form].astype("float32")
    scores = [
        keras.metrics.SparseCategoricalAccuracy(name="sparse"),
        keras.metrics.CategoricalAccuracy(name="one_hot"),
        keras.metrics.SparseTopKCategoricalAccuracy(2, name="sparse_top"),
        keras.metrics.TopKCategoricalAccuracy(2, name="top"),
        keras.metrics.F1Score("macro", name="f1"),
        keras.metrics.CategoricalCrossentropy(name="ce"),
        keras.metrics.AUC(5000, multi_label=True, num_labels=3, name="auc"),
        keras.metrics.Precision(class_id=2, name="precision"),
        keras.metrics.sparse_categorical_accuracy,
        keras.metrics.MeanIoU(3, name="iou"),
        "sparse_categorical_crossentropy",
        "accuracy",
        "crossentropy",
    ]
    model = net("members", 3, "categorical", metrics=scores)
    model.fit(X, y, epochs=20, batch_size=32, verbose=0)
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    p = model.predict(X, verbose=0)
    accuracy = np.mean(p.argmax(1) == labels)
    top = sk.top_k_accuracy_score(labels, p, k=2)
    expected = {
        "sparse": accuracy,
        "one_hot": accuracy,
        "accuracy": accuracy,
        "sparse_top": top,
        "top": top,
        "f1": sk.f1_score(labels, p.argmax(1), average="macro"),
        "ce": sk.log_loss(labels, p),
        "crossentropy": logs["nll"],
        "auc": sk.roc_auc_score(np.eye(3)[labels], p),
        "precision": (labels == 2)[p[:, 2] > 0.5].mean(),
        "sparse_categorical_accuracy": accuracy,
        "iou": sk.jaccard_score(labels, p.argmax(1), average="macro"),
        "sparse_categorical_crossentropy": logs["nll"],
    }
    assert {k: logs[k] for k in expected} == pytest.approx(expected, abs=2e-3)


def test_metrics_of_the_users_own(tmp_path):
    """Functions and classes get the targets as they are, and the predictive mean."""
    seen = []

    @keras.saving.register_keras_serializable("test_predict")
    def share(y_true, y_pred):
        seen.append((tuple(y_true.shape), tuple(y_pred.shape)))
        label, likeliest = keras.ops.reshape(y_true, (-1,)), keras.ops.argmax(y_pred, axis=-1)
        hit = keras.ops.equal(keras.ops.cast(label, "int32"), keras.ops.cast(likeliest, "int32"))
        return keras.ops.cast(hit, "float32")

    y = targets("categorical")
    model = net("members", 3, "categorical", metrics=[share, "accuracy"])
    model.fit(X, y, batch_size=32, verbose=0)
    assert {s[1][-1] for s in seen} == {3} and {len(s[0]) for s in seen} == {1}
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    assert logs["share"] == pytest.approx(logs["accuracy"], rel=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(X, y, verbose=0, return_dict=True) == pytest.approx(logs, rel=1e-6)


def test_functions_of_the_users_own_get_columns():
    y = targets("normal")[:, 0]

    def error(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    model = net("members", 1, "normal", metrics=[error, "mae"])
    model.fit(X, y, verbose=0)
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    assert logs["error"] == pytest.approx(logs["mae"], rel=1e-6)


def test_a_subclass_of_a_metric_of_keras_is_one():
    @keras.saving.register_keras_serializable("test_predict")
    class OwnAUC(keras.metrics.AUC):
        pass

    y = targets("bernoulli")
    model = net("members", 2, "categorical", metrics=[OwnAUC(name="own"), keras.metrics.AUC()])
    model.fit(X, y, epochs=5, verbose=0)
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    assert logs["own"] == logs["auc"]


def test_targets_of_another_rank_follow_by_batch():
    y = targets("categorical")
    model = net("members", 3, "categorical")
    model.num_train_examples = N
    forms = [y, y[:, None], np.eye(3, dtype="float32")[y]]
    found = [np.asarray(model.test_on_batch(X, form)).ravel()[0] for form in forms]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    for form in forms:
        model.train_on_batch(X, form)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_without_static_sizes(kind):
    """As `timeseries_dataset_from_array` gives them, [None, None, 1]."""
    s = np.sin(np.arange(120) / 9).astype("float32")
    data = keras.utils.timeseries_dataset_from_array(s[:, None], s[8:, None], 8, batch_size=32)
    inputs = keras.Input((8, 1))
    h = keras.layers.Flatten()(inputs)
    if kind == "bali":
        model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood="normal")
        model.compile()
    else:
        h = r1.layers.DenseRank1(1, ensemble_size=1)(h)
        model = r1.BayesianModel(inputs, h, likelihood="normal")
        model.compile("adam")
    model.fit(data, epochs=2, verbose=0)
    model.evaluate(data, verbose=0)
    assert model.predict(data, verbose=0).shape == (112, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_lists_and_rows_that_are_not_finite_are_named(kind, call):
    model = net(kind, 3, "categorical")
    arguments = (targets("categorical"),) if call == "evaluate" else ()
    with pytest.raises(ValueError, match=r"`x` must be an array"):
        getattr(model, call)(X.tolist(), *arguments, verbose=0)
    with pytest.raises(ValueError, match="first of them row 4"):
        bad = X.copy()
        bad[4] = np.nan
        getattr(model, call)(bad, *arguments, verbose=0)


def test_unknown_metrics_are_named():
    with pytest.raises(ValueError, match=r"keras.metrics.SparseCategoricalCrossentropy\(\)"):
        net("members", 3, "categorical", metrics=[keras.losses.SparseCategoricalCrossentropy()])
    with pytest.raises(ValueError, match=r"must be a list, tuple or dict: metrics=\['mae'\]"):
        net("members", 3, "categorical", metrics="mae")
    with pytest.raises(ValueError, match=r"name of a metric of Keras\. Received: metrics='aucc'"):
        net("members", 3, "categorical", metrics=["aucc"])


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_know_which_way_is_better(kind):
    y = targets("categorical")
    model = net(kind, 3, "categorical", metrics=[keras.metrics.SparseCategoricalAccuracy()])
    stops = [
        keras.callbacks.EarlyStopping(name, patience=50)
        for name in ("val_nll", "val_sparse_categorical_accuracy", "val_kl", "val_loss")
    ]
    model.fit(X, y, validation_data=(X, y), batch_size=32, callbacks=stops, verbose=0)
    assert [s.monitor_op.__name__ for s in stops] == ["less", "greater", "less", "less"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [{"jit_compile": True}, {"run_eagerly": True}])
def test_all_modes_predict_alike(kind, mode):
    model = net(kind, 3, "categorical", metrics=["accuracy"])
    y = targets("categorical")
    model.fit(X, y, batch_size=32, epochs=2, verbose=0)
    expected = model.predict(X, verbose=0), model.evaluate(X, y, verbose=0, return_dict=True)
    arguments = {} if kind == "bali" else {"optimizer": "adam"}
    model.compile(metrics=["accuracy"], **arguments, **mode)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected[0], atol=1e-5)
    found = model.evaluate(X, y, verbose=0, return_dict=True)
    assert found == pytest.approx(expected[1], rel=1e-4)


def test_a_net_without_noise_runs_once():
    """Points draw nothing: one pass is exact."""
    calls = []

    @keras.saving.register_keras_serializable("test_predict")
    class Count(keras.layers.Layer):
        def call(self, x):
            calls.append(1)
            return x

    inputs = keras.Input((3,))
    h = r1.layers.TileMembers(2)(Count()(inputs))
    h = r1.layers.DenseRank1(3, ensemble_size=2, posterior="deterministic")(h)
    model = r1.BayesianModel(inputs, r1.layers.SplitMembers(2)(h), likelihood="categorical")
    model.compile("adam", run_eagerly=True)
    calls.clear()
    p = model.predict(X[:4], verbose=0)
    assert len(calls) == 1
    np.testing.assert_allclose(p, tf.reduce_mean(tf.nn.softmax(model(X[:4])), 1), rtol=1e-5)


def test_weights_without_n_are_evaluated():
    """NLL and metrics need no N; the KL, which does, is left out."""
    y = targets("categorical")
    for kind in KINDS:
        model = net(kind, 3, "categorical", metrics=["accuracy"])
        model.fit(X, y, batch_size=32, epochs=2, verbose=0)
        logs = model.evaluate(X, y, verbose=0, return_dict=True)
        fresh = net(kind, 3, "categorical", metrics=["accuracy"])
        fresh.set_weights(model.get_weights())
        found = fresh.evaluate(X, y, verbose=0, return_dict=True)
        assert "kl" not in found and found["loss"] == found["nll"]
        for name in ("nll", "accuracy"):
            assert found[name] == pytest.approx(logs[name], rel=1e-5)


def test_samples_of_evaluation_are_an_option(tmp_path):
    y = targets("categorical")
    few, many = (
        net("bali", 3, "categorical", evaluation_method="samples", evaluation_samples=s)
        for s in (1, 64)
    )
    few.fit(X, y, epochs=10, batch_size=32, verbose=0)
    many.set_weights(few.get_weights())
    exact = few.posterior_predictive(X, 2000, seed=1).mean()
    errors = [np.abs(m.predict(X, verbose=0) - exact).mean() for m in (few, many)]
    assert errors[1] < 0.3 * errors[0]
    many.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.evaluation_samples == 64
    with pytest.raises(ValueError, match="evaluation_samples"):
        net("members", 3, "categorical", evaluation_samples=0)
