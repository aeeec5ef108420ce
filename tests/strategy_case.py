"""One training, the same on one replica, two replicas and two workers.

python strategy_case.py METHOD FILE STEPS      as one of the workers in TF_CONFIG

STEPS is of one execution. METHOD "losses" measures the losses of a random net in place of training
one.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1

ROWS, INPUTS, CLASSES, BATCH = 45, 5, 3, 7  # neither whole batches nor the last are even


def data(rows=ROWS, seed=0):
    """Inputs, labels and weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, INPUTS)).astype("float32")
    labels = np.argmax(x @ rng.normal(size=(INPUTS, CLASSES)), axis=1)
    return x, labels, rng.uniform(0.5, 2.0, size=rows).astype("float32")


def dataset(weighted=True):
    """Batches in a fixed order."""
    x, labels, weights = data()
    parts = (x, labels, weights) if weighted else (x, labels)
    return tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)


def bali():
    h = inputs = keras.Input((INPUTS,))
    h = bk.layers.DenseBali(8, activation="relu")(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(CLASSES)(h), likelihood="categorical")


def rank1(posterior="deterministic"):
    inputs = keras.Input((INPUTS,))
    h = r1.layers.TileMembers(2)(inputs)
    kwargs = {"ensemble_size": 2, "posterior": posterior}
    h = r1.layers.DenseRank1(8, activation="relu", **kwargs)(h)
    outputs = r1.layers.SplitMembers(2)(r1.layers.DenseRank1(CLASSES, **kwargs)(h))
    return r1.BayesianModel(inputs, outputs, likelihood="categorical")


def bali_forms():
    """Rows in blocks, and rows of which each input stands by itself."""
    h = inputs = keras.Input((INPUTS,))
    h = bk.layers.DenseBali(8, activation="relu", row_covariance=2)(h)
    h = bk.layers.DenseBali(8, activation="relu", row_covariance="diagonal")(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(CLASSES)(h), likelihood="categorical")


METHODS = {
    "bali": bali,
    "bali_forms": bali_forms,
    "rank1": rank1,
    "rank1_normal": lambda: rank1("normal"),
}


def train(method, strategy, served=None, **compile_arguments):
    """Fit, evaluate and predict under a strategy, and export to `served`; arrays by name."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = METHODS[method]()
        metrics = ["accuracy", r1.metrics.ExpectedCalibrationError()]  # one that is no mean
        if isinstance(model, bk.BaliModel):
            model.compile(warmup_steps=2, metrics=metrics, **compile_arguments)
        else:
            optimizer = keras.optimizers.Adam(1e-2)
            model.compile(optimizer, metrics=metrics, **compile_arguments)
    # After compile: initial values drew from the global generator alike.
    model.seed_generator.state.assign([5, 0])
    history = model.fit(dataset(), epochs=3, verbose=0).history
    scores = model.evaluate(dataset(), verbose=0, return_dict=True)
    with r1.posterior_mean():
        scores |= {
            f"mean_{name}": value
            for name, value in model.evaluate(dataset(), verbose=0, return_dict=True).items()
        }
    outputs = model.predict(dataset(weighted=False), verbose=0)
    found = {f"history/{name}": np.array(values) for name, values in history.items()}
    found |= {f"scores/{name}": np.array(value) for name, value in scores.items()}
    found |= {f"weights/{i}": np.array(v) for i, v in enumerate(model.weights)}
    predictive = model.posterior_predictive(data()[0], num_samples=4, seed=1)
    if served is not None:
        model.export_predictive(str(served), num_samples=4)
    return found | {"outputs": outputs, "mean": predictive.mean()}


def losses(strategy, parts=8, passes=20):
    """Losses of a net with broad factors, in evaluation and in training, part by part.

    Nothing moves: the optimizer's rate is 0.
    """
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = rank1(r1.posteriors.Normal(stddev=0.5))
        model.compile(keras.optimizers.SGD(0.0))
    model.num_train_examples = ROWS
    repeated = tf.data.Dataset.from_tensor_slices(data()[:2]).repeat(passes).batch(100)
    scores = [model.evaluate(repeated, verbose=0, return_dict=True) for _ in range(parts)]
    history = model.fit(repeated, epochs=parts, verbose=0).history
    evaluation, training = [score["nll"] for score in scores], history["nll"]
    return {"evaluation": np.array(evaluation), "training": np.array(training)}


def train_briefly(model):
    """The model after one epoch."""
    x, labels, _ = data()
    model.compile(None if isinstance(model, bk.BaliModel) else "sgd")
    model.fit(x, labels, batch_size=BATCH, verbose=0)
    return model


if __name__ == "__main__":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    method, file, steps = sys.argv[1:]
    if method == "losses":
        results = losses(strategy)
    else:
        served = f"{file}-served" if index == 0 else None
        results = train(method, strategy, served, steps_per_execution=int(steps))
    np.savez(f"{file}-{index}.npz", **results)
    sys.stdout.flush()
    os._exit(0)  # leaving by the garbage collector aborts in the collective's threads
