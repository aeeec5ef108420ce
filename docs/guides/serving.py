"""
Serving: SavedModel, ONNX, LiteRT
=================================

Answers leave Python with the model. A SavedModel draws fresh samples; a file of moments answers in
one pass and needs no TensorFlow.
"""

import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pandas as pd
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_rank1 as r1

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0)

inputs = keras.Input((64,))
with r1.members(4):
    h = r1.layers.TileMembers()(inputs)
    h = r1.layers.DenseRank1(100, activation="relu")(h)
    outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(h))
model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
model.compile("adam", kernel_precision=0.01)  # given, so that it is not searched
model.fit(x_train, y_train, epochs=30, verbose=0)
folder = Path(tempfile.mkdtemp())

# %%
# ``model.keras`` is for going on in Keras: weights, random state, N, calibration.

model.save(folder / "model.keras")
loaded = keras.models.load_model(folder / "model.keras")
same = np.array_equal(loaded.predict(x_test, verbose=0), model.predict(x_test, verbose=0))
print("answers the same after loading:", same)

# %%
# A SavedModel for TensorFlow Serving or any TensorFlow client, which needs neither this package nor
# TensorFlow Probability. Its answers are mean probabilities, entropies and mutual information.

model.export_predictive(str(folder / "served"))
served = tf.saved_model.load(str(folder / "served"))
for name, value in served.serve(x_test).items():
    print(name, value.shape)
served.samples(x_test[:2], 8, tf.constant([1, 2]))  # raw outputs; the seed repeats them

# %%
# Moments carry a mean and a variance of every activation through the net once, without draws. They
# become an ONNX or a LiteRT file. The answers below come from onnxruntime.

model.export_predictive(str(folder / "served.onnx"), method="moments", format="onnx")
session = onnxruntime.InferenceSession(str(folder / "served.onnx"))
names = [output.name for output in session.get_outputs()]
(feed,) = session.get_inputs()
answers = dict(zip(names, session.run(None, {feed.name: x_test}), strict=True))
print({name: value.shape for name, value in answers.items()})

# %%
# Three ways to ask for one row, in milliseconds (medians of 50), and what each scores on all test
# digits.


def milliseconds(ask: object, times: int = 50) -> float:
    """Median time of a call."""
    ask()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


one = tf.constant(x_test[:1])
of_label = np.arange(len(y_test)), y_test
probabilities = {
    "SavedModel, samples": served.serve(x_test)["probs"].numpy(),
    "ONNX, moments": answers["probs"],
    "Keras predict": model.predict(x_test, verbose=0),
}
times = {
    "SavedModel, samples": milliseconds(lambda: served.serve(one)),
    "ONNX, moments": milliseconds(lambda: session.run(None, {feed.name: x_test[:1]})),
    "Keras predict": milliseconds(lambda: model.predict(x_test[:1], verbose=0)),
}
pd.DataFrame(
    {
        "ms per request": times,
        "NLL": {name: -np.mean(np.log(p[of_label])) for name, p in probabilities.items()},
    }
).round(3)
