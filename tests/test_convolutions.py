"""Rank-1 convolutions of every kind against stock ones with perturbed kernels."""

import keras
import numpy as np
import pytest
from layer_case import as_on_any_cpu

import tfp_rank1 as r1

L = r1.layers

CONVOLUTIONS = [
    (L.Conv1DRank1, keras.layers.Conv1D, (9, 4), {"padding": "causal", "dilation_rate": 2}),
    (L.Conv1DRank1, keras.layers.Conv1D, (9, 4), {"padding": "same", "strides": 2}),
    (L.Conv2DRank1, keras.layers.Conv2D, (7, 6, 4), {"dilation_rate": 2}),
    (L.Conv2DRank1, keras.layers.Conv2D, (7, 6, 4), {"groups": 2, "padding": "same"}),
    (L.Conv2DRank1, keras.layers.Conv2D, (4, 7, 6), {"data_format": "channels_first"}),
    (L.Conv3DRank1, keras.layers.Conv3D, (4, 5, 4, 4), {"strides": (1, 2, 1)}),
]


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
@pytest.mark.parametrize(("cls", "stock", "shape", "arguments"), CONVOLUTIONS)
def test_convolution_equals_stock_layer_with_rank1_kernel(
    cls, stock, shape, arguments, perturbation
):
    layer = cls(
        6, 3, ensemble_size=2, posterior="deterministic", perturbation=perturbation,
        bias_initializer="normal", **arguments,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    outputs = np.split(np.array(as_on_any_cpu(layer, arguments)(np.concatenate([x, x]))), 2)
    axis = 1 if arguments.get("data_format") == "channels_first" else -1
    for k in range(2):
        r, s = layer.r_factor.mean()[k, 0].numpy(), layer.s_factor.mean()[k, 0].numpy()
        plain = stock(6, 3, **arguments)
        plain.build(x.shape)
        call = as_on_any_cpu(plain, arguments)
        bias = layer.bias[k].numpy()
        if perturbation == "multiplicative":
            # With groups, input channel i of a group is scaled by that group's r.
            kernel = np.asarray(layer.kernel)
            groups = arguments.get("groups", 1)
            r_of_filter = np.repeat(r.reshape(groups, -1).T, 6 // groups, axis=1)
            plain.set_weights([kernel * r_of_filter * s, bias])
            expected = call(x)
        else:
            plain.set_weights([layer.kernel, bias + s])
            lay = [1] * x.ndim
            lay[axis] = -1
            expected = call(x + r.reshape(lay))
        np.testing.assert_allclose(outputs[k], expected, atol=1e-5)


OTHER_CONVOLUTIONS = [
    (L.Conv1DTransposeRank1, keras.layers.Conv1DTranspose, (5, 3), (4, 3), {"strides": 2}),
    (L.Conv2DTransposeRank1, keras.layers.Conv2DTranspose, (4, 3, 2), (3, 3),
     {"strides": 2, "padding": "same", "output_padding": 1}),
    (L.Conv2DTransposeRank1, keras.layers.Conv2DTranspose, (4, 3, 2), (3, 2), {"dilation_rate": 2}),
    (L.Conv3DTransposeRank1, keras.layers.Conv3DTranspose, (2, 3, 2, 2), (3, 2), {}),
    (L.DepthwiseConv1DRank1, keras.layers.DepthwiseConv1D, (6, 3), (3,), {"depth_multiplier": 2}),
    (L.DepthwiseConv2DRank1, keras.layers.DepthwiseConv2D, (6, 5, 3), (3,), {"strides": 2}),
    (L.DepthwiseConv2DRank1, keras.layers.DepthwiseConv2D, (6, 5, 3), (2,), {"dilation_rate": 2}),
    (L.SeparableConv1DRank1, keras.layers.SeparableConv1D, (6, 3), (4, 3), {}),
    (L.SeparableConv2DRank1, keras.layers.SeparableConv2D, (6, 5, 3), (4, 3),
     {"depth_multiplier": 2, "padding": "same"}),
]  # fmt: skip


@pytest.mark.parametrize("perturbation", ["multiplicative", "additive"])
@pytest.mark.parametrize(("cls", "stock", "shape", "sizes", "arguments"), OTHER_CONVOLUTIONS)
def test_other_convolutions_are_stock_layers_between_factors(
    cls, stock, shape, sizes, arguments, perturbation
):
    layer = cls(
        *sizes, ensemble_size=2, perturbation=perturbation, bias_initializer="normal", **arguments
    )
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    with r1.posterior_mean():
        outputs = np.split(np.array(as_on_any_cpu(layer, arguments)(np.concatenate([x, x]))), 2)
    plain = stock(*sizes, use_bias=False, **arguments)
    plain.build(x.shape)
    plain.set_weights([np.array(v) for v in layer.weights if "kernel" in v.name])
    combine = np.multiply if perturbation == "multiplicative" else np.add
    call = as_on_any_cpu(plain, arguments)
    for k in range(2):
        r, s = (np.array(f.mean())[k, 0] for f in (layer.r_factor, layer.s_factor))
        expected = combine(call(combine(x, r)), s) + np.array(layer.bias)[k]
        np.testing.assert_allclose(outputs[k], expected, atol=1e-5)
