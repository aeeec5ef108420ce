"""
Many devices, and what goes wrong
=================================

Strategies of TensorFlow, half precision, a process that is killed and a batch that is broken.
"""

import tempfile
import warnings

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.datasets import load_digits

import bali_keras as bk
import tfp_rank1 as r1

# %%
# Two devices of this computer's processor stand for two GPUs. Leave these two lines out where there
# are GPUs. ``MirroredStrategy()`` then finds all of them.

processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")


def bali() -> bk.BaliModel:
    """64 - 50 - 10, compiled."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile(prior_precision=0.02, covariance_scale=1.0)
    return model


# %%
# Build and compile in the strategy's scope; nothing else changes. The batch is that of all replicas
# together. A BALI net infers the same posterior on any number of them.

one = bali()
with strategy.scope():
    two = bali()
for model in (one, two):
    model.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0)
difference = np.max(np.abs(one.layers[-1].kernel - two.layers[-1].kernel))
print(f"largest difference of a weight between one and two replicas: {difference:.1e}")

# %%
# Half precision is a policy of Keras. Posteriors, KL and BALI's statistics stay in float32.

keras.config.set_dtype_policy("mixed_bfloat16")
half = bali()
keras.config.set_dtype_policy("float32")
half.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0)
print("computes in", half.layers[-1].compute_dtype, "and keeps", half.layers[-1].kernel.dtype.name)

# %%
# A process that is killed. ``Resume`` saves after every epoch and goes on from there: the second
# run ends with the bits of a run that nobody stopped.


def rank1() -> r1.BayesianModel:
    """64 - 50 - 10 with two members, compiled."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    with r1.members(2):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(50, activation="relu")(h)
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    model.compile("adam", kernel_precision=0.01)
    return model


class PowerCut(keras.callbacks.Callback):
    """Ends the process, or as much as a guide may, after two epochs."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Raise in the third epoch's place."""
        if epoch == 1:
            raise KeyboardInterrupt


folder = tempfile.mkdtemp()
try:
    rank1().fit(x, y, epochs=4, verbose=0, callbacks=[r1.callbacks.Resume(folder), PowerCut()])
except KeyboardInterrupt:
    print("cut after two epochs")
resumed, whole = rank1(), rank1()
resumed.fit(x, y, epochs=4, verbose=0, callbacks=[r1.callbacks.Resume(folder)])
whole.fit(x, y, epochs=4, verbose=0, callbacks=[r1.callbacks.Resume(tempfile.mkdtemp())])
same = all(map(np.array_equal, resumed.get_weights(), whole.get_weights()))
print("the same bits as without the cut:", same)

# %%
# A broken batch: its loss is not finite, so the step is refused, counted and warned of. Weights,
# optimizer and posteriors stay as they were.

broken = x.copy()
broken[64] = np.nan
rows = {}
for name, model in {"rank-1": rank1(), "BALI": bali()}.items():
    data = tf.data.Dataset.from_tensor_slices((broken, y)).batch(64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(data, epochs=2, verbose=0).history
    rows[name] = {
        "refused share of steps": history["refused"][-1],
        "finite weights": all(np.isfinite(w).all() for w in model.get_weights()),
        "warning": str(caught[-1].message),
    }
pd.set_option("display.max_colwidth", None)
pd.DataFrame(rows).T
