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
import tfp_rank1 as r1

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
for strength in (None, 0.1, 0.3, 1.0):
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
# Now labels are dear: start with twenty, and ask for twenty more at a time, those with the highest
# mutual information or any.


def accuracies(way: str, rounds: int = 5) -> list[float]:
    """Accuracy on the test digits after every round."""
    rng = np.random.default_rng(0)
    labelled, left = np.split(rng.permutation(len(x_train)), [20])
    found = []
    for _ in range(rounds):
        model = net()
        model.fit(x_train[labelled], y_train[labelled], epochs=40, verbose=0)
        found.append(np.mean(model.predict(x_test, verbose=0).argmax(axis=-1) == y_test))
        p = model.posterior_predictive(x_train[left], method="moments")
        by_information = np.argsort(-p.mutual_information())
        order = by_information if way == "information" else np.arange(len(left))
        labelled, left = np.concatenate([labelled, left[order[:20]]]), left[order[20:]]
    return found


fig, ax = plt.subplots()
labels = 20 + 20 * np.arange(5)
for way, color in (("information", r1.plots.BLUE), ("random", r1.plots.ORANGE)):
    ax.plot(labels, accuracies(way), "o-", color=color, label=way)
ax.set(xlabel="labels", ylabel="accuracy", xticks=labels)
ax.legend()
