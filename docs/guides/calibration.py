"""
Calibration, prediction sets and answers left to others
=======================================================

After training, data that were held out make probabilities honest, give sets with a guarantee, and
say which examples to leave to somebody else.
"""

import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfp_rank1 as r1

# %%
# Digits in noise, and a net that is trained for too long.

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16.0 + 0.35 * np.random.default_rng(0).normal(size=x.shape)).astype("float32")
x_train, x_rest, y_train, y_rest = train_test_split(x, y, train_size=700, random_state=0)
x_held, x_test, y_held, y_test = train_test_split(x_rest, y_rest, train_size=0.5, random_state=0)

inputs = keras.Input((64,))
with r1.members(4):
    h = r1.layers.TileMembers()(inputs)
    h = r1.layers.DenseRank1(128, activation="relu")(h)
    outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(h))
model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
model.compile(keras.optimizers.Adam(3e-3), kernel_precision=0.0)  # no prior of the kernels
model.fit(x_train, y_train, epochs=60, verbose=0)
before = model.posterior_predictive(x_test, seed=0)

# %%
# ``calibrate`` finds two numbers on half of what was held out: a scale of all posterior variances
# and a temperature. It takes each only if it gains more than three nats in all. Both are saved with
# the model and exported.

half = len(x_held) // 2
model.calibrate(x_held[:half], y_held[:half])
after = model.posterior_predictive(x_test, seed=0)
ax = r1.plots.reliability_diagram(y_test, before, label="as trained")
r1.plots.reliability_diagram(y_test, after, ax=ax, label="calibrated")
ax.set_title("Accuracy against confidence, before and after calibration")

# %%
# ``conformalize`` takes the other half, which ``calibrate`` did not see. A set then holds the truth
# with at least the probability that you ask for, whatever the model is worth: on average over draws
# of held-out and new examples. One draw, as here, lies above or below by about the last column.

model.conformalize(x_held[half:], y_held[half:])
p = model.posterior_predictive(x_test, seed=0)
coverages = 0.8, 0.9, 0.95, 0.99
sets = {coverage: p.prediction_set(coverage=coverage) for coverage in coverages}
draws = 1 / (len(x_held) - half) + 1 / len(x_test)  # both the held-out and the new ones
pd.DataFrame(
    {
        "holds the truth": [s[np.arange(len(y_test)), y_test].mean() for s in sets.values()],
        "classes in a set": [s.sum(axis=-1).mean() for s in sets.values()],
        "standard error": [np.sqrt(c * (1 - c) * draws) for c in coverages],
    },
    index=pd.Index(coverages, name="asked for"),
).round(3)

# %%
# Or answer only where few errors are to be expected. The rule is the one that answers most of the
# held-out examples at a risk of 5 % there. On new ones about every second such rule exceeds it;
# ``confidence=0.95`` asks for one that nineteen times of twenty does not, which takes more held-out
# examples, or more risk: it is an error where there is none.

rule = r1.metrics.abstention_threshold(
    model.posterior_predictive(x_held, seed=0), y_held, risk=0.05, score="entropy"
)
is_answered = r1.metrics.ood_score(p, "entropy") <= rule.threshold
is_right = p.mean().argmax(axis=-1) == y_test
print(f"answers {is_answered.mean():.0%}, {1 - is_right[is_answered].mean():.1%} of these wrong")

ax = r1.plots.risk_coverage(y_test, p, label="entropy")
ax.set_title("Errors among the answers, and where the rule stops")
ax.axvline(is_answered.mean(), color=r1.plots.GRAY, linestyle=":")
