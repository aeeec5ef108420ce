"""Data of the examples: the UCI builder, corruptions, toy sets."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from shared_data import data_folder, load

from examples.datasets import uci_regression
from examples.datasets.images import SEVERITIES, corrupt, load_images
from examples.datasets.toy import TOYS


def test_the_uci_builder_gives_the_standard_splits(tmp_path):
    source = load("uci/yacht.npz")  # skips without the files
    builder = tfds.builder("uci_regression/yacht", data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=data_folder() / "uci")
    builder.download_and_prepare(download_config=config)
    for i in (0, 19):
        parts = builder.as_dataset(split=[f"train_{i}", f"test_{i}"], batch_size=-1)
        for name, part in zip(("train", "test"), map(tfds.as_numpy, parts), strict=True):
            rows = source[f"{name}_idx_{i}"]
            np.testing.assert_array_equal(part["x"], source["X"][rows].astype("float32"))
            np.testing.assert_array_equal(part["y"], source["y"][rows].astype("float32"))


def fake_set(monkeypatch):
    """A published set of four examples and one split."""
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4.0)
    splits = [(np.array([0, 1, 2]), np.array([3]))]
    monkeypatch.setitem(
        uci_regression.SETS, "fake", uci_regression.Published("fake", 4, 2, 1, "unknown")
    )
    with pytest.raises(ValueError, match="not the published ones") as error:
        uci_regression.Tables("fake", x, y, splits)
    digest = str(error.value).split("digest ")[1].split(",")[0]
    known = uci_regression.Published("fake", 4, 2, 1, digest)
    monkeypatch.setitem(uci_regression.SETS, "fake", known)
    return x, y, splits


def test_text_files_and_archives_are_the_same(tmp_path, monkeypatch):
    x, y, ((train, test),) = fake_set(monkeypatch)
    # The target stands in the first column.
    np.savetxt(tmp_path / "data.txt", np.c_[y, x])
    np.savetxt(tmp_path / "index_features.txt", [1, 2])
    np.savetxt(tmp_path / "index_target.txt", [0])
    np.savetxt(tmp_path / "index_train_0.txt", train)
    np.savetxt(tmp_path / "index_test_0.txt", test)
    names = uci_regression.file_names(1)
    found = uci_regression.read_text("fake", {n: tmp_path / n for n in names})
    np.testing.assert_array_equal(found.x, x)
    np.savez(tmp_path / "fake.npz", X=x, y=y, train_idx_0=train, test_idx_0=test)
    np.testing.assert_array_equal(uci_regression.read_npz("fake", tmp_path / "fake.npz").y, y)
    np.savez(tmp_path / "fake.npz", X=x, y=y, train_idx_0=train)
    with pytest.raises(ValueError, match="test_idx_0"):
        uci_regression.read_npz("fake", tmp_path / "fake.npz")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.txt", ""),
        ("data.txt", "1 2 3"),
        ("data.txt", "a b c"),
        ("index_features.txt", "1 77"),
        ("index_target.txt", "0 1"),
        ("index_test_0.txt", None),
    ],
)
def test_damaged_text_files_are_named(tmp_path, monkeypatch, file, content):
    x, y, ((train, test),) = fake_set(monkeypatch)
    texts = {
        "data.txt": np.c_[y, x], "index_features.txt": [1, 2], "index_target.txt": [0],
        "index_train_0.txt": train, "index_test_0.txt": test,
    }  # fmt: skip
    for name, values in texts.items():
        np.savetxt(tmp_path / name, values)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="text files of 'fake'"):
        uci_regression.read_text("fake", {n: tmp_path / n for n in texts})


def test_archives_of_other_contents_are_named(tmp_path, monkeypatch):
    x, y, ((train, test),) = fake_set(monkeypatch)
    np.savez(tmp_path / "text.npz", X=x.astype(str), y=y, train_idx_0=train, test_idx_0=["a"])
    np.savez(tmp_path / "object.npz", X=np.array([None]), y=y, train_idx_0=train, test_idx_0=test)
    (tmp_path / "junk.npz").write_text("hello")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, x)
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=path.name):
            uci_regression.read_npz("fake", path)
        with pytest.raises(ValueError, match=path.name):
            load_images("mine", path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": np.int64(1)}, "one whole-numbered label"),
        ({"y_test": np.array([0, 2**40])}, "one whole-numbered label"),
        ({"x_test": np.full((2, 3, 3), 1j)}, "must be real numbers"),
        ({"x_test": np.full((2, 3, 3), "a")}, "must be real numbers"),
        ({"x_test": np.zeros((2, 0, 0))}, "at least one pixel"),
        ({"x_train": np.float32(1.0)}, "must have shape"),
    ],
)
def test_images_of_other_kinds_are_named(tmp_path, changed, message):
    images, labels = np.zeros((2, 3, 3), "uint8"), np.array([0, 1])
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "set.npz", **arrays | changed)
    with pytest.raises(ValueError, match=message):
        load_images("mine", tmp_path / "set.npz")


def test_sets_that_cannot_be_downloaded_are_named(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds, "load", load)
    with pytest.raises(ValueError, match=r"'mnist'; without a network .*--npz FILE.*no route"):
        load_images("mnist")


def test_unknown_sets_are_named():
    with pytest.raises(ValueError, match=r"image set in TFDS, such as mnist\. Received: 'foo'"):
        load_images("foo")


def test_changed_tables_are_refused(monkeypatch):
    x, y, splits = fake_set(monkeypatch)
    uci_regression.Tables("fake", x, y, splits)
    with pytest.raises(ValueError, match="another order"):
        uci_regression.Tables("fake", x[:, ::-1], y, splits)
    with pytest.raises(ValueError, match="has inputs"):
        uci_regression.Tables("fake", x[:, :1], y, splits)
    with pytest.raises(ValueError, match="row 2"):
        uci_regression.Tables("fake", np.where(x == 4.0, np.nan, x), y, splits)


@pytest.mark.parametrize("name", list(SEVERITIES))
def test_corruptions_grow_with_severity(name):
    images = np.random.default_rng(0).uniform(size=(50, 8, 8, 1)).astype("float32")
    changed = [np.abs(corrupt(images, name, s) - images).mean() for s in range(1, 6)]
    assert (np.diff(changed) > 0.0).all()
    assert 0.0 <= corrupt(images, name, 5).min() <= corrupt(images, name, 5).max() <= 1.0
    with pytest.raises(ValueError, match="severity from 1 to 5"):
        corrupt(images, name, 6)


@pytest.mark.parametrize("name", list(TOYS))
def test_toy_grids_reach_beyond_the_data(name):
    toy = TOYS[name](0)
    assert toy.grid.min() < toy.split.x_train.min()
    assert toy.grid.max() > toy.split.x_train.max()
    assert len(toy.split.x_train) == 300
