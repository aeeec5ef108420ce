"""The nets of the files in `tests/fixtures`, as small as they can be.

They name as many registered classes as they can, so that a file of any of them still loads. What
is built here must stay as it is: the files hold its weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import bali_keras as bk
import tfp_rank1 as r1

FOLDER = Path(__file__).parent / "fixtures"
# Epochs of the trainings whose checkpoints are kept.
EPOCHS = 2
ROWS, BATCH = 16, 8

L, M, Q, P = r1.layers, r1.metrics, r1.posteriors, r1.priors


def members_input(*shape: int) -> tuple[Any, Any]:
    """An input and its version for two members."""
    inputs = keras.Input(shape)
    return inputs, L.TileMembers(2)(inputs)


def bayesian(inputs: Any, h: Any, likelihood: Any) -> Any:
    """The model that ends in these rows of two members."""
    return r1.BayesianModel(inputs, L.SplitMembers(2)(h), likelihood=likelihood)


def dense() -> Any:
    """Random signs, a prior that follows the data, a recipe's schedule."""
    signs = {"ensemble_size": 2, "posterior": Q.Normal(r1.initializers.RandomSign(0.75))}
    inputs, h = members_input(3)
    h = L.DenseRank1(4, activation="relu", prior=P.EmpiricalBayesNormal(), **signs)(h)
    h = L.DenseRank1(3, prior=P.NormalWithTrainableStddev(), bias_posterior="normal", **signs)(h)
    model = bayesian(inputs, h, r1.likelihoods.Categorical())
    recipe = r1.recipes.Recipe("mlp", {"input_shape": [3], "num_outputs": 3}, decay_epochs=(1,))
    recipe.compile(model, ROWS // BATCH, metrics=["accuracy", M.ExpectedCalibrationError(5)])
    return model


def convolutional() -> Any:
    """Positive factors, batch normalization by member, a mixture for a loss."""
    positive = {"ensemble_size": 2, "posterior": Q.LogNormal(scale=0.1), "sampling": "member"}
    inputs, h = members_input(4, 4, 1)
    h = L.Conv2DRank1(3, 3, use_bias=False, **positive)(h)
    h = keras.layers.ReLU()(L.EnsembleBatchNormalization(2)(h))
    h = keras.layers.GlobalAveragePooling2D()(h)
    h = L.DenseRank1(2, prior=P.LogNormal(scale=0.2), **positive)(h)
    model = bayesian(inputs, h, r1.likelihoods.Bernoulli())
    model.compile(keras.optimizers.SGD(0.05), "mixture_nll", metrics=[M.BrierScore()])
    return model


def recurrent() -> Any:
    """Heavy tails, learned noise."""
    inputs, h = members_input(3, 2)
    h = L.LSTMRank1(3, ensemble_size=2, posterior=Q.Cauchy(), prior=P.Cauchy(scale=0.02))(h)
    h = L.DenseRank1(1, ensemble_size=2, posterior=Q.HalfCauchy())(h)
    model = bayesian(inputs, h, r1.likelihoods.Normal(initial_scale=0.7))
    metrics = [M.CRPS(), M.IntervalCoverage(0.8), M.IntervalWidth(0.8)]
    model.compile(keras.optimizers.SGD(0.01), r1.losses.AverageNLL(), metrics=metrics)
    return model


def attention() -> Any:
    """Additive factors, a prior of two levels, noise that the net predicts."""
    additive = {"ensemble_size": 2, "perturbation": "additive", "prior": P.HierarchicalNormal()}
    inputs, h = members_input(3, 2)
    h = L.MultiHeadAttentionRank1(1, 2, posterior=Q.NormalSharedStddev(), **additive)(h, h)
    h = keras.layers.GlobalAveragePooling1D()(h)
    h = L.DenseRank1(2, ensemble_size=2, posterior=Q.Deterministic(), prior=P.Normal())(h)
    model = bayesian(inputs, h, r1.likelihoods.HeteroscedasticNormal(min_scale=0.01))
    model.compile(keras.optimizers.SGD(0.05), metrics=[M.RootMeanSquaredError()])
    return model


def bali_classifier() -> Any:
    """Dense layers, a schedule of forgetting."""
    h = inputs = keras.Input((3,))
    h = bk.layers.DenseBali(4, activation="relu")(h)
    likelihood = r1.likelihoods.Categorical()
    model = bk.BaliModel(inputs, bk.layers.DenseBali(3)(h), likelihood=likelihood)
    forgetting = bk.schedules.Linear(0.2, 0.05)
    model.compile(forgetting=forgetting, warmup_steps=2, metrics=[M.PredictiveNLL(), "accuracy"])
    return model


def bali_regression() -> Any:
    """Positions, an einsum, and an output layer that is integrated out."""
    h = inputs = keras.Input((4, 2))
    h = bk.layers.Conv1DBali(3, 2, activation="tanh")(h)
    h = bk.layers.EinsumDenseBali("abc,cd->abd", (3, 2), activation="tanh", bias_axes="d")(h)
    outputs = bk.layers.DenseBali(1)(keras.layers.Flatten()(h))
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    model.compile(forgetting=bk.schedules.Averaging(), warmup_steps=2, metrics=[M.CRPS()])
    return model


NETS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (dense, convolutional, recurrent, attention, bali_classifier, bali_regression)
}
# Those whose training was kept as a checkpoint too.
RESUMED = "dense", "bali_regression"


def data(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets that suit a model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, *model.input_shape[1:])).astype("float32")
    if isinstance(model.likelihood, r1.likelihoods.Categorical):
        return x, rng.integers(0, model.output_shape[-1], ROWS)
    if isinstance(model.likelihood, r1.likelihoods.Bernoulli):
        return x, rng.integers(0, 2, (ROWS, model.output_shape[-1])).astype("float32")
    return x, rng.normal(size=(ROWS, 1)).astype("float32")


def fit(model: Any, epochs: int, **kwargs: Any) -> Any:
    """What `keras.Model.fit` returns, for the same batches in every epoch."""
    x, y = data(model)
    return model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **kwargs)


def state(model: Any) -> list[np.ndarray]:
    """Weights, statistics, and the state of the model's random generator.

    The unit of predicted scales is left out: it came after the files, whose scales have the unit 1.
    """
    weights = [v for v in model.weights if v.name != "unit"]
    return [np.array(v) for v in (*weights, model.seed_generator.state)]


def spread(model: Any, x: np.ndarray) -> np.ndarray:
    """The predictive variance of samples from a seed."""
    return np.array(model.posterior_predictive(x, num_samples=8, seed=0).variance())


def mean_outputs(model: Any, x: np.ndarray) -> np.ndarray:
    """Raw outputs in the posterior mean."""
    with r1.posterior_mean():
        return np.array(model(x))


def scores(model: Any) -> dict[str, float]:
    """Metrics in the posterior mean; without the KL, which may be an estimate by samples."""
    x, y = data(model)
    with r1.posterior_mean():
        found = model.evaluate(x, y, verbose=0, return_dict=True)
    return {name: value for name, value in found.items() if name not in ("loss", "kl")}
