"""Targets that are missing, and weights of single targets."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.target_weights import split_weights, weights_by_example, weights_by_target

LK = r1.likelihoods
pytestmark = pytest.mark.filterwarnings("ignore:.*targets are NaN. they count as missing")
RNG = np.random.default_rng(0)
N = 64
X = RNG.normal(size=(N, 3)).astype("float32")
Y = np.stack([X[:, 0], 10 + X[:, 1]], 1) + 0.1 * RNG.normal(size=(N, 2))
Y = Y.astype("float32")
SEEN = RNG.random((N, 2)) < 0.6
SEEN[0] = True, False
SEEN[1] = False, False


def linear(likelihood, outputs=2, seed=0, **compile_arguments):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    with r1.members(2):
        h = r1.layers.DenseRank1(outputs)(r1.layers.TileMembers()(inputs))
        h = r1.layers.SplitMembers()(h)
    model = r1.BayesianModel(inputs, h, likelihood=likelihood)
    model.compile(keras.optimizers.Adam(0.05), **compile_arguments)
    return model


def bali(likelihood, outputs=2, hidden=0, **compile_arguments):
    keras.utils.set_random_seed(0)
    h = inputs = keras.Input((3,))
    if hidden:
        h = bk.layers.DenseBali(hidden, activation="tanh")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(outputs)(h), likelihood=likelihood)
    model.compile(**compile_arguments)
    return model


def test_weights_have_two_forms():
    ones = np.ones(4, "float32")
    examples, targets = split_weights(ones, 3)
    assert examples.shape == (4,) and targets is None
    examples, targets = split_weights(ones[:, None], 3)
    assert examples.shape == (4,) and targets is None
    examples, targets = split_weights(np.ones((4, 3)), 3)
    assert examples is None and targets.shape == (4, 3)
    with pytest.raises(ValueError, match=r"""or one per target, \[.batch., 3\]. Received: shape"""):
        split_weights(np.ones((4, 2)), 3)
    observed = tf.constant([[True, False], [True, True]])
    np.testing.assert_allclose(weights_by_target([2.0, 3.0], observed), [[2, 0], [3, 3]])
    np.testing.assert_allclose(
        weights_by_target([[2.0, 1.0], [3.0, 0.5]], observed), [[2, 0], [3, 0.5]]
    )
    np.testing.assert_allclose(weights_by_example([2.0, 3.0], observed), [0, 3])


@pytest.mark.parametrize("loss", ["average_nll", "mixture_nll"])
def test_the_loss_counts_what_is_observed(loss):
    """Also for as many examples as targets, where shapes alone would not tell."""
    model = linear(LK.Normal(scale=1.0))
    model.compile("adam", loss, evaluation_samples=2)
    outputs = np.asarray(model(X[:2], training=False))
    y, w = Y[:2], np.array([[1.0, 0.0], [0.5, 2.0]], "float32")
    log_p = -0.5 * (y[:, None] - outputs) ** 2 - 0.5 * np.log(2 * np.pi)
    weighted = (w[:, None] * log_p).sum(-1)
    loss = r1.losses.NAMES[loss](LK.Normal(scale=1.0))
    by_member = -weighted.mean(1)
    mixture = -np.log(np.exp(weighted).mean(1))
    expected = by_member if loss.name == "average_nll" else mixture
    assert float(loss(y, outputs, w)) == pytest.approx(expected.mean(), rel=1e-5)
    missing = np.where(w > 0, y, np.nan)
    only = np.array([[1.0, 1.0], [0.5, 2.0]], "float32")
    assert float(loss(missing, outputs, only)) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "mode", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow), {"run_eagerly": True}]
)
@pytest.mark.parametrize("make", [linear, bali])
def test_missing_targets_are_weights_of_zero(make, mode):
    """NaN and any value of weight 0 are the same, where an example has a target at all."""
    fits = {}
    seen = np.where(SEEN.any(1, keepdims=True), SEEN, True)
    for name, y, weights in (
        ("missing", np.where(seen, Y, np.nan), None),
        ("weights", np.where(seen, Y, 1e3), seen.astype("float32")),
    ):
        model = make(LK.Normal(), **mode)
        model.num_train_examples = N
        logs = model.fit(X, y, sample_weight=weights, epochs=3, shuffle=False, verbose=0).history
        fits[name] = [*model.get_weights(), *(np.array(logs[k]) for k in ("loss", "nll"))]
        assert np.isfinite(logs["nll"]).all() and not any(logs["refused"])
    for a, b in zip(*fits.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bali_with_missing_targets_is_the_regression_of_each_target():
    """The mean of every target solves the normal equations of the rows in which it is observed."""
    noise, p = 0.3, 0.02
    model = bali(LK.Normal(scale=noise), forgetting=0.2, warmup_steps=0, prior_row_precision=p)
    y = np.where(SEEN, Y, np.nan)
    model.fit(X, y, batch_size=N, epochs=300, verbose=0)
    h = np.c_[X, np.ones(N)].astype("float64")
    mean = np.asarray(model.bali_layers[0].posterior_state.mean)
    for t in range(2):
        seen = h[SEEN[:, t]]
        exact = np.linalg.solve(
            p * np.eye(4) + seen.T @ seen, seen.T @ Y[SEEN[:, t], t].astype("float64")
        )
        np.testing.assert_allclose(mean[:, t], exact, rtol=2e-3, atol=2e-3)


def test_bali_with_one_target_drops_the_examples_without_it():
    """One target: the posterior of the observed rows alone, exactly."""
    seen = SEEN[:, 0]
    for likelihood in (LK.Normal(scale=0.3), LK.Normal()):
        exact, found = (bali(type(likelihood).from_config(likelihood.get_config()), 1,
                             forgetting=1.0 if likelihood.fixed_scale else 0.1, warmup_steps=0)
                        for _ in range(2))  # fmt: skip
        exact.num_train_examples = int(seen.sum())
        exact.fit(X[seen], Y[seen, :1], batch_size=N, epochs=40, verbose=0)
        found.num_train_examples = N
        found.fit(X, np.where(SEEN, Y, np.nan)[:, :1], batch_size=N, epochs=40, verbose=0)
        a, b = exact.bali_layers[0], found.bali_layers[0]
        np.testing.assert_allclose(a.posterior_state.mean, b.posterior_state.mean, rtol=1e-3)
        for x in (X[:1], X[1:2]):
            widths = [m.posterior_predictive(x).epistemic_variance() for m in (exact, found)]
            np.testing.assert_allclose(*widths, rtol=2e-3 if likelihood.fixed_scale else 2e-2)


@pytest.mark.parametrize("make", [linear, pytest.param(bali, marks=pytest.mark.slow)])
def test_learned_noise_is_that_of_the_observed_targets(make):
    y = np.stack([X[:, 0] + 0.1 * RNG.normal(size=N), X[:, 1] + RNG.normal(size=N)], 1)
    model = make(LK.Normal())
    model.fit(X, np.where(SEEN, y, np.nan), epochs=200, batch_size=32, verbose=0)
    residuals = np.where(SEEN, y - model.predict(X, verbose=0), np.nan)
    expected = np.sqrt(np.nanmean(residuals**2, axis=0))
    found = np.asarray(model.likelihood.scale)
    assert np.all((found > 0.7 * expected) & (found < 2.0 * expected)), (found, expected)
    assert found[1] > 3 * found[0]


HEADS = {
    "normal": (LK.Normal, 2),
    "heteroscedastic": (LK.HeteroscedasticNormal, 4),
    "student_t": (LK.StudentT, 2),
    "laplace": (LK.Laplace, 2),
    "log_normal": (LK.LogNormal, 2),
    "poisson": (LK.Poisson, 2),
    "negative_binomial": (LK.NegativeBinomial, 2),
    "bernoulli": (LK.Bernoulli, 2),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_likelihood_leaves_missing_targets_out(name):
    """The sum over the observed targets, and a gradient without NaN."""
    likelihood, size = HEADS[name][0](), HEADS[name][1]
    outputs = tf.Variable(RNG.normal(size=(3, 1, size)).astype("float32"))
    likelihood(outputs)  # builds a learned scale
    whole = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], "float32")
    whole += float(name == "log_normal")
    missing = np.array([[False, False], [True, False], [True, True]])
    with tf.GradientTape() as tape:
        y = likelihood.prepare_targets(np.where(missing, np.nan, whole), size)
        found = likelihood.log_prob(outputs, y[:, None])
    single = likelihood.distribution(outputs).log_prob(whole[:, None])
    np.testing.assert_allclose(
        found, np.where(missing[:, None], 0.0, single).sum(-1), rtol=1e-5, atol=1e-6
    )
    assert np.isfinite(tape.gradient(found, outputs)).all()


@pytest.mark.parametrize("ignored", [-1, 255, 0])
@pytest.mark.parametrize("make", [linear, bali])
def test_a_class_that_stands_for_missing(make, ignored):
    labels = np.digitize(X[:, 0], [-0.4, 0.4])
    y = np.where(SEEN[:, 0], labels, ignored)
    seen = y != ignored
    model = make(LK.Categorical(ignore_class=ignored), 3, metrics=[
        "accuracy", r1.metrics.ExpectedCalibrationError(), r1.metrics.BrierScore(),
        r1.metrics.PredictiveNLL(), keras.metrics.SparseCategoricalCrossentropy(name="ce"),
    ])  # fmt: skip
    model.fit(X, y, epochs=3, verbose=0)
    found = model.evaluate(X, y, verbose=0, return_dict=True)
    kept = model.evaluate(X[seen], y[seen], verbose=0, return_dict=True)
    for name in ("accuracy", "ece", "brier", "predictive_nll", "ce"):
        assert found[name] == pytest.approx(kept[name], rel=1e-4), name
    assert found["nll"] == pytest.approx(kept["nll"] * seen.mean(), rel=1e-4)
    with pytest.raises(ValueError, match="ignore_class"):
        make(LK.Categorical(), 3).fit(X, np.full(N, -1), verbose=0)
    with pytest.raises(ValueError, match="whole number that stands"):
        LK.Categorical(ignore_class="unknown")


def test_metrics_leave_missing_targets_out():
    y = np.where(SEEN, Y, np.nan)
    model = linear(LK.Normal(scale=0.5), metrics=[
        r1.metrics.RootMeanSquaredError(), r1.metrics.IntervalCoverage(), r1.metrics.CRPS(),
        r1.metrics.IntervalWidth(),
    ])  # fmt: skip
    model.fit(X, y, epochs=60, verbose=0)
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    residual = (Y - model.predict(X, verbose=0))[SEEN]
    assert logs["rmse"] == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-4)
    assert 0.0 < logs["crps"] < logs["rmse"] and np.isfinite(logs["interval_width"])
    metric = r1.metrics.IntervalCoverage(likelihood=LK.Normal(scale=0.5))
    outputs = tf.convert_to_tensor(model(X))
    metric.update_state(np.where(SEEN, outputs[:, 0], np.nan), outputs[:, :1])
    assert float(metric.result()) == 1.0
    single = linear(LK.Normal(scale=0.5), 1, metrics=["mae"])
    single.fit(X, y[:, :1], epochs=2, verbose=0)
    error = np.abs(Y[:, :1] - single.predict(X, verbose=0))[SEEN[:, 0]].mean()
    assert single.evaluate(X, y[:, :1], verbose=0, return_dict=True)["mae"] == pytest.approx(
        error, rel=1e-4
    )


def test_metrics_of_keras_leave_missing_targets_out():
    """One by one where they are means over targets; NaN, and never 0, where nothing counts."""
    y = np.where(SEEN, Y, np.nan)
    scores = [
        "mae",
        keras.metrics.RootMeanSquaredError(name="rms"),
        keras.metrics.LogCoshError(name="cosh"),
        keras.metrics.R2Score(name="r2"),
    ]
    model = linear(LK.Normal(scale=0.5), metrics=scores)
    model.fit(X, y, epochs=60, verbose=0)
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    mean = model.predict(X, verbose=0)
    error = (Y - mean)[SEEN]
    assert logs["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert logs["rms"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert logs["cosh"] == pytest.approx(np.log(np.cosh(error)).mean(), rel=1e-3)
    whole = SEEN.all(1)
    ratio = ((Y - mean)[whole] ** 2).sum(0) / ((Y - Y[whole].mean(0))[whole] ** 2).sum(0)
    assert logs["r2"] == pytest.approx((1 - ratio).mean(), rel=1e-3)
    one = np.arange(2) == np.arange(N)[:, None] % 2  # every example lacks a target
    logs = model.evaluate(X, np.where(one, Y, np.nan), verbose=0, return_dict=True)
    assert logs["mae"] == pytest.approx(np.abs((Y - mean)[one]).mean(), rel=1e-4)
    assert np.isnan(logs["r2"])


def test_weights_per_target_weigh_metrics_of_keras():
    weights = np.where(SEEN, RNG.uniform(0.5, 2.0, (N, 2)), 0.0).astype("float32")
    y = np.where(SEEN, Y, -999.0)
    model = linear(LK.Normal(scale=0.5), weighted_metrics=[keras.metrics.MeanAbsoluteError("mae")])
    model.fit(X, y, sample_weight=weights, epochs=2, verbose=0)
    logs = model.evaluate(X, y, sample_weight=weights, verbose=0, return_dict=True)
    error = np.abs(Y - model.predict(X, verbose=0))
    assert logs["mae"] == pytest.approx(np.average(error, weights=weights), rel=1e-4)


def test_nothing_observed_is_refused():
    with pytest.raises(ValueError, match="none of them observed"):
        linear(LK.Normal()).fit(X, np.full((N, 2), np.nan), verbose=0)


def test_missing_targets_are_saved_and_replicated(tmp_path, strategy):
    y = np.where(SEEN, Y, np.nan)
    results = []
    for scope in (tf.distribute.get_strategy(), strategy):
        with scope.scope():
            model = bali(LK.Normal())
            model.seed_generator.state.assign([3, 0])
        model.fit(X, y, batch_size=32, epochs=3, shuffle=False, verbose=0)
        results.append(model.evaluate(X, y, verbose=0, return_dict=True))
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    model = linear(LK.Categorical(ignore_class=-1), 3)
    model.fit(X, np.where(SEEN[:, 0], 1, -1), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.likelihood.ignore_class == -1
