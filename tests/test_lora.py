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
