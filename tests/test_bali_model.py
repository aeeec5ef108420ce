"""BaliModel: nets of all kinds, persistence, health."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import linear_data, net, posteriors

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.settings import Settings


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
    found = {"prior_precision", "damping", "covariance_scale", "effective_parameters"}
    assert expected | found | {"accuracy"} == set(history)
    assert np.isfinite(list(history.values())).all()
    assert history["nll"][-1] < 0.5 * history["nll"][0]
    assert history["rate"][0] > history["rate"][-1] > 0
    assert max(history["step_kl"]) <= Settings.trust_region + 1e-6
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
        model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=3.0, run_eagerly=True)
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
    noise = r1.likelihoods.Normal(scale=0.3)
    model = bk.BaliModel([a, b], outputs, likelihood=noise, num_train_examples=len(x))
    model.compile(forgetting=0.5, warmup_steps=0, trust_region=None)
    model.fit(tf.data.Dataset.from_tensors(((x, x), 2 * y)).repeat(200), verbose=0)
    with r1.posterior_mean():
        residual = 2 * y - model.predict([x, x], verbose=0)
    assert np.std(residual) < 1.1 * 0.6
    moment = layer.posterior_state.rows.average.value()
    h = np.c_[x, np.ones(len(x))]
    np.testing.assert_allclose(moment, 2 * h.T @ h / len(x), rtol=1e-4)


def test_a_total_weight_that_is_no_whole_number_is_saved(tmp_path):
    x, y = linear_data()
    model = net(likelihood="normal")
    model.compile(run_eagerly=True)
    model.fit(x, y, sample_weight=np.full(len(x), 0.33), verbose=0)
    assert model.num_train_examples == pytest.approx(0.33 * len(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.num_train_examples == model.num_train_examples


def test_losses_of_keras_use_the_empirical_fisher(digits):
    x, y, _, _ = digits
    model = net(64, (16,), 10, "categorical", "relu")
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, batch_size=64, epochs=5, verbose=0).history
    assert history["nll"][-1] < 0.5 * history["nll"][0]
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()


@pytest.mark.parametrize(
    "likelihood",
    [
        "heteroscedastic_normal",
        pytest.param("bernoulli", marks=pytest.mark.slow),
        pytest.param("poisson", marks=pytest.mark.slow),
    ],
)
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


def test_n_is_the_weight_of_the_examples():
    x, y = linear_data()
    weights = np.full(60, 2.0, "float32")
    model = net()
    model.compile(run_eagerly=True)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(20), verbose=0)
    assert model.num_train_examples == 120
    labels = np.eye(3)[np.arange(60) % 3]
    classifier = net(outputs=3, likelihood="categorical")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    classifier.compile(loss=loss, run_eagerly=True)
    classifier.fit(x, labels, class_weight={0: 1.0, 1: 10.0}, verbose=0)
    assert classifier.num_train_examples == 20 + 200 + 20


def test_a_shared_output_layer_is_not_integrated_out():
    x, y = linear_data(inputs=2)
    inputs = keras.Input((2,))
    layer = bk.layers.DenseBali(2)
    outputs = layer(keras.layers.Activation("tanh")(layer(inputs)))
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    assert model.exact_layer is None
    model.compile()
    assert np.isfinite(model.fit(x, y, epochs=3, verbose=0).history["nll"]).all()


def test_a_built_sequential_net_is_taken_as_it_is():
    stack = keras.Sequential([keras.Input((3,)), bk.layers.DenseBali(2)])
    model = bk.BaliModel(stack, likelihood="normal")
    assert model.exact_layer is stack.layers[0]


def test_evaluation_integrates_the_output_layer_out():
    """`val_nll` is that of the closed form, also where the weights' uncertainty dominates."""
    inputs, y = linear_data(rows=12, outputs=1)
    model = net(outputs=1)
    model.compile(warmup_steps=0, forgetting=1.0, metrics=[r1.metrics.RootMeanSquaredError()])
    model.fit(inputs, y, batch_size=12, verbose=0)
    weights = np.linspace(0.5, 2.0, 12)
    for x in (inputs, 20.0 * inputs):
        exact = model.posterior_predictive(x, num_samples=1)
        found = model.evaluate(x, y, return_dict=True, verbose=0)
        assert found["nll"] == pytest.approx(-float(np.mean(exact.log_prob(y))), rel=1e-4)
        weighted = model.evaluate(x, y, sample_weight=weights, return_dict=True, verbose=0)
        expected = -float(np.mean(weights * exact.log_prob(y)))
        assert weighted["nll"] == pytest.approx(expected, rel=1e-4)
        error = np.sqrt(np.mean((exact.mean() - y) ** 2))
        assert found["rmse"] == pytest.approx(error, rel=1e-4)
        metric = r1.metrics.PredictiveNLL()  # which takes the closed form as it is
        metric.update_state(y, exact)
        assert float(metric.result()) == pytest.approx(-float(np.mean(exact.log_prob(y))), rel=1e-5)


def test_padding_is_no_data():
    """Sequences padded to any length, and masked, give the same posterior."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6, 3)).astype("float32")
    x[:10, 4:] = 0.0  # half of the sequences are shorter
    y = rng.normal(size=(20, 2)).astype("float32")

    def fit(inputs):
        keras.utils.set_random_seed(0)
        h = start = keras.Input((None, 3))
        h = bk.layers.DenseBali(4, activation="tanh")(keras.layers.Masking()(h))
        outputs = bk.layers.DenseBali(2)(keras.layers.GlobalAveragePooling1D()(h))
        model = bk.BaliModel(start, outputs, likelihood=r1.likelihoods.Normal(scale=0.5))
        model.compile(warmup_steps=0, forgetting=1.0)
        model.fit(inputs, y, batch_size=20, verbose=0)
        return model

    longer = fit(np.pad(x, [(0, 0), (0, 5), (0, 0)]))
    for ours, theirs in zip(posteriors(longer), posteriors(fit(x)), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    rows = np.concatenate([x[:10, :4].reshape(-1, 3), x[10:].reshape(-1, 3)])
    h = np.c_[rows, np.ones(len(rows))]
    statistics = longer.bali_layers[0].posterior_state.rows.average.value()
    np.testing.assert_allclose(statistics, h.T @ h / 20, rtol=1e-4, atol=1e-5)


def test_a_fit_within_the_warm_up_ends_with_a_posterior():
    """As after one epoch of a converted net on a few batches; the mean has not moved."""
    x, y = linear_data()
    model = net(hidden=(4,), activation="relu")
    start = [np.array(v.kernel) for v in model.bali_layers]
    model.compile(warmup_steps=10)
    model.fit(x, y, batch_size=20, verbose=0)
    for layer, kernel in zip(model.bali_layers, start, strict=True):
        np.testing.assert_array_equal(layer.kernel, kernel)
        covariance = layer.posterior_state.matrix_normal().row_covariance()
        assert np.linalg.eigvalsh(covariance)[0] > 0.0


def test_restored_weights_get_their_covariances():
    """A callback that goes back to earlier weights when training ends does so before the last
    factorisation."""
    x, y = linear_data()
    model = net(hidden=(8,), activation="relu")
    model.compile(factorise_every=16, warmup_steps=0)
    stopping = keras.callbacks.EarlyStopping(
        "step_kl", mode="max", patience=9, restore_best_weights=True
    )
    model.fit(x, y, batch_size=10, epochs=4, verbose=0, callbacks=[stopping])
    found = posteriors(model)
    model.factorise()
    for ours, theirs in zip(found, posteriors(model), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
