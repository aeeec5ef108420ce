"""
Forecasting: a band for every hour
==================================

An LSTM with rank-1 factors predicts the next hours of a series, each with its mean and its noise.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import tfp_rank1 as r1

keras.utils.set_random_seed(0)

# %%
# A load that follows the day and the week, with noise that grows in the afternoon.

rng = np.random.default_rng(0)
hour = np.arange(24 * 7 * 20)
day, week = 2 * np.pi * hour / 24, 2 * np.pi * hour / (24 * 7)
noise = 0.08 + 0.12 * np.maximum(0.0, np.sin(day - np.pi / 2))
series = (np.sin(day) + 0.4 * np.sin(week) + noise * rng.normal(size=hour.shape)).astype("float32")

PAST, AHEAD = 48, 12
starts = np.arange(0, len(series) - PAST - AHEAD, 6)
windows = np.stack([series[s : s + PAST + AHEAD] for s in starts])
x, y = windows[:, :PAST, None], windows[:, PAST:, None]
train = len(x) * 3 // 4
x_train, y_train, x_test, y_test = x[:train], y[:train], x[train + 8 :], y[train + 8 :]

# %%
# One draw of the factors holds for a whole sequence. The two numbers per hour are a mean and a
# scale, as ``HeteroscedasticNormal`` asks.

inputs = keras.Input((PAST, 1))
with r1.members(4):
    h = r1.layers.TileMembers()(inputs)
    h = r1.layers.LSTMRank1(32)(h)
    h = keras.layers.RepeatVector(AHEAD)(h)
    h = r1.layers.LSTMRank1(32, return_sequences=True)(h)
    outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(2)(h))
model = r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.HeteroscedasticNormal())
model.compile(keras.optimizers.Adam(5e-3))
model.fit(x_train, y_train, batch_size=64, epochs=15, verbose=0)

# %%
# The band of one window, and the coverage of every hour ahead.

p = model.posterior_predictive(x_test, num_samples=32, seed=0)
low, high = p.credible_interval(0.9)
ahead = np.arange(1, AHEAD + 1)
fig, ax = plt.subplots()
ax.set_title("A forecast with intervals")
ax.plot(np.arange(-PAST + 1, 1), x_test[10, :, 0], color=r1.plots.GRAY, label="past")
ax.plot(ahead, y_test[10, :, 0], ".", color=r1.plots.ORANGE, label="what came")
ax.plot(ahead, p.mean()[10, :, 0], color=r1.plots.BLUE, label="mean")
ax.fill_between(ahead, low[10, :, 0], high[10, :, 0], color=r1.plots.BLUE, alpha=0.3, label="90 %")
ax.set(xlabel="hours ahead", ylabel="load")
ax.legend(ncols=2)

# %%

is_inside = (low <= y_test) & (y_test <= high)
pd.DataFrame(
    {
        "coverage of 90 %": is_inside.mean(axis=(0, 2)),
        "standard deviation": p.stddev().mean(axis=(0, 2)),
    },
    index=pd.Index(ahead, name="hours ahead"),
).round(2)
