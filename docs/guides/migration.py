"""
From tfp.layers and Edward2
===========================

The variational layers of TensorFlow Probability and Edward2 work in Keras 2 only. Here is each
beside what replaces it in Keras 3.
"""

import time
import warnings

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bali_keras as bk
import tfp_rank1 as r1

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0)
EPOCHS = 40

# %%
# There: a net of ``tfp.layers`` in tf_keras. The KL needs N by hand, layer by layer; the test
# predictions are a loop over draws.

start = time.perf_counter()


def divergence(q: object, p: object, _: object) -> tf.Tensor:
    """KL of a kernel, per example."""
    return tfp.distributions.kl_divergence(q, p) / len(x_train)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tf_keras warns of what it is
    old = tf_keras.Sequential(
        [
            tf_keras.layers.Input((64,)),
            tfp.layers.DenseFlipout(100, activation="relu", kernel_divergence_fn=divergence),
            tfp.layers.DenseFlipout(10, kernel_divergence_fn=divergence),
        ]
    )
old.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
old.fit(x_train, y_train, epochs=EPOCHS, verbose=0)
draws = [tf.nn.softmax(old(x_test)) for _ in range(32)]
found = {"tfp.layers.DenseFlipout": (np.mean(draws, axis=0), time.perf_counter() - start)}

# %%
# Here: rank-1 layers perturb one kernel by a few random factors. ``fit`` finds N.

start = time.perf_counter()
inputs = keras.Input((64,))
with r1.members(4):
    h = r1.layers.TileMembers()(inputs)
    h = r1.layers.DenseRank1(100, activation="relu")(h)
    outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(10)(h))
new = r1.BayesianModel(inputs, outputs, likelihood="categorical")
new.compile("adam", kernel_precision=0.01)
new.fit(x_train, y_train, epochs=EPOCHS, verbose=0)
p = new.posterior_predictive(x_test, num_samples=32)
found["DenseRank1"] = p.mean(), time.perf_counter() - start

# %%
# Or a posterior over whole kernels, as ``tfp.layers`` has, inferred layer by layer without an
# optimizer, in half as many epochs.

start = time.perf_counter()
inputs = keras.Input((64,))
h = bk.layers.DenseBali(100, activation="relu")(inputs)
bali = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
bali.compile(prior_precision=0.02)
bali.fit(x_train, y_train, epochs=EPOCHS // 2, verbose=0)
p = bali.posterior_predictive(x_test, num_samples=32)
found["DenseBali"] = p.mean(), time.perf_counter() - start

# %%
# Scores on the test digits, and seconds for fit and answers.

of_label = np.arange(len(y_test)), y_test
pd.DataFrame(
    {
        name: {
            "accuracy": np.mean(p.argmax(axis=-1) == y_test),
            "NLL": -np.mean(np.log(np.maximum(p[of_label], 1e-7))),
            "seconds": seconds,
        }
        for name, (p, seconds) in found.items()
    }
).T.round(3)

# %%
# **Edward2.** There, as in ``uncertainty-baselines``:
#
# .. code-block:: python
#
#     x = tf.tile(x, [4, 1])
#     h = ed.layers.DenseRank1(
#         100,
#         activation="relu",
#         alpha_initializer=ed.initializers.TrainableNormal(
#             mean_initializer=tf.keras.initializers.RandomNormal(1.0, 0.5),
#             stddev_initializer=tf.keras.initializers.Constant(-3.0),  # of its softplus: 0.0486
#         ),
#         alpha_regularizer=ed.regularizers.NormalKLDivergence(mean=1.0, stddev=0.1),
#         gamma_initializer=...,  # the same two
#         gamma_regularizer=...,
#         ensemble_size=4,
#     )(x)
#     ...
#     loss = nll + annealing * sum(model.losses) / num_train_examples
#
# Here, with the same posterior and prior, and the KL of all members added as there. Beside it what
# the sum is expected to be: :math:`\mathrm{KL}(N(m, s^2) \,\|\, N(1, 0.1^2))` of 4 (64 + 100)
# entries with :math:`\mathrm{E}(m - 1)^2 = 0.5^2`.

layer = r1.layers.DenseRank1(
    100,
    activation="relu",
    posterior=r1.posteriors.Normal(keras.initializers.RandomNormal(1.0, 0.5), stddev=0.0486),
    prior=r1.priors.Normal(1.0, 0.1),
    kl_reduction="sum",
    ensemble_size=4,
)
layer(np.zeros((8, 64), "float32"))
entry = np.log(0.1 / 0.0486) + (0.0486**2 + 0.5**2) / (2 * 0.1**2) - 0.5
print(f"KL: {float(layer.kl()):,.0f} nats, expected {4 * (64 + 100) * entry:,.0f}")

# %%
# Argument by argument:

pd.set_option("display.max_colwidth", None)
pd.DataFrame(
    [
        ("alpha, gamma", "r, s: r_posterior=, s_posterior=, layer.r_factor"),
        (
            "by default means at 0, prior N(0, 1)",
            "means at random signs, prior of these means and 0.1; N(1, 0.1^2) under a posterior "
            "that is given",
        ),
        (
            "random_sign_init=0.5, dropout_rate=p",
            "posteriors.Normal(RandomSign(0.5), stddev=(p / (1 - p)) ** 0.5)",
        ),
        ("random_sign_init=-0.5", "posteriors.Normal(RandomNormal(1.0, 0.5), ...)"),
        (
            "a prior N(1, 0.1^2), under which a sign costs 200 nats",
            'priors.Normal(1.0, 0.1), or prior="normal_with_tied_mean", where signs are free',
        ),
        ("min_perturbation_value, max_perturbation_value", "the same"),
        ("use_additive_perturbation=True", 'perturbation="additive"'),
        ("tf.tile before, a mean after", "TileMembers(K), SplitMembers(K)"),
        ("sum(model.losses) / N, annealed by hand", "BayesianModel, callbacks.KLAnnealing"),
        ("KL summed over members", 'averaged; kl_reduction="sum"'),
        ("fast_weight_lr_multiplier", "compile(factor_learning_rate_multiplier=)"),
        ("normal_kl_divergence_with_tied_mean", "priors.NormalWithTiedMean"),
        ("trainable_normal_kl_divergence_stddev", "priors.NormalWithTrainableStddev"),
        ("normal_empirical_bayes_kl_divergence", "priors.EmpiricalBayesNormal"),
        (
            "ensemble_batchnorm, EnsembleSyncBatchNorm",
            "EnsembleBatchNormalization(K)",
        ),
        ("DenseBatchEnsemble, Conv2DBatchEnsemble", 'DenseRank1(posterior="deterministic"), ...'),
        ("tfp.layers: kernel_divergence_fn=", "fit finds N and weights the KL"),
        ("DenseReparameterization, DenseFlipout", "DenseBali, or DenseRank1"),
        ("Convolution2DReparameterization, ...Flipout", "Conv2DBali, or Conv2DRank1"),
        ("DenseLocalReparameterization", "DenseBali, which draws pre-activations by row"),
        ("DenseVariational", "DenseRank1 with a posterior and a prior of your own"),
        ("DistributionLambda at the end", "likelihood= of the model"),
    ],
    columns=["there", "here"],
)
