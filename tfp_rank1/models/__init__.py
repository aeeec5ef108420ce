"""Architectures of rank-1 layers: those of the paper, an MLP, a vision transformer, and one for
tables.

With `ensemble_size=None` each function makes the same net of stock layers.
"""

from tfp_rank1.models.lstm import lstm
from tfp_rank1.models.mlp import mlp
from tfp_rank1.models.resnet50 import resnet50
from tfp_rank1.models.tabular import table_features, tabular
from tfp_rank1.models.vision_transformer import vision_transformer
from tfp_rank1.models.wide_resnet import wide_resnet

__all__ = [
    "lstm",
    "mlp",
    "resnet50",
    "table_features",
    "tabular",
    "vision_transformer",
    "wide_resnet",
]
