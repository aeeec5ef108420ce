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
# Now labels are dear. A net with eighty of them asks for sixty more: those with the highest mutual
# information, or any.


def fitted(labelled: np.ndarray) -> bk.BaliModel:
    """The net after a fit to these digits."""
    model = net()
    model.fit(x_train[labelled], y_train[labelled], epochs=40, verbose=0)
    return model


def accuracy(model: bk.BaliModel) -> float:
    """Share of the test digits that the net names right."""
    return np.mean(model.predict(x_test, verbose=0).argmax(axis=-1) == y_test)


labelled, left = np.split(np.random.default_rng(0).permutation(len(x_train)), [80])
first = fitted(labelled)
information = first.posterior_predictive(x_train[left], method="moments").mutual_information()
asked = left[np.argsort(-information)]
found = {"80 labels": accuracy(first)}
for way, order in {"60 more by information": asked, "60 more at random": left}.items():
    found[way] = accuracy(fitted(np.concatenate([labelled, order[:60]])))
pd.Series(found, name="accuracy").to_frame().round(3)

# %%
# What it asks first, and last. With very few labels random ones are as good: what a net does not
# know is then nearly everything.

fig, axes = plt.subplots(2, 8, figsize=(8, 2.2))
for row, digits in zip(axes, (asked[:8], asked[-8:]), strict=True):
    for ax, i in zip(row, digits, strict=True):
        ax.imshow(x_train[i].reshape(8, 8), cmap="gray")
        ax.set_axis_off()
