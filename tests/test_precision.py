"""Half precision against float32 on real data, and statistics in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data, net
from conftest import small_classifier
from shared_data import mean_and_error

import bali_keras as bk
import tfp_rank1 as r1


def bali():
    model = net(64, (64,), 10, "categorical", "relu")
    model.compile()
    return model, {"batch_size": 32, "epochs": 10}


def rank1():
    model = small_classifier(units=64)
    model.compile(keras.optimizers.Adam(3e-3))
    return model, {"batch_size": 64, "epochs": 15}


@pytest.mark.slow
@pytest.mark.parametrize("make", [bali, rank1])
def test_precisions_agree_on_digits(make, digits):
    """Accuracy and NLL on half of the digits, three seeds."""
    x, y, x_test, y_test = digits
    found = {}
    for policy in ("float32", "mixed_bfloat16", "mixed_float16", "float64"):
        keras.config.set_dtype_policy(policy)
        scores = []
        for seed in range(3):
            keras.utils.set_random_seed(seed)
            model, arguments = make()
            model.fit(x, y, verbose=0, **arguments)
            p = model.posterior_predictive(x_test, num_samples=32, seed=0)
            accuracy = np.mean(np.argmax(p.mean(), axis=1) == y_test)
            scores.append((accuracy, -np.mean(p.log_prob(y_test))))
        found[policy] = np.mean(scores, axis=0)
        accuracies, nlls = zip(*scores, strict=True)
        print(f"\n{make.__name__}, {policy}: accuracy {mean_and_error(accuracies)}, "
              f"NLL {mean_and_error(nlls)}")  # fmt: skip
    for accuracy, nll in found.values():
        assert abs(accuracy - found["float32"][0]) < 0.01
        assert abs(nll - found["float32"][1]) < 0.02


@pytest.fixture
def everything_float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


def test_everything_in_float64(everything_float64):
    """With penalties, whose dtype is that of the kernels; KLs stay float32."""
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
    model = r1.models.mlp((3,), 2, hidden=(4,), l2=1e-2)
    model.compile(keras.optimizers.SGD(0.0), kernel_precision=0.0)
    logs = model.fit(x, y, verbose=0).history
    weights = model.slow_weights
    assert {w.dtype for w in weights} == {"float64"}
    penalty = sum(1e-2 * np.sum(np.square(w)) for w in weights)
    np.testing.assert_allclose(logs["loss"][0] - logs["nll"][0] - logs["kl"][0], penalty, rtol=1e-4)
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, r1.layers.DenseRank1(1, kl_weight=0.1)(inputs))
    plain.compile("sgd", "mse")
    assert np.isfinite(plain.train_on_batch(x, y[:, None]))


def offset_data():
    """Inputs whose mean is ten thousand times their spread."""
    x, y = linear_data(rows=300)
    return x + 1e4, y


def test_float64_statistics_see_the_spread_beside_a_huge_offset():
    x, y = offset_data()
    x = x.astype("float64")
    inputs = keras.Input((3,), dtype="float64")
    model = bk.BaliModel(
        inputs,
        bk.layers.DenseBali(2, dtype="float64")(inputs),
        likelihood=r1.likelihoods.Normal(scale=0.3),
    )
    model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=1e-3)
    model.fit(x, y, batch_size=300, verbose=0)
    state = model.bali_layers[0].posterior_state
    assert state.mean.dtype == state.rows.covariance.dtype == "float64"
    mean, covariance = conjugate(x, y, 1e-3)
    h = np.c_[x, np.ones(300)]
    np.testing.assert_allclose(h @ np.array(state.mean), h @ mean, atol=1e-3)
    np.testing.assert_allclose(
        state.matrix_normal().row_variance(tf.constant(h)),
        np.einsum("ni,ij,nj->n", h, covariance, h),
        rtol=1e-3,
    )


@pytest.mark.parametrize("factorise_every", [None, 10])
def test_hidden_layers_with_float64_statistics_and_a_huge_offset(factorise_every):
    """Of inputs whose spread float32 loses in their second moments, no batch is refused."""
    x, y = offset_data()
    inputs = keras.Input((3,))
    arguments = {"statistics_dtype": "float64"}
    h = bk.layers.DenseBali(4, activation="relu", **arguments)(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2, **arguments)(h), likelihood="normal")
    model.compile(factorise_every=factorise_every)
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0).history
    assert not any(history["refused"])
    state = model.bali_layers[0].posterior_state
    assert np.linalg.eigvalsh(state.rows.average.value())[0] > 0.0
    assert bool(state.has_statistics())


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_float64_statistics_under_any_policy(policy, tmp_path):
    """Hidden and output layers, convolutions that sum over rows, a matrix prior, save and load."""
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((6, 6, 1))
    arguments = {"statistics_dtype": "float64"}
    h = bk.layers.Conv2DBali(2, 3, activation="relu", name="convolution", **arguments)(inputs)
    outputs = bk.layers.DenseBali(1, **arguments)(keras.layers.Flatten()(h))
    model = bk.BaliModel(inputs, outputs, likelihood="normal")
    model.compile(warmup_steps=0, prior_row_precision={"convolution": np.eye(10)})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6, 6, 1)).astype("float32")
    y, weights = x[:, 2, 2], rng.uniform(0.5, 2.0, 40)
    history = model.fit(x, y, sample_weight=weights, batch_size=16, epochs=3, verbose=0).history
    assert history["refused"] == [0.0, 0.0, 0.0]
    state = model.bali_layers[0].posterior_state
    assert {v.dtype for v in (state.mean, state.rows.factor, state.rows.average.total)} == {
        "float64"
    }
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_array_equal(loaded(x), model(x))
    p = model.posterior_predictive(x, num_samples=4)
    assert p.mean().dtype == np.float32
    assert np.isfinite(p.stddev()).all()


def test_other_dtypes_are_named():
    with pytest.raises(ValueError, match="statistics_dtype"):
        bk.layers.DenseBali(2, statistics_dtype="float16")


@pytest.mark.parametrize("optimizer", ["policy", "given"])
def test_an_optimizer_that_scales_the_loss(optimizer):
    """mixed_float16 wraps every optimizer in one; it steps only inside of a replica."""
    if optimizer == "policy":
        keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((3,))
    with r1.members(2):
        h = r1.layers.DenseRank1(4, activation="relu")(r1.layers.TileMembers()(inputs))
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(2)(h))
    model = r1.BayesianModel(inputs, h, likelihood="categorical")
    adam = keras.optimizers.Adam(0.01)
    scaled = adam if optimizer == "policy" else keras.optimizers.LossScaleOptimizer(adam)
    model.compile(scaled, auto_scale_loss=True)
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    before = [v.numpy() for v in model.trainable_variables]
    logs = model.fit(x, (x[:, 0] > 0).astype("int32"), epochs=3, verbose=0).history
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(logs["loss"]).all()
    pairs = zip(model.trainable_variables, before, strict=True)
    assert any((v.numpy() != old).any() for v, old in pairs)
