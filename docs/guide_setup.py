"""What every guide starts from: no state of another, one look, and in smoke mode few steps."""

from __future__ import annotations

import os
from typing import Any

import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import tfp_rank1 as r1

SMOKE_EPOCHS = 1
_fit = keras.Model.fit
_devices_are_set = False


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Called by the gallery before each guide and after it."""
    _set_devices()
    tf.get_logger().setLevel("ERROR")  # of functions that are traced again for every net
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")
    plt.rcdefaults()
    plt.rcParams.update(r1.plots.LOOK)
    plt.rcParams.update({"figure.figsize": (6.0, 3.8), "figure.dpi": 100})
    if os.environ.get("RANK1_BALI_GUIDES") == "smoke":
        keras.Model.fit = _short_fit


def _set_devices() -> None:
    """Two processors, as the guide on devices asks; TensorFlow sets them before its first use."""
    global _devices_are_set
    if not _devices_are_set:
        processor = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, two)
        _devices_are_set = True


def _short_fit(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
    """`fit` of an epoch, or of as many as the guide asks for if they are fewer."""
    if kwargs.get("epochs", 1) > SMOKE_EPOCHS:
        kwargs["epochs"] = SMOKE_EPOCHS
    return _fit(self, *args, **kwargs)
