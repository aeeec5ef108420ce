"""BALI layers made of others, and how stock layers become BALI layers; on tiny nets."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1

K = keras.layers
RNG = np.random.default_rng(0)
ROWS, STEPS, TOKENS = 30, 6, 11


def image_net():
    h = inputs = keras.Input((8, 8, 3))
    h = K.BatchNormalization()(K.Conv2D(4, 3, padding="same", use_bias=False)(h))
    h = K.DepthwiseConv2D(3, padding="same", activation="relu")(h)
    h = K.SeparableConv2D(5, 3, activation="relu")(h)
    h = K.GlobalAveragePooling2D()(K.Conv2DTranspose(3, 3, strides=2, padding="same")(h))
    return keras.Model(inputs, K.Dense(3, activation="softmax")(h))


def text_net():
    inputs = keras.Input((STEPS,), dtype="int32")
    h = K.Embedding(TOKENS, 8, mask_zero=True)(inputs)
    h = K.LayerNormalization()(h + K.MultiHeadAttention(2, 4)(h, h))
    h = K.TimeDistributed(K.Dense(5, activation="relu"))(h)
    outputs = K.Dense(3, activation="softmax")(K.GlobalAveragePooling1D()(h))
    return keras.Model(inputs, outputs)


def images():
    return RNG.normal(size=(ROWS, 8, 8, 3)).astype("float32")


def tokens():
    x = RNG.integers(1, TOKENS, (ROWS, STEPS))
    x[::2, 4:] = 0
    return x


NETS = {"images": (image_net, images, 5), "text": (text_net, tokens, 4)}


@pytest.fixture(scope="module", params=NETS)
def converted(request):
    """A stock net, its counterpart after a fit, and inputs."""
    make, draw, _ = NETS[request.param]
    keras.utils.set_random_seed(0)
    stock, x = make(), draw()
    model = bk.convert(stock, "categorical")
    with r1.posterior_mean():
        before = keras.ops.softmax(model(x))
    model.compile()
    history = model.fit(x, np.arange(ROWS) % 3, epochs=12, batch_size=15, verbose=0).history
    return request.param, stock, model, x, before, history


def test_a_net_starts_at_the_stock_weights_and_trains(converted):
    name, stock, model, x, before, history = converted
    np.testing.assert_allclose(before, stock(x), atol=1e-5)
    assert len(model.conversion_report.converted) == NETS[name][2]
    assert np.isfinite(history["loss"]).all() and history["kl"][-1] > 0.0
    assert not any(history["refused"])
    for layer in model.bali_layers:
        state = layer.posterior_state
        assert np.abs(state.mean - state.prior_mean).max() > 0.0, layer.name
        assert layer.posterior.batch_shape == ()
        assert np.isfinite(layer.posterior.entropy())


def test_moments_are_those_of_samples(converted):
    *_, model, x, _, _ = converted
    samples = model.posterior_predictive(x, 300, seed=0).mean()
    moments = model.posterior_predictive(x, method="moments", num_passes=32).mean()
    np.testing.assert_allclose(moments, samples, atol=0.06)


def test_files_clones_and_services_answer_alike(converted, tmp_path):
    *_, model, x, _, _ = converted
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    with r1.posterior_mean():
        expected = model(x)
        np.testing.assert_array_equal(loaded(x), expected)
        np.testing.assert_array_equal(clone(x), expected)
    p = [m.posterior_predictive(x, 3, seed=1).mean() for m in (model, loaded)]
    np.testing.assert_array_equal(*p)
    model.export_predictive(str(tmp_path / "served"))
    served = tf.saved_model.load(str(tmp_path / "served"))
    probs = served.serve(tf.cast(x, model.input.dtype))["probs"]
    np.testing.assert_allclose(tf.reduce_sum(probs, -1), 1.0, atol=1e-5)


def test_one_group_per_channel_is_a_depthwise_convolution():
    inputs = keras.Input((6, 6, 4))
    h = K.Conv2D(8, 3, groups=4, padding="same")(inputs)
    outputs = K.Dense(3)(K.GlobalAveragePooling2D()(K.Conv2D(8, 1, groups=2)(h)))
    stock = keras.Model(inputs, outputs)
    model = bk.convert(stock, "categorical")  # refuses another function
    converted = [(row.before, row.after) for row in model.conversion_report.converted]
    assert converted == [("Conv2D", "DepthwiseConv2DBali"), ("Dense", "DenseBali")]


def test_layers_may_be_chosen():
    stock = image_net()
    last = bk.convert(stock, "categorical", layers="last")
    assert [row.before for row in last.conversion_report.converted] == ["Dense"]
    name = stock.layers[3].name
    named = bk.convert(stock, "categorical", layers=[name])
    assert [row.name for row in named.conversion_report.converted] == [name]
    kinds = bk.convert(stock, "categorical", layers=lambda layer: isinstance(layer, K.Conv2D))
    assert [row.before for row in kinds.conversion_report.converted] == ["Conv2D"]
    for choice, match in (
        (["nothing"], r"`layers`.*'nothing'"),
        ("first", r"'all', 'last'.*'first'"),
        ([stock.layers[2].name], "can be converted"),
    ):
        with pytest.raises(ValueError, match=match):
            bk.convert(stock, "categorical", layers=choice)


def statistics(model):
    return [np.array(v.posterior_state.rows.average.value()) for v in model.bali_layers]


def test_padded_tokens_are_no_data_in_attention():
    """Statistics of a batch whose padding is cut off, where every projection sees the mask."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    h = bk.layers.EmbeddingBali(TOKENS, 4, mask_zero=True)(inputs)
    h = bk.layers.MultiHeadAttentionBali(2, 3)(h, h)
    outputs = bk.layers.DenseBali(3)(K.GlobalAveragePooling1D()(h))
    model = bk.BaliModel(inputs, outputs, likelihood="categorical", num_train_examples=8)
    model.compile(forgetting=1.0, warmup_steps=5)
    x = RNG.integers(1, TOKENS, (8, 3))
    wide = np.pad(x, [(0, 0), (0, 2)])
    y = np.arange(8) % 3
    start = model.get_weights()
    model.train_on_batch(x, y)
    expected = statistics(model)
    model.set_weights(start)
    model.train_on_batch(wide, y)
    for found, exact in zip(statistics(model), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_regression_on_one_hot_rows():
    """The exact layer `e_i' W` in float64: L is diagonal, and M what dense regression gives."""
    index, y = RNG.integers(0, 4, 50), RNG.normal(size=(50, 2))
    inputs = keras.Input((), dtype="int32")
    table = bk.layers.EmbeddingBali(5, 2, dtype="float64")
    likelihood = r1.likelihoods.Normal(scale=0.3)
    model = bk.BaliModel(inputs, table(inputs), likelihood=likelihood)
    model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=0.7, factorise_every=1)
    model.fit(index, y, batch_size=50, epochs=2, verbose=0)
    h = np.eye(5)[index]
    precision = 0.7 * np.eye(5) + h.T @ h
    np.testing.assert_allclose(table.embeddings, np.linalg.solve(precision, h.T @ y), atol=1e-6)
    found = table.posterior_state.rows.dense_factor()
    np.testing.assert_allclose(found @ tf.transpose(found), np.linalg.inv(precision), atol=1e-6)


def test_blocks_are_regression_where_blocks_never_meet():
    """Dense, in two blocks and diagonal: one posterior, where every row fills one block only."""
    x = RNG.normal(size=(40, 4)).astype("float32")
    x[::2, :2], x[1::2, 2:] = 0.0, 0.0
    y = RNG.normal(size=(40, 2)).astype("float32")

    def fitted(form):
        inputs = keras.Input((4,))
        layer = bk.layers.DenseBali(2, use_bias=False, row_covariance=form, dtype="float64")
        likelihood = r1.likelihoods.Normal(scale=0.3)
        model = bk.BaliModel(inputs, layer(inputs), likelihood=likelihood)
        model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=0.7)
        model.fit(x, y, batch_size=40, epochs=2, verbose=0)
        state = layer.posterior_state
        return np.array(state.mean), np.array(state.rows.apply(tf.eye(4, dtype=tf.float64)))

    dense, blocks, diagonal = fitted("dense"), fitted(2), fitted("diagonal")
    np.testing.assert_allclose(blocks[0], dense[0], atol=1e-7)
    np.testing.assert_allclose(blocks[1], dense[1], atol=1e-7)
    assert np.abs(diagonal[1] - dense[1]).max() > 1e-3  # inputs of one block do meet
