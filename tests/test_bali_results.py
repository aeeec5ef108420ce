"""BALI on real data, with all defaults: long runs, by hand with `pytest -m slow -s`.

They print what README reports, and assert what must never be lost.
"""

import time

import keras
import numpy as np
import pytest
from shared_data import UCI, images, mean_and_error, uci_split

import bali_keras as bk
import tfp_rank1 as r1
from examples.benchmark.mean_field import MeanFieldDense

pytestmark = pytest.mark.slow


def mlp(inputs, hidden, outputs, dense, model, likelihood):
    """A ReLU net of one kind of dense layer."""
    h = x = keras.Input((inputs,))
    for units in hidden:
        h = dense(units, activation="relu")(h)
    return model(x, dense(outputs)(h), likelihood=likelihood)


def bali(inputs, hidden, outputs, likelihood, **kwargs):
    model = mlp(inputs, hidden, outputs, bk.layers.DenseBali, bk.BaliModel, likelihood)
    model.compile(**kwargs)
    return model


def fit_uci(x, y, steps=4000, epochs=20, batch_size=32, callbacks=(), **kwargs):
    """One hidden layer of 50; at least so many steps and epochs."""
    model = bali(x.shape[1], (50,), 1, r1.likelihoods.Normal(), **kwargs)
    per_epoch = -(-len(x) // batch_size)
    epochs = max(epochs, -(-steps // per_epoch))
    history = model.fit(
        x, y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=list(callbacks)
    )
    return model, history.history


def scores(model, samples, x, y, x_other):
    """Accuracy, NLL, ECE and the AUROC of entropy and mutual information."""
    inside, outside = (
        model.posterior_predictive(v, num_samples=samples, seed=1, batch_size=1000, reduce=None)
        for v in (x, x_other)
    )
    return image_scores(inside, outside, y)


def image_scores(inside, outside, y):
    """The same from predictive distributions."""
    calibration, result = r1.metrics.ExpectedCalibrationError(), {}
    calibration.update_state(y, inside)
    result["accuracy"] = np.mean(np.argmax(inside.mean(), 1) == y)
    result["NLL"] = -np.mean(inside.log_prob(y))
    result["ECE"] = float(calibration.result())
    for name in ("entropy", "mutual_information"):
        metric = r1.metrics.OODAUROC(name)
        metric.update_state(np.zeros(len(y)), inside)
        metric.update_state(np.ones(outside.outputs.shape[0]), outside)
        result[f"AUROC {name}"] = float(metric.result())
    return result


def report(title, rows):
    """Means and standard errors of a list of dicts."""
    print(
        f"\n{title}: " + ", ".join(f"{k} {mean_and_error([r[k] for r in rows])}" for k in rows[0])
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_images(name):
    """784-100-100-10, ten epochs, three seeds, beside five stock nets, in accuracy and time."""
    x, y, x_test, y_test = images(name)
    x_other = images("fashion_mnist" if name == "mnist" else "mnist")[2]
    rows, ensembles, seconds, stock_seconds = [], [], [], []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = bali(784, (100, 100), 10, "categorical")
        start = time.perf_counter()
        model.fit(x, y, batch_size=250, epochs=10, verbose=0)
        seconds.append(time.perf_counter() - start)
        rows.append(scores(model, 64, x_test, y_test, x_other))
        report(f"{name}, BALI, seed {seed}", rows[-1:])
        members = []
        for member in range(5):
            keras.utils.set_random_seed(100 * seed + member)
            net = mlp(784, (100, 100), 10, keras.layers.Dense, r1.BayesianModel, "categorical")
            net.compile(keras.optimizers.Adam(1e-3))
            start = time.perf_counter()
            net.fit(x, y, batch_size=128, epochs=10, verbose=0)
            stock_seconds.append(time.perf_counter() - start)
            members.append([net.predict(v, batch_size=1000, verbose=0) for v in (x_test, x_other)])
        inside, outside = (
            r1.PosteriorPredictive(np.stack(v), net.likelihood) for v in zip(*members, strict=True)
        )
        ensembles.append(image_scores(inside, outside, y_test))
    report(f"{name}, BALI", rows)
    report(f"{name}, ensemble of five", ensembles)
    print(f"seconds: BALI {mean_and_error(seconds)}, one stock net {mean_and_error(stock_seconds)}")
    for key in ("NLL", "ECE"):
        assert np.mean([r[key] for r in rows]) < np.mean([r[key] for r in ensembles])


def cnn(conv, dense, model):
    """Two strided convolutions and a dense layer."""
    h = x = keras.Input((28, 28, 1))
    h = conv(16, 3, strides=2, padding="same", activation="relu")(h)
    h = conv(32, 3, strides=2, padding="same", activation="relu")(h)
    outputs = dense(10)(keras.layers.Flatten()(h))
    return model(x, outputs, likelihood="categorical")


def test_small_cnn():
    """Twenty epochs on Fashion-MNIST beside the same deterministic net."""
    x, y, x_test, y_test = images("fashion_mnist", flat=False)
    x_other = images("mnist", flat=False)[2]
    keras.utils.set_random_seed(0)
    net = cnn(keras.layers.Conv2D, keras.layers.Dense, r1.BayesianModel)
    net.compile(keras.optimizers.Adam(1e-3))
    net.fit(x, y, batch_size=128, epochs=20, verbose=0)
    stock = scores(net, 1, x_test, y_test, x_other)
    report("deterministic CNN", [stock])
    keras.utils.set_random_seed(0)
    model = cnn(bk.layers.Conv2DBali, bk.layers.DenseBali, bk.BaliModel)
    model.compile()
    history = model.fit(x, y, batch_size=250, epochs=20, verbose=0).history
    found = scores(model, 32, x_test, y_test, x_other)
    report("BALI CNN", [found])
    print("training NLL by epoch", np.round(history["nll"], 3))
    assert found["NLL"] < stock["NLL"]
    assert found["ECE"] < stock["ECE"]
    assert not any(history["refused"])


class TestCurve(keras.callbacks.Callback):
    """Test NLL of the predictive after every so many epochs."""

    __test__ = False

    def __init__(self, x, y, every=1, samples=16):
        super().__init__()
        self.data, self.every, self.samples, self.values = (x, y), every, samples, []

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            x, y = self.data
            p = self.model.posterior_predictive(x, self.samples, seed=0, batch_size=2000)
            self.values.append(-float(np.mean(p.log_prob(y))))


@pytest.mark.parametrize("name", [*UCI, "mnist"])
def test_a_hundred_epochs_do_not_collapse(name):
    """Test NLL at the end at most 1.1 times the best."""
    keras.utils.set_random_seed(0)
    if name == "mnist":
        x, y, x_test, y_test = images(name)
        curve = TestCurve(x_test, y_test, every=5)
        model = bali(784, (100, 100), 10, "categorical")
        history = model.fit(x, y, batch_size=500, epochs=100, verbose=0, callbacks=[curve]).history
    else:
        x, y, x_test, y_test, scale = uci_split(name, 0)
        curve = TestCurve(x_test, y_test, every=2)
        _, history = fit_uci(x, y, steps=1, epochs=100, callbacks=[curve])
        curve.values = [v + np.log(scale) for v in curve.values]
    print(f"\n{name}: best test NLL {min(curve.values):.4f}, at the end {curve.values[-1]:.4f}")
    assert np.isfinite(list(history.values())).all()
    assert curve.values[-1] <= min(curve.values) + 0.1 * abs(min(curve.values))


@pytest.mark.parametrize("times", [0.1, 10.0])
@pytest.mark.parametrize("what", ["damping", "forgetting"])
def test_ten_times_more_or_less_gives_no_nan(what, times):
    """On a regression and on images."""
    arguments = {"damping": (0.05 * times, 0.001)}
    if what == "forgetting":
        arguments = {"forgetting": bk.schedules.Linear(0.07 * times, 0.001 * times)}
    x, y, x_test, y_test, _ = uci_split("energy", 0)
    model, history = fit_uci(x, y, steps=1000, **arguments)
    assert np.isfinite(list(history.values())).all()
    assert np.isfinite(model.posterior_predictive(x_test).log_prob(y_test)).all()
    x, y, x_test, y_test = images("mnist")
    model = bali(784, (100, 100), 10, "categorical", **arguments)
    history = model.fit(x, y, batch_size=500, epochs=3, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    p = model.posterior_predictive(x_test, num_samples=8, batch_size=2000)
    print(f"\n{what} x {times}: MNIST NLL after 3 epochs {-np.mean(p.log_prob(y_test)):.3f}")


class Clock(TestCurve):
    """Also the seconds of training alone, and the steps, after every epoch."""

    def on_train_begin(self, logs=None):
        self.seconds, self.elapsed = [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.elapsed += time.perf_counter() - self._start
        self.seconds.append(self.elapsed)
        super().on_epoch_end(epoch, logs)


def mean_field_best(x, y, x_test, y_test, hidden, outputs, likelihood, batch_size, epochs, seed):
    """The best test NLL of Bayes by Backprop over learning rates, with its step and seconds."""
    found = []
    for rate in (1e-3, 3e-3, 1e-2):
        keras.utils.set_random_seed(seed)
        model = mlp(x.shape[1], hidden, outputs, MeanFieldDense, r1.BayesianModel, likelihood())
        model.compile(keras.optimizers.Adam(rate))
        clock = Clock(x_test, y_test, samples=32)
        model.fit(
            x, y, batch_size=batch_size, epochs=epochs, verbose=0,
            callbacks=[clock, r1.callbacks.KLAnnealing(epochs=epochs / 4)],
        )  # fmt: skip
        best = int(np.argmin(clock.values))
        found.append((clock.values[best], best + 1, clock.seconds[best], rate))
    return min(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["concrete", "energy", "mnist"])
def test_few_iterations(name, seed):
    """Steps and seconds to the best test NLL that mean-field inference ever reaches."""
    if name == "mnist":
        x, y, x_test, y_test = images(name)
        task = (x, y, x_test, y_test, (100, 100), 10, lambda: r1.likelihoods.Categorical())
        batch_size, epochs, ours = 250, 20, 10
    else:
        x, y, x_test, y_test, _ = uci_split(name, seed)
        task = (x, y, x_test, y_test, (50,), 1, lambda: r1.likelihoods.Normal())
        batch_size, epochs, ours = 32, 400, 70
    target, epoch, seconds, rate = mean_field_best(*task, batch_size, epochs, seed)
    keras.utils.set_random_seed(seed)
    model = bali(x.shape[1], task[4], task[5], task[6]())
    clock = Clock(x_test, y_test, samples=32)
    model.fit(x, y, batch_size=batch_size, epochs=ours, verbose=0, callbacks=[clock])
    reached = np.flatnonzero(np.array(clock.values) <= target)
    print(
        f"\n{name}, seed {seed}: mean-field's best NLL {target:.4f} after {epoch} epochs, "
        f"{seconds:.1f} s (rate {rate})"
    )
    assert len(reached), min(clock.values)
    first = int(reached[0])
    print(
        f"BALI gets there after {first + 1} of {ours} epochs, {clock.seconds[first]:.1f} s: "
        f"{epoch / (first + 1):.1f} times fewer steps, "
        f"{seconds / clock.seconds[first]:.1f} times fewer seconds; at its end NLL "
        f"{clock.values[-1]:.4f}"
    )
