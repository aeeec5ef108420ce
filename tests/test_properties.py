"""Properties that hold for every shape, dtype, seed and split."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_case import as_on_any_cpu

import bali_keras as bk
import tfp_rank1 as r1
from bali_keras import matrix_normal as mn
from bali_keras.inference.statistics import WeightedAverage

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def array(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@few
@given(
    members=st.integers(1, 4), rows=st.integers(1, 5), units=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=seeds,
    perturbation=st.sampled_from(["multiplicative", "additive"]),
    dtype=st.sampled_from(["float32", "mixed_bfloat16", "mixed_float16", "float64"]),
)  # fmt: skip
def test_dense_members_are_stock_layers(members, rows, units, shape, seed, perturbation, dtype):
    """In the posterior mean member k is a stock layer, whatever the rank and the dtype."""
    layer = r1.layers.DenseRank1(
        units, ensemble_size=members, perturbation=perturbation, dtype=dtype, seed=seed
    )
    x = array(seed, members * rows, *shape)
    with r1.posterior_mean():
        y = layer(x)
    assert y.shape == (members * rows, *shape[:-1], units)
    assert y.dtype == layer.compute_dtype
    found = np.float64(tf.cast(y, tf.float64)).reshape(members, rows, *shape[:-1], units)
    tolerance = {"bfloat16": 0.1, "float16": 0.02}.get(layer.compute_dtype, 1e-4)
    for k in range(members):
        r, s, b = (
            np.float64(v[k]).reshape(-1)
            for v in (layer.r_factor.mean(), layer.s_factor.mean(), layer.bias)
        )
        w, inputs = np.float64(layer.kernel), x.reshape(members, rows, *shape)[k].astype("float64")
        if perturbation == "multiplicative":
            expected = inputs @ (w * np.outer(r, s)) + b
        else:
            expected = (inputs + r) @ w + s + b
        np.testing.assert_allclose(found[k], expected, atol=tolerance * (1 + np.abs(w).sum()))


@few
@given(
    size=st.integers(4, 7), channels=st.integers(1, 3), filters=st.integers(1, 3),
    kernel=st.integers(1, 3), strides=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]), seed=seeds,
    data_format=st.sampled_from(["channels_last", "channels_first"]),
)  # fmt: skip
def test_convolutions_are_stock_layers(
    size, channels, filters, kernel, strides, padding, seed, data_format
):
    """The BALI convolution, which multiplies patches, in its posterior mean; on a CPU the stock
    one knows channels last only."""
    arguments = {"strides": strides, "padding": padding}
    layer = bk.layers.Conv2DBali(filters, kernel, data_format=data_format, **arguments)
    stock = keras.layers.Conv2D(filters, kernel, **arguments)
    x = array(seed, 2, size, size + 1, channels)
    first = data_format == "channels_first"
    with r1.posterior_mean():
        found = np.array(layer(x.transpose(0, 3, 1, 2) if first else x))
    stock.build(x.shape)
    stock.set_weights([np.array(layer.kernel), np.array(layer.bias)])
    found = found.transpose(0, 2, 3, 1) if first else found
    np.testing.assert_allclose(found, stock(x), atol=1e-4)


CONVOLUTIONS = {
    1: (r1.layers.Conv1DRank1, keras.layers.Conv1D),
    2: (r1.layers.Conv2DRank1, keras.layers.Conv2D),
    3: (r1.layers.Conv3DRank1, keras.layers.Conv3D),
}


@few
@given(
    rank=st.integers(1, 3), members=st.integers(1, 3), rows=st.integers(1, 3),
    groups=st.integers(1, 2), kernel=st.integers(1, 3), strides=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]), seed=seeds,
    perturbation=st.sampled_from(["multiplicative", "additive"]),
    data_format=st.sampled_from(["channels_last", "channels_first"]),
    dtype=st.sampled_from(["float32", "mixed_bfloat16", "float64"]),
)  # fmt: skip
def test_rank1_convolutions_are_stock_layers(
    rank, members, rows, groups, kernel, strides, padding, seed, perturbation, data_format, dtype
):
    """Member k is the stock layer between r_k on its inputs and s_k on its outputs."""
    cls, stock_cls = CONVOLUTIONS[rank]
    arguments = {"strides": strides, "padding": padding, "groups": groups}
    layer = cls(
        3 * groups, kernel, ensemble_size=members, perturbation=perturbation, seed=seed,
        data_format=data_format, dtype=dtype, bias_initializer="normal", **arguments,
    )  # fmt: skip
    x = array(seed, members * rows, *range(4, 4 + rank), 2 * groups)
    first = data_format == "channels_first"
    with r1.posterior_mean():
        found = as_on_any_cpu(layer, {"data_format": data_format})(
            np.moveaxis(x, -1, 1) if first else x
        )
    assert found.dtype == layer.compute_dtype
    found = np.array(tf.cast(found, tf.float32))
    found = np.moveaxis(found, 1, -1) if first else found
    stock = stock_cls(3 * groups, kernel, use_bias=False, **arguments)
    stock.build(x.shape)
    stock.set_weights([np.array(layer.kernel)])
    combine = np.multiply if perturbation == "multiplicative" else np.add
    r, s = (np.array(f.mean()) for f in (layer.r_factor, layer.s_factor))
    tolerance = 0.05 if layer.compute_dtype == "bfloat16" else 1e-4
    for k, (inputs, outputs) in enumerate(
        zip(np.split(x, members), np.split(found, members), strict=True)
    ):
        expected = combine(stock(combine(inputs, r[k])), s[k]) + np.array(layer.bias)[k]
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(outputs, expected, atol=tolerance * scale)


@few
@given(
    cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=seeds,
    weighted=st.booleans(),
)  # fmt: skip
def test_any_split_and_order_gives_one_posterior(cuts, seed, weighted):
    """Averages that forget nothing: the examples count, not their batches or order."""
    rng = np.random.default_rng(seed)
    h, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    weights = rng.uniform(0.1, 3.0, 60) if weighted else np.ones(60)
    layer = keras.layers.Layer()
    inputs = WeightedAverage(layer, "inputs", (4, 4), "float64")
    linear = WeightedAverage(layer, "linear", (4, 2), "float64")
    order = rng.permutation(60)
    for step, rows in enumerate(np.split(order, sorted(cuts)), start=1):
        w = weights[rows]
        for average, right in ((inputs, h), (linear, y)):
            total = tf.constant(h[rows].T @ (w[:, None] * right[rows]))
            average.update(total, tf.constant(w.sum()), tf.constant(1.0 / step, tf.float64), True)
    expected = h.T @ (weights[:, None] * h) / weights.sum()
    np.testing.assert_allclose(inputs.value(), expected, atol=1e-12)
    mean = np.linalg.solve(expected, h.T @ (weights[:, None] * y) / weights.sum())
    found = mn.solve(mn.inverse_factor(inputs.value()), linear.value())
    np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-8)


@few
@given(d=st.integers(1, 9), k=st.integers(1, 5), seed=seeds)
def test_natural_and_mean_form_are_one(d, k, seed):
    rng = np.random.default_rng(seed)
    h, s = rng.normal(size=(d + 3, d)), rng.normal(size=(k + 3, k))
    natural = mn.NaturalParameters(*map(tf.constant, (h.T @ h, rng.normal(size=(d, k)), s.T @ s)))
    family = mn.MatrixNormal.from_natural(natural)
    for found, expected in zip(family.natural(), natural, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert abs(float(family.kl_divergence(family))) < 1e-8
    other = mn.MatrixNormal(family.mean + 1.0, 1.5 * family.row_factor, family.column_factor)
    assert float(family.kl_divergence(other)) > 0.0


@few
@given(first=st.integers(0, 2**40), rows=st.integers(1, 9), width=st.integers(1, 20), seed=seeds)
def test_noise_by_row_does_not_know_its_batch(first, rows, width, seed):
    """Any cut of the table of random numbers gives the same rows."""
    key = r1.random.make_seed(seed)
    whole = r1.random.normal_rows(tf.constant(first, tf.int64), (rows, width), key)
    cut = rows // 2
    parts = [
        r1.random.normal_rows(tf.constant(first + start, tf.int64), (stop - start, width), key)
        for start, stop in ((0, cut), (cut, rows))
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert np.isfinite(whole).all()


@few
@given(
    samples=st.integers(1, 6), rows=st.integers(1, 6), classes=st.integers(2, 6), seed=seeds,
    scale=st.floats(0.01, 100.0),
)  # fmt: skip
def test_uncertainty_splits_into_its_parts(samples, rows, classes, seed, scale):
    """Entropy is expected entropy and mutual information; both are within their bounds."""
    outputs = tf.constant(scale * array(seed, samples, rows, classes))
    p = r1.PosteriorPredictive(outputs, r1.likelihoods.Categorical())
    entropy, information = np.array(p.entropy()), np.array(p.mutual_information())
    np.testing.assert_allclose(np.sum(p.mean(), axis=1), 1.0, atol=1e-5)
    assert (information > -1e-5).all()
    assert (information <= entropy + 1e-5).all()
    assert (entropy <= np.log(classes) + 1e-5).all()
