"""MultiHeadAttentionRank1 against the stock layer with perturbed kernels."""

import keras
import numpy as np
import pytest

import tfp_rank1 as r1

L = r1.layers
K = 2


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, *shape)).astype("float32") for shape in shapes]


def member_weights(projection, k):
    """Kernel and bias of one member's projection."""
    kernel = np.array(projection.kernel)
    r, s = (np.array(f.mean())[k, 0] for f in (projection.r_factor, projection.s_factor))
    return [
        kernel * np.outer(r, s).reshape(kernel.shape),
        *([] if projection.bias is None else [np.array(projection.bias)[k].reshape(-1)]),
    ]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"value_dim": 5, "use_bias": False}, {"output_shape": 7, "use_gate": True}],
    ids=["plain", "no_bias", "gate"],
)
def test_every_member_is_a_stock_layer(arguments):
    """In the posterior mean, on queries, values and keys of their own, causal."""
    query, value, key = arrays((4, 6), (5, 3), (5, 2))
    layer = L.MultiHeadAttentionRank1(2, 3, ensemble_size=K, bias_initializer="normal", **arguments)
    tiled = [np.concatenate([v] * K) for v in (query, value, key)]
    with r1.posterior_mean():
        outputs, scores = layer(*tiled, return_attention_scores=True, use_causal_mask=True)
    for k in range(K):
        stock = keras.layers.MultiHeadAttention(2, 3, **arguments)
        stock.build(query.shape, value.shape, key.shape)
        for name in ("query", "key", "value", "output", "gate"):
            ours, plain = (getattr(v, f"_{name}_dense", None) for v in (layer, stock))
            if plain is not None:
                found = member_weights(ours, k)
                plain.set_weights([w.reshape(v.shape) for w, v in zip(found, plain.weights)])  # noqa: B905
        expected = stock(query, value, key, return_attention_scores=True, use_causal_mask=True)
        for found, wanted in zip((outputs, scores), expected, strict=True):
            np.testing.assert_allclose(np.split(np.array(found), K)[k], wanted, atol=1e-5)


def test_projections_have_noise_of_their_own():
    """Also with a seed; and the seed repeats it."""
    (x,) = arrays((4, 6))
    x = np.concatenate([x] * K)
    layers = [L.MultiHeadAttentionRank1(2, 3, ensemble_size=K, seed=3) for _ in range(2)]
    for layer in layers:
        layer(x, x)
    layers[1].set_weights(layers[0].get_weights())
    np.testing.assert_array_equal(layers[0](x, x), layers[1](x, x))
    seeds = {v._query_dense.seed for v in layers} | {v._key_dense.seed for v in layers}
    assert len(seeds) == 2


def test_a_small_transformer_trains(tmp_path):
    """Embedding, attention, layer normalization; saved, loaded, exported, its KL counted once."""
    tokens = keras.Input((6,), dtype="int32")
    h = L.EmbeddingRank1(8, 4, ensemble_size=K)(L.TileMembers(K)(tokens))
    attended = L.MultiHeadAttentionRank1(2, 2, ensemble_size=K)(h, h)
    h = keras.layers.LayerNormalization()(h + attended)
    h = keras.layers.GlobalAveragePooling1D()(h)
    outputs = L.SplitMembers(K)(L.DenseRank1(3, ensemble_size=K)(h))
    model = r1.BayesianModel(tokens, outputs, likelihood="categorical")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (12, 6)), rng.integers(0, 3, 12)
    # Such nets are traced in `test_models`, this one at its export.
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    layers = [v for v in model._flatten_layers() if isinstance(v, L.Rank1Mixin)]
    assert len(layers) == 6
    np.testing.assert_allclose(
        history["kl"][-1], sum(float(v.kl()) for v in layers) / 12, rtol=0.05
    )
    assert len(model.factor_variables) == 4 * 6
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    model.export_predictive(str(tmp_path / "served"), num_samples=2)


def test_unknown_arguments_are_named():
    with pytest.raises(ValueError, match="Unknown prior"):
        L.MultiHeadAttentionRank1(2, 3, prior="gauss")
