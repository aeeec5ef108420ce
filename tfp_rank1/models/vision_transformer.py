"""A small vision transformer with rank-1 factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts, input_of
from tfp_rank1.moments import Moments, register
from tfp_rank1.serialization import registered

__all__ = [
    "AddPositions",
    "vision_transformer",
]


@registered("tfp_rank1")
class AddPositions(keras.layers.Layer):
    """Adds a learned vector to every position, `[B, T, D]` -> `[B, T, D]`.

    All members share the vectors.
    """

    def build(self, input_shape: Any) -> None:
        """Create the vectors."""
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.positions = self.add_weight(
            name="positions", shape=tuple(input_shape[1:]), initializer=initializer
        )

    def call(self, inputs: Any) -> Any:
        """Inputs plus the vector of each position."""
        return inputs + self.positions


@register(AddPositions)
def _positions(layer: AddPositions, x: Moments) -> Moments:
    return Moments(x.mean + tf.cast(layer.positions, x.mean.dtype), x.variance)


def vision_transformer(
    input_shape: Sequence[int] = (32, 32, 3),
    num_outputs: int = 10,
    patch_size: int = 4,
    depth: int = 4,
    width: int = 64,
    num_heads: int = 4,
    likelihood: Any = "categorical",
    ensemble_size: int | None = 4,
    l2: float = 0.0,
    prior_stddev: float | None = None,
    **rank1: Any,
) -> BayesianModel:
    """A transformer encoder on patches of an image, the mean over patches, and a dense head.

    `sampling` defaults to `"member"` here, one draw per member and batch, as for transformers with
    rank-1 factors in the reference code.

    Args:
        input_shape: shape of an image, channels last. Defaults to (32, 32, 3).
        num_outputs: number of outputs D. Defaults to 10.
        patch_size: side of a patch in pixels; it divides both sides of the image. Defaults to 4.
        depth: number of blocks. Defaults to 4.
        width: size of a patch's vector. Defaults to 64.
        num_heads: number of attention heads; it divides `width`. Defaults to 4.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        ensemble_size: number of members K. Defaults to 4. None makes the same net of stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on kernels and biases. Defaults to 0.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` of Normal posteriors
            (mean 0 if additive). Defaults to 0.05.
        **rank1: arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` from `[B, *input_shape]` to `[B, K, num_outputs]`.

    Raises:
        ValueError: unless `patch_size` divides both sides of the image and `num_heads` the width;
            else as for `mlp`.

    Example:
    ```python
    model = r1.models.vision_transformer(depth=2, width=32)
    ```

    Source: Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words"; Tran et al. (2022), "Plex".
    """
    inputs = input_of(input_shape)
    height, side = input_shape[:2]
    if height % patch_size or side % patch_size or width % num_heads:
        raise ValueError(
            "`patch_size` must divide the sides of the image, and `num_heads` the width. Received: "
            f"{patch_size=} with input_shape={tuple(input_shape)}, {num_heads=} with {width=}"
        )
    # A net without members refuses arguments of factors, so the default is for members only.
    if ensemble_size is not None:
        rank1 = {"sampling": "member", **rank1}
    parts = Parts(ensemble_size, l2, prior_stddev, 0.05, rank1)
    h = parts.layer("Conv2D", width, patch_size, strides=patch_size)(parts.start(inputs))
    h = AddPositions()(keras.layers.Reshape((-1, width))(h))
    for _ in range(depth):
        h = _block(parts, h, width, num_heads)
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(h))
    outputs = parts.layer("Dense", num_outputs)(h)
    return parts.model(inputs, outputs, likelihood, "vision_transformer")


def _block(parts: Parts, x: Any, width: int, num_heads: int) -> Any:
    h = keras.layers.LayerNormalization()(x)
    x = x + parts.layer("MultiHeadAttention", num_heads, width // num_heads)(h, h)
    h = keras.layers.LayerNormalization()(x)
    h = parts.layer("Dense", 4 * width, activation="gelu")(h)
    return x + parts.layer("Dense", width)(h)
