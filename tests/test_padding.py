"""Padded positions count nowhere, whatever labels stand there; and what does not fit is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.model.answer_state import set_calibration
from tfp_rank1.model.calibration import Calibration
from tfp_rank1.predictive.mixture import PredictiveMixture

ROWS, STEPS, TOKENS, CLASSES = 40, 5, 9, 3
RNG = np.random.default_rng(0)
X = RNG.integers(1, TOKENS, (ROWS, STEPS))
X[:, 3:] = 0
KEPT = X != 0
Y = X % CLASSES
JUNK = np.where(KEPT, Y, (Y + 1) % CLASSES)  # other labels where nothing counts


def tagger(method="stock"):
    inputs = keras.Input((STEPS,), dtype="int32")
    h = keras.layers.Embedding(TOKENS, 4, mask_zero=True)(inputs)
    if method == "bali":
        outputs = bk.layers.DenseBali(CLASSES)(h)
        model = bk.BaliModel(inputs, outputs, likelihood="categorical")
    elif method == "rank1":
        with r1.members(2):
            h = r1.layers.DenseRank1(CLASSES)(r1.layers.TileMembers()(h))
            outputs = r1.layers.SplitMembers()(h)
        model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    else:
        model = r1.BayesianModel(inputs, keras.layers.Dense(CLASSES)(h), likelihood="categorical")
    model.compile(optimizer=keras.optimizers.Adam(0.05))
    return model


@pytest.fixture(scope="module")
def model():
    found = tagger()
    found.fit(X, Y, epochs=4, verbose=0)
    return found


@pytest.mark.parametrize("method", ["stock", "rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_calibration_counts_no_padding(method, tmp_path):
    """Neither while it is found, nor in the answers that it changes."""
    model = tagger(method)
    model.fit(X, Y, epochs=4, verbose=0)
    p = model.posterior_predictive(X, 32, seed=0)
    report = model.calibrate(X, Y, verbose=0)
    set_calibration(model, Calibration())
    other = model.calibrate(X, JUNK, verbose=0)
    assert report.nll_before == pytest.approx(-p.log_prob(Y).numpy().mean(), rel=0.05)
    assert other.nll_after == pytest.approx(report.nll_after)
    assert other.temperature == pytest.approx(report.temperature, rel=0.01)
    set_calibration(model, Calibration(1.0, 1.7))
    p = model.posterior_predictive(X, 4, seed=1)
    np.testing.assert_array_equal(p.log_prob(Y), p.log_prob(JUNK))
    assert model.evaluate(X, Y, verbose=0) == model.evaluate(X, JUNK, verbose=0)
    model.conformalize(X, Y)
    assert f"{KEPT.sum()} examples" in repr(model.conformal)
    model.save(tmp_path / "model.keras")
    p = keras.models.load_model(tmp_path / "model.keras").posterior_predictive(X, 4, seed=1)
    np.testing.assert_array_equal(p.log_prob(Y), p.log_prob(JUNK))


@pytest.mark.parametrize("metric", [r1.metrics.OODAUROC, r1.metrics.OODAUPR, r1.metrics.FPR95])
def test_metrics_of_scores_count_no_padding(metric, model):
    p = model.posterior_predictive(X, 4, seed=0)
    is_out = (X > 4).astype("float32")
    found, expected = metric(), metric()
    found.update_state(is_out, p)
    by_position = np.moveaxis(p.outputs.numpy(), 1, -2)[KEPT]  # [kept, samples, classes]
    flat = PredictiveMixture(p.likelihood, tf.constant(by_position), axis=1)
    expected.update_state(is_out[KEPT], flat)
    assert float(found.result()) == pytest.approx(float(expected.result()))
    weighted = metric()
    weighted.update_state(is_out, p, sample_weight=np.ones((ROWS, STEPS, 1)))
    assert float(weighted.result()) == pytest.approx(float(expected.result()))
    r1.plots.ood_histogram(p, p)
    assert r1.plots.ood_roc(p, p).get_legend_handles_labels()[1][0].endswith("0.500")


class Wide(keras.layers.Layer):
    """Two outputs for every token, which leaves the mask of the tokens."""

    def __init__(self, every=1, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking, self.every = True, every
        self.dense = keras.layers.Dense(2 * CLASSES)

    def call(self, x):
        steps = -(-STEPS // self.every)
        return keras.ops.reshape(self.dense(x)[:, :: self.every], (-1, steps, 2, CLASSES))


def test_a_mask_of_tokens_holds_for_all_that_is_made_of_them():
    inputs = keras.Input((STEPS,), dtype="int32")
    h = keras.layers.Embedding(TOKENS, 4, mask_zero=True)(inputs)
    model = r1.BayesianModel(inputs, Wide()(h), likelihood="categorical")
    model.compile("adam")
    y = RNG.integers(0, CLASSES, (ROWS, STEPS, 2))
    junk = np.where(KEPT[..., None], y, (y + 1) % CLASSES)
    assert model.evaluate(X, y, verbose=0) == model.evaluate(X, junk, verbose=0)
    model = r1.BayesianModel(inputs, Wide(every=2)(h), likelihood="categorical")
    model.compile("adam")
    with pytest.raises(
        ValueError, match=r"compute_mask.*\(None, 5\) for outputs of shape \(None, 1, 3, 2, 3\)"
    ):
        model.fit(X, y[:, ::2], verbose=0)


@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS, 3), (ROWS, 1, CLASSES)])
@pytest.mark.parametrize("method", ["stock", "bali"])
def test_labels_of_other_positions_are_refused(shape, method, model):
    """One label for all positions would be repeated, and some would pair with the wrong ones."""
    wrong = np.zeros(shape, "int32")
    if len(shape) == 3:
        wrong[..., 0] = 1
    if method == "bali":
        model = tagger("bali")
        model.fit(X, Y, verbose=0)
    weights = [v for layer in model.layers for v in layer.weights]
    before = [np.array(v) for v in weights]
    datasets = tf.data.Dataset.from_tensor_slices((X, wrong)).batch(8)
    match = r"\[batch, 5, 1\] or \[batch, 5\].*Received"
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=match):
            call(X, wrong, verbose=0)
        with pytest.raises(ValueError, match=match):
            call(datasets, verbose=0)
    for call in (model.calibrate, model.conformalize):
        with pytest.raises(ValueError, match=match):
            call(X, wrong)
    p = model.posterior_predictive(X, 2)
    with pytest.raises(ValueError, match=match):
        p.log_prob(wrong)
    with pytest.raises(ValueError, match=match):
        r1.metrics.PredictiveNLL().update_state(wrong, p)
    for ours, old in zip(weights, before, strict=True):
        np.testing.assert_array_equal(ours, old)


def test_labels_of_positions_of_unknown_number_are_refused():
    inputs = keras.Input((None, 2))
    model = r1.BayesianModel(inputs, keras.layers.Dense(1)(inputs), likelihood="normal")
    model.compile("sgd")
    x = np.zeros((8, 4, 2), "float32")
    for shape in ((8, 1), (8, 1, 1), (8, 3)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="targets must have"):
            model.fit(x, np.ones(shape, "float32"), verbose=0)
    assert np.isfinite(model.fit(x, np.ones((8, 4), "float32"), verbose=0).history["loss"]).all()


def test_groups_are_of_examples_or_positions(model):
    groups = X > 4
    model.conformalize(X, Y, groups=groups)
    p = model.posterior_predictive(X, 2)
    for call in (
        lambda: model.conformalize(X, Y, groups=groups.T),
        lambda: p.prediction_set(0.9, groups=groups.T),
    ):
        with pytest.raises(ValueError, match=r"`groups`.*\[40\].*\[40, 5\].*\(5, 40\)"):
            call()


def test_sets_and_intervals_of_positions_are_counted(model):
    model.conformalize(X, Y)
    p = model.posterior_predictive(X, 2)
    sets = np.asarray(p.prediction_set(0.9))
    coverage, size = r1.metrics.Coverage(), r1.metrics.SetSize()
    coverage.update_state(Y, sets, sample_weight=KEPT)
    size.update_state(Y, sets, sample_weight=KEPT)
    inside = np.take_along_axis(sets, Y[..., None], -1)[..., 0]
    assert float(coverage.result()) == pytest.approx(inside[KEPT].mean())
    assert float(size.result()) == pytest.approx(sets.sum(-1)[KEPT].mean())
    y, low = RNG.normal(size=(6, STEPS)).astype("float32"), np.zeros((6, STEPS, 1), "float32")
    coverage = r1.metrics.Coverage()
    coverage.update_state(y, (low, low + 1.0))
    assert float(coverage.result()) == pytest.approx(((y >= 0.0) & (y <= 1.0)).mean())


def test_three_axes_of_positions():
    """TensorFlow's softmax takes five axes at most on a CPU; these have six."""
    inputs = keras.Input((2, 3, 2, 4))
    with r1.members(2):
        h = r1.layers.DenseRank1(3)(r1.layers.TileMembers()(inputs))
        outputs = r1.layers.SplitMembers()(h)
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    x = RNG.normal(size=(4, 2, 3, 2, 4)).astype("float32")
    p = model.posterior_predictive(x, 3, seed=0)
    raw = np.asarray(p.outputs, "float64")
    expected = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    np.testing.assert_allclose(p.mean(), expected.mean(1), rtol=1e-5)
    assert p.variance().shape == (4, 2, 3, 2, 3) and p.entropy().shape == (4, 2, 3, 2)
    streamed = model.posterior_predictive(x, 3, seed=0, reduce="moments")
    np.testing.assert_allclose(streamed.mean(), p.mean(), rtol=1e-5)


def test_weights_may_have_another_rank_in_the_next_call(model):
    for shape in ((ROWS,), (ROWS, STEPS), (ROWS, STEPS, 1)):
        found = model.evaluate(X, Y, sample_weight=np.ones(shape), verbose=0, return_dict=True)
        assert np.isfinite(found["loss"])


def test_a_functional_model_keeps_the_names_of_its_outputs():
    inputs = keras.Input((3,))
    heads = {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(1)(inputs)}
    functional = keras.Model(inputs, heads)
    model = r1.BayesianModel(functional, likelihood={"a": "categorical", "b": "normal"})
    model.compile("adam")
    x = np.ones((8, 3), "float32")
    y = {"a": np.zeros(8, "int32"), "b": np.zeros((8, 1), "float32")}
    assert "b_loss" in model.fit(x, y, verbose=0).history
    assert set(model.posterior_predictive(x, 2)) == {"a", "b"}
    with pytest.raises(ValueError, match=r"targets for every output.*None for output 'b'"):
        model.fit(x, {**y, "b": None}, verbose=0)
    single = r1.BayesianModel([inputs], [heads["a"]], likelihood=["categorical"])
    assert isinstance(single.likelihood, r1.likelihoods.Categorical)


def test_weights_of_two_outputs_have_one_length():
    inputs = keras.Input((3,))
    outputs = {"a": bk.layers.DenseBali(3)(inputs), "b": bk.layers.DenseBali(1)(inputs)}
    model = bk.BaliModel(inputs, outputs, likelihood={"a": "categorical", "b": "normal"})
    model.compile()
    y = {"a": np.zeros(8, "int32"), "b": np.zeros((8, 1), "float32")}
    with pytest.raises(ValueError, match=r"`sample_weight`.*\(7,\), \(8,\)"):
        weights = {"a": np.ones(7), "b": np.ones(8)}
        model.fit(np.ones((8, 3), "float32"), y, sample_weight=weights, verbose=0)
