"""What likelihoods say that they can do: scores, learned noise, marginals; learning with each."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bali_case import net
from scipy import stats

import tfp_rank1 as r1
from tfp_rank1.predictive import PredictiveMixture

LK = r1.likelihoods
# Each with the number of raw outputs to try it on.
SCORED = [
    (LK.Categorical(), 4),
    (LK.Bernoulli(), 3),
    (LK.Poisson(), 2),
    (LK.NegativeBinomial(dispersion=0.5), 2),
    (LK.Normal(scale=0.5), 2),
    (LK.HeteroscedasticNormal(), 4),
    (LK.LogNormal(scale=0.5), 2),
    (LK.StudentT(df=5.0, scale=0.5), 2),
    (LK.Laplace(scale=0.5), 2),
]


@pytest.mark.parametrize(("likelihood", "size"), SCORED, ids=lambda v: type(v).__name__)
def test_scores_have_the_fisher_information_as_covariance(likelihood, size):
    """As the gradients for labels drawn from the model have, to the error of 200,000 draws."""
    outputs = np.random.default_rng(0).normal(size=(1, size)).astype("float32")
    repeated = tf.repeat(tf.constant(outputs), 200_000, axis=0)
    closed = likelihood.scores(repeated, tf.random.stateless_normal(repeated.shape, (1, 2)))
    with tf.GradientTape() as tape:
        tape.watch(repeated)
        log_prob = likelihood.sampled_log_prob(repeated, tf.constant([3, 4]))
    sampled = tape.gradient(log_prob, repeated)
    a, b = (np.array(tf.matmul(s, s, transpose_a=True)) / 200_000 for s in (closed, sampled))
    np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


def targets(name, x):
    rng = np.random.default_rng(1)
    signal = x[:, 0] - 0.5 * x[:, 1]
    return {
        "student_t": lambda: signal + 0.2 * rng.standard_t(4, len(x)),
        "laplace": lambda: signal + rng.laplace(scale=0.2, size=len(x)),
        "log_normal": lambda: np.exp(signal + 0.2 * rng.normal(size=len(x))),
        "negative_binomial": lambda: rng.negative_binomial(2, 1 / (1 + 0.5 * np.exp(signal + 1))),
    }[name]().astype("float32")


FIXED = {
    "student_t": LK.StudentT(scale=0.2),
    "laplace": LK.Laplace(scale=0.2),
    "log_normal": LK.LogNormal(scale=0.2),
    "negative_binomial": LK.NegativeBinomial(dispersion=0.5),
}


@pytest.mark.parametrize(
    "name",
    [
        "student_t",
        pytest.param("negative_binomial", marks=pytest.mark.slow),
        pytest.param("laplace", marks=pytest.mark.slow),
        pytest.param("log_normal", marks=pytest.mark.slow),
    ],
)
def test_nets_learn_with_every_likelihood(name):
    """BALI with the noise given, a rank-1 net with the noise learned by its optimizer."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    y = targets(name, x)
    inferred = net(3, (8,), 1, FIXED[name], "tanh")
    inferred.compile()
    trained = r1.models.mlp((3,), 1, (8,), "tanh", name, ensemble_size=2)
    trained.compile(keras.optimizers.Adam(0.03), metrics=[r1.metrics.IntervalCoverage()])
    for model in (inferred, trained):
        logs = model.fit(x, y, batch_size=40, epochs=20, verbose=0).history
        assert np.isfinite(list(logs.values())).all()
        assert logs["nll"][-1] < logs["nll"][0] - 0.15
    if name != "negative_binomial":
        assert float(np.array(trained.likelihood.scale)[0]) < 0.8  # from 1, towards 0.2
    assert logs["coverage"][-1] > 0.8


def test_the_noise_of_a_log_normal_is_learned_in_closed_form():
    x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
    y = targets("log_normal", x)
    model = net(3, (), 1, "log_normal")
    model.compile()  # without an optimizer
    model.fit(x, y, batch_size=40, epochs=40, verbose=0)
    design = np.c_[x, np.ones(len(x))]
    residual = np.log(y) - design @ np.linalg.lstsq(design, np.log(y), rcond=None)[0]
    # The outputs are sampled, so their own spread counts as noise: a little above the residuals.
    assert float(model.likelihood.scale[0]) == pytest.approx(residual.std(), rel=0.1)


def test_the_noise_of_a_normal_is_the_mode_of_its_posterior():
    likelihood = LK.Normal(initial_scale=2.0)
    likelihood.build((None, 2))
    noise = likelihood.closed_form_noise
    squares = np.array([0.5, 3.0], "float32")
    expected = (0.1 * 4.0 + 50 * squares) / 50.1
    np.testing.assert_allclose(noise.mode(squares, tf.constant(50.0), 0.1), expected, rtol=1e-6)
    likelihood.rho.assign(noise.raw(tf.constant(expected)))
    np.testing.assert_allclose(noise.variance(), expected, rtol=1e-4)
    np.testing.assert_allclose(noise.bounded(tf.zeros(2)), 4e-10)
    np.testing.assert_allclose(noise.residuals(tf.ones(2), tf.zeros(2)), 1.0)
    assert noise.variables == [likelihood.rho]
    assert LK.Normal(scale=1.0).closed_form_noise is None
    assert LK.StudentT().closed_form_noise is None


def test_only_a_closed_form_is_integrated_out():
    for likelihood in map(LK.get, ("student_t", "laplace", "log_normal", "categorical")):
        with pytest.raises(
            ValueError, match=f"closed form.*Received: a {type(likelihood).__name__}"
        ):
            PredictiveMixture(likelihood, np.zeros((1, 2, 1)), 0, np.ones((1, 2, 1)))
        for method in (likelihood.noise_variance, lambda lk=likelihood: lk.marginal(0.0, 1.0)):
            with pytest.raises(NotImplementedError):
                method()


def test_a_tail_without_a_variance_still_has_quantiles():
    """The bracket comes from the samples' own quantiles, not from moments."""

    class HeavyTail(LK.Likelihood):
        def distribution(self, outputs):
            from tensorflow_probability import distributions as tfd

            return tfd.Cauchy(outputs, 1.0)

    outputs = np.array([[[-3.0]], [[4.0]]], "float32")
    mixture = PredictiveMixture(HeavyTail(), outputs)
    for probability in (0.01, 0.5, 0.97):
        q = mixture.quantile(probability)
        np.testing.assert_allclose(mixture.cdf(q), probability, atol=1e-5)


@pytest.mark.parametrize("name", ["student_t", "negative_binomial", "poisson", "normal"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_intervals_of_batches_of_any_size(name, jit_compile):
    """40 rows in batches of 32: the last batch is smaller, so no size is static."""
    inputs = keras.Input((4,))
    model = r1.BayesianModel(inputs, keras.layers.Dense(1)(inputs), likelihood=name)
    metrics = [r1.metrics.IntervalWidth(), r1.metrics.IntervalCoverage()]
    model.compile("sgd", metrics=metrics, jit_compile=jit_compile)
    x, y = np.ones((40, 4), "float32"), np.ones((40, 1))
    found = model.evaluate(x, y, batch_size=32, verbose=0, return_dict=True)
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("mean", [50.0, 1e4, 1e6])
def test_quantiles_of_large_counts(mean):
    outputs = np.full((1, 1, 1), np.log(mean), "float32")
    exact_mean = np.exp(np.float64(outputs)).item()
    for likelihood, exact in [
        (LK.NegativeBinomial(dispersion=0.5), stats.nbinom(2.0, 1 / (1 + 0.5 * exact_mean))),
        (LK.Poisson(), stats.poisson(exact_mean)),
    ]:
        mixture = PredictiveMixture(likelihood, outputs)
        for p in (0.05, 0.5, 0.95):
            found = float(mixture.quantile(p)[0, 0])
            assert found == pytest.approx(exact.ppf(p), rel=2e-6, abs=1.0)


def test_classes_of_probability_0_have_answers():
    """Logits that are the logarithm of probabilities are -inf where these are 0: 0 log 0 = 0."""
    probabilities = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8]], "float32")
    with np.errstate(divide="ignore"):
        p = r1.PosteriorPredictive(np.log(probabilities)[None], r1.likelihoods.Categorical())
    np.testing.assert_allclose(p.mean(), probabilities, rtol=1e-6)
    np.testing.assert_allclose(p.entropy(), [0.0, 0.693147, 0.500402], atol=1e-5)
    expected = np.log([1.0, 0.5, 0.8])
    np.testing.assert_allclose(p.log_prob([0, 1, 2]), expected, atol=1e-6)
    np.testing.assert_allclose(p.log_prob(np.eye(3)), expected, atol=1e-6)
    np.testing.assert_array_equal(p.log_prob([1, 2, 0]), -np.inf)


def test_one_output_is_no_class():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=r"output for every class.*bernoulli.*\(None, 1\)"):
        r1.BayesianModel(inputs, keras.layers.Dense(1)(inputs), likelihood="categorical")


def test_the_name_of_the_first_edition_is_still_read():
    with pytest.warns(DeprecationWarning, match="predicts_probabilities = True"):

        class Old(LK.Bernoulli):
            mean_name = "probs"

    with pytest.warns(DeprecationWarning, match="predicts_probabilities = False"):

        class Number(LK.Likelihood):
            mean_name = "mean"

    assert Old.predicts_probabilities and not Number.predicts_probabilities
