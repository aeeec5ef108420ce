"""posterior_predictive, exports and calibration with moments."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import strategy_case
import tensorflow as tf
from conftest import members_input, small_classifier

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.moments import Moments, output_moments, propagate
from tfp_rank1.predictive.moments import moment_outputs


@pytest.fixture(scope="module")
def bali_model(digits):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(32, activation="relu")(inputs)
    h = bk.layers.DenseBali(32, activation="tanh")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile()
    model.fit(digits[0], digits[1], batch_size=64, epochs=5, verbose=0)
    return model


@pytest.fixture(params=["rank1", "bali"])
def model(request):
    return request.getfixturevalue({"rank1": "digits_model", "bali": "bali_model"}[request.param])


def test_as_good_as_many_samples_and_the_same_on_every_call(digits, model):
    x, y = digits[2], digits[3]
    p = model.posterior_predictive(x, method="moments")
    q = model.posterior_predictive(x, num_samples=256, seed=0)
    assert p.samples.shape == (64, len(x), 10)
    assert abs(np.mean(p.log_prob(y)) - np.mean(q.log_prob(y))) < 0.01
    np.testing.assert_allclose(np.mean(p.entropy()), np.mean(q.entropy()), rtol=0.1)
    # Five epochs: the posterior is wide, and its tails are far from normal.
    ratio = np.mean(p.mutual_information()) / np.mean(q.mutual_information())
    assert 0.55 < ratio < 1.3
    again = model.posterior_predictive(x, method="moments", seed=5)
    np.testing.assert_array_equal(again.samples, p.samples)
    few = model.posterior_predictive(x, method="moments", num_samples=16, batch_size=100)
    assert few.samples.shape[0] == 16


def test_a_bali_layer_has_its_exact_moments(bali_model, digits):
    """`M'mu` and `(mu' L^-1 mu + sum v_i (L^-1)_ii) V + M' diag(v) M`, in float64."""
    layer = bali_model.bali_layers[-1]
    rng = np.random.default_rng(0)
    mu, v = rng.normal(size=(4, 32)), rng.uniform(0.1, 1.0, (4, 32))
    found = propagate(layer, Moments(tf.constant(mu), tf.constant(v)))
    state = layer.posterior_state.matrix_normal()
    mean, row, column = (
        np.asarray(m, "float64") for m in (state.mean, state.row_factor, state.column_factor)
    )
    h = np.c_[mu, np.ones(4)]
    rows, noise = row @ row.T, column @ column.T
    scale = np.einsum("bi,ij,bj->b", h, rows, h) + v @ np.diag(rows)[:-1]
    covariance = scale[:, None, None] * noise
    covariance += np.einsum("bi,ij,ik->bjk", v, mean[:-1], mean[:-1])
    np.testing.assert_allclose(found.mean, h @ mean, rtol=1e-5)
    np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-3, atol=1e-5)


def test_correlations_of_hidden_units_reach_the_outputs(bali_model, digits):
    """V is wide where outputs do not move: its diagonal alone says far too much."""
    x = digits[2][:60]
    found = output_moments(bali_model, tf.constant(x))
    samples = bali_model.posterior_predictive(x, num_samples=2000, seed=0).samples
    ratio = np.sqrt(found.variance) / np.std(np.asarray(samples), axis=0)
    assert 0.8 < np.mean(ratio) < 1.25


def test_a_normal_likelihood_is_integrated_in_closed_form(regression_model):
    x = np.linspace(-1, 1, 20, dtype="float32")[:, np.newaxis]
    p = regression_model.posterior_predictive(x, method="moments")
    assert p.samples.shape == (2, 20, 1)
    q = regression_model.posterior_predictive(x, num_samples=4000, seed=0)
    np.testing.assert_allclose(p.mean(), q.mean(), atol=0.02)
    np.testing.assert_allclose(p.epistemic_variance(), q.epistemic_variance(), rtol=0.3, atol=1e-3)
    low, high = p.credible_interval(0.9)
    assert (low < high).all()


def test_calibration_holds_for_moments(digits):
    model = small_classifier()
    model.compile("adam")
    model.fit(digits[0], digits[1], epochs=2, verbose=0)
    before = model.posterior_predictive(digits[2][:50], method="moments")
    model._calibration = type(model.calibration)(posterior_scale=0.25, temperature=2.0)
    model._samplers.clear()
    after = model.posterior_predictive(digits[2][:50], method="moments")
    spread = [np.std(np.asarray(p.samples), axis=0).mean() for p in (before, after)]
    assert spread[1] < 0.6 * spread[0]
    with r1.posterior_mean():
        p = model.posterior_predictive(digits[2][:50], method="moments")
    assert p.samples.shape == (2, 50, 10)


def test_positions_are_drawn_or_count_as_independent():
    keras.utils.set_random_seed(0)
    inputs, h = members_input((8, 8, 1), 2)
    with r1.members(2):
        h = r1.layers.Conv2DRank1(4, 3, activation="relu")(h)
        h = keras.layers.MaxPooling2D()(h)
        h = r1.layers.DenseRank1(8, activation="relu")(keras.layers.Flatten()(h))
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(3)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    x = np.random.default_rng(0).normal(size=(30, 8, 8, 1)).astype("float32")
    q = model.posterior_predictive(x, num_samples=1000, seed=0)
    for passes, tolerance in ((None, 0.35), (0, 0.6)):
        p = model.posterior_predictive(x, method="moments", num_passes=passes)
        np.testing.assert_allclose(p.mean(), q.mean(), atol=0.02)
        ratio = np.mean(p.mutual_information()) / np.mean(q.mutual_information())
        assert abs(np.log(ratio)) < tolerance
        again = model.posterior_predictive(x, method="moments", num_passes=passes)
        np.testing.assert_array_equal(again.samples, p.samples)


def test_saved_cloned_and_half_precision_models_answer_alike(digits, digits_model, tmp_path):
    x = digits[2][:20]
    expected = digits_model.posterior_predictive(x, method="moments").mean()
    digits_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(digits_model)
    clone.set_weights(digits_model.get_weights())
    for other in (loaded, clone):
        found = other.posterior_predictive(x, method="moments").mean()
        np.testing.assert_allclose(found, expected, atol=1e-6)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = small_classifier()
    half.set_weights(digits_model.get_weights())
    found = half.posterior_predictive(x, method="moments").mean()
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_xla_and_strategies_compute_the_same(digits, model, strategy):
    x = tf.constant(digits[2][:8])

    def answer(values):
        return moment_outputs(model, values)[0]

    expected = tf.function(answer, autograph=False)(x)
    compiled = tf.function(answer, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(x), expected, rtol=1e-3, atol=1e-3)
    found = strategy.run(tf.function(answer, autograph=False), args=(x,))
    for values in strategy.experimental_local_results(found):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_two_replicas_evaluate_as_one(strategy):
    found = []
    for own in (tf.distribute.get_strategy(), strategy):
        keras.utils.set_random_seed(3)
        with own.scope():
            model = strategy_case.rank1("normal")
            model.compile("adam", evaluation_method="moments")
        batches = strategy_case.dataset().take(2)
        scores = model.evaluate(batches, verbose=0, return_dict=True)
        found.append(
            [*scores.values(), *np.ravel(model.predict(strategy_case.data()[0], verbose=0))]
        )
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


class Subclassed(r1.BayesianModel):
    def __init__(self):
        super().__init__(likelihood="categorical")
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.likelihood(self.dense(x))


def test_errors_say_what_to_do(digits_model, tmp_path):
    x = np.zeros((2, 64), "float32")
    model = Subclassed()
    model(x)
    with pytest.raises(ValueError, match=r"subclassed model has none.*method='samples'"):
        model.posterior_predictive(x, method="moments")
    with pytest.raises(ValueError, match="Argument `method` must be 'samples' or 'moments'"):
        digits_model.posterior_predictive(x, method="exact")
    with pytest.raises(ValueError, match="would be frozen"):
        digits_model.export_predictive(str(tmp_path / "m.onnx"), format="onnx")
    with pytest.raises(ValueError, match="Argument `format`"):
        digits_model.export_predictive(str(tmp_path / "m"), format="pmml")


# -- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_model", "bali_model", "regression_model"])
def test_evaluation_looks_at_the_answers_of_moments(name, digits, request):
    trained, (x, y) = request.getfixturevalue(name), (digits[2][:50], digits[3][:50])
    if name == "regression_model":
        x = np.linspace(-1, 1, 50, dtype="float32")[:, np.newaxis]
        y = np.sin(3 * x)
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    model.compile(evaluation_method="moments", **optimizer_of(model))
    model.num_train_examples = 50
    p = model.posterior_predictive(x, method="moments")
    np.testing.assert_allclose(model.predict(x, verbose=0), p.mean(), rtol=1e-4, atol=1e-6)
    scores = model.evaluate(x, y, verbose=0, return_dict=True)
    assert scores["nll"] == pytest.approx(-np.mean(p.log_prob(y)), rel=1e-4)
    assert scores == model.evaluate(x, y, verbose=0, return_dict=True)
    other = model.evaluate(x, y, batch_size=17, verbose=0, return_dict=True)
    assert other["nll"] == pytest.approx(scores["nll"], rel=1e-5)


def optimizer_of(model):
    return {} if isinstance(model, bk.BaliModel) else {"optimizer": "adam"}


def test_validation_and_metrics_by_moments(digits, tmp_path):
    model = small_classifier()
    metrics = ["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="ce")]
    model.compile("adam", evaluation_method="moments", metrics=metrics)
    data = digits[2][:100], digits[3][:100]
    history = model.fit(*data, validation_data=data, epochs=2, verbose=0).history
    scores = model.evaluate(*data, verbose=0, return_dict=True)
    for name in ("nll", "accuracy", "ce"):
        assert history[f"val_{name}"][-1] == pytest.approx(scores[name], rel=1e-5)
    # Metrics of Keras see the mean of the distribution whose NLL is logged.
    assert scores["ce"] == pytest.approx(scores["nll"], rel=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluation_method == "moments"
    found = loaded.evaluate(*data, verbose=0, return_dict=True)
    assert found == pytest.approx(scores, rel=1e-5)


def test_a_loss_of_keras_is_averaged_over_the_points(digits):
    inputs = keras.Input((64,))
    outputs = bk.layers.DenseBali(10)(bk.layers.DenseBali(8, activation="relu")(inputs))
    model = bk.BaliModel(inputs, outputs, likelihood="categorical")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, evaluation_method="moments")
    data = digits[2][:100], digits[3][:100]
    model.fit(*data, epochs=2, verbose=0)
    p = model.posterior_predictive(data[0], method="moments")
    expected = np.mean([loss(data[1], s) for s in p.samples])
    found = model.evaluate(*data, verbose=0, return_dict=True)["nll"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_evaluation_refuses_what_moments_cannot_pass(digits):
    model = Subclassed()
    model.compile("adam", evaluation_method="moments")
    with r1.posterior_mean():  # one pass gives it all
        model.evaluate(digits[2][:10], digits[3][:10] % 3, verbose=0)
    with pytest.raises(ValueError, match=r"subclassed model has none.*method='samples'"):
        model.evaluate(digits[2][:10], digits[3][:10] % 3, verbose=0)
    with pytest.raises(ValueError, match="Argument `evaluation_method`"):
        small_classifier().compile("adam", evaluation_method="exact")


# -- files --------------------------------------------------------------------------------------


def test_saved_models_answer_by_moments(digits, model, tmp_path):
    x = digits[2][:10]
    model.export_predictive(str(tmp_path / "served"), method="moments")
    served = tf.saved_model.load(str(tmp_path / "served"))
    first, second = served.serve(x), served.serve(x)
    p = model.posterior_predictive(x, method="moments")
    np.testing.assert_allclose(first["probs"], p.mean(), atol=1e-5)
    np.testing.assert_allclose(first["mutual_information"], p.mutual_information(), atol=1e-5)
    np.testing.assert_array_equal(first["probs"], second["probs"])


def check_file(model, x, path, run):
    p = model.posterior_predictive(x, method="moments")
    for rows in (len(x), 1):
        answer = run(x[:rows])
        np.testing.assert_allclose(answer["probs"], p.mean()[:rows], atol=1e-4)
        np.testing.assert_allclose(answer["entropy"], p.entropy()[:rows], atol=1e-4)
        information = p.mutual_information()[:rows]
        np.testing.assert_allclose(answer["mutual_information"], information, atol=1e-4)


def test_onnx_answers_as_tensorflow_does(digits, model, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = str(tmp_path / "served.onnx")
    model.export_predictive(path, method="moments", format="onnx")
    session = runtime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    check_file(
        model, digits[2][:10], path,
        lambda x: dict(zip(names, session.run(names, {"x": x}), strict=True)),
    )  # fmt: skip
    # The server of the examples answers from the file alone.
    code = (
        "import sys, numpy as np; from examples.serving.predictors import predictor_for; "
        f"p = predictor_for({path!r}); print(len(p(np.zeros((3, 64)).tolist()))); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]


def test_litert_answers_as_tensorflow_does(digits, model, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = str(tmp_path / "served.tflite")
    model.export_predictive(path, method="moments", format="litert")
    runner = interpreter.Interpreter(model_path=path).get_signature_runner("serving_default")
    check_file(model, digits[2][:10], path, lambda x: runner(x=x))
