"""What people do around a fit: look at answers, pass lists, fit again, export, start anew."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

import bali_keras as bk
import tfp_rank1 as r1

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
KINDS = ("members", "bali")


def net(kind="members", likelihood="categorical", outputs=2, inputs=None):
    inputs = keras.Input((2,)) if inputs is None else inputs
    h = inputs if isinstance(inputs, keras.KerasTensor) else keras.layers.Concatenate()(
        keras.tree.flatten(inputs)
    )  # fmt: skip
    if kind == "bali":
        h = bk.layers.DenseBali(outputs)(bk.layers.DenseBali(4, activation="relu")(h))
        model = bk.BaliModel(inputs, h, likelihood=likelihood)
        model.compile(prior_precision=0.02)  # not searched: nothing here is about it
        return model
    with r1.members(2):
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(outputs)(r1.layers.TileMembers()(h)))
    model = r1.BayesianModel(inputs, h, likelihood=likelihood)
    model.compile("adam")
    return model


def test_answers_are_numpy_arrays():
    model = net()
    model.fit(X, Y, verbose=0)
    p = model.posterior_predictive(X, 4)
    assert repr(p) == "PosteriorPredictive(Categorical: 48 examples, 4 samples of 2 outputs)"
    moments = model.posterior_predictive(X, 4, reduce="moments")
    assert repr(moments) == "PredictiveMoments(48 examples, 2 targets)"
    found = [p.log_prob(Y), p.member_log_prob(Y), p.energy(), p.sample(2), *p.member_moments()]
    for answers in (p, moments):
        found += [
            answers.mean(), answers.variance(), answers.stddev(), answers.aleatoric_variance(),
            answers.epistemic_variance(), answers.entropy(), answers.expected_entropy(),
            answers.mutual_information(),
        ]  # fmt: skip
    normal = r1.PosteriorPredictive(tf.zeros((3, 5, 1)), r1.likelihoods.Normal(scale=1.0))
    found += [*normal.credible_interval(), normal.quantile(0.5), normal.cdf(np.zeros((5, 1)))]
    for answer in found:
        assert isinstance(answer, np.ndarray) and type(answer.numpy()) is np.ndarray
    total = p.stddev().mean()
    assert round(total, 3) >= 0.0 and {total: 1} and isinstance(p.mean().sum(), np.floating)
    p.mean()[0] = 1.0
    chosen = p.mean()[p.mean().argmax(1) == 1]  # which tensors cannot do
    assert np.all(chosen[:, 1] > 0.5)

    @tf.function
    def graph(samples):
        return r1.PosteriorPredictive(samples, r1.likelihoods.Categorical()).mean()

    np.testing.assert_allclose(graph(p.samples), p.mean(), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_named(kind):
    model = net(kind)
    for x, y, name in ((X.tolist(), Y, "x"), (X, Y.tolist(), "y")):
        with pytest.raises(ValueError, match=rf"`{name}` must be an array.*np.array\({name}"):
            model.fit(x, y, verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_finite_are_named_alike(kind):
    x = X.copy()
    x[7, 1], x[20, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="in 2 of 48 rows, the first of them row 7"):
        net(kind).fit(x, Y, verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_targets_are_told(kind):
    y = X[:, :1].copy()
    y[:3] = np.nan
    with pytest.warns(UserWarning, match="3 of 48 targets are NaN: they count as missing"):
        net(kind, "normal", 1).fit(X, y, verbose=0)


NAMES = [("fixed acidity", "ph"), ("A", "a"), ("1st", "b-c"), ("self", "training"), ("é", "e")]


@pytest.mark.parametrize("names", NAMES)
def test_inputs_of_any_name_are_exported(names, tmp_path):
    model = net(inputs={name: keras.Input((1,), name=name) for name in names})
    data = {name: X[:, i : i + 1] for i, name in enumerate(names)}
    model.fit(data, Y, verbose=0)
    model.export_predictive(str(tmp_path), num_samples=2)
    served = tf.saved_model.load(str(tmp_path))
    assert served.serve(data)["probs"].shape == (48, 2)
    seed = tf.constant([1, 2])
    found = served.samples(data, 2, seed=seed)
    swapped = dict(zip(names, [data[names[1]], data[names[0]]], strict=True))
    assert not np.allclose(found, served.samples(swapped, 2, seed=seed))


def test_a_second_fit_to_other_data_warns(tmp_path):
    """By another N, or by a loss that jumps; not on the same data, and not where it is meant."""
    model = net("bali")
    model.fit(X, Y, epochs=40, verbose=0)
    model.fit(X, Y, epochs=2, verbose=0)
    with pytest.warns(UserWarning, match="Received: 24 examples, after a fit to 48"):
        model.fit(X[:24], Y[:24], verbose=0)
    model = net("bali")
    model.fit(X, Y, epochs=40, verbose=0)
    model.save(tmp_path / "model.keras")
    for again in (model, keras.saving.load_model(tmp_path / "model.keras")):
        with pytest.warns(UserWarning, match="forget what it learned.*Received: an NLL of"):
            again.fit(X, 1 - Y, epochs=2, verbose=0)
    drift = net("bali")
    drift.compile(forgetting=0.02)
    drift.fit(X, Y, epochs=40, verbose=0)
    drift.fit(X[:24], 1 - Y[:24], verbose=0)
    stream = net("bali")
    stream.num_train_examples = 48
    stream.fit(X[:24], Y[:24], epochs=40, verbose=0)
    stream.fit(X[24:], Y[24:], epochs=2, verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_models_leave_no_graphs_behind(kind):
    """A search over many models must not fill the memory."""

    def graphs():
        gc.collect()
        return sum(isinstance(v, FuncGraph) and "one_step" in v.name for v in gc.get_objects())

    before = graphs()
    model = net(kind)
    model.fit(X, Y, validation_data=(X, Y), verbose=0)
    model.predict(X, verbose=0)
    model.posterior_predictive(X)
    found = weakref.ref(model)
    assert graphs() > before
    del model
    keras.backend.clear_session()
    assert graphs() == before and found() is None
