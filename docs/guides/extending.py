"""
Extending: a likelihood, a posterior, a layer, a rule
=====================================================

What is yours is a class. All else (training, answers, saving, conversion, export) follows from it.
"""

import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.moments import Moments

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(300, 3)).astype("float32")
y = (x @ [[1.0], [-0.5], [0.2]] + 0.1 * rng.standard_t(3, size=(300, 1))).astype("float32")
y[::40] += 6.0  # outliers

# %%
# **A likelihood** has ``distribution(outputs)``. That alone trains, predicts, saves and exports.
# This one is Student's t with a scale that the optimizer learns. One whose targets cannot be any
# number also says which it takes: ``is_in_support(y, num_outputs)`` and ``support_message``.


@keras.saving.register_keras_serializable("guide")
class Robust(r1.likelihoods.Likelihood):
    """Student's t with three degrees of freedom."""

    def build(self, input_shape: tuple) -> None:
        """A scale for every target."""
        self.rho = self.add_weight(name="rho", shape=(input_shape[-1],), initializer="zeros")
        self.built = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Around the raw outputs."""
        return tfd.StudentT(3.0, outputs, tf.nn.softplus(tf.convert_to_tensor(self.rho)))


# %%
# **A posterior** of the factors: ``build`` makes its variables, ``distribution`` reads them.


@keras.saving.register_keras_serializable("guide")
class Laplacian(r1.posteriors.Posterior):
    """``Laplace(center, softplus(width))``."""

    default_prior = "normal"

    def build(self, add_weight: object, shape: tuple, center: float) -> dict:
        """Starts around the value of no perturbation, with a scale of 0.05."""
        return {
            "center": add_weight("center", shape, keras.initializers.Constant(center)),
            "width": add_weight("width", shape, keras.initializers.Constant(-3.0)),
        }

    def distribution(self, parameters: dict) -> tfd.Distribution:
        """The posterior of a factor."""
        center, width = (tf.convert_to_tensor(parameters[n]) for n in ("center", "width"))
        return tfd.Laplace(center, tf.nn.softplus(width))

    def around(self, center: float) -> "Laplacian":
        """``build`` starts there."""
        return self

    def assign_mean(self, variables: dict, mean: object) -> None:
        """For ``convert``, which starts factors at 1."""
        center = variables["center"]
        center.assign(tf.broadcast_to(tf.cast(mean, center.dtype), center.shape))

    def get_config(self) -> dict:
        """Nothing to keep."""
        return {}


# %%
# **A layer** of your own, and **a rule** by which means and variances pass it: answers without
# draws then work for nets that have it.


@keras.saving.register_keras_serializable("guide")
class Scale(keras.layers.Layer):
    """``factor x``."""

    def build(self, input_shape: tuple) -> None:
        """A factor for every unit."""
        self.factor = self.add_weight(name="factor", shape=(input_shape[-1],), initializer="ones")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Multiply."""
        return ops.multiply(inputs, self.factor)


@r1.moments.register(Scale)
def scale(layer: Scale, x: Moments) -> Moments:
    """The mean is multiplied by the factor, the variance by its square."""
    factor = tf.convert_to_tensor(layer.factor)
    return Moments(factor * x.mean, factor**2 * x.variance_or_zeros())


# %%
# All four in one net, beside the same net with a Gaussian likelihood, which outliers mislead.


def net(likelihood: object) -> r1.BayesianModel:
    """3 - 16 - 1."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    with r1.members(2):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.DenseRank1(16, activation="tanh", posterior=Laplacian())(h)
        h = r1.layers.DenseRank1(1, posterior=Laplacian())(Scale()(h))
        outputs = r1.layers.SplitMembers()(h)
    model = r1.BayesianModel(inputs, outputs, likelihood=likelihood)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(x, y, epochs=60, verbose=0)
    return model


models = {"Normal": net("normal"), "of one's own": net(Robust())}
grid = rng.normal(size=(500, 3)).astype("float32")
truth = (grid @ [[1.0], [-0.5], [0.2]]).ravel()
fig, ax = plt.subplots(figsize=(4.5, 4.5))
ax.set_title("Predicted against true means")
errors = {}
for (name, model), color in zip(models.items(), (r1.plots.ORANGE, r1.plots.BLUE), strict=True):
    p = model.posterior_predictive(grid, method="moments")
    ax.plot(truth, p.mean().ravel(), ".", markersize=4, color=color, label=name)
    errors[name] = {"RMSE from the line": np.sqrt(np.mean((p.mean().ravel() - truth) ** 2))}
ax.set(xlabel="truth", ylabel="predicted mean")
ax.legend()

# %%
# What is registered with Keras travels: the file is loaded, and answers the same.

path = Path(tempfile.mkdtemp()) / "model.keras"
models["of one's own"].save(path)
loaded = keras.models.load_model(path)
same = np.array_equal(
    loaded.predict(grid, verbose=0), models["of one's own"].predict(grid, verbose=0)
)
print("the same after loading:", same)
pd.DataFrame(errors).T.round(3)
