"""LoRA on rank-1 layers: low-rank changes of a kernel that rests."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_rank1 as r1

L = r1.layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda **k: L.DenseRank1(3, lora_alpha=4, **k), (5,)),
        (lambda **k: L.Conv1DRank1(3, 2, **k), (6, 2)),
        (lambda **k: L.EinsumDenseRank1("ab,bc->ac", output_shape=3, bias_axes="c", **k), (5,)),
        (lambda **k: L.EmbeddingRank1(7, 3, **k), (5,)),
    ],
    ids=["dense", "conv", "einsum", "embedding"],
)
def test_lora(layer, shape, tmp_path):
    """Given, or turned on later: the kernel rests, and the layer comes back from its file."""
    x = np.ones((4, *shape), "float32")
    for later in (False, True):
        built = layer(ensemble_size=2, **({} if later else {"lora_rank": 2}))
        model = keras.Sequential([keras.Input(shape), built])
        if later:
            built.enable_lora(2)
        a, b = built.weights[-2:]
        b.assign(tf.ones(b.shape))
        assert built.lora_enabled and not built.weights[0].trainable
        assert {id(a), id(b)} <= {id(v) for v in built.slow_weights}
        path = tmp_path / f"{later}.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
        with r1.posterior_mean():
            np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5)
        assert loaded.layers[0].lora_alpha == built.lora_alpha


@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_weights_between_ranks(kind, tmp_path):
    """Files of layers with LoRA, without, and with another rank and scale, into each other."""
    x = np.stack([np.arange(5)] * 2)

    def net(rank, alpha=None):
        arguments = {"ensemble_size": 2, "lora_rank": rank, "lora_alpha": alpha}
        if kind == "dense":
            layer = L.DenseRank1(3, **arguments)
        else:
            layer = L.EmbeddingRank1(7, 3, **arguments)
        return keras.Sequential([keras.Input((5,)), layer])

    path = str(tmp_path / "file.weights.h5")
    for wrote, reads in [
        ((None,), (2, 3)),
        ((2, 3), (None,)),
        ((2, 3), (2, 3)),
        ((2, 3), (2, 5)),
        ((2, 3), (1, 3)),
    ]:
        old, new = net(*wrote), net(*reads)
        for variable in old.layers[0].weights:
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))
        old.save_weights(path)
        new.load_weights(path)
        with r1.posterior_mean():
            np.testing.assert_allclose(new(x), old(x), rtol=1e-4, atol=1e-4)
        if reads[0] == 2:  # a is there to learn from, whatever the file had
            assert np.abs(new.layers[0].weights[-2]).max() > 0
    biasless = L.DenseRank1(3, ensemble_size=2, use_bias=False)
    with pytest.raises(ValueError, match="expected"):
        keras.Sequential([keras.Input((5,)), biasless]).load_weights(path)


def test_attention_comes_back(tmp_path):
    """LoRA on one projection is no part of the layer's config: its file is read merged."""
    query = keras.Input((3, 4))
    layer = L.MultiHeadAttentionRank1(2, 4, ensemble_size=2)
    model = keras.Model(query, layer(query, query))
    layer._query_dense.enable_lora(2)
    layer._query_dense.lora_kernel_b.assign(tf.ones_like(layer._query_dense.lora_kernel_b))
    x = np.random.default_rng(0).normal(size=(4, 3, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    with r1.posterior_mean():
        np.testing.assert_allclose(
            keras.models.load_model(tmp_path / "model.keras")(x), model(x), rtol=1e-4, atol=1e-5
        )


def test_convert_merges():
    """Of a stock layer the kernel with its low-rank part is taken, to be trained as one."""
    dense = keras.layers.Dense(3)
    stock = keras.Sequential([keras.Input((5,)), dense])
    dense.enable_lora(2, lora_alpha=3)
    dense.lora_kernel_b.assign(tf.ones_like(dense.lora_kernel_b))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    converted = r1.convert(stock, 2, likelihood="normal")
    with r1.posterior_mean():
        for member in range(2):
            np.testing.assert_allclose(converted(x)[:, member], stock(x), rtol=1e-5, atol=1e-6)
    assert all(v.trainable for v in converted.slow_weights if v.name == "kernel")
