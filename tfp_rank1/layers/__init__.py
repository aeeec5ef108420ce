"""Rank-1 Bayesian layers, layers that fold members into the batch, and embeddings of tables."""

from tfp_rank1.layers.attention import MultiHeadAttentionRank1
from tfp_rank1.layers.categories import CategoryEmbedding
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
from tfp_rank1.layers.periodic import PeriodicEmbedding
from tfp_rank1.layers.piecewise_linear import (
    PiecewiseLinearEmbedding,
    PiecewiseLinearEncoding,
    quantile_edges,
)
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.layers.recurrent import GRUCellRank1, GRURank1, LSTMCellRank1, LSTMRank1
from tfp_rank1.layers.time_distributed import TimeDistributedRank1

__all__ = [
    "CategoryEmbedding",
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
    "PeriodicEmbedding",
    "PiecewiseLinearEmbedding",
    "PiecewiseLinearEncoding",
    "Rank1Mixin",
    "SeparableConv1DRank1",
    "SeparableConv2DRank1",
    "SplitMembers",
    "TileMembers",
    "TimeDistributedRank1",
    "quantile_edges",
]
