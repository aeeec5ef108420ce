"""Mistakes that are easily made: each is caught with a way out, or made to work."""

import keras
import numpy as np
import pytest

import bali_keras as bk
import tfp_rank1 as r1

L = r1.layers


def rank1_net(activation, likelihood, outputs=2):
    inputs = keras.Input((4,))
    h = L.DenseRank1(8, activation="relu")(inputs)
    h = L.DenseRank1(outputs, activation=activation)(h)
    return r1.BayesianModel(inputs, h, likelihood=likelihood)


def bali_net(activation, likelihood, outputs=2):
    inputs = keras.Input((4,))
    h = bk.layers.DenseBali(outputs, activation=activation)(inputs)
    return bk.BaliModel(inputs, h, likelihood=likelihood)


# -- functions that the likelihood applies itself -------------------------------------------------


@pytest.mark.parametrize("net", [rank1_net, bali_net])
@pytest.mark.parametrize(
    ("activation", "likelihood"),
    [
        ("softmax", "categorical"),
        ("sigmoid", "categorical"),
        ("sigmoid", "bernoulli"),
        ("softplus", "poisson"),
        ("exponential", "negative_binomial"),
        ("softplus", "heteroscedastic_normal"),
        ("exponential", "log_normal"),
    ],
)
def test_a_last_layer_with_the_likelihoods_own_function_is_refused(net, activation, likelihood):
    with pytest.raises(ValueError, match=rf"activation=None.*Received: .*{activation}, in "):
        net(activation, likelihood)


def test_functions_that_are_none_of_the_likelihoods_are_taken():
    assert rank1_net("log_softmax", "categorical").output_shape == (None, 2)
    assert rank1_net("softplus", "normal").output_shape == (None, 2)
    assert rank1_net("sigmoid", "normal").output_shape == (None, 2)


def heads(*activations):
    inputs = keras.Input((4,))
    parts = [keras.layers.Dense(1, activation=a)(inputs) for a in activations]
    return inputs, keras.layers.Concatenate()(parts)


def test_what_stands_behind_the_function_does_not_hide_it():
    layers = keras.layers
    inputs = keras.Input((4,))
    h = layers.Softmax()(layers.Dense(3)(inputs))
    for behind in (layers.Identity(), layers.Reshape((3,)), layers.Activation("linear")):
        with pytest.raises(ValueError, match="end in softmax, in Softmax"):
            r1.BayesianModel(inputs, behind(h), likelihood="categorical")
    with pytest.raises(ValueError, match="end in sigmoid, in Dense"):
        r1.BayesianModel(*heads("linear", "sigmoid"), likelihood="bernoulli")
    with pytest.raises(ValueError, match=r"applies softplus itself.*end in softplus, in Dense"):
        r1.BayesianModel(*heads(None, "softplus"), likelihood="heteroscedastic_normal")
    # A positive mean beside a raw scale is right.
    r1.BayesianModel(*heads("softplus", None), likelihood="heteroscedastic_normal")
    nested = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    with pytest.raises(ValueError, match="end in softmax"):
        r1.BayesianModel(inputs, nested(inputs), likelihood="categorical")


def test_members_are_split_behind_the_function():
    inputs = keras.Input((4,))
    with r1.members(2):
        h = L.DenseRank1(3, activation="softmax")(L.TileMembers()(inputs))
        outputs = L.SplitMembers()(h)
    with pytest.raises(ValueError, match="end in softmax, in DenseRank1"):
        r1.BayesianModel(inputs, outputs, likelihood="categorical")


# -- members --------------------------------------------------------------------------------------


def test_members_are_named_once():
    inputs = keras.Input((8,))
    with r1.members(3):
        h = L.TileMembers()(inputs)
        h = keras.layers.Reshape((4, 2))(h)
        h = L.LSTMRank1(4, return_sequences=True)(h)
        h = L.MultiHeadAttentionRank1(1, 4)(h, h)
        h = L.EnsembleBatchNormalization()(keras.layers.Flatten()(h))
        outputs = L.SplitMembers()(L.DenseRank1(2)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    assert model.output_shape == (None, 3, 2)
    plain = keras.models.clone_model(model)  # from its configuration, outside of the context
    assert plain.output_shape == (None, 3, 2)
    assert L.DenseRank1(2).ensemble_size == 1


def test_a_number_of_its_own_counts_and_contexts_nest():
    with r1.members(3):
        with r1.members(2):
            assert L.DenseRank1(2).ensemble_size == L.TileMembers().ensemble_size == 2
        assert L.DenseRank1(2).ensemble_size == 3
        assert L.DenseRank1(2, ensemble_size=5).ensemble_size == 5
    with pytest.raises(ValueError, match=r"TileMembers needs the number.*Received: .*None"):
        L.TileMembers()
    context = r1.members(0)
    with pytest.raises(ValueError, match="`number` must be a whole number of at least 1"):
        context.__enter__()


def test_forgotten_members_are_refused():
    inputs = keras.Input((4,))
    h = L.DenseRank1(8, activation="relu", name="first")(L.TileMembers(4)(inputs))
    inner = keras.Sequential([keras.Input((8,)), L.DenseRank1(2, name="within")])
    outputs = L.SplitMembers(4)(inner(h))
    with pytest.raises(ValueError, match=r"ensemble_size=1 in \[.*first.*within|within.*first"):
        r1.BayesianModel(inputs, outputs, likelihood="categorical")


def test_a_layer_before_the_members_may_be_shared():
    inputs = keras.Input((4,))
    shared = L.DenseRank1(8, activation="relu")(inputs)
    h = L.DenseRank1(2, ensemble_size=4)(L.TileMembers(4)(shared))
    model = r1.BayesianModel(inputs, L.SplitMembers(4)(h), likelihood="categorical")
    model.compile("sgd")
    model.fit(np.ones((8, 4)), np.zeros(8), verbose=0)


# -- losses and labels ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "way_out"),
    [
        ("sparse_categorical_crossentropy", r"SparseCategoricalCrossentropy\(from_logits=True\)"),
        ("categorical_crossentropy", r"CategoricalCrossentropy\(from_logits=True\)"),
        (keras.losses.SparseCategoricalCrossentropy(), "loss='average_nll'"),
        (keras.losses.MeanSquaredError(), "loss='average_nll'"),
    ],
)
@pytest.mark.parametrize("net", [rank1_net, bali_net])
def test_losses_of_keras_that_take_logits_for_probabilities_are_refused(net, loss, way_out):
    model = net(None, "categorical")
    with pytest.raises(ValueError, match=f"outputs .* are raw, before softmax.*{way_out}"):
        model.compile("sgd", loss=loss)


def test_losses_of_keras_that_take_raw_outputs_are_taken():
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rank1_net(None, "categorical").compile("sgd", loss=logits)
    rank1_net(None, "normal").compile("sgd", loss="mse")
    rank1_net(None, "categorical").compile("sgd", loss=lambda y, z: keras.ops.mean(z, axis=-1))


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64") + (x[:, 1] > 1)


@pytest.mark.parametrize("net", [rank1_net, pytest.param(bali_net, marks=pytest.mark.slow)])
def test_labels_of_any_form_are_the_same(net, table):
    x, y = table
    model = net(None, "categorical", 3)
    m = r1.metrics
    model.compile("sgd", metrics=["accuracy", m.BrierScore(), m.ExpectedCalibrationError()])
    model.fit(x, y, verbose=0)
    p = model.posterior_predictive(x, 4, seed=0)
    forms = {"[B]": y, "[B, 1]": y[:, np.newaxis], "one-hot": np.eye(3)[y], "list": y.tolist()}
    with r1.posterior_mean():
        found = {
            name: (model.evaluate(x, np.asarray(form), verbose=0), np.array(p.log_prob(form)))
            for name, form in forms.items()
        }
    for scores, log_prob in found.values():
        np.testing.assert_allclose(scores, found["[B]"][0], rtol=1e-5)
        np.testing.assert_allclose(log_prob, found["[B]"][1], rtol=1e-5)
    for form in forms.values():  # one after the other, in one model
        assert np.isfinite(model.fit(x, np.asarray(form), verbose=0).history["loss"][0])


def test_soft_labels_weigh_the_classes(table):
    x, _ = table
    soft = np.random.default_rng(1).dirichlet(np.ones(3), len(x)).astype("float32")
    model = rank1_net(None, "categorical", 3)
    model.compile("sgd")
    p = model.posterior_predictive(x, 1, seed=0)
    logits = np.array(p.samples[0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(p.log_prob(soft), (soft * log_p).sum(-1), rtol=1e-4)
    model.fit(x, soft, verbose=0)
    with pytest.raises(ValueError, match=r"or rows of 3 probabilities.* Received: min=0"):
        model.fit(x, 2.0 * soft, verbose=0)


@pytest.mark.parametrize("net", [rank1_net, bali_net])
def test_texts_as_labels_are_named(net, table):
    x, y = table
    model = net(None, "categorical", 3)
    model.compile("sgd")
    names = np.array(["cat", "dog", "owl"])[y]
    for form in (names, names.astype(object)):
        with pytest.raises(
            ValueError, match=r"must be numbers.*StringLookup.*Received: .*'(cat|dog|owl)'"
        ):
            model.fit(x, form, verbose=0)


# -- BALI -----------------------------------------------------------------------------------------


def test_a_short_fit_leaves_the_warm_up(table):
    x, _ = table
    model = bali_net(None, "normal", 1)
    model.compile()
    before = np.array(model.bali_layers[0].kernel)
    model.fit(x, x[:, 0], batch_size=60, epochs=3, verbose=0)
    assert np.abs(np.array(model.bali_layers[0].kernel) - before).max() > 0.01
    assert int(model._options.warmup(bk.schedules.Progress(*map(np.int64, (1, 1, 300))))) == 10


@pytest.mark.parametrize("ask", ["posterior_predictive", "export_predictive"])
def test_a_model_that_was_never_fitted_does_not_answer(ask, table, tmp_path):
    x, _ = table
    stock = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    for model in (bali_net(None, "categorical"), bk.convert(stock, "categorical")):
        arguments = {"posterior_predictive": (x,), "export_predictive": (str(tmp_path / "a"),)}
        with pytest.raises(ValueError, match=r"never fitted.*fit\(x, y\).*posterior_mean"):
            getattr(model, ask)(*arguments[ask])
        with r1.posterior_mean():
            assert model.posterior_predictive(x, 2).mean().shape[0] == len(x)


def test_callbacks_that_need_an_optimizer_are_named(table, tmp_path):
    x, _ = table
    model = bali_net(None, "normal", 1)
    model.compile()
    keras_callbacks = keras.callbacks
    for callback, message in [
        (keras_callbacks.ReduceLROnPlateau("loss"), "ReduceLROnPlateau.*forgetting="),
        (keras_callbacks.LearningRateScheduler(lambda e: 0.1), "LearningRateScheduler changes"),
        (keras_callbacks.ModelCheckpoint(str(tmp_path / "m.h5")), r"ends in \.keras"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(x, x[:, 0], verbose=0, callbacks=[callback])
    saved = keras_callbacks.ModelCheckpoint(str(tmp_path / "m.keras"))
    model.fit(x, x[:, 0], verbose=0, callbacks=[saved])
    assert (tmp_path / "m.keras").exists()


@pytest.mark.filterwarnings("ignore:Only 3.4% of the parameters")  # the others are recurrent
@pytest.mark.parametrize("is_frozen", [True, False])
def test_dropout_of_frozen_parts_is_off(is_frozen):
    """Its noise would be learned as noise of the observations."""
    layers = keras.layers
    inputs = keras.Input((5, 3))
    h = layers.GaussianNoise(0.5)(layers.SpatialDropout1D(0.3)(inputs))
    h = layers.Bidirectional(layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2))(h)
    h = layers.TimeDistributed(layers.Dropout(0.4))(layers.Reshape((4, 2))(h))
    h = layers.Dropout(0.5)(layers.Flatten()(h))
    stock = keras.Model(inputs, layers.Dense(1)(h))
    stock.get_layer(index=3).trainable = not is_frozen  # else it is made of BALI layers
    model = bk.convert(stock, "normal")
    assert len(model.bali_layers) == (1 if is_frozen else 5)
    for layer in model.bali_layers:
        layer.trainable = False  # so that the call may say training=True
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x, training=True), model(x), rtol=1e-6)
        np.testing.assert_allclose(model(x), stock(x), rtol=1e-5, atol=1e-6)


def test_inputs_by_name_stay_so(table, tmp_path):
    x, y = table
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    stock = keras.Model({"a": a, "b": b}, keras.layers.Dense(3)(joined))
    model = bk.convert(stock, "categorical")
    model.compile()
    data = {"a": x[:, :2], "b": x[:, 2:]}
    model.fit(data, y, verbose=0)
    assert isinstance(model.input, dict)
    model.export_predictive(str(tmp_path / "served"), num_samples=2)
    import tensorflow as tf

    served = tf.saved_model.load(str(tmp_path / "served"))
    assert served.serve(data)["probs"].shape == (60, 3)


# -- shapes and arrays ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, None])
def test_time_steps_are_not_taken_for_members(steps):
    """Only `SplitMembers` makes an axis of members: others are positions."""
    inputs = keras.Input((steps, 2))
    h = keras.layers.LSTM(6, return_sequences=True)(inputs)
    for model in (
        r1.BayesianModel(inputs, keras.layers.Dense(1)(h), likelihood="normal"),
        bk.BaliModel(inputs, bk.layers.DenseBali(3)(h), likelihood="categorical"),
        r1.convert(keras.Model(inputs, keras.layers.Dense(3)(h)), 1, likelihood="categorical"),
    ):
        with r1.posterior_mean():
            p = model.posterior_predictive(np.zeros((4, 7, 2), "float32"), 2)
        assert p.samples.shape[1:3] == (4, 7)


def test_an_example_without_a_batch_axis_is_named():
    inputs = keras.Input((5, 2))
    outputs = L.DenseRank1(1)(keras.layers.Flatten()(inputs))
    model = r1.BayesianModel(inputs, outputs, likelihood="normal")
    model.compile("sgd")
    x = np.zeros((3, 5, 2), "float32")
    for ask in (model.posterior_predictive, lambda x: model.predict(x, verbose=0)):
        with pytest.raises(ValueError, match=r"\('batch', 5, 2\); for one example pass x\[np.new"):
            ask(x[0])
    with r1.posterior_mean():
        assert model.posterior_predictive(x[0][np.newaxis], 1).mean().shape == (1, 1)
    # One feature per example: Keras takes a vector for a batch.
    inputs = keras.Input((1,))
    single = r1.BayesianModel(inputs, L.DenseRank1(1)(inputs), likelihood="normal")
    with r1.posterior_mean():
        assert single.posterior_predictive(np.zeros(1, "float32"), 1).mean().shape == (1, 1)


def test_a_forgotten_flatten_is_named():
    inputs = keras.Input((5, 2))
    model = r1.BayesianModel(inputs, L.DenseRank1(3)(inputs), likelihood="categorical")
    model.compile("sgd")
    with pytest.raises(ValueError, match="flatten or pool the positions before the last layer"):
        model.fit(np.zeros((4, 5, 2)), np.zeros(4), verbose=0)


def test_sparse_and_ragged_inputs_are_answered(table):
    import scipy.sparse as sp
    import tensorflow as tf

    x = np.where(table[0] > 0.5, table[0], 0.0).astype("float32")
    model = rank1_net(None, "categorical", 3)
    model.compile("sgd")
    expected = model.posterior_predictive(x, 4, batch_size=16, seed=0).samples
    forms = sp.csr_matrix(x), sp.coo_matrix(x), sp.csc_array(x), tf.sparse.from_dense(x)
    for form in (*forms, tf.RaggedTensor.from_tensor(x), tf.constant(x)):
        found = model.posterior_predictive(form, 4, batch_size=16, seed=0).samples
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    batches = tf.data.Dataset.from_tensor_slices(tf.sparse.from_dense(x)).batch(16)
    found = model.posterior_predictive(batches, 4, seed=0).samples
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be part of a tf.function.*export_predictive"):
        tf.function(lambda a: model.posterior_predictive(a, 4).mean(), autograph=False)(x)
