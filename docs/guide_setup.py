"""What every guide starts from: no state of another, one look, and in smoke mode few steps."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1

_state = {"devices_are_set": False, "fits_are_short": False}


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
        _shorten_fits()


def _set_devices() -> None:
    """Two processors, as the guide on devices asks; TensorFlow sets them before its first use."""
    if not _state["devices_are_set"]:
        processor = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, two)
        _state["devices_are_set"] = True


def _shorten_fits() -> None:
    """Give every `fit` at most two epochs, whichever class is asked."""
    if not _state["fits_are_short"]:
        for cls in (keras.Model, r1.BayesianModel, bk.BaliModel):
            cls.fit = _short(cls.fit)
        _state["fits_are_short"] = True


def _short(fit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fit)
    def short(*args: Any, **kwargs: Any) -> Any:
        kwargs["epochs"] = min(2, kwargs.get("epochs", 1))
        return fit(*args, **kwargs)

    return short
