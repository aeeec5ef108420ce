"""One script for one CPU, several GPUs, several workers and a TPU.

    python -m examples.distributed.train --method bali
    python -m examples.distributed.train --strategy mirrored
    python -m examples.distributed.launch 2 -m examples.distributed.train --strategy workers
    python -m examples.distributed.train --strategy tpu --tpu my-tpu

The batch is that of all replicas together, so that every strategy takes the same steps. Killed
and started again, it goes on after the last whole epoch (`--folder`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.small import load_digits

MEMBERS = 2


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate and export.

    Returns:
        Loss and metrics on the test set.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=list(STRATEGIES), default="one")
    parser.add_argument("--tpu", default="", help="name of the TPU, for --strategy tpu")
    parser.add_argument("--method", choices=list(METHODS), default="bali")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all replicas together")
    parser.add_argument("--steps-per-execution", type=int, default=1)
    parser.add_argument("--precision", default="float32", help="dtype policy of Keras")
    parser.add_argument("--folder", type=Path, default=Path("distributed_output"))
    options = parser.parse_args(arguments)
    strategy = STRATEGIES[options.strategy](options.tpu)  # before anything else of TensorFlow
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(options.precision)
    split = load_digits(seed=0)
    with strategy.scope():
        model = METHODS[options.method]()
        arguments_of_compile = {
            "steps_per_execution": options.steps_per_execution,
            "metrics": ["accuracy", r1.metrics.ExpectedCalibrationError()],
        }
        if options.method == "bali":
            model.compile(**arguments_of_compile)
        else:
            model.compile(keras.optimizers.Adam(3e-3), **arguments_of_compile)
    is_chief = strategy.extended.should_checkpoint
    model.fit(
        batches(split.x_train, split.y_train, options.batch_size, shuffle=True),
        epochs=options.epochs,
        verbose=2 if is_chief else 0,
        callbacks=[r1.callbacks.Resume(options.folder / "checkpoints")],
    )
    test = batches(split.x_test, split.y_test, options.batch_size, shuffle=False)
    scores = model.evaluate(test, verbose=0, return_dict=True)
    if is_chief:
        model.export_predictive(str(options.folder / "served"))
        print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return scores


def batches(x: np.ndarray, y: np.ndarray, batch_size: int, shuffle: bool) -> tf.data.Dataset:
    """Whole batches in a static shape, which a TPU needs; the rest of an epoch is left out.

    Every worker has the same dataset, of which TensorFlow gives it a share of each batch.
    """
    data = tf.data.Dataset.from_tensor_slices((x, y))
    if shuffle:
        data = data.shuffle(len(x), seed=0)
    return data.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


# -- strategies -----------------------------------------------------------------------------------


def connect_tpu(name: str) -> tf.distribute.Strategy:
    """A TPU by name; "local" on the machine it is built into."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


STRATEGIES: dict[str, Callable[[str], tf.distribute.Strategy]] = {
    "one": lambda tpu: tf.distribute.get_strategy(),
    "mirrored": lambda tpu: tf.distribute.MirroredStrategy(),
    "workers": lambda tpu: tf.distribute.MultiWorkerMirroredStrategy(),
    "tpu": connect_tpu,
}


# -- methods --------------------------------------------------------------------------------------


def rank1() -> r1.BayesianModel:
    """Rank-1 factors on two dense layers."""
    inputs = keras.Input((64,))
    h = r1.layers.TileMembers(MEMBERS)(inputs)
    h = r1.layers.DenseRank1(64, activation="relu", ensemble_size=MEMBERS)(h)
    h = r1.layers.DenseRank1(10, ensemble_size=MEMBERS)(h)
    return r1.BayesianModel(inputs, r1.layers.SplitMembers(MEMBERS)(h), likelihood="categorical")


def bali() -> bk.BaliModel:
    """Two dense BALI layers."""
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(64, activation="relu")(inputs)
    return bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")


METHODS: dict[str, Callable[[], r1.BayesianModel]] = {"rank1": rank1, "bali": bali}

if __name__ == "__main__":
    main()
