"""Rank-1 Bayesian layers and what goes around them."""

from tfp_rank1.layers._rank1 import Rank1Mixin
from tfp_rank1.layers.conv import Conv1DRank1, Conv2DRank1, Conv3DRank1
from tfp_rank1.layers.dense import DenseRank1
from tfp_rank1.layers.members import SplitMembers, TileMembers
from tfp_rank1.layers.normalization import EnsembleBatchNormalization

__all__ = [
    "Conv1DRank1",
    "Conv2DRank1",
    "Conv3DRank1",
    "DenseRank1",
    "EnsembleBatchNormalization",
    "Rank1Mixin",
    "SplitMembers",
    "TileMembers",
]
