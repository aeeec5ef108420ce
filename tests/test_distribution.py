"""One replica, two replicas and two workers: the same training."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from strategy_case import CLASSES, data, losses, train

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.small import load_digits
from examples.distributed import launch
from examples.distributed import train as script

CASE = Path(__file__).parent / "strategy_case.py"


@functools.cache
def on_one(method):
    return train(method, tf.distribute.get_strategy())


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def check_served(folder):
    """An exported classifier answers rows of any number with probabilities."""
    served = tf.saved_model.load(str(folder))
    for rows in (1, 7, 45):
        probs = served.serve(data()[0][:rows])["probs"]
        assert probs.shape == (rows, CLASSES)
        np.testing.assert_allclose(tf.reduce_sum(probs, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_metrics_of_positions_on_two_replicas(several, strategy):
    """Outputs `[B, T, D]` without members are told from `[B, K, D]` where metrics are built."""
    x = data()[0][:, np.newaxis] + np.arange(4.0, dtype="float32")[:, np.newaxis]
    y = np.argmax(x[..., :CLASSES], axis=-1)  # [rows, 4]

    def trained(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            inputs = keras.Input(x.shape[1:])
            output = bk.layers.DenseBali(CLASSES, seed=0)(inputs)
            outputs, likelihood = output, "categorical"
            if several:
                other = bk.layers.DenseBali(CLASSES, seed=1)(inputs)
                outputs, likelihood = {"a": output, "b": other}, {"a": likelihood, "b": likelihood}
            model = bk.BaliModel(inputs, outputs, likelihood=likelihood)
            metrics = ["accuracy", r1.metrics.ExpectedCalibrationError()]
            model.compile(metrics={"a": metrics} if several else metrics, evaluation_samples=2)
        targets = {"a": y, "b": y} if several else y
        return model.fit(x, targets, batch_size=8, shuffle=False, verbose=0).history

    found = trained(strategy)
    check_same(found, trained(tf.distribute.get_strategy()))
    assert "a_accuracy" in found if several else "accuracy" in found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_several_steps_per_execution_train_as_one(method):
    check_same(train(method, tf.distribute.get_strategy(), steps_per_execution=4), on_one(method))


# Rank-1 on two replicas and BALI with two workers stand for all; the rest are slow tests.
@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("rank1", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("rank1", 4), ("bali", 1), ("bali", 4), ("bali_forms", 1))
        ),
    ],
)
def test_two_replicas_train_as_one(method, steps, strategy, tmp_path):
    """Weights, statistics, logs, metrics and predictions; a short last batch, weights."""
    found = train(method, strategy, tmp_path / "served", steps_per_execution=steps)
    check_same(found, on_one(method))
    check_served(tmp_path / "served")


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("bali", 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("bali", 1), ("rank1", 1), ("rank1", 4), ("bali_forms", 1))
        ),
    ],
)
def test_two_workers_train_as_one(method, steps, tmp_path):
    workers = launch.start(2, [str(CASE), method, str(tmp_path / "worker"), str(steps)])
    expected = on_one(method)  # while they start
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    for index in range(2):
        check_same(dict(np.load(tmp_path / f"worker-{index}.npz")), expected)
    check_served(tmp_path / "worker-served")


@pytest.mark.slow
def test_losses_agree_in_expectation(strategy, tmp_path):
    """Replicas and workers draw other samples in training, of the same distribution.

    In evaluation all examples share their draws, so that the numbers are the same everywhere.
    """
    found = [losses(tf.distribute.get_strategy()), losses(strategy)]
    workers = launch.start(2, [str(CASE), "losses", str(tmp_path / "worker"), "1"])
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    found += [np.load(tmp_path / f"worker-{index}.npz") for index in range(2)]
    for name, one in found[0].items():
        for other in (parts[name] for parts in found[1:]):
            if name == "evaluation":
                np.testing.assert_allclose(other, one, rtol=1e-5)
                continue
            assert not np.isin(other, one).any()
            error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(one))
            assert abs(other.mean() - one.mean()) < 5 * error
            assert error < 0.02 * one.mean()


# -- the script of the examples -------------------------------------------------------------------


def test_the_script_on_one_device(tmp_path):
    """Trains, exports, and does nothing more when it is started again."""
    arguments = ["--method", "rank1", "--epochs", "2", "--folder", str(tmp_path)]
    scores = script.main(arguments)
    assert scores["accuracy"] > 0.7
    served = tf.saved_model.load(str(tmp_path / "served"))
    assert served.serve(tf.zeros([3, 64]))["probs"].shape == (3, 10)
    with pytest.warns(UserWarning, match="All epochs are done"):
        again = script.main(arguments)
    assert again["kl"] == scores["kl"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_the_script_on_two_workers(method, tmp_path):
    """By its launcher, with several steps per execution; the second start goes on."""
    command = ["2", "-m", "examples.distributed.train", "--strategy", "workers", "--method", method]
    command += ["--steps-per-execution", "4", "--folder", str(tmp_path), "--epochs"]
    assert launch.main([*command, "1"]) == launch.main([*command, "2"]) == 0
    served = tf.saved_model.load(str(tmp_path / "served"))
    split = load_digits(seed=0)
    probs = served.serve(split.x_test)["probs"]
    assert np.mean(np.argmax(probs, axis=1) == split.y_test) > 0.7
