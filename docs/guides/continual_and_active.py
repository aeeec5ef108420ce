"""
Data that come later
====================

A second task without forgetting the first, and the labels that are worth asking for. Both ask the
posterior: it is the prior of what comes next, and says what is not known yet.
"""

import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bali_keras as bk

x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0)


def net() -> bk.BaliModel:
    """64 - 50 - 10."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile(prior_precision=0.02, covariance_scale=1.0)
    return model


# %%
# First the digits 0 to 4, then 5 to 9, which are all that the second ``fit`` sees. Without
# ``posterior_to_prior`` it forgets the first task, and warns.

is_first = y_train < 5
rows = {}
for strength in (None, 0.3):
    model = net()
    model.fit(x_train[is_first], y_train[is_first], epochs=20, verbose=0)
    if strength is not None:
        model.posterior_to_prior(strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x_train[~is_first], y_train[~is_first], epochs=20, verbose=0)
    is_right = model.predict(x_test, verbose=0).argmax(axis=-1) == y_test
    rows["no prior" if strength is None else f"posterior_to_prior({strength})"] = {
        "digits 0-4": is_right[y_test < 5].mean(),
        "digits 5-9": is_right[y_test >= 5].mean(),
    }
pd.DataFrame(rows).T.round(3)

# %%
# Now labels are dear, and the pool of scans is lopsided, as pools are: nine of ten show a digit
# below 5. A net with eighty labels asks for sixty more: those with the highest mutual information,
# or any. The test digits are all digits alike.

rng = np.random.default_rng(0)
of_digit = [rng.permutation(np.flatnonzero(y_train == digit)) for digit in range(10)]
pool = rng.permutation(np.concatenate([*of_digit[:5], *(rows[:10] for rows in of_digit[5:])]))


def fitted(labelled: np.ndarray) -> bk.BaliModel:
    """The net after a fit to these digits."""
    model = net()
    model.fit(x_train[labelled], y_train[labelled], epochs=40, verbose=0)
    return model


def accuracy(model: bk.BaliModel) -> float:
    """Share of the test digits that the net names right."""
    return np.mean(model.predict(x_test, verbose=0).argmax(axis=-1) == y_test)


labelled, left = np.split(pool, [80])
first = fitted(labelled)
information = first.posterior_predictive(x_train[left], method="moments").mutual_information()
asked = left[np.argsort(-information)]
ways = {
    "80 labels": labelled,
    "60 more by information": np.concatenate([labelled, asked[:60]]),
    "60 more at random": np.concatenate([labelled, left[:60]]),
}
found = {
    way: {"accuracy": accuracy(fitted(rows)), "digits from 5 on": np.mean(y_train[rows] >= 5)}
    for way, rows in ways.items()
}
pd.DataFrame(found).T.round(3)

# %%
# What it asks first, and last. From a pool that has all digits alike random labels are nearly as
# good: what a net of few labels does not know is then nearly everything.

fig, axes = plt.subplots(2, 8, figsize=(8, 2.4))
fig.suptitle("Digits that the net asks for first (above) and last (below)")
for row, digits in zip(axes, (asked[:8], asked[-8:]), strict=True):
    for ax, i in zip(row, digits, strict=True):
        ax.imshow(x_train[i].reshape(8, 8), cmap="gray")
        ax.set_axis_off()
