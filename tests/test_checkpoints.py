"""A training that is killed and started again ends with the same bits."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import check_equal, members_input
from resume_case import EPOCHS, state, train

import tfp_rank1 as r1
from examples.distributed import launch

CASE = Path(__file__).parent / "resume_case.py"


class Interrupt(keras.callbacks.Callback):
    """What a user's Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, 2):
            raise KeyboardInterrupt


def interrupted(method, folder, epoch):
    with pytest.raises(KeyboardInterrupt):
        train(method, folder, [Interrupt(epoch)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """State after a BALI training that nothing disturbs."""
    return state(train("bali", tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory):
    """Checkpoints of the same training, interrupted in its last epoch."""
    folder = tmp_path_factory.mktemp("parts")
    interrupted("bali", folder, EPOCHS - 1)
    return folder


@pytest.fixture
def parts(ended_early, tmp_path):
    """A copy of them."""
    return Path(shutil.copytree(ended_early, tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rank1_normal", "mixed", "bali_forms"])
def test_an_interrupted_training_goes_on(method, tmp_path):
    """Twice; a training that is complete does nothing when started again."""
    expected = state(train(method, tmp_path / "whole"))
    interrupted(method, tmp_path / "parts", 1)
    interrupted(method, tmp_path / "parts", 3)
    check_equal(state(train(method, tmp_path / "parts")), expected)
    with pytest.warns(UserWarning, match="All epochs are done"):
        check_equal(state(train(method, tmp_path / "parts")), expected)
    assert len(list((tmp_path / "parts").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bali", "rank1_normal"])
def test_an_interrupted_training_on_two_replicas_goes_on(method, strategy, tmp_path):
    expected = state(train(method, tmp_path / "whole", strategy=strategy))
    with pytest.raises(KeyboardInterrupt):
        train(method, tmp_path / "parts", [Interrupt(2)], strategy)
    check_equal(state(train(method, tmp_path / "parts", strategy=strategy)), expected)


def start(*arguments):
    return subprocess.Popen([sys.executable, CASE, "mixed", *map(str, arguments)])


# Killed in the first epoch, while a checkpoint is written, and in the middle of the last epoch.
POINTS = (0, 1), (1, -1), (EPOCHS - 1, 3)


@pytest.mark.parametrize("points", [POINTS[1:2], pytest.param(POINTS, marks=pytest.mark.slow)])
def test_a_killed_process_goes_on(points, tmp_path):
    """And ends with the bits of this process, where nothing disturbs the training."""
    folder, file = tmp_path / "parts", tmp_path / "parts.npz"
    killed = start(folder, file, *points[0])
    expected = state(train("mixed", tmp_path / "whole"))  # beside it
    assert killed.wait(timeout=300) == -9
    for point in points[1:]:
        assert start(folder, file, *point).wait(timeout=300) == -9
    assert start(folder, file).wait(timeout=300) == 0
    check_equal(list(np.load(file).values()), expected)


@pytest.mark.slow
def test_soak(tmp_path, monkeypatch):
    """Half an hour of training that is killed at random moments, some of them during a start."""
    monkeypatch.setenv("EPOCHS", os.environ.get("EPOCHS", "5500"))
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    undisturbed = subprocess.Popen(
        [sys.executable, CASE, "mixed", str(tmp_path / "whole"), str(whole)]
    )
    rng, kills, start = np.random.default_rng(0), 0, time.monotonic()
    while True:
        process = subprocess.Popen(
            [sys.executable, CASE, "mixed", str(tmp_path / "parts"), str(parts)]
        )
        try:
            status = process.wait(timeout=rng.uniform(2.0, 60.0))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert status == undisturbed.wait() == 0
    print(f"{(time.monotonic() - start) / 60:.1f} minutes, {kills} kills")
    found, expected = np.load(parts), np.load(whole)
    check_equal([found[k] for k in expected], [expected[k] for k in expected])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bali", "rank1_normal"])
def test_a_lost_worker_ends_in_a_new_start_for_all(method, tmp_path):
    """One of two is killed in its third epoch; all are started again, as a scheduler does."""
    folders = [[str(tmp_path / name), str(tmp_path / f"{name}.npz")] for name in ("whole", "parts")]
    whole, parts = ([str(CASE), method, *arguments] for arguments in folders)
    assert [w.wait(timeout=300) for w in launch.start(2, whole)] == [0, 0]
    first, second = launch.start(2, [*parts, "2", "3"])
    assert second.wait(timeout=300) == -9
    first.kill()  # it waits for the other
    first.wait()
    assert [w.wait(timeout=300) for w in launch.start(2, parts)] == [0, 0]
    for index in range(2):
        found, expected = (np.load(f"{file}-{index}.npz") for _, file in (folders[1], folders[0]))
        check_equal([found[k] for k in expected], [expected[k] for k in expected])


@pytest.mark.parametrize(
    "damage", ["changed", *(pytest.param(v, marks=pytest.mark.slow) for v in ("cut", "empty"))]
)
def test_a_damaged_checkpoint_is_passed_over(damage, whole, parts):
    newest = max(parts.glob("epoch-000003*"))
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "cut": content[:middle],
            "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    with pytest.warns(UserWarning, match="damaged; the checkpoint before it"):
        model = train("bali", parts)
    check_equal(state(model), whole)


def test_a_full_disk_does_not_end_training(whole, parts):
    """No file may grow: what was saved before stays, nothing half-written is left."""
    for file in parts.glob("epoch-000003*"):
        file.unlink()  # two epochs are to come, so that two checkpoints fail
    before = sorted(parts.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.warns(UserWarning, match="No checkpoint after epoch [34]"):
            model = train("bali", parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(parts.iterdir()) == before
    check_equal(state(model), whole)


class Noise(keras.layers.Layer):
    """Draws from a generator in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generators = [keras.random.SeedGenerator(1)]

    def call(self, inputs):
        shape, seed = keras.ops.shape(inputs), self.generators[0]
        return inputs + keras.random.normal(shape, dtype=inputs.dtype, seed=seed)


@pytest.mark.slow
def test_bfloat16_weights_and_generators_in_lists_go_on(tmp_path, capsys):
    keras.config.set_dtype_policy("bfloat16")
    x, y = np.ones((8, 3)), np.zeros(8)

    def train(folder, epochs):
        keras.utils.set_random_seed(0)
        inputs, h = members_input((3,), 2)
        h = r1.layers.DenseRank1(2, ensemble_size=2)(Noise()(h))
        model = r1.BayesianModel(inputs, r1.layers.SplitMembers(2)(h), likelihood="categorical")
        model.compile("sgd")
        resume = r1.callbacks.Resume(folder)
        model.fit(x, y, epochs=epochs, shuffle=False, verbose=0, callbacks=[resume])
        return [np.array(v, "float32") for v in model.weights]

    whole = train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    check_equal(train(tmp_path / "parts", 2), whole)
    assert "Going on after epoch 1" in capsys.readouterr().out


def test_what_cannot_be_resumed_is_named(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        r1.callbacks.Resume(tmp_path, keep=0)
    interrupted("bali", tmp_path, 1)
    with pytest.raises(ValueError, match="another model, loss or optimizer"):
        train("rank1", tmp_path)

    class Net(r1.BayesianModel):
        def call(self, inputs, training=None):
            return self.likelihood(inputs)

    model = Net(likelihood="categorical")
    model.compile("sgd")
    with pytest.raises(ValueError, match="an unbuilt Net"):
        model.fit(
            np.ones((4, 3)), np.zeros(4), verbose=0, callbacks=[r1.callbacks.Resume(tmp_path)]
        )
