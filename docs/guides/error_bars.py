"""
Error bars for a regression
===========================

A mean and a standard deviation for every answer, an interval at any level, and bands that open
where there were no data.
"""

import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import bali_keras as bk
import tfp_rank1 as r1

keras.utils.set_random_seed(0)

# %%
# First a curve with a gap. BALI needs no optimizer: every layer is a Bayesian linear regression,
# and ``fit`` infers its posterior. Biases are spread so that the kinks of the ReLUs are, too.

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-2.0, -0.6, 60), rng.uniform(0.6, 2.0, 60)]).astype("float32")
y = (np.sin(3.0 * x) + 0.1 * rng.normal(size=x.shape)).astype("float32")

spread = {"bias_initializer": keras.initializers.RandomNormal(stddev=1.0)}
inputs = keras.Input((1,))
h = bk.layers.DenseBali(64, activation="relu", **spread)(inputs)
h = bk.layers.DenseBali(64, activation="relu", **spread)(h)
curve = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood="normal")
curve.compile()
curve.fit(x[:, None], y, batch_size=20, epochs=100, verbose=0)

grid = np.linspace(-2.5, 2.5, 200, dtype="float32")[:, None]
ax = r1.plots.predictive_band(grid, curve.posterior_predictive(grid, seed=0), data=(x, y))
ax.set_title("A curve with a gap in its data, and bands that open there")

# %%
# The dark band is what the net does not know (epistemic), the light one adds the noise of the data
# (aleatoric), which ``likelihood="normal"`` learns from the residuals.
#
# Now a table: progress of diabetes from ten measurements. Inputs and targets are scaled to unit
# size, as the priors expect; answers are scaled back.

x, y = load_diabetes(return_X_y=True, scaled=False)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
x_mean, x_std = x_train.mean(axis=0), x_train.std(axis=0)
y_mean, y_std = y_train.mean(), y_train.std()

inputs = keras.Input((10,))
h = bk.layers.DenseBali(50, activation="relu")(inputs)
model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood="normal")
model.compile()
model.fit((x_train - x_mean) / x_std, (y_train - y_mean) / y_std, epochs=40, verbose=0)

# %%
# An interval at 90 % should hold nine targets of ten. The calibration curve checks all levels at
# once, in units of the target.

p = model.posterior_predictive((x_test - x_mean) / x_std, seed=0)
low, high = p.credible_interval(0.9)
scaled = (y_test - y_mean) / y_std
ax = r1.plots.calibration_curve(scaled, p, label="diabetes")
ax.set_title("Share of targets below each predicted quantile")
print(f"inside 90 %: {np.mean((low.ravel() <= scaled) & (scaled <= high.ravel())):.0%}")

# %%
# Five patients. To write less, ``tfp_rank1.sklearn.Rank1Regressor`` scales inside: see the guide on
# tables.

pd.DataFrame(
    {
        "truth": y_test[:5],
        "mean": y_mean + y_std * p.mean().ravel()[:5],
        "standard deviation": y_std * p.stddev().ravel()[:5],
        "from": y_mean + y_std * low.ravel()[:5],
        "to": y_mean + y_std * high.ravel()[:5],
    }
).round(0)
