"""Metrics against scikit-learn, TFP and direct computation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import integrate, special, stats
from sklearn import metrics as sk

import tfp_rank1 as r1
from tfp_rank1.predictive.mixture import PredictiveMixture

M = r1.metrics
RNG = np.random.default_rng(0)
N, K, C = 600, 3, 5
LOGITS = RNG.normal(0, 2.0, size=(N, K, C)).astype("float32") + RNG.normal(
    0, 2.0, size=(N, 1, C)
).astype("float32")
LABELS = np.array([RNG.choice(C, p=p) for p in special.softmax(LOGITS.mean(1), axis=-1)])
PROBS = special.softmax(np.float64(LOGITS), axis=-1).mean(1)


def streamed(metric, y, outputs, sizes=(100, 37, 463)):
    """The result over uneven batches."""
    start = 0
    for size in sizes:
        metric.update_state(y[start : start + size], outputs[start : start + size])
        start += size
    return float(metric.result())


def test_classification_scores():
    assert streamed(M.Accuracy(), LABELS, LOGITS) == pytest.approx(
        sk.accuracy_score(LABELS, PROBS.argmax(1)), abs=1e-6
    )
    assert streamed(M.PredictiveNLL(likelihood="categorical"), LABELS, LOGITS) == pytest.approx(
        sk.log_loss(LABELS, PROBS), rel=1e-4
    )
    brier = ((PROBS - np.eye(C)[LABELS]) ** 2).sum(1).mean()
    assert streamed(M.BrierScore(), LABELS, LOGITS) == pytest.approx(brier, rel=1e-5)


def test_outputs_without_members_are_one_member():
    for cls in (M.Accuracy, M.BrierScore, M.ExpectedCalibrationError):
        flat, members = cls(), cls()
        flat.update_state(LABELS, LOGITS[:, 0])
        members.update_state(LABELS, LOGITS[:, :1])
        assert float(flat.result()) == float(members.result())


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_equal_width_ece_is_that_of_tfp(num_bins):
    expected = tfp.stats.expected_calibration_error(
        num_bins, logits=tf.math.log(tf.cast(PROBS, tf.float32)), labels_true=LABELS
    )
    actual = streamed(M.ExpectedCalibrationError(num_bins), LABELS, LOGITS)
    assert actual == pytest.approx(float(expected), abs=1e-5)


def test_equal_mass_ece():
    confidence, correct = PROBS.max(1), PROBS.argmax(1) == LABELS
    order = np.argsort(confidence)
    gaps = [
        len(part) / N * abs(correct[part].mean() - confidence[part].mean())
        for part in np.array_split(order, 10)
    ]
    metric = M.ExpectedCalibrationError(10, binning="equal_mass")
    assert streamed(metric, LABELS, LOGITS) == pytest.approx(sum(gaps), abs=5e-3)


def test_ece_sample_weight_counts_examples_twice():
    weighted, repeated = M.ExpectedCalibrationError(), M.ExpectedCalibrationError()
    weight = RNG.integers(0, 3, N)
    weighted.update_state(LABELS, LOGITS, sample_weight=weight)
    repeated.update_state(np.repeat(LABELS, weight), np.repeat(LOGITS, weight, axis=0))
    assert float(weighted.result()) == pytest.approx(float(repeated.result()), abs=1e-6)
    assert float(M.ExpectedCalibrationError().result()) == 0.0


MEANS = RNG.normal(size=(N, K, 1)).astype("float32")
TARGETS = RNG.normal(size=N).astype("float32")


def test_regression_scores():
    rmse = streamed(M.RootMeanSquaredError(likelihood=r1.likelihoods.Normal(0.5)), TARGETS, MEANS)
    expected = np.sqrt(sk.mean_squared_error(TARGETS, MEANS.mean(1)[:, 0]))
    assert rmse == pytest.approx(expected, rel=1e-5)
    mixture = PredictiveMixture(r1.likelihoods.Normal(0.5), MEANS, axis=1)
    low, high = (np.asarray(v)[:, 0] for v in mixture.credible_interval(0.7))
    inside = ((low <= TARGETS) & (high >= TARGETS)).mean()
    coverage = M.IntervalCoverage(0.7, likelihood=r1.likelihoods.Normal(0.5))
    width = M.IntervalWidth(0.7, likelihood=r1.likelihoods.Normal(0.5))
    assert streamed(coverage, TARGETS, MEANS) == pytest.approx(inside, abs=1e-6)
    assert streamed(width, TARGETS, MEANS) == pytest.approx((high - low).mean(), rel=1e-4)


def test_coverage_of_counts_uses_the_closed_interval():
    log_rate = np.log(RNG.uniform(1, 6, size=(N, K, 1))).astype("float32")
    y = RNG.poisson(3, N)
    mixture = PredictiveMixture(r1.likelihoods.Poisson(), log_rate, axis=1)
    low, high = (np.asarray(v)[:, 0] for v in mixture.credible_interval(0.8))
    coverage = M.IntervalCoverage(0.8, likelihood="poisson")
    assert streamed(coverage, y, log_rate) == pytest.approx(
        ((y >= low) & (y <= high)).mean(), abs=1e-6
    )


def test_crps_by_quadrature():
    means, y = np.array([[[0.3], [-1.0]]], "float32"), np.array([0.5], "float32")
    metric = M.CRPS(likelihood=r1.likelihoods.Normal(0.4))
    metric.update_state(y, means)

    def integrand(z):
        cdf = (stats.norm(0.3, 0.4).cdf(z) + stats.norm(-1.0, 0.4).cdf(z)) / 2
        return (cdf - (z >= 0.5)) ** 2

    expected = sum(integrate.quad(integrand, a, b)[0] for a, b in [(-6, 0.5), (0.5, 6)])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("score", ["max_probability", "entropy", "mutual_information", "energy"])
def test_ood_metrics_are_those_of_scikit_learn(score):
    """Confident scores crowd near 0 and must still be told apart."""
    inside = LOGITS * 3.0
    outside = LOGITS[: N // 2] * RNG.uniform(0.2, 2.5, size=(N // 2, 1, 1)).astype("float32")
    outputs = np.concatenate([inside, outside])
    label = np.concatenate([np.zeros(N), np.ones(N // 2)])
    values = M.ood_score(PredictiveMixture(r1.likelihoods.Categorical(), outputs, 1), score)
    values = np.asarray(values)
    order = RNG.permutation(len(label))
    sizes = (500, 400)
    y, x = label[order], outputs[order]
    auroc = streamed(M.OODAUROC(score), y, x, sizes)
    assert auroc == pytest.approx(sk.roc_auc_score(label, values), abs=3e-3)
    aupr = streamed(M.OODAUPR(score), y, x, sizes)
    assert aupr == pytest.approx(sk.average_precision_score(label, values), abs=1e-2)
    fpr, tpr, _ = sk.roc_curve(label, values)
    assert streamed(M.FPR95(score), y, x, sizes) == pytest.approx(fpr[tpr >= 0.95][0], abs=1e-2)


@pytest.mark.parametrize(("low", "high"), [(1e-12, 1e-9), (1e6, 1e8)])
def test_ood_metrics_resolve_any_scale(low, high):
    """Variances of targets in large units, entropies of very confident nets."""
    stddev = np.sqrt(
        np.concatenate([RNG.uniform(low, 2 * low, 50), RNG.uniform(high, 2 * high, 50)])
    )
    outputs = np.stack([-stddev, stddev], axis=1)[..., np.newaxis].astype("float32")
    metric = M.OODAUROC("epistemic_variance", likelihood=r1.likelihoods.Normal(1.0))
    metric.update_state(np.repeat([0, 1], 50), outputs)
    assert float(metric.result()) == pytest.approx(1.0, abs=1e-3)


def test_metrics_take_a_posterior_predictive():
    p = r1.PosteriorPredictive(tf.transpose(LOGITS, [1, 0, 2]), r1.likelihoods.Categorical())
    for cls in (M.PredictiveNLL, M.ExpectedCalibrationError):
        metric, other = cls(), cls(likelihood="categorical")
        metric.update_state(LABELS, p)
        other.update_state(LABELS, LOGITS)
        assert float(metric.result()) == pytest.approx(float(other.result()), rel=1e-5)


def test_regression_ood_score():
    score = M.ood_score(
        PredictiveMixture(r1.likelihoods.Normal(0.5), MEANS, 1), "epistemic_variance"
    )
    np.testing.assert_allclose(score, MEANS.var(1)[:, 0], rtol=1e-3)


ALL = [
    M.Accuracy(),
    M.BrierScore(),
    M.PredictiveNLL(likelihood="categorical"),
    M.ExpectedCalibrationError(7, "equal_mass"),
    M.OODAUROC("energy"),
    M.OODAUPR(num_thresholds=50),
    M.FPR95(),
    M.RootMeanSquaredError(likelihood=r1.likelihoods.Normal(0.5)),
    M.IntervalCoverage(0.5, likelihood="poisson"),
    M.IntervalWidth(0.5),
    M.CRPS(),
    M.AdaptiveCalibrationError(7, 0.01),
    M.AURC("energy", "log_loss", excess=True),
    M.Coverage(ignore_class=-1),
    M.SetSize(ignore_class=-1),
]


@pytest.mark.parametrize("metric", ALL, ids=lambda m: type(m).__name__)
def test_configs_round_trip(metric):
    config = keras.saving.serialize_keras_object(metric)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metrics_in_compile(digits, jit_compile):
    """Bound to the model's likelihood, in graphs and under XLA."""
    inputs = keras.Input((64,))
    model = r1.BayesianModel(
        inputs, keras.layers.Dense(10)(inputs), likelihood=r1.likelihoods.Categorical()
    )
    names = [M.Accuracy(), M.BrierScore(), M.PredictiveNLL(), M.ExpectedCalibrationError()]
    model.compile("sgd", metrics=names, jit_compile=jit_compile)
    x, y = digits[0][:64], digits[1][:64]
    model.fit(x, y, verbose=0)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["predictive_nll"] == pytest.approx(logs["nll"], rel=1e-4)
    assert logs["accuracy"] == pytest.approx(
        np.mean(model.predict(x, verbose=0).argmax(-1) == y), abs=1e-6
    )
    loaded = keras.saving.deserialize_keras_object(model.get_compile_config())
    assert [type(m) for m in loaded["metrics"]] == [type(m) for m in names]


def test_regression_metrics_in_compile(strategy):
    """Two replicas aggregate to what one computes."""

    def evaluate():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((2,))
        model = r1.BayesianModel(
            inputs, keras.layers.Dense(1)(inputs), likelihood=r1.likelihoods.Normal(0.5)
        )
        names = [M.RootMeanSquaredError(), M.IntervalCoverage(), M.IntervalWidth(), M.CRPS()]
        model.compile("sgd", metrics=names)
        x = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
        return model.evaluate(x, x[:, 0], batch_size=8, verbose=0, return_dict=True)

    single = evaluate()
    with strategy.scope():
        mirrored = evaluate()
    assert set(single) >= {"rmse", "coverage", "interval_width", "crps", "nll"}
    for name, value in single.items():
        assert mirrored[name] == pytest.approx(value, rel=1e-4), name


ERRORS = [
    (lambda: M.CRPS().update_state(TARGETS, MEANS), "CRPS has no likelihood"),
    (
        lambda: M.CRPS(likelihood="poisson").update_state(np.ones(N), MEANS),
        "closed form for Gaussian likelihoods only, such as Normal. Received: Poisson",
    ),
    (
        lambda: M.Accuracy(likelihood=r1.likelihoods.Normal(1.0)).update_state(TARGETS, MEANS),
        "needs class probabilities.* Received: Normal",
    ),
    (
        lambda: M.RootMeanSquaredError(likelihood="categorical").update_state(LABELS, LOGITS),
        "needs a numeric target.* Received: likelihood=Categorical",
    ),
    (lambda: M.OODAUROC("surprise"), "`score` must be one of .*'surprise'"),
    (lambda: M.ExpectedCalibrationError(0), "`num_bins` must be a whole number of at least 1"),
    (lambda: M.ExpectedCalibrationError(binning="log"), "'equal_width' or 'equal_mass'"),
    (lambda: M.IntervalCoverage(1.0), "`level` must lie strictly between 0 and 1"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
