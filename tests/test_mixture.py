"""Likelihoods, losses and the predictive mixture against TFP, SciPy and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.predictive.mixture import PredictiveMixture

LK = r1.likelihoods
RNG = np.random.default_rng(0)
S, N = 5, 6


def built(likelihood, outputs):
    likelihood.build(outputs.shape)
    return likelihood


CASES = {
    "categorical": (LK.Categorical(), RNG.normal(size=(S, N, 4)), RNG.integers(0, 4, N)),
    "bernoulli": (LK.Bernoulli(), RNG.normal(size=(S, N, 2)), RNG.integers(0, 2, (N, 2))),
    "normal_fixed": (LK.Normal(scale=0.3), RNG.normal(size=(S, N, 1)), RNG.normal(size=N)),
    "normal_learned": (
        built(LK.Normal(initial_scale=0.7), np.zeros((1, 2))),
        RNG.normal(size=(S, N, 2)),
        RNG.normal(size=(N, 2)),
    ),
    "heteroscedastic": (
        LK.HeteroscedasticNormal(),
        RNG.normal(size=(S, N, 4)),
        RNG.normal(size=(N, 2)),
    ),
    "poisson": (LK.Poisson(), RNG.normal(1, 0.5, size=(S, N, 1)), RNG.poisson(3, N)),
    "negative_binomial": (
        LK.NegativeBinomial(dispersion=0.5),
        RNG.normal(1, 0.5, size=(S, N, 1)),
        RNG.poisson(3, N),
    ),
    "log_normal": (
        LK.LogNormal(scale=0.4),
        RNG.normal(size=(S, N, 2)),
        np.exp(RNG.normal(size=(N, 2))),
    ),
    "student_t": (LK.StudentT(df=4.5, scale=0.6), RNG.normal(size=(S, N, 1)), RNG.normal(size=N)),
    "laplace": (LK.Laplace(scale=0.5), RNG.normal(size=(S, N, 2)), RNG.normal(size=(N, 2))),
}


def oracle(name, outputs):
    """The conditional distribution of every sample by SciPy, float64."""
    outputs = np.float64(np.float32(outputs))
    if name == "categorical":
        return None
    if name == "bernoulli":
        return stats.bernoulli(1 / (1 + np.exp(-outputs)))
    if name.startswith("normal"):
        return stats.norm(outputs, 0.3 if name == "normal_fixed" else 0.7 + 1e-6)
    if name == "heteroscedastic":
        return stats.norm(outputs[..., :2], np.log1p(np.exp(outputs[..., 2:])) + 1e-3)
    if name == "poisson":
        return stats.poisson(np.exp(outputs))
    if name == "negative_binomial":
        return stats.nbinom(1 / 0.5, 1 / (1 + 0.5 * np.exp(outputs)))
    if name == "log_normal":
        return stats.lognorm(0.4, scale=np.exp(outputs))
    if name == "student_t":
        return stats.t(4.5, outputs, 0.6)
    return stats.laplace(outputs, 0.5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", [n for n in CASES if n != "categorical"])
def test_moments_and_log_prob(name, axis):
    likelihood, outputs, y = CASES[name]
    exact = oracle(name, outputs)
    laid = outputs if axis == 0 else outputs.transpose(1, 0, 2)
    mixture = PredictiveMixture(likelihood, laid, axis)
    np.testing.assert_allclose(mixture.mean(), exact.mean().mean(0), rtol=1e-4)
    np.testing.assert_allclose(mixture.aleatoric_variance(), exact.var().mean(0), rtol=1e-4)
    epistemic = exact.mean().var(0)
    np.testing.assert_allclose(mixture.epistemic_variance(), epistemic, rtol=1e-3, atol=1e-6)
    total = exact.var().mean(0) + epistemic
    np.testing.assert_allclose(mixture.stddev() ** 2, total, rtol=1e-3)
    y = y.reshape(N, -1)
    log_p = (exact.logpmf if likelihood.discrete else exact.logpdf)(y).sum(-1)
    np.testing.assert_allclose(mixture.log_prob(y), np.log(np.exp(log_p).mean(0)), rtol=1e-4)
    np.testing.assert_allclose(mixture.cdf(np.float32(y)), exact.cdf(y).mean(0), atol=1e-5)


def test_categorical_moments_and_entropies():
    likelihood, outputs, y = CASES["categorical"]
    mixture = PredictiveMixture(likelihood, outputs)
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    mean = p.mean(0)
    np.testing.assert_allclose(mixture.mean(), mean, rtol=1e-5)
    np.testing.assert_allclose(mixture.variance(), mean * (1 - mean), rtol=1e-4)
    np.testing.assert_allclose(mixture.log_prob(y), np.log(mean[np.arange(N), y]), rtol=1e-5)
    entropy = -(mean * np.log(mean)).sum(-1)
    expected = -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(mixture.entropy(), entropy, rtol=1e-5)
    np.testing.assert_allclose(mixture.expected_entropy(), expected, rtol=1e-5)
    np.testing.assert_allclose(mixture.mutual_information(), entropy - expected, atol=1e-5)
    for ordered in (lambda: mixture.quantile(0.5), lambda: mixture.cdf(np.zeros((N, 1)))):
        with pytest.raises(ValueError, match="classes of a Categorical likelihood have no order"):
            ordered()


@pytest.mark.parametrize("name", [n for n in CASES if n != "categorical"])
@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5, 0.9])
def test_quantile_inverts_the_cdf(name, probability):
    likelihood, outputs, _ = CASES[name]
    mixture = PredictiveMixture(likelihood, outputs)
    q = mixture.quantile(probability)
    if likelihood.discrete:
        assert np.all(np.asarray(mixture.cdf(q)) >= probability)
        assert np.all(np.asarray(mixture.cdf(q - 1.0)) < probability)
    else:
        np.testing.assert_allclose(mixture.cdf(q), probability, atol=1e-5)


def test_cdf_takes_targets_as_log_prob_does():
    likelihood, outputs, y = CASES["normal_fixed"]
    mixture = PredictiveMixture(likelihood, outputs)
    assert mixture.cdf(y).shape == (N, 1)
    np.testing.assert_array_equal(mixture.cdf(y), mixture.cdf(np.float32(y)[:, np.newaxis]))


def test_learned_noise_belongs_to_one_model():
    likelihood = LK.Normal()
    for outputs in (1, 2):
        inputs = keras.Input((3,))
        model = r1.BayesianModel(inputs, keras.layers.Dense(outputs)(inputs), likelihood=likelihood)
    model.compile("sgd")
    with pytest.raises(ValueError, match="noise scale belongs to one model"):
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)


def test_credible_interval_under_xla():
    likelihood, outputs, _ = CASES["normal_fixed"]

    @tf.function(jit_compile=True, autograph=False)
    def interval(outputs):
        return PredictiveMixture(likelihood, outputs).credible_interval(0.8)

    low, high = interval(np.float32(outputs))
    mixture = PredictiveMixture(likelihood, outputs)
    np.testing.assert_allclose(mixture.cdf(low), 0.1, atol=1e-4)
    np.testing.assert_allclose(mixture.cdf(high), 0.9, atol=1e-4)


def test_entropy_of_a_normal_mixture_by_quadrature():
    outputs = np.array([[[-1.0]], [[1.0]]])
    mixture = PredictiveMixture(LK.Normal(scale=0.5), outputs)
    grid = np.linspace(-5, 5, 20001)
    density = 0.5 * (stats.norm(-1, 0.5).pdf(grid) + stats.norm(1, 0.5).pdf(grid))
    expected = -np.trapezoid(density * np.log(density), grid)
    np.testing.assert_allclose(mixture.entropy(num_draws=20000), [expected], atol=0.03)
    np.testing.assert_allclose(
        mixture.expected_entropy(), [stats.norm(0, 0.5).entropy()], rtol=1e-5
    )


def test_poisson_expected_entropy():
    mixture = PredictiveMixture(LK.Poisson(), np.log([[[3.0]], [[5.0]]]))
    expected = (stats.poisson(3.0).entropy() + stats.poisson(5.0).entropy()) / 2
    np.testing.assert_allclose(mixture.expected_entropy(num_draws=20000), [expected], atol=0.03)


@pytest.mark.parametrize("name", CASES)
def test_predictive_agrees_with_its_tfd_mixture(name):
    likelihood, outputs, y = CASES[name]
    p = r1.PosteriorPredictive(tf.cast(outputs, tf.float32), likelihood)
    distribution = p.distribution()
    assert isinstance(distribution, tfd.MixtureSameFamily)
    targets = y if name == "categorical" else np.float32(y.reshape(N, -1))
    np.testing.assert_allclose(p.log_prob(y), distribution.log_prob(targets), rtol=1e-4, atol=1e-5)
    draws = np.asarray(p.sample(4000, seed=1))
    assert draws.shape[:2] == (4000, N)
    if name == "categorical":
        frequencies = (draws == np.arange(4)).mean(0)
        np.testing.assert_allclose(frequencies, p.mean(), atol=0.04)
    else:
        error = np.asarray(p.stddev()) / np.sqrt(4000)
        assert np.all(np.abs(draws.mean(0) - p.mean()) < 4.5 * error)
        np.testing.assert_allclose(draws.var(0), p.variance(), rtol=0.15)
    np.testing.assert_array_equal(p.sample(2, seed=3), p.sample(2, seed=3))
    assert not np.array_equal(p.sample(50), p.sample(50)) or name == "bernoulli"


def test_losses_average_and_mix():
    likelihood, outputs, y = CASES["categorical"]
    members = outputs.transpose(1, 0, 2)
    log_p = members - np.log(np.exp(members).sum(-1, keepdims=True))
    chosen = log_p[np.arange(N), :, y]
    average = r1.losses.AverageNLL(likelihood)(y, members)
    mixture = r1.losses.MixtureNLL(likelihood)(y, members)
    np.testing.assert_allclose(average, -chosen.mean(), rtol=1e-5)
    np.testing.assert_allclose(mixture, -np.log(np.exp(chosen).mean(1)).mean(), rtol=1e-5)
    assert mixture < average
    weight = np.arange(N, dtype="float32")
    weighted = r1.losses.AverageNLL(likelihood)(y, members, sample_weight=weight)
    np.testing.assert_allclose(weighted, (-chosen.mean(1) * weight).sum() / N, rtol=1e-5)


@pytest.mark.parametrize("cls", [r1.losses.AverageNLL, r1.losses.MixtureNLL])
def test_loss_configs_round_trip(cls):
    loss = cls(LK.Normal(scale=0.5), name="mine")
    again = cls.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    outputs, y = np.zeros((3, 2, 1), "float32"), np.ones(3, "float32")
    np.testing.assert_allclose(again(y, outputs), loss(y, outputs))
    assert cls().get_config()["likelihood"] is None


@pytest.mark.parametrize("cls", LK.ALL)
def test_likelihood_configs_round_trip(cls):
    likelihood = cls()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
    assert type(again) is cls
    assert again.get_config() == likelihood.get_config()
    assert type(LK.get(r1.serialization.snake_case(cls.__name__))) is cls


ERRORS = [
    (LK.Categorical(), 3, [3], r"whole numbers in \[0, 3\), or .*Received: min=3"),
    (LK.Categorical(), 3, [0.5], "Received: min=0.5"),
    (LK.Categorical(), 3, [-1], "Received: min=-1"),
    (LK.Bernoulli(), 1, [2], "must be 0 or 1. Received: min=2"),
    (LK.Normal(1.0), 1, [np.inf], "NaN where missing. Received: .*1 values not finite"),
    (LK.Poisson(), 1, [-1], "whole numbers of at least 0. Received: min=-1"),
    (LK.Poisson(), 1, [1.5], "whole numbers of at least 0"),
    (LK.NegativeBinomial(), 1, [-1], "whole numbers of at least 0. Received: min=-1"),
    (LK.LogNormal(), 1, [0.0], "finite numbers above 0. Received: min=0"),
    (LK.StudentT(), 1, [np.inf], "NaN where missing. Received: .*1 values not finite"),
]


@pytest.mark.parametrize(("likelihood", "num_outputs", "y", "message"), ERRORS)
def test_targets_outside_the_support_are_refused(likelihood, num_outputs, y, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check_targets(np.array(y), num_outputs)
    general = f"{type(likelihood).__name__} likelihood.* must be "
    with pytest.raises(tf.errors.InvalidArgumentError, match=general):
        likelihood.prepare_targets(np.array(y), num_outputs)


def test_other_errors():
    with pytest.raises(ValueError, match="learns its noise scale and belongs to no model"):
        r1.losses.AverageNLL(LK.Normal())(np.zeros(2), np.zeros((2, 1, 1)))
    with pytest.raises(ValueError, match="AverageNLL has no likelihood"):
        r1.losses.AverageNLL()(np.zeros(2), np.zeros((2, 1, 1)))
    hint = "The net answers at every position; for one answer per example flatten or pool the "
    hint += "positions before the last layer"
    message = rf"\[batch, 1\]\. {hint}\. Received: .*shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        r1.losses.AverageNLL("categorical")(np.zeros(2), np.zeros((2, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"two outputs per target.*Received: 3 outputs"):
        LK.HeteroscedasticNormal()(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`scale` must be .* above 0. Received: scale=-1"):
        LK.Normal(scale=-1.0)
    with pytest.raises(ValueError, match=r"`df` must be above 2.*Received: df=1"):
        LK.StudentT(df=1)
    with pytest.raises(ValueError, match=r"`dispersion` must be .* above 0. Received: disp.*=0"):
        LK.NegativeBinomial(dispersion=0)
    with pytest.raises(ValueError, match=r"noise dispersion.*NegativeBinomial\(dispersion=0.5\)"):
        r1.losses.AverageNLL(LK.NegativeBinomial())(np.zeros(2), np.zeros((2, 1, 1)))
    with pytest.raises(ValueError, match=r"shape \[batch, 2\]. Received: .*\(3, 1\)"):
        LK.Normal(1.0).prepare_targets(np.zeros((3, 1)), 2)
    mixture = PredictiveMixture(LK.Normal(1.0), np.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="`probability` must lie strictly between 0 and 1"):
        mixture.quantile(1.0)
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1"):
        mixture.credible_interval(1.5)


def test_rows_of_noise_depend_on_seed_and_index_only():
    seed = r1.random.make_seed(3)
    table = r1.random.normal_rows(0, (20, 3, 5), seed)
    np.testing.assert_array_equal(r1.random.normal_rows(12, (8, 3, 5), seed), table[12:])
    compiled = tf.function(
        lambda first: r1.random.normal_rows(first, (8, 3, 5), seed), jit_compile=True
    )
    np.testing.assert_allclose(compiled(tf.constant(12)), table[12:], atol=1e-5)
    assert not np.array_equal(r1.random.normal_rows(0, (20, 3, 5), r1.random.make_seed(4)), table)


def test_rows_of_noise_are_independent_standard_normal():
    z = np.reshape(r1.random.normal_rows(5, (4000, 25), r1.random.make_seed(0)), [4000, 25])
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / z.size)
    columns, rows = np.corrcoef(z.T) - np.eye(25), np.corrcoef(z[:200]) - np.eye(200)
    assert np.abs(columns).max() < 5 / np.sqrt(4000)
    assert np.abs(rows).max() < 6 / np.sqrt(25)


def test_integrated_outputs_are_a_wider_normal():
    """Outputs that are normal given the sample: every answer against many sampled outputs."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(3, 4, 2)).astype("float32")
    variance = rng.uniform(0.1, 0.5, size=(3, 4, 2)).astype("float32")
    likelihood = r1.likelihoods.Normal(scale=0.3)
    exact = r1.PosteriorPredictive(mean, likelihood, variance)
    spread = mean + np.sqrt(variance) * rng.normal(size=(20_000, 3, 4, 2)).astype("float32")
    sampled = r1.PosteriorPredictive(spread.reshape(-1, 4, 2), likelihood)
    y = mean.mean(0)  # not in a tail, where sampling is poor
    for name in ("mean", "variance", "aleatoric_variance", "epistemic_variance"):
        np.testing.assert_allclose(getattr(exact, name)(), getattr(sampled, name)(), atol=0.02)
    np.testing.assert_allclose(exact.log_prob(y), sampled.log_prob(y), atol=0.05)
    np.testing.assert_allclose(exact.cdf(y), sampled.cdf(y), atol=0.01)
    np.testing.assert_allclose(exact.quantile(0.9), sampled.quantile(0.9), atol=0.03)
    np.testing.assert_allclose(exact.distribution().log_prob(y), exact.log_prob(y), rtol=1e-5)
    draws = exact.sample(20_000, seed=1)
    np.testing.assert_allclose(np.var(draws, axis=0), exact.variance(), rtol=0.06)
    with pytest.raises(ValueError, match="such as Normal only"):
        r1.PosteriorPredictive(mean, r1.likelihoods.Poisson(), variance)


@pytest.mark.parametrize("spread", [1e-2, 0.1, 1.0])
def test_mutual_information_of_a_normal_ranks_like_the_epistemic_variance(spread):
    """By dense quadrature, at any size; draws gave exactly 0 to many rows."""
    rng = np.random.default_rng(0)
    samples = (spread * rng.normal(size=(16, 40, 1))).astype("float32")
    p = r1.PosteriorPredictive(samples, LK.Normal(scale=1.0))
    found = p.mutual_information()
    grid = np.linspace(-12, 12, 4001)[:, None, None]
    density = np.exp(-0.5 * (grid - samples[..., 0].astype("float64")) ** 2) / np.sqrt(2 * np.pi)
    mixture = density.mean(1)
    entropy = -(mixture * np.log(mixture + 1e-300)).sum(0) * (grid[1, 0, 0] - grid[0, 0, 0])
    np.testing.assert_allclose(found, entropy - 0.5 * np.log(2 * np.pi * np.e), rtol=0.12)
    assert np.all(found > 0.0)
    assert np.corrcoef(found, p.epistemic_variance()[:, 0])[0, 1] > 0.95
    variance = np.full_like(samples, 0.01)
    exact = r1.PosteriorPredictive(samples, LK.Normal(scale=1.0), variance)
    np.testing.assert_allclose(
        exact.mutual_information(), exact.by_example().mutual_information(), rtol=1e-4
    )


def test_mutual_information_of_several_targets():
    """Small spreads: the sum of what each target tells."""
    rng = np.random.default_rng(0)
    samples = (0.05 * rng.normal(size=(16, 40, 3))).astype("float32")
    p = r1.PosteriorPredictive(samples, LK.Normal(scale=1.0))
    expected = 0.5 * p.epistemic_variance().sum(1)
    assert np.corrcoef(p.mutual_information(), expected)[0, 1] > 0.8
    assert np.mean(p.mutual_information()) == pytest.approx(expected.mean(), rel=0.2)
