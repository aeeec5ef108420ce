"""
Tables, with scikit-learn
=========================

Estimators for arrays and DataFrames: text, categories and missing values as they come.
"""

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import tfp_rank1 as r1
from bali_keras.sklearn import BaliClassifier, BaliRegressor
from tfp_rank1.sklearn import Rank1Classifier

# %%
# A table of customers, with text, a category and missing ages.

rng = np.random.default_rng(0)
rows = 1200
frame = pd.DataFrame(
    {
        "age": rng.normal(45, 12, rows).round(),
        "job": rng.choice(["cook", "nurse", "teacher"], rows),
        "region": pd.Categorical(rng.choice(["north", "south"], rows)),
        "visits": rng.poisson(4, rows),
    }
)
logit = 0.12 * (frame["age"] - 45) * np.where(frame["job"] == "cook", -1, 1) + 0.4 * (
    frame["visits"] - 4
)
bought = np.where(rng.random(rows) < 1 / (1 + np.exp(-logit)), "yes", "no")
frame.loc[rng.random(rows) < 0.1, "age"] = np.nan
train, test, y_train, y_test = train_test_split(frame, bought, test_size=0.4, random_state=0)

# %%
# Numbers are scaled and embedded, missing ones filled in and marked, text and categories embedded.
# All of it is fitted to the training part and kept with the model. Here few epochs do; the default
# stops early by itself.

model = Rank1Classifier(epochs=20, random_state=0).fit(train, y_train)
pd.DataFrame(model.predict_proba(test.head()), columns=model.classes_, index=test.head().index)

# %%
# Beside boosted trees, in nats per row. Trees take missing numbers as they are and text as a
# category.

as_category = {"job": "category"}
trees = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
trees.fit(train.astype(as_category), y_train)
pd.Series(
    {
        "rank-1": log_loss(y_test, model.predict_proba(test)),
        "boosted trees": log_loss(y_test, trees.predict_proba(test.astype(as_category))),
    },
    name="NLL",
).to_frame().round(3)

# %%
# What the model does not know about a customer (mutual information, in nats), and what nobody could
# know. Members of the rank-1 net agree also where there were no customers; BALI knows that it has
# not seen a pilot of 99.

bali = BaliClassifier(epochs=20, num_bins=8, random_state=0).fit(train, y_train)
unusual = pd.DataFrame(
    {"age": [45, 99, np.nan], "job": ["nurse", "pilot", "cook"], "region": ["north"] * 3}
).assign(visits=[4, 30, 0])
for name, estimator in {"rank-1": model, "BALI": bali}.items():
    found = estimator.predict_uncertainty(unusual[list(frame)])
    unusual[f"{name}: entropy"] = found["entropy"].round(3)
    unusual[f"{name}: information"] = found["mutual_information"].round(3)
unusual

# %%
# A regression with an interval for every row. ``BaliRegressor`` has no learning rate to choose.

price = 3.0 * frame["visits"] + 0.2 * frame["age"].fillna(45) + rng.normal(0, 2, rows)
regressor = BaliRegressor(epochs=20, num_bins=8, random_state=0).fit(train, price.loc[train.index])
low, high = regressor.predict_interval(test, coverage=0.9).T
truth = price.loc[test.index].to_numpy()
print(f"inside 90 %: {np.mean((low <= truth) & (truth <= high)):.0%}")

# %%
# The Keras model is in ``model_`` and takes ``columns_.transform(X)``: all verbs and plots are
# there.

p = model.model_.posterior_predictive(model.columns_.transform(test), seed=0)
codes = np.searchsorted(model.classes_, y_test)
ax = r1.plots.reliability_diagram(codes, p, label="customers")
ax.set_title("Accuracy against confidence, on new customers")
