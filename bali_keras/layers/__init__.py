"""Keras layers whose weights have matrix-normal posteriors."""

from bali_keras.layers.base import BaliLayer
from bali_keras.layers.conv import Conv1DBali, Conv2DBali, Conv3DBali
from bali_keras.layers.dense import DenseBali
from bali_keras.layers.einsum_dense import EinsumDenseBali

__all__ = [
    "BaliLayer",
    "Conv1DBali",
    "Conv2DBali",
    "Conv3DBali",
    "DenseBali",
    "EinsumDenseBali",
]
