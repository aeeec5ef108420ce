"""
Segmentation: which pixels are doubtful
=======================================

Outputs may have positions: pixels, tokens or time steps. Answers have them too.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bali_keras as bk
import tfp_rank1 as r1

keras.utils.set_random_seed(0)
CLASSES = "background", "disc", "square"
SIDE = 16


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with noise ``[16, 16]`` and the class of every pixel; shapes hide each other."""
    row, column = np.mgrid[:SIDE, :SIDE]
    image, label = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE), "int32")
    for kind in rng.integers(1, 3, size=2):
        y, x = row - rng.uniform(3, 13), column - rng.uniform(3, 13)
        is_inside = x**2 + y**2 < 16 if kind == 1 else np.maximum(np.abs(x), np.abs(y)) < 3.5
        image[is_inside], label[is_inside] = rng.uniform(0.5, 1.0), kind
    return image + 0.15 * rng.normal(size=image.shape), label


rng = np.random.default_rng(0)
images, labels = map(np.stack, zip(*(scene(rng) for _ in range(500)), strict=True))
images = images[..., None].astype("float32")
x_train, x_test, y_train, y_test = images[:400], images[400:], labels[:400], labels[400:]

# %%
# A stock net that keeps the size of the image, trained as usual.

inputs = keras.Input((SIDE, SIDE, 1))
fine = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
h = keras.layers.MaxPooling2D()(fine)
h = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(h)
h = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(h)
h = keras.layers.Conv2DTranspose(16, 2, strides=2)(h)
h = keras.layers.Concatenate()([h, fine])
h = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(h)
net = keras.Model(inputs, keras.layers.Conv2D(len(CLASSES), 1)(h))
stock = r1.BayesianModel(net, likelihood="categorical")
stock.compile(keras.optimizers.Adam(3e-3))
stock.fit(x_train, y_train, epochs=12, verbose=0)

# %%
# BALI around it. The NLL of an example is the sum over its pixels.

bali = bk.convert(net, likelihood="categorical")
bali.compile()
bali.fit(x_train, y_train, epochs=6, verbose=0)
p = bali.posterior_predictive(x_test, num_samples=16, seed=0)
print("class probabilities", p.mean().shape, "information", p.mutual_information().shape)

# %%
# Where the net is right it knows so; edges and hidden shapes are doubtful.

is_right = p.mean().argmax(axis=-1) == y_test
information = p.mutual_information()
print(pd.Series({"right": information[is_right].mean(), "wrong": information[~is_right].mean()}))

fig, axes = plt.subplots(2, 4, figsize=(9, 4.6))
for i, ax in enumerate(axes.T):
    r1.plots.uncertainty_map(x_test[i, ..., 0], information[i], ax=ax[0])
    ax[1].imshow(p.mean()[i].argmax(axis=-1), vmin=0, vmax=2, cmap="viridis")
    ax[1].set_axis_off()
axes[0, 0].set_title("mutual information", loc="left")
axes[1, 0].set_title("answer", loc="left")
fig.tight_layout()
