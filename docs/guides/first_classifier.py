"""
A first classifier
==================

A net for noisy scans of handwritten digits that says how sure it is: built of rank-1 layers,
trained with ``model.fit``, and compared with the stock net of the same size.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_rank1 as r1

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16.0 + 0.2 * np.random.default_rng(0).normal(size=x.shape)).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, train_size=700, random_state=0)

# %%
# Four members share every kernel. Each perturbs it by random factors of its own, so one net answers
# as an ensemble does. ``TileMembers`` repeats the batch for the members, ``SplitMembers`` gives the
# outputs an axis of members. The last layer has no softmax: the likelihood applies it.


def rank1_net() -> r1.BayesianModel:
    """64 - 128 - 128 - 10 with four members."""
    inputs = keras.Input((64,))
    with r1.members(4):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(128, activation="relu")(h)
        h = r1.layers.DenseRank1(128, activation="relu")(h)
        h = r1.layers.DenseRank1(10)(h)
        outputs = r1.layers.SplitMembers()(h)
    return r1.BayesianModel(inputs, outputs, likelihood="categorical")


def stock_net() -> r1.BayesianModel:
    """The same net of stock layers, under the same model."""
    inputs = keras.Input((64,))
    h = keras.layers.Dense(128, activation="relu")(inputs)
    h = keras.layers.Dense(128, activation="relu")(h)
    return r1.BayesianModel(inputs, keras.layers.Dense(10)(h), likelihood="categorical")


# %%
# ``fit`` finds the number N of training examples, weights the KL divergence by 1/N and logs ``nll``
# and ``kl``, both in nats per example, the ``kl_weight``, and ``refused``, the share of steps that
# were left out because a number in them was not finite. Both nets get the same epochs of the same
# optimizer.

models = {"stock": stock_net(), "rank-1": rank1_net()}
history = {}
for name, model in models.items():
    model.compile(keras.optimizers.Adam(1e-3))
    history[name] = model.fit(
        x_train,
        y_train,
        epochs=20,
        validation_data=(x_test[:200], y_test[:200]),
        verbose=0,
    )
ax = r1.plots.training_history(history["rank-1"])
ax.set_title("NLL and KL by epoch", loc="left")

# %%
# ``posterior_predictive`` holds the answers of many draws, as NumPy arrays. Lower is better in NLL
# (negative log-likelihood, nats) and ECE (expected calibration error).

x_new, y_new = x_test[200:], y_test[200:]
answers = {name: model.posterior_predictive(x_new, seed=0) for name, model in models.items()}


def scores(p: r1.PosteriorPredictive) -> dict[str, float]:
    """Accuracy, NLL and ECE on the new digits."""
    ece = r1.metrics.ExpectedCalibrationError()
    ece.update_state(y_new, p)
    return {
        "accuracy": np.mean(p.mean().argmax(axis=-1) == y_new),
        "NLL": -np.mean(p.log_prob(y_new)),
        "ECE": float(ece.result()),
    }


pd.DataFrame({name: scores(p) for name, p in answers.items()}).T.round(3)

# %%
# Confidence against accuracy: points below the diagonal promise too much.

ax = None
for name, p in answers.items():
    ax = r1.plots.reliability_diagram(y_new, p, ax=ax, label=name)
ax.set_title("Accuracy against confidence")

# %%
# The digits that the net knows least about, by mutual information: what more data would tell.

doubtful = np.argsort(-answers["rank-1"].mutual_information())[:8]
fig, axes = plt.subplots(1, 8, figsize=(8, 1.4))
for i, ax in zip(doubtful, axes, strict=True):
    ax.imshow(x_new[i].reshape(8, 8), cmap="gray")
    ax.set_title(f"{y_new[i]} or {answers['rank-1'].mean()[i].argmax()}?", fontsize=9)
    ax.set_axis_off()
