"""A training that can be killed.

    python resume_case.py METHOD FOLDER FILE [EPOCH BATCH]

trains with checkpoints in FOLDER and writes all state to FILE; kills itself like `kill -9` after
that batch of that epoch, or, with batch -1, while it writes that epoch's checkpoint. As one of the
workers in TF_CONFIG only the last worker kills itself.
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
from strategy_case import CLASSES, INPUTS, METHODS, dataset

import bali_keras as bk
import tfp_rank1 as r1

EPOCHS = int(os.environ.get("EPOCHS", "4"))


def mixed():
    """BALI layers with stock ones that an optimizer trains, moving statistics, and dropout."""
    inputs = keras.Input((INPUTS,))
    h = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    h = keras.layers.Dropout(0.2)(keras.layers.ReLU()(h))
    h = bk.layers.DenseBali(8, activation="relu")(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(CLASSES)(h), likelihood="categorical")


class Die(keras.callbacks.Callback):
    """Ends the process without any clean-up."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.at == (epoch, -1):
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, batch, logs=None):
        if self.at == (self.epoch, batch):
            os.kill(os.getpid(), signal.SIGKILL)


def train(method, folder, callbacks=(), strategy=None):
    """The same batches in the same order in every epoch; the model."""
    keras.utils.set_random_seed(7)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = (METHODS | {"mixed": mixed})[method]()
        if method.startswith("rank1"):
            model.compile(keras.optimizers.Adam(1e-2))
        else:
            model.compile(keras.optimizers.Adam(1e-2), warmup_steps=2)
    own = [r1.callbacks.KLAnnealing(epochs=3)] if method == "rank1_normal" else []
    resume = r1.callbacks.Resume(folder)
    model.fit(dataset(), epochs=EPOCHS, verbose=0, callbacks=[*own, resume, *callbacks])
    return model


def state(model):
    """Every number that training depends on."""
    generators = [
        value
        for layer in model._flatten_layers()
        for value in vars(layer).values()
        if isinstance(value, keras.random.SeedGenerator)
    ]
    variables = [*model.weights, *model.optimizer.variables, *(g.state for g in generators)]
    return [np.array(v) for v in variables]


if __name__ == "__main__":
    method, folder, file, *at = sys.argv[1:]
    is_worker = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_worker else None
    if strategy is not None:
        index = strategy.cluster_resolver.task_id
        file, at = f"{file}-{index}.npz", at if index else []
    found = state(train(method, folder, [Die(*map(int, at))] if at else [], strategy))
    np.savez(file, *found)
    os._exit(0)  # leaving by the garbage collector aborts in the threads of a collective
