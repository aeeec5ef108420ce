"""Outputs with positions (pixels, time steps) between the examples and the outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import conjugate, linear_data

import bali_keras as bk
import tfp_rank1 as r1

STEPS, INPUTS = 5, 3
LIKELIHOODS = "categorical", "normal", "bernoulli"
TARGETS = {"categorical": 3, "normal": 2, "bernoulli": 1}


def net(method, likelihood, positions=(STEPS,), **kwargs):
    """Dense layers, the same at every position."""
    inputs = keras.Input((*positions, INPUTS))
    outputs = TARGETS[likelihood]
    if method == "bali":
        h = bk.layers.DenseBali(4, activation="tanh")(inputs)
        return bk.BaliModel(inputs, bk.layers.DenseBali(outputs)(h), likelihood=likelihood)
    with r1.members(2):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(4, activation="tanh")(h)
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(outputs)(h))
    return r1.BayesianModel(inputs, h, likelihood=likelihood)


def data(likelihood, rows=24, positions=(STEPS,), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, *positions, INPUTS)).astype("float32")
    if likelihood == "categorical":
        return x, (x[..., 0] > 0).astype("int32") + (x[..., 1] > 1)
    if likelihood == "bernoulli":
        return x, (x[..., :1] > 0).astype("float32")
    return x, x[..., :2] + 0.1 * rng.normal(size=(*x.shape[:-1], 2)).astype("float32")


def compiled(model, **kwargs):
    arguments = {} if isinstance(model, bk.BaliModel) else {"optimizer": "adam"}
    model.compile(**arguments, **kwargs)
    return model


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_answers_have_the_positions(method, likelihood):
    x, y = data(likelihood)
    model = compiled(net(method, likelihood))
    model.fit(x, y, epochs=3, batch_size=8, verbose=0)
    p = model.posterior_predictive(x, 4, seed=1)
    shape = (24, STEPS, TARGETS[likelihood])
    assert p.mean().shape == p.variance().shape == p.epistemic_variance().shape == shape
    assert p.entropy().shape == p.mutual_information().shape == (24, STEPS)
    assert p.log_prob(y).shape == (24,)
    assert model.predict(x, verbose=0).shape == shape
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isfinite(list(found.values())).all()
    streamed = model.posterior_predictive(x, 4, seed=1, reduce="moments", batch_size=24)
    np.testing.assert_allclose(streamed.mean(), p.mean(), atol=1e-6)
    assert streamed.variance().shape == shape


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_one_position_is_as_good_as_none(method, likelihood):
    x, y = data(likelihood, positions=())
    keras.utils.set_random_seed(3)
    without = compiled(net(method, likelihood, positions=()))
    keras.utils.set_random_seed(3)
    with_one = compiled(net(method, likelihood, positions=(1,)))
    with_one.set_weights(without.get_weights())
    found = []
    for model, inputs, targets in ((without, x, y), (with_one, x[:, None], y[:, None])):
        keras.utils.set_random_seed(5)
        model.seed_generator.state.assign([1, 2])
        history = model.fit(inputs, targets, epochs=2, batch_size=8, shuffle=False, verbose=0)
        p = model.posterior_predictive(inputs, 4, seed=2)
        found.append([history.history["loss"], np.squeeze(p.mean()), p.log_prob(targets)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_linear_net_is_regression_on_the_unrolled_rows():
    x, y = linear_data(rows=60)
    inputs = keras.Input((6, 3))
    outputs = bk.layers.DenseBali(2)(inputs)
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal(scale=0.3))
    model.compile(forgetting=1.0, warmup_steps=0, prior_row_precision=3.0, factorise_every=1)
    xs, ys = x.reshape(10, 6, 3), y.reshape(10, 6, 2)
    model.fit(xs, ys, batch_size=10, shuffle=False, verbose=0)
    mean, row_covariance = conjugate(x, y, 3.0)
    np.testing.assert_allclose(model.bali_layers[0].posterior.mean(), mean, atol=1e-5)
    h = np.c_[x, np.ones(60)]
    epistemic = 0.09 * np.einsum("nd,de,ne->n", h, row_covariance, h).reshape(10, 6, 1)
    p = model.posterior_predictive(xs, num_samples=2)
    np.testing.assert_allclose(p.mean(), (h @ mean).reshape(10, 6, 2), atol=1e-5)
    np.testing.assert_allclose(p.epistemic_variance(), epistemic + np.zeros((2,)), rtol=1e-4)
    density = -0.5 * (ys - p.mean()) ** 2 / p.variance() - 0.5 * np.log(2 * np.pi * p.variance())
    np.testing.assert_allclose(p.log_prob(ys), density.sum((1, 2)), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:96 of 240 targets are NaN")
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_a_position_of_weight_zero_counts_nowhere(method):
    x, y = data("normal")
    weights = np.ones((24, STEPS), "float32")
    weights[:, 3:] = 0.0
    missing, other = y.copy(), y.copy()
    missing[:, 3:] = np.nan
    other[:, 3:] += 100.0
    found = []
    for targets, sample_weight in ((y, weights), (other, weights), (missing, None)):
        keras.utils.set_random_seed(1)
        model = compiled(
            net(method, "normal"), weighted_metrics=[r1.metrics.RootMeanSquaredError()]
        )
        history = model.fit(
            x,
            targets,
            sample_weight=sample_weight,
            epochs=2,
            batch_size=8,
            shuffle=False,
            verbose=0,
        ).history
        learned = [model.predict(x, verbose=0)]
        found.append([history["nll"], history["rmse"], *learned])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_metrics_count_positions():
    x, y = data("categorical")
    model = compiled(net("rank1", "categorical"))
    model.fit(x, y, verbose=0)
    p = model.posterior_predictive(x, 4, seed=1)
    flat = r1.PosteriorPredictive(tf.reshape(p.samples, [4, -1, 3]), model.likelihood)
    metrics = r1.metrics
    for make in (
        metrics.Accuracy,
        metrics.ExpectedCalibrationError,
        metrics.AdaptiveCalibrationError,
        metrics.BrierScore,
        metrics.AURC,
        metrics.MemberDisagreement,
    ):
        found = []
        for labels, answers in ((y, p), (y.ravel(), flat)):
            metric = make()
            for half in (slice(0, 12), slice(12, 24)):  # streaming
                part = half if labels.ndim == 2 else slice(half.start * STEPS, half.stop * STEPS)
                samples = answers.samples[:, part]
                some = r1.PosteriorPredictive(samples, model.likelihood)
                metric.update_state(labels[part], some)
            found.append(float(metric.result()))
        assert found[0] == pytest.approx(found[1], rel=1e-6), make
    is_out = y > 0
    metric = metrics.OODAUROC()
    metric.update_state(is_out, p)
    other = metrics.OODAUROC()
    other.update_state(is_out.ravel(), flat)
    assert float(metric.result()) == pytest.approx(float(other.result()))
    by_keras = keras.metrics.MeanIoU(3, sparse_y_pred=False)
    by_keras.update_state(y, p.mean())
    ours = metrics.on_predictive_mean(keras.metrics.MeanIoU(3, sparse_y_pred=False))
    ours.bind(model.likelihood)
    ours.update_state(y, p)
    assert float(ours.result()) == pytest.approx(float(by_keras.result()))


@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_targets_of_another_shape_are_named(method):
    x, y = data("categorical")
    model = compiled(net(method, "categorical"))
    before = [np.array(v) for v in model.trainable_weights]
    with pytest.raises(ValueError, match=r"targets must have shape \[batch, 5, 1\]"):
        model.fit(x, y[:, 0], verbose=0)
    with pytest.raises(ValueError, match=r"`sample_weight`.*one per position"):
        model.fit(x, y, sample_weight=np.ones((24, STEPS + 1)), verbose=0)
    for ours, theirs in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "likelihood", ["categorical", "normal", pytest.param("bernoulli", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_files_clones_and_services_answer_alike(method, likelihood, tmp_path):
    x, y = data(likelihood)
    model = compiled(net(method, likelihood))
    model.fit(x, y, epochs=2, verbose=0)
    model.calibrate(x, y, verbose=0)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    name = "mean" if likelihood == "normal" else "probs"
    model.export_predictive(str(tmp_path / "served"), num_samples=64)
    served = tf.saved_model.load(str(tmp_path / "served"))
    answer = served.serve(tf.constant(x[:5]))
    assert answer[name].shape == expected[:5].shape
    np.testing.assert_allclose(answer[name], expected[:5], atol=1.0)
    assert served.samples(tf.constant(x[:5]), 4).shape[1:] == (
        5,
        *expected.shape[1:-1],
        TARGETS[likelihood],
    )


def tagger(method):
    inputs = keras.Input((None,), dtype="int32")
    if method == "bali":
        h = keras.layers.Embedding(12, 6, mask_zero=True)(inputs)
        h = bk.layers.DenseBali(6, activation="tanh")(h)
        return bk.BaliModel(inputs, bk.layers.DenseBali(3)(h), likelihood="categorical")
    with r1.members(2):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.EmbeddingRank1(12, 6, mask_zero=True)(h)
        h = r1.layers.DenseRank1(6, activation="tanh")(h)
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(3)(h))
    return r1.BayesianModel(inputs, h, likelihood="categorical")


@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_padding_counts_nowhere(method):
    """Neither its labels nor its number change anything."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 12, (32, 6)).astype("int32")
    x[:16, 4:] = 0
    x[16:, 5:] = 0
    y = x % 3
    other = np.where(x == 0, 2, y)
    wider = [np.pad(v, [[0, 0], [0, 2]]) for v in (x, y)]
    found = []
    for inputs, labels in ((x, y), (x, other), wider):
        keras.utils.set_random_seed(2)
        model = tagger(method)
        model.compile("adam", metrics=["accuracy", r1.metrics.ExpectedCalibrationError()])
        model.fit(inputs, labels, epochs=2, batch_size=8, shuffle=False, verbose=0)
        scores = model.evaluate(inputs, labels, verbose=0, return_dict=True)
        p = model.posterior_predictive(inputs, 8, seed=1)
        found.append(np.r_[list(scores.values()), p.log_prob(labels)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    if method == "rank1":  # BALI draws for every row of a batch
        np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-5)


def test_conformal_sets_and_intervals_cover_positions():
    """Thresholds are those of all positions together, or of every step by itself."""
    x, y = data("categorical", rows=64)
    model = compiled(net("rank1", "categorical"))
    model.fit(x, y, epochs=2, verbose=0)
    model.conformalize(x[:32], y[:32], num_samples=8)
    p = model.posterior_predictive(x[32:], 8, seed=1)
    sets = p.prediction_set(coverage=0.9)
    assert sets.shape == (32, STEPS, 3)
    flat = r1.PosteriorPredictive(
        tf.reshape(p.samples, [8, -1, 3]), model.likelihood, conformal=model.conformal
    )
    np.testing.assert_array_equal(sets.reshape(-1, 3), flat.prediction_set(coverage=0.9))
    x, y = data("normal", rows=64)
    model = compiled(net("rank1", "normal"))
    model.fit(x, y, epochs=2, verbose=0)
    steps = np.tile(np.arange(STEPS), (32, 1))
    model.conformalize(x[:32], y[:32], groups=steps, num_samples=8)
    p = model.posterior_predictive(x[32:], 8, seed=1)
    low, high = p.prediction_interval(coverage=0.8, groups=steps)
    assert low.shape == high.shape == (32, STEPS, 2)
    assert (low < high).all()


def test_ranks_and_plots_take_every_position():
    x, y = data("categorical")
    model = compiled(net("rank1", "categorical"))
    model.fit(x, y, verbose=0)
    p = model.posterior_predictive(x, 8, seed=1)
    flat = r1.PosteriorPredictive(tf.reshape(p.samples, [8, -1, 3]), model.likelihood)
    rules = [
        r1.metrics.abstention_threshold(answers, labels, risk=0.9)
        for answers, labels in ((p, y), (flat, y.ravel()))
    ]
    assert rules[0] == rules[1]
    r1.plots.reliability_diagram(y, p)
    r1.plots.risk_coverage(y, p)
    x, y = data("normal")
    model = compiled(net("rank1", "normal"))
    model.fit(x, y, verbose=0)
    r1.plots.calibration_curve(y, model.posterior_predictive(x, 8, seed=1))
