"""`calibrate`: the factor of posterior variances and the temperature, in all answers."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import linear_data, net
from conftest import small_classifier
from scipy import optimize, special

import tfp_rank1 as r1
from tfp_rank1.model.answer_state import set_calibration
from tfp_rank1.model.calibration import Calibration
from tfp_rank1.model.line_search import minimum
from tfp_rank1.predictive import PredictiveMixture, labelled_batches, sample_outputs
from tfp_rank1.random import make_seed, seed_scope

L, Q = r1.layers, r1.posteriors
WIDE = Calibration(4.0, 1.0)


def identity(inputs, likelihood, factor=3.0):
    """A net that multiplies its inputs, which are raw outputs."""
    x = keras.Input((inputs,))
    return r1.BayesianModel(x, keras.layers.Rescaling(factor)(x), likelihood=likelihood)


def additive(posterior="normal", **kwargs):
    """A linear rank-1 net whose outputs are linear in its only random factor."""
    x = keras.Input((3,))
    kwargs = {"perturbation": "additive", "prior": None, "s_posterior": "deterministic", **kwargs}
    h = L.DenseRank1(2, ensemble_size=2, r_posterior=posterior, **kwargs)(L.TileMembers(2)(x))
    return r1.BayesianModel(x, L.SplitMembers(2)(h), likelihood=r1.likelihoods.Normal(0.1))


def bali(likelihood="categorical", hidden=(8,), outputs=3, rows=60, **kwargs):
    """A fitted BALI net, with its data."""
    x, y = linear_data(rows=rows, outputs=outputs)
    y = np.argmax(y, axis=1) if likelihood == "categorical" else y
    model = net(3, hidden, outputs, likelihood, "relu")
    model.compile(**kwargs)
    model.fit(x, y, batch_size=20, epochs=3, verbose=0)
    return model, x, y


def labels_of(logits, rng):
    """Labels from the exact softmax of logits."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


def samples(model, x, count=8):
    return np.asarray(model.posterior_predictive(x, count, seed=1).samples)


def mean_outputs(model, x):
    """Raw outputs in the posterior mean, members first."""
    with r1.posterior_mean():
        return samples(model, x)


# -- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_the_temperature_of_exact_logits_is_found(likelihood):
    """The minimum of the NLL, by SciPy; a net without noise keeps c."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(2000, 4)).astype("float32")
    if likelihood == "categorical":
        y = labels_of(logits, rng)

        def nll(tau):
            log_probs = special.log_softmax(3.0 * logits / tau, axis=1)
            return -log_probs[np.arange(2000), y].mean()
    else:
        y = (rng.uniform(size=logits.shape) < special.expit(logits)).astype("float32")

        def nll(tau):
            return -special.log_expit((2.0 * y - 1.0) * 3.0 * logits / tau).sum(axis=1).mean()

    exact = optimize.minimize_scalar(nll, bounds=(0.5, 10.0), method="bounded").x
    model = identity(4, likelihood)
    report = model.calibrate(logits, y, verbose=0)
    assert report.posterior_scale == 1.0
    np.testing.assert_allclose(report.temperature, exact, rtol=5e-3)
    np.testing.assert_allclose(report.temperature, 3.0, rtol=0.1)
    np.testing.assert_allclose(
        [report.nll_before, report.nll_after], [nll(1.0), nll(exact)], rtol=1e-4
    )
    assert report.ece_after < 0.05 < report.ece_before
    assert report.coverage_after is None
    assert model.calibration == Calibration(1.0, report.temperature)
    np.testing.assert_allclose(model(logits), 3.0 * logits / report.temperature, rtol=1e-5)


def test_a_gain_below_a_nat_changes_nothing():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3)).astype("float32")
    y, model = labels_of(logits, rng), identity(3, "categorical")
    report = model.calibrate(logits[:5], y[:5], verbose=0)
    assert model.calibration == Calibration()
    assert report.nll_before == report.nll_after
    # More of the same data say more.
    assert model.calibrate(logits, y, verbose=0).temperature > 1.5


def test_a_hundred_right_answers_do_not_make_certainty():
    """Their likelihood alone has its maximum at temperature 0; the prior has it elsewhere."""
    logits = np.eye(3, dtype="float32")[np.arange(100) % 3]
    model = identity(3, "categorical")

    def loss(log_tau):
        log_probs = special.log_softmax([3.0 / np.exp(log_tau), 0.0, 0.0])
        return -100.0 * log_probs[0] + 0.5 * (log_tau / np.log(2.0)) ** 2

    exact = np.exp(optimize.minimize_scalar(loss, bounds=(-4, 1), method="bounded").x)
    report = model.calibrate(logits, np.arange(100) % 3, verbose=0)
    np.testing.assert_allclose(report.temperature, exact, rtol=5e-3)
    assert 0.3 < exact < 0.6


def test_weights_and_missing_targets_count_as_in_the_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)).astype("float32")
    y = labels_of(logits, rng)
    half = identity(3, "categorical").calibrate(logits[:200], y[:200], verbose=0)
    weights = np.repeat([1.0, 0.0], 200)
    weighted = identity(3, "categorical").calibrate(logits, y, weights, verbose=0)
    missing = np.where(weights > 0, y, -1)
    likelihood = r1.likelihoods.Categorical(ignore_class=-1)
    ignored = identity(3, likelihood).calibrate(logits, missing, verbose=0)
    for found in (weighted, ignored):
        np.testing.assert_allclose(found.temperature, half.temperature, rtol=1e-3)
        np.testing.assert_allclose(found.nll_after, half.nll_after, rtol=1e-5)


def test_the_scale_of_an_exact_posterior_is_found():
    """Targets whose weights vary with twice the posterior's standard deviation, in closed form."""
    x, y = linear_data(rows=12, outputs=200)
    model = net(3, (), 200)
    model.compile(forgetting=1.0, warmup_steps=0)
    model.fit(x, y, batch_size=12, epochs=3, verbose=0)
    state = model.bali_layers[0].posterior_state.matrix_normal()
    mean, row = np.array(state.mean, "float64"), np.array(state.row_factor, "float64")
    rng = np.random.default_rng(1)
    new = rng.normal(size=(50, 3)).astype("float32")
    h = np.c_[new, np.ones(50)]
    weights = mean + 2.0 * 0.3 * row @ rng.normal(size=mean.shape)
    targets = (h @ weights + 0.3 * rng.normal(size=(50, 200))).astype("float32")
    leverage = np.sum((h @ row) ** 2, axis=1)

    def nll(log_scale):
        variance = 0.09 * (1.0 + np.exp(log_scale) * leverage[:, None])
        return np.sum(0.5 * np.log(variance) + 0.5 * (targets - h @ mean) ** 2 / variance)

    exact = np.exp(optimize.minimize_scalar(nll, bounds=(-5, 5), method="bounded").x)
    report = model.calibrate(new, targets, verbose=0)
    np.testing.assert_allclose(report.posterior_scale, exact, rtol=0.06)
    assert 3.0 < report.posterior_scale < 5.0
    assert report.temperature == 1.0  # the user fixed the noise
    assert abs(report.coverage_after - 0.9) < abs(report.coverage_before - 0.9)


def test_both_numbers_of_a_net(digits, digits_model):
    """NLL of all 32 samples falls on the data by which they were found; batches give the same."""
    model = keras.models.clone_model(digits_model)
    model.set_weights(digits_model.get_weights())
    x, y = digits[2][:200], digits[3][:200]
    report = model.calibrate(x, y, verbose=0)
    assert report.nll_after < report.nll_before
    assert model.calibration == Calibration(report.posterior_scale, report.temperature)
    again = model.calibrate(x, y, verbose=0)
    assert again.nll_before == pytest.approx(report.nll_after, rel=1e-4)
    set_calibration(model, Calibration())
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(128)
    assert model.calibrate(data, verbose=0) == report


class Batches(keras.utils.PyDataset):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


def test_batches_of_every_kind_hold_their_targets_and_weights():
    x, y, w = np.arange(10.0)[:, None], np.arange(10), np.ones(10)
    parts = [(x[:4], y[:4], w[:4]), (x[4:8], y[4:8], w[4:8]), (x[8:], y[8:], w[8:])]
    for found in (
        labelled_batches(x, y, w, batch_size=4),
        labelled_batches(Batches(parts), None),
        labelled_batches(iter(parts), None),
        labelled_batches(tf.data.Dataset.from_tensor_slices((x, y, w)).batch(4), None),
    ):
        assert len(found) == 3
        for ours, theirs in zip(found, parts, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="Targets are needed"):
        labelled_batches(tf.data.Dataset.from_tensor_slices(x).batch(4), None)
    with pytest.raises(ValueError, match="without an end"):
        labelled_batches(tf.data.Dataset.from_tensors((x, y)).repeat(), None)


def test_the_report_is_printed(capsys):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 3)).astype("float32")
    model, y = identity(3, "categorical"), labels_of(logits, rng)
    report = model.calibrate(logits, y)
    assert capsys.readouterr().out == f"{report}\n"
    assert "posterior_scale 1, temperature" in str(report) and "ECE" in str(report)
    assert "coverage" not in str(report)
    model.calibrate(logits, y, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("target", [-7.0, 0.3, 6.5])
def test_line_search(target):
    found = minimum(lambda x: (x - target) ** 2, 0.0, 1.0, (-8.0, 8.0), 0.01)
    assert abs(found - target) < 0.01
    assert minimum(lambda x: 1.0, 0.25, 1.0, (-8.0, 8.0), 0.01) == 0.25
    assert minimum(lambda x: np.nan if x > 1 else -x, 0.0, 1.0, (-8.0, 8.0), 0.01) == pytest.approx(
        1, abs=0.02
    )


# -- what it does to answers ----------------------------------------------------------------------


FAMILIES = [
    Q.Normal(stddev=0.3),
    Q.NormalSharedStddev(stddev=0.3),
    Q.NormalFixedStddev(stddev=0.3),
    Q.Cauchy(scale=0.01),
    Q.MixtureOfDeltas(3),
]


@pytest.mark.parametrize("posterior", FAMILIES, ids=lambda q: type(q).__name__)
def test_c_multiplies_deviations_by_its_root(posterior):
    model = additive(posterior)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    mean, before = mean_outputs(model, x), samples(model, x)
    set_calibration(model, WIDE)
    assert np.abs(before - mean).max() > 1e-3
    np.testing.assert_allclose(samples(model, x) - mean, 2.0 * (before - mean), atol=1e-5)
    np.testing.assert_allclose(mean_outputs(model, x), mean, rtol=1e-6)


@pytest.mark.parametrize("posterior", [Q.LogNormal(scale=0.5), Q.HalfCauchy(scale=0.1)])
def test_positive_families_stay_positive(posterior):
    """LogNormal by its logarithm, HalfCauchy from its lower end."""
    layer = L.DenseRank1(2, posterior=posterior)
    layer.build((None, 4))
    factor = layer.r_factor
    draws = np.asarray(factor.sample(1000, make_seed(0)))
    with r1.scopes.posterior_scale.set(9.0):
        wide = np.asarray(factor.sample(1000, make_seed(0)))
    assert wide.min() > 0.0
    parameters = factor.posterior_variables
    if isinstance(posterior, Q.LogNormal):
        center = np.asarray(parameters["loc"])[:, None]
        draws, wide = np.log(draws), np.log(wide)
    else:
        center = np.asarray(Q.softplus_scale(parameters["loc"]))[:, None]
    np.testing.assert_allclose(wide - center, 3.0 * (draws - center), rtol=1e-3, atol=1e-4)


class Positive(Q.Normal):
    """A family of a user, which says no more than that it is positive."""

    positive = True

    def distribution(self, parameters):
        return r1.posteriors.LogNormal().distribution(parameters)

    def sample(self, parameters, rows, seed):
        return r1.posteriors.LogNormal().sample(parameters, rows, seed)


def test_a_positive_family_of_ones_own_stays_positive():
    layer = L.DenseRank1(2, posterior=Positive(stddev=1.0), prior=None)
    layer.build((None, 4))
    with r1.scopes.posterior_scale.set(25.0):
        wide = np.asarray(layer.r_factor.sample(1000, make_seed(0)))
    assert wide.min() > 0.0 and np.isfinite(wide).all()


@pytest.mark.parametrize("sampling", ["example", "weights"])
def test_c_of_a_bali_layer(sampling):
    model, x, _ = bali(r1.likelihoods.Normal(0.3), (), 2)
    layer = model.bali_layers[0]
    layer.sampling = sampling

    def draws():
        with seed_scope(make_seed(2)):
            return np.asarray(model(x))

    mean, before = mean_outputs(model, x)[0], draws()
    exact = model.posterior_predictive(x, 1).epistemic_variance()
    set_calibration(model, WIDE)
    np.testing.assert_allclose(draws() - mean, 2.0 * (before - mean), atol=1e-5)
    np.testing.assert_allclose(
        model.posterior_predictive(x, 1).epistemic_variance(), 4.0 * exact, rtol=1e-5
    )
    np.testing.assert_allclose(model.marginal_outputs(x)[1], 4.0 * exact, rtol=1e-5)


def answers_of(model, x, y):
    """Every answer that a model gives in this process, with fixed draws where one can fix them."""
    with seed_scope(make_seed(3)):
        one = np.asarray(model(x))
    return {
        "call": one,
        "predict": model.predict(x, verbose=0),
        "evaluate": model.evaluate(x, y, verbose=0),
        "predictive": model.posterior_predictive(x, 4, seed=1).mean(),
        "moments": model.posterior_predictive(x, 4, seed=1, reduce="moments").mean(),
        "samples": np.asarray(sample_outputs(model, x, 4, tf.constant([1, 2]))),
    }


@pytest.mark.parametrize("kind", ["rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_every_answer_is_calibrated(kind, digits, tmp_path):
    """Functions that were compiled before included; and back again, to the bit."""
    if kind == "rank1":
        model, x, y = small_classifier(), digits[2][:20], digits[3][:20]
        model.compile("sgd")
    else:
        model, x, y = bali()
    before = answers_of(model, x, y)
    for calibration in (Calibration(16.0, 1.0), Calibration(1.0, 2.0)):
        set_calibration(model, calibration)
        after = answers_of(model, x, y)
        for name, value in before.items():
            assert not np.allclose(after[name], value, rtol=1e-4, atol=1e-5), (name, calibration)
    for name in ("call", "samples"):  # raw outputs, the last time at temperature 2
        np.testing.assert_allclose(after[name], before[name] / 2.0, rtol=1e-5, atol=1e-6)
    set_calibration(model, Calibration(16.0, 2.0))
    model.export_predictive(str(tmp_path / "served"), num_samples=4)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    served = loaded.samples(x, 4, tf.constant([1, 2]))
    expected = sample_outputs(model, x, 4, tf.constant([1, 2]))
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)
    set_calibration(model, Calibration())
    for name, value in answers_of(model, x, y).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_one_compiled_function_serves_all_scales():
    """The loop over c traces no graph anew."""
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs

    x = keras.Input((3,))
    h = L.DenseRank1(2, ensemble_size=2)(L.TileMembers(2)(Counting()(x)))
    model = r1.BayesianModel(x, L.SplitMembers(2)(h), likelihood="categorical")
    model.posterior_predictive(np.ones((4, 3), "float32"))
    traces.clear()
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 3)).astype("float32")
    model.calibrate(data, rng.integers(0, 2, 50), verbose=0)
    assert len(traces) <= 2  # one graph, and perhaps one more of its loop


def test_posterior_mean_has_no_scale_but_the_temperature():
    model, x, _ = bali()
    before = mean_outputs(model, x)
    set_calibration(model, Calibration(9.0, 2.0))
    np.testing.assert_allclose(mean_outputs(model, x), before / 2.0, rtol=1e-6)


def test_a_model_within_another_one():
    """A stock net around a calibrated one sees its calibration, except in training."""
    inner = additive()
    set_calibration(inner, Calibration(0.0625, 1.0))
    x = keras.Input((3,))
    outer = keras.Model(x, inner(x))
    data = np.ones((2, 3), "float32")
    with seed_scope(make_seed(0)):
        expected = np.asarray(inner(data))
    with seed_scope(make_seed(0)):
        np.testing.assert_array_equal(outer(data), expected)
    for model in (inner, outer):
        with seed_scope(make_seed(0)):
            trained = np.asarray(model(data, training=True))
        assert np.abs(trained - expected).max() > 1e-3
    around = r1.BayesianModel(x, inner(x), likelihood=r1.likelihoods.Normal(0.1))
    with seed_scope(make_seed(0)):  # the calibration of the outermost model holds
        np.testing.assert_array_equal(around(data), trained)


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "likelihood",
    [
        r1.likelihoods.Normal(),
        r1.likelihoods.StudentT(),
        r1.likelihoods.Laplace(),
        r1.likelihoods.LogNormal(),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_learned_scale_is_multiplied(likelihood):
    """Targets three times as noisy as the scale says."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 2)).astype("float32")
    model = identity(2, likelihood, 1.0)
    model.build((None, 2))
    y = np.asarray(
        model.posterior_predictive(z, 1).likelihood.distribution(tf.constant(z)).sample()
    )
    for _ in range(2):  # from the scale that was found nothing is left to gain
        y_wide = (
            z + 3.0 * (y - z)
            if not isinstance(likelihood, r1.likelihoods.LogNormal)
            else (np.exp(z + 3.0 * (np.log(y) - z)))
        )
        report = model.calibrate(z, y_wide, verbose=0)
        np.testing.assert_allclose(report.temperature, 3.0, rtol=0.06)
        np.testing.assert_allclose(likelihood.scale, 3.0 * np.ones(2), rtol=0.06)
    assert report.nll_before == report.nll_after
    assert abs(report.coverage_after - 0.9) < 0.03
    set_calibration(model, Calibration())
    np.testing.assert_allclose(likelihood.scale, np.ones(2), rtol=1e-4)


@pytest.mark.parametrize("likelihood", [r1.likelihoods.Normal(scale=0.5), r1.likelihoods.Poisson()])
def test_what_has_no_temperature_keeps_it(likelihood):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 1)).astype("float32")
    model = identity(1, likelihood, 1.0)
    report = model.calibrate(z, rng.poisson(3.0, size=(200, 1)).astype("float32"), verbose=0)
    assert model.calibration == Calibration() and report.temperature == 1.0


def test_predicted_scales_are_multiplied():
    likelihood = r1.likelihoods.HeteroscedasticNormal(min_scale=0.01)
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(1000, 2)).astype("float32")
    model = identity(2, likelihood, 1.0)
    scale = np.asarray(likelihood.distribution(tf.constant(outputs)).stddev())
    for tau in (3.0, 0.5):
        tempered = likelihood.tempered(tf.constant(outputs), tau)
        found = likelihood.distribution(tempered)
        np.testing.assert_allclose(found.stddev(), tau * scale, rtol=1e-4)
        np.testing.assert_array_equal(found.mean(), outputs[:, :1])
    smallest = likelihood.distribution(likelihood.tempered(tf.constant(outputs), 1e-6)).stddev()
    np.testing.assert_allclose(smallest, np.full((1000, 1), 0.01), rtol=1e-3)
    y = (outputs[:, :1] + 3.0 * scale * rng.normal(size=(1000, 1))).astype("float32")
    report = model.calibrate(outputs, y, verbose=0)
    np.testing.assert_allclose(report.temperature, 3.0, rtol=0.08)
    p = model.posterior_predictive(outputs, 1)
    np.testing.assert_allclose(p.stddev(), report.temperature * scale, rtol=1e-4)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rank1", "bali", "noise"])
def test_training_begins_without_what_was_found(kind):
    """The second `fit` of a calibrated model is that of one that was not calibrated."""

    def trained(calibration):
        keras.utils.set_random_seed(0)
        if kind == "rank1":
            model, (x, y) = small_classifier(num_inputs=3), linear_data(outputs=10)
            y = np.argmax(y, axis=1)
            model.compile(keras.optimizers.SGD(0.1))
        else:
            model, x, y = bali("categorical" if kind == "bali" else r1.likelihoods.Normal())
        model.fit(x, y, batch_size=20, epochs=1, shuffle=False, verbose=0)
        set_calibration(model, calibration)
        history = model.fit(x, y, batch_size=20, epochs=1, shuffle=False, verbose=0)
        assert model.calibration == Calibration() and model.conformal is None
        return [np.array(v) for v in model.weights], history.history

    (weights, logs), (expected, other) = trained(Calibration(9.0, 2.0)), trained(Calibration())
    tolerance = 1e-4 if kind == "noise" else 0.0
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert logs["nll"] == pytest.approx(other["nll"], rel=tolerance)


def test_train_on_batch_drops_it_too():
    model = small_classifier(num_inputs=3)
    model.compile("sgd")
    model.num_train_examples = 10
    set_calibration(model, WIDE)
    model.train_on_batch(np.ones((4, 3), "float32"), np.zeros(4))
    assert model.calibration == Calibration()


# -- files, clones, replicas, precision -----------------------------------------------------------


FOUND = Calibration(5.0, 1.5)


def calibrated(kind):
    """A calibrated model, with inputs and its answers."""
    if kind == "rank1":
        model, x = small_classifier(num_inputs=3), linear_data()[0]
    elif kind == "noise":
        model, x, _ = bali(r1.likelihoods.Normal())
    else:
        model, x, _ = bali()
    set_calibration(model, FOUND)
    return model, x, samples(model, x)


@pytest.mark.parametrize("kind", ["rank1", "bali", "noise"])
def test_files_clones_and_pickles_answer_alike(kind, tmp_path):
    model, x, expected = calibrated(kind)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    set_calibration(model, Calibration())
    fresh = keras.models.clone_model(model)
    assert fresh.calibration == Calibration()
    fresh.load_weights(tmp_path / "model.weights.h5")
    set_calibration(model, FOUND)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (clone, fresh, loaded, pickle.loads(pickle.dumps(model))):
        assert other.calibration == FOUND
        np.testing.assert_allclose(samples(other, x), expected, rtol=1e-5, atol=1e-6)
        assert keras.models.clone_model(other).calibration == FOUND


def test_weights_without_a_calibration_take_it_away(tmp_path):
    model = small_classifier(num_inputs=3)
    assert "answers" not in model.likelihood.get_config() | model.get_config()
    model.save_weights(tmp_path / "model.weights.h5")
    set_calibration(model, FOUND)
    assert model.calibration == FOUND
    model.load_weights(tmp_path / "model.weights.h5")
    assert model.calibration == Calibration()
    assert keras.models.clone_model(model).calibration == Calibration()


def test_a_shared_likelihood_carries_it_to_clones_of_its_model_alone():
    likelihood = r1.likelihoods.Categorical()
    first, second = identity(3, likelihood), identity(3, likelihood)
    set_calibration(first, FOUND)
    assert second.calibration == Calibration()
    assert keras.models.clone_model(first).calibration == FOUND
    assert keras.models.clone_model(second).calibration == Calibration()


@keras.saving.register_keras_serializable("test_calibration")
class Subclassed(r1.BayesianModel):
    def __init__(self, **kwargs):
        super().__init__(likelihood="categorical", **kwargs)
        self.dense = L.DenseRank1(3, ensemble_size=2)

    def call(self, inputs, training=None):
        tiled = tf.concat([inputs, inputs], axis=0)
        outputs = tf.reshape(self.dense(tiled), [2, -1, 3])
        return self.likelihood(tf.transpose(outputs, [1, 0, 2]))


def test_a_subclassed_model(tmp_path):
    model, x = Subclassed(), np.tile(linear_data()[0], (20, 1))
    y = np.arange(len(x)) % 3
    before = samples(model, x)
    report = model.calibrate(x, y, verbose=0)
    assert not report.temperature == report.posterior_scale == 1.0
    assert "Unchanged" not in str(report)
    assert "Unchanged: no number gains 3 nats" in str(model.calibrate(x, y, verbose=0))
    set_calibration(model, FOUND)
    np.testing.assert_raises(AssertionError, np.testing.assert_allclose, samples(model, x), before)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.calibration == Subclassed.from_config(model.get_config()).calibration == FOUND
    np.testing.assert_allclose(samples(loaded, x), samples(model, x), rtol=1e-5)


@pytest.mark.parametrize("kind", ["rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_two_replicas_answer_as_one(kind, strategy):
    """Every replica is a thread, in which the caller's scopes do not hold."""
    model, x, _ = calibrated(kind)
    y = np.zeros(len(x))
    if kind == "rank1":
        model.compile("sgd")
    with strategy.scope():
        other = keras.models.clone_model(model)
        other.compile("sgd" if kind == "rank1" else None)
    other.set_weights(model.get_weights())
    assert other.calibration == FOUND
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    set_calibration(plain, Calibration())
    expected = model.predict(x, verbose=0, batch_size=10)
    found = other.predict(x, verbose=0, batch_size=10)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain.predict(x, verbose=0) - expected).max() > 1e-3
    np.testing.assert_allclose(
        other.evaluate(x, y, verbose=0, return_dict=True)["nll"],
        model.evaluate(x, y, verbose=0, return_dict=True)["nll"],
        rtol=1e-4,
    )
    right = np.argmax(expected, axis=1)
    report, alone = (m.calibrate(x, right, verbose=0) for m in (other, model))
    assert report.temperature == pytest.approx(alone.temperature, rel=1e-2)
    assert report.nll_after == pytest.approx(alone.nll_after, rel=1e-3)
    assert other.calibration == Calibration(report.posterior_scale, report.temperature) != FOUND


@pytest.mark.parametrize("kind", ["rank1", pytest.param("bali", marks=pytest.mark.slow)])
def test_xla_and_mixed_precision(kind):
    model, x, _ = calibrated(kind)
    expected = model.predict(x, verbose=0)
    arguments = {} if kind == "bali" else {"optimizer": "sgd"}
    model.compile(jit_compile=True, **arguments)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half, _, _ = calibrated(kind)
    half.set_weights(model.get_weights())
    np.testing.assert_allclose(half.predict(x, verbose=0), expected, atol=0.05)


# -- errors ---------------------------------------------------------------------------------------


def test_errors_say_what_to_do():
    model = identity(3, "categorical")
    x, y = np.ones((4, 3), "float32"), np.zeros(4)
    with pytest.raises(ValueError, match=r"Targets are needed: give arrays x and y"):
        model.calibrate(x)
    with pytest.raises(ValueError, match=r"as many rows. Received: 4 rows of x and 5 of y"):
        model.calibrate(x, np.zeros(5))
    with pytest.raises(ValueError, match=r"`num_samples` must be a whole number"):
        model.calibrate(x, y, num_samples=0)
    with pytest.raises(ValueError, match="at least one example"):
        model.calibrate(x[:0], y[:0])
    with pytest.raises(ValueError, match="leave out `y` and `sample_weight`"):
        model.calibrate(tf.data.Dataset.from_tensors((x, y)), y)
    with pytest.raises(ValueError, match="must be finite"):
        model.calibrate(np.full((4, 3), np.nan, "float32"), y)
    with pytest.raises(ValueError, match="never fitted"):
        net(3, (), 3, "categorical").calibrate(x, y)
    with pytest.raises(ValueError, match="`temperature` must be a finite number above 0"):
        Calibration.from_config({"posterior_scale": 1.0, "temperature": -1.0})


def test_answers_are_calibrated_where_samples_are_made_and_not_again():
    model, x, expected = calibrated("bali")
    mixture = PredictiveMixture(model.likelihood, expected)
    np.testing.assert_allclose(
        mixture.mean(), model.posterior_predictive(x, 8, seed=1).mean(), rtol=1e-5
    )


def test_the_posterior_scale_is_bounded():
    """Counts that vary more than a Poisson's ask for any width: the mean would move with it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype("float32")
    y = rng.poisson(np.exp(np.sin(x[:, 0]) + rng.normal(size=300))).astype("float32")
    inputs = keras.Input((3,))
    with r1.members(2):
        h = r1.layers.DenseRank1(8, activation="relu")(r1.layers.TileMembers()(inputs))
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(1)(h))
    model = r1.BayesianModel(inputs, h, likelihood="poisson")
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(x[:100], y[:100], epochs=20, verbose=0)
    report = model.calibrate(x[100:], y[100:], verbose=0)
    assert report.posterior_scale <= 10.0 * (1.0 + 1e-6)


def test_weights_count_by_their_ratio():
    """Weights that add up to 1 find what weights of 1 find."""
    rng = np.random.default_rng(0)
    logits = 3.0 * rng.normal(size=(400, 3)).astype("float32")
    y = labels_of(logits / 3.0, rng)
    found = []
    for weight in (None, np.full(400, 1.0 / 400.0, "float32")):
        model = identity(3, "categorical")
        found.append(model.calibrate(logits, y, sample_weight=weight, verbose=0).temperature)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] > 1.5


def test_a_fit_that_trains_nothing_keeps_the_calibration():
    x = np.random.default_rng(0).normal(size=(80, 3)).astype("float32")
    inputs = keras.Input((3,))
    model = r1.BayesianModel(inputs, keras.layers.Dense(2)(inputs), likelihood="categorical")
    model.compile("adam")
    y = (x[:, 0] > 0).astype("int32")
    model.fit(x, y, epochs=1, verbose=0)
    calibration = r1.model.calibration.Calibration(temperature=2.0)
    r1.model.answer_state.set_calibration(model, calibration)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        model.fit(x[:, :2], y, verbose=0)
    assert model.calibration == calibration
    model.fit(x, y, epochs=1, verbose=0)
    assert model.calibration.is_neutral
