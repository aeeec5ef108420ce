"""BaliModel: nets of all kinds, persistence, export, health, and refusals."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data, net, posteriors

import bali_keras as bk
import tfp_rank1 as r1


@pytest.fixture(scope="module")
def classifier(digits):
    """A BALI net after five epochs on the digits; tests must not train it further."""
    keras.utils.set_random_seed(1)
    x, y, _, _ = digits
    model = net(64, (32,), 10, "categorical", "relu")
    model.compile(metrics=["accuracy"])
    history = model.fit(x, y, batch_size=64, epochs=8, verbose=0).history
    return model, history


def test_fit_logs_what_a_person_needs(classifier):
    _, history = classifier
    expected = {"loss", "nll", "kl", "kl_weight", "rate", "step_kl", "condition", "refused"}
    assert expected | {"accuracy"} == set(history)
    assert np.isfinite(list(history.values())).all()
    assert history["nll"][-1] < 0.5 * history["nll"][0]
    assert history["rate"][0] > history["rate"][-1] > 0
    assert max(history["step_kl"]) <= bk._settings.DEFAULT_TRUST_REGION + 1e-6
    assert not any(history["refused"])
    np.testing.assert_allclose(history["loss"], np.add(history["nll"], history["kl"]), rtol=1e-4)


def test_digits_are_classified_with_calibrated_probabilities(classifier, digits):
    model, _ = classifier
    _, _, x, y = digits
    p = model.posterior_predictive(x, num_samples=32, seed=0)
    assert np.mean(np.argmax(p.mean(), 1) == y) > 0.9
    assert -np.mean(p.log_prob(y)) < 0.35
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "nll", "kl", "kl_weight", "accuracy"}
    assert logs["accuracy"] > 0.9
    noise = np.random.default_rng(0).permuted(x, axis=1)
    scrambled = model.posterior_predictive(noise, num_samples=32, seed=0)
    assert np.mean(scrambled.mutual_information()) > 2 * np.mean(p.mutual_information())


def test_save_load_and_resume_is_to_go_on(tmp_path, digits):
    x, y = digits[0][:200], digits[1][:200]

    def make():
        keras.utils.set_random_seed(2)
        model = net(64, (8,), 10, "categorical", "relu")
        model.compile(warmup_steps=2)
        model.fit(x, y, batch_size=50, epochs=4, verbose=0, shuffle=False)
        return model

    def go_on(model):
        model.fit(x, y, batch_size=50, epochs=7, initial_epoch=4, verbose=0, shuffle=False)
        return posteriors(model)

    model = make()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded).__mro__[1] is bk.BaliModel
    assert loaded.num_train_examples == 200
    for ours, theirs in zip(go_on(loaded), go_on(model), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_clean_process_answers(classifier, digits, tmp_path):
    model, _ = classifier
    model.export_predictive(str(tmp_path / "served"), num_samples=8)
    np.save(tmp_path / "x.npy", digits[2][:5])
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        f"m = tf.saved_model.load({str(tmp_path / 'served')!r})\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        "out = m.serve(x)\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in "
        "('bali_keras', 'tfp_rank1', 'tensorflow_probability')]\n"
        "np.testing.assert_allclose(out['probs'].numpy().sum(1), 1.0, rtol=1e-5)\n"
        "print(m.samples(x, 3).shape.as_list())\n"
        f"np.save({str(tmp_path / 'probs.npy')!r}, out['probs'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "[3, 5, 10]"
    here = model.posterior_predictive(digits[2][:5], num_samples=64).mean()
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy"), here, atol=0.35)


def test_sequential_and_subclassed_nets_find_their_output_layer():
    x, y = linear_data()

    class Net(bk.BaliModel):
        def __init__(self):
            super().__init__(likelihood=r1.likelihoods.Normal(scale=0.3))
            self.dense = bk.layers.DenseBali(2)

        def call(self, inputs):
            return self.likelihood(self.dense(inputs))

    stack = keras.Sequential([keras.Input((3,)), bk.layers.DenseBali(2)])
    wrapped = bk.BaliModel(stack.inputs, stack.outputs, likelihood=r1.likelihoods.Normal(scale=0.3))
    inputs = keras.Input((3,))
    nested = bk.BaliModel(
        inputs,
        keras.Sequential([bk.layers.DenseBali(2)])(inputs),
        likelihood=r1.likelihoods.Normal(scale=0.3),
    )
    means = []
    for model in (net(), wrapped, nested, Net()):
        model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=3.0)
        model.fit(x, y, batch_size=len(x), verbose=0)
        means.append(model.bali_layers[0].posterior.mean())
        p = model.posterior_predictive(x, num_samples=1)
        assert p.output_variance is not None
    for mean in means[1:]:
        np.testing.assert_allclose(mean, means[0], atol=1e-5)


def test_other_layers_are_trained_by_the_optimizer(digits):
    x, y, _, _ = digits
    inputs = keras.Input((64,))
    h = keras.layers.Dense(16, activation="relu")(inputs)
    h = keras.layers.BatchNormalization()(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile()
    with pytest.raises(ValueError, match="need an optimizer"):
        model.fit(x, y, verbose=0)
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    before = np.array(model.layers[1].kernel)
    history = model.fit(x, y, batch_size=64, epochs=4, verbose=0).history
    assert history["nll"][-1] < 0.5 * history["nll"][0]
    assert np.abs(before - model.layers[1].kernel).max() > 1e-3


def test_a_shared_layer_counts_its_rows():
    """Two calls of one layer are two rows per example: the regression of all rows at once."""
    x, y = linear_data(outputs=1)
    layer = bk.layers.DenseBali(1)
    a, b = keras.Input((3,)), keras.Input((3,))
    outputs = keras.layers.Add()([layer(a), layer(b)])
    model = bk.BaliModel([a, b], outputs, likelihood=r1.likelihoods.Normal(scale=0.3))
    model.compile(forgetting=0.5, warmup_steps=0, trust_region=None)
    model.fit([x, x], 2 * y, batch_size=len(x), epochs=200, verbose=0)
    with r1.posterior_mean():
        residual = 2 * y - model.predict([x, x], verbose=0)
    assert np.std(residual) < 1.1 * 0.6
    moment = layer.posterior_state.inputs.value()
    h = np.c_[x, np.ones(len(x))]
    np.testing.assert_allclose(moment, 2 * h.T @ h / len(x), rtol=1e-4)


def test_losses_of_keras_use_the_empirical_fisher(digits):
    x, y, _, _ = digits
    model = net(64, (16,), 10, "categorical", "relu")
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, batch_size=64, epochs=5, verbose=0).history
    assert history["nll"][-1] < 0.5 * history["nll"][0]
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "heteroscedastic_normal"])
def test_other_likelihoods_learn(likelihood):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype("float32")
    signal = x[:, 0] - 0.5 * x[:, 1]
    y = {
        "bernoulli": rng.random(300) < 1 / (1 + np.exp(-3 * signal)),
        "poisson": rng.poisson(np.exp(signal)),
        "heteroscedastic_normal": signal + 0.1 * np.exp(0.5 * x[:, 2]) * rng.normal(size=300),
    }[likelihood].astype("float32")
    outputs = 2 if likelihood.startswith("hetero") else 1
    model = net(3, (16,), outputs, likelihood, "tanh")
    model.compile()
    history = model.fit(x, y, batch_size=50, epochs=30, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert history["nll"][-1] < history["nll"][0] - 0.15


def test_scores_have_the_fisher_information_as_covariance():
    rng = np.random.default_rng(0)
    for name, size in [
        ("categorical", 4), ("bernoulli", 3), ("poisson", 2), ("heteroscedastic_normal", 4),
    ]:  # fmt: skip
        likelihood = r1.likelihoods.get(name)
        outputs = tf.constant(rng.normal(size=(1, size)).astype("float32"))
        repeated = tf.repeat(outputs, 100_000, axis=0)
        noise = tf.random.stateless_normal(repeated.shape, (1, 2))
        closed = bk.fisher.score(likelihood, repeated, noise)
        with tf.GradientTape() as tape:
            tape.watch(repeated)
            log_prob = bk.fisher.sampled_log_prob(likelihood, repeated, tf.constant([3, 4]))
        sampled = tape.gradient(log_prob, repeated)
        a, b = (np.array(tf.matmul(s, s, transpose_a=True)) / 100_000 for s in (closed, sampled))
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


# -- what must not break ------------------------------------------------------------------------


def test_degenerate_data_gives_a_finite_posterior():
    """Constant and duplicated features, a constant target, a last batch of one example."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(65, 1))
    x = np.concatenate([a, a, np.ones((65, 1)), np.zeros((65, 1))], axis=1).astype("float32")
    model = net(4, (8,), 1, r1.likelihoods.Normal(), "relu")
    model.compile()
    history = model.fit(x, np.full(65, 2.0, "float32"), batch_size=16, epochs=30, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    p = model.posterior_predictive(x, num_samples=8)
    np.testing.assert_allclose(p.mean(), 2.0, atol=0.2)
    assert np.isfinite(p.stddev()).all()


def test_one_bad_batch_is_refused_and_counted():
    x, y = linear_data(rows=40)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    model = net(hidden=(8,), activation="relu")
    model.compile(warmup_steps=0)
    model.fit(data, epochs=3, verbose=0)
    before = posteriors(model)
    bad = x.copy()
    bad[3, 0] = np.inf
    with pytest.raises(ValueError, match="the first of them row 3"):
        model.fit(bad, y, verbose=0)
    bad = tf.data.Dataset.from_tensor_slices((bad[:10], y[:10])).batch(10)
    history = model.fit(bad, verbose=0).history
    assert history["refused"] == [1.0]
    assert model.refused_updates == 1
    for ours, theirs in zip(posteriors(model), before, strict=True):
        assert np.isfinite(ours[0]).all()
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert model.fit(data, verbose=0).history["refused"] == [0.0]


def test_bad_targets_are_named():
    x, y = linear_data()
    y[3] = np.nan
    model = net()
    model.compile()
    with pytest.raises(ValueError, match="must be finite"):
        model.fit(x, y, verbose=0)


def test_an_unknown_number_of_examples_is_named():
    x, y = linear_data()

    def batches():
        while True:
            yield x[:10], y[:10]

    model = net()
    model.compile(forgetting=0.1)
    with pytest.raises(ValueError, match="num_train_examples"):
        model.fit(batches(), steps_per_epoch=2, verbose=0)
    model.num_train_examples = 60
    assert np.isfinite(model.fit(batches(), steps_per_epoch=2, verbose=0).history["nll"]).all()


def test_a_layer_without_gradient_is_named():
    inputs = keras.Input((3,))
    h = bk.layers.DenseBali(4, name="cut")(inputs)
    outputs = bk.layers.DenseBali(1)(keras.ops.stop_gradient(h))
    model = bk.BaliModel(inputs, outputs, likelihood="normal")
    model.compile()
    x, y = linear_data(outputs=1)
    with pytest.raises(ValueError, match="'cut'"):
        model.fit(x, y, verbose=0)
    model.get_layer("cut").trainable = False
    model.compile()
    assert np.isfinite(model.fit(x, y, verbose=0).history["nll"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forgetting": 0.0}, "forgetting"),
        ({"forgetting": "linear"}, "forgetting"),
        ({"damping": -1.0}, "damping"),
        ({"damping": (0.1, -1.0)}, "damping"),
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"prior_row_precision": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
        ({"temperature": float("inf")}, "temperature"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"trust_region": 0.0}, "trust_region"),
        ({"factorise_every": 0}, "factorise_every"),
        ({"evaluation_samples": 0}, "evaluation_samples"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received|Received.*{message}"):
        net().compile(**arguments)


def test_a_matrix_of_the_wrong_size_is_named():
    model = net()
    model.compile(prior_row_precision=np.eye(3), warmup_steps=0)
    x, y = linear_data()
    with pytest.raises(ValueError, match=r"must be \[4, 4\]"):
        model.fit(x, y, verbose=0)


def test_schedules():
    progress = bk.schedules.Progress(*map(tf.constant, (6, 1, 11)))
    assert float(bk.schedules.Constant(0.2)(progress)) == pytest.approx(0.2)
    assert float(bk.schedules.Linear(0.1, 0.02)(progress)) == pytest.approx(0.06)
    assert float(bk.schedules.Linear(0.1, 0.02, steps=5)(progress)) == pytest.approx(0.02)
    assert float(bk.schedules.Averaging()(progress)) == pytest.approx(1 / 6)
    for schedule in (bk.schedules.Constant(0.2), bk.schedules.Linear(), bk.schedules.Averaging()):
        config = keras.saving.serialize_keras_object(schedule)
        assert bk.schedules.get(config) == schedule
    with pytest.raises(ValueError, match="must not exceed"):
        bk.schedules.Linear(0.1, 0.2)


@pytest.mark.parametrize(
    ("compile_arguments", "fit_arguments", "message"),
    [
        ({"prior_row_precision": {"nobody": 1.0}}, {}, "nobody"),
        ({}, {"sample_weight": np.full(60, -1.0)}, "at least 0"),
        ({}, {"sample_weight": np.zeros(60)}, "not all 0"),
        ({}, {"callbacks": keras.callbacks.CallbackList()}, "list of callbacks"),
    ],
)
def test_bad_fits(compile_arguments, fit_arguments, message):
    x, y = linear_data()
    model = net()
    model.compile(**compile_arguments)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, **fit_arguments)


def test_steps_without_a_length_are_refused():
    x, y = linear_data()
    model = net(num_train_examples=60)
    model.compile()
    with pytest.raises(ValueError, match="length of a fit"):
        model.train_on_batch(x, y)
    model.compile(forgetting=0.1, warmup_steps=0)
    assert np.isfinite(model.train_on_batch(x, y)).all()
    with pytest.raises(ValueError, match="noise scale"):
        net(likelihood=r1.likelihoods.Normal()).compile(loss="mse")


def test_n_is_the_weight_of_the_examples():
    x, y = linear_data()
    weights = np.full(60, 2.0, "float32")
    model = net()
    model.compile()
    model.fit(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(20), verbose=0)
    assert model.num_train_examples == 120
    labels = np.eye(3)[np.arange(60) % 3]
    classifier = net(outputs=3, likelihood="categorical")
    classifier.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    classifier.fit(x, labels, class_weight={0: 1.0, 1: 10.0}, verbose=0)
    assert classifier.num_train_examples == 20 + 200 + 20


def test_a_refused_batch_leaves_the_other_layers_as_they_were():
    x, y = linear_data()
    inputs = keras.Input((3,))
    h = bk.layers.DenseBali(4, activation="relu")(inputs)
    h = keras.layers.Dense(4)(keras.layers.BatchNormalization()(h))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood=r1.likelihoods.Normal())
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), forgetting=0.1, warmup_steps=0)
    model.fit(x, y, batch_size=20, epochs=2, verbose=0)
    before = [np.array(v) for v in model.weights + model.optimizer.variables]
    model.train_on_batch(np.full_like(x, np.nan), y)
    counters = {id(v) for v in (model._updates, model._refused)}
    variables = model.weights + model.optimizer.variables
    for variable, old in zip(variables, before, strict=True):
        if id(variable) not in counters:
            np.testing.assert_array_equal(variable, old, err_msg=variable.path)
    assert model.refused_updates == 1


def test_features_of_any_scale_and_whole_numbers():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 2)) * [3000.0, 1.0]).astype("float32")
    y = (x @ np.array([[0.001], [1.0]]) + 0.3).astype("float32")
    arguments = {"warmup_steps": 0, "prior_row_precision": 0.7, "factorise_every": 1}
    model = net(2, outputs=1, likelihood=r1.likelihoods.Normal(scale=0.5))
    model.compile(forgetting=bk.schedules.Averaging(), **arguments)
    model.fit(x, y, batch_size=50, verbose=0)
    mean, covariance = conjugate(x, y, 0.7)
    found = model.bali_layers[0].posterior_state.matrix_normal()
    np.testing.assert_allclose(found.mean, mean, atol=2e-3)
    np.testing.assert_allclose(np.diag(found.row_covariance()), np.diag(covariance), rtol=1e-3)
    layer = bk.layers.DenseBali(2)
    whole = np.arange(6).reshape(2, 3)
    with r1.posterior_mean():
        np.testing.assert_array_equal(layer(whole), layer(whole.astype("float32")))


def test_a_shared_output_layer_is_not_integrated_out():
    x, y = linear_data(inputs=2)
    inputs = keras.Input((2,))
    layer = bk.layers.DenseBali(2)
    outputs = layer(keras.layers.Activation("tanh")(layer(inputs)))
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    assert model._exact_layer is None
    model.compile()
    assert np.isfinite(model.fit(x, y, epochs=3, verbose=0).history["nll"]).all()


def test_a_built_sequential_net_is_taken_as_it_is():
    stack = keras.Sequential([keras.Input((3,)), bk.layers.DenseBali(2)])
    model = bk.BaliModel(stack, likelihood="normal")
    assert model._exact_layer is stack.layers[0]


def test_defaults_follow_the_data():
    """Damping falls with the number of examples; the prior goes by the kind of target."""
    settings, layer = bk._settings.Settings(), bk.layers.DenseBali(1)
    classes, numbers = r1.likelihoods.Categorical(), r1.likelihoods.Normal()
    few, many = (settings.prior_of(layer, n, classes) for n in (100, 60_000))
    assert few.damping[0] == pytest.approx(0.0949, rel=1e-2)
    assert many.damping[0] == pytest.approx(0.0192, rel=1e-2)
    assert (few.weight_precision, settings.prior_of(layer, 100, numbers).weight_precision) == (
        0.02,
        0.06,
    )
