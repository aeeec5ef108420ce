"""BALI layers: the stock map, its posterior, persistence, precision, XLA."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import net

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras.layers.patches import extract_patches
from tfp_rank1.predictive.sampling import sample_outputs
from tfp_rank1.random import fold_in, make_seed, seed_scope

L, K = bk.layers, keras.layers

CASES = {
    "dense": (lambda **a: L.DenseBali(4, **a), lambda: K.Dense(4), (5,)),
    "dense_rows": (lambda **a: L.DenseBali(4, **a), lambda: K.Dense(4), (3, 5)),
    "conv1d_causal": (
        lambda **a: L.Conv1DBali(4, 3, padding="causal", dilation_rate=2, **a),
        lambda: K.Conv1D(4, 3, padding="causal", dilation_rate=2),
        (9, 2),
    ),
    "conv2d": (lambda **a: L.Conv2DBali(4, 3, **a), lambda: K.Conv2D(4, 3), (6, 7, 2)),
    "conv2d_same_strided": (
        lambda **a: L.Conv2DBali(4, (3, 2), strides=(2, 3), padding="same", **a),
        lambda: K.Conv2D(4, (3, 2), strides=(2, 3), padding="same"),
        (7, 8, 2),
    ),
    "conv2d_dilated": (
        lambda **a: L.Conv2DBali(4, 2, dilation_rate=(2, 3), padding="same", **a),
        lambda: K.Conv2D(4, 2, dilation_rate=(2, 3), padding="same"),
        (7, 8, 2),
    ),
    "conv3d": (
        lambda **a: L.Conv3DBali(2, 2, strides=2, padding="same", **a),
        lambda: K.Conv3D(2, 2, strides=2, padding="same"),
        (4, 5, 4, 2),
    ),
    "einsum": (
        lambda **a: L.EinsumDenseBali("abc,cde->abde", (None, 2, 3), bias_axes="de", **a),
        lambda: K.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (5, 4),
    ),
    "einsum_ellipsis": (
        lambda **a: L.EinsumDenseBali("...x,yx->...y", 3, bias_axes="y", **a),
        lambda: K.EinsumDense("...x,yx->...y", 3, bias_axes="y"),
        (5, 4),
    ),
    "dense_blocks": (
        lambda **a: L.DenseBali(4, row_covariance=2, **a),
        lambda: K.Dense(4),
        (3, 5),
    ),
    "dense_diagonal": (
        lambda **a: L.DenseBali(4, row_covariance="diagonal", **a),
        lambda: K.Dense(4),
        (5,),
    ),
    "depthwise1d": (
        lambda **a: L.DepthwiseConv1DBali(3, dilation_rate=2, **a),
        lambda: K.DepthwiseConv1D(3, dilation_rate=2),
        (9, 2),
    ),
    "depthwise2d": (
        lambda **a: L.DepthwiseConv2DBali((3, 2), 2, "same", depth_multiplier=2, **a),
        lambda: K.DepthwiseConv2D((3, 2), 2, "same", depth_multiplier=2),
        (5, 6, 3),
    ),
    "transpose1d": (
        lambda **a: L.Conv1DTransposeBali(3, 3, 2, output_padding=1, **a),
        lambda: K.Conv1DTranspose(3, 3, 2, output_padding=1),
        (4, 2),
    ),
    "transpose2d": (
        lambda **a: L.Conv2DTransposeBali(3, (4, 2), (3, 2), padding="same", **a),
        lambda: K.Conv2DTranspose(3, (4, 2), (3, 2), padding="same"),
        (3, 2, 2),
    ),
    "transpose3d": (
        lambda **a: L.Conv3DTransposeBali(2, 2, padding="same", **a),
        lambda: K.Conv3DTranspose(2, 2, padding="same"),
        (2, 3, 2, 2),
    ),
    "embedding": (lambda **a: L.EmbeddingBali(7, 3, **a), lambda: K.Embedding(7, 3), None),
    "einsum_two_summed": (
        lambda **a: L.EinsumDenseBali("abcd,cde->abe", (None, 3), **a),
        lambda: K.EinsumDense("abcd,cde->abe", (None, 3)),
        (5, 2, 3),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    make, stock, shape = CASES[request.param]
    rng = np.random.default_rng(0)
    if shape is None:
        return make, stock, rng.integers(0, 7, (6, 4))
    return make, stock, rng.normal(size=(6, *shape)).astype("float32")


def with_posterior(layer, x):
    """The layer, built, with a posterior that is not a point."""
    layer.build(x.shape)
    state = layer.posterior_state
    k = state.size[1]
    rng = np.random.default_rng(1)
    shape = state.rows.factor.shape
    factor = 0.3 + 0.1 * np.abs(rng.normal(size=shape))
    if len(shape) > 1:
        factor = np.triu(rng.normal(size=shape)) * 0.1 + 0.3 * np.eye(shape[-1])
    state.rows.take(tf.constant(factor, state.dtype), tf.constant(True))
    state.column_factor.assign(np.triu(rng.normal(size=(k, k))) * 0.1 + 0.3 * np.eye(k))
    return layer


def model_of(layer, x):
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    return keras.Model(inputs, layer(inputs))


def stock_kernel(layer):
    return layer.embeddings if isinstance(layer, K.Embedding) else layer.kernel


def test_the_mean_is_the_stock_layer(case):
    make, stock, x = case
    layer, plain = make(), stock()
    model = model_of(layer, x)
    expected = plain(x)
    bias = None
    if layer.use_bias:
        plain.bias.assign(np.random.default_rng(2).normal(size=plain.bias.shape))
        expected, bias = plain(x), tf.convert_to_tensor(plain.bias)
    kernel = tf.convert_to_tensor(stock_kernel(plain))
    layer.posterior_state.mean.assign(layer.as_matrix(kernel, bias))
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.kernel, kernel)
    if bias is not None:
        np.testing.assert_array_equal(layer.bias, np.ravel(bias))
    static = zip(model.output_shape[1:], expected.shape[1:], strict=True)
    assert all(ours in (None, theirs) for ours, theirs in static)
    # Before the first statistics the layer is a point.
    np.testing.assert_allclose(model(x), expected, atol=1e-4)


def test_config_and_persistence(case, tmp_path):
    make, _, x = case
    activation = {} if make is CASES["embedding"][0] else {"activation": "tanh"}
    layer = with_posterior(make(**activation), x)
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    model = model_of(layer, x)
    model.save(tmp_path / "model.keras")
    expected = model(x)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), expected)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    with r1.posterior_mean():
        np.testing.assert_array_equal(clone(x), model(x))


@pytest.mark.parametrize("sampling", ["example", "weights"])
def test_samples_have_the_marginal_moments(case, sampling):
    make, _, x = case
    layer = with_posterior(make(sampling=sampling), x)
    model = model_of(layer, x)
    copies = 1 if sampling == "weights" else 10  # "weights": one draw for all of a call
    batch = np.concatenate([x] * copies)
    draw = tf.function(lambda: model(batch), autograph=False)
    draws = np.stack([draw() for _ in range(1500 // copies)])
    draws = draws.reshape(1500, len(x), *draws.shape[2:])
    with r1.posterior_mean():
        mean = np.array(model(x))
    h = layer._homogeneous(tf.constant(x))
    columns = tf.linalg.diag_part(layer.posterior_state.matrix_normal().column_covariance())
    rows = layer.posterior_state.rows.variance(h)
    variance = np.array(layer._arrange(rows[..., tf.newaxis] * columns))
    assert np.abs((draws.mean(0) - mean) / np.sqrt(variance / 1500)).max() < 5.5
    assert np.abs(draws.var(0) / variance - 1).max() < 5.5 * np.sqrt(2 / 1500)


def test_seeds_xla_and_precision(case):
    make, _, x = case
    model = model_of(with_posterior(make(), x), x)
    with r1.random.seed_scope(r1.random.make_seed(3)):
        first = model(x)
    with r1.random.seed_scope(r1.random.make_seed(3)):
        np.testing.assert_array_equal(model(x), first)
    assert not np.array_equal(model(x), model(x))
    with r1.posterior_mean():
        compiled = tf.function(lambda: model(x), jit_compile=True, autograph=False)()
        np.testing.assert_allclose(compiled, model(x), atol=1e-5)
    half = model_of(with_posterior(make(dtype="mixed_bfloat16"), x), x)
    assert half(x).dtype == "bfloat16"
    assert all(v.dtype == "float32" for v in half.layers[-1].weights)
    with r1.posterior_mean():
        expected = model(x)
        half.set_weights(model.get_weights())
        np.testing.assert_allclose(tf.cast(half(x), tf.float32), expected, atol=0.1, rtol=0.1)


def test_weights_are_shared_by_the_rows_of_an_example():
    """Rows of one example share W, so equal rows must draw equal pre-activations."""
    x = np.ones((2, 3, 5), "float32")
    default = with_posterior(L.DenseBali(4), x)(x)
    np.testing.assert_allclose(default[:, :1] + np.zeros((1, 3, 1)), default, atol=1e-6)
    local = with_posterior(L.DenseBali(4, sampling="example"), x)(x)
    assert np.abs(local[:, 0] - local[:, 1]).max() > 1e-3


def test_what_the_first_layer_finds_of_its_inputs_is_computed_once():
    """Outside the loop over samples; the samples are those of passes one by one."""
    model = net(4, (6, 5), 3, "categorical", "relu")
    model.compile()
    x = tf.random.stateless_normal([20, 4], [1, 2])
    model.fit(x, np.arange(20) % 3, batch_size=10, verbose=0)
    seed = make_seed(3)

    @tf.function(autograph=False)
    def samples(x):
        return sample_outputs(model, x, 4, seed)

    operations = samples.get_concrete_function(x).graph.get_operations()
    outside = [tuple(op.inputs[1].shape) for op in operations if op.type == "MatMul"]
    assert (4 + 1, 6) in outside  # the first layer's mean
    assert (6 + 1, 5) not in outside  # the second's
    found = samples(x)
    for index in range(4):
        with seed_scope(fold_in(seed, index)):
            np.testing.assert_allclose(found[index], model(x), rtol=1e-5, atol=1e-6)


def test_channels_first_is_channels_last():
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype("float32")
    last = L.Conv2DBali(4, 3, strides=2, padding="same")
    first = L.Conv2DBali(4, 3, strides=2, padding="same", data_format="channels_first")
    last.build(x.shape)
    first.build((2, 3, 6, 7))
    first.set_weights(last.get_weights())
    with r1.posterior_mean():
        np.testing.assert_allclose(
            np.moveaxis(first(np.moveaxis(x, -1, 1)), 1, -1), last(x), atol=1e-5
        )


def test_patches_of_unknown_size():
    signature = [tf.TensorSpec([None, None, None, 2])]

    @tf.function(input_signature=signature, autograph=False)
    def patches(x):
        return extract_patches(x, (3, 3), (2, 2), (1, 1), "same")

    x = np.random.default_rng(0).normal(size=(2, 7, 6, 2)).astype("float32")
    expected = tf.image.extract_patches(x, [1, 3, 3, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME")
    np.testing.assert_array_equal(patches(x), expected)


def test_a_plain_model_predicts_but_does_not_train():
    x = np.ones((4, 3), "float32")
    model = keras.Sequential([keras.Input((3,)), L.DenseBali(2), K.Dense(1)])
    assert model.predict(x, verbose=0).shape == (4, 1)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"learns only in `fit` of a bali_keras\.BaliModel"):
        model.fit(x, np.ones(4), verbose=0)
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(x, np.ones(4), verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.DenseBali(0), "units"),
        (lambda: L.DenseBali(2, sampling="row"), "sampling"),
        (lambda: L.DenseBali(2, row_covariance="full"), r"`row_covariance`.*'auto'"),
        (lambda: L.DenseBali(2, row_covariance=0), "row_covariance"),
        (lambda: L.EmbeddingBali(7, 3, activation="relu"), "takes no `activation`"),
        (lambda: L.EmbeddingBali(0, 3), "input_dim"),
        (lambda: L.DepthwiseConv2DBali(3, row_covariance="dense"), "every channel by itself"),
        (lambda: L.DepthwiseConv2DBali(3, depth_multiplier=0), "depth_multiplier"),
        (lambda: L.Conv2DTransposeBali(2, 3, output_padding=4, strides=2), "output_padding"),
        (lambda: L.SeparableConv2DBali(0, 3), "filters"),
        (lambda: L.MultiHeadAttentionBali(2, 3, sampling="row"), "sampling"),
        (lambda: L.Conv2DBali(2, 3, groups=2), "groups"),
        (lambda: L.Conv2DBali(2, 3, padding="full"), "padding"),
        (lambda: L.EinsumDenseBali("ab,abc->abc", (2, 3)), "summed over or new"),
        (lambda: L.EinsumDenseBali("abc,cde->abde", (None, 2, 3), bias_axes="e"), "bias_axes"),
        (lambda: L.DenseBali(2).build((None, None)), "known size"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_posterior_before_statistics():
    layer = L.DenseBali(2)
    layer.build((None, 3))
    with pytest.raises(ValueError, match="no posterior yet"):
        _ = layer.posterior
