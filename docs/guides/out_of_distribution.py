"""
Inputs unlike the training data
===============================

A stock net answers everything with confidence. Mutual information tells what the net has not seen.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bali_keras as bk
import tfp_rank1 as r1

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, x_test, y_train, _ = train_test_split(x, y, test_size=0.5, random_state=0)

# %%
# The same net of three kinds of layers.


def classifier(dense: type, model: type, members: int = 0) -> r1.BayesianModel:
    """64 - 100 - 100 - 10."""
    inputs = keras.Input((64,))
    h = r1.layers.TileMembers(members)(inputs) if members else inputs
    own = {"ensemble_size": members} if members else {}
    for _ in range(2):
        h = dense(100, activation="relu", **own)(h)
    h = dense(10, **own)(h)
    outputs = r1.layers.SplitMembers(members)(h) if members else h
    return model(inputs, outputs, likelihood="categorical")


nets = {
    "stock": classifier(keras.layers.Dense, r1.BayesianModel),
    "rank-1": classifier(r1.layers.DenseRank1, r1.BayesianModel, members=4),
    "BALI": classifier(bk.layers.DenseBali, bk.BaliModel),
}
for name, net in nets.items():
    net.compile(**({} if name == "BALI" else {"optimizer": "adam"}))
    net.fit(x_train, y_train, epochs=15, verbose=0)

# %%
# Unlike the training data: the same digits with their blocks of 4 x 4 pixels in another order.

rng = np.random.default_rng(0)
blocks = x_test.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)
blocks = blocks[:, [3, 0, 1, 2]].reshape(-1, 2, 2, 4, 4).transpose(0, 1, 3, 2, 4)
strange = blocks.reshape(-1, 64)
fig, axes = plt.subplots(1, 6, figsize=(7, 1.6))
fig.suptitle("Digits, each with its blocks in another order")
for i, ax in enumerate(axes):
    ax.imshow((x_test if i % 2 == 0 else strange)[i // 2].reshape(8, 8), cmap="gray")
    ax.set_axis_off()

# %%
# How well a score tells the two apart: 1 is always, 0.5 is by chance.

answers = {
    name: (net.posterior_predictive(x_test, seed=0), net.posterior_predictive(strange, seed=0))
    for name, net in nets.items()
}


def auroc(inside: r1.PosteriorPredictive, outside: r1.PosteriorPredictive, score: str) -> float:
    """Area under the ROC curve of a score."""
    metric = r1.metrics.OODAUROC(score)
    metric.update_state(np.zeros(len(x_test)), inside)
    metric.update_state(np.ones(len(strange)), outside)
    return float(metric.result())


scores = "max_probability", "entropy", "mutual_information"
pd.DataFrame(
    {
        score: {
            name: auroc(*pair, score)
            for name, pair in answers.items()
            if score != "mutual_information" or name != "stock"
        }
        for score in scores
    }
).round(3)

# %%
# The stock net has no mutual information: one net cannot disagree with itself.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for name, pair in answers.items():
    r1.plots.ood_roc(*pair, score="entropy", ax=axes[0], label=name)
axes[0].set_title("Detection by entropy")
r1.plots.ood_histogram(*answers["BALI"], score="mutual_information", ax=axes[1])
axes[1].set_title("Mutual information of BALI")
fig.tight_layout()
