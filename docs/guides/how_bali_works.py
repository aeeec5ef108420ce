r"""
How BALI works
==============

Every layer is a Bayesian linear regression. Its inputs are :math:`h` (with a trailing 1), its
pre-activations :math:`z`, and its weights have a matrix-normal posterior:

.. math::

    z_n \mid h_n, W \sim \mathcal{N}(W^\top h_n, V), \qquad
    W \sim \mathcal{MN}(M, L^{-1}, V), \qquad L = (L_0 + N S) / c

A step asks the gradient :math:`g` of the log-likelihood where every pre-activation should go, and
takes the answer as a regression target (`Kurle et al., 2024 <https://arxiv.org/abs/2411.12102>`__).
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

import bali_keras as bk
import tfp_rank1 as r1

# %%
# **One layer is exact.** A single linear layer with Gaussian noise, and one batch of all data, is
# conjugate regression. Beside it: the closed form, in float64.

keras.utils.set_random_seed(0)
x, y = load_diabetes(return_X_y=True)
x, y = x / x.std(axis=0), (y - y.mean()) / y.std()
NOISE, PRIOR = 0.7, 1.0
inputs = keras.Input((10,))
linear = bk.BaliModel(
    inputs, bk.layers.DenseBali(1)(inputs), likelihood=r1.likelihoods.Normal(scale=NOISE)
)
linear.compile(forgetting=1.0, prior_row_precision=PRIOR, warmup_steps=0, factorise_every=1)
linear.fit(x, y, batch_size=len(x), epochs=1, verbose=0)

h = np.c_[x, np.ones(len(x))]
precision = PRIOR * np.eye(11) + h.T @ h
mean = np.linalg.solve(precision, h.T @ y)
posterior = linear.layers[-1].posterior
stddev = NOISE * np.sqrt(np.diag(np.linalg.inv(precision)))
pd.DataFrame(
    {
        "BALI, mean": np.ravel(posterior.mean()),
        "closed form": mean,
        "BALI, standard deviation": np.ravel(posterior.stddev()),
        "closed form ": stddev,
    }
).round(4)

# %%
# **Deep nets need targets.** Within a net nobody observes :math:`z`. The pseudo-targets are
#
# .. math::  y_n = M^\top h_n + V g_n
#
# and the statistics are moving averages: S of :math:`h h^\top` and F of scores :math:`s s^\top`,
# with :math:`V^{-1} = F + \text{damping}`. The mean that follows is the natural-gradient step
#
# .. math::
#
#     M \leftarrow M + \rho\,(c L)^{-1} \Bigl[\tfrac{N}{B} H^\top G V - L_0 (M - M_0)\Bigr]
#
# ``fit`` logs how it goes: ``rate`` is :math:`\rho`, and ``step_kl`` the size of a step in nats per
# example.

x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0)


def net(dense: type, model: type) -> r1.BayesianModel:
    """64 - 64 - 64 - 10."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = dense(64, activation="relu")(inputs)
    h = dense(64, activation="relu")(h)
    return model(inputs, dense(10)(h), likelihood="categorical")


bali = net(bk.layers.DenseBali, bk.BaliModel)
bali.compile(prior_precision=0.02, covariance_scale=1.0)
stock = net(keras.layers.Dense, r1.BayesianModel)
stock.compile("adam")
histories = {
    name: model.fit(
        x_train, y_train, epochs=15, validation_data=(x_test, y_test), verbose=0
    ).history
    for name, model in {"BALI": bali, "stock, Adam": stock}.items()
}

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
epochs = 1 + np.arange(len(histories["BALI"]["rate"]))
for name, history in histories.items():
    axes[0].plot(epochs, history["val_nll"], "o-", markersize=3, label=name)
axes[0].set(title="NLL by epoch", xlabel="epoch", ylabel="NLL of test digits", yscale="log")
axes[0].legend()
for name in ("rate", "step_kl"):
    axes[1].plot(epochs, histories["BALI"][name], label=name)
axes[1].set(title="Logs of BALI by epoch", xlabel="epoch", yscale="log")
axes[1].legend()
fig.tight_layout()

# %%
# **What the data determined.** Along each eigenvector of S a layer knows its weights to some
# variance. Directions that the inputs never take keep that of the prior, and these open the error
# bars elsewhere.

ax = None
for layer in bali.layers[1:]:
    ax = bk.plots.row_spectrum(layer, ax=ax)
ax.set_title("What the data determined, layer by layer")

# %%
# **Found from the data.** The prior, the damping and the scale c of all covariances come from short
# fits that are judged on held-out parts of the training set, at the first ``fit``. A number given
# to ``compile`` stays. Here they were given, so that nothing had to be searched.

pd.Series(
    {name: values[-1] for name, values in histories["BALI"].items() if np.isscalar(values[-1])}
).to_frame("at the end of fit")
