"""Every number of some small trainings, to show that a change of the code changed none of them.

    python tests/golden.py write FILE.npz [NET ...]
    python tests/golden.py compare OLD.npz NEW.npz

`write` trains each net for three epochs from a fixed seed and keeps weights, the optimizer's
variables, logs, and answers: the moments of the predictive distribution and the outputs in the
posterior mean. `compare` allows weights to differ by 1e-6 and logs and answers by 1e-5, each
relative to `max(1, |value|)`, and says whether the bits are equal; it exits with 1 where two files
differ by more.

With the same versions of TensorFlow and Keras on the same kind of processor every run gives the
same bits, on replicas too, under load, and on one core as on two. Keras's generators take their
seeds one after the other, in the order in which layers and models are made: code that makes one
more of them changes all that is drawn after it.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1

# Before TensorFlow initialises. One thread per operation: convolutions share their sums among the
# threads, and so round in another order on another number of cores.
tf.config.threading.set_intra_op_parallelism_threads(1)
# Two logical devices, for MirroredStrategy.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

Arrays = dict[str, np.ndarray]
L, M = r1.layers, r1.metrics
TRAINING, VALIDATION, CLASSES = 96, 32, 3
TOLERANCES = {"weights": 1e-6, "optimizer": 1e-6, "logs": 1e-5, "answers": 1e-5}


class Case(NamedTuple):
    """A compiled model, its data, and other arguments of `fit`."""

    model: Any
    x: np.ndarray
    y: np.ndarray
    fit: dict[str, Any] = {}  # noqa: RUF012  never changed


# -- data -----------------------------------------------------------------------------------------


def features(*shape: int) -> np.ndarray:
    """Standard normal inputs."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(TRAINING + VALIDATION, *shape)).astype("float32")


def signal(x: np.ndarray, columns: int = 1) -> np.ndarray:
    """A smooth function of the inputs, `[N, columns]`."""
    rows = x.reshape(len(x), -1)
    weights = np.random.default_rng(1).normal(size=(rows.shape[1], columns))
    return np.tanh(rows @ weights / np.sqrt(rows.shape[1]))


def classes(x: np.ndarray) -> np.ndarray:
    """Labels `[N]`."""
    return np.argmax(signal(x, CLASSES), axis=1)


def numbers(x: np.ndarray) -> np.ndarray:
    """A noisy target, `[N, 1]`."""
    noise = np.random.default_rng(2).normal(size=(len(x), 1))
    return (signal(x) + 0.2 * noise).astype("float32")


def counts(x: np.ndarray) -> np.ndarray:
    """Draws of a Poisson distribution, `[N, 1]`."""
    return np.random.default_rng(3).poisson(np.exp(signal(x))).astype("float32")


def decisions(x: np.ndarray) -> np.ndarray:
    """Two answers of yes or no, `[N, 2]`."""
    return (signal(x, 2) > 0.0).astype("float32")


@functools.cache
def two_replicas() -> tf.distribute.Strategy:
    """One for the process: TensorFlow takes the collectives of a second for those of the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


# -- rank-1 nets ----------------------------------------------------------------------------------


def members_input(shape: tuple[int, ...], members: int, **kwargs: Any) -> tuple[Any, Any]:
    """An input and its tiled version."""
    inputs = keras.Input(shape, **kwargs)
    return inputs, L.TileMembers(members)(inputs)


def bayesian(inputs: Any, h: Any, members: int, likelihood: Any) -> Any:
    """The model that ends in these rows of all members."""
    return r1.BayesianModel(inputs, L.SplitMembers(members)(h), likelihood=likelihood)


def rank1_dense() -> Case:
    """Four members with all metrics of classes, and a KL that is annealed."""
    inputs, h = members_input((6,), 4)
    h = L.DenseRank1(8, activation="relu", ensemble_size=4)(h)
    model = bayesian(inputs, L.DenseRank1(CLASSES, ensemble_size=4)(h), 4, "categorical")
    metrics = ["accuracy", M.ExpectedCalibrationError(), M.PredictiveNLL(), M.BrierScore()]
    model.compile(keras.optimizers.Adam(1e-2), metrics=metrics)
    x = features(6)
    return Case(model, x, classes(x), {"callbacks": [r1.callbacks.KLAnnealing(epochs=2)]})


def rank1_convolutions() -> Case:
    """Batch normalization by member and shared; positive factors, one draw per member and call."""
    kwargs = {"ensemble_size": 2, "posterior": "log_normal", "sampling": "member"}
    inputs, h = members_input((6, 6, 2), 2)
    h = L.Conv2DRank1(4, 3, use_bias=False, **kwargs)(h)
    h = keras.layers.ReLU()(L.EnsembleBatchNormalization(2)(h))
    h = L.DepthwiseConv2DRank1(3, **kwargs)(h)
    h = L.EnsembleBatchNormalization(2, statistics="shared")(h)
    h = keras.layers.GlobalAveragePooling2D()(h)
    model = bayesian(inputs, L.DenseRank1(2, **kwargs)(h), 2, "bernoulli")
    metrics = ["accuracy", M.ExpectedCalibrationError(binning="equal_mass")]
    model.compile(keras.optimizers.Adam(1e-2), metrics=metrics)
    x = features(6, 6, 2)
    return Case(model, x, decisions(x))


def rank1_lstm() -> Case:
    """Tokens, two recurrent layers, random biases, counts."""
    inputs, h = members_input((5,), 2, dtype="int32")
    h = L.EmbeddingRank1(10, 4, ensemble_size=2)(h)
    h = L.LSTMRank1(4, return_sequences=True, ensemble_size=2, dropout=0.1)(h)
    h = L.GRURank1(3, ensemble_size=2)(h)
    h = L.DenseRank1(1, ensemble_size=2, bias_posterior="normal")(h)
    model = bayesian(inputs, h, 2, "poisson")
    model.compile(keras.optimizers.RMSprop(1e-2), metrics=[M.RootMeanSquaredError()])
    tokens = np.random.default_rng(0).integers(0, 10, (TRAINING + VALIDATION, 5))
    return Case(model, tokens, counts(tokens / 5.0))


def rank1_attention() -> Case:
    """Additive factors; noise that the net predicts."""
    kwargs = {"ensemble_size": 2, "perturbation": "additive"}
    inputs, h = members_input((4, 3), 2)
    h = keras.layers.LayerNormalization()(h + L.MultiHeadAttentionRank1(2, 3, **kwargs)(h, h))
    h = L.EinsumDenseRank1("abc,cd->abd", (None, 4), activation="gelu", bias_axes="d", **kwargs)(h)
    h = keras.layers.GlobalAveragePooling1D()(h)
    likelihood = r1.likelihoods.HeteroscedasticNormal()
    model = bayesian(inputs, L.DenseRank1(2, **kwargs)(h), 2, likelihood)
    model.compile(keras.optimizers.Adam(1e-2), metrics=[M.CRPS()])
    x = features(4, 3)
    return Case(model, x, numbers(x))


def rank1_cauchy() -> Case:
    """Heavy tails and learned noise, with all metrics of numbers."""
    kwargs = {"ensemble_size": 2, "posterior": "cauchy"}
    inputs, h = members_input((6,), 2)
    h = L.DenseRank1(8, activation="tanh", **kwargs)(h)
    model = bayesian(inputs, L.DenseRank1(1, **kwargs)(h), 2, r1.likelihoods.Normal())
    metrics = [M.RootMeanSquaredError(), M.CRPS(), M.IntervalCoverage(), M.IntervalWidth()]
    model.compile(keras.optimizers.Adam(1e-2, clipnorm=1.0), metrics=metrics)
    x = features(6)
    return Case(model, x, numbers(x))


def rank1_samples() -> Case:
    """A mixture of several samples, a prior with parameters of its own, faster factors."""
    kwargs = {"ensemble_size": 2, "prior": r1.priors.HierarchicalNormal()}
    inputs, h = members_input((6, 2), 2)
    h = keras.layers.Flatten()(L.Conv1DRank1(3, 3, activation="relu", **kwargs)(h))
    h = L.DenseRank1(CLASSES, prior=r1.priors.EmpiricalBayesNormal(), ensemble_size=2)(h)
    model = bayesian(inputs, h, 2, "categorical")
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss="mixture_nll",
        num_train_samples=2,
        factor_learning_rate_multiplier=3.0,
        metrics=["accuracy"],
    )
    x = features(6, 2)
    return Case(model, x, classes(x))


def rank1_split() -> Case:
    """A recipe: random signs, penalties, a schedule; members that share the batch."""
    recipe = r1.recipes.Recipe(
        "mlp",
        {"input_shape": [6], "num_outputs": CLASSES, "hidden": [8]},
        random_sign=0.75,
        ensemble_size=2,
        learning_rate=0.05,
        decay_epochs=(2,),
        kl_annealing_epochs=2,
    )
    model = recipe.build()
    recipe.compile(model, TRAINING // 32, member_batches="split", metrics=["accuracy"])
    x = features(6)
    return Case(model, x, classes(x), {"callbacks": recipe.callbacks()})


def rank1_replicas() -> Case:
    """Two replicas, batches that they share unevenly, weighted examples."""
    with two_replicas().scope():
        inputs, h = members_input((6,), 2)
        h = L.DenseRank1(8, activation="relu", ensemble_size=2)(h)
        h = L.EnsembleBatchNormalization(2, synchronized=True)(h)
        model = bayesian(inputs, L.DenseRank1(CLASSES, ensemble_size=2)(h), 2, "categorical")
        metrics = ["accuracy", M.ExpectedCalibrationError()]
        model.compile(keras.optimizers.Adam(1e-2), metrics=metrics)
    x = features(6)
    return Case(model, x, classes(x), {"batch_size": 25, "sample_weight": example_weights()})


def rank1_bfloat16() -> Case:
    """Half precision, and a KL without a closed form."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    kwargs = {"ensemble_size": 2, "posterior": "half_cauchy"}
    inputs, h = members_input((6,), 2)
    h = L.DenseRank1(8, activation="relu", **kwargs)(h)
    model = bayesian(inputs, L.DenseRank1(CLASSES, **kwargs)(h), 2, "categorical")
    model.compile(keras.optimizers.Adam(1e-2, clipnorm=1.0), metrics=["accuracy"])
    x = features(6)
    return Case(model, x, classes(x))


def rank1_converted() -> Case:
    """A stock net of which the factors alone are trained."""
    inputs = keras.Input((6, 6, 2))
    h = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.GlobalAveragePooling2D()(keras.layers.SeparableConv2D(4, 3)(h))
    stock = keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(h))
    with_values(stock)
    model = r1.convert(stock, 2, likelihood="categorical")
    model.freeze_slow_weights()
    model.compile(keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    x = features(6, 6, 2)
    return Case(model, x, classes(x))


# -- BALI nets ------------------------------------------------------------------------------------


def bali_classifier() -> Case:
    """Dense layers as they come, but for the warm-up."""
    h = inputs = keras.Input((6,))
    h = bk.layers.DenseBali(8, activation="relu")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(CLASSES)(h), likelihood="categorical")
    model.compile(warmup_steps=2, metrics=["accuracy", M.ExpectedCalibrationError()])
    x = features(6)
    return Case(model, x, classes(x))


def bali_regression() -> Case:
    """Positions, an einsum, and an output layer that is integrated out; nothing is forgotten."""
    h = inputs = keras.Input((6, 2))
    h = bk.layers.Conv1DBali(3, 3, activation="tanh")(h)
    h = bk.layers.EinsumDenseBali("abc,cd->abd", (4, 3), activation="tanh", bias_axes="d")(h)
    outputs = bk.layers.DenseBali(1)(keras.layers.Flatten()(h))
    model = bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    metrics = [M.RootMeanSquaredError(), M.CRPS(), M.IntervalCoverage(), M.IntervalWidth()]
    model.compile(forgetting=bk.schedules.Averaging(), warmup_steps=2, metrics=metrics)
    x = features(6, 2)
    return Case(model, x, numbers(x))


def bali_replicas() -> Case:
    """Two replicas, batches that they share unevenly, weighted examples."""
    with two_replicas().scope():
        h = inputs = keras.Input((6,))
        h = bk.layers.DenseBali(8, activation="relu")(h)
        model = bk.BaliModel(inputs, bk.layers.DenseBali(CLASSES)(h), likelihood="categorical")
        model.compile(warmup_steps=2, temperature=0.5, metrics=["accuracy"])
    x = features(6)
    return Case(model, x, classes(x), {"batch_size": 25, "sample_weight": example_weights()})


def bali_converted() -> Case:
    """Priors at the kernels of a stock net; counts; covariances of every second step."""
    net = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1, activation="exponential"),
        ]
    )
    with_values(net)
    model = bk.convert(net, "poisson")
    model.compile(warmup_steps=2, forgetting=0.1, factorise_every=2)
    x = features(6, 6, 2)
    return Case(model, x, counts(x))


def bali_mixed() -> Case:
    """Stock layers beside BALI's, which an optimizer trains."""
    inputs = keras.Input((6,))
    h = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    h = keras.layers.Dropout(0.2)(keras.layers.ReLU()(h))
    h = bk.layers.DenseBali(8, activation="relu")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(2)(h), likelihood="bernoulli")
    model.compile(keras.optimizers.Adam(1e-2), warmup_steps=2, metrics=["accuracy"])
    x = features(6)
    return Case(model, x, decisions(x))


def example_weights() -> np.ndarray:
    """A weight for every training example."""
    return np.random.default_rng(4).uniform(0.5, 2.0, TRAINING).astype("float32")


def with_values(model: keras.Model) -> None:
    """Kernels, statistics, offsets that a trained net could have, none of them 0 or 1."""
    rng = np.random.default_rng(5)
    scales = [0.5 if v.ndim > 1 else 1.0 for v in model.weights]
    model.set_weights(
        [
            s * rng.normal(size=v.shape) if v.ndim > 1 else rng.uniform(0.5, 1.5, v.shape)
            for s, v in zip(scales, model.weights, strict=True)
        ]
    )


NETS: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        *(rank1_dense, rank1_convolutions, rank1_lstm, rank1_attention, rank1_cauchy),
        *(rank1_samples, rank1_split, rank1_replicas, rank1_bfloat16, rank1_converted),
        *(bali_classifier, bali_regression, bali_replicas, bali_converted, bali_mixed),
    )
}


# -- write ----------------------------------------------------------------------------------------


def numbers_of(case: Case) -> Arrays:
    """Train, and return all numbers by `group/name`."""
    model, rows = case.model, slice(0, TRAINING)
    validation = case.x[TRAINING:], case.y[TRAINING:]
    arguments = {"batch_size": 32, "epochs": 3, "shuffle": False, "verbose": 0, **case.fit}
    history = model.fit(case.x[rows], case.y[rows], validation_data=validation, **arguments).history
    optimizer = [] if model.optimizer is None else model.optimizer.variables
    found = {f"weights/{i:03}": as_array(v) for i, v in enumerate(model.weights)}
    found |= {f"optimizer/{i:03}": as_array(v) for i, v in enumerate(optimizer)}
    found |= {f"logs/{name}": np.array(values, "float64") for name, values in history.items()}
    x = case.x[:16]
    predictive = model.posterior_predictive(x, num_samples=8, seed=0)
    found |= {"answers/mean": as_array(predictive.mean())}
    found |= {"answers/variance": as_array(predictive.variance())}
    with r1.posterior_mean():
        found |= {"answers/posterior_mean": as_array(model(x))}
    return found


def as_array(value: Any) -> np.ndarray:
    """A NumPy array; types that NumPy has not, such as bfloat16, as float32."""
    array = keras.ops.convert_to_numpy(value)
    return array.astype("float32") if array.dtype.kind == "V" else array


def write(file: str, names: list[str]) -> None:
    """Train the nets and write their numbers."""
    tf.get_logger().setLevel("ERROR")  # every net has functions of its own, which it warns of
    print(f"tfp_rank1 of {r1.__file__}, bali_keras of {bk.__file__}")
    found: Arrays = {}
    for name in names or NETS:
        start = time.monotonic()
        keras.utils.clear_session()  # with it the policy of the net before
        keras.config.set_dtype_policy("float32")
        keras.utils.set_random_seed(0)
        arrays = numbers_of(NETS[name]())
        found |= {f"{name}/{key}": values for key, values in arrays.items()}
        print(f"{name}: {len(arrays)} arrays, {time.monotonic() - start:.1f} s", flush=True)
    np.savez_compressed(file, **found)


# -- compare --------------------------------------------------------------------------------------


def difference(old: np.ndarray, new: np.ndarray) -> float:
    """Largest difference relative to `max(1, |old|)`; infinite where only one is finite."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return np.inf
    if old.size == 0 or np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
        return 0.0
    a, b = old.astype("float64"), new.astype("float64")
    is_equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        relative = np.where(is_equal, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(a)))
    return float(np.max(np.where(np.isnan(relative), np.inf, relative)))


def compare(old_file: str, new_file: str) -> bool:
    """Print what differs, net by net; whether all is within the tolerances."""
    with np.load(old_file) as old_arrays, np.load(new_file) as new_arrays:
        old, new = dict(old_arrays), dict(new_arrays)
    is_same = True
    for key in sorted(old.keys() ^ new.keys()):
        is_same = False
        print(f"{key} is only in {old_file if key in old else new_file}")
    common = [key for key in old if key in new]
    for net in dict.fromkeys(key.split("/")[0] for key in common):
        largest = dict.fromkeys(TOLERANCES, 0.0)
        has_same_bits = True
        for key in (k for k in common if k.startswith(f"{net}/")):
            group = key.split("/")[1]
            gap = difference(old[key], new[key])
            has_same_bits &= old[key].dtype == new[key].dtype
            has_same_bits &= old[key].tobytes() == new[key].tobytes()
            largest[group] = max(largest[group], gap)
            if gap > TOLERANCES[group]:
                is_same = False
                shapes = f"{old[key].shape} {old[key].dtype}, {new[key].shape} {new[key].dtype}"
                print(f"{key} differs by {gap:.2g} ({shapes})")
        gaps = ", ".join(f"{group} {gap:.2g}" for group, gap in largest.items())
        print(f"{net}: {gaps}; the bits are {'equal' if has_same_bits else 'not equal'}")
    print("no difference" if is_same else "DIFFERENT")
    return is_same


def main() -> int:
    """Run the command line; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="train, and write all numbers")
    writing.add_argument("file")
    writing.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(NETS)}")
    comparing = commands.add_parser("compare", help="exit with 1 where two files differ")
    comparing.add_argument("old")
    comparing.add_argument("new")
    arguments = parser.parse_args()
    if arguments.command == "write":
        if unknown := set(arguments.nets) - NETS.keys():
            parser.error(f"unknown nets {sorted(unknown)}")
        write(arguments.file, arguments.nets)
        return 0
    return 0 if compare(arguments.old, arguments.new) else 1


if __name__ == "__main__":
    sys.exit(main())
