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

SMOKE_EPOCHS = 2


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Called by the gallery before each guide and after it."""
    tf.get_logger().setLevel("ERROR")  # of functions that are traced again for every net
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")
    plt.rcdefaults()
    plt.rcParams.update(r1.plots.LOOK)
    plt.rcParams.update({"figure.figsize": (6.0, 3.8), "figure.dpi": 100})


def _short(fit: Callable[..., Any]) -> Callable[..., Any]:
    """`fit` of a few epochs."""

    @functools.wraps(fit)
    def short(*args: Any, **kwargs: Any) -> Any:
        kwargs["epochs"] = min(SMOKE_EPOCHS, kwargs.get("epochs", 1))
        return fit(*args, **kwargs)

    return short


# Once per process. TensorFlow makes two processors, as the guide on devices asks, before its first
# use; and a model of any class fits briefly in smoke mode.
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
if os.environ.get("RANK1_BALI_GUIDES") == "smoke":
    for cls in (keras.Model, r1.BayesianModel, bk.BaliModel):
        cls.fit = _short(cls.fit)
