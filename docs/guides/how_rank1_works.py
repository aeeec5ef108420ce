r"""
How rank-1 layers work
======================

One kernel :math:`W` for all members, and for member :math:`k` a random rank-1 perturbation of it:

.. math::

    W_k = W \circ (r_k s_k^\top), \qquad
    y = \phi\bigl(s_k \circ (W^\top (x \circ r_k)) + b_k\bigr), \qquad
    r_k \sim q(r_k),\; s_k \sim q(s_k)

The product is that of the stock layer, once for all members; the factors are vectors
(`Dusenberry et al., 2020 <https://arxiv.org/abs/2005.07186>`__).
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow_probability as tfp

import tfp_rank1 as r1

keras.utils.set_random_seed(0)
MEMBERS, INPUTS, UNITS = 4, 64, 32

# %%
# A layer and its variables: a kernel, and for each factor a mean and a standard deviation per
# member.

layer = r1.layers.DenseRank1(UNITS, ensemble_size=MEMBERS)
x = np.random.default_rng(0).normal(size=(8, INPUTS)).astype("float32")
rows = np.tile(x, (MEMBERS, 1))  # rows are folded member-major, [K B, ...]: TileMembers does it
layer(rows)
pd.DataFrame(
    [(v.path.split("/")[-1], v.shape, int(np.prod(v.shape))) for v in layer.trainable_variables],
    columns=["variable", "shape", "numbers"],
)

# %%
# With the noise turned off the factors are their means. The layer is then the product with the
# perturbed kernels, which nobody has to build:

kernel, bias = map(keras.ops.convert_to_numpy, (layer.kernel, layer.bias))
r, s = layer.r_posterior.mean().numpy(), layer.s_posterior.mean().numpy()
of_members = np.einsum("bi,kio->kbo", x, kernel * r[:, :, None] * s[:, None, :])
of_members += bias[:, None]
with r1.posterior_mean():
    difference = np.abs(np.array(layer(rows)).reshape(of_members.shape) - of_members).max()
print(f"largest difference: {difference:.1e}")

# %%
# **The objective** is the mean negative log-likelihood of the members plus the KL of the factors,
# averaged over members and divided by the number N of training examples:
#
# .. math::
#
#     \frac{1}{K} \sum_k \mathbb{E}_{q_k}\Bigl[-\frac{1}{N} \sum_n \log p(y_n \mid x_n, w_k)\Bigr]
#     + \frac{1}{K N} \sum_k \mathrm{KL}\bigl(q_k \,\|\, p\bigr)
#
# ``fit`` finds N; ``layer.kl()`` is the sum over factors, here beside TFP's closed form.

closed = sum(
    np.sum(tfp.distributions.kl_divergence(q, p)) / MEMBERS
    for q, p in ((layer.r_posterior, layer.r_prior), (layer.s_posterior, layer.s_prior))
)
print(f"layer {float(layer.kl()):.4f} nats, TFP {float(closed):.4f} nats")

# %%
# **Where members start.** Means are at random signs, three of four positive, and the prior follows
# them: signs cost nothing, and members differ from the first step on.

fig, axes = plt.subplots(1, 2, figsize=(8, 3))
axes[0].hist(r.ravel(), 40, color=r1.plots.BLUE)
axes[0].set(title="Where r starts", xlabel="means of r at the start", ylabel="count")
perturbed = kernel[:, :1] * r[:, :, None][:, :, 0].T * s[:, 0]
axes[1].plot(kernel[:, 0], perturbed, ".", markersize=4)
axes[1].set(
    title="One kernel, four members",
    xlabel="weight of the kernel",
    ylabel="weights of the four members",
)
fig.tight_layout()

# %%
# **How draws are shared.** ``"example"``: every row has a draw of its own, as in the paper.
# ``"member"``: one per member and call, which is the cheapest, and rows move together.
# ``"flipout"``: one per member, with random signs by row, so that rows are uncorrelated for the
# price of a bit.

wide = r1.posteriors.Normal("ones", stddev=0.3)
same = np.ones((2 * MEMBERS, INPUTS), "float32")
rows = {}
for sampling in ("example", "flipout", "member"):
    noisy = r1.layers.DenseRank1(
        1, ensemble_size=MEMBERS, sampling=sampling, posterior=wide, prior="normal"
    )
    draws = np.stack([np.array(noisy(same)).reshape(MEMBERS, 2) for _ in range(300)])
    first, second = draws[:, 0, 0], draws[:, 0, 1]
    rows[sampling] = {
        "standard deviation / |mean|": first.std() / abs(first.mean()),
        "correlation of two rows of one member": np.corrcoef(first, second)[0, 1],
    }
pd.DataFrame(rows).T.round(2)

# %%
# **What to choose.** Posterior and prior: the defaults; ``"cauchy"`` for heavy tails, with clipped
# gradients; ``"deterministic"`` is BatchEnsemble. Width: a net that ends overconfident is
# calibrated by ``posterior=r1.posteriors.Normal(stddev=0.1)``. K: four, as in the paper; the rows
# of a step grow with K, parameters hardly do. Loss: ``"average_nll"`` trains, and
# ``"mixture_nll"`` lets members specialise.
