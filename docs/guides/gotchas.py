"""
Gotchas
=======

Mistakes that are easily made. What can be recognised is refused with the way out, and this page
shows the messages; the rest is said below.
"""

import re
import warnings

import keras
import numpy as np
import pandas as pd

import bali_keras as bk
import tfp_rank1 as r1

x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
y = (x[:, 0] > 0).astype("int32")


def rank1(activation: str | None = None, likelihood: object = "categorical") -> r1.BayesianModel:
    """4 - 8 - 2 with two members."""
    inputs = keras.Input((4,))
    with r1.members(2):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(8, activation="relu")(h)
        h = r1.layers.DenseRank1(2, activation=activation)(h)
        outputs = r1.layers.SplitMembers()(h)
    return r1.BayesianModel(inputs, outputs, likelihood=likelihood)


def bali() -> bk.BaliModel:
    """4 - 8 - 2, compiled."""
    inputs = keras.Input((4,))
    h = bk.layers.DenseBali(8, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood="categorical")
    model.compile(prior_precision=0.02)
    return model


# %%
# Each mistake as a function.


def softmax_twice() -> None:
    """A likelihood takes raw outputs."""
    rank1(activation="softmax")


def loss_of_keras() -> None:
    """A loss of Keras would see probabilities where there are none."""
    rank1().compile("adam", loss="sparse_categorical_crossentropy")


def members_forgotten() -> None:
    """A layer that is built outside of ``members`` has one member."""
    inputs = keras.Input((4,))
    h = r1.layers.DenseRank1(2)(r1.layers.TileMembers(2)(inputs))
    r1.BayesianModel(inputs, r1.layers.SplitMembers(2)(h), likelihood="categorical")


def label_out_of_range() -> None:
    """Labels are 0 .. D - 1."""
    model = rank1()
    model.compile("adam")
    model.fit(x, y + 1, verbose=0)


def kl_without_an_owner() -> None:
    """In a plain Keras model nobody knows N."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, r1.layers.DenseRank1(1)(inputs))
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)


def bali_in_a_plain_model() -> None:
    """BALI layers need the ``train_step`` of a BaliModel."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, bk.layers.DenseBali(1)(inputs))
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)


def other_data() -> None:
    """A second fit of BALI to other data forgets the first."""
    model = bali()
    model.fit(x[:100], y[:100], verbose=0)
    model.fit(x[100:150], y[100:150], verbose=0)


def targets_in_their_units() -> None:
    """Priors are for inputs and targets of unit size."""
    inputs = keras.Input((4,))
    model = r1.BayesianModel(inputs, r1.layers.DenseRank1(1)(inputs), likelihood="normal")
    model.compile("adam")
    model.fit(x, 20_000 + 10_000 * x[:, 0], verbose=0)


def trained_on() -> None:
    """What was trained on says nothing of what comes."""
    model = rank1()
    model.compile("adam", kernel_precision=0.01)
    model.fit(x, y, verbose=0)
    model.calibrate(x, y, verbose=0)


def onnx_with_noise() -> None:
    """An ONNX file would freeze the noise."""
    rank1().export("model.onnx", format="onnx")


# %%
# What each says.

MISTAKES = (
    softmax_twice,
    loss_of_keras,
    members_forgotten,
    label_out_of_range,
    kl_without_an_owner,
    bali_in_a_plain_model,
    other_data,
    targets_in_their_units,
    trained_on,
    onnx_with_noise,
)
said = {}
for mistake in MISTAKES:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mistake()
            message = f"warns: {caught[-1].message}"
        except ValueError as error:
            message = str(error)
    said[mistake.__name__] = " ".join(re.sub(r"\x1b\[\d*m", "", message).split())
    print(f"{mistake.__name__}\n    {said[mistake.__name__]}\n")

pd.Series({m.__name__: m.__doc__ for m in MISTAKES}).to_frame("why")

# %%
# What nothing can recognise:
#
# - Validation reports the bound at the full KL weight, so ``val_loss`` can be compared between
#   epochs of an annealed run; to stop on the data alone use ``EarlyStopping("val_nll")``.
# - ``fit`` counts what it is given: a dataset that repeats its examples needs
#   ``num_train_examples=N``. A stream that comes in several calls of ``fit`` needs it too.
# - Priors are for inputs and targets of unit size. ``fit`` warns of arrays that are far from it,
#   and does not look into datasets. BALI's statistics are float32; for inputs with huge offsets
#   take ``statistics_dtype="float64"``.
# - Factors with a standard deviation of 0.03 in fifty layers are a lot of noise for a pretrained
#   net: train it for an epoch before you trust its answers.
# - ``EmbeddingRank1`` and wide inputs draw a number per row and token; take ``sampling="member"``.
# - With targets missing one by one, a BALI layer counts an example by its best-observed target:
#   error bars of the others are too narrow by what they lack. Means are exact.
# - A layer under ``trainable=False`` drops its KL from the loss, like every Keras regularizer.
# - Regularizers of members' biases and batch normalizations add up over the members.
# - Without a closed form the KL is a Monte Carlo estimate on 16 fresh draws per entry (Normal
#   against Cauchy, HalfCauchy against anything).
# - XLA drops checks inside a compiled step: there a bad label makes the loss NaN. Arrays given to
#   ``fit`` are checked before.
# - ``posterior_mean()`` holds in its thread. With your own ``strategy.run`` enter it in the
#   function that runs: replicas are threads.
# - ``tf.data``'s tuner can hold up the start of an epoch for seconds, in any Keras model.
#   ``options.autotune.enabled = False`` in the dataset's ``tf.data.Options`` ends that.
