"""Embeddings of a table's columns, the nets for tables, and models of fewer members."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import bali_keras as bk
import tfp_rank1 as r1
from tfp_rank1.model.kernel_prior import kernels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype("float32")
CODES = RNG.integers(0, [2, 12], size=(60, 2)).astype("int32")
Y = (X[:, 0] + (CODES[:, 0] == 1) > 0).astype("int32")
EDGES = r1.layers.quantile_edges(X, 5)


# -- embeddings -----------------------------------------------------------------------------------


def encoded(x, edges):
    """The definition, number by number: the first bin has no lower, the last no upper limit."""
    out = np.zeros((len(x), len(edges), max(map(len, edges)) - 1))
    for n, p in np.ndindex(x.shape):
        bins = list(itertools.pairwise(edges[p]))
        for t, (low, high) in enumerate(bins):
            place = (x[n, p] - low) / (high - low)
            place = place if t == 0 else max(place, 0.0)
            out[n, p, t] = place if t == len(bins) - 1 else min(place, 1.0)
    return out


def test_encoding_is_the_place_among_the_edges():
    edges = [[-1.0, 0.0, 2.0], [0.0, 0.5, 1.0, 4.0], [0.0, 1.0]]
    x = RNG.normal(scale=3.0, size=(40, 3)).astype("float32")
    layer = r1.layers.PiecewiseLinearEncoding(edges)
    np.testing.assert_allclose(layer(x), encoded(x, edges), atol=1e-5)
    assert not layer.weights
    assert layer.compute_output_shape((None, 3)) == (None, 3, 3)


def test_a_flat_encoding_has_the_bins_that_there_are():
    edges = [[-1.0, 0.0, 2.0], [0.0, 0.5, 1.0, 4.0], [0.0, 1.0]]
    layer = r1.layers.PiecewiseLinearEncoding(edges, flatten=True)
    expected = encoded(X, edges)[:, [0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 2, 0]]
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)
    *_, sizes = r1.models.table_features(3, [4], edges, "encoding", category_dim=None)
    assert sizes == [2, 3, 1, 4]
    model = bk.models.tabular(3, 2, edges=edges)
    first = next(layer for layer in model.layers if isinstance(layer, bk.layers.DenseBali))
    assert first.input.shape == (None, 6)


def test_piecewise_linear_embedding_is_a_line_and_its_bends():
    layer = r1.layers.PiecewiseLinearEmbedding(EDGES, 4)
    line = X[..., None] * layer_weight(layer, "slope") + layer_weight(layer, "offset")
    np.testing.assert_allclose(layer(X), line, atol=1e-5)  # the start
    kernel = RNG.normal(size=layer.kernel.shape)
    layer.kernel.assign(kernel)
    bends = np.einsum("bpt,ptd->bpd", encoded(X, EDGES), kernel)
    np.testing.assert_allclose(layer(X), line + bends, atol=1e-4)


def layer_weight(layer, name):
    layer(X)
    return getattr(layer, name).numpy()


def test_the_prior_of_kernels_counts_the_inputs_of_one_feature():
    model = small()
    found = {kernel.path: fan_in for kernel, fan_in in kernels(model)}
    assert [v for path, v in found.items() if path.startswith("numbers")] == [5]  # bins


def test_periodic_embedding_is_a_layer_on_waves():
    layer = r1.layers.PeriodicEmbedding(4, num_frequencies=5, stddev=0.5, activation="tanh")
    layer(X)
    phases = 2 * np.pi * layer.frequencies.numpy() * X[..., None]
    waves = np.concatenate([np.cos(phases), np.sin(phases)], -1)
    expected = np.tanh(np.einsum("bpt,ptd->bpd", waves, layer.kernel) + layer.bias.numpy())
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)
    assert np.abs(layer.frequencies.numpy()).max() <= 2.0 * 0.5  # cut


def test_categories_are_one_hot_or_rows_of_their_own_table():
    layer = r1.layers.CategoryEmbedding([12, 2, 20], dim=4)
    codes = np.array([[3, 1, 19], [11, 0, 0], [-1, -1, -1], [12, 2, 20]], "int32")
    out = layer(codes).numpy()
    assert layer.sizes == [2, 4, 4]
    table = layer.table.numpy()
    assert table.shape == (32, 4)
    np.testing.assert_array_equal(out[:2, :2], [[0, 1], [1, 0]])
    np.testing.assert_allclose(out[0, 2:], np.r_[table[3], table[12 + 19]])
    np.testing.assert_allclose(out[1, 2:], np.r_[table[11], table[12]])
    # A category that a column does not have is no category of the next one.
    np.testing.assert_array_equal(out[2:], np.zeros((2, 10)))
    everything = r1.layers.CategoryEmbedding([12, 2, 20], dim=None)
    assert everything.sizes == [12, 2, 20]
    assert not everything.weights
    assert everything(codes).numpy().sum(axis=1).tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize(
    "layer",
    [
        r1.layers.PiecewiseLinearEncoding(EDGES),
        r1.layers.PiecewiseLinearEncoding(EDGES, flatten=True),
        r1.layers.PiecewiseLinearEmbedding(EDGES, 2, seed=1),
        r1.layers.PeriodicEmbedding(2, 3, seed=1),
    ],
    ids=["encoding", "flat encoding", "embedding", "periodic"],
)
def test_embeddings_are_rebuilt_and_refuse_another_width(layer):
    outputs = layer(X)
    copy = type(layer).from_config(layer.get_config())
    assert copy(X).shape == outputs.shape
    np.testing.assert_allclose(copy(X), outputs)  # the same seed
    assert tuple(outputs.shape)[1:] == layer.compute_output_shape((None, 3))[1:]
    with pytest.raises(ValueError, match=r"one column per feature. Received"):
        layer(X[:, :1])
    with pytest.raises(ValueError, match=r"one column per feature. Received"):
        type(layer).from_config(layer.get_config())(X[..., None])


def test_edges_are_quantiles_and_strange_ones_are_refused():
    x = np.c_[np.arange(100.0), np.repeat([1.0, 2.0], [40, 60]), np.full(100, 7.0)]
    edges = r1.layers.quantile_edges(x, 4)
    assert edges == [[0.0, 24.75, 49.5, 74.25, 99.0], [1.0, 2.0], [7.0, 8.0]]
    assert r1.layers.quantile_edges(x[:3], 10**12)[0] == [0.0, 1.0, 2.0]  # no bins within gaps
    assert r1.layers.quantile_edges(x[:1], 10**12)[0] == [0.0, 1.0]
    with pytest.raises(ValueError, match="in missing numbers and scale"):
        r1.layers.quantile_edges(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="finite in float32"):
        r1.layers.quantile_edges(np.array([[1e39], [2.0]]))
    for bad in ([[1.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, np.inf]], [[0.0, 1e-60]]):
        with pytest.raises(ValueError, match="Argument `edges`"):
            r1.layers.PiecewiseLinearEncoding(bad)


def test_a_feature_starts_with_one_value_for_all_its_entries():
    start = r1.initializers.ByFeature(r1.initializers.RandomSign(seed=3), [3, 1, 2])
    values = start((4, 6)).numpy()
    assert set(np.unique(values)) == {-1.0, 1.0}
    for first, last in ((0, 3), (3, 4), (4, 6)):
        assert (values[:, first:last] == values[:, first : first + 1]).all()
    copy = keras.initializers.deserialize(keras.initializers.serialize(start))
    np.testing.assert_array_equal(copy((4, 6)), values)
    unseeded = r1.initializers.ByFeature(r1.initializers.RandomSign(), [1] * 50)
    assert (unseeded.clone()((4, 50)).numpy() != unseeded((4, 50)).numpy()).any()
    with pytest.raises(ValueError, match="6 entries"):
        start((4, 7))


# -- nets -----------------------------------------------------------------------------------------


def small(**arguments):
    keras.utils.set_random_seed(0)
    given = {"edges": EDGES, "hidden": (8,), "ensemble_size": 4, "embedding_dim": 4}
    return r1.models.tabular(3, 2, **{**given, **arguments})


def test_members_differ_in_the_first_factor_alone():
    model = small(categories=[2, 12], hidden=(8, 8))
    first, *rest = [v for v in model.layers if isinstance(v, r1.layers.DenseRank1)]
    r = first.r_posterior.mean().numpy()
    assert r.shape == (4, 3 * 4 + 2 + 8)
    assert set(np.unique(r)) == {-1.0, 1.0}
    assert (r[:, :12].reshape(4, 3, 4).std(axis=-1) == 0.0).all()
    others = [first.s_posterior, *(q for v in rest for q in (v.r_posterior, v.s_posterior))]
    assert all((q.mean().numpy() == 1.0).all() for q in others)
    assert model.kl() == 0.0
    assert small(posterior="normal").kl() > 0.0


@pytest.mark.parametrize("embedding", ["piecewise_linear", "periodic"])
def test_nets_for_tables_learn_and_are_saved(embedding, tmp_path):
    model = small(categories=[2, 12], numeric_embedding=embedding, dropout=0.0)
    model.compile(keras.optimizers.Adam(0.03))
    x = {"numeric": X, "categorical": CODES}
    history = model.fit(x, Y, epochs=8, verbose=0).history["nll"]
    assert history[-1] < 0.75 * history[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_a_bali_net_has_a_posterior_for_every_weight():
    model = bk.models.tabular(3, 2, categories=[2, 12], edges=EDGES, hidden=(8,))
    assert not model.trainable_variables
    assert [tuple(v.weights[0].shape) for v in model.bali_layers] == [(3 * 5 + 14 + 1, 8), (9, 2)]


def test_tables_are_refused_by_argument():
    for arguments, message in (
        ({"edges": None}, "needs the edges"),
        ({"edges": EDGES[:2]}, "edges of 2 columns"),
        ({"numeric_embedding": "plain"}, "`numeric_embedding`"),
        ({"hidden": ()}, "`hidden`"),
        ({"posterior": "cauchy"}, "`posterior`"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**arguments)
    with pytest.raises(ValueError, match="A table has columns"):
        r1.models.table_features(0)


# -- fewer members --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    model = small(posterior="normal", dropout=0.0)
    model.compile(keras.optimizers.Adam(0.03), kernel_precision=0.0)
    model.fit(X, Y, epochs=4, verbose=0)
    return model


def test_a_pruned_model_is_the_mixture_of_its_members(trained):
    pruned = trained.prune_members(2, X, Y)
    with r1.posterior_mean():
        whole, part = trained(X).numpy(), pruned(X).numpy()
    assert part.shape == (60, 2, 2)
    log_p = np.asarray(tf.nn.log_softmax(whole))[np.arange(60), :, Y]
    pairs = list(itertools.combinations(range(4), 2))
    scores = [np.logaddexp(*log_p[:, pair].T).mean() for pair in pairs]
    # Greedy: the best member, then the one that goes best with it.
    first = int(log_p.mean(axis=0).argmax())
    best = max((s, p) for s, p in zip(scores, pairs, strict=True) if first in p)[1]
    np.testing.assert_allclose(part, whole[:, best], atol=1e-5)
    assert pruned.evaluate(X, Y, verbose=0, return_dict=True)["nll"] > 0.0  # compiled


def test_pruning_keeps_the_first_members_without_data_and_says_what_it_cannot_do(trained):
    with r1.posterior_mean():
        np.testing.assert_allclose(trained.prune_members(3)(X), trained(X)[:, :3], atol=1e-5)
    for number in (0, 5, 1.5):
        with pytest.raises(ValueError, match="`num_members`"):
            trained.prune_members(number)
    with pytest.raises(ValueError, match="without them"):
        r1.models.mlp((3,), 2, (4,), ensemble_size=None).prune_members(1)
    with pytest.raises(ValueError, match="Targets need their inputs"):
        trained.prune_members(2, y=Y)


def test_pruning_forgets_the_calibration_of_all_members():
    y = X[:, :1] * 2.0
    model = r1.models.tabular(
        3, 1, edges=EDGES, hidden=(8,), ensemble_size=4, likelihood="normal", dropout=0.0
    )
    model.compile(keras.optimizers.Adam(0.03))
    model.fit(X, y, epochs=3, verbose=0)
    before = model.posterior_predictive(X, 4).aleatoric_variance().numpy()
    model.calibrate(X, y + 3.0, verbose=0)
    assert model.calibration.temperature > 1.5
    pruned = model.prune_members(2)
    assert pruned.calibration.is_neutral
    after = pruned.posterior_predictive(X, 2).aleatoric_variance().numpy()
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_every_kind_of_layer_is_pruned():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    with r1.members(3):
        h = r1.layers.TileMembers()(inputs)
        h = r1.layers.Conv2DRank1(4, 3)(h)
        h = r1.layers.EnsembleBatchNormalization()(h)
        h = keras.layers.Reshape((16, 4))(h)
        h = keras.layers.Bidirectional(r1.layers.LSTMRank1(3, return_sequences=True))(h)
        h = r1.layers.MultiHeadAttentionRank1(2, 2)(h, h)
        h = keras.layers.GlobalAveragePooling1D()(h)
        outputs = r1.layers.SplitMembers()(r1.layers.DenseRank1(2, bias_posterior="normal")(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    x = RNG.normal(size=(4, 6, 6, 2)).astype("float32")
    pruned = model.prune_members(1)
    with r1.posterior_mean():
        np.testing.assert_allclose(pruned(x)[:, 0], model(x)[:, 0], atol=1e-5)
