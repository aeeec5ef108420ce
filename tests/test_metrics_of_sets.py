"""Coverage and size of prediction sets."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_rank1 as r1

M = r1.metrics
RNG = np.random.default_rng(0)
N, C = 200, 5
SETS = RNG.uniform(size=(N, C)) < 0.6
LABELS = RNG.integers(0, C, N)
INSIDE = SETS[np.arange(N), LABELS]


def streamed(metric, y, sets, size, weight=None):
    for i in range(0, N, size):
        at = slice(i, i + size)
        metric.update_state(y[at], sets[at], None if weight is None else weight[at])
    return float(metric.result())


@pytest.mark.parametrize("size", [N, 30])
def test_sets_of_classes(size):
    for y in (LABELS, LABELS[:, np.newaxis], np.eye(C)[LABELS]):
        assert streamed(M.Coverage(), y, SETS, size) == pytest.approx(INSIDE.mean())
        assert streamed(M.SetSize(), y, SETS, size) == pytest.approx(SETS.sum(1).mean())
    metric = M.SetSize()
    metric.update_state(None, tf.constant(SETS))
    assert float(metric.result()) == pytest.approx(SETS.sum(1).mean())


def test_weights_and_missing_labels():
    weight = RNG.uniform(size=N).astype("float32")
    found = streamed(M.Coverage(), LABELS, SETS, 30, weight)
    assert found == pytest.approx(np.average(INSIDE, weights=weight))
    found = streamed(M.SetSize(), LABELS, SETS, 30, weight)
    assert found == pytest.approx(np.average(SETS.sum(1), weights=weight))
    seen = weight > 0.3
    y = np.where(seen, LABELS, -1)
    assert streamed(M.Coverage(-1), y, SETS, 30) == pytest.approx(INSIDE[seen].mean())
    assert streamed(M.SetSize(-1), y, SETS, 30) == pytest.approx(SETS[seen].sum(1).mean())
    assert float(M.Coverage().result()) == float(M.SetSize().result()) == 0.0


def test_intervals():
    means = RNG.normal(size=(1, N, 2)).astype("float32")
    y = (means[0] + 0.5 * RNG.normal(size=(N, 2))).astype("float32")
    p = r1.PosteriorPredictive(means, r1.likelihoods.Normal(0.5))
    low, high = p.credible_interval(0.8)
    seen = RNG.uniform(size=(N, 2)) > 0.3
    weight = RNG.uniform(size=(N, 2)).astype("float32")
    inside = (low <= y) & (y <= high)
    metric = M.Coverage()
    metric.update_state(np.where(seen, y, np.nan), (low, high), weight)
    assert float(metric.result()) == pytest.approx(np.average(inside, weights=weight * seen))
    ends, interval = M.Coverage(), M.IntervalCoverage(0.8, likelihood=p.likelihood)
    ends.update_state(y, (low, high))
    interval.update_state(y, p)
    assert float(ends.result()) == pytest.approx(float(interval.result()))
    ends = M.Coverage()  # ends belong to an interval; a column and a row of numbers are one shape
    ends.update_state([1.0, 2.0, 3.0], (np.float32([[1], [1], [1]]), np.float32([2, 2, 2])))
    assert float(ends.result()) == pytest.approx(2 / 3)


def test_in_graphs_and_under_xla():
    for jit_compile in (False, True):
        metric = M.Coverage()
        tf.function(metric.update_state, jit_compile=jit_compile)(LABELS, tf.constant(SETS))
        assert float(metric.result()) == pytest.approx(INSIDE.mean())


def test_directions_and_names():
    size = M.SetSize()
    assert r1.keras_internals.better_direction(size) == "down"
    assert r1.keras_internals.better_direction(M.Coverage()) not in ("up", "down")
    assert (size.name, M.Coverage().name) == ("set_size", "set_coverage")


ERRORS = [
    (LABELS, SETS.astype("float32"), "must be boolean.*Received: float32"),
    (LABELS, SETS[:, 0], r"\[examples, ..., classes\].*Received: bool of shape \(200,\)"),
    (LABELS[:5], SETS, r"Labels must have shape \[200\].*Received: labels of shape \(5, 1\)"),
    (np.zeros((N, 3)), SETS, r"or \[200, 5\].*Received: labels of shape \(200, 3\)"),
    (np.zeros(3), (np.zeros(3), np.zeros(2)), r"one shape. Received: \(3, 1\), .* and \(2, 1\)"),
    (np.zeros(3), (np.zeros(3),), r"a pair \(low, high\). Received: 1 parts"),
]


@pytest.mark.parametrize(("y", "sets", "message"), ERRORS)
def test_errors_say_what_to_do(y, sets, message):
    with pytest.raises(ValueError, match=message):
        M.Coverage().update_state(y, sets)


def test_labels_outside_and_probabilities_are_refused(digits):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must lie in \[0, classes\)"):
        M.Coverage().update_state(np.where(np.arange(N) == 3, 7, LABELS), SETS)
    inputs = keras.Input((64,))
    model = r1.BayesianModel(inputs, keras.layers.Dense(10)(inputs), likelihood="categorical")
    model.compile("sgd", metrics=[M.Coverage()])
    with pytest.raises(ValueError, match="Metrics of `compile` see probabilities, and no sets"):
        model.fit(digits[0][:32], digits[1][:32], verbose=0)
