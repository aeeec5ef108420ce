"""Where evaluation takes moments, where samples, and that moments are right where it does."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.moments import Moments, takes_one_pass
from tfp_rank1.moments.nodes import nodes_in_parts, normal_nodes

layers = keras.layers
X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")


def dense(units, members=1, **kwargs):
    posterior = r1.posteriors.Normal(stddev=0.3)
    return r1.layers.DenseRank1(
        units, ensemble_size=members, posterior=posterior, prior="normal", **kwargs
    )


def net(function, shape=(5,), outputs=1, likelihood=None):
    inputs = keras.Input(shape)
    h = dense(outputs)(function(inputs))
    likelihood = likelihood or r1.likelihoods.Normal(scale=0.5)
    model = r1.BayesianModel(inputs, h, likelihood=likelihood)
    model.compile("adam")
    return model


def spread(model, x=X, **kwargs):
    """The mean over examples of the standard deviation that comes from the weights."""
    p = model.posterior_predictive(x, **kwargs)
    return float(np.mean(np.sqrt(p.epistemic_variance())))


def test_nodes_have_mean_0_and_as_many_directions_as_they_can():
    for count in (2, 4, 8, 12, 16, 32, 64, 128):
        for size in range(1, 45):
            nodes = normal_nodes(count, size)
            np.testing.assert_allclose(nodes.mean(0), 0.0, atol=1e-12)
            assert np.linalg.matrix_rank(nodes) == min(count // 2, size), (count, size)
            if count // 2 > size:
                covariance = nodes.T @ nodes / count
                np.testing.assert_allclose(covariance, np.eye(size), atol=1e-9)


def test_parts_of_few_nodes_span_more_directions_together():
    parts = nodes_in_parts(8, 4, 10)
    assert parts.shape == (8, 4, 10)
    np.testing.assert_allclose(parts.mean(1), 0.0, atol=1e-12)
    together = parts.reshape(-1, 10)
    np.testing.assert_allclose(together.T @ together / 32, np.eye(10), atol=1e-9)


@pytest.mark.parametrize("outputs", [7, 15, 29, 30, 31])
def test_any_number_of_classes_is_evaluated(outputs):
    inputs = keras.Input((5,))
    h = dense(16, 4, activation="relu")(r1.layers.TileMembers(4)(inputs))
    h = r1.layers.SplitMembers(4)(dense(outputs, 4)(h))
    model = r1.BayesianModel(inputs, h, likelihood="categorical")
    model.compile("adam")
    labels = np.arange(40) % outputs
    history = model.fit(X, labels, validation_data=(X, labels), verbose=0).history
    assert np.isfinite(history["val_nll"]).all()


class OwnCall(r1.BayesianModel):
    def call(self, x, training=None, mask=None):
        return super().call(0.1 * x, training=training)


def own_call():
    inputs = keras.Input((5,))
    return OwnCall(inputs, dense(1)(dense(8)(inputs)), likelihood="normal")


class OwnInner(keras.Model):
    def call(self, x, training=None, mask=None):
        return super().call(0.1 * x, training=training)


def inner_with_own_call():
    given = keras.Input((5,))
    inner = OwnInner(given, dense(8)(given))
    return net(inner)


def inner_convolution():
    convolution = r1.layers.Conv1DRank1(
        6, 2, activation="relu", ensemble_size=1, posterior=r1.posteriors.Normal(stddev=0.3)
    )
    inner = keras.Sequential(
        [keras.Input((20,)), layers.Reshape((4, 5)), convolution, layers.GlobalAveragePooling1D()]
    )
    return net(inner, (20,))


def inner(function):
    """A model of stock layers, which something random only reaches from outside."""
    given = keras.Input((8,))
    return keras.Model(given, function(given))


def unused(function):
    def built():
        return net(lambda x: function(dense(8)(x)))

    return built


SAMPLED = {
    "own call": own_call,
    "inner own call": inner_with_own_call,
    "inner convolution": inner_convolution,
    "relatives": unused(lambda h: h * ops.sigmoid(h)),
    "almost itself": unused(lambda h: h - 0.9 * h),
    "softmax": unused(layers.Softmax()),
    "inner softmax": unused(lambda h: inner(layers.Softmax())(h)),
    "inner relatives": unused(lambda h: inner(lambda x: x * ops.sigmoid(x))(h)),
    "division": unused(lambda h: 1.0 / (h + 9.0)),
    "sparsemax": lambda: net(dense(8, activation="sparsemax")),
    "mixing": lambda: net(dense(8, activation=lambda z: ops.cumsum(z, -1))),
    "by batch": lambda: net(dense(8, activation=lambda z: z - ops.mean(z, axis=0, keepdims=True))),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_evaluation_takes_samples_where_moments_would_be_wrong(name):
    model = SAMPLED[name]()
    model.compile("adam")
    x = X if model.input_shape[-1] == 5 else np.tile(X, (1, 4))
    found = model.evaluate(x, X[:, :1], verbose=0, return_dict=True)
    assert model.evaluation_method == "samples"
    assert np.isfinite(found["nll"])


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h * h,
        lambda h: h + h,
        lambda h: h + dense(8)(h),
        lambda h: ops.clip(h, -1.0, 1.0),
        lambda h: ops.mean(h, axis=-1, keepdims=True),
        lambda h: ops.minimum(h, 0.5),
        lambda h: ops.stop_gradient(ops.cast(h, "float32")),
        lambda h: layers.BatchNormalization()(h, training=True),
        lambda h: dense(5)(inputs=h),
        lambda h: layers.Activation(lambda z: z * np.arange(8, dtype="float32"))(h),
        lambda h: layers.Add()([layers.Dense(8, dtype="float64")(h), h]),
    ],
)
def test_moments_are_right_where_evaluation_takes_them(function):
    keras.utils.set_random_seed(1)
    model = net(lambda x: function(dense(8)(x)))
    assert model.evaluation_method == "moments" and takes_one_pass(model)
    model.evaluate(X, X[:, :1], verbose=0)
    assert model.evaluation_method == "moments"
    samples = spread(model, num_samples=1000, seed=1)
    assert spread(model, method="moments") == pytest.approx(samples, rel=0.2)


def test_one_tensor_with_itself():
    x = Moments(tf.constant([[1.0, -2.0]]), tf.constant([[0.5, 2.0]]))
    inputs = keras.Input((2,))
    for function, mean, variance in (
        (lambda h: h * h, [1.5, 6.0], [2.5, 40.0]),
        (lambda h: h + h, [2.0, -4.0], [2.0, 8.0]),
        (lambda h: h - h, [0.0, 0.0], [0.0, 0.0]),
        (lambda h: ops.maximum(h, h), [1.0, -2.0], [0.5, 2.0]),
    ):
        operation = function(inputs)._keras_history.operation
        found = r1.moments.propagate(operation, x, x)
        np.testing.assert_allclose(found.mean, [mean], rtol=1e-6)
        np.testing.assert_allclose(found.variance_or_zeros(), [variance], rtol=1e-6)


def test_axes_that_nothing_random_has_are_no_positions():
    inputs = keras.Input((4, 5))
    h = r1.layers.TileMembers(2)(layers.Flatten()(inputs))
    h = r1.layers.SplitMembers(2)(dense(3, 2)(dense(16, 2, activation="relu")(h)))
    model = r1.BayesianModel(inputs, h, likelihood="categorical")
    model.compile("adam")
    assert model.evaluation_method == "moments"
    frozen = net(lambda x: layers.Flatten()(layers.Conv1D(3, 2)(x)), (4, 5))
    assert frozen.evaluation_method == "moments"
    front = net(lambda x: dense(8)(layers.Lambda(lambda v: 2.0 * v)(x)))
    assert front.evaluation_method == "moments"


@pytest.mark.parametrize(
    "between",
    [
        [],
        [lambda: layers.Dropout(0.1)],
        [lambda: layers.Activation("relu")],
        [lambda: layers.Rescaling(2.0)],
        [lambda: layers.BatchNormalization()],
    ],
)
def test_what_units_of_a_bali_layer_share_reaches_the_outputs(between):
    keras.utils.set_random_seed(0)
    h = inputs = keras.Input((5,))
    activation = None if between else "relu"
    h = bk.layers.DenseBali(16, activation=activation)(h)
    for layer in between:
        h = layer()(h)
    outputs = bk.layers.DenseBali(1)(h)
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal(scale=0.5))
    has_others = bool(model.optimizer_variables)
    model.compile(**({"optimizer": "adam"} if has_others else {}))
    model.fit(X, X[:, :1], epochs=10, verbose=0)
    samples = spread(model, num_samples=1000, seed=1)
    # Without an activation the moments are exact.
    is_linear = between and not isinstance(between[0](), layers.Activation)
    tolerance = 0.03 if is_linear else 0.12
    assert spread(model, method="moments") == pytest.approx(samples, rel=tolerance)


def test_a_rule_that_is_mended_counts_at_once():
    @keras.saving.register_keras_serializable("test_moments_choice")
    class Twice(layers.Layer):
        def call(self, x):
            return 2.0 * x

    register = r1.moments.register(Twice)
    register(lambda layer, x: x)
    model = net(lambda x: Twice()(dense(8)(x)))
    before = spread(model, method="moments")
    register(lambda layer, x: x.scaled(2.0))
    assert spread(model, method="moments") == pytest.approx(2.0 * before, rel=0.05)


def test_errors_name_the_way_out():
    model = net(dense(8))
    with pytest.raises(ValueError, match=r"`num_passes` is for method='moments'"):
        model.posterior_predictive(X, num_passes=2)
    with pytest.raises(ValueError, match=r"must be 'samples' or 'moments' or None"):
        model.compile("adam", evaluation_method="exact")
    model = net(lambda x: layers.Softmax()(dense(8, activation="sparsemax")(x)))
    model.compile("adam", evaluation_method="moments")
    with pytest.raises(ValueError, match=r"compile\(evaluation_method='samples'\)"):
        model.evaluate(X, X[:, :1], verbose=0)
    quantized = layers.Dense(6)
    model = net(lambda x: quantized(dense(8)(x)))
    quantized.quantize("int8")
    with pytest.raises(ValueError, match="quantized layer has integers"):
        model.posterior_predictive(X, method="moments")


LIKELIHOODS = {
    "laplace": 1, "student_t": 1, "log_normal": 1, "bernoulli": 1, "several": 3, "exponential": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_files_of_every_likelihood_can_be_run(name, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    likelihood = {"several": "bernoulli", "exponential": "normal"}.get(name, name)
    activation = "exponential" if name == "exponential" else "relu"
    model = net(dense(6, activation=activation), (5,), LIKELIHOODS[name], likelihood)
    path = str(tmp_path / "served.onnx")
    model.export_predictive(path, method="moments", format="onnx")
    session = runtime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"x": X[:3]}), strict=True))
    p = model.posterior_predictive(X[:3], method="moments")
    key = "probs" if "probs" in found else "mean"
    np.testing.assert_allclose(found[key], p.mean(), rtol=1e-4, atol=1e-4)
    assert ("entropy" in found) == (name == "bernoulli")


@pytest.mark.slow
def test_files_of_nets_that_draw_have_the_inputs_of_the_net(tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    inputs = keras.Input((4, 4, 1))
    with r1.members(2):
        h = r1.layers.Conv2DRank1(2, 3, activation="relu")(r1.layers.TileMembers()(inputs))
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(layers.Flatten()(h)))
    model = r1.BayesianModel(inputs, h, likelihood="categorical")
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype("float32")
    path = str(tmp_path / "served.onnx")
    model.export_predictive(path, method="moments", format="onnx", num_passes=2)
    session = runtime.InferenceSession(path)
    (given,) = session.get_inputs()
    (found,) = session.run(["probs"], {given.name: x})
    p = model.posterior_predictive(x, method="moments", num_passes=2)
    np.testing.assert_allclose(found, p.mean(), atol=1e-5)
