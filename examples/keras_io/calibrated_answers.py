"""
Title: Calibrated, served answers from a pretrained network
Author: [The rank1-bali maintainers](https://github.com/rank1-bali/rank1-bali)
Date created: 2026/11/29
Last modified: 2026/11/29
Description: Make a trained Keras network Bayesian, calibrate it, and serve its answers.
Accelerator: GPU
"""

"""
## Introduction

A softmax of 0.97 should be right 97 times of 100. After enough epochs it is not: networks end up
too sure of themselves, and just as sure of images unlike all that they were trained on.

This example takes a network that is trained already and makes it Bayesian without training it from
scratch. Its kernels stay. Small random factors around them, a few numbers per channel ([Dusenberry
et al., 2020](https://arxiv.org/abs/2005.07186)), are trained for two epochs. Then

- a **held-out part** of the data calibrates the probabilities;
- **prediction sets** hold the true class with a probability that is guaranteed;
- **mutual information** tells images unlike the training data;
- a **SavedModel** serves all of it to processes that know nothing of the library.

```shell
pip install rank1-bali
```
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tfp_rank1 as r1

keras.utils.set_random_seed(0)

"""
## A trained network

Fashion-MNIST: 50,000 images to train on, 5,000 to calibrate, 5,000 for the prediction sets, and the
test set. The network is a small CNN, and it stands for the one that you have: any Functional or
Sequential model, such as those of `keras.applications`.
"""

(x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
x, x_test = (images[..., None].astype("float32") / 255.0 for images in (x, x_test))
x_train, x_calibrate, x_conformal = np.split(x, [len(x) * 5 // 6, len(x) * 11 // 12])
y_train, y_calibrate, y_conformal = np.split(y, [len(y) * 5 // 6, len(y) * 11 // 12])

network = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
network.fit(x_train, y_train, batch_size=128, epochs=15, verbose=2)

"""
## Make it Bayesian

`convert` gives every layer random rank-1 factors, whose means start at 1: until it is trained, each
of the four members computes the original function, and `convert` checks that. The softmax is
dropped, as the likelihood applies it. With `freeze_slow_weights` the factors are all that is
trained.
"""

model = r1.convert(network, likelihood="categorical", posterior=r1.posteriors.Normal(stddev=0.1))
model.freeze_slow_weights()
model.compile(keras.optimizers.Adam(1e-3), metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=128, epochs=2, verbose=2)
trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
print(f"{trained:,} numbers trained, beside the {network.count_params():,} of the network")

"""
## Calibrate

Two numbers, found on images that were held out: a scale of the posterior variances and a
temperature.
"""

model.calibrate(x_calibrate, y_calibrate)


def scores(answers: r1.PosteriorPredictive) -> tuple[float, ...]:
    """Accuracy, negative log-likelihood in nats, expected calibration error."""
    calibration = r1.metrics.ExpectedCalibrationError()
    calibration.update_state(y_test, answers)
    return (
        np.mean(answers.mean().argmax(axis=-1) == y_test),
        -np.mean(answers.log_prob(y_test)),
        float(calibration.result()),
    )


def point_answers(images: np.ndarray) -> r1.PosteriorPredictive:
    """The network's probabilities as answers of one sample, floored as losses of Keras do."""
    probabilities = np.maximum(network.predict(images, verbose=0), keras.config.epsilon())
    return r1.PosteriorPredictive(np.log(probabilities)[None], r1.likelihoods.Categorical())


point = point_answers(x_test)
answers = model.posterior_predictive(x_test, seed=0)
for name, p in (("the network", point), ("Bayesian", answers)):
    print("{:12} accuracy {:.3f}, NLL {:.3f}, ECE {:.3f}".format(name, *scores(p)))

axes = r1.plots.reliability_diagram(y_test, point, label="the network")
r1.plots.reliability_diagram(y_test, answers, ax=axes, label="Bayesian")
plt.show()

"""
## Sets with a guarantee

A conformal set holds the true class with the probability that is asked for, on average over images
like those that it was found on.
"""

model.conformalize(x_conformal, y_conformal)
sets = model.posterior_predictive(x_test, seed=0).prediction_set(coverage=0.95)
held = sets[np.arange(len(y_test)), y_test].mean()
print(f"the sets hold {held:.1%} of the labels with {sets.sum(axis=-1).mean():.2f} classes")

"""
## Images unlike the training data

Digits are no clothes. The entropy of the Bayesian answers tells the two apart better than that of
the network, and mutual information is the part of it that more data would remove.
"""

digits = keras.datasets.mnist.load_data()[1][0][: len(x_test), ..., None].astype("float32") / 255.0
strange = model.posterior_predictive(digits, seed=0)
strange_point = point_answers(digits)
axes = r1.plots.ood_roc(point, strange_point, score="entropy", label="the network, entropy")
for score in ("entropy", "mutual_information"):
    r1.plots.ood_roc(answers, strange, score=score, ax=axes, label=f"Bayesian, {score}")
plt.show()

"""
## Serve

A SavedModel for TensorFlow Serving, with the calibration and the sets inside. The process that
loads it needs TensorFlow alone.
"""

model.export_predictive("served", coverage=0.95)
served = tf.saved_model.load("served")
with np.printoptions(precision=3, suppress=True):
    for name, value in served.serve(x_test[:3]).items():
        print(name, value.numpy(), sep="\n")
