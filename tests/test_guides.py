"""The longer examples, on few data."""

import importlib
import sys

import keras
import matplotlib.pyplot
import numpy as np
import pytest
import shared_data

from examples.datasets.houses import load_houses
from examples.datasets.orders import PADDING, TAGS, UNKNOWN, load_orders, words_of
from examples.learning import active, continual, drift, fine_tuning
from examples.outputs import forecast, segmentation, tagging, two_heads


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_orders_have_words_of_two_meanings_and_new_words():
    data = load_orders(200, 60)
    assert data.x_train.shape == (200, 14) and UNKNOWN not in data.x_train
    assert ((data.x_test == UNKNOWN).sum(axis=1) > 0).sum() == pytest.approx(20, abs=12)
    tags = {}
    for numbers, row in zip(data.x_train, data.y_train, strict=True):
        for word, tag in zip(words_of(numbers), row, strict=False):
            tags.setdefault(word, set()).add(TAGS[tag])
    assert tags["china"] == {"goods", "place"} and tags["may"] == {"other", "time"}
    assert (data.y_train[data.x_train == PADDING] == 0).all()


def test_only_sold_houses_have_a_price():
    houses, test = load_houses(300, 100)
    assert (np.isnan(houses.y["price"]) == (houses.y["sold"] == 0)).all()
    assert np.isfinite(test.price).all() and test.x[50:, 0].min() > houses.x[:, 0].max()


@pytest.mark.slow
def test_tagging(tmp_path, capsys):
    tagging.main(["--epochs", "1", "--orders", "48", "--out", str(tmp_path)])
    assert (tmp_path / "tagging.png").stat().st_size > 1000
    assert "BALI" in capsys.readouterr().out


@pytest.mark.slow
def test_two_heads(tmp_path, capsys):
    two_heads.main(["--epochs", "2", "--houses", "64", "--out", str(tmp_path)])
    assert (tmp_path / "two_heads.png").stat().st_size > 1000
    assert "larger" in capsys.readouterr().out


@pytest.mark.slow
def test_segmentation(tmp_path):
    segmentation.main(["--epochs", "2", "--scenes", "32", "--out", str(tmp_path)])
    assert (tmp_path / "segmentation.png").stat().st_size > 1000


@pytest.mark.slow
def test_forecast(tmp_path):
    forecast.main(["--epochs", "1", "--windows", "130", "--out", str(tmp_path)])
    assert (tmp_path / "forecast.png").stat().st_size > 1000


def test_the_unet_keeps_the_size_of_the_scene():
    net = segmentation.unet(2)
    assert isinstance(net, keras.Model) and net.output_shape == (None, 32, 32, 4)


@pytest.mark.slow
def test_continual(tmp_path, capsys):
    continual.main(["--seeds", "2", "--epochs", "5", "--out", str(tmp_path)])
    assert (tmp_path / "continual.png").stat().st_size > 1000
    assert "strength 0.3" in capsys.readouterr().out


@pytest.mark.slow
def test_active(tmp_path, capsys):
    active.main(["--seeds", "2", "--rounds", "2", "--epochs", "10", "--out", str(tmp_path)])
    assert (tmp_path / "active.png").stat().st_size > 1000
    assert "mutual information" in capsys.readouterr().out


@pytest.mark.slow
def test_drift(tmp_path, capsys):
    drift.main(["--seeds", "2", "--steps", "100", "--out", str(tmp_path)])
    assert (tmp_path / "drift.png").stat().st_size > 1000
    assert "forgetting=0.02" in capsys.readouterr().out


def test_images_turn():
    image = np.zeros((1, 64))
    image[0, 8 * 4 + 6] = 1.0  # right of the centre
    np.testing.assert_allclose(drift.turned(image, 0.0), image, atol=1e-9)
    half = drift.turned(image, 1.0).reshape(8, 8)
    assert np.unravel_index(np.argmax(half), (8, 8)) == (3, 1)


@pytest.mark.slow
def test_fine_tuning(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype="uint8")
    labels = np.arange(40) % 10
    file = tmp_path / "images.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    fine_tuning.main(
        ["--npz", str(file), "--seeds", "1", "--epochs", "1", "--more", "1", "--images", "32"]
    )
    assert 'layers="all"' in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_for_keras_io(monkeypatch, tmp_path, capsys):
    """As a whole, on a tenth of the images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: None)
    for name in ("mnist", "fashion_mnist"):
        data = shared_data.load(f"{name}.npz")
        pairs = tuple((data[f"x_{p}"][::10], data[f"y_{p}"][::10]) for p in ("train", "test"))
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda pairs=pairs: pairs)
    importlib.import_module("examples.keras_io.calibrated_answers")
    del sys.modules["examples.keras_io.calibrated_answers"]
    assert "the sets hold" in capsys.readouterr().out
    assert (tmp_path / "served" / "saved_model.pb").exists()
