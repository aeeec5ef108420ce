"""Architectures of rank-1 layers: those of the paper, an MLP and a vision transformer.

With `ensemble_size=None` each function makes the same net of stock layers.
"""

from tfp_rank1.models.lstm import lstm
from tfp_rank1.models.mlp import mlp
from tfp_rank1.models.resnet50 import resnet50
from tfp_rank1.models.vision_transformer import vision_transformer
from tfp_rank1.models.wide_resnet import wide_resnet

__all__ = ["lstm", "mlp", "resnet50", "vision_transformer", "wide_resnet"]
