"""Files that an earlier version wrote still load, and give the same answers, from a seed too.

`fixtures/make_fixtures.py` says how they came about.
"""

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from fixture_nets import (
    EPOCHS,
    FOLDER,
    NETS,
    RESUMED,
    ROWS,
    fit,
    mean_outputs,
    scores,
    spread,
    state,
)
from packaging.version import Version

import bali_keras as bk
import tfp_rank1 as r1

# It wrote the files; an older one does not know all the arguments that it saves.
KERAS = "3.15.1"


class Epochs(keras.callbacks.Callback):
    """Takes down the epochs that are begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun.append(epoch)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the files as they were saved."""
    with zipfile.ZipFile(FOLDER / "saved.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def of(expected: dict[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    """The arrays of a group by the last part of their names."""
    return {k.removeprefix(f"{group}/"): v for k, v in expected.items() if k.startswith(group)}


def check(model: Any, name: str, expected: dict[str, np.ndarray], rounding: float = 0.0) -> None:
    """All that is saved, to the bit or to rounding errors, and what follows from it."""
    wanted = of(expected, f"{name}/state").values()
    for found, value in zip(state(model), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=rounding, atol=rounding)
    found = mean_outputs(model, expected[f"{name}/x"])
    np.testing.assert_allclose(found, expected[f"{name}/outputs"], rtol=1e-6, atol=1e-6)


def test_registered_names_remain() -> None:
    """Those of the classes that no net here has, too."""
    names = (FOLDER / "registered.txt").read_text().split()
    assert [n for n in names if keras.saving.get_registered_object(n) is None] == []


@pytest.mark.skipif(Version(keras.__version__) < Version(KERAS), reason="files of a newer Keras")
@pytest.mark.parametrize("name", NETS)
def test_saved_models_load(name: str, saved: Path, expected: dict[str, np.ndarray]) -> None:
    """With likelihood, loss, metrics and posteriors."""
    model = keras.saving.load_model(saved / f"{name}.keras")
    check(model, name, expected)
    assert isinstance(model, bk.BaliModel if name.startswith("bali") else r1.BayesianModel)
    assert model.num_train_examples == ROWS
    found = spread(model, expected[f"{name}/x"])
    np.testing.assert_allclose(found, expected[f"{name}/spread"], rtol=1e-5, atol=1e-6)
    found = scores(model)
    wanted = of(expected, f"{name}/scores")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", NETS)
def test_saved_weights_load(name: str, saved: Path, expected: dict[str, np.ndarray]) -> None:
    model = NETS[name]()
    if model.optimizer is not None:  # Keras loads its slots as well, into those that there are
        model.optimizer.build(model.trainable_variables)
    model.load_weights(saved / f"{name}.weights.h5")
    check(model, name, expected)


@pytest.mark.parametrize("name", RESUMED)
def test_trainings_go_on(name: str, saved: Path, expected: dict[str, np.ndarray]) -> None:
    """From the weights of the last epoch, with the next."""
    folder = saved / f"{name}_checkpoints"
    resume, epochs = r1.callbacks.Resume(folder, keep=5, verbose=0), Epochs()
    model = NETS[name]()
    with pytest.warns(UserWarning, match="All epochs are done"):
        fit(model, EPOCHS, callbacks=[resume, epochs])
    assert epochs.begun == []
    check(model, name, expected, rounding=1e-6)  # the end of a fit factorises covariances again
    model = NETS[name]()
    history = fit(model, EPOCHS + 1, callbacks=[resume, epochs])
    assert history.epoch == epochs.begun == [EPOCHS]
    assert len(list(folder.glob(f"epoch-{EPOCHS + 1:06}-*.npz"))) == 1
