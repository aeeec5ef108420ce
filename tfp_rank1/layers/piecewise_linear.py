"""Numbers by their place among the edges of bins, one set of edges per feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.checks import whole
from tfp_rank1.layers.per_feature import check_width, feature_weight
from tfp_rank1.serialization import registered

__all__ = [
    "PiecewiseLinearEmbedding",
    "PiecewiseLinearEncoding",
    "quantile_edges",
]


def quantile_edges(x: Any, num_bins: int = 48) -> list[list[float]]:
    """Edges of bins that hold equally many of the given numbers, feature by feature.

    Args:
        x: numbers `[N, P]` of training examples.
        num_bins: number of bins, at least 1. A feature with fewer distinct quantiles gets fewer,
            and none has more than there are gaps between N numbers. Defaults to 48.

    Returns:
        P increasing lists with up to `num_bins + 1` edges; of a constant feature the number and
        the number plus 1.

    Raises:
        ValueError: unless `x` has two axes, examples, and finite numbers only.

    Example: `edges = quantile_edges(x_train)`.
    """
    with np.errstate(over="ignore"):  # in float32, in which the layers compute
        x = np.asarray(x).astype("float32").astype("float64")
    num_bins = whole("num_bins", num_bins)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise ValueError(
            "Argument `x` must hold numbers [N, P] that are finite in float32, N at least 1: fill "
            "in missing numbers and scale first. Received: an array of shape "
            f"{x.shape}, {np.sum(~np.isfinite(x))} not finite"
        )
    levels = np.linspace(0.0, 1.0, min(num_bins, max(len(x) - 1, 1)) + 1)
    # In float32 again, so that no bin is empty there.
    found = [np.unique(np.quantile(column, levels).astype("float32")) for column in x.T]
    return [[*map(float, e)] if len(e) > 1 else [float(e[0]), float(e[0]) + 1.0] for e in found]


class _PiecewiseLinear(keras.layers.Layer):
    """Base of the layers that know edges: `[B, P]`, one column per feature.

    Args:
        edges: P increasing lists of at least two edges.
    """

    def __init__(self, edges: Sequence[Sequence[float]], **kwargs: Any) -> None:
        # Half precision could not tell narrow bins apart.
        super().__init__(autocast=False, **kwargs)
        self.edges = [[float(edge) for edge in feature] for feature in edges]
        for place, feature in enumerate(self.edges):
            steps = np.diff(np.asarray(feature, "float32"))
            if len(feature) < 2 or not np.isfinite(steps).all() or not (steps > 0.0).all():
                raise ValueError(
                    "Argument `edges` must hold at least two finite edges of every feature, in "
                    "increasing order and distinct in float32. Received: "
                    f"edges[{place}]={feature}"
                )
        if not self.edges:
            raise ValueError("Argument `edges` must not be empty. Received: edges=[]")
        self.bins_of = [len(feature) - 1 for feature in self.edges]
        self.num_bins = max(self.bins_of)
        shape = len(self.edges), self.num_bins
        self._start, self._slope = np.zeros(shape, "float32"), np.zeros(shape, "float32")
        self._least, self._most = np.zeros(shape, "float32"), np.ones(shape, "float32")
        for p, (given, bins) in enumerate(zip(self.edges, self.bins_of, strict=True)):
            found = np.asarray(given, "float32")
            self._start[p, :bins], self._slope[p, :bins] = found[:-1], 1.0 / np.diff(found)
            self._least[p, 0], self._most[p, bins - 1] = -np.inf, np.inf

    def build(self, input_shape: Any) -> None:
        """Check the width."""
        check_width(self, input_shape, len(self.edges))
        self.built = True

    def encode(self, inputs: tf.Tensor) -> tf.Tensor:
        """The places of the inputs among the edges, `[B, P, T]` in float32."""
        check_width(self, inputs.shape, len(self.edges))  # one column would be taken for all
        x = tf.expand_dims(tf.cast(inputs, tf.float32), -1)
        places = (x - self._start) * self._slope
        return tf.maximum(tf.minimum(places, self._most), self._least)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "edges": self.edges}


@registered("tfp_rank1")
class PiecewiseLinearEncoding(_PiecewiseLinear):
    """Numbers by their place among edges: `[B, P]` -> `[B, P, T]`, without weights.

        e_t = clip((x - b_t) / (b_{t+1} - b_t), 0, 1),      t = 0..T-1

    where the first bin has no lower and the last no upper limit, so that numbers beyond the edges
    still differ. A dense layer on the encoding is a piecewise linear function of every feature.
    Features with fewer bins than T have zeros in the last places. `flatten=True` leaves these out,
    so that the next layer has no idle inputs: the cost of a BALI layer grows fast with its width.

    Args:
        edges: P increasing lists of at least two edges, such as `quantile_edges` gives.
        flatten: whether the places of all features stand side by side. Defaults to False.

    Input shape: `[B, P]`, float.

    Output shape: `[B, P, T]`, T the largest number of bins; `[B, bins of all features]` with
        `flatten=True`.

    Raises:
        ValueError: for edges that do not increase, or inputs of another width.

    Example:
    ```python
    edges = r1.layers.quantile_edges(x_train)
    h = r1.layers.PiecewiseLinearEncoding(edges)(keras.Input((8,)))     # [B, 8, 48]
    ```

    Source: Gorishniy, Rubachev & Babenko (2022), "On Embeddings for Numerical Features in Tabular
    Deep Learning".
    """

    def __init__(
        self, edges: Sequence[Sequence[float]], flatten: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(edges, **kwargs)
        self.flatten = bool(flatten)
        is_bin = np.arange(self.num_bins) < np.array(self.bins_of)[:, np.newaxis]
        self._bins = np.flatnonzero(is_bin)  # places in a vector [P T]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The encoding, in the dtype that the layer computes in."""
        encoding = self.encode(inputs)
        if self.flatten:
            encoding = tf.reshape(encoding, [-1, len(self.edges) * self.num_bins])
            encoding = tf.gather(encoding, self._bins, axis=-1)
        return tf.cast(encoding, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, P]` -> `[B, P, T]`, or `[B, bins of all features]`."""
        return (input_shape[0], len(self._bins)) if self.flatten else (*input_shape, self.num_bins)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "flatten": self.flatten}


@registered("tfp_rank1")
class PiecewiseLinearEmbedding(_PiecewiseLinear):
    """Every number as a vector, a piecewise linear function: `[B, P]` -> `[B, P, dim]`.

        h_p = x_p a_p + c_p + W_p^T e_p,        e_p: encoding of x_p, `PiecewiseLinearEncoding`

    The functions start as straight lines, W_p = 0, and bend where the data ask for it. Scale inputs
    to unit size.

    Args:
        edges: P increasing lists of at least two edges, such as `quantile_edges` gives.
        dim: size of a vector. Defaults to 16.
        seed: integer for reproducible weights. Defaults to None.

    Input shape: `[B, P]`, float.

    Output shape: `[B, P, dim]`.

    Raises:
        ValueError: as for `PiecewiseLinearEncoding`.

    Example:
    ```python
    h = r1.layers.PiecewiseLinearEmbedding(r1.layers.quantile_edges(x_train), 16)(keras.Input((8,)))
    h = keras.layers.Flatten()(h)                                                # [B, 128]
    ```

    Source: Gorishniy, Rubachev & Babenko (2022), "On Embeddings for Numerical Features in Tabular
    Deep Learning".
    """

    equation = "bpt,ptd->bpd"  # of the encoding and the kernel

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        dim: int = 16,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(edges, **kwargs)
        self.dim, self.seed = whole("dim", dim), seed

    def build(self, input_shape: Any) -> None:
        """Create slopes, offsets and weights of the encoding."""
        super().build(input_shape)
        features = len(self.edges)
        bound = self.dim**-0.5
        self.slope = feature_weight(self, "slope", (features, self.dim), bound, 0)
        self.offset = feature_weight(self, "offset", (features, self.dim), bound, 1)
        self.kernel = self.add_weight(
            name="kernel", shape=(features, self.num_bins, self.dim), initializer="zeros"
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The vectors, in the dtype that the layer computes in."""
        encoding = tf.cast(self.encode(inputs), self.compute_dtype)
        slope, offset, kernel = (
            tf.cast(v, self.compute_dtype) for v in (self.slope, self.offset, self.kernel)
        )
        line = tf.expand_dims(tf.cast(inputs, self.compute_dtype), -1) * slope + offset
        return line + tf.einsum(self.equation, encoding, kernel)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, P]` -> `[B, P, dim]`."""
        return (*input_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "seed": self.seed}
