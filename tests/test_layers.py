"""Every layer through the common case, and the rank-1 layers against stock ones."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_case import run_layer_case

import tfp_rank1 as r1

L = r1.layers
K = 2


@keras.saving.register_keras_serializable("tests")
class SelfAttention(L.MultiHeadAttentionRank1):
    """Attention of a sequence to itself, as a layer of one input."""

    def build(self, input_shape):
        super().build(input_shape, input_shape)

    def call(self, inputs, training=None):
        return super().call(inputs, inputs, training=training)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape, input_shape)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, self.compute_dtype)


@keras.saving.register_keras_serializable("tests")
class FloatTokens(L.EmbeddingRank1):
    """An embedding of any numbers, rounded to tokens."""

    def call(self, inputs):
        return super().call(tf.cast(tf.abs(inputs) * 4.0, tf.int32) % self.input_dim)


CASES = {
    "dense": (functools.partial(L.DenseRank1, 3, ensemble_size=K), (5,), True),
    "dense_rank3": (
        functools.partial(L.DenseRank1, 3, ensemble_size=K, perturbation="additive"),
        (4, 5),
        True,
    ),
    "conv1d_causal": (
        functools.partial(
            L.Conv1DRank1, 4, 3, padding="causal", dilation_rate=2, groups=2, ensemble_size=K
        ),
        (8, 2),
        True,
    ),
    "conv2d": (
        functools.partial(L.Conv2DRank1, 4, 3, strides=2, sampling="member", ensemble_size=K),
        (7, 6, 3),
        True,
    ),
    "conv3d": (functools.partial(L.Conv3DRank1, 2, 2, ensemble_size=K), (3, 4, 3, 2), True),
    "conv1d_transpose": (
        functools.partial(L.Conv1DTransposeRank1, 3, 3, strides=2, ensemble_size=K),
        (4, 2),
        True,
    ),
    "conv2d_transpose": (
        functools.partial(L.Conv2DTransposeRank1, 3, 2, padding="same", ensemble_size=K),
        (4, 3, 2),
        True,
    ),
    "conv3d_transpose": (
        functools.partial(L.Conv3DTransposeRank1, 2, 2, strides=2, ensemble_size=K),
        (2, 2, 3, 2),
        True,
    ),
    "depthwise_conv1d": (
        functools.partial(L.DepthwiseConv1DRank1, 3, depth_multiplier=2, ensemble_size=K),
        (5, 3),
        True,
    ),
    "depthwise_conv2d": (
        functools.partial(L.DepthwiseConv2DRank1, 3, padding="same", ensemble_size=K),
        (4, 5, 3),
        True,
    ),
    "separable_conv1d": (
        functools.partial(L.SeparableConv1DRank1, 4, 3, ensemble_size=K),
        (5, 3),
        True,
    ),
    "separable_conv2d": (
        functools.partial(L.SeparableConv2DRank1, 4, 3, depth_multiplier=2, ensemble_size=K),
        (4, 5, 3),
        True,
    ),
    "einsum_dense": (
        functools.partial(
            L.EinsumDenseRank1, "abc,cde->abde", (4, 2, 3), bias_axes="de", ensemble_size=K
        ),
        (4, 5),
        True,
    ),
    "lstm": (
        functools.partial(L.LSTMRank1, 3, return_sequences=True, ensemble_size=K),
        (4, 2),
        True,
    ),
    "embedding": (functools.partial(FloatTokens, 5, 3, ensemble_size=K), (4,), True),
    "embedding_additive": (
        functools.partial(
            FloatTokens, 5, 3, perturbation="additive", sampling="member", ensemble_size=K
        ),
        (4,),
        True,
    ),
    "attention": (functools.partial(SelfAttention, 2, 3, ensemble_size=K), (4, 6), True),
    "gru": (functools.partial(L.GRURank1, 3, dropout=0.2, ensemble_size=K), (4, 2), True),
    "batch_norm": (
        functools.partial(L.EnsembleBatchNormalization, K, synchronized=True),
        (4, 3),
        False,
    ),
    "tile": (functools.partial(L.TileMembers, K), (3,), False),
    "split": (functools.partial(L.SplitMembers, K), (3, 2), False),
}


# Others stand for them: convolutions in two dimensions, LSTM, lower ranks.
SLOW_CASES = {
    "gru", "dense_rank3", "embedding_additive", "conv1d_causal", "conv1d_transpose",
    "depthwise_conv1d", "separable_conv1d",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_CASES)) for name in CASES],
)
def test_layer_case(name, tmp_path, strategy):
    make, shape, seed_dependent = CASES[name]
    run_layer_case(make, shape, K, tmp_path, strategy, seed_dependent)


def dense_oracle(layer, x, k):
    """The stock computation with member k's kernel, in float64."""
    r, s, b = (
        np.float64(v[k])
        for v in (layer.r_factor.mean()[:, 0], layer.s_factor.mean()[:, 0], layer.bias)
    )
    w = np.float64(layer.kernel)
    if layer.perturbation == "multiplicative":
        return x @ (w * np.outer(r, s)) + b
    return (x + r) @ w + s + b


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_dense_equals_stock_layer_with_rank1_kernel(perturbation, shape):
    layer = L.DenseRank1(
        5, ensemble_size=3, posterior="deterministic", perturbation=perturbation,
        bias_initializer="normal",
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    outputs = layer(np.concatenate([x] * 3))
    for k, member in enumerate(np.split(np.asarray(outputs), 3)):
        np.testing.assert_allclose(member, dense_oracle(layer, x, k), atol=1e-5)


# Equation, output shape, bias axes, input shape, entries of r and s.
EQUATIONS = [
    ("abc,cd->abd", (None, 5), "d", (3, 4), (4, 5)),
    ("...x,xy->...y", 5, "y", (2, 3, 4), (4, 5)),
    ("abc,cde->abde", (None, 2, 3), "de", (3, 4), (4, 6)),
    ("abcd,cde->abe", (None, 5), None, (3, 4, 2), (8, 5)),
    ("abc,cde->aebd", (2, 3, 5), "d", (3, 4), (4, 10)),
    ("abc,bcd->abd", (3, 5), "bd", (3, 4), (12, 15)),
]


@pytest.mark.parametrize(("equation", "output_shape", "bias_axes", "shape", "sizes"), EQUATIONS)
def test_einsum_equals_stock_layer_between_factors(equation, output_shape, bias_axes, shape, sizes):
    """Also for axes in another order, several together, and a kernel per position."""
    layer = L.EinsumDenseRank1(
        equation, output_shape, bias_axes=bias_axes, ensemble_size=2, bias_initializer="normal"
    )
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    with r1.posterior_mean():
        outputs = np.split(np.array(layer(np.concatenate([x, x]))), 2)
    for k in range(2):
        r, s = (np.array(f.mean())[k, 0] for f in (layer.r_factor, layer.s_factor))
        assert (r.size, s.size) == sizes

        def lay(value, axes, dims):
            return value.reshape([d if i in axes else 1 for i, d in enumerate(dims)])

        z = np.einsum(equation, x * lay(r, layer._input_axes, x.shape), np.array(layer.kernel))
        expected = z * lay(s, layer._output_axes, z.shape)
        if bias_axes is not None:
            expected = expected + lay(np.array(layer.bias)[k], layer._bias_axes, z.shape)
        np.testing.assert_allclose(outputs[k], expected, atol=1e-5)


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
@pytest.mark.parametrize("sampling", ["example", "member", "flipout"])
def test_embedding_is_dense_on_one_hot_inputs(perturbation, sampling):
    """With the same draws: a token has one factor throughout an example."""
    arguments = {"ensemble_size": 2, "perturbation": perturbation, "sampling": sampling}
    layer = L.EmbeddingRank1(5, 3, **arguments)
    dense = L.DenseRank1(3, use_bias=False, **arguments)
    tokens = np.random.default_rng(0).integers(0, 5, (4, 6))
    hot = np.eye(5, dtype="float32")[tokens]
    layer(tokens), dense(hot)
    dense.set_weights([np.array(v) for v in layer.weights])
    with r1.random.seed_scope(r1.random.make_seed(1)):
        found = layer(tokens)
    with r1.random.seed_scope(r1.random.make_seed(1)):
        np.testing.assert_allclose(found, dense(hot), atol=1e-5)


def test_embedding_takes_a_table():
    table = np.arange(6.0).reshape(3, 2).astype("float32")
    layer = L.EmbeddingRank1(3, 2, weights=[table], posterior=r1.posteriors.Deterministic("ones"))
    np.testing.assert_allclose(layer(np.array([[2, 0]])), table[[[2, 0]]])
    np.testing.assert_allclose(layer(np.array([[-1, 0]])), table[[[2, 0]]])


def test_einsum_kernels_without_a_batch_only():
    with pytest.raises(ValueError, match="needs the batch as the first axis"):
        L.EinsumDenseRank1("ab,ac->c", 3)(np.ones((2, 3), "float32"))


@pytest.mark.parametrize("sampling", ["example", "member", "flipout"])
def test_sample_mean_matches_closed_form(sampling):
    """At fixed parameters E[y] = (x o E r) W o E s + b, and the spread is the closed-form one."""
    layer = L.DenseRank1(
        3, ensemble_size=2, posterior=r1.posteriors.Normal(stddev=0.2), sampling=sampling
    )
    x = np.random.default_rng(0).normal(size=(1, 4)).astype("float32")
    layer(np.repeat(x, 2, axis=0))
    draws = 4000
    rows = 2 * draws if sampling == "example" else 2
    batch = np.repeat(x, rows, axis=0)
    passes = 1 if sampling == "example" else draws
    call = tf.function(lambda: layer(batch), autograph=False)
    samples = np.stack([call() for _ in range(passes)])
    samples = samples.reshape(passes, 2, -1, 3).transpose(1, 0, 2, 3).reshape(2, -1, 3)
    q_r, q_s = layer.r_posterior, layer.s_posterior
    w = np.float64(layer.kernel)
    z_mean = (x * q_r.mean()) @ w
    z_variance = (x**2 * q_r.variance()) @ w**2
    expected = z_mean * q_s.mean()
    second_moment = (z_variance + z_mean**2) * (q_s.variance() + q_s.mean() ** 2)
    variance = second_moment - expected**2
    error = np.sqrt(variance / samples.shape[1])
    assert np.all(np.abs(samples.mean(axis=1) - expected) < 4.5 * error)
    np.testing.assert_allclose(samples.var(axis=1), variance, rtol=0.15)


def test_rows_of_one_member_share_a_draw_only_when_asked():
    x = np.ones((6, 4), "float32")
    example = np.asarray(L.DenseRank1(3, ensemble_size=2)(x))
    member = np.asarray(L.DenseRank1(3, ensemble_size=2, sampling="member")(x))
    assert len(np.unique(example, axis=0)) == 6
    assert len(np.unique(member, axis=0)) == 2


@pytest.mark.parametrize("sampling", ["example", "member", "flipout"])
def test_no_tensor_is_larger_than_rows_or_kernel(sampling):
    """Memory is O(rows (in + out)): nothing of size rows x in x out is ever made."""
    rows, inputs, outputs = 64, 48, 40
    layer = L.DenseRank1(outputs, ensemble_size=4, sampling=sampling, kl_weight=1.0)
    layer.build((rows, inputs))

    @tf.function(autograph=False)
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2) + sum(layer.losses)
        return tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])

    graph = gradients.get_concrete_function(tf.TensorSpec([rows, inputs])).graph
    sizes = [t.shape.num_elements() for op in graph.get_operations() for t in op.outputs]
    assert max(size for size in sizes if size) <= rows * max(inputs, outputs)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_inputs_are_cast_to_floats(dtype):
    x = np.array([[0, 1, 3], [2, 5, 1]]).astype(dtype)
    layer = L.DenseRank1(2, ensemble_size=2)
    with r1.posterior_mean():
        expected = layer(x.astype("float32"))
        np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
        inputs = keras.Input((3,), dtype=dtype)
        np.testing.assert_allclose(keras.Model(inputs, layer(inputs))(x), expected, rtol=1e-6)


def test_masks_follow_the_members():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(tokens)
    tiled = L.TileMembers(2)(embedded)
    np.testing.assert_array_equal(tiled._keras_mask, np.concatenate([tokens, tokens]) > 0)
    split = L.SplitMembers(2)(L.DenseRank1(3, ensemble_size=2)(tiled))
    np.testing.assert_array_equal(split._keras_mask, np.stack([tokens > 0] * 2, axis=1))


def test_random_bias_is_sampled_and_counted():
    layer = L.DenseRank1(3, bias_posterior="normal", posterior="deterministic", kl_weight=1.0)
    x = np.zeros((4, 2), "float32")
    assert len(np.unique(np.asarray(layer(x))[:, 0])) == 4
    assert layer.bias_posterior.batch_shape == (1, 3)
    assert len(layer.losses) == 1
    assert layer.losses[0] > 0


def test_cauchy_draws_are_clipped():
    layer = L.DenseRank1(
        1, posterior=r1.posteriors.Cauchy(scale=5.0), use_bias=False, kernel_initializer="ones",
        max_perturbation_value=2.0, min_perturbation_value=-1.0,
    )  # fmt: skip
    outputs = np.asarray(layer(np.ones((500, 1), "float32")))
    assert outputs.min() >= -2.0
    assert outputs.max() <= 4.0
    assert np.isclose(outputs, 4.0).any()


def test_roles_partition_the_weights():
    layer = L.Conv2DRank1(3, 2, ensemble_size=2, prior="normal_with_trainable_stddev")
    layer.build((2, 5, 5, 2))
    assert {v.name for v in layer.slow_weights} == {"kernel", "bias"}
    assert {v.name for v in layer.factor_variables} == {
        f"{f}_{n}" for f in "rs" for n in ("loc", "rho", "prior_rho")
    }
    assert len(layer.weights) == 8


@pytest.mark.parametrize("statistics", ["member", "shared"])
def test_batch_normalization_matches_stock_layer(statistics):
    """With K = 1 it is the stock layer; with member statistics it is K stock layers."""
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, size=(12, 4, 3)).astype("float32")
    layer = L.EnsembleBatchNormalization(2, statistics, momentum=0.5)
    parts = np.split(x, 2) if statistics == "member" else [x]
    stock = [keras.layers.BatchNormalization(momentum=0.5) for _ in parts]
    trained = np.concatenate([bn(part, training=True) for bn, part in zip(stock, parts)])  # noqa: B905
    np.testing.assert_allclose(layer(x, training=True), trained, atol=1e-4)
    inferred = np.concatenate([bn(part) for bn, part in zip(stock, parts)])  # noqa: B905
    np.testing.assert_allclose(layer(x), inferred, atol=1e-4)


@pytest.mark.parametrize("statistics", ["member", "shared"])
def test_batch_normalization_leaves_masked_entries_out(statistics):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, size=(6, 4, 3)).astype("float32")
    mask = rng.uniform(size=(6, 4)) < 0.6
    layer = L.EnsembleBatchNormalization(2, statistics, momentum=0.0)
    layer(x, training=True, mask=mask)
    parts = range(2) if statistics == "member" else [slice(None)]
    kept = [x.reshape(2, 3, 4, 3)[p][mask.reshape(2, 3, 4)[p]] for p in parts]
    np.testing.assert_allclose(layer.moving_mean, [v.mean(0) for v in kept], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, [v.var(0) for v in kept], rtol=1e-4)
    with pytest.raises(ValueError, match="does not synchronize masked inputs"):
        L.EnsembleBatchNormalization(2, synchronized=True)(x, training=True, mask=mask)


def test_batch_normalization_synchronizes_replicas(strategy):
    with strategy.scope():
        layer = L.EnsembleBatchNormalization(1, momentum=0.0, synchronized=True)
        layer.build((None, 1))
    values = strategy.experimental_distribute_values_from_function(
        lambda c: tf.fill([4, 1], 1.0 + 4.0 * c.replica_id_in_sync_group)
    )
    strategy.run(lambda v: layer(v, training=True), args=(values,))
    for copy in strategy.experimental_local_results(layer.moving_mean.value):
        np.testing.assert_allclose(copy, [[3.0]], atol=1e-5)
    for copy in strategy.experimental_local_results(layer.moving_variance.value):
        np.testing.assert_allclose(copy, [[4.0]], atol=1e-4)


ERRORS = [
    (lambda: L.DenseRank1(3, ensemble_size=0), "`ensemble_size` must be a whole number"),
    (lambda: L.DenseRank1(3, ensemble_size=1.5), "Received: ensemble_size=1.5"),
    (
        lambda: L.DenseRank1(3, perturbation="sum"),
        "'multiplicative' or 'additive'.*'sum'",
    ),
    (
        lambda: L.DenseRank1(3, sampling="batch"),
        r"must be one of \('example', 'member', 'flipout'\).*'batch'",
    ),
    (lambda: L.DenseRank1(3, kl_reduction="max"), "`kl_reduction` must be 'mean' or 'sum'"),
    (lambda: L.DenseRank1(3, kl_weight=-1.0), "`kl_weight` must be a finite number"),
    (lambda: L.DenseRank1(3, prior="gauss"), "Unknown prior: expected one of .*'gauss'"),
    (lambda: L.DenseRank1(3, posterior="gauss"), "Unknown posterior: expected one of .*'gauss'"),
    (lambda: L.DenseRank1(3, posterior="cauchy", prior="normal"), "KL is infinite"),
    (lambda: L.DenseRank1(3, min_perturbation_value=2, max_perturbation_value=1), "must lie below"),
    (lambda: L.DenseRank1(3, kl_weight="1/N"), "Received: kl_weight=1/N"),
    (lambda: L.DenseRank1(3).r_posterior, "before its layer is built"),
    (lambda: L.EnsembleBatchNormalization(2, "all"), "`statistics` must be 'member' or 'shared'"),
    (lambda: L.EnsembleBatchNormalization(2, renorm=True), "no batch renormalization"),
    (
        lambda: L.DenseRank1(3, posterior="log_normal", perturbation="additive")(np.ones((2, 2))),
        "only takes positive values",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer", [L.DenseRank1(3, ensemble_size=4), L.SplitMembers(4), L.EnsembleBatchNormalization(4)]
)
def test_indivisible_batch_is_refused(layer):
    message = "ensemble_size=4, so its batch must hold 4 times"
    with pytest.raises(ValueError, match=message):
        layer(np.ones((6, 2), "float32"))
    layer(np.ones((8, 2), "float32"))
    graph = tf.function(
        lambda x: layer(x), input_signature=[tf.TensorSpec([None, 2])], autograph=False
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        graph(np.ones((6, 2), "float32"))


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
def test_as_many_examples_as_members(perturbation):
    """One unit, K examples: every row still gets its own member's factors and bias."""
    k = 3
    layer = L.DenseRank1(1, ensemble_size=k, perturbation=perturbation)
    x = np.random.default_rng(0).normal(size=(k * k, 1)).astype("float32")
    with r1.posterior_mean():
        layer(x)
        layer.bias.assign(np.arange(k, dtype="float32")[:, None])
        together = np.reshape(layer(x), (k, k))
        alone = np.stack([np.reshape(layer(np.repeat(x.reshape(k, k)[:, i], 1)[:, None]), k)
                          for i in range(k)], axis=1)  # fmt: skip
    np.testing.assert_allclose(together, alone, atol=1e-6)
