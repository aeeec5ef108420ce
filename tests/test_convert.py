"""Stock models as rank-1 models: the same function at unit factors, then a posterior."""

import pickle
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfp_rank1 as r1

K = 2
layers = keras.layers
rng = np.random.default_rng(0)


def randomized(model):
    """The model with random biases and statistics: zeros and ones would hide mistakes."""
    for variable in model.weights:
        if variable.name in ("bias", "beta", "gamma", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def check_same_function(model, x, **arguments):
    """At means of 1 every member computes the raw outputs of the original; returns it."""
    converted = r1.convert(model, K, likelihood="normal", **arguments)
    expected = np.array(model(x))
    with r1.posterior_mean():
        found = np.array(converted(x))
    assert found.shape == (len(expected), K, *expected.shape[1:])
    for k in range(K):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[:, k], expected, atol=1e-5 * max(1.0, scale))
    return converted


def dense_net():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(2)]
    )


def unbuilt_input_net():
    model = keras.Sequential([layers.Dense(5), layers.ReLU(), layers.Dense(2)])
    model.build((None, 4))
    return model


def shared_and_nested():
    """A shared layer, a nested model used twice, raw operations, an activation with weights."""
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, activation=layers.PReLU()), layers.LayerNormalization()]
    )
    inputs = keras.Input((4,))
    shared = layers.Dense(4)
    h = keras.ops.tanh(shared(shared(inputs)))
    h = layers.Concatenate()([inner(h), inner(inputs)]) * 2.0
    return keras.Model(inputs, layers.Dense(2)(h))


def convolutional():
    inputs = keras.Input((8, 9, 3))
    h = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.DepthwiseConv2D(3, strides=2)(h)
    h = layers.SeparableConv2D(6, 2)(h)
    h = layers.Conv2DTranspose(3, 2, strides=2)(h)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(h)))


def sequences():
    inputs = keras.Input((5, 4))
    h = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(inputs)
    h = layers.TimeDistributed(layers.Dense(4))(h)
    h = layers.GRU(3, return_sequences=True)(h)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))


def transformer():
    tokens = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 8)(tokens)
    a = layers.MultiHeadAttention(2, 4)(h, h)
    h = layers.LayerNormalization()(h + a)
    h = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", activation="gelu")(h)
    return keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(h)))


def inputs_of(model, rows=3):
    shape = (rows, *model.inputs[0].shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 9, shape)
    return rng.normal(size=shape).astype("float32")


NETS = [
    dense_net,
    unbuilt_input_net,
    shared_and_nested,
    convolutional,
    sequences,
    transformer,
]


@pytest.mark.parametrize("net", NETS)
def test_every_member_computes_the_original(net, tmp_path):
    """And the result is saved, and trained for a step."""
    model = randomized(net())
    x = inputs_of(model)
    converted = check_same_function(model, x)
    assert not np.array_equal(converted(x), converted(x))
    converted.save(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_array_equal(
            keras.models.load_model(tmp_path / "model.keras")(x), converted(x)
        )
    # Such layers are traced elsewhere, which takes long.
    converted.compile("sgd", run_eagerly=net in (sequences, transformer))
    y = np.zeros((len(x), 2), "float32")
    assert np.isfinite(converted.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("arguments", [
    {"perturbation": "additive"}, {"sampling": "member"}, {"batch_normalization": "shared"},
    {"posterior": r1.posteriors.Cauchy("ones")}, {"bias_posterior": "normal"},
])  # fmt: skip
def test_arguments_reach_all_layers(arguments):
    model = randomized(convolutional())
    converted = check_same_function(model, inputs_of(model), **arguments)
    for name in ("sampling", "perturbation"):
        if name in arguments:
            found = {getattr(v, name) for v in converted.layers if hasattr(v, name)}
            assert found == {arguments[name]}


def test_the_report_names_every_layer():
    model = convolutional()
    excluded = [model.layers[-1].name]
    report = r1.convert(model, K, likelihood="normal", exclude=excluded).conversion_report
    converted = {row.before: row.after for row in report.converted}
    assert converted["Conv2D"] == "Conv2DRank1"
    assert converted["BatchNormalization"] == "EnsembleBatchNormalization"
    notes = [(row.before, row.note) for row in report.left]
    assert notes == [
        ("ReLU", "no weights"), ("GlobalAveragePooling2D", "no weights"), ("Dense", "excluded")
    ]  # fmt: skip
    assert "5 layers converted, 3 left" in str(report)


def adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(rng.normal(5.0, 3.0, (100, 4)))
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(2)])


def masked_batch_normalization():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.LSTM(3, return_sequences=True),
            layers.BatchNormalization(),
            layers.RNN([layers.LSTMCell(3), layers.GRUCell(3)]),
            layers.Dense(2),
        ]
    )


def two_outputs_within():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(2)(inputs)])
    outer = keras.Input((4,))
    return keras.Model(outer, layers.Dense(2)(layers.Concatenate()(inner(outer))))


def stateful():
    inputs = keras.Input(batch_shape=(3, 5, 4))
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(3, stateful=True)(inputs)))


def table_lookup():
    """A row of a constant table for every token: the axis is the table's."""
    table = np.eye(9, 4, dtype="float32")
    tokens = keras.Input((5,), dtype="int32")
    h = layers.Flatten()(ops.take(table, tokens, axis=0))
    return keras.Model(tokens, layers.Dense(2)(h))


def without_batch_axis():
    """Operations that look like ones along the batch axis."""
    inputs = keras.Input(())
    h = layers.Dense(3)(ops.expand_dims(inputs, -1))
    stacked = ops.stack([h, ops.softmax(h, -1)], axis=-1)
    return keras.Model(
        inputs, layers.Dense(2)(ops.mean(stacked, axis=[1, -1], keepdims=True)[..., 0])
    )


@pytest.mark.parametrize(
    "net",
    [
        adapted_normalization,
        masked_batch_normalization,
        two_outputs_within,
        stateful,
        without_batch_axis,
        table_lookup,
    ],
)
def test_unusual_nets_are_converted(net):
    model = net()
    check_same_function(model, inputs_of(model))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
        lambda: layers.Bidirectional(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])),
        lambda: layers.Bidirectional(
            layers.RNN(layers.LSTMCell(3)),
            backward_layer=layers.RNN(layers.GRUCell(3), go_backwards=True),
        ),
    ],
    ids=["stacked", "bidirectional", "two kinds"],
)
def test_cells_in_any_wrapper(layer):
    model = keras.Sequential([keras.Input((5, 4)), layer(), layers.Dense(2)])
    check_same_function(model, inputs_of(model))


def test_a_cell_of_two_layers():
    cell, inputs = layers.LSTMCell(3), keras.Input((5, 4))
    both = [layers.RNN(cell)(inputs), layers.RNN(cell, go_backwards=True)(inputs)]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(both)))
    converted = check_same_function(model, inputs_of(model))
    assert len({id(v) for v in converted.slow_weights if v.name == "recurrent_kernel"}) == 1


def test_vocabularies_come_along():
    lookup = layers.StringLookup(output_mode="multi_hot", vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup, layers.Dense(2)])
    check_same_function(model, tf.constant([["b"], ["a"], ["c"]]))


@pytest.mark.filterwarnings("ignore:Points that start at 1")
@pytest.mark.parametrize("posterior", ["cauchy", "deterministic", "log_normal", "normal"])
def test_named_posteriors_start_at_the_original(posterior):
    model = dense_net()
    check_same_function(model, inputs_of(model), posterior=posterior)


def test_every_layer_has_a_seed_of_its_own():
    converted = r1.convert(transformer(), 1, likelihood="normal", seed=3)
    seeds = [v.seed for v in converted._flatten_layers() if isinstance(v, r1.layers.Rank1Mixin)]
    assert len(set(seeds)) == len(seeds) > 4


def test_a_deterministic_net_of_ours_is_converted():
    """Without a second likelihood."""
    net = r1.models.mlp((4,), 3, (5,), ensemble_size=None)
    converted = r1.convert(net, K, likelihood=net.likelihood)
    kinds = [type(v).__name__ for v in converted._flatten_layers(include_self=False)]
    assert kinds.count("Categorical") == 1


def test_dtype_policies_stay():
    inputs = keras.Input((4,))
    h = layers.Dense(5, dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32", trainable=False)(h))
    found = r1.convert(model, K, likelihood="normal")
    first, last = (v for v in found.layers if isinstance(v, r1.layers.DenseRank1))
    assert (first.compute_dtype, last.compute_dtype) == ("bfloat16", "float32")
    assert first.trainable
    assert not last.trainable


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A user's own layer."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), initializer="ones")

    def call(self, x):
        return self.factor * keras.ops.matmul(x, self.kernel)


def test_own_layers_can_be_registered(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), Scale(), layers.Dense(2)])
    with pytest.warns(UserWarning, match="Only 40% of the parameters.*register_converter"):
        report = check_same_function(model, inputs_of(model)).conversion_report
    assert [row.note for row in report.left] == ["shared by the members"]

    def make(layer, arguments):
        return r1.layers.DenseRank1(3, use_bias=False, name=layer.name, **arguments)

    def transfer(old, new):
        new.kernel.assign(old.factor * old.kernel)

    monkeypatch.setattr(sys.modules["tfp_rank1.conversion.convert"], "_registered", {})
    r1.register_converter(Scale, make, transfer)
    report = check_same_function(model, inputs_of(model)).conversion_report
    assert not report.left
    within = keras.Sequential([keras.Input((4,)), Scale(), layers.Dense(3)])
    deep = keras.Sequential([keras.Input((4,)), keras.Sequential([within]), layers.Dense(2)])
    report = check_same_function(deep, inputs_of(deep)).conversion_report
    assert [row.before for row in report.converted] == ["Scale", "Dense", "Dense"]
    excluded = r1.convert(deep, K, likelihood="normal", exclude=[within.name]).conversion_report
    assert [row.before for row in excluded.converted] == ["Dense"]


def test_factors_alone_can_be_trained():
    model = randomized(convolutional())
    x = inputs_of(model, 6)
    converted = r1.convert(model, K, likelihood="normal")
    trainable = len(converted.trainable_variables)
    converted.freeze_slow_weights()
    assert converted.trainable_variables
    factors = {id(v) for v in converted.factor_variables + converted.likelihood.variables}
    assert {id(v) for v in converted.trainable_variables} == factors
    slow = [v for v in converted.slow_weights if id(v) not in factors]
    before = [np.array(v) for v in slow]
    converted.compile("sgd")
    history = converted.fit(x, np.ones((6, 2)), verbose=0).history
    assert history["kl"][0] > 0.0
    for old, variable in zip(before, slow, strict=True):
        np.testing.assert_array_equal(old, variable)
    converted.freeze_slow_weights(frozen=False)
    assert len(converted.trainable_variables) == trainable


@pytest.mark.parametrize("again", [False, True])
def test_a_net_with_frozen_weights_is_saved(again, tmp_path):
    """As a whole, as weights, and pickled; also after it was unfrozen."""
    model = randomized(convolutional())
    x = inputs_of(model)
    converted = r1.convert(model, K, likelihood="normal")
    converted.freeze_slow_weights()
    if again:
        converted.freeze_slow_weights(frozen=False)
    converted.save(tmp_path / "model.keras")
    converted.save_weights(tmp_path / "model.weights.h5")
    fresh = r1.convert(model, K, likelihood="normal")
    fresh.load_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with r1.posterior_mean():
        for other in (fresh, loaded, pickle.loads(pickle.dumps(converted))):
            np.testing.assert_array_equal(other(x), converted(x))


def test_frozen_normalizations_are_told_apart(tmp_path):
    """One that was frozen before stays so, though another one has its name."""

    def encoder(trainable):
        norm = layers.BatchNormalization(name="norm", trainable=trainable)
        return keras.Sequential([keras.Input((4,)), layers.Dense(4), norm])

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(encoder(True)(encoder(False)(inputs))))
    converted = r1.convert(model, K, likelihood="normal")
    converted.freeze_slow_weights()
    converted.compile("sgd")
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for found in (converted, loaded):
        found.freeze_slow_weights(False)
        norms = [v for v in found._flatten_layers() if isinstance(v, layers.BatchNormalization)]
        assert [v.trainable for v in norms] == [False, True]


def test_noise_is_learned_beside_the_factors():
    converted = r1.convert(dense_net(), K, likelihood="normal")
    converted.freeze_slow_weights()
    assert all(v.trainable for v in converted.likelihood.variables)
    frozen = dense_net()
    frozen.trainable = False
    with pytest.raises(ValueError, match="no factors that could be trained alone"):
        r1.convert(frozen, K, likelihood="normal").freeze_slow_weights()


APPLICATIONS = {
    "MobileNetV2": {"alpha": 0.35},
    "ResNet50": {},
    "EfficientNetB0": {},
    "ConvNeXtTiny": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name, tmp_path):
    """Equality, seconds, a round trip, a training step and an export."""
    application = getattr(keras.applications, name)
    model = application(
        weights=None, input_shape=(64, 64, 3), classes=5, classifier_activation=None,
        **APPLICATIONS[name],
    )  # fmt: skip
    model = randomized(model) if name != "ConvNeXtTiny" else model
    x = rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    start = time.perf_counter()
    r1.convert(model, K, likelihood="categorical")
    seconds = time.perf_counter() - start
    converted = check_same_function(model, x)
    report = converted.conversion_report
    print(f"\n{name}: {seconds:.1f} s, {len(report.converted)} converted, {len(report.left)} left")
    converted = r1.convert(model, K, likelihood="categorical")
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_allclose(loaded(x), converted(x), atol=1e-5)
    converted.compile("sgd")
    history = converted.fit(x, np.array([0, 1]), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    converted.export_predictive(str(tmp_path / "served"), num_samples=K)
    served = tf.saved_model.load(str(tmp_path / "served"))  # its functions do not hold it
    probs = served.serve(tf.constant(x))["probs"]
    np.testing.assert_allclose(tf.reduce_sum(probs, axis=1), 1.0, atol=1e-4)
