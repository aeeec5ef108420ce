"""A likelihood and a posterior of one's own, defined here and known to no file of the packages."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import bali_keras as bk
import tfp_rank1 as r1

K = 2


@keras.saving.register_keras_serializable("tests")
class RobustTarget(r1.likelihoods.Likelihood):
    """Student's t with five degrees of freedom; `rho` is a weight of its own, for Adam."""

    def build(self, input_shape):
        self.rho = self.add_weight(name="rho", shape=(input_shape[-1],), initializer="zeros")
        self.built = True

    def distribution(self, outputs):
        return tfd.StudentT(5.0, outputs, tf.nn.softplus(tf.convert_to_tensor(self.rho)))


@keras.saving.register_keras_serializable("tests")
class Laplacian(r1.posteriors.Posterior):
    """`Laplace(center, softplus(width))` under names of its own; no prior unless one is given."""

    default_prior = None

    def __init__(self, start=0.05):
        self.start = start

    def build(self, add_weight, shape, center):
        initializer = keras.initializers.Constant(center)
        width = keras.initializers.Constant(np.log(np.expm1(self.start)))
        return {
            "center": add_weight("center", shape, initializer),
            "width": add_weight("width", shape, width),
        }

    def distribution(self, parameters):
        center, width = (tf.convert_to_tensor(parameters[n]) for n in ("center", "width"))
        return tfd.Laplace(center, tf.nn.softplus(width))

    def around(self, center):
        return self  # `build` starts there

    def assign_mean(self, variables, mean):
        center = variables["center"]
        center.assign(tf.broadcast_to(tf.cast(mean, center.dtype), center.shape))

    def get_config(self):
        return {"start": self.start}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype("float32")
    y = x @ [[1.0], [-0.5], [0.2]] + 0.1 * rng.standard_t(5, size=(200, 1))
    y[::50] += 8.0  # outliers, which a Normal would follow
    return x, y.astype("float32")


def rank1_net():
    inputs = keras.Input((3,))
    h = r1.layers.TileMembers(K)(inputs)
    h = r1.layers.DenseRank1(
        8, activation="tanh", ensemble_size=K, posterior=Laplacian(), prior="normal",
        bias_posterior=Laplacian(0.01),
    )(h)  # fmt: skip
    h = r1.layers.DenseRank1(1, ensemble_size=K, posterior=Laplacian(0.1))(h)
    outputs = r1.layers.SplitMembers(K)(h)
    model = r1.BayesianModel(inputs, outputs, likelihood=RobustTarget())
    model.compile(keras.optimizers.Adam(0.02), metrics=metrics())
    return model


def bali_net():
    inputs = keras.Input((3,))
    h = bk.layers.DenseBali(8, activation="tanh")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood=RobustTarget())
    # Settings that nothing here is about, and that would be searched.
    settings = {"prior_precision": 0.02, "damping": 0.01, "covariance_scale": 1.0}
    model.compile(keras.optimizers.Adam(0.02), metrics=metrics(), **settings)
    return model


def metrics():
    m = r1.metrics
    return [m.PredictiveNLL(), m.RootMeanSquaredError(), m.IntervalCoverage(), m.IntervalWidth()]


@pytest.mark.parametrize("net", [rank1_net, pytest.param(bali_net, marks=pytest.mark.slow)])
def test_what_is_defined_elsewhere_trains_answers_and_travels(net, data, tmp_path):
    keras.utils.set_random_seed(0)
    x, y = data
    model = net()
    history = model.fit(x, y, batch_size=20, epochs=15, verbose=0, validation_data=(x, y)).history
    assert np.isfinite(list(history.values())).all()
    assert history["nll"][-1] < history["nll"][0] - 0.3
    # The optimizer trained the scale, away from softplus(0); no closed form for Normal noise did.
    assert float(np.array(model.likelihood.rho)[0]) < -0.3

    p = model.posterior_predictive(x, num_samples=8, seed=0)
    conditional = model.likelihood.distribution(p.samples)
    log_prob = np.log(np.mean(np.exp(conditional.log_prob(y[None])[..., 0]), axis=0))
    np.testing.assert_allclose(p.log_prob(y), log_prob, rtol=1e-4, atol=1e-5)
    low, high = p.credible_interval(0.9)
    np.testing.assert_allclose(p.cdf(low), 0.05, atol=1e-3)
    np.testing.assert_allclose(p.cdf(high), 0.95, atol=1e-3)
    assert np.isfinite(p.entropy()).all()

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.likelihood) is RobustTarget
    with r1.posterior_mean():
        expected = model(x[:8])
        np.testing.assert_array_equal(loaded(x[:8]), expected)
        np.testing.assert_array_equal(keras.models.clone_model(model)(x[:8]).shape, expected.shape)
    model.export_predictive(str(tmp_path / "served"), num_samples=4)
    served = tf.saved_model.load(str(tmp_path / "served"))
    answers = served.serve(x[:8])
    assert answers.keys() == {"mean", "variance", "aleatoric_variance", "epistemic_variance"}
    noise = np.array(model.likelihood.variance(expected)).ravel()[0]
    np.testing.assert_allclose(answers["aleatoric_variance"], noise, rtol=1e-5)


def test_a_family_of_ones_own_in_a_converted_net(data):
    x, _ = data
    stock = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]
    )
    stock.layers[0].bias.assign([0.3, -0.1, 0.2, 0.0])
    model = r1.convert(
        stock, K, likelihood=RobustTarget(), posterior=Laplacian(), bias_posterior=Laplacian(0.01)
    )
    with r1.posterior_mean():
        np.testing.assert_allclose(model(x)[:, 0], stock(x), rtol=1e-5, atol=1e-6)


def test_an_own_family_has_the_divergence_that_is_registered(data):
    """TFP has no closed form for this pair: Monte Carlo, until a formula is given."""
    q, p = tfd.Laplace(1.0, 0.05), tfd.Cauchy(1.0, 0.1)
    draws = tfd.Laplace(1.0, 0.05).sample(200_000, seed=(0, 1))
    expected = float(tf.reduce_mean(q.log_prob(draws) - p.log_prob(draws)))
    found = r1.divergence.kl_divergence(q, p, tf.constant([1, 2]), num_samples=20_000)
    assert float(found) == pytest.approx(expected, abs=0.02)


def test_a_registered_formula_counts_before_all_others(monkeypatch):
    monkeypatch.setattr(r1.divergence, "_FORMULAS", list(r1.divergence._FORMULAS))
    r1.divergence.register_kl(tfd.Laplace, tfd.Cauchy)(lambda q, p: tf.constant(7.0))
    found = r1.divergence.kl_divergence(
        tfd.Laplace(0.0, 1.0), tfd.Cauchy(0.0, 1.0), tf.constant([1, 2])
    )
    assert float(found) == 7.0


@keras.saving.register_keras_serializable("tests")
class Ordinal(r1.likelihoods.Likelihood):
    """One of three classes, by nothing but a distribution over class numbers."""

    discrete = predicts_probabilities = is_categorical = True
    link_names = ("softmax",)

    def distribution(self, outputs):
        return tfd.Categorical(logits=outputs)


def test_a_likelihood_over_classes_needs_a_distribution_alone():
    """It equals Categorical, which has formulas of its own."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 4, 3)).astype("float32")
    y = rng.integers(0, 3, 6)
    own, stock = (
        r1.predictive.PredictiveMixture(likelihood, outputs, 1)
        for likelihood in (Ordinal(), r1.likelihoods.Categorical())
    )
    for verb in ("mean", "variance", "entropy", "expected_entropy", "mutual_information"):
        np.testing.assert_allclose(getattr(own, verb)(), getattr(stock, verb)(), rtol=1e-5)
    np.testing.assert_allclose(own.log_prob(y), stock.log_prob(y), rtol=1e-5)
    losses = (r1.losses.AverageNLL(lk)(y, outputs) for lk in (Ordinal(), "categorical"))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    accuracies = []
    for likelihood in (Ordinal(), "categorical"):
        metric = r1.metrics.Accuracy(likelihood=likelihood)
        metric.update_state(y, outputs)
        accuracies.append(float(metric.result()))
    assert accuracies[0] == accuracies[1]


def test_attributes_of_a_subclass_are_its_own():
    """State that the base classes need stands under underscored names."""

    class Net(bk.BaliModel):
        def __init__(self, options):
            super().__init__(likelihood="normal")
            self.options, self.samplers, self.counters, self.batch_size = options, [1], [0], 16
            self.dense = bk.layers.DenseBali(1)

        def call(self, x):
            return self.likelihood(self.dense(x))

    model = Net({"units": 5})
    model.compile()
    x = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    model.fit(x, x[:, :1], verbose=0)
    assert model.posterior_predictive(x, 2).mean().shape == (40, 1)
    assert dict(model.options) == {"units": 5} and model.batch_size == 16


@pytest.mark.parametrize("prior", ["normal", "hierarchical_normal"])
def test_a_family_without_moments_in_tfp_has_an_estimated_kl(prior):
    class Bounded(Laplacian):
        def distribution(self, parameters):
            center, width = (tf.convert_to_tensor(parameters[n]) for n in ("center", "width"))
            return tfd.LogitNormal(center, tf.nn.softplus(width))

    layer = r1.layers.DenseRank1(2, ensemble_size=2, posterior=Bounded(), prior=prior)
    layer(np.ones((2, 3), "float32"))
    assert np.isfinite(layer.kl()) and layer.kl() != layer.kl()  # Monte Carlo
