"""Posteriors, priors and KL against float64 closed forms and numerical integrals."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, stats
from tensorflow_probability import distributions as tfd

import tfp_rank1 as r1
from tfp_rank1.divergence import kl_divergence
from tfp_rank1.layers.factor import Factor
from tfp_rank1.priors import FactorState

SEED = tf.constant([1, 2])


def normal_kl(m, s, mean, stddev):
    """The closed form, in float64."""
    m, s = np.float64(m), np.float64(s)
    return np.log(stddev / s) + (s**2 + (m - mean) ** 2) / (2 * stddev**2) - 0.5


def cauchy_kl(m, s, loc, scale):
    m, s = np.float64(m), np.float64(s)
    return np.log(((s + scale) ** 2 + (m - loc) ** 2) / (4 * s * scale))


def integral_kl(q, p, low, high):
    """KL of two scipy distributions by quadrature, in float64."""
    points = q.ppf([1e-6, 0.01, 0.5, 0.99, 1 - 1e-6])
    edges = [low, *[point for point in points if low < point < high], high]
    value = 0.0
    for a, b in itertools.pairwise(edges):
        value += integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), a, b, limit=200)[
            0
        ]
    return value


def make_factor(posterior, prior, shape=(2, 7), average_members=True):
    """A built factor in a throw-away layer."""
    layer = keras.layers.Layer()
    posterior = r1.posteriors.get(posterior)
    prior = r1.priors.default_for(posterior) if prior == "default" else r1.priors.get(prior)
    factor = Factor("r", posterior, prior, 1.0, average_members)
    factor.build(layer, shape)
    return factor


def parameters(factor):
    """Location and scale of a factor's posterior, float64."""
    q = factor.distribution()
    return np.float64(q.loc), np.float64(q.scale)


def test_normal_kl_is_the_closed_form():
    factor = make_factor("normal", r1.priors.Normal(0.8, 0.2))
    expected = normal_kl(*parameters(factor), 0.8, 0.2).sum(axis=1).mean()
    np.testing.assert_allclose(factor.kl(SEED), expected, rtol=1e-5)


def test_sum_over_members_is_k_times_the_average():
    average = make_factor("normal", "normal")
    total = make_factor("normal", "normal", average_members=False)
    for name, variable in average.posterior_variables.items():
        total.posterior_variables[name].assign(variable)
    np.testing.assert_allclose(total.kl(SEED), 2 * average.kl(SEED), rtol=1e-5)


def test_cauchy_kl_is_the_closed_form():
    factor = make_factor("cauchy", r1.priors.Cauchy(1.2, 0.3))
    expected = cauchy_kl(*parameters(factor), 1.2, 0.3).sum(axis=1).mean()
    np.testing.assert_allclose(factor.kl(SEED), expected, rtol=1e-5)


def clipped_deviation(distribution):
    """Root mean square distance from 1 of draws clipped to [-10, 10], by integration."""
    inside = integrate.quad(
        lambda x: (x - 1) ** 2 * distribution.pdf(x), -10, 10, points=[0.99, 1.0, 1.01], limit=500
    )[0]
    return np.sqrt(inside + 121 * distribution.cdf(-10) + 81 * distribution.sf(10))


def test_heavy_tails_start_as_wide_as_the_normal_family():
    cauchy, normal = r1.posteriors.Cauchy(), r1.posteriors.Normal()
    assert clipped_deviation(stats.cauchy(1, cauchy.scale)) == pytest.approx(normal.scale, rel=0.2)
    assert r1.posteriors.HalfCauchy().scale == cauchy.scale


def test_log_normal_kl_is_that_of_the_logarithms():
    factor = make_factor("log_normal", r1.priors.LogNormal(0.1, 0.3))
    expected = normal_kl(*parameters(factor), 0.1, 0.3).sum(axis=1).mean()
    np.testing.assert_allclose(factor.kl(SEED), expected, rtol=1e-5)


def test_tied_mean_costs_only_the_spread():
    factor = make_factor("normal", r1.priors.NormalWithTiedMean(0.3))
    m, s = parameters(factor)
    np.testing.assert_allclose(
        factor.kl(SEED), normal_kl(m, s, m, 0.3).sum(axis=1).mean(), rtol=1e-5
    )


def test_trainable_stddev_has_a_variable_per_entry_and_a_gradient():
    factor = make_factor("normal", r1.priors.NormalWithTrainableStddev(stddev=0.25))
    assert factor.prior_variables["rho"].shape == (2, 7)
    expected = normal_kl(*parameters(factor), 1.0, 0.25).sum(axis=1).mean()
    with tf.GradientTape() as tape:
        kl = factor.kl(SEED)
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    assert np.abs(tape.gradient(kl, factor.prior_variables["rho"].value)).min() > 0


def test_log_normal_against_normal_prior():
    q = tfd.LogNormal(np.float64(0.05), np.float64(0.2))
    p = tfd.Normal(np.float64(1.0), np.float64(0.3))
    expected = integral_kl(stats.lognorm(0.2, scale=np.exp(0.05)), stats.norm(1.0, 0.3), 0.2, 5.0)
    np.testing.assert_allclose(kl_divergence(q, p, SEED), expected, rtol=1e-6)


MONTE_CARLO = [
    (tfd.Normal(1.1, 0.1), tfd.Cauchy(1.0, 0.1), stats.norm(1.1, 0.1), stats.cauchy(1.0, 0.1)),
    (
        tfd.LogNormal(0.1, 0.3),
        tfd.HalfCauchy(0.0, 1.0),
        stats.lognorm(0.3, scale=np.exp(0.1)),
        stats.halfcauchy(0.0, 1.0),
    ),
    (
        tfd.HalfCauchy(1.0, 0.1),
        tfd.HalfCauchy(0.0, 1.0),
        stats.halfcauchy(1.0, 0.1),
        stats.halfcauchy(0.0, 1.0),
    ),
    (
        tfd.HalfCauchy(1.0, 0.1),
        tfd.LogNormal(0.0, 0.5),
        stats.halfcauchy(1.0, 0.1),
        stats.lognorm(0.5),
    ),
]


@pytest.mark.parametrize(("q", "p", "q_exact", "p_exact"), MONTE_CARLO)
def test_monte_carlo_kl_agrees_with_quadrature(q, p, q_exact, p_exact):
    low = q_exact.support()[0]
    low = max(low, q_exact.ppf(1e-9)) if np.isinf(low) else max(low, 1e-12)
    expected = integral_kl(q_exact, p_exact, low, q_exact.ppf(1 - 1e-7))
    n = 200_000
    z = q.sample(n, seed=SEED)
    error = float(tf.math.reduce_std(q.log_prob(z) - p.log_prob(z))) / np.sqrt(n)
    estimate = float(kl_divergence(q, p, SEED, num_samples=n))
    assert abs(estimate - expected) < 4.5 * error


@pytest.mark.parametrize("average_members", [True, False])
def test_empirical_bayes_variance_is_the_minimiser(average_members):
    prior = r1.priors.EmpiricalBayesNormal(variance_concentration=3.0, variance_scale=0.5)
    factor = make_factor("normal", prior, average_members=average_members)
    m, s = parameters(factor)
    state = FactorState(factor.distribution(), 1.0, average_members)
    v = float(prior.variance(state))

    def penalty(v):
        kl = normal_kl(m, s, 1.0, np.sqrt(v)).sum(axis=1)
        kl = kl.mean() if average_members else kl.sum()
        return kl - stats.invgamma(3.0, scale=0.5).logpdf(v)

    np.testing.assert_allclose(factor.kl(SEED), penalty(v), rtol=1e-5)
    assert penalty(v) < min(penalty(0.99 * v), penalty(1.01 * v))


def test_hierarchical_divergence_is_the_expectation_over_tau():
    factor = make_factor("normal", r1.priors.HierarchicalNormal(scale=0.3))
    m, s = parameters(factor)
    tau = factor.prior.tau_posterior(factor.prior_variables)
    tau_m, tau_s = (np.float64(v[0]) for v in (tau.loc, tau.scale))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    expected = sum(
        w * normal_kl(m, s, 1.0, np.exp(tau_m + tau_s * z))
        for z, w in zip(nodes, weights / weights.sum(), strict=True)
    )
    state = FactorState(factor.distribution(), 1.0, True)
    actual = factor.prior.divergence(factor.prior_variables, state, SEED)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    exact = integral_kl(
        stats.lognorm(tau_s, scale=np.exp(tau_m)), stats.halfcauchy(0, 0.3), 1e-4, 20.0
    )
    own = factor.prior.hyper_divergence(factor.prior_variables, state, SEED)
    np.testing.assert_allclose(own, exact, atol=0.2)


EQUAL = [
    (tfd.Normal(0.9, 0.2), tfd.Normal(0.9, 0.2)),
    (tfd.LogNormal(0.1, 0.2), tfd.LogNormal(0.1, 0.2)),
    (tfd.Cauchy(0.1, 0.2), tfd.Cauchy(0.1, 0.2)),
    (tfd.HalfCauchy(0.1, 0.2), tfd.HalfCauchy(0.1, 0.2)),
]


@pytest.mark.parametrize(("q", "p"), EQUAL)
def test_kl_of_a_distribution_from_itself_is_zero(q, p):
    np.testing.assert_allclose(kl_divergence(q, p, SEED), 0.0, atol=1e-6)


REFUSED = {
    (q, p)
    for q, p in itertools.product(
        ["Normal", "NormalSharedStddev", "NormalFixedStddev", "Cauchy", "Deterministic",
         "MixtureOfDeltas"],
        ["LogNormal", "HalfCauchy"],
    )
} | {
    (q, p)
    for q, p in itertools.product(
        ["Cauchy", "HalfCauchy"],
        ["Normal", "NormalWithTiedMean", "NormalWithTrainableStddev", "EmpiricalBayesNormal",
         "HierarchicalNormal"],
    )
} | {("Deterministic", "NormalWithTiedMean")}  # fmt: skip


@pytest.mark.parametrize("posterior", r1.posteriors.ALL)
@pytest.mark.parametrize("prior", r1.priors.ALL)
def test_every_pair_is_finite_or_refused(posterior, prior):
    """Finite at the default start, with finite gradients; else they are refused by name."""
    if (posterior.__name__, prior.__name__) in REFUSED:
        with pytest.raises(ValueError, match=r"the KL is (infinite|constant), because .* Use "):
            make_factor(posterior, prior)
        return
    factor = make_factor(posterior, prior)
    with tf.GradientTape() as tape:
        kl = factor.kl(SEED)
    assert np.isfinite(kl)
    gradients = tape.gradient(kl, [v.value for v in factor.variables])
    for gradient in gradients:
        assert gradient is None or np.isfinite(gradient).all()
    assert any(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("posterior", r1.posteriors.ALL)
def test_default_pair_trains(posterior):
    """Every family has a default prior (none for points) with a small KL at the start."""
    factor = make_factor(posterior, "default", shape=(4, 100))
    per_entry = float(factor.kl(SEED)) / 100
    assert (factor.prior is None) == (posterior.__name__ in ("Deterministic", "MixtureOfDeltas"))
    # Heavy tails: narrower than the prior by 100, means 10 scales away; or narrower by 10,000.
    assert 0.0 <= per_entry < (3.0 if posterior.finite_variance else 9.0)


@pytest.mark.parametrize("cls", [*r1.posteriors.ALL, *r1.priors.ALL])
def test_configs_round_trip(cls):
    instance = cls()
    assert cls.from_config(instance.get_config()) == instance
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(instance))
    assert again == instance
    assert type(again) is cls
    get = r1.posteriors.get if cls in r1.posteriors.ALL else r1.priors.get
    assert get(cls.__name__) == instance
    assert get(keras.saving.serialize_keras_object(instance)) == instance


@pytest.mark.parametrize("cls", [c for c in r1.posteriors.ALL if c is not r1.posteriors.Cauchy])
def test_sample_moments_match_the_distribution(cls):
    factor = make_factor(cls, "default" if cls is not r1.posteriors.HalfCauchy else "half_cauchy")
    draws = factor.sample(20_000, SEED)
    assert draws.shape in [(2, 20_000, 7), (2, 1, 7)]
    middle = np.median(draws, axis=1) if cls is r1.posteriors.HalfCauchy else np.mean(draws, axis=1)
    np.testing.assert_allclose(middle, factor.mean()[:, 0], atol=5e-3)
    if factor.posterior.finite_variance:
        variance = factor.distribution().variance()
        np.testing.assert_allclose(np.var(draws, axis=1), variance, rtol=0.1, atol=1e-6)


def test_normal_numbers_are_normal_and_independent():
    z = np.asarray(r1.random.normal((3, 50_001), SEED))
    assert z.shape == (3, 50_001)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # The two halves come from the same radii: neither values nor squares may correlate.
    half = (z.size + 1) // 2
    first, second = z.ravel()[:half][: half - 1], z.ravel()[half:]
    for f in (np.array, np.square, np.abs):
        assert abs(np.corrcoef(f(first), f(second))[0, 1]) < 4.5 / np.sqrt(half)
    rows = tf.function(lambda n: r1.random.normal((2, n, 3), SEED))(tf.constant(4))
    np.testing.assert_array_equal(rows, r1.random.normal((2, 4, 3), SEED))


def test_mixture_of_deltas_draws_its_points_and_passes_gradients():
    factor = make_factor(r1.posteriors.MixtureOfDeltas(3), "normal", shape=(1, 2))
    loc = factor.posterior_variables["loc"]
    with tf.GradientTape() as tape:
        draws = factor.sample(300, SEED)
        total = tf.reduce_sum(draws)
    points = np.asarray(loc)[0]
    for entry in range(2):
        values, counts = np.unique(np.asarray(draws)[0, :, entry], return_counts=True)
        np.testing.assert_allclose(values, np.sort(points[entry]))
        assert counts.min() > 60
    np.testing.assert_allclose(np.sum(tape.gradient(total, loc.value)), 600.0)


def test_initializers_differ_between_factors():
    """One description serves many factors, each with its own draw."""
    posterior = r1.posteriors.Normal(keras.initializers.RandomNormal(1.0, 0.5))
    layer = r1.layers.DenseRank1(7, posterior=posterior)
    layer.build((1, 7))
    r, s = layer.r_factor, layer.s_factor
    assert not np.array_equal(r.posterior_variables["loc"], s.posterior_variables["loc"])


def test_random_sign():
    initializer = r1.initializers.RandomSign(0.75)
    signs = np.asarray(initializer((4000,)))
    assert set(signs) == {-1.0, 1.0}
    assert abs((signs > 0).mean() - 0.75) < 0.04
    restored = keras.initializers.deserialize(keras.initializers.serialize(initializer))
    assert restored.probability == 0.75


ERRORS = [
    (lambda: r1.priors.Normal(1.0, -0.1), r"`stddev` must be .* above 0. Received: stddev=-0.1"),
    (lambda: r1.posteriors.Normal(stddev=-1), r"`stddev` must be .* Received: stddev=-1"),
    (lambda: r1.posteriors.Cauchy(scale=0.0), r"`scale` must be .* Received: scale=0.0"),
    (lambda: r1.priors.Normal(1.0, float("nan")), "Received: stddev=nan"),
    (lambda: r1.priors.get("laplace"), r"Unknown prior: expected one of .*'normal'.*'laplace'"),
    (lambda: r1.posteriors.get(3), "Unknown posterior: .* Received: 3"),
    (lambda: r1.priors.HalfCauchy(loc=0.5), "`loc` of a HalfCauchy prior must be at most 0"),
    (lambda: r1.posteriors.MixtureOfDeltas(0), "`num_components` must be at least 1"),
    (lambda: r1.initializers.RandomSign(1.5), r"`probability` must lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mixture_of_densities_is_no_point():
    """Of Normals: by Monte Carlo, not by the penalty that points have."""
    q = tfd.MixtureSameFamily(
        tfd.Categorical(probs=[0.2, 0.8]), tfd.Normal([1.0, 1.3], [0.1, 0.05])
    )
    p = tfd.Normal(1.0, 0.2)
    grid = np.linspace(0.0, 2.0, 20001)
    density = 0.2 * stats.norm(1.0, 0.1).pdf(grid) + 0.8 * stats.norm(1.3, 0.05).pdf(grid)
    ratio = np.log(density + 1e-300) - stats.norm(1.0, 0.2).logpdf(grid)
    expected = np.trapezoid(density * ratio, grid)
    found = kl_divergence(q, p, tf.constant([1, 2]), num_samples=50_000)
    np.testing.assert_allclose(found, expected, atol=0.02)
    points = tfd.MixtureSameFamily(tfd.Categorical(probs=[0.2, 0.8]), tfd.Deterministic([1.0, 1.3]))
    weighted = -0.2 * p.log_prob(1.0) - 0.8 * p.log_prob(1.3)
    np.testing.assert_allclose(kl_divergence(points, p, tf.constant([1, 2])), weighted, rtol=1e-5)
