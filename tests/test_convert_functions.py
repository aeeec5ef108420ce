"""A converted net computes the function of the original, or `convert` says where it does not."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.conversion.trial import differ, trial_inputs

layers = keras.layers
K = 2
rng = np.random.default_rng(0)
CONVERT = {
    "rank1": lambda model, likelihood: r1.convert(model, K, likelihood=likelihood),
    "bali": bk.convert,
}


@pytest.fixture(params=CONVERT)
def convert(request):
    return CONVERT[request.param]


def net(make, shape=(4,)):
    """A Functional net whose outputs `make` gives for hidden units."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, make(layers.Dense(6, activation="tanh")(inputs)))


def heads(*activations):
    """One unit per activation, concatenated."""
    return lambda h: layers.Concatenate()([layers.Dense(1, activation=a)(h) for a in activations])


def softmax(h):
    return layers.Dense(3, activation="softmax")(h)


def raw_outputs(model, x):
    """At the posterior mean, `[B, D]`; of the first member, if there are members."""
    with r1.posterior_mean():
        outputs = tf.convert_to_tensor(model(x))
    return outputs[:, 0] if len(outputs.shape) == 3 else outputs


# -- what a likelihood applies itself -------------------------------------------------------------


def nested_heads(h):
    inner = keras.Input((6,))
    parts = [layers.Dense(1, activation="sigmoid")(inner), layers.Dense(1)(inner)]
    logit, raw = keras.Model(inner, parts)(h)
    return layers.Concatenate()([logit, ops.sigmoid(raw)])


def model_that_only_reshapes(h):
    inner = keras.Sequential([keras.Input((3,)), layers.Reshape((3, 1)), layers.Flatten()])
    return inner(softmax(h))


@pytest.mark.parametrize(
    ("likelihood", "make", "function"),
    [
        ("bernoulli", heads("sigmoid", "sigmoid"), tf.sigmoid),
        ("bernoulli", nested_heads, tf.sigmoid),
        ("categorical", lambda h: layers.Identity()(softmax(h)), tf.nn.softmax),
        ("categorical", lambda h: layers.GaussianNoise(0.1)(softmax(h)), tf.nn.softmax),
        ("categorical", model_that_only_reshapes, tf.nn.softmax),
        ("categorical", lambda h: layers.Softmax()(layers.Dense(3)(h)), tf.nn.softmax),
        ("categorical", lambda h: ops.softmax(layers.Dense(3)(h)), tf.nn.softmax),
        ("categorical", lambda h: layers.Dense(3, activation="log_softmax")(h), tf.identity),
        ("poisson", lambda h: ops.exp(layers.Dense(1)(h)), tf.exp),
        ("log_normal", lambda h: layers.Dense(2, activation="exponential")(h), tf.exp),
        ("negative_binomial", lambda h: layers.Dense(2, activation="exponential")(h), tf.exp),
    ],
)
def test_the_likelihoods_function_is_left_to_it(convert, likelihood, make, function, tmp_path):
    """Behind concatenation, reshaping and the like; and after a round trip."""
    model, x = net(make), rng.normal(size=(5, 4)).astype("float32")
    converted = convert(model, likelihood)
    found = function(raw_outputs(converted, x))
    np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-6)
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(raw_outputs(loaded, x), raw_outputs(converted, x))


def test_a_sigmoid_at_several_positions_is_left_to_it(convert):
    """Unlike a softmax, it does not depend on the other outputs."""
    inputs = keras.Input((5, 4))
    outputs = layers.Flatten()(layers.Dense(1, activation="sigmoid")(inputs))
    model, x = keras.Model(inputs, outputs), rng.normal(size=(3, 5, 4)).astype("float32")
    found = tf.sigmoid(raw_outputs(convert(model, "bernoulli"), x))
    np.testing.assert_allclose(found, model(x), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        heads("softplus", "softplus"),
        lambda h: ops.concatenate([layers.Dense(1)(h), ops.softplus(layers.Dense(1)(h))], -1),
    ],
    ids=["positive mean", "operations"],
)
def test_scales_lose_their_softplus_and_means_keep_it(convert, make):
    model, x = net(make), rng.normal(size=(5, 4)).astype("float32")
    likelihood = r1.likelihoods.HeteroscedasticNormal(min_scale=0.1)
    converted = convert(model, likelihood)
    outputs = raw_outputs(converted, x)
    mean, scale = np.split(model(x), 2, axis=-1)
    np.testing.assert_allclose(likelihood.mean(outputs), mean, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(likelihood.variance(outputs)), scale + 0.1, rtol=1e-5)


def used_twice(h):
    gate = layers.Dense(1, activation="sigmoid")(h)
    return layers.Concatenate()([gate, gate * layers.Dense(1)(h)])


def normalized(h):
    values = ops.exp(layers.Dense(3)(h))
    return values / ops.sum(values, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("likelihood", "make", "message"),
    [
        ("bernoulli", used_twice, "This sigmoid cannot be left out.*in Dense"),
        ("bernoulli", lambda h: softmax(h), "does not apply softmax.*the outputs before softmax"),
        ("bernoulli", lambda h: layers.Dense(1, activation="hard_sigmoid")(h), "hard_sigmoid"),
        (
            "bernoulli",
            lambda h: layers.LSTM(1, activation="sigmoid")(layers.Reshape((3, 2))(h)),
            "cannot be left out.*in LSTM",
        ),
        ("categorical", heads("softmax", "softmax"), "over a part of the outputs.*in Dense"),
        (
            "categorical",
            lambda h: layers.Average()([softmax(h), softmax(h)]),
            "This softmax cannot be left out",
        ),
        ("categorical", normalized, "probabilities, at least 0 and with a sum of 1"),
        ("categorical", lambda h: layers.Softmax(axis=1)(layers.Reshape((3, 1))(softmax(h))), ""),
        ("heteroscedastic_normal", heads(None, "exponential"), "does not apply exponential"),
        (
            "heteroscedastic_normal",
            lambda h: layers.Dense(2, activation="softplus")(h),
            "the second half of the outputs only",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using a softmax")
def test_functions_that_cannot_be_left_out_are_refused(convert, likelihood, make, message):
    def outputs(h):
        made = make(h)
        return made if len(made.shape) == 2 else layers.Flatten()(made)

    with pytest.raises(ValueError, match=f"raw outputs and applies .*{message}"):
        convert(net(outputs), likelihood)


def test_a_function_in_an_excluded_model_is_refused():
    head = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax")], name="head")
    with pytest.raises(ValueError, match=r"Exclude the layers of that model.*\['head'\]"):
        r1.convert(net(head), K, likelihood="categorical", exclude=["head"])


@keras.saving.register_keras_serializable("tests")
class Rates(r1.likelihoods.Likelihood):
    """It says that it applies the exponential, and applies a softplus."""

    link_names = ("exponential",)

    def distribution(self, outputs):
        return tfd.Exponential(1.0 / tf.nn.softplus(outputs))


def test_a_likelihood_that_applies_something_else_is_seen(convert):
    model = net(lambda h: layers.Dense(2, activation="exponential")(h))
    with pytest.raises(ValueError, match=r"something else of raw outputs than exp.*Rates"):
        convert(model, Rates())


# -- layers that become something else ------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Forgetful(layers.Layer):
    """Its config does not hold the factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {"name": self.name}


def test_a_copy_that_differs_is_named(convert):
    within = keras.Sequential([keras.Input((6,)), layers.ReLU(), Forgetful(3.0, name="forgetful")])
    model = net(lambda h: layers.Dense(2)(within(h)))
    with pytest.raises(
        ValueError, match=r"begins in layer 'forgetful', Forgetful -> Forgetful.*get_config"
    ):
        convert(model, "normal")
    convert(net(lambda h: layers.Dense(2)(Forgetful()(h))), "normal")


def with_transfer(monkeypatch, transfer):
    """`convert`, with a transfer for Dense layers."""
    monkeypatch.setattr(sys.modules["tfp_rank1.conversion.convert"], "_registered", {})
    r1.register_converter(
        layers.Dense,
        lambda layer, arguments: r1.layers.DenseRank1(**layer.get_config() | arguments),
        transfer,
    )


def without_bias(old, new):
    new.kernel.assign(old.kernel)


def test_a_wrong_transfer_is_named(monkeypatch):
    model = net(lambda h: layers.Dense(2, name="last")(h))
    model.layers[-1].bias.assign([1.0, 2.0])
    with_transfer(monkeypatch, without_bias)
    with pytest.raises(ValueError, match=r"'last', Dense -> DenseRank1.*exclude=\['last'\]"):
        r1.convert(model, K, likelihood="normal")
    model.layers[-1].bias.assign([0.0, 0.0])
    r1.convert(model, K, likelihood="normal")


def test_a_wrong_transfer_is_named_where_probabilities_hide_it(monkeypatch):
    inputs = keras.Input((4,))
    outputs = layers.Dense(2, "softmax", bias_initializer=keras.initializers.Constant([900, 0]))
    model = keras.Model(inputs, outputs(layers.Dense(3, name="first")(inputs)))
    model.layers[1].bias.assign([1.0, 2.0, 3.0])

    def first_without_bias(old, new):
        new.kernel.assign(old.kernel)
        if old.name != "first":
            new.bias.assign(tf.broadcast_to(old.bias, new.bias.shape))

    with_transfer(monkeypatch, first_without_bias)
    with pytest.raises(ValueError, match="begins in layer 'first'"):
        r1.convert(model, K, likelihood="categorical")


def test_a_wrong_transfer_is_named_where_outputs_are_no_numbers(monkeypatch):
    model = net(lambda h: layers.Dense(2)(ops.log(layers.Dense(2, name="first")(h) - 100.0)))
    model.get_layer("first").bias.assign([1.0, 2.0])
    r1.convert(model, K, likelihood="normal")
    with_transfer(monkeypatch, without_bias)
    with pytest.raises(ValueError, match="begins in layer 'first'"):
        r1.convert(model, K, likelihood="normal")


@keras.saving.register_keras_serializable("tests")
class Noise(layers.Layer):
    """Noise in prediction, too."""

    def call(self, x):
        return x + keras.random.normal(ops.shape(x))


def test_layers_that_draw_are_left_out_of_the_comparison(convert, monkeypatch):
    model = net(lambda h: layers.Dense(2, name="last")(Noise()(h)))
    with pytest.warns(UserWarning, match="differ from call to call.*layer by layer"):
        convert(model, "normal")
    model.layers[-1].bias.assign([1.0, 2.0])
    with_transfer(monkeypatch, without_bias)
    with pytest.raises(ValueError, match="begins in layer 'last'"):
        r1.convert(model, K, likelihood="normal")


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16", "mixed_float16"])
def test_rounding_is_no_difference(convert, policy):
    keras.config.set_dtype_policy(policy)
    inputs = h = keras.Input((8, 8, 3))
    for _ in range(4):
        h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(h)))
    h = layers.Dense(3)(layers.GlobalAveragePooling2D()(h))
    convert(keras.Model(inputs, layers.Softmax(dtype="float32")(h)), "categorical")


@pytest.mark.parametrize("name", ["Deterministic", "HalfCauchy", "MixtureOfDeltas", "Normal"])
def test_factors_that_start_elsewhere_are_compared_at_the_centre(name):
    """And keep their start."""
    family = getattr(r1.posteriors, name)
    arguments = {} if name != "Normal" else {"mean_initializer": keras.initializers.Constant(2.0)}
    model, x = net(layers.Dense(2)), rng.normal(size=(5, 4)).astype("float32")
    converted = r1.convert(model, K, likelihood="normal", posterior=family(**arguments))
    assert np.abs(raw_outputs(converted, x) - model(x)).max() > 1e-3
    assert type(converted.layers[2].r_factor.posterior) is family


# -- trial runs -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Years(layers.Layer):
    """It takes years only."""

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            tf.debugging.assert_greater(x, 1900.0, "no year")
        return 1.0 * x

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_net_that_runs_on_no_random_inputs_is_warned_of(convert):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(2)(Years()(inputs)))
    with pytest.warns(UserWarning, match="not compared.*on data of yours.*no year"):
        convert(model, "normal")


def test_inputs_are_such_as_the_layers_know():
    words = keras.Input((), dtype="string", name="words")
    tokens, flags = keras.Input((None,), dtype="int32"), keras.Input((2,), dtype="bool")
    pixels = keras.Input((None, 5, 1), dtype="uint8", batch_size=3)
    lookup = layers.StringLookup(vocabulary=["x", "y"], num_oov_indices=0)
    inner = keras.Sequential([keras.Input((None,), dtype="int32"), layers.Embedding(7, 2)])
    outputs = [lookup(words), inner(tokens), ops.logical_not(flags), pixels + 1]
    model = keras.Model([words, tokens, flags, pixels], outputs)
    guess = next(trial_inputs(model, 2))
    assert set(guess[0].numpy()) <= {b"x", b"y"}
    assert guess[1].shape == (2, 32) and tf.reduce_max(guess[1]) == 6
    assert guess[2].dtype == tf.bool
    assert guess[3].shape == (3, 32, 5, 1) and tf.reduce_max(guess[3]) > 200
    assert [v.shape[1] for _, v, _, _ in trial_inputs(model, 2)] == [32, 32, 8, 8, 128, 128]


def test_what_is_no_difference():
    a = np.array([[1.0, np.nan, 1e6], [2.0, np.inf, 3e6]])
    assert not differ(a, a * (1.0 + 1e-5), 1e-3)
    for row, column, value in ((0, 0, 1.1), (0, 1, 0.0), (1, 1, -np.inf), (1, 2, 2.9e6)):
        b = a.copy()
        b[row, column] = value
        assert differ(a, b, 1e-3) == (column > 0)  # the first column is lost beside the third
    small = a[:, :1]
    assert differ(small, small + 0.01, 1e-3) and not differ(small, small + 1e-3, 1e-3)
    assert differ(small, small[:1], 1e-3)
    assert differ(np.array([b"x"]), np.array([b"y"]), 1e-3)


def test_states_stay(convert):
    inputs = keras.Input(batch_shape=(3, 120, 4))
    h = layers.LSTM(3, stateful=True, name="lstm")(inputs)
    h = layers.Dense(50)(layers.Dropout(0.5, seed=1)(layers.BatchNormalization()(h)))
    model = keras.Model(inputs, h)
    model(rng.normal(size=(3, 120, 4)).astype("float32"), training=True)
    variables = [*model.variables, *model.get_layer("lstm").states]
    before = [np.array(v) for v in variables]
    converted = convert(model, "normal")
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    assert np.all(before[-1])
    assert not np.any([np.any(s) for s in converted.get_layer("lstm").states])


# -- rows that are mixed --------------------------------------------------------------------------


def within(layer):
    return keras.Sequential([keras.Input((8, 8, 3)), layer], name="within")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (layers.MixUp, "MixUp 'mix_up"),
        (layers.CutMix, "CutMix"),
        (layers.RandAugment, "Equalization.*in layer 'rand_augment"),
        (layers.AugMix, "Equalization.*in layer 'aug_mix"),
        (lambda: layers.Pipeline([layers.MixUp()]), "MixUp.*in layer 'pipeline"),
        (lambda: within(layers.MixUp()), "MixUp"),
    ],
)
def test_layers_that_mix_rows_in_training_are_refused(convert, make, message):
    model = keras.Sequential([keras.Input((8, 8, 3)), make(), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match=f"mixes the rows of a batch.*dataset.map.*{message}"):
        convert(model, "normal")


def test_layers_that_mix_rows_are_refused_where_they_are_excluded():
    parts = [within(layers.CutMix()), layers.RandomFlip(), layers.Flatten(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *parts])
    with pytest.raises(ValueError, match="mixes the rows of a batch"):
        r1.convert(model, K, likelihood="normal", exclude=["within"])


@keras.saving.register_keras_serializable("tests")
class Centred(layers.Layer):
    """Over the batch."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


@keras.saving.register_keras_serializable("tests")
class Rolled(layers.Layer):
    """By one row."""

    def call(self, x):
        return ops.roll(x, 1, axis=0)


@pytest.mark.filterwarnings("ignore:The outputs of the original differ")
def test_own_layers_that_mix_rows_are_refused():
    for layer in (Centred(), Rolled()):
        with pytest.raises(ValueError, match=f"along the batch axis.*{type(layer).__name__}"):
            r1.convert(net(lambda h, v=layer: layers.Dense(2)(v(h))), K, likelihood="normal")
    for layer in (Noise(), Forgetful()):
        r1.convert(net(lambda h, v=layer: layers.Dense(2)(v(h))), K, likelihood="normal")


# -- the report -----------------------------------------------------------------------------------


def texts(trainable=True):
    tokens = keras.Input((6,), dtype="int32")
    h = layers.Embedding(50, 8, name="table", trainable=trainable)(tokens)
    h = layers.TimeDistributed(layers.Dense(4))(h)
    h = layers.LSTM(3, name="lstm", trainable=trainable)(layers.BatchNormalization()(h))
    return keras.Model(tokens, layers.Dense(2)(h))


def test_the_report_counts_parameters():
    report = r1.convert(texts(), K, likelihood="normal").conversion_report
    sizes = {row.before: row.parameters for row in (*report.converted, *report.left)}
    # Moving statistics are no parameters, and what is wrapped counts once.
    assert sizes == {
        "Embedding": 400, "Dense": 8, "TimeDistributed": 0, "BatchNormalization": 8, "LSTM": 96
    } | {"Dense": sizes["Dense"]}  # fmt: skip
    assert report.converted_parameters == 400 + (8 * 4 + 4) + 8 + 96 + 8
    assert "548 parameters converted, 0 left\n" in str(report)
    assert "table: Embedding (400 parameters) -> EmbeddingRank1" in str(report)


def test_bali_has_a_report_too():
    model = texts(trainable=False)
    report = bk.convert(model, "normal").conversion_report
    assert isinstance(report, r1.ConversionReport)
    converted = [(row.before, row.after) for row in report.converted]
    assert converted == [("TimeDistributed", "DenseBali"), ("Dense", "DenseBali")]
    notes = {row.before: row.note for row in report.left}
    assert notes == {
        "Embedding": "frozen as before",
        "BatchNormalization": "frozen",
        "LSTM": "frozen as before",
    }


@pytest.mark.parametrize("trainable", [True, False])
def test_a_net_that_is_hardly_bayesian_is_warned_of(trainable):
    """Not counting what the user froze before."""
    inputs = keras.Input((6, 4))
    h = layers.Conv1D(100, 3, groups=2, name="grouped", trainable=trainable)(inputs)
    h = layers.Conv1D(10, 1, groups=2, name="other")(h)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))
    expected = (
        r"Only 1\.8% .*22 of 1,232.*'grouped' \(Conv1D, 700\), 'other' \(Conv1D, 510\)"
        if trainable
        else r"Only 4\.1% .*22 of 532; .* the largest 'other'"
    )
    with pytest.warns(UserWarning, match=expected) as found:
        bk.convert(model, "normal")
    assert found[0].filename == __file__


def test_layers_that_are_left_on_purpose_are_not_warned_of():
    report = r1.convert(
        texts(), K, likelihood="normal", exclude=["table", "lstm"]
    ).conversion_report
    assert report.left_parameters == 496
    backbone = keras.Sequential([keras.Input((4,)), layers.Dense(99)], name="backbone")
    model = keras.Sequential([keras.Input((4,)), backbone, layers.Dense(2)])
    report = r1.convert(model, K, likelihood="normal", exclude=["backbone"]).conversion_report
    assert [(row.name, row.parameters) for row in report.left] == [("backbone", 495)]


# -- inputs ---------------------------------------------------------------------------------------


def test_inputs_in_a_dict_stay_in_it(convert, tmp_path):
    a, b = keras.Input((3,), name="later"), keras.Input((), dtype="int32", name="earlier")
    h = layers.Concatenate()([a, layers.Embedding(5, 4)(b)])
    h = layers.Dense(16, activation="relu")(h)
    model = keras.Model({"later": a, "earlier": b}, layers.Dense(3, activation="softmax")(h))
    x = {"earlier": np.array([0, 4, 2], "int32"), "later": rng.normal(size=(3, 3))}
    x["later"] = x["later"].astype("float32")
    converted = convert(model, "categorical")
    np.testing.assert_allclose(tf.nn.softmax(raw_outputs(converted, x)), model(x), rtol=1e-4)
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(raw_outputs(loaded, x), raw_outputs(converted, x))
    with r1.posterior_mean():
        converted.export_predictive(str(tmp_path / "served"), num_samples=K)
    served = tf.saved_model.load(str(tmp_path / "served"))
    probs = served.serve({name: tf.constant(value) for name, value in x.items()})["probs"]
    np.testing.assert_allclose(probs, model(x), rtol=1e-4)
