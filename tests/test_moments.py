"""Moments through layers and nets against closed forms, quadrature of high order and samples."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import members_input
from scipy import integrate, stats

import tfp_rank1 as r1
from tfp_rank1.moments import Moments, activated, mean_slope, output_moments, propagate
from tfp_rank1.moments.gaussian import normal_pdf_cdf
from tfp_rank1.moments.nodes import cholesky, normal_nodes, pseudo_samples

layers, activations = keras.layers, keras.activations


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def random_moments(shape, dtype="float32", scale=1.0):
    rng = np.random.default_rng(0)
    mean, stddev = rng.normal(size=shape), scale * rng.uniform(0.3, 1.0, shape)
    return Moments(tf.constant(mean, dtype), tf.constant(stddev**2, dtype))


def draws_of(x, count, seed=1):
    noise = np.random.default_rng(seed).normal(size=(count, *x.mean.shape))
    return (x.mean.numpy() + np.sqrt(x.variance.numpy()) * noise).astype("float32")


def repeated(layer, x, count):
    """Many draws of a layer with two members for every row, `[count, rows, ...]`, in one call."""
    by_member = x.reshape(2, 1, len(x) // 2, *x.shape[1:])
    rows = np.repeat(by_member, count, axis=1).reshape(-1, *x.shape[1:])
    values = layer(rows).numpy()
    values = values.reshape(2, count, len(x) // 2, *values.shape[1:])
    return np.moveaxis(values, 0, 1).reshape(count, len(x), *values.shape[3:])


def check_against_draws(layer, x, count=4000, atol=0.1, call=None):
    """Moments of a layer against draws of its inputs; the layer is built by its first call."""
    call = layer if call is None else call
    call(x.mean)
    found = propagate(layer, x)
    rows = draws_of(x, count).reshape(-1, *x.mean.shape[1:])
    values = call(rows).numpy()
    values = values.reshape(count, x.mean.shape[0], *values.shape[1:])
    np.testing.assert_allclose(found.mean, values.mean(0), atol=atol)
    np.testing.assert_allclose(np.sqrt(found.variance_or_zeros()), values.std(0), atol=atol)


# -- the normal distribution and activations ----------------------------------------------------


def test_the_normal_distribution_function():
    a = np.linspace(-9, 9, 2001)
    pdf, cdf = normal_pdf_cdf(tf.constant(a))
    np.testing.assert_allclose(pdf, stats.norm.pdf(a), atol=1e-12)
    np.testing.assert_allclose(cdf, stats.norm.cdf(a), atol=1e-7)


def exact_moments(function, mean, stddev):
    """Mean and variance of a function of a normal number, by adaptive quadrature."""

    def value(z):
        return float(function(tf.constant([mean + stddev * z], tf.float64))[0])

    kinks = sorted((k - mean) / stddev for k in (-3.0, -1.0, 0.0, 1.0, 3.0, 6.0))
    edges = [-9.0, *(k for k in kinks if -9.0 < k < 9.0), 9.0]

    def expectation(f):
        return sum(
            integrate.fixed_quad(
                lambda z: np.array([f(value(t)) * stats.norm.pdf(t) for t in z]), a, b, n=30
            )[0]
            for a, b in itertools.pairwise(edges)
        )

    first = expectation(lambda v: v)
    return first, expectation(lambda v: (v - first) ** 2)


CLOSED = ("relu", "leaky_relu", "relu6", "hard_sigmoid", "hard_tanh", "exponential", "linear")
SMOOTH = ("tanh", "sigmoid", "silu", "gelu", "softplus", "elu", "mish", "log_sigmoid")


@pytest.mark.parametrize("name", CLOSED + SMOOTH)
def test_activations_against_quadrature(name):
    function = activations.get(name)
    tolerance = 2e-6 if name in CLOSED else 5e-4
    for mean, stddev in ((-2.0, 0.5), (0.3, 1.0), (1.5, 2.0), (5.8, 0.4)):
        x = Moments(tf.constant([mean], tf.float64), tf.constant([stddev**2], tf.float64))
        found, expected = activated(function, x), exact_moments(function, mean, stddev)
        np.testing.assert_allclose(found.mean[0], expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.variance[0], expected[1], rtol=tolerance, atol=tolerance)


def test_far_from_a_kink_nothing_is_lost_in_float32():
    """A difference of second moments would say 0 or noise here."""
    x = Moments(tf.constant([100.0, -3.0]), tf.constant([1e-6, 1e-12]))
    found = activated(activations.relu, x)
    np.testing.assert_allclose(found.mean, [100.0, 0.0])
    np.testing.assert_allclose(found.variance, [1e-6, 0.0], rtol=1e-6, atol=1e-20)


def test_slopes_are_those_of_stein():
    x = random_moments((50,), "float64")
    z = draws_of(x, 200_000)
    for name in ("relu", "tanh", "softplus"):
        values = activations.get(name)(tf.constant(z)).numpy()
        shared = ((values - values.mean(0)) * (z - z.mean(0))).mean(0) / z.var(0)
        np.testing.assert_allclose(mean_slope(activations.get(name), x), shared, atol=0.02)


def test_a_function_that_mixes_entries_is_refused():
    with pytest.raises(ValueError, match="mixes entries"):
        activated(lambda x: x / keras.ops.sum(x), random_moments((2, 3)))


# -- layers -------------------------------------------------------------------------------------

LINEAR = {
    "dense": (lambda: layers.Dense(3), (5, 4)),
    "einsum": (lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e"), (5, 2, 4)),
    "conv1d": (lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2), (2, 6, 2)),
    "conv2d": (lambda: layers.Conv2D(4, 3, strides=2, padding="same", groups=2), (2, 6, 6, 2)),
    "transposed": (lambda: layers.Conv2DTranspose(3, 2, strides=2), (2, 3, 3, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 5, 2)),
    "separable": (lambda: layers.SeparableConv2D(3, 2), (2, 4, 4, 2)),
    "batch norm": (layers.BatchNormalization, (5, 4)),
    "upsampling": (lambda: layers.UpSampling2D(2), (2, 2, 2, 1)),
    "padding": (lambda: layers.ZeroPadding2D(1), (2, 2, 2, 1)),
    "average pooling": (lambda: layers.AveragePooling2D(2), (2, 4, 4, 2)),
    "global average": (lambda: layers.GlobalAveragePooling2D(), (2, 4, 4, 2)),
    "steps": (lambda: layers.GlobalAveragePooling1D(), (2, 4, 2)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_equal_their_matrix(name, float64):
    """Independent entries through `y = A x + b`: `E y = A mu + b`, `Var y = A^2 v`."""
    make, shape = LINEAR[name]
    layer, x = make(), random_moments(shape, "float64")
    zeros = layer(tf.zeros(shape, tf.float64)).numpy()
    size = math.prod(shape)
    # All columns of the matrix as rows of one batch: rows do not meet in these layers.
    basis = tf.reshape(tf.eye(size, dtype=tf.float64), [-1, *shape[1:]])
    matrix = layer(basis).numpy().reshape(size, *zeros.shape) - zeros
    found = propagate(layer, x)
    mean, variance = (np.ravel(v) for v in (x.mean.numpy(), x.variance.numpy()))
    np.testing.assert_allclose(found.mean, np.tensordot(mean, matrix, 1) + zeros, atol=1e-10)
    np.testing.assert_allclose(found.variance, np.tensordot(variance, matrix**2, 1), atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        layers.LayerNormalization(),
        layers.RMSNormalization(),
        layers.ReLU(max_value=1.0),
        layers.LeakyReLU(0.1),
        layers.PReLU("ones"),
        layers.MaxPooling1D(2, padding="same"),
        layers.GlobalMaxPooling1D(),
        layers.Softmax(),
    ],
    ids=lambda layer: layer.name,
)
def test_other_layers_against_draws(layer):
    # To first order in the noise, where the scale is small.
    by_order = layers.Softmax, layers.LayerNormalization, layers.RMSNormalization
    scale = 0.15 if isinstance(layer, by_order) else 1.0
    check_against_draws(layer, random_moments((2, 5, 8), scale=scale))


def test_merging_layers_against_draws():
    x, y = random_moments((3, 4)), random_moments((3, 4)).scaled(-0.7, 0.4)
    first, second = draws_of(x, 20_000, 1), draws_of(y, 20_000, 2)
    for kind in (
        layers.Add, layers.Subtract, layers.Average, layers.Multiply, layers.Maximum,
        layers.Minimum, layers.Concatenate,
    ):  # fmt: skip
        found = propagate(kind(), [x, y])
        values = kind()([first, second]).numpy()
        np.testing.assert_allclose(found.mean, values.mean(0), atol=0.03, err_msg=kind.__name__)
        np.testing.assert_allclose(found.variance, values.var(0), atol=0.06, err_msg=kind.__name__)


def test_a_call_with_training_is_one_without():
    """Keras calls every layer of a graph with the training=False of the model's call."""
    x = random_moments((2, 3))
    for layer in (layers.Dropout(0.3), layers.GaussianNoise(0.3)):
        found = propagate(layer, x, training=True)
        np.testing.assert_array_equal(found.mean, x.mean)
        np.testing.assert_array_equal(found.variance, x.variance)


FAMILIES = [
    r1.posteriors.Normal(stddev=0.2),
    r1.posteriors.NormalFixedStddev(stddev=0.2),
    r1.posteriors.NormalSharedStddev(stddev=0.2),
    r1.posteriors.LogNormal(scale=0.2),
    r1.posteriors.Cauchy(scale=0.01),
    r1.posteriors.HalfCauchy(scale=0.01),
    r1.posteriors.MixtureOfDeltas(3),
    r1.posteriors.Deterministic(),
]


@pytest.mark.parametrize("posterior", FAMILIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_moments_of_every_family(posterior, scale):
    """Mean and variance of clipped draws, also of a calibrated posterior."""
    layer = r1.layers.DenseRank1(1, ensemble_size=2, posterior=posterior)
    layer.build((None, 3))
    with r1.scopes.posterior_scale.set(scale):
        mean, variance = layer.factor_moments(layer.r_factor)
        draws = layer.r_factor.sample(200_000, tf.constant([1, 2]))
    draws = tf.clip_by_value(draws, -10.0, 10.0).numpy()
    np.testing.assert_allclose(mean[:, 0], draws.mean(1), atol=0.01)
    found = tf.zeros_like(mean) if variance is None else variance
    np.testing.assert_allclose(np.sqrt(found[:, 0]), draws.std(1), rtol=0.1, atol=1e-5)


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
def test_a_rank1_layer_has_its_exact_moments(perturbation, float64):
    """`s_k o (W'(x o r_k)) + b_k` for an x that is known, with the covariance of the outputs."""
    layer = r1.layers.DenseRank1(
        3, ensemble_size=2, perturbation=perturbation, bias_initializer="normal",
        bias_posterior="normal", posterior=r1.posteriors.Normal(stddev=0.3),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(4, 5))
    layer(x)
    found = propagate(layer, Moments(tf.constant(x)))
    kernel = layer.kernel.numpy()
    (rm, rv), (sm, sv) = (
        (np.repeat(d.mean().numpy(), 2, 0), np.repeat(d.variance().numpy(), 2, 0))
        for d in (layer.r_posterior, layer.s_posterior)
    )
    bm, bv = (np.repeat(v.numpy(), 2, 0) for v in (
        layer.bias_posterior.mean(), layer.bias_posterior.variance()
    ))  # fmt: skip
    is_product = perturbation == "multiplicative"
    inputs, spread = (x * rm, x**2 * rv) if is_product else (x + rm, rv)
    z, covariance = inputs @ kernel, np.einsum("bi,ij,ik->bjk", spread, kernel, kernel)
    own = np.einsum("bjj->bj", covariance)
    if is_product:
        mean = z * sm + bm
        variance = own * (sm**2 + sv) + z**2 * sv + bv
        covariance = covariance * sm[:, :, None] * sm[:, None]
    else:
        mean, variance = z + sm + bm, own + sv + bv
    np.einsum("bjj->bj", covariance)[:] = variance
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)
    np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-6, atol=1e-12)


RANK1 = {
    "einsum": (lambda **k: r1.layers.EinsumDenseRank1("abc,cd->abd", (None, 3), **k), (4, 2, 3)),
    "conv": (lambda **k: r1.layers.Conv1DRank1(3, 1, **k), (4, 3, 2)),
    "depthwise": (lambda **k: r1.layers.DepthwiseConv1DRank1(3, **k), (4, 5, 2)),
    "transposed": (lambda **k: r1.layers.Conv1DTransposeRank1(2, 1, **k), (4, 3, 2)),
}


@pytest.mark.parametrize("name", RANK1)
def test_rank1_layers_against_samples(name):
    """Of known inputs; one entry of r reaches an output in one way only, as the rule assumes."""
    make, shape = RANK1[name]
    layer = make(ensemble_size=2, posterior=r1.posteriors.Normal(stddev=0.3))
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    if name == "depthwise":
        x[:, 1::2] = 0.0  # else two positions share an entry of r
        x[:, ::4] = 0.0
    layer(x)
    found = propagate(layer, Moments(tf.constant(x)))
    values = repeated(layer, x, 3000)
    np.testing.assert_allclose(found.mean, values.mean(0), atol=0.06)
    np.testing.assert_allclose(np.sqrt(found.variance), values.std(0), rtol=0.1, atol=0.02)


def test_embeddings_against_samples():
    for perturbation in ("multiplicative", "additive"):
        layer = r1.layers.EmbeddingRank1(
            5, 3, ensemble_size=2, perturbation=perturbation,
            posterior=r1.posteriors.Normal(stddev=0.3),
        )  # fmt: skip
        tokens = np.array([[0, 4], [-1, 2]])
        layer(tokens)
        found = propagate(layer, Moments(tf.constant(tokens)))
        values = repeated(layer, tokens, 2000)
        np.testing.assert_allclose(found.mean, values.mean(0), atol=0.06)
        np.testing.assert_allclose(np.sqrt(found.variance), values.std(0), rtol=0.15, atol=0.02)


# -- a net --------------------------------------------------------------------------------------


def test_one_hidden_layer_with_independent_units_equals_a_million_samples():
    """Inputs are known and every hidden unit has an input of its own: nothing is approximated."""
    inputs, h = members_input((4,), 1)
    normal = r1.posteriors.Normal(stddev=0.4)
    # A product of two factors is not normal, so one of them is a point.
    first = r1.layers.DenseRank1(
        4, "relu", r_posterior=normal, s_posterior="deterministic", kernel_initializer="identity"
    )
    last = r1.layers.DenseRank1(2, posterior=r1.posteriors.NormalFixedStddev(stddev=1e-9))
    outputs = r1.layers.SplitMembers(1)(last(first(h)))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    x = np.array([[0.5, -1.0, 2.0, 0.1]], "float32")
    found = output_moments(model, tf.constant(x))
    samples = tf.concat(
        [model(np.repeat(x, 100_000, 0), training=False)[:, 0] for _ in range(10)], 0
    ).numpy()
    stddev = samples.std(0)
    np.testing.assert_allclose(found.mean[0, 0], samples.mean(0), atol=4 * stddev.max() / 1e3)
    np.testing.assert_allclose(found.covariance()[0, 0], np.cov(samples.T), rtol=0.01, atol=0.01)


def test_nodes_have_the_moments_they_are_made_for():
    nodes = normal_nodes(32, 10)
    np.testing.assert_allclose(nodes.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(nodes.T @ nodes / 32, np.eye(10), atol=1e-10)
    a = np.random.default_rng(0).normal(size=(300, 5, 5))
    covariance = a @ np.swapaxes(a, 1, 2)
    factor = cholesky(tf.constant(covariance)).numpy().T
    np.testing.assert_allclose(factor, np.linalg.cholesky(covariance), atol=1e-3)
    x = Moments(tf.zeros([300, 5]), None, None, lambda: tf.constant(covariance, tf.float32))
    samples = pseudo_samples(x, 16).numpy()
    np.testing.assert_allclose(
        np.einsum("sni,snj->nij", samples, samples) / 16, covariance, rtol=1e-3, atol=1e-3
    )


def test_a_covariance_without_full_rank_has_a_factor():
    v = np.array([1.0, 2.0, -1.0])
    covariance = np.outer(v, v)[np.newaxis]
    factor = cholesky(tf.constant(covariance, tf.float32)).numpy().T
    np.testing.assert_allclose(factor @ np.swapaxes(factor, 1, 2), covariance, atol=1e-5)


def test_users_teach_their_layers():
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    class Halved(keras.layers.Dense):
        def call(self, x):
            return 0.5 * super().call(x)

    x = random_moments((2, 3))
    for layer in (Doubled(), Halved(1)):
        with pytest.raises(ValueError, match=r"register\((Doubled|Halved)\).*method='samples'"):
            propagate(layer, x)

    @r1.moments.register(Doubled)
    def double(layer, x):
        return x.scaled(2.0)

    np.testing.assert_allclose(propagate(Doubled(), x).variance, 4.0 * x.variance)
    # Of what is known, a layer needs no rule.
    assert propagate(Halved(1), Moments(x.mean)).is_exact


def test_inputs_that_members_share_are_multiplied_once():
    """The same moments as of rows that a layer has passed on, which nobody knows to be alike."""
    inputs, tiled = members_input((3, 4), 2)
    dense = r1.layers.DenseRank1(5, ensemble_size=2, posterior=r1.posteriors.Normal(stddev=0.3))
    split = r1.layers.SplitMembers(2)
    models = [keras.Model(inputs, split(dense(h))) for h in (tiled, layers.Identity()(tiled))]
    x = tf.constant(np.random.default_rng(0).normal(size=(6, 3, 4)), tf.float32)
    found, expected = (output_moments(model, x) for model in models)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.covariance(), expected.covariance(), atol=1e-5)


def test_operations_of_graphs():
    inputs, h = members_input((4,), 2)
    with r1.members(2):
        h = r1.layers.DenseRank1(4, posterior=r1.posteriors.Normal(stddev=0.3))(h)
        g = keras.ops.maximum(keras.ops.tanh(h) * 2.0 - 1.0, -h) + keras.ops.sigmoid(h) / 3.0
        g = keras.ops.concatenate([g, keras.ops.relu(h)], axis=-1)
        outputs = r1.layers.SplitMembers()(layers.Dense(2)(g))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    found = output_moments(model, tf.constant(x))
    values = model(np.tile(x, (2000, 1))).numpy().reshape(2000, 6, 2, 2)
    np.testing.assert_allclose(found.mean, values.mean(0), atol=0.2)
