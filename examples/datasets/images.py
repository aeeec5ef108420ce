"""Image sets: any TFDS set by name, or a local NumPy archive; and corruptions of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from examples.datasets.small import UNREADABLE, Split

# Severities 1 to 5: standard deviation of the noise, remaining contrast, added brightness.
SEVERITIES = {
    "gaussian_noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "contrast": (0.75, 0.6, 0.45, 0.3, 0.15),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
}


def load_images(
    name: str,
    npz: Path | None = None,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
) -> Split:
    """Pixels in [0, 1], float32 `[N, H, W, C]`, and labels `[N]`, of the official splits.

    Args:
        name: of the set in TFDS, for example `"mnist"`; it needs splits `train` and `test`.
        npz: a local archive in place of TFDS, with `x_train`, `y_train`, `x_test` and `y_test`.
        data_dir: of TFDS; None for its own default.
        manual_dir: where TFDS finds files that were fetched by hand.

    Raises:
        ValueError: if the file is missing, cannot be read, or has other contents.
    """
    arrays = _from_tfds(name, data_dir, manual_dir) if npz is None else _from_npz(npz)
    empty = [key for key, values in arrays.items() if not len(values)]
    if empty:
        raise ValueError(f"The set {name!r} needs at least one image. Received: empty {empty}")
    x_train, x_test = (_pixels(name, arrays[f"x_{part}"]) for part in ("train", "test"))
    y_train, y_test = (np.asarray(arrays[f"y_{part}"]).ravel() for part in ("train", "test"))
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y) or y.dtype.kind not in "iu" or not 0 <= y.min() <= y.max() < 2**31:
            raise ValueError(
                f"The set {name!r} needs one whole-numbered label from 0 per image. Received: "
                f"{len(x)} images and {len(y)} labels of dtype {y.dtype} in y_{part}"
            )
    return Split(x_train, y_train.astype("int32"), x_test, y_test.astype("int32"))


def _from_tfds(name: str, data_dir: Path | None, manual_dir: Path | None) -> dict[str, np.ndarray]:
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        train, test = tfds.load(
            name,
            split=["train", "test"],
            batch_size=-1,
            data_dir=data_dir,
            download_and_prepare_kwargs={"download_config": config},
        )
    except tfds.core.DatasetNotFoundError as error:  # whose message lists all sets
        raise ValueError(
            "Data are `uci`, `toy` (or one of them, `uci/boston`, `toy/gap`), or the name of an "
            f"image set in TFDS, such as mnist. Received: {name!r}"
        ) from error
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(
            f"TFDS cannot download or read the set {name!r}; without a network give a local "
            f"archive, --npz FILE. Received: {type(error).__name__}: {error}"
        ) from error
    parts = (("train", tfds.as_numpy(train)), ("test", tfds.as_numpy(test)))
    arrays = {}
    for part, values in parts:
        if not {"image", "label"} <= values.keys():
            raise ValueError(
                f"The TFDS set {name!r} must have the features 'image' and 'label'. "
                f"Received: {sorted(values)}"
            )
        arrays[f"x_{part}"], arrays[f"y_{part}"] = values["image"], values["label"]
    return arrays


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    names = [f"{a}_{part}" for a in "xy" for part in ("train", "test")]
    try:
        with open(path, "rb") as file, np.load(file) as data:
            return {name: np.atleast_1d(data[name]) for name in names}
    except UNREADABLE as error:
        raise ValueError(
            f"An image archive must hold the arrays {names}. Received: {path}: {error}"
        ) from error


def _pixels(name: str, images: np.ndarray) -> np.ndarray:
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(
            f"Images of {name!r} must have shape [N, H, W] or [N, H, W, C]. "
            f"Received: {images.shape}"
        )
    if images.dtype.kind not in "uif" or not images.size:
        raise ValueError(
            f"Images of {name!r} must be real numbers, at least one pixel each. "
            f"Received: dtype {images.dtype}, shape {images.shape}"
        )
    pixels = (images / 255.0 if images.dtype == np.uint8 else images).astype("float32")
    if not (np.isfinite(pixels).all() and pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise ValueError(
            f"Images of {name!r} must be uint8, or finite numbers in [0, 1]. "
            f"Received: dtype {images.dtype} from {images.min()} to {images.max()}"
        )
    return pixels


def corrupt(images: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupted copies of images in [0, 1].

    Args:
        images: `[N, ...]`.
        corruption: a key of `SEVERITIES`.
        severity: 1 to 5.
        seed: of the noise.

    Raises:
        ValueError: for another corruption or severity.
    """
    if corruption not in SEVERITIES or severity not in range(1, 6):
        raise ValueError(
            f"A corruption is one of {sorted(SEVERITIES)} with a severity from 1 to 5. "
            f"Received: {corruption!r}, {severity!r}"
        )
    amount = SEVERITIES[corruption][severity - 1]
    if corruption == "gaussian_noise":
        changed = images + amount * np.random.default_rng(seed).standard_normal(images.shape)
    elif corruption == "contrast":
        middle = images.mean(axis=tuple(range(1, images.ndim)), keepdims=True)
        changed = middle + amount * (images - middle)
    else:
        changed = images + amount
    return np.clip(changed, 0.0, 1.0).astype("float32")
