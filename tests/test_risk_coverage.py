"""Risk, coverage and abstaining against their definitions, ties by all orders."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

import tfp_rank1 as r1
from tfp_rank1.metrics.abstention import error_bound

M, LK = r1.metrics, r1.likelihoods
RNG = np.random.default_rng(0)
N, K, C = 700, 3, 4
LOGITS = (RNG.normal(0, 2.0, (N, 1, C)) + RNG.normal(0, 1.0, (N, K, C))).astype("float32")
PROBS = special.softmax(np.float64(LOGITS), axis=-1).mean(1)
LABELS = np.array([RNG.choice(C, p=p) for p in PROBS])
WRONG = (PROBS.argmax(1) != LABELS).astype(float)
MEANS = RNG.normal(size=(N, K, 2)).astype("float32") * RNG.gamma(1.0, size=(N, 1, 1))
TARGETS = (MEANS.mean(1) + MEANS.std(1) * RNG.normal(size=(N, 2))).astype("float32")
SQUARED = ((TARGETS - MEANS.mean(1)) ** 2).mean(1)


def predictive(outputs, likelihood):
    return r1.PosteriorPredictive(np.moveaxis(outputs, 1, 0).astype("float32"), likelihood)


CLASSES, REGRESSION = predictive(LOGITS, LK.Categorical()), predictive(MEANS, LK.Normal(0.5))


def curve(score, loss):
    """Risk of the n examples of lowest score, for scores without ties."""
    return np.cumsum(loss[np.argsort(score)]) / np.arange(1, len(loss) + 1)


def over_all_orders(score, loss):
    """The mean of the curve over every order that sorts the scores."""
    curves = [
        np.cumsum(loss[list(order)]) / np.arange(1, len(loss) + 1)
        for order in itertools.permutations(range(len(loss)))
        if np.all(np.diff(score[list(order)]) >= 0)
    ]
    return np.mean(curves, axis=0)


def streamed(metric, y, outputs, size=300, weight=None):
    for i in range(0, len(y), size):
        at = slice(i, i + size)
        metric.update_state(y[at], outputs[at], None if weight is None else weight[at])
    return float(metric.result())


# -- the exact curve ----------------------------------------------------------------------------


def test_classes():
    found = M.risk_coverage(CLASSES, LABELS)
    expected = curve(1.0 - PROBS.max(1), WRONG)
    np.testing.assert_allclose(found.coverage, np.arange(1, N + 1) / N)
    np.testing.assert_allclose(found.risk, expected, atol=1e-9)
    np.testing.assert_allclose(found.score, np.sort(1.0 - PROBS.max(1)), atol=1e-6)
    assert found.aurc == pytest.approx(expected.mean(), rel=1e-9)
    assert found.excess_aurc == pytest.approx(
        expected.mean() - curve(WRONG, WRONG).mean(), rel=1e-6
    )


@pytest.mark.parametrize("score", ["entropy", "mutual_information", "energy", "variance"])
def test_every_score(score):
    values = np.asarray(M.ood_score(CLASSES, score))
    assert len(np.unique(values)) == N
    found = M.risk_coverage(CLASSES, LABELS, score)
    np.testing.assert_allclose(found.risk, curve(values, WRONG), atol=1e-9)
    own = M.risk_coverage(CLASSES, LABELS, values)
    np.testing.assert_array_equal(own.risk, found.risk)


def test_regression_and_log_loss():
    variance = (MEANS.var(1) + 0.25).sum(1)
    found = M.risk_coverage(REGRESSION, TARGETS)
    np.testing.assert_allclose(found.risk, curve(variance, SQUARED), rtol=1e-4)
    nll = M.risk_coverage(REGRESSION, TARGETS, loss="log_loss")
    expected = curve(variance, -np.asarray(REGRESSION.log_prob(TARGETS)))
    np.testing.assert_allclose(nll.risk, expected, rtol=1e-4)
    nll = M.risk_coverage(CLASSES, LABELS, loss="log_loss")
    expected = curve(1.0 - PROBS.max(1), -np.log(PROBS[np.arange(N), LABELS]))
    np.testing.assert_allclose(nll.risk, expected, rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_in_random_order(seed):
    rng = np.random.default_rng(seed)
    score, wrong = rng.integers(0, 3, 7), rng.integers(0, 2, 7)
    p = predictive(np.tile([[[1.0, 0.0]]], (7, 1, 1)), LK.Categorical())
    expected = over_all_orders(score, wrong.astype(float))
    found = M.risk_coverage(p, wrong, score)
    np.testing.assert_allclose(found.risk, expected, atol=1e-12)
    assert found.aurc == pytest.approx(expected.mean(), abs=1e-12)
    best = curve(wrong, wrong.astype(float)).mean()
    assert found.excess_aurc == pytest.approx(max(expected.mean() - best, 0.0), abs=1e-12)


def test_area_of_the_best_order():
    """Geifman et al. (2019): r + (1 - r) log(1 - r) for an error rate r, in the limit of many."""
    n, r = 20000, 0.1
    wrong = (np.arange(n) < r * n).astype(int)
    p = predictive(np.tile([[[1.0, 0.0]]], (n, 1, 1)), LK.Categorical())
    found = M.risk_coverage(p, wrong, wrong)
    assert found.aurc == pytest.approx(r + (1 - r) * math.log(1 - r), rel=1e-3)
    assert found.excess_aurc == 0.0
    constant = M.risk_coverage(p, wrong, np.zeros(n))
    np.testing.assert_allclose(constant.risk, r)
    assert constant.aurc == pytest.approx(r)


def test_weights_count_examples_and_missing_labels_do_not():
    weight = RNG.integers(0, 4, N)
    found = M.risk_coverage(CLASSES, LABELS, sample_weight=weight)
    repeated = predictive(np.repeat(LOGITS, weight, axis=0), LK.Categorical())
    expected = M.risk_coverage(repeated, np.repeat(LABELS, weight))
    last = np.cumsum(weight[weight > 0][np.argsort(found.score, kind="stable")]) - 1
    assert found.aurc == pytest.approx(expected.aurc, rel=1e-9)
    assert found.excess_aurc == pytest.approx(expected.excess_aurc, rel=1e-9)
    assert found.coverage[-1] == 1.0 and found.risk[-1] == pytest.approx(expected.risk[-1])
    assert len(last) == len(found.risk) == (weight > 0).sum()
    ignoring = predictive(LOGITS, LK.Categorical(ignore_class=9))
    left = M.risk_coverage(ignoring, np.where(weight > 0, LABELS, 9))
    kept = M.risk_coverage(predictive(LOGITS[weight > 0], LK.Categorical()), LABELS[weight > 0])
    np.testing.assert_allclose(left.risk, kept.risk, atol=1e-12)


def test_missing_targets_of_a_regression():
    """The mean over the observed targets; an example without any does not count."""
    seen = RNG.uniform(size=(N, 2)) > 0.4
    y = np.where(seen, TARGETS, np.nan)
    some = seen.any(1)
    errors = (TARGETS - MEANS.mean(1)) ** 2
    loss = (errors * seen).sum(1)[some] / seen.sum(1)[some]
    expected = curve((MEANS.var(1)).sum(1)[some], loss)
    np.testing.assert_allclose(M.risk_coverage(REGRESSION, y).risk, expected, rtol=1e-4)
    weights = seen * RNG.uniform(0.5, 2.0, (N, 2))
    by_target = M.risk_coverage(REGRESSION, TARGETS, sample_weight=weights.astype("float32"))
    loss = (errors * weights).sum(1)[some] / weights.sum(1)[some]
    expected = curve((MEANS.var(1)).sum(1)[some], loss)
    np.testing.assert_allclose(by_target.risk, expected, rtol=1e-4)


# -- the streaming metric -----------------------------------------------------------------------

STREAMS = [
    (dict(), CLASSES, LABELS),
    (dict(score="entropy"), CLASSES, LABELS),
    (dict(score="energy", loss="log_loss"), CLASSES, LABELS),
    (dict(), REGRESSION, TARGETS),
    (dict(score="epistemic_variance", loss="log_loss"), REGRESSION, TARGETS),
]


@pytest.mark.parametrize(("arguments", "p", "y"), STREAMS)
def test_streaming_is_the_exact_area(arguments, p, y):
    exact = M.risk_coverage(p, y, **arguments)
    outputs = np.asarray(p.outputs)
    for excess, expected in ((False, exact.aurc), (True, exact.excess_aurc)):
        results = [
            streamed(M.AURC(**arguments, excess=excess, likelihood=p.likelihood), y, outputs, size)
            for size in (N, 100, 33)
        ]
        assert np.ptp(results) < 1e-5 * abs(expected)
        assert results[0] == pytest.approx(expected, rel=2e-3)
    metric = M.AURC(**arguments)
    metric.update_state(y, p)
    assert float(metric.result()) == pytest.approx(exact.aurc, rel=2e-3)


def test_streaming_counts_ties_and_weights_exactly():
    """Few values of the score, each in a cell of its own: nothing is lost."""
    probability = RNG.choice([0.6, 0.9, 0.999, 1 - 1e-5], N)
    outputs = np.stack([special.logit(probability), np.zeros(N)], axis=1).astype("float32")
    wrong = (RNG.uniform(size=N) > probability).astype(int)
    weight = RNG.integers(0, 3, N).astype("float32")
    p = predictive(outputs[:, None], LK.Categorical())
    exact = M.risk_coverage(p, wrong, sample_weight=weight)
    for excess, expected in ((False, exact.aurc), (True, exact.excess_aurc)):
        found = streamed(M.AURC(excess=excess), wrong, outputs, weight=weight)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_streaming_resolves_any_unit(scale):
    y, outputs = (np.float32(v * scale) for v in (TARGETS, MEANS))
    likelihood = LK.Normal(0.5 * scale)
    exact = M.risk_coverage(predictive(outputs, likelihood), y)
    found = streamed(M.AURC(likelihood=likelihood), y, outputs)
    assert found == pytest.approx(exact.aurc, rel=1e-2)
    assert exact.aurc == pytest.approx(
        M.risk_coverage(REGRESSION, TARGETS).aurc * scale**2, rel=1e-2
    )


def test_bernoulli_ranks_by_the_entropy():
    outputs = RNG.normal(0, 2, (N, K, 1)).astype("float32")
    y = (RNG.uniform(size=N) < special.expit(outputs).mean(1)[:, 0]).astype("float32")
    p = predictive(outputs, LK.Bernoulli())
    by_entropy = M.risk_coverage(p, y, "entropy")
    assert M.risk_coverage(p, y).aurc == pytest.approx(by_entropy.aurc, rel=1e-3)
    assert M.AURC().result() == 0.0
    several = predictive(LOGITS, LK.Bernoulli())
    y = RNG.integers(0, 2, (N, C))
    probability = special.expit(np.float64(LOGITS)).mean(1)
    expected = curve(
        (probability * (1 - probability)).sum(1), ((probability > 0.5) != y).mean(1)
    ).mean()
    assert M.risk_coverage(several, y).aurc == pytest.approx(expected, rel=1e-5)
    assert streamed(M.AURC(likelihood="bernoulli"), y, LOGITS) == pytest.approx(expected, rel=2e-3)


def test_scores_that_do_not_exist_are_rejected_first():
    """Variances of a distribution without any are infinite, or no numbers."""
    p = predictive(np.float32([[[0.0]], [[1.0]], [[5.0]]]), LK.Normal(1.0))
    exact = M.risk_coverage(p, np.zeros(3), [0.0, 1.0, np.inf])
    np.testing.assert_allclose(exact.risk, [0.0, 0.5, 26 / 3])
    unit = r1.metrics.histogram.unit_of_positive(tf.constant([0.0, 1.0, np.inf]))
    cells = r1.metrics.histogram.cell_of(tf.concat([unit, [np.nan]], 0), 100)
    np.testing.assert_array_equal(cells, [2, 50, 99, 99])

    class Cauchy(LK.Likelihood):
        def distribution(self, outputs):
            return tfp.distributions.StudentT(1.0, outputs[..., :1], tf.exp(outputs[..., 1:]))

        def num_targets(self, num_outputs):
            return 1

        def variance(self, outputs):  # of the first example there is none
            return tf.where(outputs[..., 1:] > 1.0, np.nan, outputs[..., 1:])

        def mean(self, outputs):
            return outputs[..., :1]

    outputs = np.float32([[[5.0, 2.0]], [[0.0, 0.1]], [[1.0, 0.2]]])
    metric = M.AURC(likelihood=Cauchy())
    metric.update_state(np.zeros(3), outputs)
    assert float(metric.result()) == pytest.approx((0.0 + 0.5 + 26 / 3) / 3, rel=1e-5)
    with pytest.raises(ValueError, match="NaN in 1 of 3 scores"):
        M.risk_coverage(predictive(outputs, Cauchy()), np.zeros(3))


@pytest.mark.parametrize(("kind", "jit_compile"), [("categorical", True), ("normal", False)])
def test_in_compile(kind, jit_compile):
    inputs = keras.Input((C,))
    members = r1.layers.SplitMembers(2)(r1.layers.TileMembers(2)(inputs))
    outputs = keras.layers.Dense(C if kind == "categorical" else 2)(members)
    model = r1.BayesianModel(inputs, outputs, likelihood=kind)
    model.compile("sgd", metrics=[M.AURC(), M.AURC(excess=True)], jit_compile=jit_compile)
    x, y = np.ascontiguousarray(LOGITS[:, 0]), LABELS if kind == "categorical" else TARGETS
    model.fit(x, y, batch_size=100, verbose=0)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    again = model.evaluate(x, y, batch_size=333, verbose=0, return_dict=True)
    p = r1.PosteriorPredictive(model(x)[np.newaxis, :, 0], model.likelihood)  # members are equal
    score = "max_probability" if kind == "categorical" else np.zeros(N)  # one variance for all
    exact = M.risk_coverage(p, y, score)
    assert logs["aurc"] == pytest.approx(exact.aurc, rel=2e-3)
    assert logs["e_aurc"] == pytest.approx(exact.excess_aurc, rel=5e-3)
    assert again["aurc"] == pytest.approx(logs["aurc"], rel=1e-5)


# -- sparsification -----------------------------------------------------------------------------


def test_sparsification():
    found = M.sparsification(REGRESSION, TARGETS)
    order = np.argsort(-MEANS.var(1).sum(1))
    error, oracle = [], []
    for n in range(N):
        error.append(np.sqrt(SQUARED[order[n:]].mean()))
        oracle.append(np.sqrt(np.sort(SQUARED)[: N - n].mean()))
    np.testing.assert_allclose(found.removed, np.arange(N) / N)
    np.testing.assert_allclose(found.error, error, rtol=1e-4)
    np.testing.assert_allclose(found.oracle, oracle, rtol=1e-4)
    expected = np.mean(np.subtract(error, oracle)) / error[0]
    assert found.ause == pytest.approx(expected, rel=1e-4) and found.ause > 0.01
    assert M.sparsification(REGRESSION, TARGETS, SQUARED).ause == pytest.approx(0.0, abs=1e-6)
    scaled = predictive(MEANS * 1000, LK.Normal(500.0))
    assert M.sparsification(scaled, TARGETS * 1000).ause == pytest.approx(expected, rel=1e-3)
    assert M.sparsification(REGRESSION, REGRESSION.mean()).ause == 0.0


# -- abstaining ---------------------------------------------------------------------------------


def brute_force(score, loss, risk):
    """The threshold of most examples whose mean loss is at most `risk`."""
    kept = {t: score <= t for t in np.unique(score)}
    good = [t for t, at in kept.items() if loss[at].mean() <= risk]
    return max(good) if good else None


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2, 1.0])
def test_threshold_keeps_the_most(risk):
    score = np.asarray(M.ood_score(CLASSES, "max_probability"))
    found = M.abstention_threshold(CLASSES, LABELS, risk)
    kept = score <= found.threshold
    assert found.threshold == brute_force(score, WRONG, risk)
    assert found.coverage == kept.mean() and found.risk == WRONG[kept].mean() <= risk
    assert found.bound is None


def test_threshold_does_not_split_ties():
    score = np.repeat([0.1, 0.2, 0.3, 0.4], [10, 10, 10, 10])
    wrong = np.zeros(40, int)
    wrong[[12, 22, 23, 24, 25]] = 1
    p = predictive(np.tile([[[1.0, 0.0]]], (40, 1, 1)), LK.Categorical())
    for risk, threshold in ((0.0, 0.1), (0.05, 0.2), (0.124, 0.2), (0.125, 0.4), (0.2, 0.4)):
        assert M.abstention_threshold(p, wrong, risk, score).threshold == threshold
    with pytest.raises(ValueError, match=r"lowest is 0.25, with 100.0% .* Received: risk=0.2"):
        M.abstention_threshold(p, np.repeat([1, 0], [10, 30]), 0.2, score)
    weight = np.where(np.arange(40) == 12, 0.0, 1.0)
    found = M.abstention_threshold(p, wrong, 0.0, score, sample_weight=weight)
    assert found.threshold == 0.2 and found.coverage == pytest.approx(19 / 39)


def test_threshold_of_a_regression():
    risk = 0.5 * SQUARED.mean()
    found = M.abstention_threshold(REGRESSION, TARGETS, risk, "epistemic_variance")
    score = np.asarray(M.ood_score(REGRESSION, "epistemic_variance"))
    assert found.threshold == brute_force(score, SQUARED, risk)
    assert 0.0 < found.coverage < 1.0


def test_bound_is_that_of_clopper_and_pearson():
    for errors, trials in ((0, 10), (3, 20), (40, 1000), (12, 100000), (7, 7)):
        found = error_bound(np.float64([errors]), np.float64([trials]), 0.01)[0]
        exact = stats.binomtest(errors, trials, alternative="less").proportion_ci(0.99, "exact")
        assert found == pytest.approx(exact.high, rel=1e-8)


def test_threshold_with_confidence():
    """Every bound that the search sees is that of its share of delta."""
    n = 2000
    score = np.arange(n) / n
    wrong = (RNG.uniform(size=n) < score**3).astype(int)
    p = predictive(np.tile([[[1.0, 0.0]]], (n, 1, 1)), LK.Categorical())
    found = M.abstention_threshold(p, wrong, 0.1, score, confidence=0.95)
    kept = score <= found.threshold
    delta = 0.05 / math.ceil(math.log2(n + 1))
    bound = stats.beta.ppf(1 - delta, wrong[kept].sum() + 1, kept.sum() - wrong[kept].sum())
    assert found.bound == pytest.approx(bound, rel=1e-8) and found.bound <= 0.1
    assert found.coverage == kept.mean() and found.risk == wrong[kept].mean()
    more = score <= found.threshold + 1 / n  # the bound of the next one is too high
    assert stats.beta.ppf(1 - delta, wrong[more].sum() + 1, more.sum() - wrong[more].sum()) > 0.1
    empirical = M.abstention_threshold(p, wrong, 0.1, score)
    assert empirical.threshold > found.threshold
    assert M.abstention_threshold(p, wrong, 0.1, score, confidence=0.5).coverage > found.coverage
    with pytest.raises(ValueError, match=r"The lowest is 0\.\d+, with"):
        M.abstention_threshold(p, wrong, 0.001, score, confidence=0.95)


def test_the_guarantee_holds_for_new_examples():
    """Among 150 sets of 500 examples: the empirical threshold fails often, the certified seldom.

    The error of an example is its score s, uniform on [0, 1], so the true risk below t is t / 2.
    """
    rng = np.random.default_rng(1)
    p = predictive(np.tile([[[1.0, 0.0]]], (500, 1, 1)), LK.Categorical())
    fails, certified, coverages = 0, 0, []
    for _ in range(150):
        score = rng.uniform(size=500)
        wrong = (rng.uniform(size=500) < score).astype(int)
        fails += M.abstention_threshold(p, wrong, 0.3, score).threshold / 2 > 0.3
        found = M.abstention_threshold(p, wrong, 0.3, score, confidence=0.8)
        certified += found.threshold / 2 > 0.3
        coverages.append(found.coverage)
    assert fails > 150 / 3
    assert certified < 0.2 * 150
    assert np.mean(coverages) > 0.15


def test_a_threshold_that_the_search_passes_by_is_named():
    """Errors at the lowest scores: half of the examples fail, all of them do not."""
    wrong = (np.arange(1000) < 60).astype(int)
    p = predictive(np.tile([[[1.0, 0.0]]], (1000, 1, 1)), LK.Categorical())
    with pytest.raises(ValueError, match=r"100.0% of the examples kept, at a threshold that the"):
        M.abstention_threshold(p, wrong, 0.09, np.arange(1000), confidence=0.9)


ERRORS = [
    (lambda: M.AURC("surprise"), "`score` must be one of .*'surprise'"),
    (lambda: M.AURC(loss="hinge"), "`loss` must be one of .*'hinge'"),
    (
        lambda: M.risk_coverage(CLASSES, LABELS, loss="squared_error"),
        "squared_error' needs a numeric target.* Received: likelihood=Categorical",
    ),
    (
        lambda: M.risk_coverage(REGRESSION, TARGETS, loss="error"),
        "needs class probabilities.* Received: Normal",
    ),
    (
        lambda: M.risk_coverage(REGRESSION, TARGETS, "entropy"),
        "use 'variance' or 'epistemic_variance'. Received: Normal",
    ),
    (lambda: M.risk_coverage(CLASSES, LABELS, LABELS[:5]), r"\[700\]. Received: shape \(5,\)"),
    (
        lambda: M.risk_coverage(CLASSES, LABELS, np.where(LABELS == 0, np.nan, 1.0)),
        r"Received: NaN in \d+ of 700 scores",
    ),
    (
        lambda: M.risk_coverage(REGRESSION, np.full((N, 2), np.nan)),
        "all targets are missing.* Received: 700 examples",
    ),
    (lambda: M.sparsification(CLASSES, LABELS), "needs a numeric target"),
    (lambda: M.abstention_threshold(CLASSES, LABELS, np.nan), "`risk` must be a finite number"),
    (
        lambda: M.abstention_threshold(CLASSES, LABELS, 0.1, confidence=95),
        "`confidence` must lie strictly between 0 and 1. Received: confidence=95",
    ),
    (
        lambda: M.abstention_threshold(
            CLASSES, LABELS, 0.1, confidence=0.9, sample_weight=np.ones(N)
        ),
        "needs examples that count alike",
    ),
    (
        lambda: M.abstention_threshold(REGRESSION, TARGETS, 0.1, confidence=0.9),
        "one decision per example.* Received: losses from",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
