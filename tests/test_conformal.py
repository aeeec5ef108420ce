"""Conformal prediction: sets and intervals, held against MAPIE and against their guarantee."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import linear_data, net
from conftest import small_classifier

import tfp_rank1 as r1
from tfp_rank1.model.answer_state import set_calibration
from tfp_rank1.model.calibration import Calibration
from tfp_rank1.predictive import Conformal, PosteriorPredictive
from tfp_rank1.predictive.conformal import order_statistic
from tfp_rank1.predictive.conformal_scores import APS, LAC, RAPS
from tfp_rank1.predictive.conformalization import choose_raps, conformalized

CATEGORICAL = r1.likelihoods.Categorical()
METHODS = [{}, {"method": "aps"}, {"method": "raps", "penalty": 0.05, "free_classes": 2}]


def classes(rows, seed, num_classes=6, samples=3):
    """Predictions by several samples of logits, and labels drawn from their exact mean."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(samples, rows, num_classes)).astype("float32")
    p = PosteriorPredictive(logits, CATEGORICAL)
    cumulative = np.cumsum(np.asarray(p.mean()), axis=1)
    labels = np.argmax(cumulative > rng.uniform(size=(rows, 1)) * cumulative[:, -1:], axis=1)
    return p, labels


def numbers(rows, seed, targets=1):
    """Predictions of a mixture of Normals, and targets with three times their noise."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(3, rows, targets)).astype("float32")
    p = PosteriorPredictive(outputs, r1.likelihoods.Normal(0.5))
    noise = np.array([1.0, 3.0])[:targets] * rng.normal(size=(rows, targets))
    return p, (np.asarray(p.mean()) + noise).astype("float32")


def asked(p, conformal):
    """The same predictions by a model that has scores."""
    return PosteriorPredictive(p.samples, p.likelihood, p.output_variance, conformal)


def covered(sets, labels):
    return sets[np.arange(len(labels)), labels]


# -- MAPIE ----------------------------------------------------------------------------------------


class Zeros(np.random.RandomState):
    """MAPIE draws a uniform number for every held-out example; the scores without noise have 0."""

    def uniform(self, *args, size=None, **kwargs):
        return np.zeros(size)


class Given:
    """An estimator of scikit-learn's kind whose predictions are columns of its inputs."""

    def __init__(self, num_classes=0):
        self.classes_ = np.arange(num_classes)
        self.fitted_ = True

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x, return_std=False):
        if len(self.classes_):
            return np.argmax(x, axis=1)
        return (x[:, 0], x[:, 1]) if return_std else x[:, 0]


def mapie_sets(method, coverage, held, labels, new):
    """MAPIE's sets without random numbers and without the class that exceeds the threshold."""
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    estimator = type("Classifier", (Given, ClassifierMixin, BaseEstimator), {})(held.shape[1])
    found = mapie.SplitConformalClassifier(
        estimator, confidence_level=coverage, conformity_score=method, random_state=Zeros(0)
    )
    found.conformalize(held, labels)
    sets = found.predict_set(new, conformity_score_params={"include_last_label": False})[1]
    return sets[..., 0], found._conformity_score


def doubles(p):
    """Probabilities as MAPIE wants them, summing to 1 in float64."""
    mean = np.asarray(p.mean(), "float64")
    return mean / mean.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("coverage", [0.7, 0.9])
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_are_those_of_mapie(method, coverage):
    held, labels = classes(200, 0)
    new, _ = classes(500, 1)
    expected, _ = mapie_sets(method, coverage, doubles(held), labels, doubles(new))
    found = asked(new, conformalized(held, labels, method)).prediction_set(coverage)
    np.testing.assert_array_equal(found, expected)
    assert 1.0 < found.sum(axis=1).mean() < 6.0


@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_regularized_sets_are_those_of_mapie(coverage):
    """MAPIE takes a tenth to choose the parameters; the scores are those of the rest."""
    held, labels = classes(300, 0)
    new, _ = classes(500, 1)
    probabilities = doubles(held)
    expected, score = mapie_sets("raps", coverage, probabilities, labels, doubles(new))
    chosen = {row.tobytes() for row in score.X_raps}
    rest = [i for i, row in enumerate(probabilities) if row.tobytes() not in chosen]
    assert len(rest) == 270
    part = PosteriorPredictive(tf.gather(held.samples, rest, axis=1), CATEGORICAL)
    penalty, free = float(score.lambda_star), int(score.k_star[0])
    found = asked(
        new, conformalized(part, labels[rest], "raps", penalty=penalty, free_classes=free)
    ).prediction_set(coverage)
    np.testing.assert_array_equal(found, expected)
    others = np.flatnonzero([row.tobytes() in chosen for row in probabilities])
    ours = choose_raps(np.asarray(held.mean())[others], labels[others], coverage)
    assert ours.free_classes == free


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_normalized_intervals_are_those_of_mapie(coverage):
    """For whole `(n + 1) coverage`: else MAPIE 1.6 rounds the rank of the lower end down."""
    regression = pytest.importorskip("mapie.regression")
    bounds = pytest.importorskip("mapie.conformity_scores.bounds.std_normalised")
    from sklearn.base import BaseEstimator, RegressorMixin

    held, y = numbers(199, 0)
    new, _ = numbers(100, 1)
    estimator = type("Regressor", (Given, RegressorMixin, BaseEstimator), {})()
    mapie = regression.SplitConformalRegressor(
        estimator, confidence_level=coverage, conformity_score=bounds.StdConformityScore()
    )
    columns = [np.c_[np.asarray(p.mean()), np.asarray(p.stddev())] for p in (held, new)]
    mapie.conformalize(columns[0], y[:, 0])
    expected = mapie.predict_interval(columns[1])[1][..., 0]
    found = asked(new, conformalized(held, y)).prediction_interval(coverage)
    np.testing.assert_allclose(np.c_[found[0], found[1]], expected, rtol=1e-4, atol=1e-5)


def test_quantile_intervals_are_those_of_mapie():
    regression = pytest.importorskip("mapie.regression")
    from sklearn.base import BaseEstimator, RegressorMixin

    class Column(RegressorMixin, BaseEstimator):
        def __init__(self, column=0):
            self.column, self.fitted_ = column, True

        def fit(self, x, y):
            return self

        def predict(self, x):
            return x[:, self.column]

    held, y = numbers(150, 0)
    new, _ = numbers(100, 1)
    mapie = regression.ConformalizedQuantileRegressor(
        [Column(i) for i in range(3)], confidence_level=0.8, prefit=True
    )
    columns = [
        np.c_[*(np.asarray(v) for v in p.credible_interval(0.8)), np.asarray(p.quantile(0.5))]
        for p in (held, new)
    ]
    mapie.conformalize(columns[0], y[:, 0])
    expected = mapie.predict_interval(columns[1], symmetric_correction=True)[1][..., 0]
    found = asked(new, conformalized(held, y, "cqr", coverage=0.8)).prediction_interval()
    np.testing.assert_allclose(np.c_[found[0], found[1]], expected, rtol=1e-4, atol=1e-4)


# -- the guarantee --------------------------------------------------------------------------------


def splits(p, y, score, repeats, held=60):
    """Coverage of every target over random splits of the same examples, `[repeats]`."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(repeats):
        order = rng.permutation(len(y))
        parts = [
            PosteriorPredictive(tf.gather(p.samples, rows, axis=1), p.likelihood)
            for rows in (order[:held], order[held:])
        ]
        conformal = conformalized(parts[0], y[order[:held]], **score)
        shares.append(conformal_coverage(asked(parts[1], conformal), y[order[held:]]))
    return np.array(shares)


def conformal_coverage(p, y):
    if p.likelihood.is_categorical:
        return covered(p.prediction_set(0.8), y).mean()
    low, high = p.prediction_interval(0.8)
    return ((low <= y) & (y <= high)).mean()


CASES = [
    *((classes, arguments) for arguments in METHODS),
    (numbers, {}),
    pytest.param(numbers, {"method": "cqr", "coverage": 0.8}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("data", "arguments"), CASES, ids=("lac", "aps", "raps", "normal", "cqr"))
def test_coverage_over_many_splits(data, arguments):
    """`ceil(61 * 0.8) / 61` of the new targets are covered: rank 49 of 60 scores, without ties."""
    p, y = data(260, 3)
    # Quantiles of a mixture take long.
    shares = splits(p, y, arguments, repeats=50 if arguments.get("method") == "cqr" else 200)
    error = shares.std() / np.sqrt(len(shares))
    assert abs(shares.mean() - 49 / 61) < 2 * error + 1e-9
    assert error < 0.01


def test_coverage_within_groups():
    """Two groups of different difficulty: a common threshold covers one of them too rarely."""
    rng = np.random.default_rng(0)
    p, _ = numbers(4000, 1)
    groups = np.repeat(["calm", "wild"], 2000)
    scale = np.where(groups == "calm", 0.5, 3.0)[:, None]
    y = (np.asarray(p.mean()) + scale * rng.normal(size=(4000, 1))).astype("float32")
    held = np.arange(4000) % 2 == 0
    parts = [
        PosteriorPredictive(tf.boolean_mask(p.samples, mask, axis=1), p.likelihood)
        for mask in (held, ~held)
    ]

    def by_group(conformal, **arguments):
        low, high = asked(parts[1], conformal).prediction_interval(0.8, **arguments)
        inside = ((low <= y[~held]) & (y[~held] <= high))[:, 0]
        return [inside[groups[~held] == g].mean() for g in ("calm", "wild")]

    common = by_group(conformalized(parts[0], y[held]))
    own = by_group(conformalized(parts[0], y[held], groups=groups[held]), groups=groups[~held])
    assert common[0] > 0.95 and common[1] < 0.7
    np.testing.assert_allclose(own, 0.8, atol=0.04)


def test_groups_by_class_are_thresholds_by_class():
    held, labels = classes(400, 0)
    new, _ = classes(50, 1)
    found = asked(new, conformalized(held, labels, groups="class")).prediction_set(0.8)
    scores = 1.0 - np.asarray(held.mean())
    for c in range(6):
        threshold = order_statistic(scores[labels == c, c], 0.8)
        expected = 1.0 - np.asarray(new.mean())[:, c] <= np.float32(threshold)
        np.testing.assert_array_equal(found[:, c], expected)


def test_given_groups_are_thresholds_by_group():
    """The same as conformalizing every group by itself, whatever names they have."""
    held, labels = classes(200, 0)
    new, _ = classes(60, 1)
    groups, wanted = np.arange(200) % 3, np.arange(60) % 3
    conformal = conformalized(held, labels, "aps", groups=groups)
    found = asked(new, conformal).prediction_set(0.7, groups=wanted)
    for g in range(3):
        rows = np.flatnonzero(groups == g)
        part = PosteriorPredictive(tf.gather(held.samples, rows, axis=1), CATEGORICAL)
        alone = asked(new, conformalized(part, labels[rows], "aps")).prediction_set(0.7)
        np.testing.assert_array_equal(found[wanted == g], alone[wanted == g])


# -- scores and thresholds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "coverage", "rank"), [(9, 0.9, 9), (19, 0.95, 19), (99, 0.9, 90)]
)
def test_order_statistic(count, coverage, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1.0))
    assert order_statistic(scores, coverage) == rank
    assert order_statistic(scores[:0], coverage) == np.inf
    assert order_statistic(np.arange(8.0), 0.9) == np.inf


def test_scores_by_hand():
    p = tf.constant([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(LAC().of_classes(p), [[0.8, 0.5, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(APS().of_classes(p), [[1.0, 0.5, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(RAPS(0.1, 1).of_classes(p), [[1.2, 0.5, 0.9]], rtol=1e-6)
    np.testing.assert_array_equal(APS().holds(p, tf.constant(0.1)), [[False, True, False]])
    np.testing.assert_array_equal(LAC().holds(p, tf.constant(0.1)), [[False, False, False]])


def test_too_few_examples_hold_everything():
    held, labels = classes(5, 0)
    p = asked(held, conformalized(held, labels))
    with pytest.warns(UserWarning, match=r"coverage=0.9 needs at least 9 held-out .* 5 examples"):
        assert p.prediction_set(0.9).all()
    assert not p.prediction_set(0.5).all()
    held, y = numbers(5, 0)
    with pytest.warns(UserWarning, match="an interval is infinite"):
        low, high = asked(held, conformalized(held, y)).prediction_interval()
    assert np.all(low == -np.inf) and np.all(high == np.inf)
    held, labels = classes(40, 0)
    labels = np.where(labels == 2, 1, labels)
    with pytest.warns(UserWarning, match=r"groups with fewer: .*'2': 0"):
        sets = asked(held, conformalized(held, labels, groups="class")).prediction_set(0.5)
    assert sets[:, 2].all()


def test_several_targets_have_thresholds_of_their_own():
    held, y = numbers(200, 0, targets=2)
    low, high = asked(held, conformalized(held, y)).prediction_interval(0.9)
    for t in range(2):
        one = PosteriorPredictive(held.samples[..., t : t + 1], held.likelihood)
        expected = asked(one, conformalized(one, y[:, t])).prediction_interval(0.9)
        np.testing.assert_allclose(low[:, t : t + 1], expected[0], rtol=1e-5)
        np.testing.assert_allclose(high[:, t : t + 1], expected[1], rtol=1e-5)
    assert (high - low)[:, 1].mean() > 2.0 * (high - low)[:, 0].mean()


def test_missing_targets_are_left_out():
    held, y = numbers(100, 0, targets=2)
    y[:30, 0] = np.nan
    found = conformalized(held, y)
    assert [len(s) for s in found.scores[0]] == [70, 100]
    rest = PosteriorPredictive(held.samples[:, 30:], held.likelihood)
    np.testing.assert_array_equal(found.scores[0][0], conformalized(rest, y[30:]).scores[0][0])
    likelihood = r1.likelihoods.Categorical(ignore_class=-1)
    held, labels = classes(100, 0)
    ignoring = PosteriorPredictive(held.samples, likelihood)
    missing = conformalized(ignoring, np.where(np.arange(100) < 30, -1, labels))
    rest = PosteriorPredictive(held.samples[:, 30:], CATEGORICAL)
    np.testing.assert_array_equal(
        missing.scores[0][0], conformalized(rest, labels[30:]).scores[0][0]
    )


def test_one_yes_or_no_target():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 300, 1)).astype("float32")
    p = PosteriorPredictive(logits, r1.likelihoods.Bernoulli())
    y = (rng.uniform(size=(300, 1)) < np.asarray(p.mean())).astype("float32")
    found = asked(p, conformalized(p, y)).prediction_set(0.8)
    assert found.shape == (300, 2)
    twice = np.log(np.concatenate([1 - np.asarray(p.mean()), np.asarray(p.mean())], axis=1))
    same = PosteriorPredictive(twice[np.newaxis], CATEGORICAL)
    expected = asked(same, conformalized(same, y[:, 0])).prediction_set(0.8)
    assert (found == expected).mean() > 0.995  # but for rounding
    np.testing.assert_allclose(covered(found, y[:, 0].astype(int)).mean(), 0.8, atol=0.01)


def test_one_hot_labels():
    held, labels = classes(50, 0)
    rows = np.eye(6, dtype="float32")[labels]
    expected = conformalized(held, labels).scores[0][0]
    np.testing.assert_array_equal(conformalized(held, rows).scores[0][0], expected)
    with pytest.raises(ValueError, match="not one-hot"):
        conformalized(held, np.full((50, 6), 1 / 6, "float32"))


def test_chosen_parameters_make_the_smallest_sets():
    held, labels = classes(400, 0, num_classes=20)
    chosen = conformalized(held, labels, "raps", coverage=0.9)
    assert len(chosen.scores[0][0]) == 320  # a fifth chose
    assert chosen.score.penalty in (0.001, 0.01, 0.1, 0.2, 0.5)
    probabilities = np.asarray(held.mean())
    found = choose_raps(probabilities, labels, 0.9)
    own = probabilities[np.arange(400), labels][:, None]
    ranks = np.sort(1 + (probabilities > own).sum(axis=1))
    assert found.free_classes == ranks[int(np.ceil(401 * 0.9)) - 1]

    def size(penalty):
        score = conformalized(
            held, labels, "raps", penalty=penalty, free_classes=found.free_classes
        )
        return asked(held, score).prediction_set(0.9).sum()

    assert size(found.penalty) == min(map(size, (0.001, 0.01, 0.1, 0.2, 0.5)))


# -- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regressor():
    """A BALI regression with its data; tests must not train it further."""
    keras.utils.set_random_seed(0)
    x, y = linear_data(rows=80)
    model = net(3, (), 2)
    model.compile()
    model.fit(x, y, batch_size=20, epochs=3, verbose=0)
    return model, x, y


def test_a_model_keeps_its_scores(regressor, tmp_path):
    model, x, y = regressor
    scores = model.conformalize(
        x[:40], y[:40], groups=np.repeat(["a", "b"], 20), num_samples=4, seed=0
    )
    assert model.conformal is scores
    assert repr(scores) == "Conformal(Normalized(): 40 examples in 2 groups)"
    wanted = {"coverage": 0.8, "groups": np.repeat(["b", "a"], [10, 30])}

    def intervals(of):
        p = of.posterior_predictive(x[40:], 4, seed=1)
        return np.stack(p.prediction_interval(**wanted))

    expected = intervals(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    clone, fresh = keras.models.clone_model(model), net(3, (), 2)
    clone.set_weights(model.get_weights())
    fresh.load_weights(tmp_path / "model.weights.h5")
    for other in (clone, fresh, keras.models.load_model(tmp_path / "model.keras")):
        assert other.conformal.get_config() == scores.get_config()
        np.testing.assert_allclose(intervals(other), expected, rtol=1e-5)
    with pytest.warns(UserWarning, match="do not know the groups"):
        model.export_predictive(str(tmp_path / "served"), num_samples=4)
    served = tf.saved_model.load(str(tmp_path / "served"))
    assert "prediction_interval_low" not in served.serve(x)


def test_exported_intervals(regressor, tmp_path):
    """The net is integrated out in closed form, so every call answers alike."""
    model, x, y = regressor
    model.conformalize(x[:40], y[:40], num_samples=2, seed=0)
    model.export_predictive(str(tmp_path / "served"), num_samples=2, coverage=0.8)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    served = loaded.serve(x[40:])
    low, high = model.posterior_predictive(x[40:], 2).prediction_interval(0.8)
    np.testing.assert_allclose(served["prediction_interval_low"], low, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(served["prediction_interval_high"], high, rtol=1e-5, atol=1e-5)
    model.conformalize(x[:40], y[:40], "cqr", coverage=0.8, num_samples=2)
    with pytest.raises(ValueError, match="ask for that one"):
        model.export_predictive(str(tmp_path / "other"), coverage=0.9)


@pytest.mark.parametrize("arguments", METHODS, ids=str)
def test_exported_sets(arguments, tmp_path):
    inputs = keras.Input((4,))
    model = r1.BayesianModel(inputs, keras.layers.Rescaling(1.0)(inputs), likelihood="categorical")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 4)).astype("float32")
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    data = tf.data.Dataset.from_tensor_slices((logits[:100], labels[:100])).batch(32)
    model.conformalize(data, **arguments)
    expected = model.posterior_predictive(logits[100:], 1).prediction_set(0.7)
    model.export_predictive(str(tmp_path / "served"), num_samples=1, coverage=0.7)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    served = loaded.serve(logits[100:])
    np.testing.assert_array_equal(served["prediction_set"], expected)
    assert served["prediction_set"].dtype == tf.bool
    model.conformalize(logits[:100], labels[:100], **arguments)
    again = model.posterior_predictive(logits[100:], 1).prediction_set(0.7)
    np.testing.assert_array_equal(again, expected)


def test_other_answers_drop_the_scores():
    model = small_classifier(num_inputs=3)
    model.compile("sgd")
    x, y = linear_data(outputs=3)
    y = np.argmax(y, axis=1)

    def drops(action):
        model.conformalize(x, y)
        assert isinstance(model.conformal, Conformal)
        p = model.posterior_predictive(x)
        action()
        assert model.conformal is None
        with pytest.raises(ValueError, match="`prediction_set` needs the scores"):
            model.posterior_predictive(x).prediction_set()
        assert p.prediction_set(0.8).shape == (60, 10)  # answers that were given keep theirs

    drops(lambda: model.calibrate(x, y, verbose=0))
    drops(lambda: model.fit(x, y, verbose=0))
    drops(lambda: set_calibration(model, Calibration(2.0, 1.0)))
    assert keras.models.clone_model(model).conformal is None


# -- errors ---------------------------------------------------------------------------------------

WRONG = [
    (classes, {"method": "cqr"}, "`method` must be one of .*'lac', 'aps', 'raps'"),
    (numbers, {"method": "lac"}, "`method` must be 'normalized' or 'cqr'"),
    (numbers, {"method": "cqr"}, r"pass coverage=0.9, or use method='normalized'"),
    (numbers, {"method": "cqr", "coverage": 1.0}, "`coverage` must lie strictly between 0 and 1"),
    (numbers, {"groups": "class"}, "is for classes"),
    (numbers, {"groups": np.arange(3)}, r"an array \[20\] of numbers or texts. Received: .*\(3,\)"),
    (classes, {"groups": "klass"}, "`groups` must be None, 'class', or an array"),
    (classes, {"penalty": 0.1}, "are for method 'raps'"),
    (classes, {"method": "raps", "penalty": 0.1}, "Give both `penalty` and `free_classes`"),
    (
        classes,
        {"method": "raps", "penalty": -1.0, "free_classes": 1},
        "`penalty` must be a finite number",
    ),
]


@pytest.mark.parametrize(("data", "arguments", "message"), WRONG)
def test_wrong_arguments(data, arguments, message):
    p, y = data(20, 0)
    with pytest.raises(ValueError, match=message):
        conformalized(p, y, **arguments)


def test_wrong_questions():
    p, labels = classes(20, 0)
    with pytest.raises(ValueError, match=r"call model.conformalize\(x_val, y_val\)"):
        p.prediction_set()
    grouped = asked(p, conformalized(p, labels, groups=np.arange(20) % 2))
    with pytest.raises(ValueError, match=r"an array \[20\]. Received: 0 groups"):
        grouped.prediction_set(0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]. Received: \['7'\]"):
        grouped.prediction_set(0.5, groups=np.full(20, 7))
    plain = asked(p, conformalized(p, labels))
    with pytest.raises(ValueError, match="Received: groups, and scores without"):
        plain.prediction_set(0.5, groups=np.zeros(20))
    with pytest.raises(ValueError, match="use `prediction_set`"):
        plain.prediction_interval()
    with pytest.raises(ValueError, match="`coverage` must lie strictly"):
        plain.prediction_set(1.5)
    p, y = numbers(20, 0)
    with pytest.raises(ValueError, match="use `prediction_interval`"):
        asked(p, conformalized(p, y)).prediction_set()
    with pytest.raises(ValueError, match=r"belong to one coverage.* scores for 0.8"):
        asked(p, conformalized(p, y, "cqr", coverage=0.8)).prediction_interval(0.9)
    with pytest.raises(ValueError, match="none of them observed"):
        conformalized(p, np.full((20, 1), np.nan))
    two = PosteriorPredictive(np.zeros((1, 3, 2), "float32"), r1.likelihoods.Bernoulli())
    with pytest.raises(ValueError, match="one target with classes"):
        conformalized(two, np.zeros((3, 2)))
    with pytest.raises(AttributeError, match="`prediction_set` needs the samples"):
        p.moments().prediction_set()


def test_fewer_samples_than_were_scored_are_warned_of(tmp_path):
    """Predictions by fewer samples are noisier than the held-out ones: coverage would be missed."""
    x, y = linear_data(rows=80, outputs=1)
    model = net(outputs=1)
    model.compile()
    model.fit(x, y, epochs=2, verbose=0)
    model.conformalize(x, y, num_samples=32)
    assert model.conformal.num_samples == 32
    model.posterior_predictive(x).prediction_interval()
    model.posterior_predictive(x, method="moments").prediction_interval()
    few = model.posterior_predictive(x, num_samples=4)
    few.mean()
    with pytest.warns(UserWarning, match="num_samples=32"):
        few.prediction_interval()
    with pytest.warns(UserWarning, match="num_samples=32"):
        model.export_predictive(str(tmp_path / "served"), num_samples=4)


@pytest.mark.parametrize("kind", ["datetime64[M]", "S4"])
def test_groups_that_no_file_can_hold_are_refused(kind):
    p, labels = classes(20, 0)
    groups = np.array(["2020", "2021"], dtype=kind)[np.arange(20) % 2]
    with pytest.raises(ValueError, match="numbers or texts"):
        conformalized(p, labels, groups=groups)


def test_a_column_of_texts_is_a_group():
    p, labels = classes(20, 0)
    groups = np.array(["a", "b"], dtype=object)[np.arange(20) % 2]
    assert conformalized(p, labels, groups=groups).labels == ("a", "b")


def test_examples_of_weight_0_are_left_out():
    x, y = linear_data(rows=80, outputs=1)
    y[40:] += 100.0
    model = net(outputs=1)
    model.compile()
    model.fit(x[:40], y[:40], epochs=2, verbose=0)
    weights = (np.arange(80) < 40).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16)
    found = model.conformalize(batches)
    assert len(found.scores[0][0]) == 40
    uneven = tf.data.Dataset.from_tensor_slices((x, y, weights + weights * np.arange(80))).batch(16)
    with pytest.raises(ValueError, match="0, which leaves an example out, or one number"):
        model.conformalize(uneven)


def test_intervals_of_counts_end_at_0():
    outputs = np.zeros((3, 50, 1), "float32")
    p = PosteriorPredictive(outputs, r1.likelihoods.Poisson())
    y = np.random.default_rng(0).poisson(3.0, size=50).astype("float32")
    low, high = asked(p, conformalized(p, y)).prediction_interval(0.9)
    assert (low == 0.0).all() and (high > 1.0).all()
