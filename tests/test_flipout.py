"""sampling="flipout": marginals as those of a draw per row, rows that are uncorrelated."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_rank1 as r1

L, Q = r1.layers, r1.posteriors
ROWS, INPUTS, DRAWS = 6, 4, 3000


def layer_of(sampling, posterior=None, **arguments):
    posterior = posterior or Q.Normal(mean_initializer="ones", stddev=0.3)
    return L.DenseRank1(3, posterior=posterior, sampling=sampling, seed=0, **arguments)


def draws_of(layer, x, draws=DRAWS):
    call = tf.function(lambda: layer(x), autograph=False)
    return np.stack([call() for _ in range(draws)])


@pytest.mark.parametrize("width", [3, 64])
def test_coins(width):
    coins = r1.random.coins((7, 500, width), r1.random.make_seed(0)).numpy()
    assert coins.shape == (7, 500, width) and set(np.unique(coins)) == {-1.0, 0.0}
    assert abs(coins.mean() + 0.5) < 4.5 * 0.5 / np.sqrt(coins.size)
    flat = coins.reshape(-1, width)[:, :3]
    np.testing.assert_allclose(np.corrcoef(flat.T), np.eye(3), atol=4.5 / np.sqrt(len(flat)))
    again = tf.function(lambda n: r1.random.coins((7, n, width), r1.random.make_seed(0)))
    np.testing.assert_array_equal(again(500), coins)


@pytest.mark.parametrize("sampling", ["flipout", "member"])
def test_rows_of_a_member_are_uncorrelated(sampling):
    """Equal rows, whose outputs would be equal if they shared a draw."""
    values = draws_of(layer_of(sampling), np.ones((ROWS, INPUTS), "float32"))[..., 0]
    correlation = np.corrcoef(values.T)
    off = correlation[~np.eye(ROWS, dtype=bool)]
    if sampling == "member":
        np.testing.assert_allclose(off, 1.0, atol=1e-4)
    else:
        assert np.abs(off).max() < 0.1


def test_gradients_vary_less_than_with_shared_draws():
    """Of a sum over rows: rows that are uncorrelated average their noise out."""
    x = np.random.default_rng(0).normal(size=(64, INPUTS)).astype("float32")
    variances = {}
    for sampling in ("example", "flipout", "member"):
        layer = layer_of(sampling)
        layer(x)
        layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))

        @tf.function(autograph=False)
        def gradient(layer=layer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(layer(x)))
            return tape.gradient(loss, layer.kernel.value)

        found = np.stack([gradient() for _ in range(500)])
        variances[sampling] = float(found.var(axis=0).mean())
    assert variances["example"] < variances["member"] / 4.0
    assert variances["flipout"] < variances["member"] / 2.0


@pytest.mark.parametrize("family", ["log_normal", "half_cauchy", "mixture_of_deltas"])
def test_families_that_are_not_symmetric_are_refused(family):
    with pytest.raises(ValueError, match="must be symmetric around their means"):
        layer_of("flipout", family)


def test_a_subclass_that_draws_in_its_own_way_says_itself_whether_it_is_symmetric():
    class Skew(Q.Normal):
        def sample(self, parameters, rows, seed):
            return tf.exp(super().sample(parameters, rows, seed))

    class Still(Q.Normal):
        symmetric = True

        def sample(self, parameters, rows, seed):
            return super().sample(parameters, rows, seed)

    with pytest.raises(ValueError, match="Skew"):
        layer_of("flipout", Skew())
    assert layer_of("flipout", Still()).sampling == "flipout"


def test_points_take_no_signs():
    layer = layer_of("flipout", Q.Deterministic("ones"))
    x = np.ones((ROWS, INPUTS), "float32")
    np.testing.assert_array_equal(layer(x), layer(x))


def test_cauchy_draws_have_their_quartiles():
    posterior = Q.Cauchy(mean_initializer="ones", scale=0.05)
    layer = layer_of("flipout", posterior, r_posterior="deterministic", use_bias=False)
    x = np.ones((2, INPUTS), "float32")
    layer(x)
    layer.kernel.assign(np.ones((INPUTS, 3)))
    layer.r_factor.assign_mean(1.0)
    plain = x @ np.array(layer.kernel)
    values = draws_of(layer, x)[:, 1, 0] / plain[1, 0]
    np.testing.assert_allclose(np.quantile(values, [0.25, 0.75]), [0.95, 1.05], atol=0.01)
