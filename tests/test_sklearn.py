"""Estimators of scikit-learn for tables."""

import decimal
import gc
import pickle
import random
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
import tensorflow as tf
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from bali_keras.sklearn import BaliClassifier, BaliRegressor
from tfp_rank1.sklearn import Rank1Classifier, Rank1Regressor, TableColumns

SMALL = {"hidden": (16,), "num_bins": 8, "random_state": 0}
RANK1 = {**SMALL, "ensemble_size": 4, "embedding_dim": 4, "learning_rate": 0.02, "epochs": 40}
BALI = {**SMALL, "prior_precision": 0.1, "epochs": 40}
BRIEF = {"epochs": 3}
ESTIMATORS = {
    "Rank1Classifier": Rank1Classifier(**RANK1),
    "Rank1Regressor": Rank1Regressor(**RANK1),
    "BaliClassifier": BaliClassifier(**BALI),
    "BaliRegressor": BaliRegressor(**BALI),
}
RNG = np.random.default_rng(0)


def expected_failures(estimator):
    """Checks of scikit-learn that cannot hold, each with its reason."""
    reason = (
        "A weight of 2 counts as seeing a row twice in the objective. Batches, held-out rows and "
        "the order of rows are others than with the row repeated, so weights differ."
    )
    return {
        "check_sample_weight_equivalence_on_dense_data": reason,
        "check_sample_weight_equivalence_on_sparse_data": reason,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(list(ESTIMATORS.values()), expected_failed_checks=expected_failures)
def test_the_checks_of_scikit_learn_hold(estimator, check):
    check(estimator)


def frame(rows=120):
    """A table as people have it: numbers with gaps, text, categories, truth values."""
    table = pd.DataFrame(
        {
            "age": RNG.normal(40, 10, rows),
            "income": RNG.lognormal(3, 1, rows),
            "job": RNG.choice(["nurse", "cook", "clerk"], rows),
            "town": pd.Categorical(RNG.choice(["a", "b"], rows)),
            "married": RNG.random(rows) < 0.5,
            "children": pd.array(RNG.integers(0, 4, rows), dtype="Int64"),
        }
    )
    y = np.where((table["age"] > 40) ^ (table["job"] == "cook"), "yes", "no")
    table.loc[::7, "income"] = np.nan
    table.loc[::9, "job"] = None
    table.loc[::11, "children"] = pd.NA
    return table, y


# -- columns --------------------------------------------------------------------------------------


def test_numbers_are_scaled_and_categories_counted():
    table, _ = frame()
    columns = TableColumns().fit(table)
    found = columns.transform(table)
    assert columns.cardinalities_ == [4, 2]  # three jobs and a missing one; two towns
    numbers = found["numeric"]
    assert numbers.shape == (120, columns.num_numeric_) == (120, 4 + 2)
    np.testing.assert_allclose(numbers.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(numbers.std(axis=0), 1.0, atol=1e-5)
    is_missing = numbers[:, 4] > 0
    np.testing.assert_array_equal(is_missing, table["income"].isna())
    np.testing.assert_allclose(
        numbers[is_missing, 1], np.median(numbers[~is_missing, 1]), atol=1e-5
    )
    codes = columns.transform(table.assign(job="pilot"))["categorical"]
    assert set(codes[:, 0]) == {-1}
    np.testing.assert_array_equal(codes[:, 1], found["categorical"][:, 1])


def test_whole_numbers_are_the_same_category_as_floats():
    columns = TableColumns(categorical_features=["code"]).fit(pd.DataFrame({"code": [1, 2, 3]}))
    beside_missing = columns.transform(pd.DataFrame({"code": [3.0, 1.0, np.nan]}))
    np.testing.assert_array_equal(beside_missing["categorical"][:, 0], [2, 0, -1])


def test_columns_that_a_net_cannot_take_are_named():
    table, _ = frame(20)
    dates = table.assign(born=pd.date_range("2020-01-01", periods=20))
    with pytest.raises(ValueError, match=r"Column 'born' holds dates.*dt.month"):
        TableColumns().fit(dates)
    with pytest.raises(ValueError, match="Column 'age' contains infinity"):
        TableColumns().fit(table.assign(age=np.inf))
    columns = TableColumns().fit(table)
    with pytest.raises(ValueError, match="Column 'age' must hold numbers"):
        columns.transform(table.assign(age="old"))
    with pytest.raises(ValueError, match="Column 'job' held categories"):
        columns.transform(table.assign(job=1.0))
    with pytest.raises(ValueError, match="feature names"):
        columns.transform(table.drop(columns="age"))
    with pytest.raises(ValueError, match=r"`categorical_features`.*'sex'"):
        TableColumns(categorical_features=["sex"]).fit(table)
    with pytest.raises(ValueError, match=r"Column 0 must hold numbers.*`categorical_features`"):
        TableColumns().fit(np.array([["a"], ["b"]], object))
    with pytest.raises(ValueError, match="Column 'age' holds numbers that are too large"):
        columns.transform(table.assign(age=1e300))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"{i / 7:.3f}" for i in range(30)], "holds numbers as text.*to_numeric"),
        ([f"name {i}" for i in range(30)], "is text that differs from row to row"),
        ([str(i % 3) for i in range(30)], None),  # codes of a category
        (["a", None, "b"] * 10, None),
        ([None] * 30, None),
    ],
)
def test_text_that_is_perhaps_none_of_categories_is_named(values, message):
    table = pd.DataFrame({"code": values})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableColumns().fit(table.astype("category"))
        TableColumns(categorical_features=["code"]).fit(table)
        if message is None:
            TableColumns().fit(table)
    if message is not None:
        with pytest.warns(UserWarning, match=f"Column 'code' {message}"):
            TableColumns().fit(table)


def test_columns_of_an_array_are_numbers_unless_they_are_named():
    x = np.array([["a", 1.5], ["b", None], ["a", 2.5]], object)
    for named in ([0], [-2], [True, False]):
        columns = TableColumns(categorical_features=named).fit(x)
        assert columns.cardinalities_ == [2]
        assert columns.num_numeric_ == 2  # and where they are missing
        np.testing.assert_array_equal(columns.transform(x)["categorical"][:, 0], [0, 1, 0])


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(pd.date_range("2020-01-01", periods=4).date),
        pd.Series(list(pd.date_range("2020-01-01", periods=4)), dtype=object),
        pd.Series(pd.Categorical(pd.date_range("2020-01-01", periods=4))),
        pd.Series(pd.to_timedelta(range(4), "D")),
        pd.Series(pd.period_range("2020-01", periods=4, freq="M")),
    ],
)
def test_dates_are_refused_however_they_are_held(values):
    with pytest.raises(ValueError, match="Column 'when' holds dates"):
        TableColumns().fit(pd.DataFrame({"when": values}))


def test_tables_without_columns_lists_and_dates_as_targets_are_named():
    x, rows = np.zeros((60, 2)), pd.DataFrame(index=range(60))
    for estimator in (Rank1Classifier, BaliRegressor):
        with pytest.raises(ValueError, match=r"column or more.*shape \(60, 0\)"):
            estimator().fit(rows, np.arange(60) % 2)
    with pytest.raises(ValueError, match=r"Column 'z' holds lists.*\[1, 2\]"):
        TableColumns().fit(pd.DataFrame({"z": [[1, 2]] * 60}))
    with pytest.raises(ValueError, match=r"`y` holds dates.*\.dt\.days.*datetime64"):
        BaliRegressor().fit(x, pd.Series(pd.date_range("2024", periods=60)))
    with pytest.raises(ValueError, match=r"one class, 'a'"):
        Rank1Classifier().fit(x, np.full(60, "a"))


def test_objects_are_read_as_what_they_are():
    table = pd.DataFrame(
        {
            "price": [decimal.Decimal("1.5"), decimal.Decimal(2), None],
            "married": [True, False, None],
            "kind": pd.Categorical([1, 2, 3]),
            "job": ["a", "b", None],
        }
    )
    columns = TableColumns().fit(table)
    assert columns.numeric_columns_.tolist() == [0, 1]
    assert columns.cardinalities_ == [3, 3]
    later = table.assign(married=[True, False, True], kind=[3, 2, 9], job=np.nan)
    np.testing.assert_array_equal(
        columns.transform(later)["categorical"], [[2, 0], [1, 0], [-1, 0]]
    )
    with sklearn.config_context(transform_output="pandas"):
        found = TableColumns().fit(table).transform(table)
    assert isinstance(found["numeric"], np.ndarray)


# -- estimators -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    table, y = frame()
    return Rank1Classifier(**RANK1).fit(table, y), table, y


def test_a_frame_is_learned_and_answers_are_probabilities(fitted):
    model, table, y = fitted
    probabilities = model.predict_proba(table)
    assert list(model.classes_) == ["no", "yes"]
    assert list(model.feature_names_in_) == list(table.columns)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert model.score(table, y) > 0.8
    assert (model.predict(table) == model.classes_[probabilities.argmax(axis=1)]).all()
    unsure = model.predict_uncertainty(table)
    assert unsure["entropy"].shape == (120,)
    assert (unsure["mutual_information"] <= unsure["entropy"] + 1e-6).all()


def test_answers_do_not_depend_on_the_other_rows(fitted):
    model, table, _ = fitted
    whole = model.predict_proba(table)
    np.testing.assert_allclose(model.predict_proba(table.iloc[5:9]), whole[5:9], atol=1e-6)
    few, order = table.iloc[:21], np.random.default_rng(0).permutation(21)
    moved = model.predict_proba(few.iloc[order])
    np.testing.assert_allclose(moved, model.predict_proba(few)[order], rtol=1e-7, atol=1e-9)


def test_an_estimator_is_pickled_with_its_net(fitted):
    model, table, _ = fitted
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(copy.predict_proba(table), model.predict_proba(table), atol=1e-6)
    assert copy.get_params() == model.get_params()


def test_a_fit_that_fails_leaves_the_estimator_as_it_was(fitted):
    model, table, _ = fitted
    before = model.predict_proba(table)
    with pytest.raises(ValueError, match="Column 'born'"):
        model.fit(table.assign(born=pd.Timestamp("2020")), np.arange(120) % 3)
    np.testing.assert_array_equal(model.predict_proba(table), before)


@pytest.mark.parametrize(
    "name", ["Rank1Classifier", pytest.param("BaliClassifier", marks=pytest.mark.slow)]
)
def test_the_same_state_gives_the_same_model_and_touches_no_generator(name):
    x, y = load_breast_cancer(return_X_y=True)
    x, y = x[:80, :4], y[:80]
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    first, second = (clone(ESTIMATORS[name]).set_params(**BRIEF).fit(x, y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state
    tf.random.set_seed(7)  # which nothing of this follows
    np.testing.assert_array_equal(clone(first).fit(x, y).predict_proba(x), first.predict_proba(x))
    other = clone(first).set_params(random_state=1).fit(x, y)
    assert (other.predict_proba(x) != first.predict_proba(x)).any()


@pytest.mark.parametrize(
    "name", ["Rank1Regressor", pytest.param("BaliRegressor", marks=pytest.mark.slow)]
)
def test_regressors_answer_in_units_of_the_target(name):
    x, y = load_diabetes(return_X_y=True)
    model = clone(ESTIMATORS[name]).set_params(epochs=20).fit(x, y)
    mean, stddev = model.predict(x, return_std=True)
    assert model.score(x, y) > 0.4
    assert 30.0 < stddev.mean() < 80.0  # the residuals of a linear model have 54
    low, high = model.predict_interval(x, coverage=0.9).T
    covered = np.mean((low <= y) & (y <= high))
    assert 0.8 < covered < 1.0
    assert ((low < mean) & (mean < high)).all()
    with pytest.raises(ValueError, match="coverage"):
        model.predict_interval(x, coverage=90)


def test_several_targets_and_posteriors():
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:100], np.c_[y, 1000.0 - 3.0 * y][:100]
    model = Rank1Regressor(**{**RANK1, "epochs": 5, "posterior": "normal"}).fit(x, y)
    mean, stddev = model.predict(x, return_std=True)
    assert mean.shape == stddev.shape == (100, 2)
    assert model.predict_interval(x).shape == (100, 2, 2)
    np.testing.assert_array_equal(model.predict(x), mean)  # nothing is drawn


def test_weights_of_rows_count():
    x = np.zeros((40, 1))
    y = np.r_[np.zeros(20), np.ones(20)].astype(int)
    weight = np.where(y == 1, 3.0, 1.0)
    model = Rank1Classifier(**{**RANK1, "early_stopping": False, "calibrate": False})
    found = model.fit(x, y, sample_weight=weight).predict_proba(x)[:, 1]
    np.testing.assert_allclose(found, 0.75, atol=0.05)


def test_rows_without_weight_are_as_good_as_absent():
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:80], y[:80]
    weight = np.where(np.arange(80) % 4 == 0, 0.0, 2e-6)
    model = Rank1Regressor(**{**RANK1, **BRIEF})
    whole = clone(model).fit(np.where(weight[:, None] > 0, x, 1e6), y, sample_weight=weight)
    part = clone(model).fit(x[weight > 0], y[weight > 0], sample_weight=np.ones(60))
    np.testing.assert_allclose(whole.predict(x), part.predict(x), rtol=1e-4)
    with pytest.raises(ValueError, match="at least one non-zero number"):
        model.fit(x, y, sample_weight=np.zeros(80))


def test_targets_of_any_size():
    x = RNG.normal(size=(60, 2))
    model = Rank1Regressor(**{**RANK1, **BRIEF})
    plain = clone(model).fit(x, x[:, 0]).predict(x)
    for size in (1e200, 1e-200):
        mean, stddev = clone(model).fit(x, size * x[:, 0]).predict(x, return_std=True)
        np.testing.assert_allclose(mean / size, plain, rtol=1e-3, atol=1e-3)
        assert np.isfinite(stddev / size).all()


def test_they_are_parts_of_pipelines():
    x, y = load_breast_cancer(return_X_y=True)
    model = Rank1Classifier(**{**RANK1, **BRIEF})
    pipeline = make_pipeline(FunctionTransformer(np.log1p), model)
    assert len(cross_val_score(pipeline, x[:90, :4], y[:90], cv=2)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Rank1Classifier", "BaliClassifier"])
def test_searches_find_their_arguments(name):
    x, y = load_breast_cancer(return_X_y=True)
    search = GridSearchCV(
        clone(ESTIMATORS[name]), {"epochs": [1, 20]}, cv=2, scoring="neg_log_loss"
    )
    assert search.fit(x[:90, :4], y[:90]).best_params_ == {"epochs": 20}


def test_values_that_make_no_sense_are_refused():
    x, y = RNG.normal(size=(20, 2)), np.arange(20) % 2
    for arguments, message in (
        ({"epochs": 0}, "`epochs`"),
        ({"dropout": -0.1}, "`dropout`"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"num_bins": 0}, "`num_bins`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"hidden": 16}, "`hidden`"),
    ):
        with pytest.raises(ValueError, match=message):
            Rank1Classifier(**{**RANK1, **arguments}).fit(x, y)
    with pytest.raises(ValueError, match="two classes or more"):
        Rank1Classifier(**RANK1).fit(x, np.zeros(20, int))
    for missing in (None, np.nan, pd.NA):
        with pytest.raises(ValueError, match=r"a label for every row.*row 1"):
            Rank1Classifier(**RANK1).fit(x, np.array(["a", missing] * 10, object))


def test_rows_that_calibrated_are_trained_on_after_it(monkeypatch):
    fits, searches = [], []
    fit_rows = BaliClassifier._fit_rows

    def recorded(self, *arguments):
        fits.append(fit_rows(self, *arguments))
        return fits[-1]

    def search(self, names):
        searches.append(names)
        return {"prior_precision": 0.003}

    monkeypatch.setattr(BaliClassifier, "_fit_rows", recorded)
    monkeypatch.setattr("bali_keras.search.Search.run", search)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 3)), rng.integers(2, size=400)  # nothing to learn but noise
    model = BaliClassifier(hidden=(16,), num_bins=8, validation_fraction=0.25, random_state=0)
    model.fit(x, y)
    first, second = (found.model for found in fits)
    assert (first.num_train_examples, second.num_train_examples) == (300, 400)
    assert len(searches) == 1
    assert second.prior_precision == pytest.approx(0.003)
    assert second.hyperparameter_values() == first.hyperparameter_values()
    assert second is model.model_
    assert second.calibration == first.calibration
    assert not first.calibration.is_neutral


def test_rows_that_calibrated_start_no_search(monkeypatch):
    """Where only all rows are enough for one: the calibration is that of a net without it."""

    def search(self, names):
        raise AssertionError(names)

    monkeypatch.setattr("bali_keras.search.Search.run", search)
    x = RNG.normal(size=(300, 3))
    model = BaliClassifier(hidden=(4,), num_bins=2, epochs=10, random_state=0)
    model.fit(x, x[:, 0] > 0.0)
    with pytest.raises(AssertionError):
        model.set_params(calibrate=False).fit(x, x[:, 0] > 0.0)


def test_many_columns_have_fewer_bins_in_the_nets_of_bali():
    x, y = RNG.normal(size=(60, 100)), RNG.normal(size=60)
    model = BaliRegressor(hidden=(4,), prior_precision=0.1, epochs=1, calibrate=False).fit(x, y)
    numbers = model.model_.get_layer("numbers")
    assert numbers.bins_of == [10] * 100  # 1,024 of all columns at most
    assert numbers.output.shape == (None, 1000)


def test_without_scikit_learn_the_way_out_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("tfp_rank1.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"rank1-bali\[sklearn\]"):
        __import__("tfp_rank1.sklearn")


@pytest.mark.slow
def test_memory_stays_flat_over_many_models():
    resource = pytest.importorskip("resource")
    x, y = load_diabetes(return_X_y=True)
    model = Rank1Regressor(**{**RANK1, "epochs": 2})

    def peak():
        model.fit(x, y).predict(x)
        gc.collect()  # seldom by itself here, see conftest.py
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0

    first = [peak() for _ in range(5)][-1]
    last = [peak() for _ in range(20)][-1]
    assert last - first < 40.0  # MiB
