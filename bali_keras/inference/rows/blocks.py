"""`BlockRows` and `ChannelRows`: groups of a layer's inputs, each with a covariance of its own."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from bali_keras.inference.rows.plain import MatrixRows, check_kept, check_size
from bali_keras.matrix_normal import upper_operator

__all__ = ["BlockRows", "ChannelRows"]


class BlockRows(MatrixRows):
    """A row covariance of G blocks of b inputs; exact where inputs of two blocks never meet.

        L = diag(L_1, ..., L_G)         L_g = L0_g + N S_g

    R and every precision are their blocks, `[G, b, b]`. The last block is filled up: of the inputs
    that it lacks it knows the prior only, and nothing depends on them.

    Args:
        size: d.
        block: the largest size of a block; all blocks have the same.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, size: int, block: int, dtype: str) -> None:
        self.num_blocks = -(-size // block)
        self.block = -(-size // self.num_blocks)
        super().__init__(size, (self.num_blocks, self.block, self.block), dtype)

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        by_block = self._by_block(h)
        weighted = by_block if weight is None else by_block * weight[:, tf.newaxis]
        return tf.matmul(by_block, weighted, transpose_a=True)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        rows = self._by_block(tf.reshape(h, [-1, self.size]))
        white = tf.matmul(rows, tf.cast(self._factor(), h.dtype))  # [G, R, b]
        return tf.reshape(tf.reduce_sum(tf.square(white), axis=[0, 2]), tf.shape(h)[:-1])

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        return self._through(tf.convert_to_tensor(self.covariance), right)

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        applied = tf.matmul(self._by_block(h), tf.convert_to_tensor(self.covariance))
        flat = tf.reshape(tf.transpose(applied, [1, 0, 2]), [-1, self.num_blocks * self.block])
        return self.cross(flat[:, : self.size], right)

    def perturbation(self, noise: tf.Tensor) -> tf.Tensor:
        return self._through(self._factor(), noise)

    def operator(self) -> tf.linalg.LinearOperator:
        """One operator per block."""
        factors = tf.unstack(self._factor())
        missing = self.num_blocks * self.block - self.size
        last = self.block - missing
        factors[-1] = factors[-1][:last, :last]
        return tf.linalg.LinearOperatorBlockDiag([upper_operator(f) for f in factors])

    def dense_factor(self) -> tf.Tensor:
        return self.perturbation(tf.eye(self.size, dtype=self.dtype))

    def of_matrix(self, matrix: np.ndarray) -> tf.Tensor:
        check_size(matrix, self.size)
        missing = self.num_blocks * self.block - self.size
        full = np.eye(len(matrix) + missing, dtype=matrix.dtype)
        full[: self.size, : self.size] = matrix
        cells = full.reshape(self.num_blocks, self.block, self.num_blocks, self.block)
        blocks = np.stack([cells[g, :, g] for g in range(self.num_blocks)])
        own = np.kron(np.eye(self.num_blocks), np.ones((self.block, self.block)))
        kept = np.where(own[: self.size, : self.size] > 0.0, matrix, 0.0)
        check_kept(matrix, kept, f"in blocks of {self.block}")
        return tf.constant(blocks, self.dtype)

    def times(self, prior: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return prior * right if prior.shape.rank == 0 else self._through(prior, right)

    def log_det_of(self, prior: tf.Tensor) -> tf.Tensor:
        if prior.shape.rank == 0:
            return self.size * tf.math.log(prior)
        # What the last block lacks is apart from the rest of it.
        last = self._entries(tf.math.log(tf.linalg.diag_part(tf.linalg.cholesky(prior))))
        return 2.0 * tf.reduce_sum(last)

    def trace_with(self, prior: tf.Tensor) -> tf.Tensor:
        factor = self._factor()
        times = prior * factor if prior.shape.rank == 0 else tf.matmul(prior, factor)
        return tf.reduce_sum(self._entries(tf.reduce_sum(factor * times, axis=-1)))

    @property
    def num_parameters(self) -> int:
        return self.size * (self.block + 1) // 2

    @property
    def factorising_cost(self) -> int:
        return self.num_blocks * self.block**3

    @property
    def collecting_cost(self) -> int:
        return 2 * self.size * self.block

    def applying_cost(self, columns: int) -> int:
        return self.size * self.block * columns

    def _by_block(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows `[R, d]` as `[G, R, b]`, 0 in what the last block lacks."""
        missing = self.num_blocks * self.block - self.size
        rows = tf.pad(rows, [[0, 0], [0, missing]]) if missing else rows
        return tf.transpose(tf.reshape(rows, [-1, self.num_blocks, self.block]), [1, 0, 2])

    def _through(self, blocks: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`diag(X_1, ..., X_G) B` for B `[..., d, n]`."""
        missing = self.num_blocks * self.block - self.size
        front = [[0, 0]] * (int(right.shape.rank) - 2)
        full = tf.pad(right, [*front, [0, missing], [0, 0]]) if missing else right
        shape, leading = tf.shape(full), tf.shape(right)[:-2]
        cells = tf.concat([leading, [self.num_blocks, self.block], shape[-1:]], axis=0)
        found = tf.reshape(tf.matmul(blocks, tf.reshape(full, cells)), shape)
        found = found[..., : self.size, :]
        found.set_shape(right.shape)
        return found


class ChannelRows(BlockRows):
    """Rows that are 0 but for one block, as a depthwise convolution has them: one per channel.

    A row is `h = [0, ..., 0, x_g, 0, ..., 0]`, and the rows of all channels of one position are
    stored as `[..., G, b]`. The covariance is exact.

    Args:
        num_channels: G.
        width: b.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, num_channels: int, width: int, dtype: str) -> None:
        super().__init__(num_channels * width, width, dtype)

    def flat(self, h: tf.Tensor, dtype: str) -> tf.Tensor:
        return tf.reshape(tf.cast(h, dtype), [-1, self.num_blocks, self.block])

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        weighted = h if weight is None else h * tf.reshape(weight, [-1, self.num_blocks, 1])
        return tf.einsum("rgb,rgc->gbc", h, weighted)

    def cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        columns = right.shape[-1]
        by_channel = tf.reshape(right, [-1, self.num_blocks, columns])
        return tf.reshape(tf.einsum("rgb,rgk->gbk", h, by_channel), [self.size, columns])

    def product(self, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        by_channel = tf.reshape(weights, [self.num_blocks, self.block, weights.shape[-1]])
        return tf.einsum("...gb,gbk->...gk", h, by_channel)

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return self.apply(self.cross(h, right))

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        white = tf.einsum("...gb,gbc->...gc", h, tf.cast(self._factor(), h.dtype))
        return tf.reduce_sum(tf.square(white), axis=-1)

    @property
    def collecting_cost(self) -> int:
        return 2 * self.block**2
