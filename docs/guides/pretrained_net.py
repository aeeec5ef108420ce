"""
A pretrained network
====================

``convert`` makes a Bayesian net of one that you have. Kernels stay, factors start at 1, and every
member computes the original function until you train.
"""

import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bali_keras as bk
import tfp_rank1 as r1

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
images = (x.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(images, y, test_size=0.5, random_state=0)

# %%
# The net that stands for yours: a small CNN with batch normalization, trained for long enough to be
# too sure of itself. Instead of it take ``keras.applications.ResNet50()``, a model of KerasHub, or
# a file of your own. MobileNetV2, EfficientNet, ConvNeXt and ResNet convert in seconds.

net = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
net.compile("adam", "sparse_categorical_crossentropy")
net.fit(x_train, y_train, epochs=15, verbose=0)

# %%
# Three lines, and a report. ``convert`` runs both nets on random inputs and refuses a difference;
# it drops the softmax, since the likelihood applies it.

rank1 = r1.convert(net, likelihood="categorical", ensemble_size=4)
rank1.compile(keras.optimizers.Adam(1e-3))
rank1.fit(x_train, y_train, epochs=5, verbose=0)
print(rank1.conversion_report)

# %%
# BALI takes the same net and infers a posterior around its kernels, without an optimizer.

bali = bk.convert(net, likelihood="categorical")
bali.compile()
bali.fit(x_train, y_train, epochs=15, verbose=0)

# %%
# Compared with the net as it was, on digits that none of them saw.

probabilities = {
    "as it was": net.predict(x_test, verbose=0),
    "rank-1": rank1.posterior_predictive(x_test, seed=0).mean(),
    "BALI": bali.posterior_predictive(x_test, seed=0).mean(),
}


def scores(p: np.ndarray) -> dict[str, float]:
    """Accuracy, and negative log-likelihood in nats."""
    of_label = p[np.arange(len(y_test)), y_test]
    return {"accuracy": np.mean(p.argmax(axis=-1) == y_test), "NLL": -np.mean(np.log(of_label))}


pd.DataFrame({name: scores(p) for name, p in probabilities.items()}).T.round(3)

# %%
# What the factors of the last layer became. Their means left 1, where they started. Their standard
# deviations hardly move in so short a training; the dashed line is the prior's.

ax = r1.plots.factor_posteriors(rank1.layers[-2])
ax.set_title("Factors of the last layer after training")
