"""Keras layers whose weights have matrix-normal posteriors."""

from bali_keras.layers.attention import MultiHeadAttentionBali
from bali_keras.layers.base import BaliLayer
from bali_keras.layers.conv import Conv1DBali, Conv2DBali, Conv3DBali
from bali_keras.layers.conv_transpose import (
    Conv1DTransposeBali,
    Conv2DTransposeBali,
    Conv3DTransposeBali,
)
from bali_keras.layers.dense import DenseBali
from bali_keras.layers.depthwise_conv import DepthwiseConv1DBali, DepthwiseConv2DBali
from bali_keras.layers.einsum_dense import EinsumDenseBali
from bali_keras.layers.embedding import EmbeddingBali
from bali_keras.layers.recurrent import GRUBali, LSTMBali
from bali_keras.layers.separable_conv import SeparableConv1DBali, SeparableConv2DBali

__all__ = [
    "BaliLayer",
    "Conv1DBali",
    "Conv1DTransposeBali",
    "Conv2DBali",
    "Conv2DTransposeBali",
    "Conv3DBali",
    "Conv3DTransposeBali",
    "DenseBali",
    "DepthwiseConv1DBali",
    "DepthwiseConv2DBali",
    "EinsumDenseBali",
    "EmbeddingBali",
    "GRUBali",
    "LSTMBali",
    "MultiHeadAttentionBali",
    "SeparableConv1DBali",
    "SeparableConv2DBali",
]
