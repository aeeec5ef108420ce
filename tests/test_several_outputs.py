"""Models with several outputs: one likelihood each, one bound, and answers by output."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import linear_data

import bali_keras as bk
import tfp_rank1 as r1

METHODS = "bali", "rank1"


def data(rows=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype("float32")
    price = (x[:, 0] + 0.1 * rng.normal(size=rows)).astype("float32")
    return x, {"price": price, "sold": (x[:, 1] > 0).astype("float32")}


def graph(method):
    """Inputs and raw outputs of a shared layer, and a head for each output."""
    inputs = keras.Input((3,))
    if method == "bali":
        h = bk.layers.DenseBali(6, activation="tanh")(inputs)
        return inputs, {"sold": bk.layers.DenseBali(1)(h), "price": bk.layers.DenseBali(1)(h)}
    with r1.members(2):
        h = r1.layers.DenseRank1(6, activation="tanh")(r1.layers.TileMembers()(inputs))
        heads = {name: r1.layers.DenseRank1(1)(h) for name in ("sold", "price")}
        return inputs, {name: r1.layers.SplitMembers()(head) for name, head in heads.items()}


def net(method, likelihood=None):
    inputs, outputs = graph(method)
    cls = bk.BaliModel if method == "bali" else r1.BayesianModel
    return cls(inputs, outputs, likelihood=likelihood or {"price": "normal", "sold": "bernoulli"})


def compiled(model, **kwargs):
    if not isinstance(model, bk.BaliModel):
        kwargs = {"optimizer": keras.optimizers.Adam(0.01), **kwargs}
    model.compile(**kwargs)
    return model


@pytest.fixture(scope="module", params=METHODS)
def fitted(request):
    keras.utils.set_random_seed(0)
    x, y = data()
    metrics = {"price": ["mae"], "sold": ["accuracy"]}
    model = compiled(net(request.param), metrics=metrics)
    history = model.fit(x, y, epochs=3, batch_size=16, verbose=0, validation_data=(x, y)).history
    return model, x, y, history


def test_logs_have_the_names_of_the_outputs(fitted):
    model, x, y, history = fitted
    for name in ("price_loss", "sold_loss", "price_mae", "sold_accuracy"):
        assert name in history and f"val_{name}" in history
    np.testing.assert_allclose(
        history["nll"], np.add(history["price_loss"], history["sold_loss"]), rtol=1e-4
    )
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["nll"], found["price_loss"] + found["sold_loss"], rtol=1e-5)


def test_answers_are_a_dict(fitted):
    model, x, y, _ = fitted
    for method in ("samples", "moments"):
        p = model.posterior_predictive(x, method=method, seed=0)
        assert set(p) == {"price", "sold"}
        assert p["price"].mean().shape == p["sold"].mean().shape == (64, 1)
        assert p["sold"].mutual_information().shape == (64,)
        assert p["price"].log_prob(y["price"]).shape == (64,)
    streamed = model.posterior_predictive(x, reduce="moments", batch_size=16)
    assert streamed["price"].stddev().shape == (64, 1)
    means = model.predict(x, verbose=0)
    assert {name: v.shape for name, v in means.items()} == {"price": (64, 1), "sold": (64, 1)}


def test_evaluation_reports_what_answers_say(fitted):
    """Moments are deterministic, so that both look at the very same predictive."""
    model, x, y, _ = fitted
    assert model.evaluation_method == "moments"
    p = model.posterior_predictive(x, method="moments")
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    for name in ("price", "sold"):
        np.testing.assert_allclose(found[f"{name}_loss"], -p[name].log_prob(y[name]).mean(), 1e-4)
    error = np.abs(p["price"].mean()[:, 0] - y["price"]).mean()
    np.testing.assert_allclose(found["price_mae"], error, rtol=1e-4)


def test_a_file_and_a_clone_answer_alike(fitted, tmp_path):
    model, x, y, _ = fitted
    model.calibrate(x, y, verbose=0)
    model.conformalize(x, y, method={"price": "normalized", "sold": "aps"})
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = model.posterior_predictive(x, method="moments")
    for other in (loaded, clone):
        assert other.calibration == model.calibration
        found = other.posterior_predictive(x, method="moments")
        for name in ("price", "sold"):
            np.testing.assert_allclose(found[name].mean(), expected[name].mean(), rtol=1e-6)
        low, high = found["price"].prediction_interval()
        assert (low <= high).all() and found["sold"].prediction_set().shape == (64, 2)
    loaded.fit(x, y, epochs=1, verbose=0)  # goes on, as it was compiled
    assert "price_mae" in loaded.evaluate(x, y, verbose=0, return_dict=True)


def test_an_exported_model_names_its_outputs(fitted, tmp_path):
    model, x, _, _ = fitted
    model.export_predictive(str(tmp_path / "served"), method="moments")
    served = tf.saved_model.load(tmp_path / "served")
    found = served.serve(x)
    expected = model.posterior_predictive(x, method="moments")
    np.testing.assert_allclose(found["price_mean"], expected["price"].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["sold_probs"], expected["sold"].mean(), rtol=1e-5)
    assert set(served.samples(x, 4)) == {"price", "sold"}


@pytest.mark.parametrize("method", METHODS)
def test_lists_and_datasets(method):
    x, y = data()
    inputs, outputs = graph(method)
    cls = bk.BaliModel if method == "bali" else r1.BayesianModel
    model = cls(inputs, [outputs["price"], outputs["sold"]], likelihood=["normal", "bernoulli"])
    compiled(model, metrics=[["mae"], ["accuracy"]])
    batches = tf.data.Dataset.from_tensor_slices((x, (y["price"], y["sold"]))).batch(16)
    logs = model.fit(batches, epochs=1, verbose=0).history
    assert {"output_0_loss", "output_1_loss", "output_0_mae", "output_1_accuracy"} <= set(logs)
    assert [p.mean().shape for p in model.posterior_predictive(batches)] == [(64, 1), (64, 1)]
    assert len(model.predict(x, verbose=0)) == 2


def test_two_heads_that_share_nothing_are_two_nets():
    """Exact linear regressions, side by side in one model and each in a model of its own."""
    x, first = linear_data(rows=40, inputs=3, outputs=1, seed=1)
    second = np.cos(3.0 * x[:, :1])
    arguments = {"statistics_dtype": "float64", "dtype": "float64"}

    def fit(targets):
        inputs = keras.Input((3,), dtype="float64")
        outputs = {n: bk.layers.DenseBali(1, **arguments)(inputs) for n in targets}
        likelihood = {n: r1.likelihoods.Normal(scale=0.3) for n in targets}
        model = bk.BaliModel(inputs, outputs, likelihood=likelihood)
        model.compile(forgetting=1.0, prior_row_precision=1.0, warmup_steps=0)
        model.fit(x, targets, batch_size=40, epochs=1, shuffle=False, verbose=0)
        means = [layer.posterior_state.mean.numpy() for layer in model.exact_layers]
        return dict(zip(sorted(targets), means, strict=True)), model.posterior_predictive(x, 2)

    (means, answers) = fit({"a": first, "b": second})
    for name, y in (("a", first), ("b", second)):
        mean, alone = (found[name] for found in fit({name: y}))
        np.testing.assert_allclose(means[name], mean, rtol=1e-6)  # likelihoods are float32
        np.testing.assert_allclose(answers[name].variance(), alone.variance(), rtol=1e-6)


def test_rank1_heads_that_share_nothing_are_two_nets():
    """Bounds add up: with draws of their own means, the joint loss is the sum of two losses."""
    x, y = data()
    joint = compiled(net("rank1"))
    joint.num_train_examples = 64
    kinds = {"price": "normal", "sold": "bernoulli"}
    with r1.posterior_mean():
        outputs = joint(x)
        parts = {}
        for name, kind in kinds.items():
            likelihood = r1.likelihoods.get(kind)
            likelihood.build(outputs[name].shape)
            parts[name] = float(r1.losses.AverageNLL(likelihood)(y[name], outputs[name]))
        found = joint.objective(y, outputs)
    np.testing.assert_allclose(found.nll, sum(parts.values()), rtol=1e-5)
    np.testing.assert_allclose(found.by_output, [parts["price"], parts["sold"]], rtol=1e-5)


def test_loss_weights_weigh_the_bound():
    x, y = data()
    model = compiled(net("rank1"), loss_weights={"price": 2.0, "sold": 0.5})
    model.num_train_examples = 64
    found = model.objective(y, model(x))
    price, sold = found.by_output
    np.testing.assert_allclose(found.nll, 2.0 * price + 0.5 * sold, rtol=1e-6)
    assert model.get_compile_config()["loss_weights"] == {"price": 2.0, "sold": 0.5}


def test_a_loss_weight_of_2_is_a_sample_weight_of_2():
    """An exact output of weight 2 sees every example twice; the other output sees it once."""
    x, y = linear_data(rows=30, inputs=3, outputs=1, seed=2)

    def fit(**weights):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        outputs = {n: bk.layers.DenseBali(1, name=n)(inputs) for n in ("a", "b")}
        likelihood = {n: r1.likelihoods.Normal(scale=0.3) for n in outputs}
        model = bk.BaliModel(inputs, outputs, likelihood=likelihood, num_train_examples=30)
        model.compile(
            forgetting=1.0,
            prior_row_precision=1.0,
            warmup_steps=0,
            loss_weights=weights.get("loss_weights"),
        )
        model.fit(
            x,
            {"a": y, "b": y},
            batch_size=30,
            verbose=0,
            sample_weight=weights.get("sample_weight"),
        )
        return model.posterior_predictive(x, 2, seed=0)

    weighted = fit(loss_weights={"a": 2.0, "b": 1.0})
    once, twice = fit(), fit(loss_weights={"a": 2.0, "b": 2.0})
    np.testing.assert_allclose(weighted["a"].variance(), twice["a"].variance(), rtol=1e-4)
    np.testing.assert_allclose(weighted["b"].variance(), once["b"].variance(), rtol=1e-4)
    assert (weighted["a"].epistemic_variance() < once["a"].epistemic_variance()).all()


@pytest.mark.parametrize("method", METHODS)
def test_missing_labels_of_one_output(method):
    """Half of the prices are missing: that output learns from the rest, and the other from all."""
    x, y = data()
    y["price"][::2] = np.nan
    model = compiled(net(method))
    with pytest.warns(UserWarning, match="32 of 64 targets are NaN"):
        model.fit(x, y, epochs=2, batch_size=16, verbose=0)
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isfinite(list(found.values())).all()


def test_rows_of_a_head_count_where_its_labels_are():
    """A hidden layer of one head alone does not count rows whose label is missing there."""
    x, y = data()
    missing = {**y, "price": np.where(np.arange(64) % 2, y["price"], np.nan).astype("float32")}

    def rows_of(targets):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        own = bk.layers.DenseBali(4, activation="tanh", name="own")
        outputs = {
            "price": bk.layers.DenseBali(1)(own(inputs)),
            "sold": bk.layers.DenseBali(1)(bk.layers.DenseBali(4, name="other")(inputs)),
        }
        model = bk.BaliModel(inputs, outputs, likelihood={"price": "normal", "sold": "bernoulli"})
        model.compile(forgetting=1.0, prior_precision=0.1, damping=0.1, warmup_steps=0)
        model.num_train_examples = 64
        model.fit(x, targets, batch_size=64, epochs=2, shuffle=False, verbose=0)
        layers = {layer.name: layer for layer in model.bali_layers}
        return [
            float(layers[name].posterior_state.rows.average.value()[-1, -1])
            for name in ("own", "other")
        ]

    np.testing.assert_allclose(rows_of(y), [1.0, 1.0], rtol=1e-5)
    with pytest.warns(UserWarning, match="are NaN"):
        np.testing.assert_allclose(rows_of(missing), [0.5, 1.0], rtol=1e-5)


def test_an_output_that_another_reads_is_no_exact_one():
    inputs = keras.Input((3,))
    price = bk.layers.DenseBali(1)(inputs)
    sold = bk.layers.DenseBali(1)(keras.layers.Concatenate()([inputs, price]))
    likelihood = {"price": "normal", "sold": "bernoulli"}
    model = bk.BaliModel(inputs, {"price": price, "sold": sold}, likelihood=likelihood)
    assert model.exact_layers == [None, None]
    x, y = data()
    model.compile()
    model.fit(x, y, epochs=2, verbose=0)
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()


@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_other_shapes(method):
    """One output by time step, one by example, with weights for one of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5, 2)).astype("float32")
    y = {"steps": x[..., :1], "label": (x.mean((1, 2)) > 0).astype("int32")}
    inputs = keras.Input((5, 2))
    if method == "bali":
        h = bk.layers.DenseBali(4, activation="tanh")(inputs)
        label = bk.layers.DenseBali(2)(keras.layers.GlobalAveragePooling1D()(h))
        outputs, cls = {"steps": bk.layers.DenseBali(1)(h), "label": label}, bk.BaliModel
    else:
        with r1.members(2):
            h = r1.layers.DenseRank1(4, activation="tanh")(r1.layers.TileMembers()(inputs))
            label = r1.layers.DenseRank1(2)(keras.layers.GlobalAveragePooling1D()(h))
            heads = {"steps": r1.layers.DenseRank1(1)(h), "label": label}
            outputs = {name: r1.layers.SplitMembers()(head) for name, head in heads.items()}
        cls = r1.BayesianModel
    model = compiled(cls(inputs, outputs, likelihood={"steps": "normal", "label": "categorical"}))
    weights = {"steps": np.ones((24, 5), "float32"), "label": np.ones(24, "float32")}
    model.fit(x, y, sample_weight=weights, epochs=2, verbose=0)
    p = model.posterior_predictive(x, 4)
    assert p["steps"].mean().shape == (24, 5, 1) and p["label"].mean().shape == (24, 2)


@pytest.mark.parametrize("method", METHODS)
def test_convert_keeps_the_outputs(method):
    x, y = data()
    inputs = keras.Input((3,))
    h = keras.layers.Dense(6, activation="tanh")(inputs)
    heads = {"price": keras.layers.Dense(1)(h), "sold": keras.layers.Dense(1, "sigmoid")(h)}
    stock = keras.Model(inputs, heads)
    convert = bk.convert if method == "bali" else r1.convert
    likelihood = {"price": "normal", "sold": "bernoulli"}
    model = compiled(convert(stock, likelihood=likelihood))
    if method == "bali":
        with r1.posterior_mean():
            raw = model(x)
        np.testing.assert_allclose(raw["price"], stock(x)["price"], atol=1e-5)
        np.testing.assert_allclose(tf.sigmoid(raw["sold"]), stock(x)["sold"], atol=1e-5)
    model.fit(x, y, epochs=1, verbose=0)
    assert set(model.predict(x, verbose=0)) == {"price", "sold"}
    with pytest.raises(ValueError, match="a likelihood for each"):
        convert(stock, likelihood="normal")


class Subclassed(r1.BayesianModel):
    def __init__(self, **kwargs):
        likelihood = {"a": r1.likelihoods.Normal(), "b": r1.likelihoods.Categorical()}
        super().__init__(likelihood=likelihood, **kwargs)
        self.trunk = keras.layers.Dense(4, activation="tanh")
        self.a, self.b = keras.layers.Dense(1), keras.layers.Dense(3)

    def call(self, x):
        h = self.trunk(x)
        outputs = {"a": self.a(h)[:, None], "b": self.b(h)[:, None]}
        return {name: self.likelihood[name](values) for name, values in outputs.items()}


def test_a_subclass():
    x, y = data()
    targets = {"a": y["price"], "b": y["sold"].astype("int32")}
    model = compiled(Subclassed(), metrics={"b": ["accuracy"]})
    logs = model.fit(x, targets, epochs=1, verbose=0, validation_data=(x, targets)).history
    assert {"a_loss", "b_loss", "val_b_accuracy"} <= set(logs)
    p = model.posterior_predictive(x, 4)
    assert p["a"].mean().shape == (64, 1) and p["b"].mean().shape == (64, 3)


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_match_is_refused_by_name(method):
    x, y = data()
    model = compiled(net(method))
    weights = [v.numpy() for v in model.trainable_variables]
    one = {"price": y["price"]}
    refused = {
        r"nothing for \['sold'\]": lambda: model.fit(x, one, verbose=0),
        "Argument `y` must be a dict": lambda: model.fit(x, y["price"], verbose=0),
        r"unknown names \['prize'\]": lambda: model.fit(x, {**y, "prize": x}, verbose=0),
        "Output 'sold': Bernoulli": lambda: model.fit(x, {**y, "sold": x}, verbose=0),
        "Argument `class_weight`": lambda: model.fit(x, y, class_weight={0: 1.0}, verbose=0),
        "add up to one bound": lambda: model.compile(loss="mse"),
        "Argument `metrics` must be a dict": lambda: model.compile(metrics=["mae"]),
        "Argument `loss_weights` must be a dict": lambda: model.compile(loss_weights=[1.0]),
        "needs a likelihood for each": lambda: net(method, "normal"),
        "Argument `likelihood` must have": lambda: net(method, {"price": "normal"}),
        "Argument `method` must have": lambda: model.conformalize(x, y, {"price": "cqr"}),
    }
    shared = r1.likelihoods.Normal()
    refused["a likelihood object of its own"] = lambda: net(
        method, {"price": shared, "sold": shared}
    )
    for message, attempt in refused.items():
        with pytest.raises(ValueError, match=message):
            attempt()
    for variable, before in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)


def test_outputs_without_a_common_axis_of_members_are_refused():
    inputs = keras.Input((3,))
    with r1.members(2):
        h = r1.layers.DenseRank1(4)(r1.layers.TileMembers()(inputs))
        outputs = {"a": r1.layers.SplitMembers()(h), "b": keras.layers.Dense(2)(inputs)}
    with pytest.raises(ValueError, match="the same axis of members"):
        r1.BayesianModel(inputs, outputs, likelihood={"a": "normal", "b": "normal"})


def test_answers_are_json_in_the_graph(fitted):
    """What a clone reads stands at the first likelihood alone."""
    model = fitted[0]
    found = [likelihood.answers for likelihood in model.likelihoods]
    assert found[1] is None and (found[0] is None or json.loads(found[0]))


def trained(method, scope=None, **kwargs):
    """A short training whose draws do not depend on where it runs; its logs."""
    keras.utils.set_random_seed(1)
    x, y = data(rows=45)
    with scope.scope() if scope is not None else contextlib.nullcontext():
        model = compiled(net(method), **kwargs)
    model.seed_generator.state.assign([5, 0])
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    with r1.posterior_mean() if method == "rank1" else contextlib.nullcontext():
        logs = model.fit(batches, epochs=2, verbose=0, validation_data=batches).history
    return {name: np.array(values) for name, values in logs.items()}


@pytest.mark.parametrize("method", ["rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_two_replicas_and_xla_train_as_one(method, strategy):
    expected = trained(method)
    for found in (trained(method, strategy), trained(method, jit_compile=True)):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_in_half_precision(method):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        logs = trained(method)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(values).all() for values in logs.values())


@pytest.mark.parametrize("method", ["rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_training_goes_on_from_a_checkpoint(method, tmp_path):
    """A fit of two epochs that ends after one, and is begun anew, is one fit of two epochs."""
    x, y = data()

    def fit(epochs, folder):
        keras.utils.set_random_seed(2)
        model = compiled(net(method))
        model.seed_generator.state.assign([5, 0])
        callbacks = [r1.callbacks.Resume(folder)] if folder else []
        model.fit(x, y, epochs=2, shuffle=False, verbose=0, callbacks=[*callbacks, Stop(epochs)])
        return model.predict(x, verbose=0)

    fit(1, tmp_path)
    found, expected = fit(2, tmp_path), fit(2, None)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


class Stop(keras.callbacks.Callback):
    def __init__(self, epochs):
        super().__init__()
        self.last = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 >= self.last
