"""One replica, two replicas and two workers: the same training."""

import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from strategy_case import train

from examples.distributed import launch

CASE = Path(__file__).parent / "strategy_case.py"


@functools.cache
def on_one(method):
    return train(method, tf.distribute.get_strategy())


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name == "sampled":  # replicas draw other samples
            continue
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["bali", "rank1"])
@pytest.mark.parametrize("arguments", [{}, {"steps_per_execution": 4}], ids=["", "several_steps"])
def test_two_replicas_train_as_one(method, arguments, strategy):
    """Weights, statistics, logs, metrics and predictions; a short last batch, weights."""
    check_same(train(method, strategy, **arguments), on_one(method))


@pytest.mark.parametrize("method", ["bali", "rank1"])
def test_two_workers_train_as_one(method, tmp_path):
    workers = launch.start(2, [str(CASE), method, str(tmp_path / "worker")])
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    for index in range(2):
        check_same(dict(np.load(tmp_path / f"worker-{index}.npz")), on_one(method))
