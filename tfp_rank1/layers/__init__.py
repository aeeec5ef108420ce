"""Rank-1 Bayesian layers, and the layers that fold members into the batch and back."""

from tfp_rank1.layers.attention import MultiHeadAttentionRank1
from tfp_rank1.layers.conv import Conv1DRank1, Conv2DRank1, Conv3DRank1
from tfp_rank1.layers.conv_transpose import (
    Conv1DTransposeRank1,
    Conv2DTransposeRank1,
    Conv3DTransposeRank1,
)
from tfp_rank1.layers.dense import DenseRank1
from tfp_rank1.layers.depthwise_conv import (
    DepthwiseConv1DRank1,
    DepthwiseConv2DRank1,
    SeparableConv1DRank1,
    SeparableConv2DRank1,
)
from tfp_rank1.layers.einsum_dense import EinsumDenseRank1
from tfp_rank1.layers.embedding import EmbeddingRank1
from tfp_rank1.layers.members import SplitMembers, TileMembers
from tfp_rank1.layers.normalization import EnsembleBatchNormalization
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.layers.recurrent import GRUCellRank1, GRURank1, LSTMCellRank1, LSTMRank1
from tfp_rank1.layers.time_distributed import TimeDistributedRank1

__all__ = [
    "Conv1DRank1",
    "Conv1DTransposeRank1",
    "Conv2DRank1",
    "Conv2DTransposeRank1",
    "Conv3DRank1",
    "Conv3DTransposeRank1",
    "DenseRank1",
    "DepthwiseConv1DRank1",
    "DepthwiseConv2DRank1",
    "EinsumDenseRank1",
    "EmbeddingRank1",
    "EnsembleBatchNormalization",
    "GRUCellRank1",
    "GRURank1",
    "LSTMCellRank1",
    "LSTMRank1",
    "MultiHeadAttentionRank1",
    "Rank1Mixin",
    "SeparableConv1DRank1",
    "SeparableConv2DRank1",
    "SplitMembers",
    "TileMembers",
    "TimeDistributedRank1",
]
